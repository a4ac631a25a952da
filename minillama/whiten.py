"""Logit, whitening and the masked mean: what happens to a score before PPO sees it.

Conventions. `whiten` divides by the *unbiased* standard deviation (n - 1), over all
entries together; `shift_mean=True` removes the mean, `False` adds it back.
`masked_mean` is a mean over entries (tokens), never a mean of row means. In every mask,
True = counts.

Llama 2 (arXiv 2307.09288, section 3.2.3) maps the output of its reward model, a
probability, back to the real line and whitens it, whiten(logit(R_c)), before the KL
penalty is subtracted, so that beta means the same for any reward model. Left out:
running statistics over several batches, statistics shared between processes.
"""

import torch

from minillama.contracts import expects


@expects(
    "values: float (...) finite where mask",
    "mask: bool (...) True somewhere",
    "-> float ()",
)
def masked_mean(values, mask):
    """Return the mean of `values` over all entries where `mask` is True, as a scalar.

    Entries that do not count may be anything, NaN included; they reach neither the mean
    nor a gradient.
    """
    return values[mask].mean()


@expects(
    "p: float (...) in [0, 1]",
    "eps: number in (0, 0.5)",
    "-> float (...)",
)
def logit(p, eps=1e-6):
    """Invert the sigmoid: the score, in nats, that a probability came from.

        log(p / (1 - p)),   with p clamped to [eps, 1 - eps]

    0 and 1 give -13.8 and 13.8 by default. Returns p's dtype; computed in float64, as
    1 - eps is 1 in half precision, and its logit inf.
    """
    clamped = p.double().clamp(eps, 1 - eps)
    return (clamped.log() - (1 - clamped).log()).to(p.dtype)


@expects(
    "values: float (...) finite where mask, at least 2 where mask",
    "mask: None or bool (...)",
    "shift_mean: flag",
    "-> float (...)",
)
def whiten(values, mask=None, shift_mean=True):
    """Scale all unmasked entries together to unit variance, centred if `shift_mean`.

        (values - mean) * rsqrt(var + 1e-8),   plus mean if not shift_mean

    var is unbiased (n - 1). mask: True = counts, None = all count. Returns values'
    dtype, computed in float64, and 0 where masked; equal values give zeros (their mean
    if not shift_mean). Source: WHITEN in Llama 2, section 3.2.3.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    kept = values[mask].double()  # (N,) the entries that count
    mean, var = kept.mean(), kept.var(correction=1)
    scaled = (kept - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        scaled = scaled + mean
    whitened = torch.zeros_like(values)
    whitened[mask] = scaled.to(values.dtype)  # (N,) back to values' shape
    return whitened
