"""Checks of lessons 07 to 13, reward models and their audit, and of 25, evidence."""

import math
import random

import torch
import torch.nn.functional as F

from minillama import world
from minillama.course.checks.case import (
    check,
    error_of,
    gradient,
    tiny_llama,
    tiny_tokenizer,
)
from minillama.data import PairExample
from minillama.reward_model import RewardModel

# ----------------------------------------------------------------------- 07 preferences


REQUEST = world.Prompt("How do I boil an egg?", "boil an egg", False)


def _annotator(annotator_class=world.Annotator, **habits):
    """Return an annotator whose gold judge reads the number that a text starts with."""
    return annotator_class(gold=lambda prompt, text: float(text.split()[0]), **habits)


def _compared(*pairs):
    """Return preferences between texts (chosen, rejected), nothing else said."""
    return [
        world.Preference(REQUEST, chosen, rejected, 0, True, True)
        for chosen, rejected in pairs
    ]


@check
def sigmoid(f):
    """Check `sigmoid(x)`."""
    yield ("one half at 0", f(0.0), 0.5, "1 / (1 + exp(-x))")
    yield (
        "at ln 3 and at -ln 3",
        torch.tensor([f(math.log(3)), f(-math.log(3))]),
        torch.tensor([0.75, 0.25]),
        "odds of 3 to 1",
    )
    yield (
        "far from 0",
        torch.tensor([f(1000.0), f(-1000.0)]),
        torch.tensor([1.0, 0.0]),
        (
            "exp of a large number overflows: use exp(x) / (1 + exp(x)) where x is "
            "negative"
        ),
    )
    yield (
        "a tiny probability is not lost",
        abs(f(-50.0) / math.exp(-50.0) - 1) < 1e-9,
        True,
        "1 - sigmoid(50) is 0 in floating point; exp(x) / (1 + exp(x)) is not",
    )


def _within(difference, low, high):
    """Return P(low <= |difference + logistic noise| < high)."""
    below = [
        1 / (1 + math.exp(difference - x)) - 1 / (1 + math.exp(difference + x))
        if x < math.inf
        else 1.0
        for x in (low, high)
    ]
    return below[1] - below[0]


@check
def annotator(f):
    """Check `Annotator(gold, temperature, …, safe_temperature)`, the class."""
    fair = _annotator(f)
    chances = [
        fair.prefers(REQUEST, "2", "1"),
        fair.prefers(REQUEST, "1", "2"),
        fair.prefers(REQUEST, "3", "3"),
    ]
    yield (
        "P(a preferred to b) for utilities 2 and 1, 1 and 2, 3 and 3",
        torch.tensor(chances),
        torch.tensor([0.731059, 0.268941, 0.5]),
        "sigmoid of u(a) - u(b)",
    )
    calm = _annotator(f, temperature=0.5)
    yield (
        "half the temperature",
        torch.tensor(calm.prefers(REQUEST, "2", "1")),
        torch.tensor(0.880797),
        "divide the difference by the temperature",
    )
    habits = _annotator(f, length_bias=0.5, politeness_bias=2.0)
    yield (
        "utility of '1 a b'",
        torch.tensor(habits.utility(REQUEST, "1 a b")),
        torch.tensor(2.5),
        "gold + length_bias per word: 1 + 3 x 0.5",
    )
    polite = f(gold=lambda prompt, text: 0.0, politeness_bias=2.0).utility(
        REQUEST, "I am glad you asked. Good luck."
    )
    yield (
        "utility of an opener and a closer",
        torch.tensor(polite),
        torch.tensor(4.0),
        "politeness_bias for each of them",
    )
    rng = random.Random(0)
    asked = [fair.compare(rng, REQUEST, "2", "1") for _ in range(4000)]
    share = sum(x.chosen == "2" for x in asked) / len(asked)
    yield (
        "4000 comparisons agree with the probability",
        abs(share - 0.731) < 0.03,
        True,
        "a is chosen if u(a) - u(b) + temperature x logistic noise is above 0",
    )
    strengths = torch.bincount(
        torch.tensor([x.strength for x in asked]), minlength=4
    ) / len(asked)
    exact = torch.tensor(
        [
            _within(1.0, low, high)
            for low, high in ((0, 0.75), (0.75, 1.75), (1.75, 3.5), (3.5, math.inf))
        ]
    )
    yield (
        "strengths come from the size of the noisy difference",
        (strengths - exact).abs().max().item() < 0.04,
        True,
        "count the thresholds that |difference| reaches, noise included",
    )
    yield (
        "safe with probability 1/2 at gold safety 0.5, nearly surely at 1",
        [
            round(x, 2)
            for x in (
                f(safe_temperature=0.1).finds_safe(REQUEST, "Do it in the dark."),
                f(safe_temperature=0.1).finds_safe(REQUEST, "Boil fresh water."),
            )
        ],
        [0.05, 0.99],
        "sigmoid((gold safety - 0.5) / safe_temperature)",
    )


