"""Checks of 12_audit."""

import random

import torch

from minillama.course.checks.case import check
from minillama.course.checks.shared import compared, kind


@check
def length_only_accuracy(f):
    """Check `length_only_accuracy(longer_by, exact)`."""
    yield (
        "a plain number",
        kind(f(torch.ones(1), torch.ones(1))),
        float,
        "take .item() of the tensor",
    )
    exact = torch.tensor([0.9, 0.8, 0.6])
    yield (
        "the longer answer of each pair",
        torch.tensor(f(torch.tensor([3.0, 1.0, 2.0]), exact)),
        torch.tensor(0.766667),
        "mean of P(chosen preferred) where the chosen answer is longer",
    )
    yield (
        "a shorter one counts the other way",
        torch.tensor(f(torch.tensor([3.0, 1.0, -2.0]), exact)),
        torch.tensor(0.7),
        "1 - P where the chosen answer is shorter: (0.9 + 0.8 + 0.4) / 3",
    )
    yield (
        "'the shorter one wins' may be the better rule",
        torch.tensor(f(torch.tensor([-1.0, -2.0, -3.0]), exact)),
        torch.tensor(0.766667),
        "the better of both rules: max(a, 1 - a)",
    )
    yield (
        "equal lengths are a coin flip",
        torch.tensor(f(torch.tensor([0.0, 0.0, 5.0]), exact)),
        torch.tensor(0.533333),
        "one half each: (0.5 + 0.5 + 0.6) / 3",
    )
    by = torch.tensor([7.0, -3.0, 0.0, 2.0, -1.0])
    exact = torch.tensor([0.9, 0.4, 0.8, 0.3, 1.0])
    yield (
        "five pairs",
        torch.tensor(f(by, exact)),
        torch.tensor((0.9 + 0.6 + 0.5 + 0.3 + 0.0) / 5).clamp(min=0.54),
        "one rule for all pairs: the better of 2.3 / 5 and 2.7 / 5",
    )


@check
def brier_score(f):
    """Check `brier_score(predicted, exact)`."""
    yield (
        "a plain number",
        kind(f(torch.ones(1), torch.ones(1))),
        float,
        "take .item() of the tensor",
    )
    exact = torch.tensor([0.9, 0.5])
    yield (
        "the exact probabilities themselves",
        torch.tensor(f(exact, exact)),
        torch.tensor(0.17),
        "the outcome stays random: p (1 - p), (0.09 + 0.25) / 2",
    )
    yield (
        "certainty about the likelier side",
        torch.tensor(f(torch.tensor([1.0, 1.0]), exact)),
        torch.tensor(0.3),
        "p (1 - predicted)^2 + (1 - p) predicted^2: (0.1 + 0.5) / 2",
    )
    yield (
        "one half for both",
        torch.tensor(f(torch.tensor([0.5, 0.5]), exact)),
        torch.tensor(0.25),
        "1/4 whatever p",
    )
    yield (
        "labels as they are",
        torch.tensor(f(torch.tensor([0.8, 0.4]), torch.ones(2))),
        torch.tensor(0.2),
        "(0.2^2 + 0.6^2) / 2",
    )
    three = torch.tensor([0.1, 0.7, 1.0]), torch.tensor([0.2, 0.6, 0.9])
    yield (
        "three pairs",
        torch.tensor(f(*three)),
        torch.tensor((0.01 + 0.16 + 0.01 + 0.24 + 0.01 + 0.09) / 3),
        "(predicted - exact)^2 + exact (1 - exact), a mean over the pairs",
    )
    yield (
        "whole numbers of wins and losses, predicted as 1 and 0",
        torch.tensor(f(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))),
        torch.tensor(1.0),
        "sure and wrong costs 1",
    )
    yield (
        "one pair foretold exactly, one not",
        torch.tensor(f(torch.tensor([0.5, 0.9]), torch.tensor([0.5, 0.4]))),
        torch.tensor((0.25 + 0.25 + 0.24) / 2),
        "every pair counts",
    )


