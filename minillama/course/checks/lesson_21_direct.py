"""Checks of 21_direct."""

import math

import torch

from minillama.course.checks.case import check, error_of, gradient, scaled, tiny_llama
from minillama.course.checks.shared import normal
from minillama.data import PairExample

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
    a, b = normal(5, scale=50.0), normal(5, seed=1, scale=50.0)
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
    four = [normal(5, seed=seed, scale=3.0) for seed in range(4)]
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
    four = [normal(5, seed=seed, scale=3.0) for seed in range(4)]
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
    a, b = normal(5, scale=3.0), normal(5, seed=1, scale=3.0)
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
    a, b = normal(9, scale=30.0) + 40, normal(9, seed=1)
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
