"""Checks of 13_two_rewards."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, scaled
from minillama.course.checks.shared import normal


@check
def centring_loss(f):
    """Check `centring_loss(chosen_scores, rejected_scores, reduction)`."""
    chosen, rejected = torch.tensor([2.0, 1.0, -2.0]), torch.tensor([1.0, -1.0, 0.5])
    hand = torch.tensor([9.0, 0.0, 2.25])  # (2 + 1)^2, (1 - 1)^2, (-1.5)^2
    yield (
        "one loss per pair",
        f(chosen, rejected, reduction="none"),
        hand,
        "the square of chosen + rejected",
    )
    yield (
        "the mean is the default, sum the other",
        torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
        torch.tensor([3.75, 11.25]),
        "square first, then the mean over the pairs",
    )
    yield (
        "it does not ask which side won",
        f(rejected, chosen, reduction="none"),
        hand,
        "a sum, no difference",
    )
    slopes = torch.stack(
        (
            gradient(lambda x: f(x, rejected, "sum"), chosen),
            gradient(lambda x: f(chosen, x, "sum"), rejected),
        )
    )
    yield (
        "it pulls both scores of a pair alike, the harder the further",
        slopes,
        torch.tensor([[6.0, 0.0, -3.0]] * 2),
        "2 (chosen + rejected), for both",
    )
    yield (
        "scores (B, 1) are refused",
        error_of(lambda: f(chosen[:, None], rejected)),
        ValueError,
        "(B, B) by broadcasting",
    )
    yield (
        "integer scores are refused",
        error_of(lambda: f(chosen.long(), rejected.long())),
        TypeError,
        "floating point only",
    )
    yield (
        "NaN is refused",
        error_of(lambda: f(chosen * math.nan, rejected)),
        ValueError,
        "finite scores only",
    )
    a, b = normal(7, scale=40.0), normal(7, seed=1, scale=40.0)
    squares = torch.tensor(
        [(x + y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    )
    yield (
        "seven pairs far from 0: none, mean, sum",
        torch.cat([f(a, b, x).view(-1) for x in ("none", "mean", "sum")]),
        torch.cat((squares, squares.mean().view(1), squares.sum().view(1))),
        "a square, with no limit",
    )
    for reduction, share in (("none", 1.0), ("mean", 1 / 7)):
        yield (
            f"both scores feel it, reduction {reduction}",
            torch.stack(
                (
                    gradient(lambda x, r=reduction: f(x, b, r), a),
                    gradient(lambda x, r=reduction: f(a, x, r), b),
                )
            ),
            share * 2 * (a + b).expand(2, 7),
            "detach neither",
        )
    yield (
        "float64 scores, a float64 loss",
        f(a.double(), b.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "small scores and large ones",
        scaled(lambda c: f(c * a, c * b, "none"), 2),
        torch.stack([squares] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def score_normalisation(f):
    """Check `score_normalisation(scores, centre_only)`."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    yield (
        "mean and standard deviation of 1, 2, 3, 4",
        torch.tensor(f(scores)),
        torch.tensor([2.5, 1.290994]),
        "the unbiased one, sqrt(5 / 3): divide by N - 1",
    )
    yield ("two plain numbers", [type(x) for x in f(scores)], [float, float], "item()")
    yield (
        "a mean below 0 keeps its sign",
        torch.tensor(f(-scores)),
        torch.tensor([-2.5, 1.290994]),
        "the mean, no size",
    )
    yield (
        "centred only",
        f(scores, centre_only=True),
        (2.5, 1.0),
        "the std is 1.0, so that nothing is rescaled",
    )
    yield (
        "one score can be centred",
        f(torch.tensor([7.0]), centre_only=True),
        (7.0, 1.0),
        "this needs no std",
    )
    far = torch.tensor([1e6 + 1, 1e6 + 2, 1e6 + 3])
    yield (
        "an offset of a million",
        torch.tensor(f(far, True)[0] - 1e6),
        torch.tensor(2.0),
        "sum in float64",
    )
    yield (
        "equal scores have no scale",
        error_of(lambda: f(torch.ones(3))),
        ValueError,
        "refuse an std of 0",
    )
    yield (
        "one score has no std",
        error_of(lambda: f(torch.ones(1))),
        ValueError,
        "two different ones are needed",
    )
    yield (
        "NaN is refused",
        error_of(lambda: f(scores * math.nan, True)),
        ValueError,
        "finite scores only",
    )
    yield (
        "no score at all is refused",
        error_of(lambda: f(scores[:0], True)),
        ValueError,
        "at least one",
    )
    again = torch.tensor([1.0, 1.0, 1.0, 5.0, 2.0])
    yield (
        "1, 1, 1, 5, 2, in float64 too",
        torch.tensor([f(again), f(again.double())]),
        torch.tensor([[2.0, 1.732051]] * 2),  # sqrt((3 + 9) / 4)
        "equal scores count each",
    )
    yield (
        "a thousandth of them",
        torch.tensor(f(again / 1000)[1] * 1000),
        torch.tensor(1.732051),
        "add nothing to the std",
    )
    yield (
        "the mean of tiny scores, 70000 times as large",
        torch.tensor(f(again / 7e4)[0] * 7e4),
        torch.tensor(2.0),
        "round nothing",
    )
    yield (
        "mean and std of small scores and large ones",
        scaled(lambda c: torch.tensor(f(c * again))),
        torch.stack([torch.tensor([2.0, 1.732051])] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def safety_label_loss(f):
    """Check `safety_label_loss(scores, labels, reduction)`."""
    scores, labels = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, True])
    # ln(1 + exp(-1)), ln(1 + e), ln 2
    hand = torch.tensor([0.313262, 1.313262, 0.693147])
    yield (
        "1 is safe",
        f(scores, labels, reduction="none"),
        hand,
        "a high score and the label 1 agree",
    )
    yield (
        "mean over the answers",
        f(scores, labels),
        torch.tensor(0.773224),
        "divide by B",
    )
    yield (
        "labels may be 0.0 and 1.0",
        f(scores, labels.float(), reduction="none"),
        hand,
        "convert to the scores' dtype",
    )
    yield (
        "no overflow",
        f(torch.tensor([-90.0]), torch.tensor([1.0])),
        torch.tensor(90.0),
        "the version with logits",
    )
    yield (
        "labels (B, 1) are refused",
        error_of(lambda: f(scores, labels[:, None])),
        ValueError,
        "(B, B) by broadcasting",
    )
    x = normal(7, scale=4.0)
    y = torch.tensor([0.0, 1.0, 0.3, 0.5, 0.9, 0.0, 1.0])
    losses = torch.tensor(
        [
            math.log1p(math.exp(s)) - t * s
            for s, t in zip(x.tolist(), y.tolist(), strict=True)
        ]
    )
    yield (
        "seven answers, some labels between 0 and 1: none, mean, sum",
        torch.cat([f(x, y, r).view(-1) for r in ("none", "mean", "sum")]),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "-label log p - (1 - label) log(1 - p)",
    )
    for reduction, share in (("none", 1.0), ("mean", 1 / 7), ("sum", 1.0)):
        yield (
            f"its slope is p - label, reduction {reduction}",
            gradient(lambda s, r=reduction: f(s, y, r), x),
            share * (torch.sigmoid(x) - y),
            "detach nothing",
        )
    yield (
        "no limit: scores of 500 and -500, wrongly labelled",
        f(torch.tensor([500.0, -500.0]), torch.tensor([False, True]), "none"),
        torch.tensor([500.0, 500.0]),
        "the version with logits",
    )
    yield (
        "float64 scores, a float64 loss",
        f(x.double(), y > 0.5).dtype,
        torch.float64,
        "convert the labels to the scores' dtype",
    )
    yield (
        "losses at scores 4 and -5, rightly labelled",
        f(torch.tensor([4.0, -5.0]), torch.tensor([True, False]), "none"),
        torch.tensor([-4.0, -5.0]).exp().log1p(),
        "small is not 0",
    )


