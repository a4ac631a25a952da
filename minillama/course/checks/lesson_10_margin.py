"""Checks of 10_margin."""

import math
from itertools import pairwise

import torch

from minillama.course.checks.case import check, error_of


@check
def outcome_chances(f):
    """Check `outcome_chances(difference, thresholds)`."""
    ln3 = math.log(3)
    wins, losses = f(torch.tensor([0.0, ln3]), (ln3,))
    yield (
        "a wins, at differences 0 and ln 3 with the threshold ln 3",
        wins,
        torch.tensor([[0.25, 0.25], [0.25, 0.5]]),
        (
            "P(low <= x < high) for x = difference + logistic noise is sigmoid(high - "
            "difference) - sigmoid(low - difference)"
        ),
    )
    yield (
        "b wins",
        losses,
        torch.tensor([[0.25, 0.25], [0.15, 0.1]]),
        "b wins where -x is positive: turn the difference",
    )
    wins, losses = f(torch.linspace(-6, 6, 5), (0.75, 1.75, 3.5))
    yield (
        "one column for each of four strengths",
        wins.shape,
        (5, 4),
        "edges at 0, at the thresholds and at infinity",
    )
    yield (
        "somebody wins with some strength",
        (wins + losses).sum(1),
        torch.ones(5),
        "each row of both together sums to 1",
    )
    yield (
        "who wins is a sigmoid",
        wins.sum(1),
        torch.sigmoid(torch.linspace(-6, 6, 5)),
        "add up the strengths",
    )
    thresholds = (0.5, 2.0, 3.0)
    edges = (0.0, *thresholds, math.inf)

    def by_hand(difference):
        below = [1 / (1 + math.exp(difference - x)) if x < 99 else 1.0 for x in edges]
        return [high - low for low, high in pairwise(below)]

    given = [-3.0, 0.4, 1.0, 7.0, 60.0]
    yield (
        "four strengths at five differences",
        torch.stack(f(torch.tensor(given), thresholds)),
        torch.tensor([[by_hand(x) for x in given], [by_hand(-x) for x in given]]),
        "between each two neighbouring edges, at each difference",
    )
    yield (
        "float64, both",
        [x.dtype for x in f(torch.tensor([1.0]), [1.0])],
        [torch.float64] * 2,
        "convert the difference first",
    )
    yield (
        "a threshold below 0 is refused",
        error_of(lambda: f(torch.zeros(1), (-1.0, 1.0))),
        ValueError,
        "all are above 0, or sizes overlap",
    )


@check
def margin_slope(f):
    """Check `margin_slope(difference, wins, losses, margins)`."""
    sure, never, d = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([1.5])
    slopes = torch.stack([f(d, sure, never, torch.tensor([m])) for m in (0.0, 3.0)])
    yield (
        "a always wins, d = 1.5, margins 0 and 3",
        slopes,
        torch.tensor([[-0.18243], [-0.81757]]),
        "-sigmoid(margin - d)",
    )
    slopes = torch.stack([f(d, never, sure, torch.tensor([m])) for m in (0.0, 3.0)])
    yield (
        "b always wins",
        slopes,
        torch.tensor([[0.81757], [0.98901]]),
        "b asks for its margin too: sigmoid(margin + d)",
    )
    wins = torch.tensor([[0.5, 0.25]])
    losses = torch.tensor([[0.25, 0.0]])
    margins = torch.tensor([0.0, 1.0])
    yield (
        "two strengths at d = 0",
        f(torch.zeros(1), wins, losses, margins),
        torch.tensor([-0.307765]),  # .125 - .43276
        "each outcome's slope times its chance, then the sum",
    )
    yield (
        "one slope a pair",
        f(torch.zeros(3), wins.expand(3, 2), losses.expand(3, 2), margins),
        torch.full((3,), -0.307765),
        "sum over the strengths, not over the pairs",
    )
    d = torch.tensor([0.5, -2.0, 3.0])
    wins = torch.tensor([[3.0, 1.0], [0.0, 5.0], [2.0, 2.0]])
    losses = torch.tensor([[1.0, 4.0], [6.0, 0.5], [0.0, 7.0]])
    margins = torch.tensor([0.25, 2.0])
    slopes = [
        sum(
            b / (1 + math.exp(-m - x)) - a / (1 + math.exp(x - m))
            for a, b, m in zip(*rows, margins.tolist(), strict=True)
        )
        for x, *rows in zip(d.tolist(), wins.tolist(), losses.tolist(), strict=True)
    ]
    yield (
        "three pairs, each with counts of its own",
        f(d, wins, losses, margins),
        torch.tensor(slopes),
        "row by row, counts as they are: they need not sum to 1",
    )
    whole = f(d, wins.long(), losses.long(), margins)
    yield (
        "float64, from whole counts too",
        whole.dtype,
        torch.float64,
        "convert difference and margins first",
    )


