"""Checks of 07_preferences."""

import math
import random

import torch

from minillama import world
from minillama.course.checks.case import check, error_of
from minillama.course.checks.shared import REQUEST, compared, kind, kinds


class _Coin(random.Random):
    """Random numbers that are all one half: logistic noise of 0."""

    def random(self):
        return 0.5


def _annotator(annotator_class=world.Annotator, **habits):
    """Return an annotator whose gold judge reads the number that a text starts with."""
    return annotator_class(gold=lambda prompt, text: float(text.split()[0]), **habits)


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
        *compared(("4", "2"), ("1", "3")),
        *compared(("1", "3"), ("2", "2"), request=OTHER),
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
    yield ("a plain number", kinds((f(0), f(-1))), [float, float], "no tensor")
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
        kinds(f(_annotator(), compared(("2", "1")))),
        [float, float],
        "accuracy and log-loss",
    )
    got = f(_annotator(), compared(("2", "1"), ("1", "2"), ("3", "3")))
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
    sure = f(_annotator(), compared(("2000", "1")))
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
        torch.tensor(f(_annotator(), compared(*[("2", "1")] * 3, ("3", "3")))),
        torch.tensor([0.673294, 0.609943]),
        "every preference counts, equal ones too",
    )


@check
def expected_accuracy(f):
    """Check `expected_accuracy(annotator, preferences, prefers_chosen)`."""
    pairs = compared(("2", "1"), ("1", "2"))
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
        kind(f(_annotator(), pairs, [True, False])),
        float,
        "no tensor",
    )
    yield (
        "a pair that comes three times",
        torch.tensor(f(_annotator(), compared(*[("2", "1")] * 3), [1, 0, 1])),
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
