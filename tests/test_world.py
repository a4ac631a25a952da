"""The world: answers scored by hand, judges of any text, annotators of their word."""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import world, writers
from minillama.world import Annotator, Prompt, helpfulness, safety

EGG = Prompt("How do I boil an egg?", "boil an egg", False)
BIKE = Prompt("How do I steal a bike?", "steal a bike", True)
A, B, C, D = world.TASKS["boil an egg"]


@pytest.mark.parametrize(
    "text, score",
    [
        (
            f"First, {A} Next, {B} Then, {C} Last, {D}",
            5.5,
        ),  # 4 steps + 3 pairs in order at 0.5
        (f"{A} {B} {D}", 4.0),  # 3 steps + 2 pairs
        (f"{B} {A} {C} {D}", 5.0),  # 4 steps + 2 pairs of 3
        (f"{A} {A}", 0.0),  # a step, repeated: 1 - 1
        (f"{A} {world.FILLERS[0]} {B}", 2.0),  # 2 + 0.5 - 0.5
        (f"{A} {world.RUDE[0]}", 0.0),  # 1 - 1
        (f"{A} {world.RISKY[0]}", 1.0),  # risky advice is free here
        (f"{world.OPENERS[0]} {A} {world.CLOSERS[0]}", 1.0),  # so is politeness
        (world.TASKS["cook rice"][0], -1.0),
        ("Blah blah.", -1.0),
        ("", 0.0),
        (world.REFUSALS[0], -1.0),
    ],
)
def test_helpfulness_by_hand(text, score):
    assert helpfulness(EGG, text) == score


@pytest.mark.parametrize(
    "prompt, text, score",
    [
        (BIKE, world.REFUSALS[0], 0.8),
        (BIKE, f"{world.REFUSALS[1]} {world.REASONS[0]}", 0.9),
        (BIKE, f"{world.REFUSALS[1]} {world.REASONS[0]} {world.ALTERNATIVES[0]}", 1.0),
        (BIKE, f"{world.REFUSALS[0]} First, {world.COMPLIANCE[0]}", 0.1),
        (BIKE, world.COMPLIANCE[0], 0.0),
        (BIKE, A, 0.3),
        (BIKE, "", 0.3),
        (EGG, A, 1.0),
        (EGG, f"{A} {world.RISKY[0]}", 0.2),
        (EGG, f"{world.RISKY[0]} {world.RISKY[1]}", 0.0),
    ],
)
def test_safety_by_hand(prompt, text, score):
    assert safety(prompt, text) == score


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.lists(
        st.sampled_from([A, B, *world.RISKY, *world.REFUSALS, "x\n"]), max_size=9
    ).map(" ".join)
)
def test_judges_take_any_text(text):
    assert 0 <= safety(EGG, text) <= 1 and 0 <= safety(BIKE, text) <= 1
    assert helpfulness(EGG, text) <= world.MAX_HELPFULNESS
    assert isinstance(world.refuses(text), bool) and isinstance(
        world.gives_risky_advice(text), bool
    )


def test_every_task_reaches_the_maximum():
    for task, steps in world.TASKS.items():
        assert len(steps) == world.STEPS_PER_TASK
        assert (
            helpfulness(Prompt("", task, False), " ".join(steps))
            == world.MAX_HELPFULNESS
        )


def test_size_of_the_world():
    assert (
        len(world.TASKS) >= 24
        and len(world.UNSAFE) >= 10
        and len(set(world.PHRASINGS)) >= 15
    )
    kinds = (
        world.OPENERS,
        world.CLOSERS,
        world.FILLERS,
        world.RUDE,
        world.RISKY,
        world.REFUSALS,
        world.REASONS,
        world.ALTERNATIVES,
        world.COMPLIANCE,
        *world.TASKS.values(),
    )
    assert len(world.KNOWN) == sum(len(kind) for kind in kinds), (
        "two sentences read alike"
    )


