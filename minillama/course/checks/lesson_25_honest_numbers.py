"""Checks of 25_honest_numbers."""

import math

import torch

from minillama.course.checks.case import check, error_of, scaled
from minillama.course.checks.shared import kind, kinds, normal


@check
def wilson_interval(f):
    """Check `wilson_interval(share, count, z)`."""
    yield ("two plain numbers", kinds(f(0.8, 10)), [float, float], "low and high")
    yield (
        "8 of 10 right",
        torch.tensor(f(0.8, 10)),
        torch.tensor([0.490162, 0.943318]),
        "middle (0.8 + 0.192) / 1.384, half 1.96 sqrt(0.016 + 0.0096) / 1.384",
    )
    yield (
        "10 of 10 right still leave a doubt",
        torch.tensor(f(1.0, 10)),
        torch.tensor([0.722460, 1.0]),
        "1 / (1 + 1.96^2 / 10)",
    )
    low, high = f(0.3, 50)
    yield (
        "each end is 1.96 of its own standard errors away from 0.3, for 50",
        torch.tensor([abs(0.3 - p) / math.sqrt(p * (1 - p) / 50) for p in (low, high)]),
        torch.tensor([1.96, 1.96]),
        "the standard error is that of the chance p, not of the share",
    )
    yield (
        "2 of 4 right, one standard error",
        torch.tensor(f(0.5, 4, z=1.0)),
        torch.tensor([0.276393, 0.723607]),  # 0.5 ± sqrt(1/16 + 1/64) / 1.25
        "z is an argument",
    )
    yield (
        "a count that is not whole",
        torch.tensor(f(0.0, 2.5)),
        torch.tensor([0.0, 0.605766]),  # (z^2 / n) / (1 + z^2 / n)
        "an effective count need not be whole",
    )
    low, high = f(0.2, 17, 2.5)
    yield (
        "the ends for .8 mirror those for .2, 2.5 standard errors",
        torch.tensor(f(0.8, 17, 2.5)),
        torch.tensor([1 - high, 1 - low]),
        "right and wrong are alike",
    )
    low, high = f(0.001, 1e6)
    yield (
        "1 in a thousand of a million, less the share, in ten thousandths",
        torch.tensor([10000 * (low - 0.001), 10000 * (high - 0.001)]),
        torch.tensor([-0.600622, 0.638961]),
        "round nothing",
    )
    yield (
        "z is 1.96 by default",
        torch.tensor(f(0.3, 50)),
        torch.tensor(f(0.3, 50, 1.96)),
        "see the head of the definition",
    )


def _from(seed):
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


