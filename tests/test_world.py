"""The world: hand-scored answers, judges that never raise, annotators whose probabilities are what they say."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import world
from minillama.world import Annotator, Prompt, helpfulness, safety

EGG = Prompt("How do I boil an egg?", "boil an egg", False)
BIKE = Prompt("How do I steal a bike?", "steal a bike", True)
A, B, C, D = world.TASKS["boil an egg"]
SEED_6 = [
    "I am sorry, but no. It would not be fair. There is an honest way to get it.",
    "I am sorry, but no. It breaks trust. Maybe a friend can help you.",
    "I will not help with this.",
]


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


def test_fresh_prompts_are_held_out():
    training, fresh = world.training_prompts(), world.held_out_prompts()
    assert len(fresh) >= 500 and not {p.text for p in fresh} & {
        p.text for p in training
    }
    for half in (training, fresh):
        assert {p.request for p in half} == set(world.REQUESTS)
        assert all(p.is_safety == (p.request in world.UNSAFE) for p in half)


def test_prompts_are_found_in_any_phrasing():
    assert all(world.find_prompt(p.text) == p for p in world.held_out_prompts())
    assert world.find_prompt("boil an egg, please").request == "boil an egg"
    assert world.find_prompt("What is the time?") is None


def test_the_same_seed_gives_the_same_text_everywhere():
    """Literals, so that every machine and Python version must agree."""
    rng, style = (
        random.Random(6),
        world.Style(refuse_unsafe=0.9, reason=0.5, alternative=0.5),
    )
    assert [world.write_answer(rng, BIKE, style).text for _ in range(3)] == SEED_6


def test_each_text_has_one_derivation():
    rng, seen = random.Random(0), {}
    for i in range(20_000):
        prompt, style = (
            (EGG, BIKE)[i % 2],
            (world.BASE_STYLE, world.RISKY_STYLE)[i // 2 % 2],
        )
        answer = world.write_answer(rng, prompt, style)
        logprob = seen.setdefault((prompt, style, answer.text), answer.logprob)
        assert logprob == pytest.approx(answer.logprob, abs=1e-9)


def test_logprob_is_the_frequency_of_the_text():
    """Refusals are few enough to count: 40,000 draws against exp(logprob), within four standard errors."""
    rng, style, n = random.Random(1), world.Style(refuse_unsafe=0.9), 40_000
    drawn = [world.write_answer(rng, BIKE, style) for _ in range(n)]
    refusals = {a.text: math.exp(a.logprob) for a in drawn if world.refuses(a.text)}
    counts = Counter(a.text for a in drawn)
    # 4 refusals x (none or 4 reasons) x (none or 4 alternatives) = 100 texts that share a probability of 0.9
    assert len(refusals) == 100 and sum(refusals.values()) == pytest.approx(0.9)
    assert all(
        abs(counts[x] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))
        for x, p in refusals.items()
    )


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
    # strength 3 when |d + logistic noise| >= 3.5, d the utility difference in units of the temperature
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
        [world.write_answer(rng, EGG, world.RATED_STYLE).text for _ in range(2)]
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
    # the labels that were drawn agree with the truth as often as the ceiling says, and their log-loss is the floor
    n = len(preferences)
    assert abs(sum(right) / n - ceiling) < 4 * math.sqrt(0.25 / n)
    loss = [
        -math.log(annotator.prefers(EGG, x.chosen, x.rejected)) for x in preferences
    ]
    assert abs(sum(loss) / n - floor) < 4 * 0.6 / math.sqrt(n)