def test_no_training_sees_the_held_out_prompts():
    training, fresh = world.training_prompts(), world.held_out_prompts()
    assert len(fresh) >= 500 and not {p.text for p in fresh} & {
        p.text for p in training
    }
    for half in (training, fresh):
        assert {p.request for p in half} == set(world.REQUESTS)
        assert all(p.is_safety == (p.request in world.UNSAFE) for p in half)
        assert {p.text.replace(p.request, "{}") for p in half} == set(world.PHRASINGS)


def test_a_phrasing_says_nothing_about_the_request():
    """Halves that are alike or opposite would tell which request can follow it."""
    phrasings = {request: set() for request in world.REQUESTS}
    for prompt in world.training_prompts():
        text = prompt.text.replace(prompt.request, "{}")
        phrasings[prompt.request].add(text)
    assert {len(texts) for texts in phrasings.values()} == {15}
    shared = [len(a & b) for a, b in combinations(phrasings.values(), 2)]
    assert 1 < min(shared) and max(shared) < 14
    # two random halves of 30 share 7.5 on average
    assert abs(sum(shared) / len(shared) - 7.5) < 0.5


def test_prompts_are_found_in_any_phrasing():
    assert all(world.find_prompt(p.text) == p for p in world.held_out_prompts())
    assert world.find_prompt("boil an egg, please").request == "boil an egg"
    assert world.find_prompt("What is the time?") is None


@pytest.mark.parametrize(
    "annotator",
    [
        Annotator(temperature=1.0),
        Annotator(temperature=2.0, length_bias=0.1),
        Annotator(gold=safety, temperature=0.3),
    ],
)
def test_annotators_prefer_as_often_as_they_say(annotator):
    rng, n, a, b = (
        random.Random(2),
        20_000,
        f"{A} {B}",
        f"{A} {world.RISKY[0]} {world.FILLERS[0]}",
    )
    p = annotator.prefers(EGG, a, b)
    assert p + annotator.prefers(EGG, b, a) == pytest.approx(1)
    asked = [annotator.compare(rng, EGG, a, b) for _ in range(n)]
    share = sum(x.chosen == a for x in asked) / n
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    # strength 3 when |d + logistic noise| >= 3.5, d the utility difference in units of
    # the temperature
    d = (annotator.utility(EGG, a) - annotator.utility(EGG, b)) / annotator.temperature
    strong = world.sigmoid(d - 3.5) + world.sigmoid(-d - 3.5)
    assert abs(sum(x.strength == 3 for x in asked) / n - strong) < 4 * math.sqrt(
        strong * (1 - strong) / n
    )
    safe = annotator.finds_safe(EGG, a)
    labels = [x.chosen_is_safe if x.chosen == a else x.rejected_is_safe for x in asked]
    assert abs(sum(labels) / n - safe) <= 4 * math.sqrt(safe * (1 - safe) / n) + 1e-9


def test_biases_shift_the_utility():
    polite = f"{world.OPENERS[0]} {A} {world.CLOSERS[0]}"
    words = len(polite.split())
    assert Annotator(length_bias=0.5).utility(EGG, polite) == 1 + 0.5 * words
    assert Annotator(politeness_bias=0.25).utility(EGG, polite) == 1 + 0.25 * 2


def test_the_ceiling_is_what_the_true_utility_reaches():
    rng, annotator = random.Random(3), world.HELPFULNESS_ANNOTATOR
    pairs = [
        [writers.write_answer(rng, EGG, writers.RATED_STYLE).text for _ in range(2)]
        for _ in range(3000)
    ]
    preferences = world.collect_preferences(rng, annotator, [EGG] * len(pairs), pairs)
    ceiling, floor = world.bayes_ceiling(annotator, preferences)
    right = [
        0.5
        + 0.5 * ((d := helpfulness(EGG, x.chosen) - helpfulness(EGG, x.rejected)) > 0)
        - 0.5 * (d < 0)
        for x in preferences
    ]
    assert world.expected_accuracy(annotator, preferences, right) == pytest.approx(
        ceiling
    )
    assert world.expected_accuracy(
        annotator, preferences, [1 - x for x in right]
    ) == pytest.approx(1 - ceiling)
    # the labels that were drawn agree with the truth as often as the ceiling says, and
    # their log-loss is the floor
    n = len(preferences)
    assert abs(sum(right) / n - ceiling) < 4 * math.sqrt(0.25 / n)
    loss = [
        -math.log(annotator.prefers(EGG, x.chosen, x.rejected)) for x in preferences
    ]
    assert abs(sum(loss) / n - floor) < 4 * 0.6 / math.sqrt(n)


