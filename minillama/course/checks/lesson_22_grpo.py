"""Checks of 22_grpo."""

import itertools
import math

import torch

from minillama.course.checks.case import check, error_of, gradient, scaled
from minillama.course.checks.shared import normal, ragged


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
    twelve = normal(12, scale=0.01)
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
    five = ragged()  # 3, 1, 4, 2 and 5 tokens
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
        ragged(),
        normal(5, 6, scale=0.6),
        normal(5, 6, seed=1, scale=0.6),
    )
    A, counts = normal(5, seed=2), (3, 1, 4, 2, 5)
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
    mask, a, b = ragged(), normal(5, 6), normal(5, 6, seed=1)
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
