"""Which token earned it: a value for every state, and generalised advantage estimation.

Conventions. Entry t of rewards, values, advantages and returns is about token t: values[:, t] is the value of
the state *before* token t, computed at position t - 1. The state after the last response token is worth 0,
whether the answer ended with EOS or was cut off. Nothing is averaged or whitened here, and returns are taken
from the advantages as they are (whitened ones would teach the value model noise).

Schulman et al. 2016 (arXiv 1506.02438, equation 16) have the estimator; starting the value model's body from the
reward model is InstructGPT's (2203.02155, appendix C.4).
Left out: bootstrapping from a value where a length limit cut the answer off.
"""

import torch
import torch.nn.functional as F


def gae(rewards, values, response_mask, gamma=1.0, lam=0.95):
    """Advantages by generalised advantage estimation, and the returns that the value model should predict.

        delta[t]      = rewards[t] + gamma * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * lam * advantages[t + 1]
        returns       = advantages + values

    rewards, values: (B, T). response_mask: bool (B, T), True = response token, contiguous in each row, with
    padding on either side; what rewards and values hold elsewhere is not used. gamma, lam: in [0, 1].
    Returns advantages and returns, (B, T) each, detached, 0 where masked. Source: Schulman 2016, equation 16.
    Raises TypeError for a mask that is not boolean, ValueError for other shapes, an empty batch, a row whose
    response tokens are missing or not contiguous, gamma or lam outside [0, 1], a non-finite reward or value.
    """
    if response_mask.dtype != torch.bool:
        raise TypeError(
            f"gae: response_mask must be boolean (True = response), got {response_mask.dtype}"
        )
    if (
        rewards.ndim != 2
        or len(rewards) == 0
        or not rewards.shape == values.shape == response_mask.shape
    ):
        shapes = [tuple(tensor.shape) for tensor in (rewards, values, response_mask)]
        raise ValueError(
            f"gae: rewards, values, response_mask must be (B, T) alike, B >= 1, got {shapes}"
        )
    starts = (response_mask & ~F.pad(response_mask, (1, 0))[:, :-1]).sum(
        dim=1
    )  # (B,) runs of True
    if (starts != 1).any():
        raise ValueError(
            "gae: response_mask must have one contiguous run of True in every row, got "
            f"{starts.tolist()} runs"
        )
    if not 0 <= gamma <= 1 or not 0 <= lam <= 1:
        raise ValueError(
            f"gae: gamma and lam must lie in [0, 1], got {gamma} and {lam}"
        )
    if not (rewards[response_mask].isfinite() & values[response_mask].isfinite()).all():
        raise ValueError(
            "gae: rewards and values must be finite on response tokens, got inf or nan"
        )

    rewards = torch.where(response_mask, rewards.detach(), 0.0)
    values = torch.where(
        response_mask, values.detach(), 0.0
    )  # so the value after the last token is 0
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(
        values[:, 0]
    )  # (B,) beyond the last column
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (B,)
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_value, next_advantage = values[:, t], advantages[:, t]
    advantages = torch.where(
        response_mask, advantages, 0.0
    )  # prompts before the response have some
    return advantages, advantages + values
