"""Which token earned it: a value for every state, and generalised advantage estimation.

Conventions. Entry t of rewards, values, advantages and returns is about token t:
values[:, t] is the value of the state *before* token t, computed at position t - 1. The
state after the last response token is worth 0, whether the answer ended with EOS or was
cut off. Nothing is averaged or whitened here, and returns are taken from the advantages
as they are (whitened ones would teach the value model noise).

Schulman et al. 2016 (arXiv 1506.02438, equation 16) have the estimator; starting the
value model's body from the reward model is InstructGPT's (2203.02155, appendix C.4).
Left out: bootstrapping from a value where a length limit cut the answer off.
"""

import torch

from minillama.contracts import expects


@expects(
    "rewards, values: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) one run of True in every row",
    "gamma, lam: number in [0, 1]",
    "-> float (B, T)",
    "-> float (B, T)",
)
def gae(rewards, values, response_mask, gamma=1.0, lam=0.95):
    """Return advantages and the returns that the value model should predict.

        delta[t]      = rewards[t] + gamma * values[t + 1] - values[t]
        advantages[t] = delta[t] + gamma * lam * advantages[t + 1]
        returns       = advantages + values

    response_mask: True = response token. Both results are detached and 0 off the
    response; what rewards and values hold there is not used. Source: Schulman 2016,
    equation 16.
    """
    rewards = torch.where(response_mask, rewards.detach(), 0.0)
    # 0 off the response, so the value after the last token is 0
    values = torch.where(response_mask, values.detach(), 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (B,)
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_value, next_advantage = values[:, t], advantages[:, t]
    # the recursion ran on through the prompt
    advantages = torch.where(response_mask, advantages, 0.0)
    return advantages, advantages + values
