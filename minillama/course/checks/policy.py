"""Checks of lessons 14 to 20: from the policy gradient to PPO and the best of n."""

import itertools
import math

import torch
import torch.nn.functional as F

from minillama.course.checks.case import (
    check,
    dtype_of,
    error_of,
    gradient,
    row,
    scaled,
    tiny_llama,
)
from minillama.data import PairExample
from minillama.exact import Responses
from minillama.ppo import Experience, PPOSettings
from minillama.reward_model import RewardModel, ValueModel
from minillama.world import (
    CLOSERS,
    FILLERS,
    OPENERS,
    REFUSALS,
    RISKY,
    RUDE,
    TASKS,
    Prompt,
)

# ------------------------------------------------------------------ 14 policy gradient


def _normal(*shape, seed=0, scale=1.0):
    """Return normal random numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


def _ragged():
    """Return a response_mask of five answers of 3, 1, 4, 2 and 5 tokens, (5, 6)."""
    starts, ends = (
        torch.tensor([[1], [2], [1], [4], [1]]),
        torch.tensor([4, 3, 5, 6, 6]),
    )
    at = torch.arange(6)
    return (at >= starts) & (at < ends[:, None])


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
    mask, logprobs = _ragged(), _normal(5, 6)
    advantages = _normal(5, 6, seed=1)
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
    many = _normal(2, 3, 4)
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
    mask, rewards = _ragged(), _normal(5, 6)
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
    g, p = _normal(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
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


# ---------------------------------------------------------------------------- 15 whiten


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
        f(_normal(5, 6), _ragged()),
        sum(_normal(5, 6)[b, t] for b, t in _ragged().nonzero()) / 15,
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
    big = _normal(40)
    first = f(big)

    yield (
        "values a thousand times as large, and more",
        scaled(lambda c: f(1e6 * c * big), 0),
        torch.stack([first] * 2),
        "the scale disappears",
    )


# ------------------------------------------------------------------------- 16 kl reward


def _three_tokens():
    """Return policy (.1, .2, .7) and reference (.5, .3, .2), as logprobs (1, 3)."""
    return row(0.1, 0.2, 0.7).log(), row(0.5, 0.3, 0.2).log()


@check
def exact_kl(f):
    """Check `exact_kl(logits, ref_logits)`."""
    policy, reference = (logprobs[None] for logprobs in _three_tokens())  # (1, 1, 3)
    hand = torch.tensor([[0.634897]])  # .1 ln(.1/.5) + .2 ln(.2/.3) + .7 ln(.7/.2)
    yield (
        "(.1, .2, .7) against (.5, .3, .2)",
        f(policy, reference),
        hand,
        "KL(policy || reference) weighs by the policy",
    )
    yield (
        "equal distributions",
        f(policy, policy),
        torch.zeros(1, 1),
        "every logratio is 0",
    )
    yield (
        "logits need not be normalised",
        f(policy + 3, reference - 2),
        hand,
        "log_softmax over the vocabulary",
    )
    yield (
        "per position",
        f(torch.cat((policy, reference), 1), torch.cat((reference, policy), 1)),
        torch.tensor([[0.634897, 0.675806]]),
        "sum over the vocabulary only, (B, T, V) -> (B, T)",
    )
    excluded = torch.tensor([[[0.0, 0.0, -math.inf]]])
    yield (
        "0 * log 0 is 0",
        f(excluded, torch.zeros(1, 1, 3)),
        torch.tensor([[math.log(1.5)]]),
        "set the logratio to 0 where the policy has probability 0",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(policy, reference[0, :, :1])),
        ValueError,
        "broadcasting would hide a mistake",
    )
    yield (
        "inf where the reference excludes a token that the policy may draw",
        f(torch.zeros(1, 2, 3), excluded.flip(-1).expand(1, 2, 3)),
        torch.full((1, 2), math.inf),
        "hide nothing: p * (log p + inf) is inf",
    )
    logits, other = _normal(2, 3, 5, scale=4.0), _normal(2, 3, 5, seed=1, scale=4.0)

    def kl(a, b):
        a, b = ([math.exp(x) for x in row] for row in (a.tolist(), b.tolist()))
        a, b = ([x / sum(row) for x in row] for row in (a, b))
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    by_hand = torch.tensor(
        [[kl(logits[b, t], other[b, t]) for t in range(3)] for b in range(2)]
    )
    yield (
        "two texts, three positions, five tokens",
        f(logits, other),
        by_hand,
        "sum over the vocabulary, the last dimension, and over nothing else",
    )
    yield (
        "one distribution alone",
        f(logits[0, 0], other[0, 0]),
        by_hand[0, 0],
        "any leading dimensions",
    )
    yield (
        "dtypes of float16, float32 and float64 logits",
        [f(x, x).dtype for x in (logits.half(), logits, logits.double())],
        [torch.float32, torch.float32, torch.float64],
        "at least float32",
    )
    tilt = torch.tensor([1.0, -1.0, 0.0])
    yield (
        "close distributions, a million times as large",
        1e6 * f(0.001 * tilt.double(), torch.zeros(3).double()),
        torch.tensor(0.333333),  # half the variance of the logratio, 2/3 of 1e-6
        "small is not 0",
    )


@check
def kl_estimate(f):
    """Check `kl_estimate(logprobs, ref_logprobs, kind)`."""
    policy, reference = row(0.5).log(), row(0.25).log()  # logratio = ln 2
    yield (
        "k1 is the default: ln(.5 / .25)",
        f(policy, reference),
        row(0.693147),
        "log pi - log pi_ref, in this order",
    )
    yield (
        "k2: (ln 2)^2 / 2",
        f(policy, reference, "k2"),
        row(0.240227),
        "half the squared logratio",
    )
    yield (
        "k3: 1/2 - 1 + ln 2",
        f(policy, reference, "k3"),
        row(0.193147),
        "exp(-logratio) - 1 + logratio",
    )
    policy, reference = _three_tokens()
    means = torch.stack(
        [
            (policy.exp() * f(policy, reference, kind)).sum()
            for kind in ("k1", "k2", "k3")
        ]
    )
    yield (
        "mean over the policy's tokens",
        means,
        torch.tensor([0.634897, 0.695250, 0.634897]),
        "k1 and k3 are unbiased for KL(policy || reference) = 0.6349, k2 is not",
    )
    yield (
        "k3 is never negative",
        (f(policy, reference, "k3") >= 0).all().item(),
        True,
        "its minimum is 0 at logratio 0",
    )
    slope = torch.stack(
        [
            gradient(lambda x, k=kind: f(x, torch.zeros(1, 1), k), row(-0.5))
            for kind in ("k1", "k2", "k3")
        ]
    )
    yield (
        "slopes at logratio -0.5",
        slope,
        torch.tensor([1.0, -0.5, 1 - math.exp(0.5)]).view(3, 1, 1),
        "gradients must flow through logprobs; lesson 16 compares them",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(torch.zeros(2, 2), torch.zeros(2, 1))),
        ValueError,
        "(B, 1) would broadcast",
    )
    yield (
        "an unknown kind is refused",
        error_of(lambda: f(policy, reference, "k4")),
        ValueError,
        "name the three kinds",
    )
    yield (
        "slopes in the reference at logratio -0.5",
        torch.stack(
            [
                gradient(lambda x, k=kind: f(row(-0.5), x, k), torch.zeros(1, 1))
                for kind in ("k1", "k2", "k3")
            ]
        ),
        -slope,
        "gradients flow through both arguments",
    )
    a, b = _normal(3, 5, scale=6.0), _normal(3, 5, seed=1, scale=6.0)
    for kind, by_hand in (
        ("k1", a - b),
        ("k2", (a - b) ** 2 / 2),
        ("k3", (b - a).exp() - 1 + a - b),
    ):
        yield (
            f"{kind} of three rows far from the reference",
            f(a, b, kind) / by_hand,
            torch.ones(3, 5),
            "token by token, with no limit",
        )
    yield (
        "float64 logprobs, float64 estimates",
        [f(a.double(), b.double(), kind).dtype for kind in ("k1", "k2", "k3")],
        [torch.float64] * 3,
        "compute in the dtype that comes",
    )
    near = row(0.05, -0.03)
    yield (
        "close to the reference: k2 and k3, a thousand times as large",
        torch.cat([1000 * f(near, 0 * near, kind) for kind in ("k2", "k3")]),
        torch.tensor([[1.25, 0.45], [1.229425, 0.454534]]),
        "small is not 0",
    )


@check
def kl_penalised_rewards(f):
    """Check `kl_penalised_rewards(scores, logprobs, …, response_mask, beta)`."""
    scores = torch.tensor([2.0, -1.0])
    logprobs = torch.tensor([[9.0, -1.0, -2.0, 7.0], [9.0, 8.0, -0.5, -3.0]])
    ref_logprobs = torch.tensor([[5.0, -1.5, -1.0, 3.0], [5.0, 5.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    # beta * .5, -1; 1, -2
    hand = torch.tensor([[0.0, -0.05, 2.1, 0.0], [0.0, 0.0, -0.1, -0.8]])
    rewards = f(scores, logprobs, ref_logprobs, mask, 0.1)
    yield (
        "two rows by hand",
        rewards,
        hand,
        "-beta * (logprobs - ref_logprobs), the score once on the last response token",
    )
    yield (
        "a row sums to score - beta * sum(k1)",
        rewards.sum(1),
        torch.tensor([2.05, -0.9]),
        "the score counts once, whatever the length",
    )
    yield (
        "beta = 0 leaves the score alone",
        f(scores, logprobs, ref_logprobs, mask, 0.0),
        torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, -1.0]]),
        "the last True of each row, not the last column",
    )
    garbage = torch.where(mask, logprobs, math.nan)
    yield (
        "nothing off the response counts",
        f(scores, garbage, ref_logprobs, mask, 0.1),
        hand,
        "0 * NaN is NaN; choose with torch.where",
    )
    leaf = logprobs.clone().requires_grad_()
    yield (
        "a reward is data",
        f(scores, leaf, ref_logprobs, mask, 0.1).requires_grad,
        False,
        "detach the result",
    )
    mask[0] = False
    yield (
        "a row without response token is refused",
        error_of(lambda: f(scores, logprobs, ref_logprobs, mask, 0.1)),
        ValueError,
        "its score has no place to go",
    )
    mask, a, b = _ragged(), _normal(5, 6), _normal(5, 6, seed=1)
    scores, by_hand = _normal(5, seed=2), torch.zeros(5, 6)
    for row_of, t in mask.nonzero().tolist():
        by_hand[row_of, t] = -0.7 * (a[row_of, t] - b[row_of, t])
    for row_of, last in enumerate((3, 2, 4, 5, 5)):
        by_hand[row_of, last] += scores[row_of]
    yield (
        "five answers of 3, 1, 4, 2 and 5 tokens",
        f(scores, a, b, mask, 0.7),
        by_hand,
        "each row's score on its own last token, beta as it is given",
    )
    yield (
        "nothing has a gradient: scores, logprobs, reference",
        [
            f(
                *(x.requires_grad_() for x in (scores.clone(), a.clone(), b.clone())),
                mask,
                0.7,
            ).requires_grad
        ],
        [False],
        "detach the result",
    )
    yield (
        "float64 in, float64 out",
        f(scores.double(), a.double(), b.double(), mask, 1.0).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "small scores and betas, and large ones",
        scaled(lambda c: f(c * scores, a, b, mask, 0.7 * c)),
        torch.stack([by_hand] * 2),
        "no limit and no rounding, anywhere",
    )


# ------------------------------------------------------------------------------- 17 gae


@check
def gae(f):
    """Check `gae(rewards, values, response_mask, gamma, lam)`."""
    last, full = row(0, 0, 0, 1), torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = f(last, last, full, gamma=0.9, lam=0.95)
    yield (
        "advantages by hand",
        advantages,
        row(0.657923, 0.7695, 0.9, 0.0),  # .855^2 * .9, .855 * .9, .9
        "start at the last token, where the next value and the next advantage are 0",
    )
    yield (
        "returns by hand",
        returns,
        row(0.657923, 0.7695, 0.9, 1.0),
        "advantages + values",
    )
    rewards, values = row(1, -2, 0.5, 3), row(0.3, 0.7, -0.2, 0.4)
    yield (
        "lam = 0 looks one step ahead",
        f(rewards, values, full, gamma=0.5, lam=0.0)[0],
        row(1.05, -2.8, 0.9, 2.6),
        "rewards[t] + gamma * values[t + 1] - values[t]",
    )
    yield (
        "lam = 1 forgets the values: Monte-Carlo returns",
        f(rewards, values, full, gamma=0.5, lam=1.0)[1],
        row(0.5, -1.0, 2.0, 3.0),
        "sum of gamma^k * rewards[t + k]",
    )
    mask = torch.tensor(
        [
            [False, True, True, True, True, False],
            [False, False, False, True, True, True],
        ]
    )
    padded = [
        torch.full((2, 6), 50.0).masked_scatter(mask, torch.cat((row[0], row[0, 1:])))
        for row in (rewards, values)
    ]
    got = torch.stack(f(*padded, mask, gamma=0.9, lam=0.8))  # (2, B, T)
    alone = [
        torch.stack(f(rewards[:, k:], values[:, k:], full[:, k:], gamma=0.9, lam=0.8))
        for k in (0, 1)
    ]
    yield (
        "padding changes nothing and holds 0",
        got,
        torch.cat((F.pad(alone[0], (1, 1)), F.pad(alone[1], (3, 0))), dim=1),
        (
            "zero rewards and values off the response before the loop, and the "
            "advantages after it"
        ),
    )
    leaf = values.clone().requires_grad_()
    yield (
        "both come detached",
        [x.requires_grad for x in f(rewards, leaf, full)],
        [False, False],
        "a policy loss must not train the value model",
    )
    yield (
        "a row without response token is refused",
        error_of(lambda: f(rewards, values, ~full)),
        ValueError,
        "look at response_mask before the loop",
    )
    yield (
        "gamma is 1 and lam 0.95 by default",
        torch.stack(f(rewards, values, full)),
        torch.stack(f(rewards, values, full, 1.0, 0.95)),
        "see the head of the definition",
    )
    leaf = rewards.clone().requires_grad_()
    yield (
        "rewards reach nothing either",
        [x.requires_grad for x in f(leaf, values, full)],
        [False, False],
        "detach both",
    )
    mask, r, v = _ragged(), _normal(5, 6), _normal(5, 6, seed=1)
    by_hand = torch.zeros(5, 6)
    for b, t in mask.nonzero().tolist():
        rest = [s for s in range(t, 6) if mask[b, s]]
        by_hand[b, t] = sum(
            0.63 ** (s - t)
            * (r[b, s] + 0.9 * (v[b, s + 1] if s + 1 in rest else 0.0) - v[b, s])
            for s in rest
        )
    yield (
        "five answers of 3, 1, 4, 2 and 5 tokens, as a sum over later errors",
        torch.stack(f(r, v, mask, 0.9, 0.7)),
        torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0))),
        "sum of (gamma * lam)^k * delta[t + k], row by row",
    )
    broken = [torch.where(mask, x, math.nan) for x in (r, v)]
    yield (
        "off the response there may be NaN",
        torch.stack(f(*broken, mask, 0.9, 0.7)),
        torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0))),
        "0 * NaN is NaN; use torch.where",
    )
    yield (
        "float64 in, float64 out",
        [x.dtype for x in f(r.double(), v.double(), mask)],
        [torch.float64] * 2,
        "compute in the dtype that comes",
    )
    pair = torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0)))

    yield (
        "small rewards and values, and large ones",
        scaled(lambda c: f(c * r, c * v, mask, 0.9, 0.7)),
        torch.stack([pair] * 2),
        "no limit and no rounding, anywhere",
    )

    short = f(r, v, mask, 0.9, 0.2)[0]
    twice = f(r, v, mask, 0.9, 0.4)[0]
    none = f(r, v, mask, 0.9, 0.0)[0]
    last = torch.tensor([3, 2, 4, 5, 5]) - 1  # the token before each answer's last
    rows = torch.tensor([0, 2, 3, 4])  # the answers of more than one token
    near = [(x - none)[rows, last[rows]] for x in (short, twice)]
    yield (
        "next to the end, lam 0.4 adds twice what lam 0.2 does",
        near[1],
        2 * near[0],
        "lam multiplies the next advantage, whatever its size",
    )


@check
def value_model(f):
    """Check `ValueModel(reward_model)`, the class."""
    reward_model = RewardModel(tiny_llama(), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model = f(reward_model)
    yield (
        "a new value model gives 0 everywhere",
        model(ids),
        torch.zeros(1, 5),
        "start the head at zero",
    )
    with torch.no_grad():
        model.value.weight.copy_(reward_model.score.weight)
        alone = model(ids)  # (1, 5)
        # (1, 4)
        prefixes = torch.stack([reward_model(ids[:, :t]) for t in range(1, 5)], dim=1)
        padded_ids = torch.tensor([[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0]])
        padded_mask = torch.tensor([[False] * 2 + [True] * 5, [True] * 5 + [False] * 2])
        padded = model(padded_ids, padded_mask)  # (2, 7)
    yield (
        "entry 0 has nothing before it",
        alone[:, 0],
        torch.zeros(1),
        "shift by one, filling with 0",
    )
    yield (
        "entry t is the score of the text before token t",
        alone[:, 1:],
        prefixes,
        "start from the reward model's body; position t - 1 has read tokens 0 .. t - 1",
    )
    yield (
        "left padding",
        padded[:1],
        F.pad(alone, (2, 0)),
        "pass the mask on; the first real token has value 0",
    )
    yield (
        "right padding",
        padded[1:],
        F.pad(alone, (0, 2)),
        "0 on padding, also just after the last token",
    )
    model(ids).sum().backward()
    yield (
        "the reward model is not trained",
        all(p.grad is None for p in reward_model.parameters()),
        True,
        "a deep copy of the body",
    )
    yield (
        "what it holds besides a body without lm_head",
        [name for name, _ in model.named_parameters() if name[:6] != "llama."],
        ["value.weight"],
        "one linear head, without bias",
    )
    yield (
        "the body has no lm_head",
        model.llama.lm_head,
        None,
        "copy_body leaves it out",
    )
    body = model.llama.embed_tokens.weight
    yield (
        "the gradient reaches the embeddings",
        bool(body.grad is not None and body.grad.abs().sum() > 0),
        True,
        "detach nothing",
    )
    with torch.no_grad():
        model.value.weight.mul_(2)
        twice = model(ids)
    yield (
        "twice the weights of its head, twice the values",
        twice,
        2 * alone,
        "the head is its own, and linear",
    )
    half = f(RewardModel(tiny_llama().bfloat16()))
    yield (
        "head and values of a bfloat16 body",
        (half.value.weight.dtype, dtype_of(lambda: half(ids))),
        (torch.float32, torch.float32),
        "the head stays float32: convert the states with .float()",
    )
    three = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [7, 3, 8, 0, 0]])
    real = torch.tensor(
        [[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    )
    with torch.no_grad():
        rows = [model(x[None, : m.sum()])[0] for x, m in zip(three, real, strict=True)]
        got = model(three, real)
    yield (
        "three texts of 5, 3 and 2 tokens, each as if alone",
        got,
        torch.stack([F.pad(x, (0, 5 - len(x))) for x in rows]),
        "row by row",
    )
    model.zero_grad()
    model(ids).sum().backward()
    with torch.no_grad():
        states = model.llama.hidden(ids)[:, :-1].sum(1)
    yield (
        "the head learns: its gradient is the sum of the states but the last",
        model.value.weight.grad,
        states,
        "detach no weight; requires_grad stays True",
    )


@check
def exact_values(f):
    """Check `exact_values(logp, rewards, responses, gamma)`.

    On three responses to the prompt [1]: 0 0, 2 and 0 2.
    """
    ids = torch.tensor([[1, 0, 0], [1, 2, 3], [1, 0, 2]])  # 2 ends a response, 3 pads
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    responses = Responses(ids, mask, mask & torch.tensor([False, True, True]))
    logp = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    rewards = torch.tensor(
        [[50.0, 0.0, -1.0], [50.0, 1.0, 50.0], [50.0, 0.0, 2.0]], dtype=torch.float64
    )
    values, advantages = f(logp, rewards, responses)
    # After the token 0: (0.2 * -1 + 0.3 * 2) / 0.5 = 0.8.
    # After the prompt: 0.5 * 1 + 0.5 * 0.8 = 0.9.
    yield (
        "values by hand, 0 off the response",
        values,
        torch.tensor([[0, 0.9, 0.8], [0, 0.9, 0], [0, 0.9, 0.8]]),
        (
            "the mean return of all responses with the same tokens before t, each "
            "weighted by its chance"
        ),
    )
    yield (
        "advantages by hand",
        advantages,
        torch.tensor([[0, -0.1, -1.8], [0, 0.1, 0], [0, -0.1, 1.2]]),
        "rewards[t] + values[t + 1] - values[t], 0 off the response",
    )
    values, advantages = f(logp, rewards, responses, gamma=0.5)
    yield (
        "gamma halves what comes one token later",
        torch.stack((values[0], advantages[0])),
        torch.tensor([[0, 0.7, 0.8], [0, -0.3, -1.8]]),
        "0.5 * 1 + 0.5 * (0.5 * 0.8) = 0.7; use gamma in both results",
    )
    # Every response of up to four tokens of 0, 1 and 2, where 2 ends one.
    ids, mask = [], []
    for text in itertools.product((0, 1, 2), repeat=4):
        end = text.index(2) + 1 if 2 in text else 4
        if text[end:] == (0,) * (4 - end):
            ids.append([1, *text])
            mask.append([False] + [True] * end + [False] * (4 - end))
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    N, real = len(ids), mask | (torch.arange(5) == 0)
    logp = _normal(N, scale=6.0).double().log_softmax(0)
    # A reward depends on the tokens so far: ids as digits.
    rewards = ((ids * torch.tensor([1, 3, 9, 27, 81])).cumsum(1) * 1.7).sin().double()
    by_hand = torch.zeros(2, N, 5, dtype=torch.float64)
    follow = torch.zeros(N, 6, dtype=torch.float64)
    for t in (4, 3, 2, 1):
        follow[:, t] = mask[:, t] * rewards[:, t] + 0.8 * follow[:, t + 1]
    for n, t in mask.nonzero().tolist():
        alike = [m for m in range(N) if mask[m, t] and ids[m, :t].equal(ids[n, :t])]
        p = logp[alike].exp()
        by_hand[0, n, t] = (p * follow[alike, t]).sum() / p.sum()
    later = F.pad(by_hand[0, :, 1:], (0, 1))
    by_hand[1] = (rewards + 0.8 * later - by_hand[0]) * mask
    got = f(logp, rewards, Responses(ids, real, mask), gamma=0.8)
    yield (
        "31 responses of up to four tokens",
        torch.stack(got),
        by_hand,
        "a state is all tokens before t, not the last one",
    )
    yield (
        "gamma is 1 by default",
        torch.stack(f(logp, rewards, Responses(ids, real, mask))),
        torch.stack(f(logp, rewards, Responses(ids, real, mask), 1.0)),
        "see the head of the definition",
    )
    low = f(logp.float(), rewards.float(), Responses(ids, real, mask))
    yield (
        "float64, both",
        [x.dtype for x in low],
        [torch.float64] * 2,
        "convert first",
    )
    leaf = logp.clone().requires_grad_()
    yield (
        "values are data",
        [x.requires_grad for x in f(leaf, rewards, Responses(ids, real, mask))],
        [False, False],
        "detach logp",
    )
    both = torch.stack(f(logp, rewards, Responses(ids, real, mask)))

    yield (
        "small rewards and large ones",
        scaled(lambda c: f(logp, c * rewards, Responses(ids, real, mask))),
        torch.stack([both] * 2),
        "no limit and no rounding, anywhere",
    )


# -------------------------------------------------------------------------- 18 ppo loss


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
    mask, new, old = _ragged(), _normal(5, 6), _normal(5, 6, seed=1)
    A = _normal(5, 6, seed=2)
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
    mask, new, old = _ragged(), _normal(5, 6, scale=2.0), _normal(5, 6, seed=1)
    R = _normal(5, 6, seed=2, scale=2.0)
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


def _three_answers():
    """Return logprobs and scores of three answers: of (.5, .3, .2), and (0, 1, 2)."""
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    return probabilities.log(), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


@check
def objective(f):
    """Check `objective(logp, ref_logp, scores, beta)`."""
    ref_logp, scores = _three_answers()
    logp = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log()
    yield (
        "the reference pays no KL: its mean score, 0.3 + 0.4",
        f(ref_logp, ref_logp, scores, 1.0),
        torch.tensor(0.7),
        "E[score] first",
    )
    yield (
        "a policy that left it: 1.6 - 0.5 * 0.6349",
        f(logp, ref_logp, scores, 0.5),
        torch.tensor(1.28255),
        "minus beta times the sum of p * (log p - log ref_p)",
    )
    yield (
        "beta = 0: the mean score alone",
        f(logp, ref_logp, scores, 0.0),
        torch.tensor(1.6),
        "beta multiplies the KL only",
    )
    yield (
        "its slope at the reference is that of the mean score",
        gradient(lambda x: f(x.log_softmax(0), ref_logp, scores, 1.0), ref_logp),
        torch.tensor([-0.35, 0.09, 0.26]),
        "the KL has its minimum there; nothing may be detached",
    )
    slope = gradient(lambda x: f(x.log_softmax(0), ref_logp, scores, 2.0), logp)
    # p (reward - its mean), with reward = score - 2 (log p - log ref_p)
    reward = scores - 2.0 * (logp - ref_logp)
    yield (
        "its slope where the policy has left the reference, beta = 2",
        slope,
        logp.exp() * (reward - (logp.exp() * reward).sum()),
        "gradient through score and KL alike",
    )
    never = torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64).log()
    yield (
        "an answer that the policy never gives: 0.75 - 0.5 * KL",
        f(never, ref_logp, scores, 0.5),
        torch.tensor(0.75 - 0.5 * (0.25 * math.log(0.5) + 0.75 * math.log(2.5))),
        "0 * log 0 = 0",
    )
    far = torch.tensor([1e-9, 1e-9, 1 - 2e-9], dtype=torch.float64).log()
    five = (
        _normal(5).double().log_softmax(0),
        _normal(5, seed=1).double().log_softmax(0),
    )
    worth = _normal(5, seed=2, scale=9.0).double()
    by_hand = [
        math.exp(a) * (s - 3.0 * (a - b))
        for a, b, s in zip(*(x.tolist() for x in (*five, worth)), strict=True)
    ]
    yield (
        "five answers at beta = 3, and three with a reference far away",
        torch.stack((f(*five, worth, 3.0), f(ref_logp, far, scores, 1.0))),
        torch.tensor(
            [
                sum(by_hand),
                0.7
                - sum(
                    p * (math.log(p) - q)
                    for p, q in zip((0.5, 0.3, 0.2), far.tolist(), strict=True)
                ),
            ]
        ),
        "no limit to the KL",
    )
    first = f(*five, worth, 3.0)

    yield (
        "small scores and betas, and large ones",
        scaled(lambda c: f(*five, c * worth, 3.0 * c)),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def optimal_policy(f):
    """Check `optimal_policy(ref_logp, scores, beta)`."""
    ref_logp, scores = _three_answers()
    best, height = f(ref_logp, scores, 1.0)
    yield (
        "weights .5, .3 e, .2 e^2, divided by their sum",
        best.exp(),
        torch.tensor([0.1790, 0.29194, 0.52906]),
        ("pi_ref * exp(score / beta), normalised; log-probabilities go in and out"),
    )
    yield (
        "J(pi*) = beta log Z = log 2.7933",
        height,
        torch.tensor(1.02722),
        "the logarithm of the sum before it is divided out",
    )
    colder, height = f(ref_logp, scores, 0.5)
    yield (
        "half the beta: weights .5, .3 e^2, .2 e^4",
        colder.exp(),
        torch.tensor([0.03667, 0.16256, 0.80077]),
        "the score is divided by beta",
    )
    yield (
        "and half the log of their sum, 13.636",
        height,
        torch.tensor(1.30637),
        "beta log Z, not log Z",
    )
    same, height = f(ref_logp, torch.full_like(scores, 3.0), 0.5)
    yield (
        "equal scores: nothing to gain, the reference stays",
        same,
        ref_logp,
        "a constant drops out when normalised",
    )
    yield (
        "and its objective is that score",
        height,
        torch.tensor(3.0),
        "no KL is paid",
    )
    far, _ = f(ref_logp, 1000 * scores, 1.0)
    yield (
        "scores of 2000 do not overflow",
        far.exp(),
        torch.tensor([0.0, 0.0, 1.0]),
        "use logsumexp",
    )
    yield (
        "beta = 0 is refused",
        error_of(lambda: f(ref_logp, scores, 0.0)),
        ValueError,
        "the optimum need not be unique",
    )
    five, worth = _normal(5).log_softmax(0), _normal(5, seed=1, scale=3.0)
    best, height = f(five, worth, 2.0)
    weights = [
        math.exp(a + s / 2) for a, s in zip(five.tolist(), worth.tolist(), strict=True)
    ]
    yield (
        "five answers at beta = 2",
        best.exp(),
        torch.tensor([w / sum(weights) for w in weights]),
        "pi_ref * exp(score / beta), normalised",
    )
    yield (
        "its objective is the height, and so is its mean score less 2 KL",
        torch.stack((height, (best.exp() * (worth - 2 * (best - five))).sum())),
        torch.tensor([2 * math.log(sum(weights))] * 2),
        "beta log Z",
    )
    yield ("float64", (best.dtype, height.dtype), (torch.float64,) * 2, "convert first")
    yield (
        "scores of -2000 do not vanish",
        f(ref_logp, -1000 * scores - 1e4, 1.0)[1],
        torch.tensor(-1e4 + math.log(0.5)),
        "use logsumexp",
    )
    yield (
        "small scores and betas, and large ones",
        scaled(lambda c: f(five, c * worth, 2.0 * c)[1]),
        torch.stack([height] * 2),
        "no limit and no rounding, anywhere",
    )
    yield (
        "answers that are all but impossible have their log-probability",
        f(ref_logp, 1000 * scores, 1.0)[0],
        torch.tensor([math.log(2.5) - 2000, math.log(1.5) - 1000, 0.0]),
        "no limit below",
    )


# ------------------------------------------------------------------------------- 19 ppo


@check
def response_logprobs(f):
    """Check `response_logprobs(model, ids, mask, response_mask)`."""
    model, zero = tiny_llama(), torch.zeros(1, 2)
    text, mask = torch.tensor([[3, 1, 4, 1, 5]]), torch.ones(1, 5, dtype=torch.bool)
    counted = torch.tensor([[False, False, True, True, True]])
    table = torch.log_softmax(model(text), -1)[0]  # (5, V)
    expected = torch.stack(
        [table[t - 1, text[0, t]] if t >= 2 else table.new_zeros(()) for t in range(5)]
    )[None]
    yield (
        "log p of a token stands where the token stands",
        f(model, text, mask, counted),
        expected,
        "position t - 1 predicts token t; 0 where the response is not",
    )
    ids = torch.cat((F.pad(text, (2, 0)), F.pad(text, (0, 2))))
    masks = [torch.cat((F.pad(x, (2, 0)), F.pad(x, (0, 2)))) for x in (mask, counted)]
    yield (
        "padding on either side changes nothing",
        f(model, ids, *masks),
        torch.cat((torch.cat((zero, expected), 1), torch.cat((expected, zero), 1))),
        "pass the mask to the model",
    )
    got = f(model, text, mask, counted)
    yield (
        "they carry a gradient",
        got.requires_grad,
        True,
        "PPO's loss climbs through them",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.lm_head.weight.mul_(20)
    three = torch.tensor([[3, 1, 4, 1, 5], [0, 9, 2, 6, 7], [8, 2, 10, 0, 0]])
    real = three > 0
    answers = real.clone()
    answers[:, :2] = answers[1, 2] = False
    wanted = torch.zeros(3, 5)
    for b, t in answers.nonzero().tolist():
        start = int(real[b].int().argmax())
        logits = model(three[b : b + 1, start:t])[0, -1]
        wanted[b, t] = logits.log_softmax(-1)[three[b, t]]
    got = f(model, three, real, answers)
    yield (
        "three texts, one padded on the left, one on the right, each token by its past",
        got,
        wanted,
        "row by row; log-probabilities may be far below 0",
    )
    shares, parameters = _normal(3, 5, seed=3), list(model.parameters())
    slopes = [
        torch.autograd.grad((x * shares).sum(), parameters, allow_unused=True)
        for x in (got, wanted)
    ]
    yield (
        "every weight feels it as it should",
        [
            a is not None and ((a - b).norm() < 0.01 * b.norm() + 1e-3).item()
            for a, b in zip(*slopes, strict=True)
        ],
        [True] * len(parameters),
        "detach nothing",
    )


class _Recorder:
    """A `Stepper` that takes no step: it keeps the losses and whose they are."""

    def __init__(self):
        self.losses, self.rows = [], []

    def step(self, loss, batch_ids):
        self.losses.append(loss.item())
        self.rows.append(list(batch_ids))


def _four_answers(policy):
    """Return an `Experience`: four answers of three tokens, advantages 1, 2, 3, 6."""
    ids = torch.tensor([[1, 4, 5, 6], [1, 7, 8, 9], [1, 5, 4, 3], [1, 9, 9, 2]])
    mask = torch.ones(4, 4, dtype=torch.bool)
    response_mask = torch.tensor([[False, True, True, True]]).expand(4, 4)
    with torch.no_grad():
        table = torch.log_softmax(policy(ids)[:, :-1], -1)  # (4, 3, V)
    logprobs = F.pad(table.gather(-1, ids[:, 1:, None]).squeeze(-1), (1, 0))
    worth = torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * response_mask
    return Experience(
        ids=ids,
        mask=mask,
        response_mask=response_mask,
        logprobs=logprobs,
        ref_logprobs=logprobs,
        values=torch.zeros(4, 4),
        safety=torch.zeros(4),
        helpfulness=torch.zeros(4),
        selected=torch.zeros(4),
        scores=torch.zeros(4),
        rewards=worth,
        advantages=worth,
        returns=worth,
    )


class _Follower(_Recorder):
    """A `Stepper` that works out each loss by hand, and then changes its model."""

    def __init__(self, model, by_hand):
        super().__init__()
        self.model, self.by_hand, self.expected, self.off = model, by_hand, [], []

    def step(self, loss, batch_ids):
        super().step(loss, batch_ids)
        wanted, weights = self.by_hand(batch_ids), list(self.model.parameters())
        self.expected.append(wanted.item())
        slopes = [
            torch.cat([x.flatten() for x in torch.autograd.grad(y, weights)])
            if y.requires_grad
            else torch.zeros(1)
            for y in (loss, wanted)
        ]
        apart, size = (slopes[0] - slopes[1]).norm(), slopes[1].norm()
        self.off.append((apart / (size + 0.01)).item())
        with torch.no_grad():
            for seed, weight in enumerate(weights):
                weight += _normal(*weight.shape, seed=seed, scale=0.02)


def _five_answers(policy):
    """Return an `Experience` in which everything differs, and the policy has moved."""
    starts, counted = torch.tensor([4, 3, 5, 6, 6]), _ragged()
    at, begins = torch.arange(6), torch.tensor([[0], [1], [0], [2], [0]])
    mask = (at >= begins) & (at < starts[:, None])
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 11, (5, 6), generator=generator) * mask
    with torch.no_grad():
        logprobs = _logprobs(policy, ids, mask)
    logprobs, ref_logprobs, values, rewards, advantages, returns = (
        (x + _normal(5, 6, seed=seed)) * counted
        for seed, x in enumerate((logprobs, logprobs, 0, 0, 2, 1))
    )
    each = torch.zeros(5)
    return Experience(
        ids=ids,
        mask=mask,
        response_mask=counted,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        safety=each,
        helpfulness=each,
        selected=each,
        scores=each,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )


def _logprobs(policy, ids, mask):
    """Return log p of each token but a row's first, where there is 0: (B, T)."""
    table = torch.log_softmax(policy(ids, mask)[:, :-1], -1)
    return F.pad(table.gather(-1, ids[:, 1:, None]).squeeze(-1), (1, 0))