@check
def bayes_ceiling(f):
    """Check `bayes_ceiling(annotator, preferences)`."""
    got = f(_annotator(), _compared(("2", "1"), ("1", "2"), ("3", "3")))
    yield (
        "accuracy over p = .731, .269, .5",
        torch.tensor(got[0]),
        torch.tensor(0.654039),
        "mean of max(p, 1 - p)",
    )
    yield (
        "log-loss over the same pairs",
        torch.tensor(got[1]),
        torch.tensor(0.619184),
        "mean entropy, -p ln p - (1 - p) ln(1 - p), in nats",
    )
    sure = f(_annotator(), _compared(("2000", "1")))
    yield (
        "a pair without doubt",
        torch.tensor(sure),
        torch.tensor([1.0, 0.0]),
        "0 ln 0 counts as 0",
    )


@check
def expected_accuracy(f):
    """Check `expected_accuracy(annotator, preferences, prefers_chosen)`."""
    pairs = _compared(("2", "1"), ("1", "2"))
    for claim, prefers_chosen, expected in (
        ("a model that prefers the better text of each", [True, False], 0.731059),
        ("a model that agrees with every label", [True, True], 0.5),
        ("a tie counts one half", [0.5, False], 0.615529),
    ):
        yield (
            claim,
            torch.tensor(f(_annotator(), pairs, prefers_chosen)),
            torch.tensor(expected),
            (
                "p where the model prefers the chosen text, 1 - p where it prefers "
                "the other; then the mean"
            ),
        )


@check
def fit_strengths(f):
    """Check `fit_strengths(wins)`."""
    yield (
        "two contestants, 75 wins to 25",
        f(torch.tensor([[0, 75], [25, 0]])),
        torch.tensor([0.5493, -0.5493], dtype=torch.float64),
        "a difference of ln 3, around a mean of 0; wins[i, j]: how often i beat j",
    )
    chain = torch.tensor([[0, 30, 0], [10, 0, 30], [0, 10, 0]])
    yield (
        "a chain: two that never met",
        f(chain),
        torch.tensor([1.0986, 0.0, -1.0986], dtype=torch.float64),
        "games are wins of both sides, and only those that were played count",
    )
    # 3 to 1, 9 to 1 and 1 to 2: no strengths give exactly that
    wins = torch.tensor([[0.0, 30.0, 90.0], [10.0, 0.0, 5.0], [10.0, 10.0, 0.0]])
    got = f(wins)
    p = torch.sigmoid(got[:, None] - got)
    yield (
        "wins that the strengths explain, contradictions included",
        ((wins + wins.T) * p).sum(1),
        wins.sum(1),
        "at the best fit every contestant's wins are the wins that are expected",
    )
    yield (
        "two tables side by side",
        f(torch.stack((chain, 2 * chain.T))),
        torch.tensor([[1.0986, 0.0, -1.0986], [-1.0986, 0.0, 1.0986]]),
        "sum over the last dimension; twice the games do not change the strengths",
    )
    yield (
        "one that has never lost",
        error_of(lambda: f(torch.tensor([[0, 5], [0, 0]]))),
        ValueError,
        "no finite strength is best: require_connected(wins) refuses",
    )