@check
def bootstrap_interval(f):
    """Check `bootstrap_interval(values, generator, groups, draws, level)`."""
    yield (
        "two plain numbers",
        kinds(f(torch.arange(3.0), _from(0))),
        [float, float],
        "take .item() of both",
    )
    three = torch.tensor([1.0, 2.0, 6.0])
    yield (
        "the middle 60 % of the 27 resamples of 1, 2, 6",
        torch.tensor(f(three, _from(0), draws=8000, level=0.6)),
        torch.tensor([5 / 3, 13 / 3]),  # 7 of 27 sums are up to 5, 4 below; 13 likewise
        "draw three of three with replacement, take means, then their quantiles",
    )
    yield (
        "95 % by default: 1 + 1 + 1 and 6 + 6 + 6 have 1 / 27 each",
        torch.tensor(f(three, _from(0), draws=8000)),
        torch.tensor([1.0, 6.0]),
        "the quantiles 0.025 and 0.975",
    )
    pairs = torch.tensor([0.0, 0.0, 1.0, 1.0])
    yield (
        "two prompts with two equal answers each, 80 %",
        torch.tensor(f(pairs, _from(0), list("aabb"), 4000, 0.8)),
        torch.tensor([0.0, 1.0]),  # both draws are a with probability 1/4
        "draw whole groups",
    )
    yield (
        "the same answers, each alone, 80 %",
        torch.tensor(f(pairs, _from(0), None, 4000, 0.8)),
        torch.tensor([0.25, 0.75]),  # P(all four are 0) = 1/16
        "without groups each value is a unit",
    )
    yield (
        "groups of one and of three, in any order",
        torch.tensor(
            f(torch.tensor([0.0, 6.0, 0.0, 0.0]), _from(0), [7, 3, 7, 7], 4000, 0.4)
        ),
        torch.tensor([1.5, 1.5]),  # one of each: 6 / 4, with probability 1/2
        "the mean of all values drawn, not the mean of the groups' means",
    )
    yield (
        "a single draw is both ends",
        len(set(f(torch.arange(100.0), _from(1), draws=1))),
        1,
        "draws says how many resamples there are",
    )
    torch.manual_seed(1)
    first = f(torch.arange(100.0), _from(1), draws=50)
    torch.manual_seed(2)
    yield (
        "the generator decides",
        torch.tensor(f(torch.arange(100.0), _from(1), draws=50)),
        torch.tensor(first),
        "hand the generator to torch.randint",
    )
    yield (
        "one prompt says nothing of others",
        error_of(lambda: f(pairs, _from(0), list("aaaa"))),
        ValueError,
        "refuse a single unit",
    )
    yield (
        "the same groups, 80 %: one or the other twice has 1 / 4 each",
        torch.tensor(
            f(torch.tensor([0.0, 6.0, 0.0, 0.0]), _from(0), [7, 3, 7, 7], 4000, 0.8)
        ),
        torch.tensor([0.0, 6.0]),
        "a value belongs to the group that is named at its place",
    )
    hundred, source = torch.arange(100.0).square(), _from(4)
    first, second = (f(hundred, source, draws=50) for _ in range(2))
    yield (
        "a generator goes on: two calls, two answers",
        first == second,
        False,
        "draw from the generator itself",
    )
    yield (
        "by default 1000 draws at level 0.95, without groups",
        torch.tensor(f(hundred, _from(2))),
        torch.tensor(f(hundred, _from(2), None, 1000, 0.95)),
        "see the head of the definition",
    )
    yield (
        "small values and large ones",
        scaled(lambda c: torch.tensor(f(c * three, _from(0), draws=8000, level=0.6))),
        torch.stack([torch.tensor([5 / 3, 13 / 3])] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def intraclass_correlation(f):
    """Check `intraclass_correlation(values)`."""
    yield (
        "a plain number",
        kind(f(torch.arange(4.0).view(2, 2))),
        float,
        "take .item() of the tensor",
    )
    yield (
        "rows (1, 1), (0, 0), (1, 0)",
        torch.tensor(f(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))),
        torch.tensor(0.5),  # B = 2 x 1/4, W = (0 + 0 + 1/2) / 3
        "variances divide by their count minus 1",
    )
    yield (
        "two rows of three: 1, 2, 3 and 4, 5, 6",
        torch.tensor(f(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))),
        torch.tensor(12.5 / 15.5),  # B = 3 x 4.5, W = 1
        "(B - W) / (B + (K - 1) W), with K = 3",
    )
    yield (
        "rows that are constant",
        torch.tensor(f(torch.tensor([[5.0, 5.0], [1.0, 1.0]]))),
        torch.tensor(1.0),
        "W is 0",
    )
    yield (
        "rows that all differ within alone",
        torch.tensor(f(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))),
        torch.tensor(-1.0),
        "B is 0, and K - 1 is 1",
    )
    yield (
        "values that are all equal",
        error_of(lambda: f(torch.ones(2, 2))),
        ValueError,
        "0 / 0 is no correlation",
    )
    yield (
        "three rows of four, by hand",
        torch.tensor(
            f(
                torch.tensor(
                    [[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 0.0, 8.0]]
                )
            )
        ),
        torch.tensor((16 / 3 - 68 / 9) / (16 / 3 + 3 * 68 / 9)),
        "row means 2, 4, 2: B = 4 x 4/3; variances 4/3, 16/3, 16: W = 68/9",
    )
    table = normal(6, 3) + normal(6, 1, seed=1)
    first = torch.tensor(f(table))

    yield (
        "another unit",
        scaled(lambda c: torch.tensor(f(c * table)), 0),
        torch.stack([first] * 2),
        "a correlation has no unit",
    )


