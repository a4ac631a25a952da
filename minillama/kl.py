"""The KL divergence between the policy and its reference: exact, estimated, and as a reward.

Conventions. The direction is always KL(policy || reference), and the tokens are always sampled *from the
policy*, at the temperature that its logprobs are computed with; with tokens from anywhere else (greedy,
another temperature, the reference) every estimate here is biased. All is per token, in nats, not averaged.

    logratio = log pi(token) - log pi_ref(token)
    k1 = logratio                            unbiased; negative on some tokens
    k2 = logratio^2 / 2                      biased; never negative
    k3 = exp(-logratio) - 1 + logratio       unbiased if pi > 0 wherever pi_ref > 0; never negative

The estimators are John Schulman's ("Approximating KL Divergence", 2020). As a *loss* each has a gradient of
its own: that of k1 is zero in expectation. The KL as a per-token reward is from Ziegler et al. 2019 (arXiv
1909.08593, section 2); InstructGPT (2203.02155, equation 2) and Llama 2 (2307.09288, equation 4) subtract it
from the reward too. Left out: an adaptive beta, and the other direction, KL(reference || policy).
"""

import torch


def exact_kl(logits, ref_logits):
    """KL(policy || reference) of two next-token distributions, a sum over the vocabulary, in nats.

        sum_v pi(v) * (log pi(v) - log pi_ref(v)),   with 0 * log 0 = 0

    logits, ref_logits: (B, T, V). Returns (B, T), never negative but for rounding; inf where the reference
    excludes a token that the policy may draw. Entry t belongs to the logits at t, which predict token t + 1.
    Half-precision logits are computed in float32. Raises ValueError for different shapes.
    """
    if logits.shape != ref_logits.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(ref_logits.shape)}"
        raise ValueError(
            f"exact_kl: logits and ref_logits must be (B, T, V) alike, got {shapes}"
        )

    dtype = torch.promote_types(logits.dtype, torch.float32)
    logp = torch.log_softmax(logits, dim=-1, dtype=dtype)  # (B, T, V)
    ref_logp = torch.log_softmax(ref_logits, dim=-1, dtype=dtype)  # (B, T, V)
    p = logp.exp()
    logratio = (logp - ref_logp).masked_fill(
        p == 0, 0.0
    )  # before the product: 0 * inf is NaN
    return (p * logratio).sum(dim=-1)  # (B, T)


def kl_estimate(logprobs, ref_logprobs, kind="k1"):
    """Per-token estimate of KL(policy || reference) from tokens drawn from the policy, in nats.

    logprobs, ref_logprobs: (B, T), of the same sampled tokens. kind: "k1" = logratio, "k2" = logratio^2 / 2,
    "k3" = exp(-logratio) - 1 + logratio, with logratio = logprobs - ref_logprobs.
    Returns (B, T), unmasked: entries on padding mean nothing. Gradients flow through both arguments.
    Raises ValueError for different shapes or an unknown kind. Source: Schulman 2020.
    """
    if logprobs.shape != ref_logprobs.shape:
        shapes = f"{tuple(logprobs.shape)} and {tuple(ref_logprobs.shape)}"
        raise ValueError(
            f"kl_estimate: logprobs and ref_logprobs must be (B, T) alike, got {shapes}"
        )

    logratio = logprobs - ref_logprobs  # (B, T)
    if kind == "k1":
        return logratio
    if kind == "k2":
        return 0.5 * logratio.square()
    if kind == "k3":
        return torch.expm1(-logratio) + logratio
    raise ValueError(f'kl_estimate: kind must be "k1", "k2" or "k3", got {kind!r}')


def kl_penalised_rewards(scores, logprobs, ref_logprobs, response_mask, beta):
    """Per-token rewards of PPO: a KL penalty on every response token, the score on the last one.

        rewards[t] = -beta * (logprobs[t] - ref_logprobs[t])  (+ score on the row's last response token)

    scores: (B,), finite; whitened before, if at all (whitening the sum would rescale beta). logprobs,
    ref_logprobs: (B, T). response_mask: bool (B, T), True = response token. beta: >= 0, reward per nat.
    Returns (B, T), detached (a reward is data), 0 off the response; a row sums to score - beta * sum(k1).
    Raises TypeError for a mask that is not boolean, ValueError for other shapes, an empty batch, a row
    without response token, a non-finite score or a bad beta. Source: Ziegler et al. 2019, section 2.
    """
    if response_mask.dtype != torch.bool:
        raise TypeError(
            f"kl_penalised_rewards: response_mask must be boolean, got {response_mask.dtype}"
        )
    if (
        logprobs.ndim != 2
        or response_mask.shape != logprobs.shape
        or scores.shape != logprobs.shape[:1]
    ):
        shapes = [tuple(tensor.shape) for tensor in (scores, logprobs, response_mask)]
        raise ValueError(
            "kl_penalised_rewards: scores, logprobs, response_mask must be (B,), (B, T), "
            f"(B, T), got {shapes}"
        )
    counts = response_mask.sum(dim=1)  # (B,)
    if len(scores) == 0 or (counts == 0).any():
        raise ValueError(
            "kl_penalised_rewards: response_mask needs at least 1 True entry in every row of at "
            f"least 1, got {counts.tolist()} entries"
        )
    if not scores.isfinite().all():
        raise ValueError(
            f"kl_penalised_rewards: scores must be finite, got {scores.tolist()}"
        )
    if not 0 <= beta < float("inf"):
        raise ValueError(
            f"kl_penalised_rewards: beta must be finite and >= 0, got {beta}"
        )

    penalty = -beta * kl_estimate(logprobs, ref_logprobs, "k1")  # (B, T)
    penalty = torch.where(response_mask, penalty, 0.0)
    positions = torch.arange(logprobs.shape[1], device=logprobs.device)  # (T,)
    last = torch.where(response_mask, positions, -1).amax(dim=1, keepdim=True)  # (B, 1)
    return torch.where(positions == last, penalty + scores[:, None], penalty).detach()