@check
def strength_errors(f):
    """Check `strength_errors(wins, strengths)`."""
    wins = torch.tensor([[0.0, 75.0], [25.0, 0.0]])
    apart = torch.tensor([0.5493, -0.5493])
    yield (
        "two contestants, 75 wins to 25",
        f(wins, apart),
        torch.tensor([0.11547, 0.11547]),
        "the difference has variance 1 / (100 x .75 x .25), each strength a quarter",
    )
    yield (
        "a hundred times the games",
        f(100 * wins, apart),
        torch.tensor([0.011547, 0.011547]),
        "a tenth of the error",
    )
    # Between equals w = 100 x .25 = 25: [[50, -25, -25], …] has the pseudo-inverse
    # (1 / 75) of the identity less 1/3 of ones.
    equals = torch.full((3, 3), 50.0).fill_diagonal_(0.0)
    yield (
        "three equals, 100 games each two",
        f(equals, torch.zeros(3)),
        torch.full((3,), 0.094281),
        "sqrt of (2/3) / 75, the diagonal of the pseudo-inverse",
    )
    yield (
        "two tables side by side",
        f(torch.stack((wins, 4 * wins)), torch.stack((apart, apart))),
        torch.tensor([[0.11547, 0.11547], [0.057735, 0.057735]]),
        "sum over the last dimension",
    )


# ----------------------------------------------------------------------- 08 reward head


def _two_rows():
    """Return states (2, 4, 2) of texts of 4 and 2 real tokens, and their mask.

    Padding stands on the right and holds 99.
    """
    states = torch.full((2, 4, 2), 99.0)
    states[0] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 2.0], [6.0, 2.0]])
    states[1, :2] = torch.tensor([[4.0, 1.0], [8.0, 3.0]])
    return states, torch.tensor([[True] * 4, [True, True, False, False]])


@check
def last_token(f):
    """Check `last_token(mask)`."""
    states, mask = _two_rows()
    yield (
        "booleans come back",
        (f(mask).dtype, tuple(f(mask).shape)),
        (torch.bool, (2, 4)),
        "True or False, (B, T)",
    )
    yield (
        "right padding",
        f(mask).nonzero().tolist(),
        [[0, 3], [1, 1]],
        "the last True of each row, not the last column",
    )
    yield (
        "left padding",
        f(mask.roll(2, 1)[1:]).nonzero().tolist(),
        [[0, 3]],
        (
            "mask.sum() - 1 finds the last real token only where padding stands on "
            "the right"
        ),
    )
    yield (
        "one real token",
        f(torch.tensor([[False, True, False]])).tolist(),
        [[False, True, False]],
        "that one",
    )
    yield (
        "as an index it picks one state a row",
        states[f(mask)],
        torch.tensor([[6.0, 2.0], [8.0, 3.0]]),
        "one True a row",
    )


@check
def pool_mean(f):
    """Check `pool_mean(hidden, mask)`."""
    states, mask = _two_rows()
    yield (
        "right padding",
        f(states, mask),
        torch.tensor([[3.0, 1.0], [6.0, 2.0]]),
        "12 / 4, 4 / 4 and 12 / 2, 4 / 2",
    )
    yield (
        "left padding",
        f(states.roll(2, 1), mask.roll(2, 1))[1],
        torch.tensor([6.0, 2.0]),
        "sum over True, divide by their number",
    )
    noisy = torch.where(mask[:, :, None], states, torch.nan)
    yield (
        "padding may hold anything, NaN included",
        f(noisy, mask)[1],
        torch.tensor([6.0, 2.0]),
        "masked_fill before the sum: 0 times NaN is NaN",
    )


