"""Checks of 14_policy_gradient."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, scaled
from minillama.course.checks.shared import normal, ragged


@check
def reinforce_loss(f):
    """Check `reinforce_loss(logprobs, advantages, response_mask)`."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -50.0, -70.0]])
    advantages = torch.tensor([[1.0, 2.0, -1.0], [-3.0, 90.0, 90.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    yield (
        "a sum over tokens, a mean over answers",
        f(logprobs, advantages, mask),
        torch.tensor(-5.0),  # row 1: -1 - 4 + 3 = -2, row 2: 12, minus their mean
        "add up advantage * logprob over the response tokens, divide by 2 answers",
    )
    yield (
        "the gradient of a logprob is -A / 2, and 0 off the response",
        gradient(lambda x: f(x, advantages, mask), logprobs),
        torch.tensor([[-0.5, -1.0, 0.5], [1.5, 0.0, 0.0]]),
        "a step down the loss must raise what has a positive advantage",
    )
    yield (
        "advantages are constants",
        gradient(lambda a: f(logprobs, a, mask), advantages),
        torch.zeros(2, 3),
        "detach them: they may come from a model that must not learn here",
    )
    broken = torch.where(mask, logprobs, math.nan)
    yield (
        "padding may be NaN",
        f(broken, advantages, mask),
        torch.tensor(-5.0),
        "0 * NaN is NaN; index with the mask",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(logprobs, advantages[:, :1], mask)),
        ValueError,
        "(B, 1) would broadcast",
    )
    mask, logprobs = ragged(), normal(5, 6)
    advantages = normal(5, 6, seed=1)
    by_hand = -sum(
        logprobs[b, t].item() * advantages[b, t].item() for b, t in mask.nonzero()
    )
    yield (
        "five answers of 3, 1, 4, 2 and 5 tokens",
        f(logprobs, advantages, mask),
        torch.tensor(by_hand / 5),
        "divide by the number of answers, whatever their lengths",
    )
    yield (
        "the slopes of all their tokens",
        gradient(lambda x: f(x, advantages, mask), logprobs),
        torch.where(mask, -advantages / 5, 0.0),
        "each token by its own advantage",
    )
    yield (
        "advantages may be NaN on padding, too",
        f(logprobs, torch.where(mask, advantages, math.nan), mask),
        torch.tensor(by_hand / 5),
        "index both with the mask",
    )
    yield (
        "float64 logprobs, a float64 loss",
        f(logprobs.double(), advantages.double(), mask).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "logprobs far below 0",
        f(50 * logprobs, advantages, mask),
        torch.tensor(50 * by_hand / 5),
        "no limit to a log-probability",
    )
    yield (
        "small advantages and large ones",
        scaled(lambda c: f(logprobs, c * advantages, mask)),
        torch.stack([torch.tensor(by_hand / 5)] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def leave_one_out(f):
    """Check `leave_one_out(scores)`."""
    yield (
        "three answers by hand",
        f(torch.tensor([1.0, 2.0, 6.0])),
        torch.tensor([4.0, 3.5, 1.5]),  # (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2
        "the mean of the *others*: leave the answer itself out",
    )
    yield (
        "rows are prompts",
        f(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])),
        torch.tensor([[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]),
        "sum over the last dimension only",
    )
    yield (
        "two answers are each other's baseline",
        f(torch.tensor([-1.0, 5.0])),
        torch.tensor([5.0, -1.0]),
        "divide by K - 1",
    )
    scores = torch.tensor([3.0, 1.0, 4.0, 1.0])
    slopes = [gradient(lambda x, i=i: f(x)[i], scores)[i].item() for i in range(4)]
    yield (
        "a baseline does not depend on its own answer",
        slopes,
        [0.0] * 4,
        "or the gradient shrinks: with the mean of all K by (K - 1) / K",
    )
    yield (
        "one answer alone is refused",
        error_of(lambda: f(torch.tensor([[3.0], [1.0]]))),
        ValueError,
        "there is no other; K - 1 is 0",
    )
    many = normal(2, 3, 4)
    others = [
        [[sum(row[:i] + row[i + 1 :]) / 3 for i in range(4)] for row in table]
        for table in many.tolist()
    ]
    yield (
        "two times three prompts of four answers",
        f(many),
        torch.tensor(others),
        "the last dimension holds answers, however many come before it",
    )
    yield (
        "one answer alone, without prompts, is refused",
        error_of(lambda: f(torch.tensor([3.0]))),
        ValueError,
        "look at the last size of the shape",
    )
    yield (
        "float64 scores, float64 baselines",
        f(many.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "small scores and large ones",
        scaled(lambda c: f(c * many)),
        torch.stack([torch.tensor(others)] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def rewards_to_go(f):
    """Check `rewards_to_go(rewards, response_mask)`."""
    rewards = torch.tensor([[1.0, 2.0, 3.0], [9.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True], [False, True, False]])
    yield (
        "1, 2, 3 leave 6, 5, 3; 0 off the response",
        f(rewards, mask),
        torch.tensor([[6.0, 5.0, 3.0], [0.0, 4.0, 0.0]]),
        "add up from the right, the token's own reward included, over response tokens",
    )
    yield (
        "a score at the end is everyone's",
        f(torch.tensor([[0.0, 0.0, 2.0, 7.0]]), torch.tensor([[True] * 3 + [False]])),
        torch.tensor([[2.0, 2.0, 2.0, 0.0]]),
        "what stands on padding is no reward",
    )
    yield (
        "off the response there may be NaN",
        f(torch.where(mask, rewards, math.nan), mask),
        torch.tensor([[6.0, 5.0, 3.0], [0.0, 4.0, 0.0]]),
        "0 * NaN is NaN; use torch.where",
    )
    yield (
        "rewards are data",
        gradient(lambda x: f(x, mask), rewards),
        torch.zeros(2, 3),
        "detach them",
    )
    yield (
        "a mask of floats is refused",
        error_of(lambda: f(rewards, mask.float())),
        TypeError,
        "compare mask.dtype",
    )
    mask, rewards = ragged(), normal(5, 6)
    by_hand = torch.zeros(5, 6)
    for b, t in mask.nonzero():
        by_hand[b, t] = sum(rewards[b, s] for s in range(t, 6) if mask[b, s])
    yield (
        "five answers of 3, 1, 4, 2 and 5 tokens",
        f(rewards, mask),
        by_hand,
        "each answer by itself, without discount",
    )
    yield (
        "the dtype is that of the rewards",
        [f(x, mask).dtype for x in (rewards, rewards.double())],
        [torch.float32, torch.float64],
        "convert back what you convert",
    )
    yield (
        "small rewards and large ones",
        scaled(lambda c: f(c * rewards, mask)),
        torch.stack([by_hand] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def gradient_variance(f):
    """Check `gradient_variance(gradients, chances)`."""
    three = torch.tensor([[0.0, 0.0], [2.0, 2.0], [2.0, 2.0]])
    chances = torch.tensor([0.5, 0.25, 0.25])
    yield (
        "half (0, 0), half (2, 2): each entry has the variance 1",
        f(three, chances),
        torch.tensor(2.0),
        "E of the squared length, 4, minus the squared length of the mean, 2",
    )
    yield (
        "weighed by the chances",
        f(torch.tensor([[0.0], [4.0]]), torch.tensor([0.75, 0.25])),
        torch.tensor(3.0),  # 0.25 * 16 - 1
        "an unweighted mean gives 4",
    )
    yield (
        "a constant added to all changes nothing",
        f(three + 10, chances),
        torch.tensor(2.0),
        "take the mean off",
    )
    yield (
        "gradients that agree do not scatter",
        f(torch.ones(2, 3), torch.tensor([0.5, 0.5])),
        torch.tensor(0.0),
        "the squared length of the mean must be taken off",
    )
    yield (
        "one chance an answer",
        error_of(lambda: f(three, chances[:2])),
        ValueError,
        "rows are answers",
    )
    g, p = normal(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    mean = [sum(p[n] * g[n, i] for n in range(5)) for i in range(3)]
    yield (
        "five answers, three entries",
        f(g, p),
        sum(p[n] * (g[n, i] - mean[i]) ** 2 for n in range(5) for i in range(3)),
        "the variance of each entry, weighed by the chances, then the sum",
    )
    yield (
        "float64 gradients, a float64 variance",
        f(g.double(), p.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    first = f(g, p)

    yield (
        "small gradients and large ones",
        scaled(lambda c: f(c * g, p), 2),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )
