"""Checks of 16_kl_reward."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, row, scaled
from minillama.course.checks.shared import normal, ragged, three_answers


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
    logits, other = normal(2, 3, 5, scale=4.0), normal(2, 3, 5, seed=1, scale=4.0)

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
    a, b = normal(3, 5, scale=6.0), normal(3, 5, seed=1, scale=6.0)
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
    mask, a, b = ragged(), normal(5, 6), normal(5, 6, seed=1)
    scores, by_hand = normal(5, seed=2), torch.zeros(5, 6)
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


@check
def objective(f):
    """Check `objective(logp, ref_logp, scores, beta)`."""
    ref_logp, scores = three_answers()
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
        normal(5).double().log_softmax(0),
        normal(5, seed=1).double().log_softmax(0),
    )
    worth = normal(5, seed=2, scale=9.0).double()
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
    ref_logp, scores = three_answers()
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
    five, worth = normal(5).log_softmax(0), normal(5, seed=1, scale=3.0)
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