def _follow(f, seed, settings):
    """Return both followers, the experience and the result of a step on it."""
    policy = tiny_llama()
    value_model = ValueModel(RewardModel(policy))
    with torch.no_grad():
        value_model.value.weight.copy_(_normal(1, 32))
    x, eps, outside = _five_answers(policy), settings.clip_eps, []
    counted = x.response_mask
    mean = x.advantages[counted].mean()
    spread = ((x.advantages[counted] - mean) ** 2).sum() / 14
    white = (x.advantages - mean) / spread.sqrt()

    def of_policy(rows):
        at, logprobs = counted[rows], _logprobs(policy, x.ids[rows], x.mask[rows])
        ratio, A = (logprobs - x.logprobs[rows])[at].exp(), white[rows][at]
        outside.append(((ratio < 1 - eps) | (ratio > 1 + eps)).float().mean().item())
        least = torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)
        return -least.sum() / len(A)

    def of_values(rows):
        at, v = counted[rows], value_model(x.ids[rows], x.mask[rows])
        v, old, R = v[at], x.values[rows][at], x.returns[rows][at]
        near = torch.minimum(torch.maximum(v, old - eps), old + eps)
        return torch.maximum((v - R) ** 2, (near - R) ** 2).sum() / len(R) / 2

    both = _Follower(policy, of_policy), _Follower(value_model, of_values)
    generator = torch.Generator().manual_seed(seed)
    return *both, outside, f(policy, value_model, *both, x, settings, generator)


