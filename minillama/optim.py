"""The optimiser: AdamW with warm-up, cosine decay and clipping, and a guard.

As in LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.3), without its weight
decay, which a single epoch does not need. Left out: mixed precision, gradient
accumulation, optimiser states on disk.
"""

import math

import torch
from torch.nn.utils import clip_grad_norm_

from minillama.contracts import expects


@expects("step, warmup_steps: int >= 0", "total_steps: int >= 1")
def warmup_cosine(step, total_steps, warmup_steps):
    """Return the share of the peak learning rate at a step, counted from 0.

    It goes up in a line and down along a cosine to 0. LLaMA ends at a tenth of the
    peak; runs as short as ours end lower if the last steps are tiny.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class TrainingDiverged(FloatingPointError):
    """A loss, a gradient or a weight that is inf or NaN.

    `model` holds its last good weights again.
    """

    def __init__(self, message, model):
        super().__init__(message)
        self.model = model


@torch.no_grad()
def _copy(sources, targets):
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _all_finite(tensors):
    """True without inf and NaN. A sum is quick; that of finite numbers may overflow."""
    total = sum(tensor.detach().sum() for tensor in tensors)
    return math.isfinite(total) or all(bool(x.isfinite().all()) for x in tensors)


@expects(
    "model: Module",
    "lr: number >= 0",
    "schedule: function",
    "betas: list (2,)",
    "max_norm: number > 0",
)
class Stepper:
    """AdamW on one model with a schedule, gradient clipping and a guard.

    `schedule(step)` is the share of `lr` to use at a step, counted from 0. The weights
    in `last_good` are those that last gave a finite loss and a finite gradient.
    """

    def __init__(
        self,
        model,
        lr,
        schedule=lambda step: 1.0,
        betas=(0.9, 0.95),
        max_norm=1.0,
    ):
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, weight_decay=0.0, fused=True
        )
        self.lr, self.schedule, self.max_norm, self.steps = lr, schedule, max_norm, 0
        self.last_good = [p.detach().clone() for p in self.parameters]

    @expects("loss: float ()", "batch_ids: list")
    def step(self, loss, batch_ids):
        """Descend once and return the gradient's norm before clipping.

        Raises `TrainingDiverged` if the loss or the gradient is not finite, or if the
        descent itself breaks a weight. It names the step and `batch_ids`, the indices
        of the batch's examples; the last good weights are put back before.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.require_finite("loss", loss, batch_ids)
        loss.backward()
        norm = clip_grad_norm_(self.parameters, self.max_norm)
        self.require_finite("gradient norm", norm, batch_ids)
        _copy(self.parameters, self.last_good)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule(self.steps)
        self.optimizer.step()
        if not _all_finite(self.parameters):
            raise self.diverged(
                f"weights are not finite, batch of examples {batch_ids}"
            )
        self.steps += 1
        return norm

    @expects("name: text", "tensor: float", "batch_ids: list")
    def require_finite(self, name, tensor, batch_ids):
        """Raise `TrainingDiverged` if the tensor holds inf or NaN."""
        if not _all_finite([tensor]):
            raise self.diverged(f"{name} is not finite, batch of examples {batch_ids}")

    @expects("what: text")
    def diverged(self, what):
        """Put the last good weights back; return the `TrainingDiverged` to raise."""
        _copy(self.last_good, self.parameters)
        return TrainingDiverged(
            f"step {self.steps}: {what}; the last good weights are restored",
            self.model,
        )
