"""Checks of 15_whiten."""

import math

import torch
import torch.nn.functional as F

from minillama.course.checks.case import check, error_of, gradient, scaled
from minillama.course.checks.shared import normal, ragged


@check
def masked_mean(f):
    """Check `masked_mean(values, mask)`."""
    values = torch.tensor([[1.0, 2.0, 3.0], [9.0, 50.0, 70.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    yield (
        "all entries count alike",
        f(values, mask),
        torch.tensor(3.75),  # (1 + 2 + 3 + 9) / 4
        (
            "divide the sum of what counts by how many count; a mean of the two row "
            "means is 5.5"
        ),
    )
    values[1, 2] = math.nan
    yield (
        "what does not count may be NaN",
        f(values, mask),
        torch.tensor(3.75),
        "0 * NaN is NaN; index with the mask",
    )
    yield (
        "the gradient is 1/n where it counts",
        gradient(lambda v: f(v, mask), values),
        torch.tensor([[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]),
        "masked entries must not reach the result",
    )
    yield (
        "a mask without a True entry is refused",
        error_of(lambda: f(values, torch.zeros_like(mask))),
        ValueError,
        "the mean of nothing is 0/0",
    )
    yield (
        "a mask of floats is refused",
        error_of(lambda: f(values, mask.float())),
        TypeError,
        "compare mask.dtype",
    )
    cube = torch.arange(24.0).view(2, 3, 4)
    yield (
        "one entry, three entries in a row, and a cube",
        torch.stack(
            [
                f(torch.tensor([4.0, 9.0]), torch.tensor([False, True])),
                f(torch.arange(5.0), torch.arange(5) < 3),
                f(cube, cube % 5 == 1),
            ]
        ),
        torch.tensor([9.0, 1.0, 11.0]),  # 1, 6, 11, 16, 21
        "any shape; divide by how many are True",
    )
    yield (
        "entries that differ in sign",
        f(normal(5, 6), ragged()),
        sum(normal(5, 6)[b, t] for b, t in ragged().nonzero()) / 15,
        "the mean, no median and no size",
    )
    yield (
        "float64 values, a float64 mean",
        f(cube.double(), cube > 3).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    many = torch.arange(600.0)
    yield (
        "500 of 600 entries",
        f(many, many >= 100),
        torch.tensor(349.5),
        "divide by how many count",
    )
    yield (
        "small values and large ones",
        scaled(lambda c: f(c * (many - 250), many >= 100)),
        torch.stack([torch.tensor(99.5)] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def logit(f):
    """Check `logit(p, eps)`."""
    yield (
        "by hand, ln(p / (1 - p))",
        f(torch.tensor([0.9, 0.5, 0.01])),
        torch.tensor([2.1972, 0.0, -4.5951]),
        "ln 9, ln 1, ln(1/99)",
    )
    scores = torch.linspace(-5, 5, 11)
    yield (
        "it undoes a sigmoid",
        f(torch.sigmoid(scores)),
        scores,
        "solve p = 1 / (1 + exp(-x)) for x",
    )
    yield (
        "0 and 1 stay finite",
        f(torch.tensor([0.0, 1.0])),
        torch.tensor([-13.8155, 13.8155]),
        "clamp p to [eps, 1 - eps] with eps = 1e-6",
    )
    yield (
        "eps can be changed",
        f(torch.tensor([0.0, 1.0]), eps=0.1),
        torch.tensor([-2.1972, 2.1972]),
        "clamp with the eps that was given",
    )
    yield (
        "half precision stays finite",
        f(torch.ones(1, dtype=torch.float16)).isfinite().all().item(),
        True,
        "1 - 1e-6 is 1 in float16; clamp in float64",
    )
    yield (
        "the dtype is kept",
        f(torch.tensor([0.5], dtype=torch.bfloat16)).dtype,
        torch.bfloat16,
        "convert back at the end",
    )
    yield (
        "1.5 is no probability",
        error_of(lambda: f(torch.tensor([0.5, 1.5]))),
        ValueError,
        (
            "refuse a value outside [0, 1], a linear score for example, before "
            "clamping hides it"
        ),
    )
    yield (
        "near the ends, in float64: 0.00001 and 0.99999",
        f(torch.tensor([1e-5, 1 - 1e-5], dtype=torch.float64)),
        torch.tensor([-11.512915, 11.512915]),
        "clamp changes what is beyond the ends alone: no shift, no squeeze",
    )
    yield (
        "any shape, and float64 stays float64",
        (
            f(torch.full((2, 3), 0.5).double()).dtype,
            tuple(f(torch.full((2, 3, 1), 0.5)).shape),
        ),
        (torch.float64, (2, 3, 1)),
        "entry by entry",
    )
    yield (
        "-0.1 is no probability",
        error_of(lambda: f(torch.tensor([-0.1]))),
        ValueError,
        "refuse it before clamping hides it",
    )
    yield (
        "close to one half, a thousand times as large",
        1000 * f(torch.tensor([0.5001, 0.4999], dtype=torch.float64)),
        torch.tensor([0.4, -0.4]),
        "round nothing",
    )


@check
def whiten(f):
    """Check `whiten(values, mask, shift_mean)`."""
    # (1, 2, 3, 4) - 2.5, over sqrt(5 / 3)
    hand = torch.tensor([-1.1619, -0.3873, 0.3873, 1.1619])
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    yield (
        "(1, 2, 3, 4) by hand",
        f(four),
        hand,
        "the variance is unbiased, 5/3: divide by n - 1",
    )
    yield (
        "one mean for all entries",
        f(four.view(2, 2)),
        hand.view(2, 2),
        "not a mean per row or per column",
    )
    yield (
        "shift_mean=False adds the mean back",
        f(four, shift_mean=False),
        hand + 2.5,
        "the mean is 2.5",
    )
    padded = torch.tensor([99.0, 1.0, 2.0, 3.0, 4.0, -7.0])
    mask = torch.tensor([False] + 4 * [True] + [False])
    yield (
        "padding does not count and becomes 0",
        f(padded, mask),
        F.pad(hand, (1, 1)),
        "take mean and variance of the unmasked entries, and leave 0 elsewhere",
    )
    yield (
        "equal values become 0",
        f(torch.full((3,), 5.0)),
        torch.zeros(3),
        "rsqrt(var + 1e-8) keeps 0 * finite",
    )
    yield (
        "scale and offset of the input disappear",
        f(1000 + 50 * four),
        hand,
        "subtract the mean, then divide",
    )
    yield (
        "one value is refused",
        error_of(lambda: f(torch.tensor([3.0]))),
        ValueError,
        "one value has no variance; n - 1 is 0",
    )
    yield (
        "shift_mean=False under a mask",
        f(padded, mask, shift_mean=False),
        F.pad(hand + 2.5, (1, 1)),
        "add the mean of what counts, and leave 0 elsewhere",
    )
    broken = torch.where(mask, padded, math.nan)
    yield (
        "padding may be NaN",
        f(broken, mask),
        F.pad(hand, (1, 1)),
        "0 * NaN is NaN; index with the mask",
    )
    half = f((1000 * four).half())
    yield (
        "float16, (1000, 2000, 3000, 4000)",
        half,
        hand.half(),
        "the variance overflows in float16: compute in float64",
    )
    yield (
        "the dtype is that of the values",
        (half.dtype, f(four.double()).dtype),
        (torch.float16, torch.float64),
        "convert back at the end",
    )
    yield (
        "five small values, two rows of answers",
        f(four.view(2, 2) / 1000, torch.tensor([[True, True], [True, False]])),
        torch.tensor([[-0.995037, 0.0], [0.995037, 0.0]]),  # var 1e-6, and 1e-8 more
        "rsqrt(var + 1e-8), over the rows together",
    )
    yield (
        "shift_mean=False around another mean",
        f(four - 7, shift_mean=False),
        hand - 4.5,
        "the mean of what came, -4.5",
    )
    lonely = f(torch.eye(30)[0])
    yield (
        "one entry of 30 far above the rest",
        lonely[:2],
        torch.tensor([5.294650, -0.182574]),  # (29/30, -1/30) / sqrt(1/30)
        "no limit",
    )
    big = normal(40)
    first = f(big)

    yield (
        "values a thousand times as large, and more",
        scaled(lambda c: f(1e6 * c * big), 0),
        torch.stack([first] * 2),
        "the scale disappears",
    )
