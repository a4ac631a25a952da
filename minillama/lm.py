"""Language modelling: the next-token loss, log-probabilities, the training loop.

The loss of a token is -log p(token | what came before), averaged over all counted
tokens of the batch (a mean over tokens, not over texts). Pretraining counts every token
but the first; supervised fine-tuning (SFT) counts the response alone (Llama 2, arXiv
2307.09288, section 3.1). Optimiser and schedule are in optim.py. Left out: mixed
precision, gradient accumulation, resuming in mid-run.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minillama.contracts import expects
from minillama.data import endless_batches, pad_examples, require_ids
from minillama.fast import lm_loss_of, require_past
from minillama.model import require_lm_head
from minillama.optim import Stepper, warmup_cosine


@expects("logits: float (B, T, V)", "ids: int64 (B, T) below V")
def token_logprobs(logits, ids):
    """Return log p(ids[:, t] | ids[:, :t]) in nats, (B, T) aligned with `ids`.

    Logits at position t predict the token at t + 1, hence the shift by one. Entry 0 has
    no past and is 0.
    """
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), ids[:, 1:], reduction="none"
    )  # (B, T - 1)
    return F.pad(-losses, (1, 0))  # (B, T)


@expects("model: Llama", "ids: int64 (B, T)", "mask, response_mask: bool (B, T)")
def response_logprobs(model, ids, mask, response_mask):
    """Return log p(token | past) on response tokens, 0 elsewhere: (B, T), nats.

    Gradients flow into the model.
    """
    require_past("response_logprobs: response_mask", response_mask, mask)
    logprobs = token_logprobs(model(ids, mask), ids)  # (B, T)
    return logprobs.masked_fill(~response_mask, 0.0)


@expects(
    "logits: float (B, T, V)",
    "ids: int64 (B, T) below V",
    "loss_mask: bool (B, T), True somewhere",
)
def lm_loss(logits, ids, loss_mask):
    """Return the mean of -log p(token | past) over the tokens that count, in nats.

    The loss_mask is True where a token counts; the first column has no past.
    """
    if loss_mask[:, 0].any():
        raise ValueError(
            "lm_loss: loss_mask must be False in column 0, which has no past, got True"
        )
    return -token_logprobs(logits, ids)[loss_mask].mean()


@expects(
    "steps, batch_size: int >= 1",
    "lr: number >= 0",
    "warmup_steps: int >= 0",
)
@dataclass(frozen=True)
class LMSettings:
    """One run of language modelling; the defaults pretrain the course's base model."""

    steps: int = 1500  # The optimiser descends so often.
    batch_size: int = 24  # Each step sees so many texts.
    lr: float = 2e-3  # The learning rate peaks here, after the warm-up.
    warmup_steps: int = 30  # The learning rate climbs for so many steps.


def require_readable(caller, model, examples):
    """Refuse, in the name of a caller, what would stop it in the middle."""
    require_lm_head(model, caller)
    require_ids(caller, examples, model.config.vocab_size)


@expects(
    "model: Llama",
    "examples: list of Example",
    "settings: LMSettings",
    "generator: Generator",
    "desc: text or None",
)
def train_lm(model, examples, settings, generator, desc=None):
    """Train on examples in place; return each step's loss, in nats per counted token.

    `generator` (CPU) orders the batches. `desc` names the progress bar; None shows
    none. The model trains in train mode and is left in eval mode.
    """
    if len(examples) < settings.batch_size:
        raise ValueError(
            f"train_lm: examples must be at least settings.batch_size = "
            f"{settings.batch_size}, got {len(examples)}"
        )
    require_readable("train_lm", model, examples)
    device = next(model.parameters()).device
    batches = endless_batches(len(examples), settings.batch_size, generator)
    stepper = Stepper(
        model,
        settings.lr,
        lambda step: warmup_cosine(step, settings.steps, settings.warmup_steps),
    )
    model.train()
    losses = []
    for _ in tqdm(range(settings.steps), desc=desc, disable=desc is None):
        batch = next(batches)
        padded = pad_examples([examples[i] for i in batch])
        ids, mask, loss_mask = (x.to(device) for x in padded)  # (B, T) each
        loss = lm_loss_of(model, ids, mask, loss_mask)
        stepper.step(loss, batch)
        losses.append(loss.item())
    model.eval()
    return losses


@expects("model: Llama", "examples: list of Example (N,)", "batch_size: int >= 1")
@torch.no_grad()
def evaluate_lm(model, examples, batch_size=128):
    """Return the mean loss over all counted tokens, in nats, and how many they are."""
    require_readable("evaluate_lm", model, examples)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), batch_size):
        padded = pad_examples(ordered[start : start + batch_size])
        ids, mask, loss_mask = (x.to(device) for x in padded)  # (B, T) each
        tokens = int(loss_mask.sum())
        total += lm_loss_of(model, ids, mask, loss_mask).item() * tokens
        count += tokens
    return total / count, count
