"""RoPE for longer texts than a model was pretrained on: slower frequencies.

A pair of features turns by m f_i at position m (model.py, `rope_cos_sin`). A model that
shall read further than it has learned to turns more slowly, so that late positions show
angles it knows. Two rules of real checkpoints: every pair by the same factor ("linear":
Chen et al. 2023, arXiv 2306.15595, equation 4), or only the slow pairs ("llama3": Llama
3.1's reference code, `apply_scaling`; Grattafiori et al. 2024, arXiv 2407.21783,
section 3.4.2, on training for 128K tokens).

Left out: the rules that look at the length of the text at hand (dynamic NTK), that
change the attention's temperature (YaRN) or have a factor for each pair (LongRoPE).
"""

import math
from dataclasses import dataclass

import torch

from minillama.contracts import expects


@expects("factor: finite number >= 1")
@dataclass(frozen=True)
class LinearScaling:
    """Every pair turns more slowly by one factor: positions move closer together."""

    factor: float  # So many times further than in pretraining.

    def scale(self, frequency):
        """Map radians per position, (E/2,), to slower ones, (E/2,)."""
        return frequency / self.factor


@expects(
    "factor: finite number >= 1",
    "low_freq_factor, high_freq_factor: finite number > 0",
    "original_max_seq_len: int >= 1",
)
@dataclass(frozen=True)
class Llama3Scaling:
    """Slow pairs turn more slowly, fast ones as before, with a ramp in between.

    A pair makes turns = L f / (2 pi) in the L tokens of pretraining. At most `low` of
    them: its frequency is divided by the factor. At least `high`: it stays, since all
    of its angles are known. In between, with s = (turns - low) / (high - low):

        f (s + (1 - s) / factor)
    """

    factor: float  # The slowest pairs turn so many times more slowly.
    low_freq_factor: float  # Pairs with no more turns than these are slowed down fully.
    high_freq_factor: float  # Pairs with no fewer turns than these stay as they are.
    original_max_seq_len: int  # L, the longest text of pretraining in tokens.

    def __post_init__(self):
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                "Llama3Scaling: high_freq_factor must be above low_freq_factor, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )

    def scale(self, frequency):
        """Map radians per position, (E/2,), to slower ones, (E/2,)."""
        turns = self.original_max_seq_len * frequency / (2 * math.pi)
        span = self.high_freq_factor - self.low_freq_factor
        kept = ((turns - self.low_freq_factor) / span).clamp(0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


@expects(
    "positions: int64 (..., T)",
    "head_dim: int >= 2",
    "theta: finite number > 0",
    "scaling: LinearScaling or Llama3Scaling",
)
def scaled_cos_sin(positions, head_dim, theta, scaling):
    """Return what `model.rope_cos_sin` does, of the slower frequencies of a scaling.

    Two float32 tensors (..., T, 1, E/2).
    """
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = scaling.scale(theta ** (-pair / head_dim))  # (E/2,)
    angle = positions[..., None, None].float() * frequency  # (..., T, 1, E/2)
    return angle.cos(), angle.sin()
