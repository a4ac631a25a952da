"""Checks of 20_overoptimisation."""

import itertools

import torch

from minillama.course.checks.case import check, error_of, scaled
from minillama.course.checks.shared import normal, three_answers


@check
def best_of_n_policy(f):
    """Check `best_of_n_policy(logp, scores, n)`."""
    logp, scores = three_answers()
    yield (
        "n = 1 is the policy itself",
        f(logp, scores, 1),
        logp,
        "one draw chooses nothing",
    )
    yield (
        "n = 2: .5^2, .8^2 - .5^2, 1 - .8^2",
        f(logp, scores, 2).exp(),
        torch.tensor([0.25, 0.39, 0.36]),
        "chance that all n score at most this much, less that all n score below",
    )
    yield (
        "the order of the answers does not matter",
        f(logp, -scores, 2).exp(),
        torch.tensor([0.75, 0.21, 0.04]),
        "accumulate in the order of the scores",
    )
    tied = f(logp, torch.tensor([0.0, 1.0, 1.0]), 2).exp()
    yield (
        "ties share .75 as .3 to .2",
        tied,
        torch.tensor([0.25, 0.45, 0.3]),
        "the first draw among equals wins",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(logp, scores[:2], 2)),
        ValueError,
        "one score an answer",
    )
    p, s = normal(7).double().softmax(0), torch.tensor([2, 0, 1, 2, 1, 5, 2]) / 20
    by_hand = torch.zeros(7, dtype=torch.float64)
    for draw in itertools.product(range(7), repeat=3):
        best = max(draw, key=lambda i: s[i])  # the first of the highest
        by_hand[best] += p[list(draw)].prod()
    yield (
        "all 343 draws of three from seven, with ties",
        f(p.log(), s, 3).exp(),
        by_hand,
        "F(s)^n - F(s-)^n, shared in the policy's proportions",
    )
    yield (
        "n = 50, scores far apart, in float64",
        (
            f(logp.float(), 1e6 * scores, 50).dtype,
            f(logp, 1e6 * scores, 50)[0].item() < -30,
        ),
        (torch.float64, True),
        "0.5^50 is small, not nothing",
    )
    never = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    yield (
        "answers without any chance are never the best",
        f(never, torch.tensor([0.0, 1.0, 1.0, 2.0]), 2),
        torch.tensor([0.25, 0.75, 0.0, 0.0]).log(),
        "-inf, no NaN: a level without a chance has no proportions",
    )


@check
def best_of_n_mean(f):
    """Check `best_of_n_mean(scores, gold, n)`."""
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.5]])
    gold = torch.tensor([[1.0, 2.0, 3.0, 7.0]])
    yield (
        "n = 1: the plain mean",
        f(scores, gold, 1),
        torch.tensor([3.25]),
        "every draw is the best of itself",
    )
    yield (
        "n = 4: the gold of the highest score",
        f(scores, gold, 4),
        torch.tensor([3.0]),
        "scores choose, gold reports",
    )
    yield (
        "n = 2: the mean over the six pairs",
        f(scores, gold, 2),
        torch.tensor([4.0]),  # (1 + 3 + 7 + 3 + 7 + 3) / 6
        "the i-th lowest is the best of C(i - 1, n - 1) of the C(M, n) subsets",
    )
    yield (
        "one number a prompt",
        tuple(f(scores.repeat(3, 1), gold.repeat(3, 1), 2).shape),
        (3,),
        "rows are prompts",
    )
    yield (
        "more than there are is refused",
        error_of(lambda: f(scores, gold, 5)),
        ValueError,
        "without repetition",
    )
    scores, gold = normal(3, 6), normal(3, 6, seed=1)
    scores[2, 4] = scores[2, 1]  # a tie: the first counts as the lowest
    scores[1, 5] = scores[1, 0]
    by_hand = [
        [
            sum(gold[b, max(c, key=lambda i: (scores[b, i], i))] for c in subsets)
            / len(subsets)
            for b in range(3)
        ]
        for n in (1, 2, 3, 5, 6)
        for subsets in [list(itertools.combinations(range(6), n))]
    ]
    yield (
        "three prompts of six answers, with ties: all subsets of 1, 2, 3, 5, 6",
        torch.stack([f(scores, gold, n) for n in (1, 2, 3, 5, 6)]),
        torch.tensor(by_hand),
        "each prompt in its own order; of equal scores the last counts as the highest",
    )
    yield (
        "float64, from whole numbers of gold too",
        f(scores, (9 * gold).long(), 2).dtype,
        torch.float64,
        "convert gold first",
    )
    first = f(scores, gold, 3)

    yield (
        "small gold and large gold",
        scaled(lambda c: f(scores, c * gold, 3)),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )

    yield (
        "small scores and large ones",
        scaled(lambda c: f(c * scores, gold, 3), 0),
        torch.stack([first] * 2),
        "only the order counts",
    )
