"""Checks of 18_ppo_loss."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, row, scaled
from minillama.course.checks.shared import normal, ragged


@check
def policy_loss(f):
    """Check `policy_loss(logprobs, old_logprobs, advantages, …, clip_eps)`."""
    one, zero = torch.tensor([[True]]), row(0)
    cases = [(1, 1), (-1, 1), (0.1, 1), (1, -1), (-1, -1)]  # (logratio, advantage)
    got = torch.stack(
        [f(row(logratio), zero, row(advantage), one) for logratio, advantage in cases]
    )
    yield (
        "the five cases at clip_eps 0.2",
        got,
        torch.tensor([-1.2, -0.3679, -1.1052, 2.7183, 0.8]),
        (
            "minus the smaller of ratio * A and clip(ratio) * A; with A < 0 the "
            "smaller is the clipped one below 0.8 only"
        ),
    )
    advantages = torch.tensor([[1.0, 2.0, 3.0], [-10.0, 50.0, 50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    yield (
        "mean over all response tokens",
        f(zeros, zeros, advantages, mask),
        torch.tensor(1.0),  # -(1 + 2 + 3 - 10) / 4
        "neither a mean of row means, 4, nor one that counts padding",
    )
    yield (
        "at ratio 1 the gradient is -A / n",
        gradient(lambda x: f(x, zeros, advantages, mask), zeros),
        torch.tensor([[-0.25, -0.5, -0.75], [2.5, 0.0, 0.0]]),
        "4 tokens count",
    )
    slopes = [
        gradient(lambda x, a=a: f(x, zero, row(a), one), row(logratio)).item()
        for logratio, a in cases
    ]
    yield (
        "where the clipped term is the smaller, no gradient",
        torch.tensor(slopes),
        torch.tensor([0.0, -0.3679, -1.1052, 2.7183, 0.0]),
        "torch.minimum passes the gradient to the smaller one",
    )
    far = torch.where(mask, 0.0, 500.0)
    yield (
        "padding reaches no gradient, even where exp overflows",
        gradient(lambda x: f(x, zeros, advantages, mask), far).isfinite().all().item(),
        True,
        "0 * inf is NaN; set the logratio to 0 on padding",
    )
    yield (
        "advantages are constants",
        gradient(lambda a: f(zeros, zeros, a, mask), advantages),
        zeros,
        "detach them",
    )
    yield (
        "old_logprobs are constants",
        gradient(lambda x: f(zeros, x, advantages, mask), zeros),
        zeros,
        "detach them",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(zeros, zeros, advantages[:, :1], mask)),
        ValueError,
        "(B, 1) would broadcast",
    )
    mask, new, old = ragged(), normal(5, 6), normal(5, 6, seed=1)
    A = normal(5, 6, seed=2)
    for eps in (0.05, 0.5):
        terms, slope = [], torch.zeros(5, 6)
        for b, t in mask.nonzero().tolist():
            ratio, a = math.exp(new[b, t] - old[b, t]), A[b, t].item()
            limited = min(max(ratio, 1 - eps), 1 + eps)
            terms.append(min(ratio * a, limited * a))
            slope[b, t] = -ratio * a / 15 if ratio * a <= limited * a else 0.0
        yield (
            f"five answers of 3, 1, 4, 2 and 5 tokens, clip_eps {eps}",
            f(new, old, A, mask, eps),
            torch.tensor(-sum(terms) / 15),
            "clip with the clip_eps that is given, on both sides",
        )
        yield (
            f"its slopes, clip_eps {eps}",
            gradient(lambda x, eps=eps: f(x, old, A, mask, eps), new),
            slope,
            "token by token: -ratio * A / n, or 0 where the clipped term is smaller",
        )
    yield (
        "clip_eps is 0.2 by default",
        f(new, old, A, mask),
        f(new, old, A, mask, 0.2),
        "see the head of the definition",
    )
    yield (
        "ratios of e^4 and e^-4 count as they are where nothing clips them",
        torch.stack([f(row(x), zero, row(a), one) for x, a in ((4, -1), (-4, 1))]),
        torch.tensor([54.59815, -0.018316]),
        "one clip, on the ratio, and a minimum; no other limit",
    )
    yield (
        "padding may be NaN, in all three",
        f(*(torch.where(mask, x, math.nan) for x in (new, old, A)), mask),
        f(new, old, A, mask),
        "0 * NaN is NaN; index with the mask",
    )
    yield (
        "float64 in, float64 out",
        f(new.double(), old.double(), A.double(), mask).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    first = f(new, old, A, mask)

    yield (
        "small advantages and large ones",
        scaled(lambda c: f(new, old, c * A, mask)),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )

    some = torch.where(A > 0, old, new)
    kept = torch.minimum((some - old).exp() * A, (some - old).exp().clamp(0.8, 1.2) * A)
    yield (
        "some tokens have not moved",
        f(some, old, A, mask),
        -kept[mask].sum() / 15,
        "a mean over all response tokens, whatever their ratio",
    )


@check
def value_loss(f):
    """Check `value_loss(values, old_values, returns, response_mask, clip_eps)`."""
    one, target = torch.tensor([[True]]), row(3)

    def loss(value):
        return f(value, row(1), target, one, clip_eps=0.5)  # old value 1, return 3

    yield (
        "at the old value: (1 - 3)^2 / 2",
        loss(row(1)),
        torch.tensor(2.0),
        "the factor 1/2",
    )
    yield (
        "a big step to the return: (1.5 - 3)^2 / 2",
        loss(row(3)),
        torch.tensor(1.125),
        "the larger of the clipped and the unclipped error",
    )
    yield (
        "a big step away: (0 - 3)^2 / 2",
        loss(row(0)),
        torch.tensor(4.5),
        "clip value - old_value, and take the larger",
    )
    slopes = torch.cat([gradient(loss, row(value)) for value in (1, 3, 0)])
    yield (
        "beyond the clipped step, no gradient",
        slopes,
        torch.tensor([[-2.0], [0.0], [-3.0]]),
        "value - return, or 0",
    )
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 70.0, 70.0]])
    mask = torch.tensor([[True] * 3, [True, False, False]])
    returns = torch.zeros(2, 3)
    yield (
        "mean over all response tokens",
        f(values, values, returns, mask),
        torch.tensor(4.875),  # (1+4+9+25)/4/2
        "neither a mean of row means nor one that counts padding",
    )
    constants = gradient(
        lambda x: f(values, x[0], x[1], mask), torch.stack((values, returns))
    )
    yield (
        "old_values and returns are constants",
        constants,
        torch.zeros(2, 2, 3),
        "detach them",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(values, values, returns[:, :1], mask)),
        ValueError,
        "(B, 1) would broadcast",
    )
    mask, new, old = ragged(), normal(5, 6, scale=2.0), normal(5, 6, seed=1)
    R = normal(5, 6, seed=2, scale=2.0)
    for eps in (0.3, 1.0, math.inf):
        terms, slope = [], torch.zeros(5, 6)
        for b, t in mask.nonzero().tolist():
            v, o, r = (x[b, t].item() for x in (new, old, R))
            limited = min(max(v, o - eps), o + eps)
            terms.append(max((v - r) ** 2, (limited - r) ** 2))
            plain = (v - r) ** 2 >= (limited - r) ** 2
            slope[b, t] = (v - r) / 15 if plain else 0.0
        yield (
            f"five answers of 3, 1, 4, 2 and 5 tokens, clip_eps {eps}",
            f(new, old, R, mask, eps),
            torch.tensor(sum(terms) / 30),
            "old_value - clip_eps to old_value + clip_eps, for each token its own",
        )
        yield (
            f"its slopes, clip_eps {eps}",
            gradient(lambda x, eps=eps: f(x, old, R, mask, eps), new),
            slope,
            "(value - return) / n, or 0 where the clipped error is larger",
        )
    yield (
        "clip_eps is 0.2 by default",
        f(new, old, R, mask),
        f(new, old, R, mask, 0.2),
        "see the head of the definition",
    )
    yield (
        "old_values and returns feel nothing, where values are clipped",
        gradient(lambda x: f(new, x[0], x[1], mask, 0.3), torch.stack((old, R))),
        torch.zeros(2, 5, 6),
        "detach them",
    )
    yield (
        "padding may be NaN, in all three",
        f(*(torch.where(mask, x, math.nan) for x in (new, old, R)), mask),
        f(new, old, R, mask),
        "0 * NaN is NaN; index with the mask",
    )
    yield (
        "float64 in, float64 out",
        f(new.double(), old.double(), R.double(), mask).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    first = f(new, old, R, mask, 0.3)

    yield (
        "small values and large ones, clip_eps too",
        scaled(lambda c: f(c * new, c * old, c * R, mask, 0.3 * c), 2),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )
