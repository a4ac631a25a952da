"""The optimiser: AdamW with warm-up, cosine decay and clipping, and a guard against divergence.

As in LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.3), without its weight decay, which a single epoch
does not need. Left out: mixed precision, gradient accumulation, optimiser states on disk.
"""

import math

import torch
from torch.nn.utils import clip_grad_norm_


def warmup_cosine(step, total_steps, warmup_steps):
    """Share of the peak learning rate at ``step`` (from 0): up in a line, down along a cosine to 0.

    LLaMA ends at a tenth of the peak; runs as short as ours end lower if the last steps are tiny.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class TrainingDiverged(FloatingPointError):
    """A loss or gradient turned inf or NaN; ``model`` holds its last good weights again."""

    def __init__(self, message, model):
        super().__init__(message)
        self.model = model


class Stepper:
    """AdamW on one model, with a learning-rate schedule, gradient clipping and a guard against divergence."""

    def __init__(
        self,
        model,
        lr,
        schedule=lambda step: 1.0,
        weight_decay=0.0,
        betas=(0.9, 0.95),
        max_norm=1.0,
    ):
        """``schedule(step)`` is the share of ``lr`` to use at a step counted from 0."""
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.lr, self.schedule, self.max_norm, self.steps = lr, schedule, max_norm, 0
        self.last_good = [p.detach().clone() for p in self.parameters]

    def step(self, loss, batch_ids):
        """Descend once and return the gradient's norm before clipping.

        A non-finite loss or gradient raises `TrainingDiverged` with the step and ``batch_ids``, the indices of
        the batch's examples, after the weights that last gave a finite loss and gradient are put back.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.require_finite("loss", loss, batch_ids)
        loss.backward()
        norm = clip_grad_norm_(self.parameters, self.max_norm)
        self.require_finite("gradient norm", norm, batch_ids)
        self._copy(self.parameters, self.last_good)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule(self.steps)
        self.optimizer.step()
        self.steps += 1
        return norm

    def require_finite(self, name, tensor, batch_ids):
        """Raise `TrainingDiverged`, with the last good weights put back, if the tensor holds inf or NaN."""
        if not torch.isfinite(tensor).all():
            self._copy(self.last_good, self.parameters)
            raise TrainingDiverged(
                f"step {self.steps}: {name} is not finite, batch of examples {list(batch_ids)}; "
                "the last good weights are restored",
                self.model,
            )

    @staticmethod
    @torch.no_grad()
    def _copy(sources, targets):
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