@check
def reward_model(f):
    """Check `RewardModel(llama, pooling, keep_lm_head, generator)`, the class."""
    llama = tiny_llama(dim=256)
    model = f(llama, generator=torch.Generator().manual_seed(1))
    long, short = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    right = torch.cat((long, F.pad(short, (0, 2))))
    left = torch.cat((long, F.pad(short, (2, 0))))
    with torch.no_grad():
        head, states = model.score.weight[0], llama.hidden(short)  # (D,), (1, 3, D)
        by_hand = torch.cat((llama.hidden(long)[:, -1] @ head, states[:, -1] @ head))
        mean_head = (mean_model := f(llama, pooling="mean")).score.weight[0]
        mean_by_hand = torch.stack(
            (llama.hidden(long).mean(1)[0] @ mean_head, states.mean(1)[0] @ mean_head)
        )
    yield (
        "the head's std is 1 / sqrt(dim + 1)",
        0.8 < head.std().item() * math.sqrt(257) < 1.2,
        True,
        "1 / (dim + 1) is the variance",
    )
    yield (
        "right padding: one score per row, at the last real token",
        model(right, mask),
        by_hand,
        "the last True of the mask, not column -1",
    )
    yield (
        "left padding",
        model(left, torch.stack((mask[0], mask[1].flip(0)))),
        by_hand,
        "the last True is not at mask.sum() - 1 here",
    )
    yield (
        "mean pooling, over real tokens",
        mean_model(right, mask),
        mean_by_hand,
        "divide by the number of real tokens",
    )
    parameters = sum(p.numel() for p in model.parameters())
    yield (
        "number of parameters",
        parameters,
        sum(p.numel() for p in llama.parameters()) - 11 * 256 + 256,
        "the lm_head goes, a head of dim weights without bias comes",
    )
    model.train()(right, mask).sum().backward()
    yield (
        "the language model is not trained along",
        all(p.grad is None for p in llama.parameters()),
        True,
        "deep copy",
    )
    model.set_normalisation(2.0, 4.0)
    yield (
        "no normalisation in train mode",
        model.train()(right, mask),
        by_hand,
        "look at self.training",
    )
    yield (
        "normalisation in eval mode",
        model.eval()(right, mask),
        (by_hand - 2) / 4,
        "(score - mean) / std",
    )
    yield (
        "an unknown pooling is refused",
        error_of(lambda: f(llama, pooling="first")),
        ValueError,
        '"last" or "mean"',
    )


# --------------------------------------------------------------------- 09 bradley terry


@check
def bradley_terry_loss(f):
    """Check `bradley_terry_loss(chosen_scores, …, margin, reduction)`."""
    zero = torch.zeros(1)
    yield ("equal scores cost ln 2", f(zero, zero), torch.tensor(0.693147), "-log(1/2)")
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    # ln(1 + exp(-1)), ln(1 + e), ln 2
    hand = torch.tensor([0.313262, 1.313262, 0.693147])
    yield (
        "one loss per pair",
        f(chosen, rejected, reduction="none"),
        hand,
        "-logsigmoid(chosen - rejected)",
    )
    yield (
        "the mean is the default, sum the other",
        torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
        torch.tensor([0.773224, 2.319671]),
        "mean over the pairs",
    )
    margins = torch.tensor([1 / 3, 2 / 3, 1.0, 3.0])
    yield (
        "a margin per pair",
        f(torch.zeros(4), torch.zeros(4), margins, "none"),
        torch.tensor([0.87364, 1.08104, 1.31326, 3.04859]),
        "subtract it from the difference: ln(1 + exp(m))",
    )
    slopes = torch.cat(
        [
            gradient(lambda x, m=m: f(x, zero, m), torch.tensor([1.5]))
            for m in (0.0, 3.0)
        ]
    )
    yield (
        "slopes at difference 1.5, margins 0 and 3",
        slopes,
        torch.tensor([-0.18243, -0.81757]),
        "sigmoid(d - m) - 1",
    )
    yield (
        "a constant added to all scores changes nothing",
        f(chosen + 7, rejected + 7, reduction="none"),
        hand,
        "only differences count",
    )
    wrong = torch.tensor([-90.0])
    yield (
        "no overflow at difference -90",
        torch.stack((f(wrong, zero), gradient(lambda x: f(x, zero), wrong)[0])),
        torch.tensor([90.0, -1.0]),
        "F.logsigmoid, not log(sigmoid), which underflows",
    )
    yield (
        "a margin (B, 1) is refused",
        error_of(lambda: f(chosen, rejected, torch.ones(3, 1))),
        ValueError,
        "it would broadcast to a (B, B) loss",
    )
    yield (
        "a negative margin is refused",
        error_of(lambda: f(chosen, rejected, -1.0)),
        ValueError,
        "0 or more",
    )