@check
def brier_floor(f):
    """Check `brier_floor(exact)`."""
    yield (
        "a plain number",
        kind(f(torch.ones(1))),
        float,
        "take .item() of the tensor",
    )
    yield (
        "probabilities .9 and .5",
        torch.tensor(f(torch.tensor([0.9, 0.5]))),
        torch.tensor(0.17),
        "p (1 - p): the variance of the outcome, not the smaller of p^2 and (1 - p)^2",
    )
    yield (
        "no doubt, no floor",
        torch.tensor(f(torch.tensor([1.0, 0.0]))),
        torch.tensor(0.0),
        "p (1 - p) at 0 and 1",
    )
    yield (
        "the largest floor",
        torch.tensor(f(torch.tensor([0.5]))),
        torch.tensor(0.25),
        "p (1 - p) at one half",
    )
    yield (
        "three pairs",
        torch.tensor(f(torch.tensor([0.2, 0.6, 0.9]))),
        torch.tensor((0.16 + 0.24 + 0.09) / 3),
        "a mean over the pairs, whatever their number",
    )


@check
def length_balanced(f):
    """Check `length_balanced(groups, length, rng)`."""
    short, long, longer = "1 a", "1 a b", "1 a b c"
    groups = [
        compared((long, short), (long, short), (short, long)),
        compared((longer, short), (long, long)),
        compared((longer, short), (short, longer), (long, short)),
    ]
    kept = f(groups, lambda text: len(text.split()), random.Random(0))
    by = [
        len(x.chosen.split()) - len(x.rejected.split()) for group in kept for x in group
    ]
    yield (
        "differences of length that are left",
        sorted(by),
        [-2, -1, 0, 1, 2],
        (
            "for each size of the difference keep as many with a longer as with a "
            "shorter winner; keep all of equal length"
        ),
    )
    yield (
        "never more than were there",
        len(kept) <= 3 and all(len(group) <= 3 for group in kept),
        True,
        "filter each group",
    )
    yield (
        "a group that is left empty is dropped",
        f([compared((long, short))], len, random.Random(0)),
        [],
        "no empty lists",
    )
    # Lengths in letters: three longer by 2 against one, two longer by 4 against two,
    # one by 6 against none.
    groups = [
        compared(("aaa", "b"), ("ccc", "d"), ("e", "fff"), ("gg gg", "h")),
        compared(("iii", "j"), ("kkkkk", "l"), ("m", "nnnnn"), ("o", "ppppp")),
        compared(("qq", "rr"), ("sssssss", "t")),
    ]
    left = [f(groups, len, random.Random(seed)) for seed in range(12)]
    wins = [
        sorted(len(x.chosen) - len(x.rejected) for group in kept for x in group)
        for kept in left
    ]
    yield (
        "balanced by another length, whatever the rng",
        wins,
        [[-4, -4, -2, 0, 2, 4, 4]] * 12,
        "ask the function length; as many +2 as -2, as many +4 as -4",
    )
    yield (
        "which of the three is kept is drawn",
        len(
            {x.chosen for kept in left for group in kept for x in group}
            & {"aaa", "ccc", "iii"}
        ),
        3,
        "shuffle before you cut, with rng",
    )
    yield (
        "the same rng keeps the same",
        f(groups, len, random.Random(3)) == left[3],
        True,
        "draw from rng, from nothing else",
    )
    order = [x for group in groups for x in group]
    at = [[order.index(x) for group in kept for x in group] for kept in left]
    yield (
        "what is kept stands where it stood, in its own group",
        (
            all(rows == sorted(rows) for rows in at),
            all(
                any(set(map(id, kept)) <= set(map(id, g)) for g in groups)
                for x in left
                for kept in x
            ),
        ),
        (True, True),
        "filter the groups, and leave them in order",
    )
    # The other way round: three shorter by 2 against one, and one by 4 against none.
    turned = [
        compared(("b", "aaa"), ("d", "ccc"), ("fff", "e"), ("h", "ggg")),
        compared(("l", "kkkkk")),
    ]
    left = [f(turned, len, random.Random(seed)) for seed in range(4)]
    yield (
        "more shorter winners than longer ones",
        [
            sorted(len(x.chosen) - len(x.rejected) for g in kept for x in g)
            for kept in left
        ],
        [[-2, 2]] * 4,
        "the smaller of both numbers, for either side",
    )
