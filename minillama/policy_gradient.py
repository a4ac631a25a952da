"""The policy gradient: how to climb a score that has no derivative.

The idea. A score comes after a draw, and a draw has no slope. But the *chance* of what
was drawn has one, and grad p = p * grad log p turns a sum over all answers into a mean
over drawn ones:

    grad E[score] = sum_y score(y) grad p(y) = E[ score(y) grad log p(y) ]

Conventions. Answers are drawn *from the policy itself*, at temperature 1; with answers
from anywhere else these estimates are biased. Entry t of every (B, T) tensor is about
token t, and response_mask is True where a token of the response stands. A loss is
minimised, so it has a minus; it is a *sum over tokens and a mean over answers*, whose
gradient is that of E[score] (PPO takes a mean over all tokens of the batch instead).
There is no discount.

The second part measures the noise of a gradient exactly, for a policy that is a table:
a row of logits for each state of the enumerable world of `exact`. A state is the prompt
and what is written so far.

The estimate is REINFORCE (Williams 1992, "Simple statistical gradient-following
algorithms"), with its baseline; crediting a token with what follows it alone is in
Sutton et al. 2000 ("Policy gradient methods for reinforcement learning with function
approximation"); the leave-one-out baseline is Kool et al. 2019 ("Buy 4 REINFORCE
samples, get a baseline for free!"). Left out: learned values (`gae`), the reuse of
answers (`ppo`), natural gradients, draws made smooth (Gumbel-softmax).
"""

import torch
import torch.nn.functional as F

from minillama.contracts import expects


@expects(
    "logprobs, advantages: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    "-> float ()",
)
def reinforce_loss(logprobs, advantages, response_mask):
    """Return the loss whose gradient estimates minus the gradient of E[score].

        -mean over answers( sum over response tokens( advantages * logprobs ) )

    logprobs: of the drawn tokens, with gradient. advantages: how much to praise each of
    them, in units of reward; constants, whatever they were computed from. The value of
    the loss says nothing about the policy. Source: Williams 1992, section 4.
    """
    logp, A = logprobs[response_mask], advantages.detach()[response_mask]  # (N,)
    return -(A * logp).sum() / len(logprobs)


@expects("scores: finite float (..., K)", "-> float (..., K)")
def leave_one_out(scores):
    """Return for each of K answers the mean score of the other K - 1.

    The last dimension holds answers to one prompt, drawn independently. As a baseline
    it is unbiased, because it does not depend on the answer that it is for. Refuses
    K = 1, where there is no other. Source: Kool et al. 2019.
    """
    K = scores.shape[-1]
    if K < 2:
        raise ValueError(f"leave_one_out: scores must have K >= 2 answers, got {K}")
    return (scores.sum(-1, keepdim=True) - scores) / (K - 1)


@expects(
    "rewards: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    "-> float (B, T)",
)
def rewards_to_go(rewards, response_mask):
    """Return for each response token the sum of its own reward and all later ones.

        to_go[t] = rewards[t] + rewards[t + 1] + ... to the end of the response

    Detached, 0 off the response; what rewards hold there is not used. Source: Sutton et
    al. 2000, theorem 1, for one answer instead of the expectation.
    """
    counted = torch.where(response_mask, rewards.detach(), 0.0)  # (B, T)
    to_go = counted.flip(1).cumsum(1).flip(1)  # a sum from the right
    return torch.where(response_mask, to_go, 0.0)


# --------------------------------------------------------------------------------------
# A policy that is a table: every gradient, and how much they scatter


@expects("responses: Responses", "-> int64 (N, T)")
def token_states(responses):
    """Return the number of the state in which each response token is chosen.

    Two tokens have the same number where all tokens before them are the same. States
    are counted from 0, prompt first, then by length; entries off the response are 0.
    """
    ids, mask = responses.ids, responses.response_mask
    states, known = torch.zeros_like(ids), 0
    for t in range(ids.shape[1]):
        here = mask[:, t]  # (N,): the responses that have a token t
        if here.any():
            which = ids[here, :t].unique(dim=0, return_inverse=True)[1]
            states[here, t] = known + which
            known += int(which.max()) + 1
    return states


@expects(
    "table: finite float (S, V)",
    "states: int64 (N, T) below S",
    "responses: Responses",
    "-> float (N, T)",
)
def table_logprobs(table, states, responses):
    """Return log p(token | state) of every response token, 0 elsewhere.

    table holds a row of V logits for each of S states. The gradient flows into it. As
    `exact.sequence_token_logprobs` does for a Llama.
    """
    logprobs = table.log_softmax(-1)[states, responses.ids]  # (N, T)
    return logprobs.masked_fill(~responses.response_mask, 0.0)


@expects(
    "table: finite float (S, V)",
    "states: int64 (N, T) below S",
    "responses: Responses",
    "advantages: float (N, T)",
    "-> float (N, P)",
)
def answer_gradients(table, states, responses, advantages):
    """Return the gradient that each answer alone would give, one a row, P = S * V.

        sum over response tokens( advantages * (onehot(token) - p(. | state)) ),

    each term in the row of logits of its state. The mean over drawn answers is the
    gradient of minus `reinforce_loss`; the sum of chance times row is its expectation.
    """
    onehot = F.one_hot(responses.ids, table.shape[1]).to(table.dtype)  # (N, T, V)
    praise = torch.where(responses.response_mask, advantages, 0.0)[..., None]
    terms = praise * (onehot - table.softmax(-1)[states])  # (N, T, V)
    gradients = table.new_zeros(len(states), *table.shape)  # (N, S, V)
    # no answer meets a state twice; off the response 0 is added to state 0
    gradients.scatter_add_(1, states[..., None].expand_as(terms), terms)
    return gradients.flatten(1)


@expects(
    "gradients: finite float (N, P)", "chances: float (N,) in [0, 1]", "-> float ()"
)
def gradient_variance(gradients, chances):
    """Return how much the gradient of one drawn answer scatters about its mean.

        E[ |g|^2 ] - | E[g] |^2,   with E[x] = sum of chances * x

    That is the trace of the covariance, the variances of all P entries added up. The
    mean of n independent answers has one n-th of it.
    """
    mean = chances @ gradients  # (P,)
    return chances @ gradients.square().sum(1) - mean.square().sum()