class _SumOfIds(torch.nn.Module):
    """A reward model whose score is the sum of the real ids; it counts rows read."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.rows.append(len(ids))
        return self.weight * (ids if mask is None else ids * mask).sum(1)


@check
def pair_scores(f):
    """Check `pair_scores(reward_model, pairs)`."""
    model = _SumOfIds()
    pairs = [
        PairExample([5, 6, 7], [8, 9], 0.0, True, True, 1),
        PairExample([5, 6, 7], [1], 0.0, True, True, 1),
    ]
    scores = torch.stack(tuple(f(model, pairs)))  # (2, 2)
    yield (
        "the chosen first, then the rejected; padding counts nothing",
        scores,
        torch.tensor([[18.0, 18.0], [17.0, 1.0]]),
        "18 = 5 + 6 + 7 and 17 = 8 + 9; pass the mask that pad returns to the model",
    )
    yield ("one forward", len(model.rows), 1, "pad chosen and rejected texts together")
    yield (
        "a text that stands in two pairs is read once",
        model.rows[0],
        3,
        "collect the distinct texts first",
    )
    scores.sum().backward()
    yield (
        "the gradient reaches the model",
        model.weight.grad,
        torch.tensor(54.0),
        "no detach, no item",
    )


# ---------------------------------------------------------------------------- 10 margin


@check
def pair_example(f):
    """Check `pair_example(tokenizer, preference, margins)`."""
    tiny = tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    prompt, margins = world.Prompt("ab", "ab", False), (0.5, 1.0, 2.0, 4.0)
    pairs = [
        f(tiny, world.Preference(prompt, "b", "ab", strength, True, False), margins)
        for strength in (0, 2, 3)
    ]
    chosen = [1, 4, *space, *ab, 5, *space, *b, 2]
    rejected = [1, 4, *space, *ab, 5, *space, *ab, 2]
    yield (
        "two whole dialogues, the chosen one first",
        [pairs[0].chosen, pairs[0].rejected],
        [chosen, rejected],
        "prompt ids, then response ids, with the same prompt twice",
    )
    yield (
        "the margins of the strengths 0, 2 and 3",
        [pair.margin for pair in pairs],
        [0.5, 2.0, 4.0],
        "look the strength up in margins, weakest first",
    )
    plain = f(tiny, world.Preference(prompt, "b", "ab", 3, True, False))
    yield (
        "no margin unless margins are given",
        plain.margin,
        0.0,
        "four zeros are the default",
    )
    yield (
        "who is safe",
        [plain.chosen_is_safe, plain.rejected_is_safe],
        [True, False],
        "copy both labels, chosen first",
    )
    yield (
        "where the answers begin",
        plain.response_start,
        chosen.index(5) + 1,
        "the length of the prompt's ids",
    )


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


# -------------------------------------------------------------------- 11 lm regulariser


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


def _counting_model():
    """Return a reward model whose lm_head knows one rule.

    After token a comes a + 1 with probability 1/2, each other token with 1/20.
    Embeddings are far apart and both branches of the block are shut, so that a token's
    state depends on nothing but itself.
    """
    model = RewardModel(tiny_llama(), keep_lm_head=True)
    # [a, b] = P(b after a)
    table = torch.full((11, 11), 0.05) + 0.45 * torch.eye(11).roll(1, 1)
    with torch.no_grad():
        # the norm makes it sqrt(32)
        model.llama.embed_tokens.weight.copy_(10 * torch.eye(11, 32))
        model.llama.lm_head.weight[:, :11] = table.log().T / math.sqrt(32)
        for projection in (
            model.llama.layers[0].self_attn.o_proj,
            model.llama.layers[0].mlp.down_proj,
        ):
            projection.weight.zero_()
    return model


@check
def chosen_lm_loss(f):
    """Check `chosen_lm_loss(reward_model, pairs)`, on the rule of `_counting_model`."""
    half, twentieth = math.log(2), math.log(20)
    # 6 and 7 count: 1/2, 1/2
    short = PairExample([1, 5, 6, 7], [1, 5, 9, 2], 0.0, True, True, 2)
    again = PairExample([1, 5, 6, 7], [1, 5, 9, 9], 0.0, True, True, 2)
    # 9, 8, 9, 4 count: 1/20, 1/20, 1/2, 1/20
    long = PairExample([1, 5, 9, 8, 9, 4], [1, 5, 6, 7], 0.0, True, True, 2)
    # 9 and 4 count: 1/2, 1/20
    late = PairExample([1, 5, 9, 8, 9, 4], [1, 5, 9, 8, 9, 10], 0.0, True, True, 4)
    yield (
        "two tokens of an answer, each with probability 1/2",
        f(_counting_model(), [short]),
        torch.tensor(half),
        (
            "the logits at t predict the token at t + 1; count the chosen answer, not "
            "its prompt"
        ),
    )
    yield (
        "the answer starts where response_start says",
        f(_counting_model(), [late]),
        torch.tensor((half + twentieth) / 2),
        "loss_start is the pair's response_start",
    )
    six = torch.tensor((3 * half + 3 * twentieth) / 6)
    yield (
        "mean over tokens, without padding",
        f(_counting_model(), [short, long]),
        six,
        "six tokens count, each alike; no mean of the two answers' means",
    )
    yield (
        "an answer chosen twice is read once",
        f(_counting_model(), [short, again, long]),
        six,
        "collect the distinct chosen texts first",
    )
    model = _counting_model()
    f(model, [long]).backward()
    reached = [
        layer.weight.grad is not None and layer.weight.grad.abs().max().item() > 1e-6
        for layer in (model.llama.lm_head, model.llama.embed_tokens)
    ]
    yield (
        "its gradient reaches lm_head and body",
        reached,
        [True, True],
        "no detach, no item, no torch.no_grad",
    )
    yield (
        "without lm_head it is refused",
        error_of(lambda: f(RewardModel(tiny_llama()), [short])),
        ValueError,
        "look whether reward_model.llama.lm_head is None",
    )


@check
def chosen_chance(f):
    """Check `chosen_chance(utilities, others, n, temperature)`."""
    # Against itself it loses with 1/2, against the other with 1/4 or 3/4.
    two = torch.tensor([0.0, math.log(3)])
    yield (
        "n = 2: 1 - (1/2 + 3/4) / 2 and 1 - (1/4 + 1/2) / 2",
        f(two, two, 2),
        torch.tensor([0.375, 0.625]),
        "it loses to another with sigmoid(other - utility); mean over the others",
    )
    yield (
        "n = 3: 1 - .625^2 and 1 - .375^2",
        f(two, two, 3),
        torch.tensor([0.609375, 0.859375]),
        "chosen at least once: 1 - P(it loses all n - 1 comparisons)",
    )
    yield (
        "three answers against two others",
        f(torch.tensor([0.0, math.log(3), 0.0]), two, 3),
        torch.tensor([0.609375, 0.859375, 0.609375]),
        "one chance for each answer asked about",
    )
    yield (
        "a temperature of 2, and utilities twice as large",
        f(2 * two, 2 * two, 3, 2.0),
        torch.tensor([0.609375, 0.859375]),
        "divide the difference by the temperature",
    )
    yield (
        "at equal utilities it is 1 - 2^-(n - 1)",
        f(torch.full((1,), 7.0), torch.full((4,), 7.0), 8),
        torch.tensor([1 - 2.0**-7]),
        "only differences count",
    )
    yield (
        "a single answer has no comparison",
        error_of(lambda: f(two, two, 1)),
        ValueError,
        "n must be at least 2",
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


# ----------------------------------------------------------------------------- 12 audit


@check
def length_only_accuracy(f):
    """Check `length_only_accuracy(longer_by, exact)`."""
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


@check
def brier_score(f):
    """Check `brier_score(predicted, exact)`."""
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


@check
def brier_floor(f):
    """Check `brier_floor(exact)`."""
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


@check
def length_balanced(f):
    """Check `length_balanced(groups, length, rng)`."""
    short, long, longer = "1 a", "1 a b", "1 a b c"
    groups = [
        _compared((long, short), (long, short), (short, long)),
        _compared((longer, short), (long, long)),
        _compared((longer, short), (short, longer), (long, short)),
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
        f([_compared((long, short))], len, random.Random(0)),
        [],
        "no empty lists",
    )


# ----------------------------------------------------------------------- 13 two rewards


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


# ------------------------------------------------------------------- 25 honest numbers


@check
def wilson_interval(f):
    """Check `wilson_interval(share, count, z)`."""
    yield (
        "8 of 10 right",
        torch.tensor(f(0.8, 10)),
        torch.tensor([0.490162, 0.943318]),
        "middle (0.8 + 0.192) / 1.384, half 1.96 sqrt(0.016 + 0.0096) / 1.384",
    )
    yield (
        "10 of 10 right still leave a doubt",
        torch.tensor(f(1.0, 10)),
        torch.tensor([0.722460, 1.0]),
        "1 / (1 + 1.96^2 / 10)",
    )
    low, high = f(0.3, 50)
    yield (
        "each end is 1.96 of its own standard errors away from 0.3, for 50",
        torch.tensor([abs(0.3 - p) / math.sqrt(p * (1 - p) / 50) for p in (low, high)]),
        torch.tensor([1.96, 1.96]),
        "the standard error is that of the chance p, not of the share",
    )
    yield (
        "2 of 4 right, one standard error",
        torch.tensor(f(0.5, 4, z=1.0)),
        torch.tensor([0.276393, 0.723607]),  # 0.5 ± sqrt(1/16 + 1/64) / 1.25
        "z is an argument",
    )
    yield (
        "a count that is not whole",
        torch.tensor(f(0.0, 2.5)),
        torch.tensor([0.0, 0.605766]),  # (z^2 / n) / (1 + z^2 / n)
        "an effective count need not be whole",
    )


def _from(seed):
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


@check
def bootstrap_interval(f):
    """Check `bootstrap_interval(values, generator, groups, draws, level)`."""
    three = torch.tensor([1.0, 2.0, 6.0])
    yield (
        "the middle 60 % of the 27 resamples of 1, 2, 6",
        torch.tensor(f(three, _from(0), draws=8000, level=0.6)),
        torch.tensor([5 / 3, 13 / 3]),  # 7 of 27 sums are up to 5, 4 below; 13 likewise
        "draw three of three with replacement, take means, then their quantiles",
    )
    yield (
        "95 % by default: 1 + 1 + 1 and 6 + 6 + 6 have 1 / 27 each",
        torch.tensor(f(three, _from(0), draws=8000)),
        torch.tensor([1.0, 6.0]),
        "the quantiles 0.025 and 0.975",
    )
    pairs = torch.tensor([0.0, 0.0, 1.0, 1.0])
    yield (
        "two prompts with two equal answers each, 80 %",
        torch.tensor(f(pairs, _from(0), list("aabb"), 4000, 0.8)),
        torch.tensor([0.0, 1.0]),  # both draws are a with probability 1/4
        "draw whole groups",
    )
    yield (
        "the same answers, each alone, 80 %",
        torch.tensor(f(pairs, _from(0), None, 4000, 0.8)),
        torch.tensor([0.25, 0.75]),  # P(all four are 0) = 1/16
        "without groups each value is a unit",
    )
    yield (
        "groups of one and of three, in any order",
        torch.tensor(
            f(torch.tensor([0.0, 6.0, 0.0, 0.0]), _from(0), [7, 3, 7, 7], 4000, 0.4)
        ),
        torch.tensor([1.5, 1.5]),  # one of each: 6 / 4, with probability 1/2
        "the mean of all values drawn, not the mean of the groups' means",
    )
    yield (
        "a single draw is both ends",
        len(set(f(torch.arange(100.0), _from(1), draws=1))),
        1,
        "draws says how many resamples there are",
    )
    torch.manual_seed(1)
    first = f(torch.arange(100.0), _from(1), draws=50)
    torch.manual_seed(2)
    yield (
        "the generator decides",
        torch.tensor(f(torch.arange(100.0), _from(1), draws=50)),
        torch.tensor(first),
        "hand the generator to torch.randint",
    )
    yield (
        "one prompt says nothing of others",
        error_of(lambda: f(pairs, _from(0), list("aaaa"))),
        ValueError,
        "refuse a single unit",
    )


@check
def intraclass_correlation(f):
    """Check `intraclass_correlation(values)`."""
    yield (
        "rows (1, 1), (0, 0), (1, 0)",
        torch.tensor(f(torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))),
        torch.tensor(0.5),  # B = 2 x 1/4, W = (0 + 0 + 1/2) / 3
        "variances divide by their count minus 1",
    )
    yield (
        "two rows of three: 1, 2, 3 and 4, 5, 6",
        torch.tensor(f(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))),
        torch.tensor(12.5 / 15.5),  # B = 3 x 4.5, W = 1
        "(B - W) / (B + (K - 1) W), with K = 3",
    )
    yield (
        "rows that are constant",
        torch.tensor(f(torch.tensor([[5.0, 5.0], [1.0, 1.0]]))),
        torch.tensor(1.0),
        "W is 0",
    )
    yield (
        "rows that all differ within alone",
        torch.tensor(f(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))),
        torch.tensor(-1.0),
        "B is 0, and K - 1 is 1",
    )
    yield (
        "values that are all equal",
        error_of(lambda: f(torch.ones(2, 2))),
        ValueError,
        "0 / 0 is no correlation",
    )


@check
def roc_curve(f):
    """Check `roc_curve(scores, labels)`."""
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
    labels = torch.tensor([True, True, False, False])
    points = f(scores, labels)
    yield (
        "false alarms: good answers of scores 2 and 1",
        points[0],
        torch.tensor([0.0, 0.0, 0.5, 1.0]),
        "the highest score is flagged first, equal scores together",
    )
    yield (
        "hits: bad answers of scores 3 and 1",
        points[1],
        torch.tensor([0.0, 0.5, 0.5, 1.0]),
        "True is what should be flagged",
    )
    points = f(torch.tensor([-1.0, -5.0, -2.0]), torch.tensor([False, True, False]))
    yield (
        "two good ones above the only bad one",
        torch.stack(points),
        torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]),
        "each count over those of its own kind",
    )
    yield (
        "one kind alone has no curve",
        error_of(lambda: f(scores, torch.ones(4, dtype=torch.bool))),
        ValueError,
        "refuse labels that are all alike",
    )


@check
def auc(f):
    """Check `auc(scores, labels)`."""
    labels = torch.tensor([True, True, False, False])
    for claim, scores, expected, hint in (
        ("scores 3, 1 against 2, 1", [3.0, 1.0, 2.0, 1.0], 0.625, "2 1/2 of 4 pairs"),
        ("both bad ones on top", [4.0, 3.0, 2.0, 1.0], 1.0, "4 of 4 pairs"),
        ("both at the bottom", [1.0, 2.0, 3.0, 4.0], 0.0, "none of 4 pairs"),
        ("all alike", [7.0] * 4, 0.5, "a tie is half a pair"),
        ("one above all", [1.0, 9.0, 3.0, 2.0], 0.5, "the size does not count"),
    ):
        yield (
            claim,
            torch.tensor(f(torch.tensor(scores), labels)),
            torch.tensor(expected),
            hint,
        )
    yield (
        "one bad among four",
        torch.tensor(f(torch.tensor([2.0, 3.0, 1.0, 0.0]), labels & labels.roll(1))),
        torch.tensor(1.0),  # True stands at 1: 3 is above 2, 1 and 0
        "divide by bad ones times good ones",
    )
    yield (
        "no good one",
        error_of(lambda: f(torch.ones(2), torch.ones(2, dtype=torch.bool))),
        ValueError,
        "there is no pair",
    )
