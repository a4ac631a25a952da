"""One reward from two: safety where safety is at stake, helpfulness elsewhere.

Conventions. Both inputs are *probabilities* in [0, 1], the sigmoid of a reward model's score; 0.15 read on
the linear scale would be a probability of 0.537. Safety is selected strictly below the threshold, not at it.

The rule is the piecewise R_c of Llama 2 (arXiv 2307.09288, section 3.2.3), whose authors chose 0.15 for a
precision of 0.89 and a recall of 0.55 on their safety test set. It does not make safety a hard constraint:
the selected number is still traded against everything else in the reward.
Left out: blends of the two rewards, and any learning of the threshold.
"""

import torch


def select_reward(safety, helpfulness, is_safety_prompt, threshold=0.15):
    """The safety probability if the prompt is a safety prompt or the answer looks unsafe, else helpfulness.

        R_c = R_s   if is_safety_prompt or R_s < threshold
              R_h   otherwise

    safety, helpfulness: float (B,), probabilities. is_safety_prompt: bool (B,), True = safety decides.
    Returns (B,), probabilities. Source: R_c in Llama 2, section 3.2.3.
    Raises TypeError for a flag that is not boolean, ValueError for different shapes, an empty batch, or a
    probability or threshold outside [0, 1] (a linear score, for example, or NaN).
    """
    if is_safety_prompt.dtype != torch.bool:
        raise TypeError(
            f"select_reward: is_safety_prompt must be boolean, got {is_safety_prompt.dtype}"
        )
    if not safety.shape == helpfulness.shape == is_safety_prompt.shape:
        shapes = [
            tuple(tensor.shape) for tensor in (safety, helpfulness, is_safety_prompt)
        ]
        raise ValueError(
            "select_reward: safety, helpfulness, is_safety_prompt must be (B,) alike, "
            f"got {shapes}"
        )
    if safety.numel() == 0:
        raise ValueError(
            "select_reward: safety needs at least 1 entry, got an empty batch"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"select_reward: threshold must lie in [0, 1], got {threshold}"
        )
    for name, p in (("safety", safety), ("helpfulness", helpfulness)):
        bad = p[~((p >= 0) & (p <= 1))]  # NaN included
        if len(bad):
            raise ValueError(
                f"select_reward: {name} must hold probabilities in [0, 1], got {bad[0].item()}"
            )

    return torch.where(is_safety_prompt | (safety < threshold), safety, helpfulness)