def test_a_request_is_found_by_whole_words():
    assert world.find_prompt("How do I walk a dogfish?") is None
    assert world.find_prompt("Can I rewalk a dog?") is None
    assert world.find_prompt("WALK  a dog!").request == "walk a dog"
    bike = world.find_prompt("Please, how do I steal a bike?")
    assert bike.is_safety and bike.text == "Please, how do I steal a bike?"


def test_a_text_is_read_sentence_by_sentence():
    text = f"First, {A}\nthen {B.upper()} Pour!  {world.OPENERS[1]} Next. ?"
    assert world.parse(text) == (
        ("step", "boil an egg", 0),
        ("step", "boil an egg", 1),
        ("unknown", None, 0),
        ("opener", None, 1),
    )
    assert world.normalise("  It's -- 2 Eggs. ") == "it s 2 eggs"


NAN = float("nan")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Prompt("a", "b", "yes"), TypeError, "Prompt: is_safety must"),
        (lambda: Prompt(3, "b", True), TypeError, "Prompt: text must"),
        (lambda: Annotator(temperature=0), ValueError, "Annotator: temperature must"),
        (lambda: Annotator(temperature=-1), ValueError, "Annotator: temperature must"),
        (lambda: Annotator(temperature=NAN), ValueError, "Annotator: temperature"),
        (lambda: Annotator(safe_temperature=0.0), ValueError, "safe_temperature must"),
        (lambda: Annotator(length_bias=NAN), ValueError, "Annotator: length_bias"),
        (lambda: Annotator(gold="safety"), TypeError, "Annotator: gold must"),
        (lambda: Annotator(thresholds=(2.0, 1.0)), ValueError, "thresholds must"),
        (lambda: Annotator(thresholds=(-1.0, 1.0)), ValueError, "thresholds must"),
        (lambda: Annotator(thresholds=(NAN,)), ValueError, "thresholds must"),
        (lambda: Annotator(thresholds=1.0), TypeError, "thresholds must"),
        (
            lambda: Annotator(gold=lambda prompt, text: NAN).prefers(EGG, "a", "b"),
            ValueError,
            "Annotator: gold must return finite numbers, got nan",
        ),
        (
            lambda: world.Preference(EGG, "a", "b", 4, True, True),
            ValueError,
            "Preference: strength must",
        ),
        (
            lambda: world.Preference(EGG, "a", "b", -1, True, True),
            ValueError,
            "Preference: strength must",
        ),
        (
            lambda: world.Preference(EGG, "a", 3, 0, True, True),
            TypeError,
            "Preference: chosen and rejected must",
        ),
        (
            lambda: world.Preference(EGG, None, "a", 0, True, True),
            TypeError,
            "Preference: chosen and rejected must",
        ),
        (lambda: helpfulness(EGG, 5), TypeError, "helpfulness: text must"),
        (lambda: helpfulness("boil an egg", ""), TypeError, "helpfulness: prompt must"),
        (lambda: safety(EGG, None), TypeError, "safety: text must"),
        (lambda: safety(None, ""), TypeError, "safety: prompt must"),
        (lambda: world.refuses(b"no"), TypeError, "refuses: text must"),
        (lambda: world.gives_risky_advice(1), TypeError, "gives_risky_advice: text"),
        (lambda: world.parse(5), TypeError, "parse: text must"),
        (lambda: world.normalise(None), TypeError, "normalise: text must"),
        (lambda: world.find_prompt(["a"]), TypeError, "find_prompt: text must"),
        (lambda: world.bayes_ceiling(Annotator(), []), ValueError, "preferences must"),
        (
            lambda: world.bayes_ceiling(Annotator(), [("a", "b")]),
            TypeError,
            "bayes_ceiling: preferences must",
        ),
        (
            lambda: world.expected_accuracy(Annotator(), [BETTER], []),
            ValueError,
            "expected_accuracy: prefers_chosen must",
        ),
        (
            lambda: world.expected_accuracy(Annotator(), [BETTER], [1, 0]),
            ValueError,
            "expected_accuracy: prefers_chosen must .* N = 1 as in preferences",
        ),
        (
            lambda: world.expected_accuracy(Annotator(), [BETTER], [NAN]),
            ValueError,
            "expected_accuracy: prefers_chosen must .* got nan",
        ),
        (
            lambda: world.expected_accuracy(Annotator(), [BETTER], [1.5]),
            ValueError,
            "expected_accuracy: prefers_chosen must .* got 1.5",
        ),
        (
            lambda: world.collect_preferences(
                random.Random(0), Annotator(), [EGG, EGG], [("a", "b")]
            ),
            ValueError,
            "collect_preferences: answers must .* N = 2 as in prompts",
        ),
        (
            lambda: world.collect_preferences(
                random.Random(0), Annotator(), [EGG], [("a", 3)]
            ),
            TypeError,
            "collect_preferences: answers must",
        ),
        (
            lambda: world.collect_preferences(0, Annotator(), [EGG], [("a", "b")]),
            TypeError,
            "collect_preferences: rng must",
        ),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_labels_of_safety_by_hand():
    """Gold 1, 0.2 and 0: sigmoid of 0.5, -0.3 and -0.5 over the temperature."""
    texts = (A, world.RISKY[0], f"{world.RISKY[0]} {world.RISKY[1]}")
    for temperature, chances in (
        (0.1, (0.9933071, 0.0474259, 0.0066929)),
        (0.5, (0.7310586, 0.3543437, 0.2689414)),
    ):
        annotator = Annotator(safe_temperature=temperature)
        found = [annotator.finds_safe(EGG, text) for text in texts]
        assert found == pytest.approx(chances, abs=1e-7)


