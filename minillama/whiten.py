"""Logit, whitening and the masked mean: what happens to a score before PPO sees it.

Conventions. `whiten` divides by the *unbiased* standard deviation (n - 1), over all entries together;
`shift_mean=True` removes the mean, `False` adds it back. `masked_mean` is a mean over entries (tokens),
never a mean of row means. In every mask, True = counts.

Llama 2 (arXiv 2307.09288, section 3.2.3) maps the output of its reward model, a probability, back to the
real line and whitens it, whiten(logit(R_c)), before the KL penalty is subtracted, so that beta means the
same for any reward model. Left out: running statistics over several batches, statistics shared between
processes.
"""

import torch


def masked_mean(values, mask):
    """Mean of `values` over all entries where `mask` is True, as a scalar.

    values: float, any shape. mask: bool, the same shape, True = counts. Entries that do not count may be
    anything, NaN included; they reach neither the mean nor a gradient.
    Raises TypeError for a mask that is not boolean, ValueError for another shape or no True entry.
    """
    if mask.dtype != torch.bool:
        raise TypeError(
            f"masked_mean: mask must be boolean (True = counts), got {mask.dtype}"
        )
    if mask.shape != values.shape:
        raise ValueError(
            f"masked_mean: mask must be {tuple(values.shape)}, as values, "
            f"got {tuple(mask.shape)}"
        )
    if not mask.any():
        raise ValueError("masked_mean: mask needs at least 1 True entry, got none")

    return values[mask].mean()


def logit(p, eps=1e-6):
    """Inverse of the sigmoid, log(p / (1 - p)): the score, in nats, that a probability came from.

    p: float, any shape, in [0, 1], clamped to [eps, 1 - eps]: 0 and 1 give -13.8 and 13.8 by default.
    Returns p's shape and dtype. Computed in float64, as 1 - eps is 1 in half precision: inf.
    Raises TypeError for integers, ValueError for an entry outside [0, 1] (NaN too) or eps outside (0, 0.5).
    """
    if not p.is_floating_point():
        raise TypeError(f"logit: p must be floating point, got {p.dtype}")
    if not 0 < eps < 0.5:
        raise ValueError(f"logit: eps must lie in (0, 0.5), got {eps}")
    inside = (p >= 0) & (p <= 1)  # False for NaN
    if not inside.all():
        raise ValueError(
            f"logit: p must hold probabilities in [0, 1], got {p[~inside][0].item()}"
        )

    clamped = p.double().clamp(eps, 1 - eps)
    return (clamped.log() - (1 - clamped).log()).to(p.dtype)


def whiten(values, mask=None, shift_mean=True):
    """Scale `values` to unit variance over all unmasked entries together, and centre them if `shift_mean`.

        (values - mean) * rsqrt(var + 1e-8),   plus mean if not shift_mean

    values: float, any shape. mask: bool, the same shape, True = counts, None = all count. var is unbiased
    (n - 1). Returns values' shape and dtype, computed in float64, 0 where masked; equal values give zeros (their
    mean if not shift_mean).
    Raises TypeError for integers or a mask that is not boolean, ValueError for another shape, fewer than 2
    unmasked entries or a non-finite one. Source: WHITEN in Llama 2, section 3.2.3.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    if not values.is_floating_point():
        raise TypeError(f"whiten: values must be floating point, got {values.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(
            f"whiten: mask must be boolean (True = counts), got {mask.dtype}"
        )
    if mask.shape != values.shape:
        raise ValueError(
            f"whiten: mask must be {tuple(values.shape)}, as values, got {tuple(mask.shape)}"
        )
    kept = values[mask].double()  # (N,) the entries that count
    if len(kept) < 2:
        raise ValueError(
            f"whiten: values needs at least 2 unmasked entries, got {len(kept)}"
        )
    if not kept.isfinite().all():
        raise ValueError(
            f"whiten: values must be finite, got {kept[~kept.isfinite()][0].item()}"
        )

    mean, var = kept.mean(), kept.var(correction=1)
    scaled = (kept - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        scaled = scaled + mean
    whitened = torch.zeros_like(values)
    whitened[mask] = scaled.to(values.dtype)  # (N,) back to values' shape
    return whitened
