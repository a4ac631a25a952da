"""LoRA: fine-tuning with few weights, as a sum that can be merged away.

A weight W (O, I) that was pretrained stays as it is; what is learned is a change of low
rank, the product of B (O, r) and A (r, I):

    h = W x + (alpha / r) B A x

Source: Hu et al. 2021 (arXiv 2106.09685), equation 3, and section 4.1 for alpha / r and
for B = 0 at the start, so that nothing changes at first. Their adapters stand at the
query and value projections (section 5.1), as here by default.

Left out: dropout on x, biases that learn, quantised W (QLoRA), other scales than
alpha / r, files of adapters alone.
"""

import copy
import math

import torch
from torch import nn

from minillama.contracts import expects


@expects(
    "linear: Linear",
    "rank: int >= 1",
    "alpha: finite number > 0",
    "generator: None or Generator",
)
class LoRALinear(nn.Module):
    """A linear layer that is frozen, plus a change of low rank that learns.

        h = W x + (alpha / rank) B A x

    `linear` is kept, not copied; its weights stop learning. A (rank, I) is drawn from
    N(0, 1 / I), a *variance*, with the CPU `generator` (None: the default one), and
    B (O, rank) is 0. Both have the dtype and the device of W.
    """

    def __init__(self, linear, rank, alpha, generator=None):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        outputs, inputs = linear.weight.shape
        noise = torch.randn(rank, inputs, generator=generator) / math.sqrt(inputs)
        self.A = nn.Parameter(noise.to(linear.weight))
        self.B = nn.Parameter(linear.weight.new_zeros(outputs, rank))

    def forward(self, x):
        """Map x (..., I) to (..., O) by way of (..., rank)."""
        return self.linear(x) + self.scale * (x @ self.A.T) @ self.B.T

    @torch.no_grad()
    def merged(self):
        """Return one new linear layer that does the same: W + (alpha / rank) B A."""
        same = copy.deepcopy(self.linear).requires_grad_(True)
        same.weight += self.scale * self.B @ self.A
        return same


def _children(model, kind):
    """Each module of a kind in a model, as (its parent, its name there, itself)."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


@expects(
    "model: Module",
    "rank: int >= 1",
    "alpha: finite number > 0",
    "names: list of text",
    "generator: None or Generator",
)
def add_lora(model, rank, alpha, names=("q_proj", "v_proj"), generator=None):
    """Freeze a model and put a `LoRALinear` in place of linear layers of these names.

    In place. A new head has to learn as well: unfreeze it afterwards. Raises ValueError
    for a name that no linear layer has, and for a model that has adapters already.
    """
    if _children(model, LoRALinear):
        raise ValueError("add_lora: model must be without adapters, got one with them")
    found = _children(model, nn.Linear)
    if missing := sorted(set(names) - {name for _, name, _ in found}):
        raise ValueError(
            f"add_lora: names must be of linear layers of the model, got {missing}"
        )
    model.requires_grad_(False)
    for parent, name, linear in found:
        if name in names:
            setattr(parent, name, LoRALinear(linear, rank, alpha, generator))


@expects("model: Module")
def merge_lora(model):
    """Put the plain layer that does the same in place of each `LoRALinear`, in place.

    The model then has the layout that it had before, all of it learning again.
    """
    for parent, name, adapter in _children(model, LoRALinear):
        setattr(parent, name, adapter.merged())
    model.requires_grad_(True)
