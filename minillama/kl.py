"""The KL divergence between policy and reference: exact, estimated, and as a reward.

Conventions. The direction is always KL(policy || reference). The tokens are always
sampled *from the policy*, at the temperature at which its logprobs are taken; with
tokens from anywhere else (greedy, another temperature, the reference) every estimate
here is biased. Every KL is per token, in nats, not averaged.

    logratio = log pi(token) - log pi_ref(token)
    k1 = logratio                          unbiased; negative on some tokens
    k2 = logratio^2 / 2                    biased; never negative
    k3 = exp(-logratio) - 1 + logratio     unbiased if pi > 0 wherever pi_ref > 0;
                                           never negative

The estimators are John Schulman's ("Approximating KL Divergence", 2020). As a *loss*
each has another expected gradient: that of k1 is zero, that of k2 is the gradient of
KL(policy || reference), that of k3 the one of KL(reference || policy). The KL as a
per-token reward is from Ziegler et al. 2019 (arXiv 1909.08593, section 2); InstructGPT
(2203.02155, equation 2) and Llama 2 (2307.09288, equation 4) subtract it from the
reward too. Left out: an adaptive beta, and the other direction, KL(reference ||
policy).
"""

import torch

from minillama.contracts import expects


@expects(
    "logits, ref_logits: float (..., V) in [-inf, inf)",
    "-> float (...) no NaN",
)
def exact_kl(logits, ref_logits):
    """Compute KL(policy || reference) of two next-token distributions.

        sum_v pi(v) * (log pi(v) - log pi_ref(v)),   with 0 * log 0 = 0

    In nats, never negative but for rounding; inf where the reference excludes a token
    that the policy may draw. Entry t belongs to the logits at t, which predict token
    t + 1. Half-precision logits are computed in float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logp = torch.log_softmax(logits, dim=-1, dtype=dtype)  # (..., V)
    ref_logp = torch.log_softmax(ref_logits, dim=-1, dtype=dtype)  # (..., V)
    p = logp.exp()
    # filled before the product, because 0 * inf is NaN
    logratio = (logp - ref_logp).masked_fill(p == 0, 0.0)
    return (p * logratio).sum(dim=-1)  # (...)


@expects(
    "logprobs, ref_logprobs: finite float (B, T)",
    'kind: "k1" or "k2" or "k3"',
    "-> float (B, T)",
)
def kl_estimate(logprobs, ref_logprobs, kind="k1"):
    """Estimate KL(policy || reference) per token, from tokens drawn from the policy.

        k1 = logratio,   k2 = logratio^2 / 2,   k3 = exp(-logratio) - 1 + logratio

    logratio = logprobs - ref_logprobs, of the same sampled tokens. In nats, unmasked:
    entries on padding mean nothing. Gradients flow through both arguments.
    Source: Schulman 2020.
    """
    logratio = logprobs - ref_logprobs  # (B, T)
    if kind == "k1":
        return logratio
    if kind == "k2":
        return 0.5 * logratio.square()
    return torch.expm1(-logratio) + logratio


@expects(
    "scores: finite float (B,)",
    "logprobs, ref_logprobs: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    "beta: finite number >= 0",
    "-> float (B, T)",
)
def kl_penalised_rewards(scores, logprobs, ref_logprobs, response_mask, beta):
    """Compute PPO's rewards: a KL penalty per response token, the score on the last.

        rewards[t] = -beta * (logprobs[t] - ref_logprobs[t])
                     + score, on the row's last response token

    beta: reward per nat. Scores are whitened before, if at all (whitening the sum would
    rescale beta). response_mask: True = response token. Detached (a reward is data), 0
    off the response; a row sums to score - beta * sum(k1).
    Source: Ziegler et al. 2019, section 2.
    """
    penalty = -beta * (logprobs - ref_logprobs)  # (B, T), k1
    penalty = torch.where(response_mask, penalty, 0.0)
    positions = torch.arange(logprobs.shape[1], device=logprobs.device)  # (T,)
    last = torch.where(response_mask, positions, -1).amax(dim=1, keepdim=True)  # (B, 1)
    return torch.where(positions == last, penalty + scores[:, None], penalty).detach()
