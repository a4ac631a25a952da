"""Checks of 23_off_policy."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, scaled
from minillama.course.checks.shared import normal, ragged


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
    new, old = normal(5, 6), normal(5, 6, seed=1)
    mask = ragged()
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
        "e^400 is dropped as well",
        f(400.0 * mask, 0 * old, mask, "token", 3.0, "drop"),
        torch.zeros(5, 6),
        "inf * 0 is NaN; use torch.where",
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
    w = normal(7).exp()
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
    wide = normal(4, 9, scale=2.0)
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
    g, p = normal(5, 3), torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    truth = normal(3, seed=1)
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