@check
def ppo_step(f):
    """Check `ppo_step(policy, value_model, …, experience, settings, generator)`."""
    policy, (first, second) = tiny_llama(), (_Recorder(), _Recorder())
    value_model = ValueModel(RewardModel(policy))
    settings = PPOSettings(epochs=3, minibatches=2)
    clipped, value_error = f(
        policy,
        value_model,
        first,
        second,
        _four_answers(policy),
        settings,
        torch.Generator().manual_seed(0),
    )
    yield (
        "3 epochs of 2 minibatches are 6 steps",
        (len(first.losses), len(second.losses)),
        (6, 6),
        "for both models",
    )
    epochs = [sorted(first.rows[i] + first.rows[i + 1]) for i in (0, 2, 4)]
    yield (
        "every answer once an epoch",
        epochs,
        [[0, 1, 2, 3]] * 3,
        "a random order, cut into minibatches",
    )
    yield (
        "in an order that changes",
        len({tuple(rows) for rows in first.rows[::2]}) > 1,
        True,
        "a new one each epoch",
    )
    # 12 tokens with mean 3 and unbiased variance (4 + 1 + 0 + 9) * 3 / 11
    white = [(worth - 3) / math.sqrt(42 / 11) for worth in (1, 2, 3, 6)]
    expected = torch.tensor([-(white[a] + white[b]) / 2 for a, b in first.rows])
    yield (
        (
            "at ratio 1 the loss is minus the mean advantage, whitened over the whole "
            "batch"
        ),
        torch.tensor(first.losses),
        expected,
        "whiten once, before the minibatches are cut",
    )
    expected = torch.tensor(
        [
            ((a + b) / 4)
            for a, b in [((1, 4, 9, 36)[i], (1, 4, 9, 36)[j]) for i, j in second.rows]
        ]
    )
    yield (
        "values 0 miss the returns by 1, 2, 3, 6",
        torch.tensor(second.losses),
        expected,
        "returns stay as they are: whitened ones would teach the value model noise",
    )
    yield ("no ratio has moved yet", clipped, 0.0, "the mean clip fraction comes first")
    # (1 + 4 + 9 + 36) / 4 / 2
    yield (
        "and the mean value loss",
        torch.tensor(value_error),
        torch.tensor(6.25),
        "then this",
    )
    settings = PPOSettings(epochs=2, minibatches=3, clip_eps=0.35)
    first, second, outside, means = _follow(f, 0, settings)
    yield (
        "five answers in three minibatches: every answer once an epoch, for both",
        [sorted(sum(x.rows[i : i + 3], [])) for x in (first, second) for i in (0, 3)],
        [[0, 1, 2, 3, 4]] * 4,
        "cut unequal minibatches rather than leave an answer out",
    )
    yield (
        "losses of a policy that has moved, and moves, clip_eps 0.35",
        torch.tensor(first.losses),
        torch.tensor(first.expected),
        "logprobs of the policy as it is, those of the experience as old ones",
    )
    yield (
        "losses of values that are not 0, clip_eps 0.35",
        torch.tensor(second.losses),
        torch.tensor(second.expected),
        "old values and returns of the experience, and settings.clip_eps",
    )
    yield (
        "the slopes of both losses, in all weights",
        [max(x.off) < 1e-3 for x in (first, second)],
        [True, True],
        "detach nothing that the models compute",
    )
    yield (
        "the mean clip fraction, and the mean value loss",
        torch.tensor(means),
        torch.tensor([sum(x) / 6 for x in (outside, second.expected)]),
        "over all steps, clip_eps 0.35",
    )
    yield (
        "two plain numbers",
        [isinstance(x, float) for x in means],
        [True, True],
        "take .item()",
    )
    again, other = (_follow(f, seed, settings)[0].rows for seed in (0, 1))
    yield (
        "the generator decides about the order: the same again, and another",
        (again == first.rows, other == first.rows),
        (True, False),
        "hand the generator to torch.randperm",
    )