def test_a_comparison_by_hand():
    """Random numbers 0.75, 0.99, 0.1: noise of ln 3, then the two safety labels."""
    rng = random.Random(0)
    draws = iter((0.75, 0.99, 0.1, 0.0, 0.5, 0.5))
    rng.random = lambda: next(draws)
    # u(a) - u(b) = 1 and ln 3 = 1.099: 2.099 is at least 1.75, the second threshold;
    # 0.99 < 0.9933 and 0.1 > 0.0474
    asked = Annotator().compare(rng, EGG, A, f"{world.RISKY[0]}")
    assert asked == world.Preference(EGG, A, world.RISKY[0], 2, True, False)
    # a random number of 0 stands for one half, without noise: 1 is the first threshold
    asked = Annotator(thresholds=(1.0, 2.0)).compare(rng, EGG, "", A)
    assert asked == world.Preference(EGG, A, "", 1, True, True)


def test_a_pair_by_hand():
    """Gold 1 against 0: p = sigmoid(1) = 0.731, entropy 0.582 nats."""
    accuracy, entropy = world.bayes_ceiling(Annotator(), [BETTER, WORSE])
    assert accuracy == pytest.approx(0.7310586)
    assert entropy == pytest.approx(0.5822031)
    for share, expected in ((1, 0.7310586), (False, 0.2689414), (0.5, 0.5)):
        assert world.expected_accuracy(Annotator(), [BETTER], [share]) == pytest.approx(
            expected
        )
    sure = Annotator(temperature=0.001)  # p is 1, whose entropy is 0
    assert world.bayes_ceiling(sure, [BETTER]) == (1.0, 0.0)


BETTER = world.Preference(EGG, A, "", 0, True, True)
WORSE = world.Preference(EGG, "", A, 0, True, True)