@check
def select_reward(f):
    """Check `select_reward(safety, helpfulness, is_safety_prompt, threshold)`."""

    def one(safety, helpfulness, flag, **threshold):
        return f(
            torch.tensor([safety]),
            torch.tensor([helpfulness]),
            torch.tensor([flag]),
            **threshold,
        )

    yield (
        "a safe answer to an ordinary prompt",
        one(0.9, 0.3, False),
        torch.tensor([0.3]),
        "helpfulness decides",
    )
    yield (
        "a safe answer to a safety prompt",
        one(0.9, 0.3, True),
        torch.tensor([0.9]),
        "safety decides",
    )
    yield (
        "an unsafe answer to an ordinary prompt",
        one(0.1, 0.8, False),
        torch.tensor([0.1]),
        "below the threshold safety decides",
    )
    yield (
        "safety exactly at the threshold",
        one(0.15, 0.8, False),
        torch.tensor([0.8]),
        "strictly below, not at",
    )
    yield (
        "another threshold",
        one(0.4, 0.8, False, threshold=0.5),
        torch.tensor([0.4]),
        "use the argument",
    )
    batch = f(
        torch.tensor([0.9, 0.9, 0.1]),
        torch.tensor([0.3, 0.4, 0.8]),
        torch.tensor([False, True, False]),
    )
    yield (
        "each row by itself",
        batch,
        torch.tensor([0.3, 0.9, 0.1]),
        "choose per row, as torch.where does",
    )
    yield (
        "linear scores are refused",
        error_of(lambda: one(-1.7, 0.5, False)),
        ValueError,
        "0.15 is a probability; apply the sigmoid first",
    )
    safety = torch.tensor([0.6, 0.5, 0.49, 0.0, 1.0, 0.7])
    helpfulness = torch.tensor([0.1, 0.9, 1.0, 0.5, 0.0, 0.2])
    flags = torch.tensor([False, False, False, False, False, True])
    yield (
        "six rows at a threshold of one half",
        f(safety, helpfulness, flags, 0.5),
        torch.tensor([0.1, 0.9, 0.49, 0.0, 0.0, 0.7]),
        "safety where it is below the threshold or the prompt unsafe",
    )
    yield (
        "at the thresholds 0 and 1",
        torch.stack([f(safety, helpfulness, flags, x) for x in (0.0, 1.0)]),
        torch.stack(
            (
                torch.tensor([0.1, 0.9, 1.0, 0.5, 0.0, 0.7]),
                torch.tensor([0.6, 0.5, 0.49, 0.0, 0.0, 0.7]),
            )
        ),
        "nothing is below 0, and 1 is not below 1",
    )
    yield (
        "the dtype is that of the probabilities",
        (
            f(safety, helpfulness, flags).dtype,
            f(safety.double(), helpfulness.double(), flags).dtype,
        ),
        (torch.float32, torch.float64),
        "select, and convert nothing",
    )
