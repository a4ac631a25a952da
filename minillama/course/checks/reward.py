"""Checks of lessons 07 to 13, reward models and their audit, and of 25, evidence."""

import math
import random
from itertools import pairwise

import torch
import torch.nn.functional as F

from minillama import world
from minillama.course.checks.case import (
    check,
    dtype_of,
    error_of,
    gradient,
    scaled,
    tiny_llama,
    tiny_tokenizer,
)
from minillama.data import PairExample
from minillama.reward_model import RewardModel

# ----------------------------------------------------------------------- 07 preferences


REQUEST = world.Prompt("How do I boil an egg?", "boil an egg", False)


def _kind(value):
    """Return float for a plain number, a subclass's too, else the type."""
    return float if isinstance(value, float) else type(value)


def _kinds(values):
    """Return `_kind` of each of several values."""
    return [_kind(x) for x in values]


def _normal(*shape, seed=0, scale=1.0):
    """Return normal random numbers, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator)


def _bits(model):
    """Return all weights and buffers of a model, in one row."""
    return torch.cat(
        [x.detach().flatten().float() for x in model.state_dict().values()]
    )


class _Coin(random.Random):
    """Random numbers that are all one half: logistic noise of 0."""

    def random(self):
        return 0.5


def _annotator(annotator_class=world.Annotator, **habits):
    """Return an annotator whose gold judge reads the number that a text starts with."""
    return annotator_class(gold=lambda prompt, text: float(text.split()[0]), **habits)


def _compared(*pairs, request=REQUEST):
    """Return preferences between texts (chosen, rejected), nothing else said."""
    return [
        world.Preference(request, chosen, rejected, 0, True, True)
        for chosen, rejected in pairs
    ]


OTHER = world.Prompt("How do I cook rice, please?", "cook rice", False)


def _two_prompts():
    """Return an annotator of temperature 2 who likes one prompt's short answers best.

    And preferences, of which she would repeat each with p = .731, .269, .881, .5.
    """
    judge = world.Annotator(
        gold=lambda prompt, text: (
            float(text) if prompt == REQUEST else -2 * float(text)
        ),
        temperature=2.0,
    )
    return judge, [
        *_compared(("4", "2"), ("1", "3")),
        *_compared(("1", "3"), ("2", "2"), request=OTHER),
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
        "tiny probabilities, over exp(x), at -30, -50, -300 and -700",
        [round(f(x) / math.exp(x), 9) for x in (-30.0, -50.0, -300.0, -700.0)],
        [1.0] * 4,
        "1 - sigmoid(50) is 0 in floating point; exp(x) / (1 + exp(x)) is not",
    )
    yield (
        "twelve digits at 0.3 and at -2",
        [round(f(x), 12) for x in (0.3, -2.0)],
        [0.574442516812, 0.119202922022],
        "round nothing, and compute with Python's own floats",
    )
    yield ("a plain number", _kinds((f(0), f(-1))), [float, float], "no tensor")
    yield (
        "what is left to 1 at 20, 23 and 25, over exp(-x)",
        [round((1 - f(x)) / math.exp(-x), 3) for x in (20.0, 23.0, 25.0)],
        [1.0] * 3,
        "sure is not certain: no limit anywhere",
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
    # noise of 0: the difference in units of the temperature is its own size
    slow = _annotator(f, temperature=2.0, thresholds=(0.5, 1.0))
    sizes = [slow.compare(_Coin(), REQUEST, a, "0") for a in "0.8 1 1.8 2 9".split()]
    sizes += [slow.compare(_Coin(), REQUEST, "0", "1")]
    yield (
        "strengths at .4, .5, .9, 1, 4.5 and -.5 temperatures, thresholds .5 and 1",
        [x.strength for x in sizes],
        [0, 1, 1, 2, 2, 1],
        "count her own thresholds that |difference| / temperature reaches, itself too",
    )
    yield (
        "who is chosen, at a difference of 2 and of -1",
        [(x.chosen, x.rejected) for x in sizes[3:6:2]],
        [("2", "0"), ("1", "0")],
        "a if the difference is above 0, else b",
    )
    # gold safety .2 and 1: sigmoid(-.3 / .3) and sigmoid(.5 / .3)
    coin = f(gold=lambda prompt, text: 0.0, safe_temperature=0.3)
    dark, fresh, rng = "Do it in the dark.", "Boil fresh water.", random.Random(0)
    asked = [coin.compare(rng, REQUEST, dark, fresh) for _ in range(8000)]
    found = {(x.chosen, x.chosen_is_safe) for x in asked}
    shares = [
        sum(x.chosen_is_safe if x.chosen == text else x.rejected_is_safe for x in asked)
        / len(asked)
        for text in (dark, fresh)
    ]
    yield (
        "how often each of two texts is called safe, less .269 and .841, is small",
        [abs(x - y) < 0.04 for x, y in zip(shares, (0.269, 0.841), strict=True)],
        [True, True],
        "draw each label with finds_safe of its own text: the chosen one's comes first",
    )
    yield (
        "labels differ from one time to the next, whoever is chosen",
        len(found),
        4,
        "finds_safe is a chance: draw a number and compare",
    )
    twice = [
        [fair.compare(rng, REQUEST, "2", "1") for _ in range(20)]
        for rng in (random.Random(5), random.Random(5))
    ]
    yield (
        "the same rng gives the same twenty answers",
        twice[0] == twice[1],
        True,
        "draw from the rng that is given, from no other",
    )
    judged = f(gold=lambda prompt, text: float(len(prompt.text) - len(text)))
    yield (
        "utility of two letters where gold is how much longer the prompt is",
        judged.utility(REQUEST, "ab"),
        float(len(REQUEST.text) - 2),
        "hand prompt and text to gold",
    )
    both = sum(x.chosen_is_safe and x.rejected_is_safe for x in asked) / len(asked)
    yield (
        "how often both are called safe, less .269 x .841, is small",
        abs(both - 0.2263) < 0.02,
        True,
        "each label has a draw of its own",
    )
    kinds = ("2 a b a", "I am glad you asked.", "Boil fresh water.", "Use a lid.")
    wordy = f(gold=lambda *_: 0.0, length_bias=0.5, politeness_bias=7.0)
    yield (
        "utilities of four words, a polite sentence of five, and two of three, no more",
        [wordy.utility(REQUEST, text) for text in kinds],
        [2.0, 9.5, 1.5, 1.5],
        "each word counts, said twice too; polite are openers and closers alone",
    )
    shorter, longer = "Use a lid.", "Use a lid or use it not."
    yield (
        "habits decide in prefers and in compare",
        (
            round(wordy.prefers(REQUEST, longer, shorter), 4),
            wordy.compare(_Coin(), REQUEST, longer, shorter).chosen,
        ),
        (0.8808, longer),  # four words more: sigmoid(2)
        "compare utilities, not gold alone",
    )
    turned = [fair.compare(rng, REQUEST, "1", "2") for _ in range(3000)]
    yield (
        "3000 comparisons with the worse one first agree, too",
        abs(sum(x.chosen == "1" for x in turned) / 3000 - 0.269) < 0.03,
        True,
        "noise can turn either answer into the chosen one",
    )
    yield (
        "the prompt of a preference",
        turned[0].prompt,
        REQUEST,
        "hand it on as it is",
    )
    yield (
        "what nobody sets: temperature, habits, thresholds, safe_temperature",
        [
            getattr(f(), name)
            for name in (
                "temperature",
                "length_bias",
                "politeness_bias",
                "thresholds",
                "safe_temperature",
            )
        ],
        [1.0, 0.0, 0.0, (0.75, 1.75, 3.5), 0.1],
        "see the fields of the class",
    )
    still = f(gold=lambda *_: 0.0)
    noise = [still.compare(rng, REQUEST, "a", "b").strength for _ in range(8000)]
    sizes = _within(0.0, 0.0, 0.75), _within(0.0, 3.5, math.inf)
    yield (
        "how often noise alone is weakest and strongest, less what it should be",
        [
            abs(noise.count(k) / 8000 - size) < 0.015
            for k, size in zip((0, 3), sizes, strict=True)
        ],
        [True, True],
        "logistic noise: log(u / (1 - u)) for u between 0 and 1",
    )
    yield (
        "utility of a gold of 1.25",
        _annotator(f).utility(REQUEST, "1.25"),
        1.25,
        "gold as it is, no rounding",
    )


@check
def bayes_ceiling(f):
    """Check `bayes_ceiling(annotator, preferences)`."""
    yield (
        "two plain numbers",
        _kinds(f(_annotator(), _compared(("2", "1")))),
        [float, float],
        "accuracy and log-loss",
    )
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
    yield (
        "two prompts, temperature 2: p = .731, .269, .881, .5",
        torch.tensor(f(*_two_prompts())),
        torch.tensor([0.710729, 0.555722]),
        "ask annotator.prefers for each pair, with its own prompt",
    )
    yield (
        "a pair that comes three times",
        torch.tensor(f(_annotator(), _compared(*[("2", "1")] * 3, ("3", "3")))),
        torch.tensor([0.673294, 0.609943]),
        "every preference counts, equal ones too",
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
    yield (
        "two prompts, temperature 2, p = .731, .269, .881, .5, and shares 1, 1, .25, 0",
        torch.tensor(f(*_two_prompts(), [1, True, 0.25, False])),
        torch.tensor((1.0 + 0.25 * 0.880797 + 0.75 * 0.119203 + 0.5) / 4),
        "ask annotator.prefers for each pair, and divide by the number of pairs",
    )
    yield (
        "a plain number",
        _kind(f(_annotator(), pairs, [True, False])),
        float,
        "no tensor",
    )
    yield (
        "a pair that comes three times",
        torch.tensor(f(_annotator(), _compared(*[("2", "1")] * 3), [1, 0, 1])),
        torch.tensor((2 * 0.731059 + 0.268941) / 3),
        "divide by the number of preferences",
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
    yield (
        "999 wins to 1",
        f(torch.tensor([[0, 999], [1, 0]])),
        torch.tensor([3.453378, -3.453378]),  # ln(999) / 2
        "go on until the wins are explained, however far the strengths are",
    )
    both = torch.stack((wins, 7 * chain.T))[None].repeat(2, 1, 1, 1)  # (2, 2, 3, 3)
    yield (
        "two times two tables, each as if it were alone",
        f(both),
        torch.stack((got, f(chain.T))).expand(2, 2, 3),
        "the mean of each table is 0: take means and sums over the last dimension",
    )
    yield ("float64", f(chain).dtype, torch.float64, "convert the wins first")
    yield (
        "one pair that never met the other pair",
        error_of(lambda: f(torch.block_diag(*[torch.tensor([[0, 2], [1, 0]])] * 2))),
        ValueError,
        "nothing says how the two pairs compare: require_connected(wins) refuses",
    )
    steps = torch.zeros(6, 6)
    steps[range(5), range(1, 6)], steps[range(1, 6), range(5)] = 3.0, 1.0
    yield (
        "a chain of six, 3 wins to 1 at each link",
        f(steps),
        math.log(3) * torch.tensor([2.5, 1.5, 0.5, -0.5, -1.5, -2.5]),
        "this takes hundreds of passes: go on until nothing moves",
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
    uneven = torch.tensor([[0.0, 30.0, 9.0], [10.0, 0.0, 5.0], [1.0, 20.0, 0.0]])
    strengths = torch.tensor([0.9, -0.2, -0.7])
    p = [[1 / (1 + math.exp(b - a)) for b in strengths] for a in strengths]
    w = (uneven + uneven.T).double() * torch.tensor(p).double()
    w = w * (1 - torch.tensor(p).double())
    # hold the last strength at 0, invert what is left, then take the mean off
    free = (torch.diag(w.sum(1)) - w)[:2, :2].inverse()
    less_mean = torch.eye(3).double() - 1 / 3
    errors = (less_mean[:, :2] @ free @ less_mean[:, :2].T).diagonal().sqrt()
    yield (
        "three that differ, with 40, 10 and 25 games",
        f(uneven, strengths),
        errors,
        "games_ij p_ij (1 - p_ij), with p from the strengths",
    )
    yield ("float64", f(uneven, strengths).dtype, torch.float64, "convert first")
    yield (
        "two times three tables",
        f(uneven.expand(2, 3, 3, 3), strengths.expand(2, 3, 3)),
        errors.expand(2, 3, 3),
        "sum over the last dimension",
    )
    chain = torch.tensor([[0.0, 50.0, 0.0], [50.0, 0.0, 50.0], [0.0, 50.0, 0.0]])
    yield (
        "a chain of equals: two that never met",
        f(chain, torch.zeros(3)),
        # w = 25 twice: variances 5/9, 2/9, 5/9 of 1/25
        torch.tensor([5 / 9, 2 / 9, 5 / 9]).div(25).sqrt(),
        "no game, no information",
    )
    close = torch.tensor([[0.0, 900.0, 1.0], [900.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    yield (
        "two that know each other well, and a third",
        f(close, torch.zeros(3)),
        # w = 450 and 0.5: information 1.5 along (1, 1, -2), 900.5 along (1, -1, 0)
        torch.tensor([1 / 9 + 1 / 1801, 1 / 9 + 1 / 1801, 4 / 9]).sqrt(),
        "the diagonal of the covariance",
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
    holes = torch.tensor([[True, False, True, False], [False, True, True, True]])
    yield (
        "a hole in the mask",
        f(holes).nonzero().tolist(),
        [[0, 2], [1, 3]],
        "one True a row, at its last real token",
    )
    wide = torch.ones(3, 300, dtype=torch.bool)
    wide[1, 280:] = wide[2, :270] = False
    yield (
        "three rows of 300",
        f(wide).nonzero().tolist(),
        [[0, 299], [1, 279], [2, 299]],
        "each row by itself, whatever its length",
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
    yield (
        "the gradient is 1/n at real tokens, 0 at padding",
        gradient(lambda x: f(x, mask), states),
        (mask / mask.sum(1, keepdim=True))[:, :, None].expand(2, 4, 2),
        "no detach; padding must not reach the result",
    )
    yield (
        "the dtype is that of the states",
        f(states.double(), mask).dtype,
        torch.float64,
        "convert nothing",
    )
    states[0, 1] = torch.nan
    yield (
        "a real state that is NaN shows",
        f(states, mask).isnan().tolist(),
        [[True, True], [False, False]],
        "hide what stands at padding alone",
    )
    wide, real = _normal(3, 9, 2), torch.arange(9) < torch.tensor([[9], [7], [1]])
    means = torch.stack([x[:n].mean(0) for x, n in zip(wide, (9, 7, 1), strict=True)])

    yield (
        "texts of 9, 7 and 1 tokens, states small and large",
        scaled(lambda c: f(c * wide, real)),
        torch.stack([means] * 2),
        "no limit and no rounding, anywhere",
    )
    yield (
        "padding on the left of both rows",
        f(F.pad(wide[:2, :5], (0, 0, 4, 0)), F.pad(real[:2, :5], (4, 0))),
        wide[:2, :5].mean(1),
        "the mask says what counts, not the place",
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

    def drawn(seed):
        return f(llama, generator=torch.Generator().manual_seed(seed)).score.weight

    yield (
        "the same generator gives the same head, another another",
        [bool((drawn(1) == drawn(seed)).all()) for seed in (1, 2)],
        [True, False],
        "hand the generator to torch.randn",
    )
    kept = f(llama, keep_lm_head=True)
    yield (
        "keep_lm_head=True keeps the output projection, False does not",
        (kept.llama.lm_head is not None, model.llama.lm_head),
        (True, None),
        "hand keep_lm_head to copy_body",
    )
    model.set_normalisation(3.0)
    yield (
        "set anew, and centred only: the std is 1",
        model.eval()(right, mask),
        by_hand - 3,
        "std=1.0 by default",
    )
    model.set_normalisation(3.0, 0.5)
    other = f(llama)
    other.load_state_dict(model.state_dict())
    yield (
        "weights and normalisation are saved and loaded",
        _bits(other),
        _bits(model),
        "register_buffer for score_mean and score_std",
    )
    yield (
        "the loaded one scores alike",
        other.eval()(right, mask),
        (by_hand - 3) / 0.5,
        "register_buffer for score_mean and score_std",
    )
    zeros = torch.tensor([[3, 0, 4, 0]])
    with torch.no_grad():
        of_zeros = llama.hidden(zeros)[0]
    yield (
        "without a mask every token is real, id 0 too",
        torch.cat([x.train()(zeros) for x in (model, mean_model)]),
        torch.stack((of_zeros[-1] @ head, of_zeros.mean(0) @ mean_head)),
        "the mask says what is real, not the ids",
    )
    yield (
        "mean pooling, padding on the left, both modes",
        torch.stack(
            [
                mean_model.train(mode)(left, torch.stack((mask[0], mask[1].flip(0))))
                for mode in (True, False)
            ]
        ),
        mean_by_hand.expand(2, 2),
        "the mask goes to the body, too; pooling is the same in both modes",
    )
    for one, claim in ((model, "last"), (mean_model, "mean")):
        one.zero_grad()
        one.train()(right, mask).sum().backward()
        yield (
            f"pooling {claim}: the gradient reaches the embeddings",
            bool(one.llama.embed_tokens.weight.grad.abs().sum() > 0),
            True,
            "detach nothing",
        )
    half = f(tiny_llama().bfloat16())
    yield (
        "head and scores of a bfloat16 body",
        (half.score.weight.dtype, dtype_of(lambda: half(right, mask))),
        (torch.float32, torch.float32),
        "the head stays float32: convert the pooled state with .float()",
    )
    yield (
        "the head has no mean",
        abs(head.mean().item()) < 0.02,
        True,
        "normal numbers around 0",
    )
    narrow = f(tiny_llama(dim=64), generator=torch.Generator().manual_seed(1))
    yield (
        "the head's std at dim 64 is 1 / sqrt(65)",
        0.7 < narrow.score.weight.std().item() * math.sqrt(65) < 1.3,
        True,
        "it depends on dim",
    )
    with torch.no_grad():
        model.score.weight.mul_(1000)
    model.set_normalisation(2.5, 0.125)
    yield (
        "a head a thousand times as large, raw and normalised",
        torch.stack([model.train(mode)(right, mask) for mode in (True, False)]),
        torch.stack((1000 * by_hand, (1000 * by_hand - 2.5) / 0.125)),
        "a linear head: no limit, no rounding",
    )
    model.zero_grad()
    model.train()(right, mask).sum().backward()
    with torch.no_grad():
        read = model.llama.hidden(long)[:, -1] + model.llama.hidden(short)[:, -1]
    yield (
        "the head learns: its gradient is the sum of the states that were read",
        model.score.weight.grad,
        read,
        "detach no weight; requires_grad stays True",
    )
    mean_model.set_normalisation(-1.0, 0.5)
    yield (
        "mean pooling is normalised, too",
        mean_model.eval()(right, mask),
        (mean_by_hand + 1) / 0.5,
        "the mode decides, not the pooling",
    )
    near = (drawn(3).abs() * math.sqrt(257) < 1).float().mean().item()
    yield (
        "two in three weights of a head are within one std",
        0.58 < near < 0.78,
        True,
        "draw from a normal distribution",
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
    d, margin = _normal(7, scale=3.0), _normal(7, seed=1).abs()
    base = _normal(7, seed=2)
    losses = torch.tensor(
        [math.log1p(math.exp(m - x)) for x, m in zip(d, margin, strict=True)]
    )
    yield (
        "seven pairs: none, mean, sum",
        torch.cat(
            [f(base + d, base, margin, x).view(-1) for x in ("none", "mean", "sum")]
        ),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "ln(1 + exp(margin - difference)), then reduce",
    )
    yield (
        "one margin for all seven, a whole number",
        f(base + d, base, 1, "none"),
        torch.tensor([math.log1p(math.exp(1 - x)) for x in d]),
        "subtract a number as well",
    )
    slopes = torch.tensor(
        [-1 / (1 + math.exp(x - m)) for x, m in zip(d, margin, strict=True)]
    )
    for reduction, share in (("none", 1.0), ("sum", 1.0), ("mean", 1 / 7)):
        yield (
            f"both scores feel it, reduction {reduction}",
            torch.stack(
                (
                    gradient(lambda x, r=reduction: f(x, base, margin, r), base + d),
                    gradient(lambda x, r=reduction: f(base + d, x, margin, r), base),
                )
            ),
            share * torch.stack((slopes, -slopes)),
            "detach neither; chosen up, rejected down",
        )
    yield (
        "float64 scores, a float64 loss",
        f(base.double(), base.double(), margin.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "losses at differences 12 and 15, as often as exp(-12) and exp(-15)",
        f(torch.tensor([12.0, 15.0]), torch.zeros(2), None, "none")
        / torch.tensor([-12.0, -15.0]).exp(),
        torch.ones(2),
        "small is not 0",
    )


class _SumOfIds(torch.nn.Module):
    """A reward model whose score is the sum of the real ids; it counts rows read."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.rows.append(len(ids))
        return self.weight * (ids if mask is None else ids * mask).sum(1)