@check
def margin_minimiser(f):
    """Check `margin_minimiser(wins, losses, margins)`."""

    def one(p, margin):
        return f(torch.tensor([[p]]), torch.tensor([[1 - p]]), torch.tensor([margin]))

    yield (
        "p = .75 without margin",
        one(0.75, 0.0),
        torch.tensor([1.0986]),
        "the log-odds, ln 3",
    )
    yield (
        "p = .75 with the margin 1",
        one(0.75, 1.0),
        torch.tensor([1.7820]),
        "0.25 x^2 - 0.5 e x - 0.75 = 0 for x = e^d",
    )
    yield (
        "p = .75 with the margin 20",
        one(0.75, 20.0),
        torch.tensor([20.6931]),
        "the first interval must hold the minimum, which may lie far out",
    )
    yield (
        "p = .25 with the margin 1",
        one(0.25, 1.0),
        torch.tensor([-1.7820]),
        "the two sides are alike",
    )
    yield (
        "p = .5 with the margin 3",
        one(0.5, 3.0),
        torch.tensor([0.0]),
        "the two sides are alike",
    )
    wins = torch.tensor([[0.125, 0.375], [30.0, 10.0]])
    losses = torch.tensor([[0.375, 0.125], [10.0, 0.0]])
    margins = torch.tensor([0.0, 3.0])
    best = f(wins, losses, margins)
    slopes = (
        losses * torch.sigmoid(margins + best[:, None])
        - wins * torch.sigmoid(margins - best[:, None])
    ).sum(1)
    yield (
        "two strengths, two pairs: the slope there is 0",
        slopes,
        torch.zeros(2),
        "one minimum a pair",
    )
    yield (
        "a side that never wins is refused",
        error_of(lambda: one(1.0, 1.0)),
        ValueError,
        "the loss falls without end: there is no minimum",
    )
    yield (
        "p = .75 with the margin 300, and .25 with 0",
        torch.cat((one(0.75, 300.0), one(0.25, 0.0))),
        torch.tensor([300.6931, -1.0986]),
        "let the first interval grow with margins and odds",
    )
    yield (
        "a slope below 1e-9 there, in float64",
        (best.dtype, bool((slopes.abs() < 1e-9).all())),
        (torch.float64, True),
        "halve the interval until nothing is left of it",
    )
    odds = torch.tensor([[1e-6], [1.0], [1e6]])
    yield (
        "log-odds of a million, of 1 and of a millionth, side by side",
        f(odds, torch.ones(3, 1), torch.zeros(1)),
        odds.log()[:, 0],
        "an interval for each row",
    )
    pair = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    yield (
        "one row where one side never wins is enough",
        (
            error_of(lambda: f(pair, torch.ones(2, 2), margins)),
            error_of(lambda: f(torch.ones(2, 2), pair, margins)),
        ),
        (ValueError, ValueError),
        "look at both sides of every row",
    )
    yield (
        "p = .51 and .49 without margin",
        torch.cat((one(0.51, 0.0), one(0.49, 0.0))),
        torch.tensor([0.040005, -0.040005]),
        "small differences count",
    )
    many, few = torch.tensor([[1.0, 1e-6, 1e6]]), torch.tensor([[1.0, 1e-6, 1.0]])
    margins = torch.tensor([0.0, 0.0, 50.0])
    best = f(torch.cat((many, few)), torch.cat((few, many)), margins)
    slopes = (
        torch.cat((few, many)) * torch.sigmoid(margins + best[:, None])
        - torch.cat((many, few)) * torch.sigmoid(margins - best[:, None])
    ).sum(1)
    yield (
        "three strengths, of which one decides: the slope is 0, far out",
        (bool((slopes.abs() < 1e-6).all()), bool((best.abs() > 30).all())),
        (True, True),
        "odds of all strengths, and the largest margin, bound the minimum",
    )