# ------------------------------------------------------------------ 20 overoptimisation


@check
def best_of_n_policy(f):
    """Check `best_of_n_policy(logp, scores, n)`."""
    logp, scores = _three_answers()
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
    p, s = _normal(7).double().softmax(0), torch.tensor([2, 0, 1, 2, 1, 5, 2]) / 20
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
    scores, gold = _normal(3, 6), _normal(3, 6, seed=1)
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


# ---------------------------------------------------------------------------- 21 direct


# Log-ratios of the chosen answers 1 and -1, of the rejected ones -2 and 0: gaps 3 and
# -1.
_FOUR = (
    torch.tensor([-2.0, -5.0]),
    torch.tensor([-6.0, -3.0]),
    torch.tensor([-3.0, -4.0]),
    torch.tensor([-4.0, -3.0]),
)


def _slope(f, argument, *rest):
    """The gradient of f on `_FOUR` in one of its four arguments, (2,)."""

    def of_one(x):
        return f(*(x if i == argument else y for i, y in enumerate(_FOUR)), *rest)

    return gradient(of_one, _FOUR[argument])


@check
def implicit_reward(f):
    """Check `implicit_reward(logprobs, ref_logprobs, beta)`."""
    logprobs, ref = torch.tensor([-2.0, -5.0]), torch.tensor([-3.0, -4.5])
    yield (
        "beta nats of log-ratio, one an answer",
        f(logprobs, ref, 0.5),
        torch.tensor([0.5, -0.25]),  # 0.5 * 1, 0.5 * -0.5
        "beta * (log pi - log pi_ref)",
    )
    yield (
        "a higher price, a higher reward",
        f(logprobs, ref, 3.0),
        torch.tensor([3.0, -1.5]),
        "multiply by beta",
    )
    yield (
        "the gradient in logprobs is beta",
        gradient(lambda x: f(x, ref, 3.0), logprobs),
        torch.tensor([3.0, 3.0]),
        "do not detach the policy",
    )
    yield (
        "the reference is a constant",
        gradient(lambda x: f(logprobs, x, 3.0), ref),
        torch.zeros(2),
        "detach it",
    )
    yield (
        "different shapes are refused",
        error_of(lambda: f(logprobs, ref[:, None], 1.0)),
        ValueError,
        "(B, 1) would broadcast to (B, B)",
    )
    a, b = _normal(5, scale=50.0), _normal(5, seed=1, scale=50.0)
    yield (
        "five answers far from the reference",
        f(a, b, 0.3),
        torch.tensor(
            [0.3 * (x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        ),
        "no limit, and no mean taken off",
    )
    yield (
        "the dtype is that of the logprobs",
        [f(x, x, 0.3).dtype for x in (a, a.double())],
        [torch.float32, torch.float64],
        "convert nothing",
    )
    yield (
        "a small beta and a large one",
        scaled(lambda c: f(a, b, 0.3 * c)),
        torch.stack([0.3 * (a - b)] * 2),
        "no limit and no rounding, anywhere",
    )


def four_slopes(f, four, strength, reduction):
    """The slopes of a loss of pairs in each of their log-probabilities: (4, B)."""

    def alone(x, i):
        return f(*(x if i == j else y for j, y in enumerate(four)), strength, reduction)

    return torch.stack(
        [gradient(lambda x, i=i: alone(x, i), four[i]) for i in range(4)]
    )


@check
def dpo_loss(f):
    """Check `dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, reduction)`."""
    yield (
        "gaps of 3 and -1 nats at beta = 0.5",
        f(*_FOUR, 0.5, "none"),
        torch.tensor([0.2014, 0.9741]),  # ln(1 + exp(-1.5)), ln(1 + exp(0.5))
        "-logsigmoid(beta * (log-ratio of chosen - log-ratio of rejected))",
    )
    yield (
        "the mean is the default",
        f(*_FOUR, 0.5),
        torch.tensor(0.58776),
        "average over the pairs",
    )
    yield (
        "the sum, at another beta",
        f(*_FOUR, 2.0, "sum"),
        torch.tensor(2.1294),  # 0.0025 + 2.1269
        "beta multiplies the gap, not the loss",
    )
    yield (
        "a policy equal to the reference has ln 2",
        f(_FOUR[2], _FOUR[3], _FOUR[2], _FOUR[3], 0.5),
        torch.tensor(math.log(2)),
        "subtract each side's own reference",
    )
    yield (
        "the slope is beta times the chance of the wrong order",
        torch.stack([_slope(f, i, 0.5, "sum") for i in (0, 1)]),
        # 0.5 * sigmoid(-1.5), 0.5 * sigmoid(0.5)
        torch.tensor([[-0.0912, -0.3112], [0.0912, 0.3112]]),
        "chosen is pushed up, rejected down, and most where the policy is wrong",
    )
    yield (
        "the reference is a constant",
        torch.stack([_slope(f, i, 0.5) for i in (2, 3)]),
        torch.zeros(2, 2),
        "detach it",
    )
    far = (torch.tensor([-900.0]), torch.tensor([-1.0]), *[torch.zeros(1)] * 2)
    yield (
        "a gap of -899 nats is no infinity",
        f(*far, 1.0),
        torch.tensor(899.0),
        "use logsigmoid: the log of sigmoid(-899) is log 0",
    )
    four = [_normal(5, seed=seed, scale=3.0) for seed in range(4)]
    gaps = (four[0] - four[2] - four[1] + four[3]).tolist()
    losses = torch.tensor([math.log1p(math.exp(-0.7 * x)) for x in gaps])
    yield (
        "five pairs: none, mean, sum",
        torch.cat([f(*four, 0.7, x).view(-1) for x in ("none", "mean", "sum")]),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "reduce the losses of the pairs",
    )
    slopes = -0.7 * torch.sigmoid(-0.7 * torch.tensor(gaps))
    for reduction, share in (("none", 1.0), ("mean", 0.2)):
        yield (
            f"slopes of the five, reduction {reduction}",
            four_slopes(f, four, 0.7, reduction),
            share * torch.stack((slopes, -slopes, 0 * slopes, 0 * slopes)),
            "up with the chosen, down with the rejected, and the reference stays",
        )
    yield (
        "float64 in, float64 out",
        f(*(x.double() for x in four), 0.7).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "a gap of 899 nats is won",
        10000 * f(far[1], far[0], far[2], far[3], 1.0),
        torch.tensor(0.0),
        "no limit to the gap",
    )


@check
def ipo_loss(f):
    """Check `ipo_loss(chosen, rejected, ref_chosen, ref_rejected, tau, reduction)`."""
    yield (
        "gaps of 3 and -1, target 2 at tau = 0.25",
        f(*_FOUR, 0.25, "none"),
        torch.tensor([1.0, 9.0]),
        "(gap - 1 / (2 tau))^2",
    )
    yield ("the mean is the default", f(*_FOUR, 0.25), torch.tensor(5.0), "average")
    yield (
        "the sum, at tau = 0.1: target 5",
        f(*_FOUR, 0.1, "sum"),
        torch.tensor(40.0),  # 4 + 36
        "tau sets the target, it does not multiply the gap",
    )
    yield (
        "beyond the target a chosen answer is pulled back",
        torch.stack([_slope(f, i, 0.25, "sum") for i in (0, 1)]),
        torch.tensor([[2.0, -6.0], [-2.0, 6.0]]),  # 2 (gap - 2)
        "a square, no hinge",
    )
    yield (
        "the reference is a constant",
        torch.stack([_slope(f, i, 0.25) for i in (2, 3)]),
        torch.zeros(2, 2),
        "detach it",
    )
    four = [_normal(5, seed=seed, scale=3.0) for seed in range(4)]
    gaps = four[0] - four[2] - four[1] + four[3]
    losses = torch.tensor([(x - 5 / 4) ** 2 for x in gaps.tolist()])
    yield (
        "five pairs at tau = 0.4: none, mean, sum",
        torch.cat([f(*four, 0.4, x).view(-1) for x in ("none", "mean", "sum")]),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "the target is 1 / 0.8; reduce the losses of the pairs",
    )
    slopes = 2 * (gaps - 5 / 4)
    for reduction, share in (("none", 1.0), ("mean", 0.2)):
        yield (
            f"slopes of the five, reduction {reduction}",
            four_slopes(f, four, 0.4, reduction),
            share * torch.stack((slopes, -slopes, 0 * slopes, 0 * slopes)),
            "both sides of a pair, and the reference stays",
        )
    yield (
        "float64 in, float64 out",
        f(*(x.double() for x in four), 0.4).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "a gap of 100 nats",
        f(*(torch.tensor([x]) for x in (40.0, -60.0, 0.0, 0.0)), 0.5),
        torch.tensor(9801.0),  # (100 - 1)^2
        "no limit to the gap",
    )
    yield (
        "a high price, tau = 2: the target is 1/4",
        f(*_FOUR, 2.0, "none"),
        torch.tensor([7.5625, 1.5625]),  # (3 - 1/4)^2, (-1 - 1/4)^2
        "1 / (2 tau), whatever tau is",
    )


@check
def kto_loss(f):
    """Check `kto_loss(logprobs, ref_logprobs, desirable, reference_kl, beta, …)`."""
    logprobs, ref = torch.tensor([-2.0, -6.0]), torch.tensor([-3.0, -4.0])
    good, point = torch.tensor([True, False]), torch.tensor(0.5)
    # log-ratios 1 and -2; from the reference point 0.5 and -2.5
    yield (
        "one good, one bad answer",
        f(logprobs, ref, good, point, 2.0, reduction="none"),
        torch.tensor([0.2689, 0.0067]),  # sigmoid(-1), sigmoid(-5)
        "a good answer wants to be above the reference point, a bad one below",
    )
    yield (
        "each kind has its weight; the mean is the default",
        f(logprobs, ref, good, point, 0.1, 2.0, 3.0),
        # (2 * sigmoid(-0.05) + 3 * sigmoid(-0.25)) / 2
        torch.tensor(1.14424),
        "desirable_weight on good ones, undesirable_weight on bad ones",
    )
    yield (
        "the sum",
        f(logprobs, ref, good, point, 2.0, reduction="sum"),
        torch.tensor(0.27563),
        "reduction",
    )
    yield (
        "good goes up, bad goes down",
        gradient(lambda x: f(x, ref, good, point, 2.0, 1.0, 5.0, "sum"), logprobs),
        # -2 * 0.2689 * 0.7311, 5 * 2 * 0.0067 * 0.9933
        torch.tensor([-0.3932, 0.0665]),
        "beta * weight * sigmoid * (1 - sigmoid), no logarithm",
    )
    yield (
        "reference and reference point are constants",
        [
            gradient(lambda x: f(logprobs, x, good, point, 2.0), ref).tolist(),
            gradient(lambda x: f(logprobs, ref, good, x, 2.0), point).item(),
        ],
        [[0.0, 0.0], 0.0],
        "detach both",
    )
    a, b = _normal(5, scale=3.0), _normal(5, seed=1, scale=3.0)
    kinds, weight = (
        torch.tensor([True, True, False, True, False]),
        (2.0, 2.0, 0.5, 2.0, 0.5),
    )
    signs = (1, 1, -1, 1, -1)
    chances = [
        1 / (1 + math.exp(sign * 0.7 * (x - y - 0.4)))
        for x, y, sign in zip(a.tolist(), b.tolist(), signs, strict=True)
    ]
    losses = torch.tensor([w * p for w, p in zip(weight, chances, strict=True)])

    def loss(x, reduction="mean"):
        return f(x, b, kinds, torch.tensor(0.4), 0.7, 2.0, 0.5, reduction)

    yield (
        "three good ones, two bad ones: none, mean, sum",
        torch.cat([loss(a, x).view(-1) for x in ("none", "mean", "sum")]),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "a mean over all answers, each by its own kind",
    )
    slopes = [
        -sign * 0.7 * w * p * (1 - p)
        for w, p, sign in zip(weight, chances, signs, strict=True)
    ]
    for reduction, share in (("none", 1.0), ("mean", 0.2)):
        yield (
            f"slopes of the five, reduction {reduction}",
            gradient(lambda x, r=reduction: loss(x, r), a),
            share * torch.tensor(slopes),
            "up with the good ones, down with the bad ones",
        )
    yield (
        "both weights are 1 by default",
        f(a, b, kinds, torch.tensor(0.4), 0.7),
        f(a, b, kinds, torch.tensor(0.4), 0.7, 1.0, 1.0),
        "see the head of the definition",
    )
    yield (
        "float64 in, float64 out",
        f(a.double(), b.double(), kinds, torch.tensor(0.4).double(), 0.7).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )


@check
def mismatched_kl(f):
    """Check `mismatched_kl(logprobs, ref_logprobs)`."""
    logprobs, ref = torch.tensor([-2.0, -3.0, -9.0]), torch.tensor([-4.0, -3.0, -8.0])
    yield (
        "the mean log-ratio",
        f(logprobs, ref),
        torch.tensor(1 / 3),  # (2 + 0 - 1) / 3
        "policy less reference",
    )
    yield (
        "but never below 0",
        f(ref, logprobs),
        torch.tensor(0.0),
        "a KL is not negative; cut the mean off, not its terms",
    )
    yield (
        "no gradient flows",
        gradient(lambda x: f(x, ref), logprobs),
        torch.zeros(3),
        "the reference point is a constant: detach",
    )
    a, b = _normal(9, scale=30.0) + 40, _normal(9, seed=1)
    yield (
        "nine answers that moved far",
        f(a, b),
        torch.tensor(
            sum(x - y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 9
        ),
        "the mean over all, with no limit above",
    )
    yield (
        "float64 in, float64 out",
        f(a.double(), b.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )


def _reads(model):
    """A list that gets the number of rows at each forward of a model."""
    rows = []
    model.embed_tokens.register_forward_hook(
        lambda module, arguments, output: rows.append(len(arguments[0]))
    )
    return rows


def _nats(model, ids, start):
    """log p(ids from start on), token by token."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0]  # (T, V)
    each = logits.log_softmax(1)
    return sum(each[t - 1, ids[t]].item() for t in range(start, len(ids)))


@check
def pair_logprobs(f):
    """Check `pair_logprobs(policy, ref_policy, pairs)`."""
    policy, ref = tiny_llama(), tiny_llama(n_heads=4)
    with torch.no_grad():
        for model in (policy, ref):
            model.lm_head.weight.mul_(30)
    long, short, other = [1, 3, 4, 5, 2], [1, 3, 6, 2], [1, 7, 8, 9, 10, 2]
    pairs = [
        PairExample(long, short, 0.0, True, True, 2),
        PairExample(other, [1, 7, 8, 2], 0.0, True, True, 3),
        PairExample([1, 3, 7, 2], short, 0.0, True, True, 2),
    ]
    wanted = torch.tensor(
        [
            [_nats(model, side(x), x.response_start) for x in pairs]
            for model in (policy, ref)
            for side in (lambda x: x.chosen, lambda x: x.rejected)
        ]
    )  # (4, 3)
    read = _reads(policy), _reads(ref)
    four = f(policy, ref, pairs)
    yield (
        "chosen and rejected of the policy, then of the reference",
        torch.stack(four),
        wanted,
        "sums over the answer's tokens, EOS included, the prompt and padding left out",
    )
    yield (
        "each model reads both sides in one forward, each text once",
        read,
        ([5], [5]),
        "concatenate chosen and rejected; the six sides are five texts",
    )
    yield (
        "the policy has a gradient, the reference none",
        [x.requires_grad for x in four],
        [True, True, False, False],
        "torch.no_grad around the reference's forward",
    )
    leaves = list(policy.parameters())
    sums = [
        torch.autograd.grad(x.sum(), leaves, retain_graph=True, allow_unused=True)
        for x in four[:2]
    ]
    tables = [
        [policy(torch.tensor([side(x)]))[0].log_softmax(-1) for x in pairs]
        for side in (lambda x: x.chosen, lambda x: x.rejected)
    ]
    by_hand = [
        sum(
            table[t - 1, ids[t]]
            for x, table in zip(pairs, side_tables, strict=True)
            for ids in [x.chosen if k == 0 else x.rejected]
            for t in range(x.response_start, len(ids))
        )
        for k, side_tables in enumerate(tables)
    ]
    slopes = [torch.autograd.grad(x, leaves, retain_graph=True) for x in by_hand]
    yield (
        "the gradient through chosen and through rejected, of every weight",
        [
            all(
                a is not None and (a - b).abs().max().item() < 1e-3
                for a, b in zip(got, wanted, strict=True)
            )
            for got, wanted in zip(sums, slopes, strict=True)
        ],
        [True, True],
        "all of the policy learns, from both sides",
    )
    two = [
        PairExample(other, long, 0.0, True, True, 3),
        PairExample(short, [1, 3, 9, 2], 0.0, True, True, 2),
    ]
    yield (
        "two pairs, of which each has other texts and another start",
        torch.stack(f(policy, ref, two)),
        torch.tensor(
            [
                [_nats(model, side(x), x.response_start) for x in two]
                for model in (policy, ref)
                for side in (lambda x: x.chosen, lambda x: x.rejected)
            ]
        ),
        "rejected answers in the order of the pairs, as the chosen ones",
    )


# ------------------------------------------------------------------------ 23 off policy


def _two_laws():
    """Two answers, of two tokens and of one: new and old logprobs, response_mask.

    The ratios are 2 and 3, and 1/2; the prompt token and the padding differ, too.
    """
    logprobs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -1.0, -4.0]])
    logratio = torch.tensor([[5.0, 2.0, 3.0], [5.0, 0.5, 7.0]]).log()
    mask = torch.tensor([[False, True, True], [False, True, False]])
    return logprobs, logprobs - logratio, mask


@check
def importance_weights(f):
    """Check `importance_weights(logprobs, sampler_logprobs, response_mask, …)`."""
    new, old, mask = _two_laws()
    yield (
        "answers: 2 * 3 and 1/2, the same at each of their tokens",
        f(new, old, mask),
        torch.tensor([[0.0, 6.0, 6.0], [0.0, 0.5, 0.0]]),
        "the trainer over the sampler; the product over response tokens alone",
    )
    yield (
        "tokens: each its own ratio",
        f(new, old, mask, level="token"),
        torch.tensor([[0.0, 2.0, 3.0], [0.0, 0.5, 0.0]]),
        "exp(logprobs - sampler_logprobs), 0 off the response",
    )
    yield (
        "the cap is on the answer, not on its tokens",
        f(new, old, mask, cap=2.5),
        torch.tensor([[0.0, 2.5, 2.5], [0.0, 0.5, 0.0]]),
        "first the product, then min(w, cap): capped tokens would give 2 * 2.5",
    )
    yield (
        "the cap on tokens",
        f(new, old, mask, level="token", cap=2.5),
        torch.tensor([[0.0, 2.0, 2.5], [0.0, 0.5, 0.0]]),
        "min(w, cap); weights below 1 stay",
    )
    yield (
        "drop: what is above the cap counts 0",
        torch.stack(
            [
                f(new, old, mask, level="token", cap=2.5, above="drop"),
                f(new, old, mask, cap=2.5, above="drop"),
            ]
        ),
        torch.tensor(
            [
                [[0.0, 2.0, 0.0], [0.0, 0.5, 0.0]],
                [[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]],
            ]
        ),
        "with level answer the whole answer is dropped",
    )
    yield (
        "weights are constants",
        torch.cat(
            (
                gradient(lambda x: f(x, old, mask), new),
                gradient(lambda x: f(new, x, mask), old),
            )
        ),
        torch.zeros(4, 3),
        "detach them: the slope comes from the log-probability they multiply",
    )
    yield (
        "off the response there may be NaN",
        f(torch.where(mask, new, math.nan), old, mask),
        torch.tensor([[0.0, 6.0, 6.0], [0.0, 0.5, 0.0]]),
        "0 * NaN is NaN; use torch.where before the sum and after the exp",
    )
    yield (
        "a token that the sampler cannot draw is refused",
        error_of(lambda: f(new, torch.where(mask, -math.inf, old), mask)),
        ValueError,
        "no weight can stand for it",
    )
    new, old = _normal(5, 6), _normal(5, 6, seed=1)
    mask = _ragged()
    each = torch.zeros(5, 6)
    for b, t in mask.nonzero().tolist():
        each[b, t] = math.exp(new[b, t] - old[b, t])
    whole = torch.zeros(5, 6)
    for b in range(5):
        whole[b, mask[b]] = each[b, mask[b]].prod()
    for level, w in (("token", each), ("answer", whole)):
        yield (
            f"five answers of 3, 1, 4, 2 and 5 tokens, level {level}",
            f(new, old, mask, level) / w.clamp(min=1e-9),
            mask.float(),
            "row by row, as they are: no mean is divided out",
        )
        yield (
            f"cap 0.5, level {level}, truncated and dropped",
            torch.stack(
                [f(new, old, mask, level, 0.5, x) for x in ("truncate", "drop")]
            ),
            torch.stack((w.clamp(max=0.5), torch.where(w <= 0.5, w, 0.0))),
            "a cap above alone: small weights stay as small as they are",
        )
    yield (
        "exactly at the cap",
        f(new, new, mask, "token", 1.0, "drop"),
        mask.float(),
        "dropped is what is above",
    )
    yield (
        "no cap by default",
        f(new + 3, old, mask, "token") / (each + 1e-9),
        mask * math.exp(3),
        "cap = inf leaves all as they are",
    )
    yield (
        "float64 in, float64 out",
        f(new.double(), old.double(), mask).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "e^400 is above every cap",
        f(400.0 * mask, 0 * old, mask, "token", 3.0),
        3.0 * mask,
        "exp overflows to inf, and inf is above the cap",
    )
    yield (
        "data, both levels",
        [
            f(new.clone().requires_grad_(), old, mask, x).requires_grad
            for x in ("token", "answer")
        ],
        [False, False],
        "detach",
    )
    yield (
        "a weight of e^20",
        f(20.0 * mask, 0 * old, mask, "token") / math.exp(20),
        mask.float(),
        "no cap unless one is given",
    )


@check
def effective_sample_size(f):
    """Check `effective_sample_size(weights)`."""
    yield (
        "equal weights: all of them",
        f(torch.full((8,), 0.25)),
        torch.tensor(8.0),
        "(sum of w)^2 / sum of w^2",
    )
    yield (
        "one weight alone",
        f(torch.tensor([0.0, 3.0, 0.0])),
        torch.tensor(1.0),
        "weights of 0 count nothing",
    )
    yield (
        "1, 2, 3: 36 / 14",
        f(torch.tensor([1.0, 2.0, 3.0])),
        torch.tensor(36 / 14),
        "square the sum, not the weights, in the numerator",
    )
    yield (
        "the unit does not matter",
        f(torch.tensor([100.0, 200.0, 300.0])),
        torch.tensor(36 / 14),
        "weights need not have a mean of 1",
    )
    yield (
        "all 0 is refused",
        error_of(lambda: f(torch.zeros(3))),
        ValueError,
        "0 / 0",
    )
    w = _normal(7).exp()
    yield (
        "seven weights, as they are, and a thousand times as large or small",
        torch.stack((f(w), f(1000 * w), f(w / 1000))),
        torch.tensor(sum(w.tolist()) ** 2 / sum(x * x for x in w.tolist())).expand(3),
        "the unit does not matter: add nothing anywhere",
    )
    yield (
        "float64 in, float64 out",
        f(w.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "0, 1, 2, 3: as 1, 2, 3",
        f(torch.tensor([0.0, 1.0, 2.0, 3.0])),
        torch.tensor(36 / 14),
        "a weight of 0 counts nothing, and the others as before",
    )


@check
def sampling_logprobs(f):
    """Check `sampling_logprobs(logits, temperature, top_p)`."""
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    logits = probs.log() + 4  # a constant that softmax takes off
    yield (
        "nothing cut: the softmax",
        f(logits).exp(),
        probs,
        "log-probabilities, not probabilities",
    )
    yield (
        "top-p 0.6 keeps 0.5 and 0.3, shared out anew",
        f(logits, top_p=0.6).exp(),
        torch.tensor([[0.625, 0.375, 0.0], [0.0, 0.0, 1.0]]),
        "divide by what was kept: the law must sum to 1, each row for itself",
    )
    yield (
        "temperature 1/2 squares the chances",
        f(logits, temperature=0.5).exp(),
        torch.tensor([[25.0, 9.0, 4.0], [4.0, 4.0, 36.0]])
        / torch.tensor([[38.0], [44.0]]),
        "logits / temperature, before the softmax",
    )
    yield (
        "first the temperature, then the cut",
        f(logits[:1], temperature=0.5, top_p=0.6).exp(),
        torch.tensor([[1.0, 0.0, 0.0]]),  # 25 / 38 = 0.66 is enough
        "top-p looks at the chances at that temperature",
    )
    yield (
        "the law of a sampler is a constant",
        gradient(f, logits),
        torch.zeros(2, 3),
        "detach it",
    )
    yield (
        "what top-p cuts off is -inf",
        f(logits, top_p=0.6).isinf().tolist(),
        [[False, False, True], [True, True, False]],
        "the logarithm of 0",
    )
    wide = _normal(4, 9, scale=2.0)
    for temperature, top_p in ((2.0, 1.0), (0.7, 0.9), (3.0, 0.5)):
        p = (wide / temperature).softmax(-1)
        for b in range(4):
            order = p[b].argsort(descending=True)
            before = p[b, order].cumsum(0) - p[b, order]
            p[b, order[before >= top_p]] = 0.0
        yield (
            f"four rows of nine, temperature {temperature}, top-p {top_p}",
            f(wide, temperature, top_p).exp(),
            p / p.sum(1, keepdim=True),
            "keep the likeliest until they reach top_p, row by row",
        )
    yield (
        "float64 in, float64 out",
        f(wide.double(), 0.7, 0.9).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "rare tokens, as logarithms, nothing cut",
        f(2 * wide),
        (2 * wide).log_softmax(-1),
        "small chances stay",
    )


@check
def squared_error(f):
    """Check `squared_error(gradients, chances, truth, n)`."""
    g = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    half, truth = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0])
    yield (
        "one answer: squared bias 0.25, variance 1.25",
        f(g, half, truth, 1),
        torch.tensor(1.5),
        "the mean is (1, 0.5); each of both is 1.118 away from it",
    )
    yield (
        "five answers: the variance alone is divided",
        f(g, half, truth, 5),
        torch.tensor(0.5),
        "more answers do not lower a bias",
    )
    yield (
        "weighed by the chances",
        f(torch.tensor([[0.0], [4.0]]), torch.tensor([0.75, 0.25]), truth[:1], 3),
        torch.tensor(1.0),  # no bias; variance 3
        "chances are those of the sampler, whatever the truth is of",
    )
    yield (
        "gradients that agree have a bias alone",
        f(torch.full((2, 2), 3.0), half, truth, 4),
        torch.tensor(8.0),
        "the squared length of (2, 2)",
    )
    yield (
        "no answers, no mean",
        error_of(lambda: f(g, half, truth, 0)),
        ValueError,
        "n is at least 1",
    )
    g, p = _normal(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    truth = _normal(3, seed=1)
    mean = [sum(p[n] * g[n, i] for n in range(5)).item() for i in range(3)]
    bias = sum((a - b) ** 2 for a, b in zip(mean, truth.tolist(), strict=True))
    spread = sum(
        p[n].item() * (g[n, i].item() - mean[i]) ** 2
        for n in range(5)
        for i in range(3)
    )
    yield (
        "five answers, three entries: means over 1, 2 and 7",
        torch.stack([f(g, p, truth, n) for n in (1, 2, 7)]),
        torch.tensor([bias + spread / n for n in (1, 2, 7)]),
        "squared bias, plus the variance over n",
    )
    yield (
        "float64 in, float64 out",
        f(g.double(), p.double(), truth.double(), 2).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    first = f(g, p, truth, 3)

    yield (
        "small gradients and large ones",
        scaled(lambda c: f(c * g, p, c * truth, 3), 2),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )


# ------------------------------------------------------------------------------ 22 grpo


@check
def group_advantages(f):
    """Check `group_advantages(scores, group_size, baseline, scale)`."""
    six = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    yield (
        "two groups of three, without the standard deviation",
        f(six, 3, scale="none"),
        torch.tensor([-2.0, -1.0, 3.0, -1.0, -1.0, 2.0]),  # the means are 3 and 1
        "groups are consecutive; subtract each group's own mean",
    )
    yield (
        "the mean of the others",
        f(six, 3, "others", "none"),
        torch.tensor([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]),
        "leave the answer itself out of its baseline",
    )
    yield (
        "three groups of two",
        f(six, 2, scale="none"),
        torch.tensor([-0.5, 0.5, 3.0, -3.0, -1.5, 1.5]),
        "group_size says how many consecutive scores belong together",
    )
    # variances (4 + 1 + 9) / 2 = 7 and (1 + 1 + 4) / 2 = 3
    roots = torch.tensor([7.0, 7.0, 7.0, 3.0, 3.0, 3.0]).sqrt()
    apart = torch.tensor([-2.0, -1.0, 3.0, -1.0, -1.0, 2.0])
    yield (
        "each group is divided by its own standard deviation",
        f(six, 3),
        apart / (roots + 1e-4),
        "the unbiased one, divisor G - 1, of each group and not of the batch",
    )
    yield (
        "the mean of the others, and the standard deviation of all",
        f(six, 3, "others"),
        1.5 * apart / (roots + 1e-4),
        "scale is the same for both baselines",
    )
    yield (
        "a group of equal scores gets zeros",
        f(torch.tensor([0.1, 0.1, 0.1, 0.0, 0.1, 0.2]), 3)[:3],
        torch.zeros(3),
        "add a small number to the standard deviation before you divide",
    )
    yield (
        "scores are constants",
        f(six.clone().requires_grad_(), 3).requires_grad,
        False,
        "detach them",
    )
    yield (
        "the dtype is that of the scores",
        (f(six.double(), 3).dtype, f(six, 3).dtype),
        (torch.float64, torch.float32),
        "compute in float64, return scores.dtype",
    )
    yield (
        "half a group is refused",
        error_of(lambda: f(six, 4)),
        ValueError,
        "the number of scores must be a multiple of group_size",
    )
    twelve = _normal(12, scale=0.01)
    for size in (2, 4, 6):
        groups = [twelve.tolist()[i : i + size] for i in range(0, 12, size)]
        means = [sum(group) / size for group in groups]
        roots = [
            math.sqrt(sum((x - m) ** 2 for x in group) / (size - 1)) + 1e-4
            for group, m in zip(groups, means, strict=True)
        ]
        for baseline, far in (("group", 1.0), ("others", size / (size - 1))):
            by_hand = [
                [far * (x - m), far * (x - m) / root]
                for group, m, root in zip(groups, means, roots, strict=True)
                for x in group
            ]
            yield (
                f"scores of 0.01, groups of {size}, baseline {baseline}: none and std",
                torch.stack(
                    [1000 * f(twelve, size, baseline, x) for x in ("none", "std")]
                ),
                1000 * torch.tensor(by_hand).T,
                "each group by itself, its standard deviation plus 1e-4",
            )
    yield (
        "by default the group's mean, over its standard deviation",
        f(twelve, 4),
        f(twelve, 4, "group", "std"),
        "see the head of the definition",
    )
    first = f(twelve, 3, "others", "none")

    yield (
        "small scores and large ones",
        scaled(lambda c: f(c * twelve, 3, "others", "none")),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def token_weights(f):
    """Check `token_weights(response_mask, average, length)`."""
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    yield (
        "each answer counts alike",
        f(mask),
        torch.tensor([[1 / 6], [1 / 2]]),
        "two answers, of three response tokens and of one: 1 / (2 * tokens)",
    )
    yield (
        "each token counts alike",
        f(mask, "batch"),
        torch.tensor([[1 / 4], [1 / 4]]),
        "four response tokens in all",
    )
    yield (
        "a constant length",
        f(mask, "constant", 5),
        torch.tensor([[1 / 10], [1 / 10]]),
        "1 / (answers * length), whatever the answers' lengths are",
    )
    yield (
        "a constant average needs a length",
        error_of(lambda: f(mask, "constant")),
        ValueError,
        "there is no length to divide by",
    )
    yield (
        "an answer without a token is refused",
        error_of(lambda: f(mask & torch.tensor([[True], [False]]))),
        ValueError,
        "1 / 0 is no weight",
    )
    five = _ragged()  # 3, 1, 4, 2 and 5 tokens
    yield (
        "five answers: each alike, each token alike, a constant length",
        torch.cat((f(five), f(five, "batch"), f(five, "constant", 8)), 1),
        torch.tensor([[1 / (5 * n), 1 / 15, 1 / 40] for n in (3, 1, 4, 2, 5)]),
        "B is the number of answers",
    )
    yield (
        "what comes back",
        [(x.dtype, tuple(x.shape)) for x in (f(five), f(five, "batch"))],
        [(torch.float32, (5, 1))] * 2,
        "one weight an answer, a float",
    )
    yield (
        "a constant length below some answers'",
        f(five, "constant", 2),
        torch.full((5, 1), 1 / 10),
        "the length that is given, no other",
    )


@check
def grpo_loss(f):
    """Check `grpo_loss(logprobs, old_logprobs, advantages, response_mask, …)`."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    A, zeros = torch.tensor([1.0, -2.0]), torch.zeros(2, 3)
    # ratios 1.5, 1, 0.5 of a good answer; 0.5 of a bad one, and padding
    logprobs = torch.tensor([[1.5, 1.0, 0.5], [0.5, 9.0, 9.0]]).log()
    yield (
        "at ratio 1 advantages that sum to 0 give a loss of 0",
        f(zeros, zeros, torch.tensor([-1.0, 1.0]), mask),
        torch.tensor(0.0),
        "each answer counts alike: first the mean over its own tokens",
    )
    yield (
        "and a gradient of -A / (answers * tokens)",
        gradient(lambda x: f(x, zeros, torch.tensor([-1.0, 1.0]), mask), zeros),
        torch.tensor([[1 / 6, 1 / 6, 1 / 6], [-1 / 2, 0.0, 0.0]]),
        "two answers, of three tokens and of one",
    )
    yield (
        "clipped, each answer alike",
        f(logprobs, zeros, A, mask),
        torch.tensor(0.35),  # -((1.2 + 1 + 0.5) / 3 - 2 * 0.8) / 2
        "minus the smaller of ratio * A and clip(ratio) * A",
    )
    yield (
        "each token alike",
        f(logprobs, zeros, A, mask, average="batch"),
        torch.tensor(-0.275),  # -(2.7 - 1.6) / 4
        "a mean over the four response tokens of the batch",
    )
    yield (
        "a constant length",
        f(logprobs, zeros, A, mask, average="constant", length=10),
        torch.tensor(-0.055),  # -(2.7 - 1.6) / 20
        "a sum over tokens, divided by 2 answers and by 10",
    )
    yield (
        "one ratio for the whole answer",
        f(logprobs, zeros, A, mask, 0.3, "sequence"),
        torch.tensor(0.2457),  # -(0.9086 - 2 * 0.7) / 2
        "exp of the mean logratio: the geometric mean of 1.5, 1 and 0.5 is 0.9086",
    )
    yield (
        "the width of the clip",
        f(logprobs, zeros, A, mask, 0.6),
        torch.tensor(0.0),  # -((1.5 + 1 + 0.5) / 3 - 2 * 0.5) / 2
        "use clip_eps",
    )
    broken = torch.where(mask, logprobs, math.nan)
    yield (
        "padding may be NaN",
        f(broken, zeros, A, mask),
        torch.tensor(0.35),
        "0 * NaN is NaN; set the logratio to 0 there",
    )
    yield (
        "old_logprobs are constants",
        gradient(lambda x: f(zeros, x, A, mask) + 0 * x.sum(), zeros),
        zeros,
        "detach them",
    )
    mask, new, old = (
        _ragged(),
        _normal(5, 6, scale=0.6),
        _normal(5, 6, seed=1, scale=0.6),
    )
    A, counts = _normal(5, seed=2), (3, 1, 4, 2, 5)
    share = {
        "answer": [1 / (5 * n) for n in counts],
        "batch": [1 / 15] * 5,
        "constant": [1 / 40] * 5,
    }
    for ratio, average in itertools.product(("token", "sequence"), share):
        loss, slope = 0.0, torch.zeros(5, 6)
        for b, n in enumerate(counts):
            at = mask[b].nonzero()[:, 0].tolist()
            apart = [(new[b, t] - old[b, t]).item() for t in at]
            if ratio == "sequence":
                apart = [sum(apart) / n] * n
            for t, x in zip(at, apart, strict=True):
                r, a, w = math.exp(x), A[b].item(), share[average][b]
                limited = min(max(r, 0.7), 1.3)
                loss -= w * min(r * a, limited * a)
                if r * a <= limited * a:
                    spread = [t] if ratio == "token" else at
                    slope[b, spread] -= w * r * a / len(spread)
        length = 8 if average == "constant" else None

        def of(x, ratio=ratio, average=average, length=length):
            return f(x, old, A, mask, 0.3, ratio, average, length)

        yield (
            f"five answers, ratio {ratio}, average {average}",
            of(new),
            torch.tensor(loss),
            "weights of token_weights, ratios of log_ratios, one advantage an answer",
        )
        yield (
            f"its slopes, ratio {ratio}, average {average}",
            gradient(of, new),
            slope,
            "the mean of an answer's logratios has a slope in each of them",
        )
    yield (
        "clip_eps 0.2, ratio token, average answer by default",
        f(new, old, A, mask),
        f(new, old, A, mask, 0.2, "token", "answer"),
        "see the head of the definition",
    )
    yield (
        "advantages are constants",
        gradient(lambda a: f(new, old, a, mask) + 0 * a.sum(), A),
        torch.zeros(5),
        "detach them",
    )
    yield (
        "ratios of e^3 of a bad answer, and of e^-3 of a good one",
        f(
            torch.tensor([[3.0], [-3.0]]),
            torch.zeros(2, 1),
            torch.tensor([-1.0, 1.0]),
            torch.ones(2, 1).bool(),
        ),
        torch.tensor((20.085537 - 0.049787) / 2),
        "no other clip than the one",
    )
    first = f(new, old, A, mask)

    yield (
        "small advantages and large ones",
        scaled(lambda c: f(new, old, c * A, mask)),
        torch.stack([first] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def kl_loss(f):
    """Check `kl_loss(logprobs, ref_logprobs, response_mask, average, length)`."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    logprobs = torch.tensor([[2.0, 1.0, 0.5], [4.0, 9.0, 9.0]]).log()
    # k3 of 2, 1, 0.5, 4: 0.1931, 0, 0.3069, 0.6363
    yield (
        "k3, each answer alike",
        f(logprobs, zeros, mask),
        torch.tensor(0.4015),  # (0.1931 + 0 + 0.3069) / 6 + 0.6363 / 2
        "1 / ratio - 1 + log(ratio), and the mean over answers of their means",
    )
    yield (
        "each token alike",
        f(logprobs, zeros, mask, "batch"),
        torch.tensor(0.28407),  # 1.1363 / 4
        "a mean over the four response tokens",
    )
    yield (
        "a constant length",
        f(logprobs, zeros, mask, "constant", 10),
        torch.tensor(0.056815),  # 1.1363 / 20
        "a sum over tokens, divided by 2 answers and by 10",
    )
    yield (
        "the gradient is (1 - 1 / ratio) * weight",
        gradient(lambda x: f(x, zeros, mask, "batch"), logprobs),
        torch.tensor([[1 / 8, 0.0, -1 / 4], [3 / 16, 0.0, 0.0]]),
        "a likelier token than the reference's is pushed down, a rarer one up",
    )
    yield (
        "the reference is a constant",
        gradient(lambda x: f(logprobs, x, mask) + 0 * x.sum(), zeros),
        zeros,
        "detach it",
    )
    broken = torch.where(mask, logprobs, math.nan)
    yield (
        "padding may be NaN",
        f(broken, zeros, mask, "batch"),
        torch.tensor(0.28407),
        "set the logratio to 0 there",
    )
    mask, a, b = _ragged(), _normal(5, 6), _normal(5, 6, seed=1)
    counts = (3, 1, 4, 2, 5)
    for average, weights in (
        ("answer", [1 / (5 * n) for n in counts]),
        ("batch", [1 / 15] * 5),
        ("constant", [1 / 40] * 5),
    ):
        value, slope = 0.0, torch.zeros(5, 6)
        for r, t in mask.nonzero().tolist():
            x = (a[r, t] - b[r, t]).item()
            value += weights[r] * (math.exp(-x) - 1 + x)
            slope[r, t] = weights[r] * (1 - math.exp(-x))
        length = 8 if average == "constant" else None
        yield (
            f"five answers, average {average}",
            f(a, b, mask, average, length),
            torch.tensor(value),
            "k3 of each token by its weight",
        )
        yield (
            f"its slopes, average {average}",
            gradient(lambda x, o=(average, length): f(x, b, mask, *o), a),
            slope,
            "detach the reference alone",
        )
    yield (
        "average answer by default",
        f(a, b, mask),
        f(a, b, mask, "answer"),
        "see the head of the definition",
    )


# ------------------------------------------------------------------- 24 process reward


@check
def step_labels(f):
    """Check `step_labels(prompt, text, ended)`."""
    prompt = Prompt("How do I boil an egg?", "boil an egg", False)
    a, b, c, d = TASKS["boil an egg"]

    def labels(*sentences, ended=True):
        return [bool(x) for x in f(prompt, " ".join(sentences), ended)]

    yield (
        "four steps in order, and the end",
        labels(a, b, c, d),
        [True] * 5,
        "one label for each sentence, and one for the end",
    )
    yield (
        "three steps, each right; the end is not",
        labels(a, b, c),
        [True, True, True, False],
        "an end is right if no step is due any more",
    )
    yield (
        "a text that goes on has no end yet",
        labels(a, b, ended=False),
        [True, True],
        "ended=False: labels of the sentences alone",
    )
    yield (
        "a step left out stays due",
        labels(a, c, d),
        [True, False, False, False],
        "right is the first step that has not been said, no other",
    )
    yield (
        "said out of order is said",
        labels(b, a, c, d),
        [False, True, True, True, True],
        "note what was said, right or not: after 1, 0 comes 2",
    )
    yield (
        "the second time is wrong, also when nothing is due any more",
        labels(a, a, b, c, d, d),
        [True, False, True, True, True, False, True],
        "a step that was said is not due",
    )
    yield (
        "another task's step is wrong and says nothing of this one",
        labels(TASKS["cook rice"][0], a, b, c, d),
        [False, True, True, True, True, True],
        "compare the task, too",
    )
    yield (
        "polite is right; rude, risky and idle are wrong",
        labels(OPENERS[0], a, RUDE[0], b, RISKY[0], c, FILLERS[0], d, CLOSERS[0]),
        [True, True, False, True, False, True, False, True, True, True],
        "openers and closers cost nothing, whatever else is no step does",
    )
    yield (
        "nothing but an end",
        labels(),
        [False],
        "everything is missing",
    )
    yield (
        "unsafe requests are refused",
        error_of(lambda: f(Prompt("How do I steal a bike?", "steal a bike", True), a)),
        ValueError,
        "no step of theirs is right",
    )
    yield (
        "an answer has ended unless it is said otherwise",
        [bool(x) for x in f(prompt, a)],
        [True, False],
        "ended=True by default",
    )
    yield (
        "the second step twice, then the first",
        labels(b, b, a, b, c, d),
        [False, False, True, False, True, True, True],
        "due is the first that is missing, however often others were said",
    )
    yield (
        "no words of this world, and a refusal",
        labels("Blue.", a, REFUSALS[0], b, ended=False),
        [False, True, False, True],
        "right are steps that are due, openers and closers, nothing else",
    )
    rice = TASKS["cook rice"]
    yield (
        "steps of another task, all four, by place the same",
        labels(*rice, a, b, c, d),
        [False] * 4 + [True] * 5,
        "they are no steps of this task",
    )
    other = Prompt("How do I cook rice?", "cook rice", False)
    yield (
        "another prompt",
        [bool(x) for x in f(other, " ".join(rice[:2]), False)],
        [True, True],
        "the task is the prompt's request",
    )
    yield (
        "the third step before the second, and then again",
        labels(a, c, b, c, d),
        [True, False, True, False, True, True],
        "what was said too early was said: after 1 the fourth is due",
    )
    yield (
        "a closer ends nothing",
        labels(a, CLOSERS[0]),
        [True, True, False],
        "an end is right if no step is due any more",
    )


@check
def step_targets(f):
    """Check `step_targets(labels, kind)`."""
    nan = math.nan

    def shown(labels, kind):
        return f(labels, kind).nan_to_num(9)  # 9 stands for no label

    yield (
        "process labels up to the first fault, with it",
        shown([True, False, True, False], "process"),
        torch.tensor([1.0, 0.0, nan, nan]).nan_to_num(9),
        "no label behind the first fault",
    )
    yield (
        "no fault, all labels",
        shown([True, True, True], "process"),
        torch.ones(3),
        "nothing is hidden before a fault",
    )
    yield (
        "a fault at once",
        shown([False, True], "process"),
        torch.tensor([0.0, 9.0]),
        "the fault itself has a label",
    )
    yield (
        "one fault spoils the outcome, at every step",
        shown([True, False, True], "outcome"),
        torch.zeros(3),
        "the outcome is right if all steps are, and it is said everywhere",
    )
    yield (
        "a right outcome",
        shown([True, True], "outcome"),
        torch.ones(2),
        "at every step",
    )
    yield (
        "two faults, the first in the middle",
        shown([True, True, False, False, True], "process"),
        torch.tensor([1.0, 1.0, 0.0, 9.0, 9.0]),
        "the first fault is the last label",
    )
    yield (
        "outcomes: a fault at the end, a fault at the beginning, one step alone",
        torch.cat(
            [shown(x, "outcome") for x in ([True, True, False], [False, True], [False])]
        ),
        torch.zeros(6),
        "all labels count, not the last one",
    )
    yield (
        "one step, right, and one step, wrong",
        torch.cat([shown([x], "process") for x in (True, False)]),
        torch.tensor([1.0, 0.0]),
        "labels become 1 and 0",
    )
    yield (
        "six steps, the last one wrong: outcome, process",
        torch.stack([shown([True] * 5 + [False], x) for x in ("outcome", "process")]),
        torch.tensor([[0.0] * 6, [1.0] * 5 + [0.0]]),
        "all steps count, however many",
    )


@check
def yes_no_scores(f):
    """Check `yes_no_scores(llama, ids, mask, at, yes_id, no_id)`."""
    llama = tiny_llama()
    ids = torch.tensor([[1, 4, 7, 8, 2], [1, 4, 8, 2, 3]])
    mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    at = torch.zeros_like(mask)
    at[0, 2] = at[0, 4] = at[1, 3] = True
    logprobs = llama(ids, mask).log_softmax(-1)
    difference = logprobs[..., 9] - logprobs[..., 10]
    yield (
        "log p(yes) - log p(no) at three places, row after row",
        f(llama, ids, mask, at, 9, 10),
        difference[at],
        "read it at the separator itself, where the next token is foreseen",
    )
    yield (
        "asked the other way round",
        f(llama, ids, mask, at, 10, 9),
        -difference[at],
        "yes less no",
    )
    weight = llama.lm_head.weight
    (slope,) = torch.autograd.grad(f(llama, ids, mask, at, 9, 10).sum(), weight)
    yield (
        "only the rows of yes and no are taught",
        [bool(x) for x in slope.abs().sum(1) > 0],
        [False] * 9 + [True] * 2,
        "the softmax's denominator cancels",
    )
    longer = torch.cat((torch.full((2, 2), 3), ids), 1)
    before = torch.zeros(2, 2, dtype=torch.bool)
    yield (
        "padding on the left changes nothing",
        f(llama, longer, *(torch.cat((before, x), 1) for x in (mask, at)), 9, 10),
        difference[at],
        "hand the mask to the model",
    )
    body = llama.embed_tokens.weight
    (slope,), (wanted,) = (
        torch.autograd.grad(x, body)
        for x in (
            f(llama, ids, mask, at, 3, 5).sum(),
            (logprobs[..., 3] - logprobs[..., 5])[at].sum(),
        )
    )
    yield (
        "ids 3 and 5: the gradient reaches the embeddings",
        slope,
        wanted,
        "detach nothing",
    )


@check
def step_loss(f):
    """Check `step_loss(scores, targets)`."""
    scores = torch.tensor([0.0, math.log(3), 50.0])
    targets = torch.tensor([1.0, 0.0, math.nan])
    yield (
        "p = 1/2 for a right step, 3/4 for a wrong one",
        f(scores, targets),
        torch.tensor((math.log(2) + math.log(4)) / 2),
        "-log p if it is right, -log(1 - p) if it is wrong",
    )
    yield (
        "the gradient is (p - y) / n, and 0 where nobody gave a label",
        gradient(lambda x: f(x, targets), scores),
        torch.tensor([-0.25, 0.375, 0.0]),
        "a mean over the labelled steps only",
    )
    yield (
        "far out it stays finite",
        f(torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 1.0])),
        torch.tensor(100.0),
        "the log of a sigmoid that is 0 is -inf: use logsigmoid",
    )
    yield (
        "targets between 0 and 1 are chances",
        f(torch.zeros(1), torch.tensor([0.3])),
        torch.tensor(math.log(2)),
        "y log p + (1 - y) log(1 - p)",
    )
    yield (
        "no label at all is refused",
        error_of(lambda: f(scores, torch.full((3,), math.nan))),
        ValueError,
        "a mean over nothing",
    )
    x, nan = _normal(7, scale=4.0), math.nan
    y = torch.tensor([0.3, 1.0, nan, 0.0, 0.9, nan, 0.5])
    known = [
        (s, t) for s, t in zip(x.tolist(), y.tolist(), strict=True) if not math.isnan(t)
    ]
    yield (
        "seven steps, five labels, some between 0 and 1",
        f(x, y),
        torch.tensor(sum(math.log1p(math.exp(s)) - t * s for s, t in known) / 5),
        "y log p + (1 - y) log(1 - p), a mean over the five",
    )
    yield (
        "their slopes",
        gradient(lambda s: f(s, y), x),
        torch.where(y.isnan(), 0.0, (torch.sigmoid(x) - y.nan_to_num()) / 5),
        "(p - y) / 5",
    )
    yield (
        "no limit: a score of 500 on a wrong step",
        f(torch.tensor([500.0, 7.0]), torch.tensor([0.0, nan])),
        torch.tensor(500.0),
        "the version with logits",
    )
    for target in (2.0, -0.5):
        yield (
            f"{target} is no target",
            error_of(lambda t=target: f(torch.zeros(2), torch.tensor([1.0, t]))),
            ValueError,
            "targets are in [0, 1], or NaN",
        )
    yield (
        "float64 in, float64 out",
        f(x.double(), y.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "sure and right, at 4 and at 5",
        torch.stack([f(torch.tensor([s]), torch.ones(1)) for s in (4.0, 5.0)]),
        torch.tensor([-4.0, -5.0]).exp().log1p(),
        "small is not 0",
    )


@check
def answer_scores(f):
    """Check `answer_scores(scores, how)`."""
    scores = [torch.tensor([0.0, 0.0, 0.0]), torch.tensor([2.0, -1.0, 3.0])]
    yield (
        "three times one half is one eighth",
        f(scores, "product"),
        torch.tensor([math.log(1 / 8), math.log(0.880797 * 0.268941 * 0.952574)]),
        "the log of the product of sigmoids",
    )
    yield ("the worst step", f(scores, "min"), torch.tensor([0.0, -1.0]), "log-odds")
    yield ("the last step", f(scores, "last"), torch.tensor([0.0, 3.0]), "log-odds")
    far = [torch.tensor([-200.0]), torch.tensor([-300.0])]
    yield (
        "hopeless ones still differ",
        f(far, "product"),
        torch.tensor([-200.0, -300.0]),
        "logsigmoid: a product of sigmoids would be 0 for both",
    )
    yield (
        "nothing said, nothing right",
        f([torch.zeros(0), torch.zeros(1)], "min"),
        torch.tensor([-math.inf, 0.0]),
        "a text without a step scores -inf",
    )
    empty = [torch.zeros(0), torch.tensor([4.0, -2.0, 1.0, -5.0]), torch.tensor([2.0])]
    for how, by_hand in (
        (
            "product",
            [-sum(math.log1p(math.exp(-x)) for x in s) for s in ((4, -2, 1, -5), (2,))],
        ),
        ("min", [-5.0, 2.0]),
        ("last", [-5.0, 2.0]),
    ):
        yield (
            f"no step, four steps, one step: {how}",
            f(empty, how),
            torch.tensor([-math.inf, *by_hand]),
            "each text by itself, -inf where nothing was said",
        )
    yield (
        "the lowest score first, the highest last",
        torch.stack(
            [f([torch.tensor([-3.0, 0.5, 6.0])], x)[0] for x in ("min", "last")]
        ),
        torch.tensor([-3.0, 6.0]),
        "log-odds as they are",
    )
    yield (
        "far out, both ways: product, min, last",
        torch.stack(
            [f([torch.tensor([-90.0, 90.0])], x)[0] for x in ("product", "min", "last")]
        ),
        torch.tensor([-90.0, -90.0, 90.0]),
        "no limit",
    )
