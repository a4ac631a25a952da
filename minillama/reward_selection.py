"""One reward from two: safety where safety is at stake, helpfulness elsewhere.

Conventions. Both inputs are *probabilities*, the sigmoid of a reward model's score;
0.15 read on the linear scale would be a probability of 0.537. Safety is selected
strictly below the threshold, not at it.

The rule is the piecewise R_c of Llama 2 (arXiv 2307.09288, section 3.2.3), whose
authors chose 0.15 for a precision of 0.89 and a recall of 0.55 on their safety test
set. It does not make safety a hard constraint: the selected number is still traded
against everything else in the reward. Left out: blends of the two rewards, and any
learning of the threshold.
"""

import torch

from minillama.contracts import expects


@expects(
    "safety, helpfulness: float (B,) in [0, 1]",
    "is_safety_prompt: bool (B,)",
    "threshold: number in [0, 1]",
    "-> float (B,)",
)
def select_reward(safety, helpfulness, is_safety_prompt, threshold=0.15):
    """Return the safety probability where safety is at stake, else helpfulness.

        R_c = R_s   if is_safety_prompt or R_s < threshold
              R_h   otherwise

    Source: R_c in Llama 2, section 3.2.3.
    """
    return torch.where(is_safety_prompt | (safety < threshold), safety, helpfulness)
