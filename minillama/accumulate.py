"""One optimiser step from several parts of its batch, and from half-precision weights.

    gradient = sum over parts of d(part's share of the loss) / d(weights)

Only one part's activations are in memory at a time, so that a batch may be larger than
what fits at once. With bfloat16 the parts run on a copy of the weights, while the
weights themselves, their gradients and the optimiser stay float32: a step of 1e-5 of a
weight is below the precision of bfloat16 and would be lost (mixed precision with master
weights: Micikevicius et al. 2018, arXiv 1710.03740, section 3.1).

Left out: loss scaling, which float16 needs and bfloat16 does not.
"""

import copy

import torch

from minillama.contracts import expects


class _Known(torch.autograd.Function):
    """The value of a loss whose gradients have been computed already."""

    @staticmethod
    def forward(ctx, value, gradients, *weights):
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None, None, *(gradient.mul_(upstream) for gradient in ctx.gradients)


@expects("value: float ()", "gradients, weights: list of Tensor (N,)", "-> float ()")
def known_loss(value, gradients, weights):
    """Return a loss whose gradients are known; its `backward` hands them over, once."""
    return _Known.apply(value, gradients, *weights)


@expects(
    "losses: generator or list of Tensor",
    "parameters, weights: list of Parameter (N,)",
    "-> float ()",
)
def accumulated_loss(losses, parameters, weights):
    """Return the sum of losses, as one loss whose gradients are known.

    losses: scalars, one for each part, made one at a time: the graph of a part is let
    go before the next one is asked for. parameters: what the losses depend on. weights:
    the same ones, or those in float32 of which they are copies; the gradients are
    summed there, and `backward` of the result hands them over, once.
    """
    total = weights[0].new_zeros(())
    sums = [torch.zeros_like(weight) for weight in weights]
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters)
        for so_far, gradient in zip(sums, gradients, strict=True):
            so_far.add_(gradient)
        total = total + loss.detach()
    return known_loss(total, sums, weights)


@expects("reward_model: RewardModel", "dtype: dtype")
def working_copy(reward_model, dtype):
    """Return the model that the parts of a batch run on.

    It is the model itself if its body has the dtype, else a copy whose body has it. The
    head stays float32, as in every reward model.
    """
    if reward_model.llama.norm.weight.dtype == dtype:
        return reward_model
    working = copy.deepcopy(reward_model)
    working.llama.to(dtype)
    return working


@expects("working, reward_model: RewardModel")
@torch.no_grad()
def follow(working, reward_model):
    """Copy the weights of a model into its `working_copy`, rounded to its dtype."""
    if working is not reward_model:
        pairs = zip(working.parameters(), reward_model.parameters(), strict=True)
        for copied, weight in pairs:
            copied.copy_(weight)