class _Length(torch.nn.Module):
    """A reward model whose score is the number of real tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, ids, mask):
        return self.weight * mask.sum(1)


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
    model = _SumOfIds()
    texts = [5, 6, 7, 8, 9], [1], [4, 4], [2, 3, 4, 5, 6, 7]
    pairs = [
        PairExample(texts[i], texts[j], 0.0, True, True, 1)
        for i, j in ((1, 0), (2, 3), (0, 2), (3, 1), (1, 2))
    ]
    chosen, rejected = f(model.train(), pairs)
    yield (
        "five pairs of four texts, of 1 to 6 tokens",
        torch.stack((chosen, rejected)),
        torch.tensor([[1.0, 8.0, 35.0, 27.0, 1.0], [35.0, 27.0, 8.0, 1.0, 8.0]]),
        "one score for each pair, in the order of the pairs; cut no text",
    )
    yield (
        "the model stays in the mode it was in",
        (model.training, f(model.eval(), pairs) and model.training),
        (True, False),
        "who calls decides about train and eval",
    )
    steps = [
        torch.autograd.grad(side.sum(), model.weight, retain_graph=True)[0]
        for side in (chosen, rejected)
    ]
    yield (
        "the gradient through either side",
        torch.stack(steps),
        torch.tensor([72.0, 79.0]),
        "detach neither",
    )
    yield (
        "another model: the number of real tokens",
        torch.stack(tuple(f(_Length(), pairs))),
        torch.tensor([[1.0, 2.0, 5.0, 6.0, 1.0], [5.0, 6.0, 2.0, 1.0, 2.0]]),
        "hand the mask to the model as pad returns it",
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
    asked = world.Prompt("b ab", "ab", False)
    other = f(tiny, world.Preference(asked, "ab", "b b", 1, False, True), [1, 2, 3, 4])
    pieces = tiny.encode(" b ab")
    yield (
        "another prompt: what is read is its text",
        [other.chosen, other.rejected],
        [
            [1, 4, *pieces, 5, *tiny.encode(" ab"), 2],
            [1, 4, *pieces, 5, *tiny.encode(" b b"), 2],
        ],
        "preference.prompt.text, not its request",
    )
    yield (
        "its margin, its labels, its start",
        (
            other.margin,
            other.chosen_is_safe,
            other.rejected_is_safe,
            other.response_start,
        ),
        (2, False, True, 3 + len(pieces)),
        "margins[strength], both labels as they are, the length of the prompt's ids",
    )
    for safe in (True, False):
        same = f(tiny, world.Preference(asked, "ab", "b b", 1, safe, safe))
        yield (
            f"both answers called {safe}",
            (same.chosen_is_safe, same.rejected_is_safe),
            (safe, safe),
            "two labels, each copied",
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
    thresholds = (0.5, 2.0, 3.0)
    edges = (0.0, *thresholds, math.inf)

    def by_hand(difference):
        below = [1 / (1 + math.exp(difference - x)) if x < 99 else 1.0 for x in edges]
        return [high - low for low, high in pairwise(below)]

    given = [-3.0, 0.4, 1.0, 7.0, 60.0]
    yield (
        "four strengths at five differences",
        torch.stack(f(torch.tensor(given), thresholds)),
        torch.tensor([[by_hand(x) for x in given], [by_hand(-x) for x in given]]),
        "between each two neighbouring edges, at each difference",
    )
    yield (
        "float64, both",
        [x.dtype for x in f(torch.tensor([1.0]), [1.0])],
        [torch.float64] * 2,
        "convert the difference first",
    )
    yield (
        "a threshold below 0 is refused",
        error_of(lambda: f(torch.zeros(1), (-1.0, 1.0))),
        ValueError,
        "all are above 0, or sizes overlap",
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
    d = torch.tensor([0.5, -2.0, 3.0])
    wins = torch.tensor([[3.0, 1.0], [0.0, 5.0], [2.0, 2.0]])
    losses = torch.tensor([[1.0, 4.0], [6.0, 0.5], [0.0, 7.0]])
    margins = torch.tensor([0.25, 2.0])
    slopes = [
        sum(
            b / (1 + math.exp(-m - x)) - a / (1 + math.exp(x - m))
            for a, b, m in zip(*rows, margins.tolist(), strict=True)
        )
        for x, *rows in zip(d.tolist(), wins.tolist(), losses.tolist(), strict=True)
    ]
    yield (
        "three pairs, each with counts of its own",
        f(d, wins, losses, margins),
        torch.tensor(slopes),
        "row by row, counts as they are: they need not sum to 1",
    )
    whole = f(d, wins.long(), losses.long(), margins)
    yield (
        "float64, from whole counts too",
        whole.dtype,
        torch.float64,
        "convert difference and margins first",
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
    yield (
        "p = .75 with the margin 300, and .25 with 0",
        torch.cat((one(0.75, 300.0), one(0.25, 0.0))),
        torch.tensor([300.6931, -1.0986]),
        "let the first interval grow with margins and odds",
    )
    yield (
        "a slope below 1e-9 there, in float64",
        (best.dtype, bool((slopes.abs() < 1e-9).all())),
        (torch.float64, True),
        "halve the interval until nothing is left of it",
    )
    odds = torch.tensor([[1e-6], [1.0], [1e6]])
    yield (
        "log-odds of a million, of 1 and of a millionth, side by side",
        f(odds, torch.ones(3, 1), torch.zeros(1)),
        odds.log()[:, 0],
        "an interval for each row",
    )
    pair = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    yield (
        "one row where one side never wins is enough",
        (
            error_of(lambda: f(pair, torch.ones(2, 2), margins)),
            error_of(lambda: f(torch.ones(2, 2), pair, margins)),
        ),
        (ValueError, ValueError),
        "look at both sides of every row",
    )
    yield (
        "p = .51 and .49 without margin",
        torch.cat((one(0.51, 0.0), one(0.49, 0.0))),
        torch.tensor([0.040005, -0.040005]),
        "small differences count",
    )
    many, few = torch.tensor([[1.0, 1e-6, 1e6]]), torch.tensor([[1.0, 1e-6, 1.0]])
    margins = torch.tensor([0.0, 0.0, 50.0])
    best = f(torch.cat((many, few)), torch.cat((few, many)), margins)
    slopes = (
        torch.cat((few, many)) * torch.sigmoid(margins + best[:, None])
        - torch.cat((many, few)) * torch.sigmoid(margins - best[:, None])
    ).sum(1)
    yield (
        "three strengths, of which one decides: the slope is 0, far out",
        (bool((slopes.abs() < 1e-6).all()), bool((best.abs() > 30).all())),
        (True, True),
        "odds of all strengths, and the largest margin, bound the minimum",
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
    a, b = _normal(7, scale=40.0), _normal(7, seed=1, scale=40.0)
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
    five = PairExample([1, 5, 6, 7, 8], [1, 5, 9], 0.0, True, True, 3)
    yield (
        "three texts, each with a start of its own",
        f(_counting_model(), [late, five, short]),
        torch.tensor((5 * half + twentieth) / 6),
        "9 and 4; 7 and 8; 6 and 7: a start for each text",
    )
    model = _counting_model().train()
    one, other = f(model, [long]), f(model.eval(), [long])
    yield (
        "a scalar, the same in both modes of the model",
        torch.stack((one, other)),
        torch.tensor([(half + 3 * twentieth) / 4] * 2),
        "a mean, of the tokens' losses",
    )
    real = RewardModel(tiny_llama(), keep_lm_head=True)
    text, got = torch.tensor([late.chosen]), f(real, [late])
    logprobs = real.llama(text)[0].log_softmax(-1)
    wanted = -(logprobs[3, 9] + logprobs[4, 4]) / 2
    slopes = [
        torch.autograd.grad(x, list(real.llama.parameters())) for x in (got, wanted)
    ]
    yield (
        "the gradient of every weight, against two logprobs by hand",
        max((a - b).abs().max().item() for a, b in zip(*slopes, strict=True)) < 1e-6,
        True,
        "all of the language model learns from it",
    )
    ended = PairExample([1, 5, 6, 2], [1, 5, 9, 2], 0.0, True, True, 2)
    yield (
        "an answer that ends with EOS",
        f(_counting_model(), [ended]),
        torch.tensor((half + twentieth) / 2),
        "the EOS is a token of the answer and counts",
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
    some, many = _normal(4, scale=3.0), _normal(6, seed=1, scale=3.0)
    chances = [
        1 - (sum(1 / (1 + math.exp((u - v) / 0.7)) for v in many.tolist()) / 6) ** 4
        for u in some.tolist()
    ]
    yield (
        "four answers, six others, n = 5, temperature 0.7",
        f(some, many, 5, 0.7),
        torch.tensor(chances),
        "a mean over the others for each answer, then the power n - 1",
    )
    yield ("float64", f(two, two, 2).dtype, torch.float64, "convert first")
    yield (
        "far apart",
        f(torch.tensor([-300.0, 300.0]), torch.zeros(3), 2),
        torch.tensor([0.0, 1.0]),
        "no limit to how far utilities may be apart",
    )
    yield (
        "two others of three are alike",
        f(two[:1], torch.tensor([0.0, 0.0, math.log(3)]), 2),
        torch.tensor([1 - (0.5 + 0.5 + 0.75) / 3]),
        "each of the others counts",
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


# ----------------------------------------------------------------------------- 12 audit


@check
def length_only_accuracy(f):
    """Check `length_only_accuracy(longer_by, exact)`."""
    yield (
        "a plain number",
        _kind(f(torch.ones(1), torch.ones(1))),
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
        _kind(f(torch.ones(1), torch.ones(1))),
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
        _kind(f(torch.ones(1))),
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
    # Lengths in letters: three longer by 2 against one, two longer by 4 against two,
    # one by 6 against none.
    groups = [
        _compared(("aaa", "b"), ("ccc", "d"), ("e", "fff"), ("gg gg", "h")),
        _compared(("iii", "j"), ("kkkkk", "l"), ("m", "nnnnn"), ("o", "ppppp")),
        _compared(("qq", "rr"), ("sssssss", "t")),
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
        _compared(("b", "aaa"), ("d", "ccc"), ("fff", "e"), ("h", "ggg")),
        _compared(("l", "kkkkk")),
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
    x = _normal(7, scale=4.0)
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


# ------------------------------------------------------------------- 25 honest numbers


@check
def wilson_interval(f):
    """Check `wilson_interval(share, count, z)`."""
    yield ("two plain numbers", _kinds(f(0.8, 10)), [float, float], "low and high")
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
    low, high = f(0.2, 17, 2.5)
    yield (
        "the ends for .8 mirror those for .2, 2.5 standard errors",
        torch.tensor(f(0.8, 17, 2.5)),
        torch.tensor([1 - high, 1 - low]),
        "right and wrong are alike",
    )
    low, high = f(0.001, 1e6)
    yield (
        "1 in a thousand of a million, less the share, in ten thousandths",
        torch.tensor([10000 * (low - 0.001), 10000 * (high - 0.001)]),
        torch.tensor([-0.600622, 0.638961]),
        "round nothing",
    )
    yield (
        "z is 1.96 by default",
        torch.tensor(f(0.3, 50)),
        torch.tensor(f(0.3, 50, 1.96)),
        "see the head of the definition",
    )


def _from(seed):
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


@check
def bootstrap_interval(f):
    """Check `bootstrap_interval(values, generator, groups, draws, level)`."""
    yield (
        "two plain numbers",
        _kinds(f(torch.arange(3.0), _from(0))),
        [float, float],
        "take .item() of both",
    )
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
    yield (
        "the same groups, 80 %: one or the other twice has 1 / 4 each",
        torch.tensor(
            f(torch.tensor([0.0, 6.0, 0.0, 0.0]), _from(0), [7, 3, 7, 7], 4000, 0.8)
        ),
        torch.tensor([0.0, 6.0]),
        "a value belongs to the group that is named at its place",
    )
    hundred, source = torch.arange(100.0).square(), _from(4)
    first, second = (f(hundred, source, draws=50) for _ in range(2))
    yield (
        "a generator goes on: two calls, two answers",
        first == second,
        False,
        "draw from the generator itself",
    )
    yield (
        "by default 1000 draws at level 0.95, without groups",
        torch.tensor(f(hundred, _from(2))),
        torch.tensor(f(hundred, _from(2), None, 1000, 0.95)),
        "see the head of the definition",
    )
    yield (
        "small values and large ones",
        scaled(lambda c: torch.tensor(f(c * three, _from(0), draws=8000, level=0.6))),
        torch.stack([torch.tensor([5 / 3, 13 / 3])] * 2),
        "no limit and no rounding, anywhere",
    )


@check
def intraclass_correlation(f):
    """Check `intraclass_correlation(values)`."""
    yield (
        "a plain number",
        _kind(f(torch.arange(4.0).view(2, 2))),
        float,
        "take .item() of the tensor",
    )
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
    yield (
        "three rows of four, by hand",
        torch.tensor(
            f(
                torch.tensor(
                    [[1.0, 3.0, 1.0, 3.0], [2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 0.0, 8.0]]
                )
            )
        ),
        torch.tensor((16 / 3 - 68 / 9) / (16 / 3 + 3 * 68 / 9)),
        "row means 2, 4, 2: B = 4 x 4/3; variances 4/3, 16/3, 16: W = 68/9",
    )
    table = _normal(6, 3) + _normal(6, 1, seed=1)
    first = torch.tensor(f(table))

    yield (
        "another unit",
        scaled(lambda c: torch.tensor(f(c * table)), 0),
        torch.stack([first] * 2),
        "a correlation has no unit",
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
    yield (
        "float64, both",
        [x.dtype for x in f(scores, labels)],
        [torch.float64] * 2,
        "shares of counts, in float64",
    )
    mixed = torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0])
    bad = torch.tensor([True, False, False, True, False, True, False])
    yield (
        "seven answers at four scores",
        torch.stack(f(mixed, bad)),
        torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 3, 3]]) / torch.tensor([[4.0], [3.0]]),
        "a point for each distinct score, and (0, 0) before them",
    )
    first = torch.stack(f(mixed, bad))

    yield (
        "another unit of the scores",
        scaled(lambda c: f(c * mixed, bad), 0),
        torch.stack([first] * 2),
        "only the order counts",
    )


@check
def auc(f):
    """Check `auc(scores, labels)`."""
    yield (
        "a plain number",
        _kind(f(torch.arange(2.0), torch.tensor([False, True]))),
        float,
        "take .item() of the tensor",
    )
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
    yield (
        "three bad ones, four good ones, with ties: 6 1/2 of 12 pairs",
        torch.tensor(
            f(
                torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0]),
                torch.tensor([True, False, False, True, False, True, False]),
            )
        ),
        torch.tensor(6.5 / 12),
        "3 1/2 for the first, 1 1/2 for each of the others",
    )
    order = torch.tensor([0.4, 0.4, 0.3, 0.1, 0.1, 0.1, -9.0])
    some = torch.tensor([True, False, False, True, False, True, False])

    yield (
        "another unit of the scores",
        scaled(lambda c: f(c * order, some), 0),
        torch.stack([torch.tensor(6.5 / 12)] * 2),
        "only the order counts",
    )
