"""Language modelling: the next-token loss, the optimiser with its guard, the loop of pretraining and SFT.

The loss of a token is -log p(token | what came before), averaged over all counted tokens of the batch (a
mean over tokens, not over texts). Pretraining counts every token but the first; supervised fine-tuning (SFT)
counts the response alone (Ouyang et al. 2022, arXiv 2203.02155, section 3.5; Llama 2, arXiv 2307.09288,
section 3.1). The optimiser is AdamW with linear warm-up, cosine decay and gradient clipping, as in LLaMA
(arXiv 2302.13971, section 2.3), without its weight decay, which a single epoch does not need. Left out: mixed
precision, gradient accumulation, resuming in mid-run.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm import tqdm

from minillama.data import endless_batches, pad_examples
from minillama.fast import lm_loss_of
from minillama.optim import Stepper, warmup_cosine


def token_logprobs(logits, ids):
    """log p(ids[:, t] | ids[:, :t]) in nats, (B, T) aligned with ``ids``; entry 0 has no past and is 0.

    ``logits`` (B, T, V): position t predicts the token at t + 1, hence the shift by one.
    """
    logprobs = -F.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none"
    )  # (B, T - 1)
    return F.pad(logprobs, (1, 0))  # (B, T)


def response_logprobs(model, ids, mask, response_mask):
    """log p(token | past) of a `Llama` on response tokens, 0 elsewhere: (B, T), nats, with gradient.

    ids: int64 (B, T). mask, response_mask: bool (B, T), True = real, True = response token.
    """
    logprobs = token_logprobs(model(ids, mask), ids)  # (B, T)
    return logprobs.masked_fill(~response_mask, 0.0)


def lm_loss(logits, ids, loss_mask):
    """Mean of -log p(token | past) over the tokens where ``loss_mask`` (B, T) is True; nats, a scalar.

    ``logits`` (B, T, V), ``ids`` (B, T). The first column has no past and must not be counted.
    """
    _check_loss_mask(ids, loss_mask)
    return -token_logprobs(logits, ids)[loss_mask].mean()


def _check_loss_mask(ids, loss_mask):
    if loss_mask.dtype != torch.bool:
        raise TypeError(f"lm_loss: loss_mask must be boolean, got {loss_mask.dtype}")
    if loss_mask.shape != ids.shape:
        shapes = f"{tuple(ids.shape)}, got {tuple(loss_mask.shape)}"
        raise ValueError(f"lm_loss: loss_mask must have the shape of ids {shapes}")
    if loss_mask[:, 0].any() or not loss_mask.any():
        raise ValueError(
            "lm_loss: loss_mask must count at least one token, and none in column 0, which has no past"
        )


@dataclass(frozen=True)
class LMSettings:
    """One run of language modelling; the defaults pretrain the course's base model."""

    steps: int = 750
    batch_size: int = 32  # texts
    lr: float = 3e-3  # peak
    warmup_steps: int = 30


def train_lm(model, examples, settings, generator, desc=None):
    """Train on a list of `Example` in place; returns the loss of every step, in nats per counted token.

    ``generator`` (CPU) orders the batches. ``desc`` names the progress bar; None shows none.
    """
    device = next(model.parameters()).device
    batches = endless_batches(
        [len(example.ids) for example in examples], settings.batch_size, generator
    )
    stepper = Stepper(
        model,
        settings.lr,
        lambda step: warmup_cosine(step, settings.steps, settings.warmup_steps),
    )
    losses = []
    for _ in tqdm(range(settings.steps), desc=desc, disable=desc is None):
        batch = next(batches)
        ids, mask, loss_mask = (
            x.to(device) for x in pad_examples([examples[i] for i in batch])
        )
        loss = lm_loss_of(model, ids, mask, loss_mask)
        stepper.step(loss, batch)
        losses.append(loss.item())
    return losses


@torch.no_grad()
def evaluate_lm(model, examples, batch_size=128):
    """Mean loss over all counted tokens of the examples, in nats per token, and the number of those tokens."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), batch_size):
        ids, mask, loss_mask = (
            x.to(device) for x in pad_examples(ordered[start : start + batch_size])
        )
        tokens = int(loss_mask.sum())
        total, count = (
            total + lm_loss_of(model, ids, mask, loss_mask).item() * tokens,
            count + tokens,
        )
    return total / count, count