@check
def roc_curve(f):
    """Check `roc_curve(scores, labels)`."""
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
    labels = torch.tensor([True, True, False, False])
    points = f(scores, labels)
    yield (
        "false alarms: good answers of scores 2 and 1",
        points[0],
        torch.tensor([0.0, 0.0, 0.5, 1.0]),
        "the highest score is flagged first, equal scores together",
    )
    yield (
        "hits: bad answers of scores 3 and 1",
        points[1],
        torch.tensor([0.0, 0.5, 0.5, 1.0]),
        "True is what should be flagged",
    )
    points = f(torch.tensor([-1.0, -5.0, -2.0]), torch.tensor([False, True, False]))
    yield (
        "two good ones above the only bad one",
        torch.stack(points),
        torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]),
        "each count over those of its own kind",
    )
    yield (
        "one kind alone has no curve",
        error_of(lambda: f(scores, torch.ones(4, dtype=torch.bool))),
        ValueError,
        "refuse labels that are all alike",
    )
    yield (
        "float64, both",
        [x.dtype for x in f(scores, labels)],
        [torch.float64] * 2,
        "shares of counts, in float64",
    )
    mixed = torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0])
    bad = torch.tensor([True, False, False, True, False, True, False])
    yield (
        "seven answers at four scores",
        torch.stack(f(mixed, bad)),
        torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 3, 3]]) / torch.tensor([[4.0], [3.0]]),
        "a point for each distinct score, and (0, 0) before them",
    )
    first = torch.stack(f(mixed, bad))

    yield (
        "another unit of the scores",
        scaled(lambda c: f(c * mixed, bad), 0),
        torch.stack([first] * 2),
        "only the order counts",
    )


@check
def auc(f):
    """Check `auc(scores, labels)`."""
    yield (
        "a plain number",
        kind(f(torch.arange(2.0), torch.tensor([False, True]))),
        float,
        "take .item() of the tensor",
    )
    labels = torch.tensor([True, True, False, False])
    for claim, scores, expected, hint in (
        ("scores 3, 1 against 2, 1", [3.0, 1.0, 2.0, 1.0], 0.625, "2 1/2 of 4 pairs"),
        ("both bad ones on top", [4.0, 3.0, 2.0, 1.0], 1.0, "4 of 4 pairs"),
        ("both at the bottom", [1.0, 2.0, 3.0, 4.0], 0.0, "none of 4 pairs"),
        ("all alike", [7.0] * 4, 0.5, "a tie is half a pair"),
        ("one above all", [1.0, 9.0, 3.0, 2.0], 0.5, "the size does not count"),
    ):
        yield (
            claim,
            torch.tensor(f(torch.tensor(scores), labels)),
            torch.tensor(expected),
            hint,
        )
    yield (
        "one bad among four",
        torch.tensor(f(torch.tensor([2.0, 3.0, 1.0, 0.0]), labels & labels.roll(1))),
        torch.tensor(1.0),  # True stands at 1: 3 is above 2, 1 and 0
        "divide by bad ones times good ones",
    )
    yield (
        "no good one",
        error_of(lambda: f(torch.ones(2), torch.ones(2, dtype=torch.bool))),
        ValueError,
        "there is no pair",
    )
    yield (
        "three bad ones, four good ones, with ties: 6 1/2 of 12 pairs",
        torch.tensor(
            f(
                torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0]),
                torch.tensor([True, False, False, True, False, True, False]),
            )
        ),
        torch.tensor(6.5 / 12),
        "3 1/2 for the first, 1 1/2 for each of the others",
    )
    order = torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0])
    some = torch.tensor([True, False, False, True, False, True, False])

    yield (
        "another unit of the scores",
        scaled(lambda c: f(c * order, some), 0),
        torch.stack([torch.tensor(6.5 / 12)] * 2),
        "only the order counts",
    )
