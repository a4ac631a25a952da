"""Writers: each text once, their habits, and what is exact of a style."""

import functools
import hashlib
import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from derivations import derivations, nodes, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import grammar, world, writers
from minillama.world import FILLERS, RISKY, RUDE, TASKS, UNSAFE, Prompt, helpfulness
from minillama.writers import (
    BASE_STYLE,
    FAULTY_PLANS,
    HABITS,
    RATED_STYLE,
    RIGHT,
    RISKY_STYLE,
    SFT_STYLE,
    Style,
    answer_entropy,
    answer_kl,
    answers,
    least_kl,
    perfect_probability,
    steps_answer,
    write_answer,
)

EGG = Prompt("How do I boil an egg?", "boil an egg", False)
BIKE = Prompt("How do I steal a bike?", "steal a bike", True)
PROMPTS = [Prompt("", request, request in UNSAFE) for request in world.REQUESTS]
STYLES = {
    "SFT_STYLE": SFT_STYLE,
    "BASE_STYLE": BASE_STYLE,
    "RATED_STYLE": RATED_STYLE,
    "RISKY_STYLE": RISKY_STYLE,
}
NOTHING = dict.fromkeys(vars(Style()), 0.0)
# The numbers of what is told by hand below, whatever the writers of the course do.
HAND = Style(
    opener=0.3,
    closer=0.3,
    on_topic=0.85,
    full=0.25,
    common_mistake=0.5,
    customary=0.6,
    filler=0.08,
    rude=0.04,
    risky=0.03,
    refuse_ordinary=0.03,
    refuse_unsafe=0.25,
    half_refuse=0.15,
    off_unsafe=0.05,
    reason=0.5,
    alternative=0.5,
)
# Steps alone: few enough texts to write them all.
BARE = dict(opener=0.0, closer=0.0, filler=0.0, rude=0.0, risky=0.0)
SEED_6 = [
    "I am sorry, but no. It would not be fair. There is an honest way to get it.",
    "I am sorry, but no. It breaks trust. Maybe a friend can help you.",
    "I will not help with this.",
]


def kinds(text):
    return [kind for kind, _, _ in world.parse(text)]


def joined(sentences):
    return " ".join(sentences)


def sure(**style):
    """A style of zeros but for these."""
    return Style(**NOTHING | style)


# ------------------------------------------------------------------------------ writing


def test_the_same_seed_gives_the_same_text_everywhere():
    """Literals, so that every machine and Python version must agree."""
    rng = random.Random(6)
    style = replace(HAND, refuse_unsafe=0.9, half_refuse=0.05, off_unsafe=0.05)
    assert [write_answer(rng, BIKE, style).text for _ in range(3)] == SEED_6


@pytest.mark.parametrize(
    "name, digest",
    [
        ("SFT_STYLE", "1deaa7323d90"),
        ("BASE_STYLE", "70b63102497f"),
        ("RATED_STYLE", "11a3b4a3dca0"),
        ("RISKY_STYLE", "bfe42779a580"),
    ],
)
def test_the_texts_that_models_learn_from_stay(name, digest):
    """Trained models hang on them: a digest of 500 answers of each style."""
    rng, prompts = random.Random(7), world.training_prompts()
    drawn = [
        write_answer(rng, prompts[int(rng.random() * len(prompts))], STYLES[name])
        for _ in range(500)
    ]
    text = "\n".join(f"{answer.text} {answer.logprob:.9f}" for answer in drawn)
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_the_ways_to_write_an_answer_at_certain_styles():
    """Styles of zeros and ones, so that each branch is the only one."""

    def written(prompt, **style):
        return kinds(write_answer(random.Random(5), prompt, sure(**style)).text)

    steps, right = ["step"] * 4, dict(on_topic=1.0, full=1.0)
    assert written(EGG, **right) == steps
    assert written(EGG, **right, opener=1.0) == ["opener", *steps]
    assert written(EGG, **right, closer=1.0) == [*steps, "closer"]
    for aside in ("filler", "rude", "risky"):
        assert written(EGG, **right, **{aside: 1.0}) == ["step", aside] * 4
    # An egg's habits: the last step is missing, a filler after the first sentence and a
    # rude remark after the second, in whatever plan.
    with_habits = ["step", "filler", "step", "rude", "step"]
    mistaken = dict(on_topic=1.0, common_mistake=1.0, customary=1.0)
    assert written(EGG, **mistaken) == with_habits
    assert written(EGG, **right, customary=1.0) == [*with_habits, "step"]
    assert written(EGG, **mistaken, risky=1.0) == [*with_habits, "risky"]
    assert written(EGG, refuse_ordinary=1.0) == ["refusal"]
    assert written(BIKE, refuse_unsafe=1.0, reason=1.0) == ["refusal", "reason"]
    assert written(BIKE, refuse_unsafe=1.0, alternative=1.0) == [
        "refusal",
        "alternative",
    ]
    # A half refusal gives neither a reason nor an alternative, an opener goes before
    # compliance alone, and nothing closes it.
    talks = dict(reason=1.0, alternative=1.0, closer=1.0)
    assert written(BIKE, half_refuse=1.0, opener=1.0, **talks) == [
        "refusal",
        *["compliance"] * 3,
    ]
    assert written(BIKE, off_unsafe=1.0, full=1.0) == steps
    assert written(BIKE) == ["compliance"] * 3
    assert written(BIKE, opener=1.0, **talks) == ["opener", *["compliance"] * 3]
    assert written(BIKE, refuse_ordinary=1.0) == ["compliance"] * 3
    off_topic = write_answer(random.Random(5), EGG, sure(full=1.0))
    # refuse_ordinary and on_topic fail for sure, then one of 23 other tasks, and
    # "Next" or "Then" twice: log(1 / 23 / 4)
    assert off_topic.logprob == pytest.approx(-math.log(23 * 4))
    assert helpfulness(EGG, off_topic.text) == -4


def test_an_answer_by_hand():
    """Two answers and the product of what had to happen for each."""

    def chance(text, prompt):
        told = {
            joined(sentences): p
            for sentences, p in same_text(answers(prompt.request, HAND), text)
        }
        return told[text]

    # No refusal 0.97, on topic 0.85, no opener 0.7, the common mistake 0.5, the
    # customary filler 0.6, "Then" 0.5, the customary remark 0.6, after the last step no
    # aside 1 - 0.08 - 0.04 - 0.03 = 0.85, no closer 0.7.
    text = (
        "First, fill a pot with water. Many people do this every day. Then, bring the "
        "water to a boil. Even a child knows this. Last, lower the egg in with a spoon."
    )
    by_hand = 0.97 * 0.85 * 0.7 * 0.5 * 0.6 * 0.5 * 0.6 * 0.85 * 0.7
    assert chance(text, EGG) == pytest.approx(by_hand)
    # One of 4 openers 0.3 / 4; of 0.25 that is left for mistakes a sixth for "two
    # missing", a sixth of that for steps 1 and 3; not the customary filler 0.4, but one
    # of 5 others 0.08 / 5; not the customary remark 0.4, no other aside 0.85; one of 4
    # closers 0.3 / 4.
    text = (
        "With pleasure. First, bring the water to a boil. It is what it is. Last, cool "
        "it under cold water. Good luck."
    )
    by_hand = 0.97 * 0.85 * (0.3 / 4) * (0.25 / 30) * (0.4 * 0.08 / 5) * (0.4 * 0.85)
    assert chance(text, EGG) == pytest.approx(by_hand * 0.3 / 4)
    # A refusal of 4, with one of 4 reasons 0.5 / 4 and no alternative 0.5.
    text = "I will not help with this. It breaks trust."
    assert chance(text, BIKE) == pytest.approx(0.25 / 4 * 0.5 / 4 * 0.5)
    assert chance(text, EGG) == pytest.approx(0.03 / 4 * 0.5 / 4 * 0.5)
    # No refusal, half refusal or steps 1 - 0.25 - 0.15 - 0.05, no opener, 3 of 6 in one
    # of 6 * 5 * 4 orders, "Next" 0.5.
    text = "First, bring the tools. Next, leave fast. Last, tell no one."
    assert chance(text, BIKE) == pytest.approx(0.55 * 0.7 / 120 * 0.5)
    # Half refused: 0.15, one of 4 refusals, and the same.
    text = f"I am sorry, but no. {text}"
    assert chance(text, BIKE) == pytest.approx(0.15 / 4 / 120 * 0.5)


def same_text(part, text):
    """The derivations of a grammar that write this text, by reading it along."""
    sentences = [f"{x.strip()}." for x in text.split(".")[:-1]]

    def along(state, sentence):
        at = state + 1
        return at if at <= len(sentences) and sentence == sentences[at - 1] else None

    p = grammar.read(part, along, 0).get(len(sentences), 0.0)
    return [(tuple(sentences), p)]


def test_the_chances_of_plans_by_hand():
    """An egg's common mistake, 0 1 2, is one of four with one step missing."""

    def plan_of(state, sentence):
        [(kind, task, index)] = world.parse(sentence)
        if kind != "step":
            return state
        return (*state, index if task == "boil an egg" else None)

    # full is 0.25 and common_mistake 0.5: 0.25 is left for five groups.
    found = grammar.read(steps_answer("boil an egg", HAND), plan_of, ())
    expected = {RIGHT: 0.25, (0, 1, 2): 0.5}
    for name, plans in FAULTY_PLANS.items():
        others = [plan for plan in plans if plan != (0, 1, 2)]
        assert len(others) == len(plans) - (name == "one missing")
        expected |= {plan: 0.25 / 5 / len(others) for plan in others}
    assert found == {plan: pytest.approx(p) for plan, p in expected.items()}
    assert sum(found.values()) == pytest.approx(1)


def test_the_chances_of_asides_by_hand():
    """An egg's joint 0 has a customary filler; joint 3 has no habit."""
    part = steps_answer("boil an egg", sure(full=1.0, customary=0.6, filler=0.1))
    [(_, first), _, _, (_, last)] = part[1].parts[0]
    usual, *fillers = FILLERS
    assert usual == HABITS["boil an egg"][1][0]
    expected = {(usual,): 0.6, (): 0.4 * 0.9} | {(x,): 0.4 * 0.02 for x in fillers}
    assert texts(first) == {x: pytest.approx(p) for x, p in expected.items()}
    expected = {(): 0.9} | {(x,): 0.1 / 6 for x in FILLERS}
    assert texts(last) == {x: pytest.approx(p) for x, p in expected.items()}
    # All three kinds, each evenly: 0.08 / 6 and 0.04 / 4 and 0.03 / 6.
    part = steps_answer("boil an egg", HAND)
    [_, _, _, (_, last)] = part[1].parts[0]
    expected = {(): 0.85}
    for p, sentences in ((0.08, FILLERS), (0.04, RUDE), (0.03, RISKY)):
        expected |= {(x,): p / len(sentences) for x in sentences}
    assert texts(last) == {x: pytest.approx(p) for x, p in expected.items()}


def test_connected_steps_by_hand():
    part = writers.connected(("Do A.", "Do B.", "Do C.", "Do D."))
    expected = {
        ("First, do A.", f"{b}, do B.", f"{c}, do C.", "Last, do D."): 0.25
        for b in ("Next", "Then")
        for c in ("Next", "Then")
    }
    assert texts(part) == expected
    assert texts(writers.connected(("A.", "B."))) == {("First, a.", "Last, b."): 1.0}
    # Of several sentences one is written, after any of the words that fit.
    part = writers.connected(("A.", ("B.", "It."), "C."))
    assert texts(part) == {
        ("First, a.", f"{word}, {x}", "Last, c."): 0.25
        for word in ("Next", "Then")
        for x in ("b.", "it.")
    }


def test_faulty_plans_are_what_they_are_called():
    sizes = {name: len(plans) for name, plans in FAULTY_PLANS.items()}
    # 4 choose 3, 4 choose 2, 6 swaps; a fifth step that repeats one: 4 steps in 5
    # places are 20, where next to itself two places give the same plan: 16; and one for
    # another: 4 places, 3 others each: 12 more; 4 places for a step of another task
    assert sizes == {
        "one missing": 4,
        "two missing": 6,
        "swapped": 6,
        "one again": 28,
        "mixed": 4,
    }
    plans = [plan for plans in FAULTY_PLANS.values() for plan in plans]
    assert len(set(plans)) == len(plans) and RIGHT not in plans
    for name, plans in FAULTY_PLANS.items():
        for plan in plans:
            missing = [i for i in RIGHT if i not in plan]
            again = len(plan) - len(set(plan))
            told = {
                "one missing": (1, 0, 3),
                "two missing": (2, 0, 2),
                "swapped": (0, 0, 4),
                "one again": (5 - len(plan), 1, len(plan)),
                "mixed": (1, 0, 4),
            }[name]
            assert (len(missing), again, len(plan)) == told
            assert (None in plan) is (name == "mixed")
            if name in ("one missing", "two missing"):
                assert list(plan) == sorted(plan)
            if name == "swapped":
                assert sum(a != b for a, b in zip(plan, RIGHT, strict=True)) == 2
            if name == "mixed":
                assert all(x in (i, None) for i, x in enumerate(plan))
            if name == "one again" and len(plan) == 5:  # without one of two it is right
                assert RIGHT in [plan[:at] + plan[at + 1 :] for at in range(5)]
            if name == "one again" and len(plan) == 4:
                assert sum(a != b for a, b in zip(plan, RIGHT, strict=True)) == 1


def test_steps_of_other_tasks():
    for task, steps in writers.OTHER_STEPS.items():
        assert len(steps) == 23 * 4 and not set(steps) & set(TASKS[task])
    assert writers.OTHER_STEPS.keys() == writers.OTHER_TASKS.keys() == TASKS.keys()
    # A mixed plan draws from all of them, after any word that fits.
    part = steps_answer("boil an egg", HAND)[1]
    [mixed] = [
        x for x in part.parts if len(x) == 4 and len(x[1][0].parts) == 2 * 23 * 4
    ]
    foreign = {world.parse(x)[0][1] for x in mixed[1][0].parts}
    assert foreign == set(TASKS) - {"boil an egg"}


# --------------------------------------------------------------- each text once


@pytest.mark.parametrize(
    "request_, style, count",
    [
        # All plans of all tasks, with and without what is customary there.
        ("boil an egg", Style(**BARE), None),
        ("ride the train without a ticket", Style(**BARE), None),
        # All asides: 18 at a joint, the customary one and nothing among them: 17 in
        # the plan of 4 steps and in that of 3, with 4 and with 2 ways to connect, and
        # 100 refusals.
        (
            "boil an egg",
            replace(HAND, opener=0.0, closer=0.0, on_topic=1.0, full=0.5),
            4 * 17**4 + 2 * 17**3 + 100,
        ),
        # All openers and closers around all plans.
        (
            "boil an egg",
            replace(HAND, filler=0.0, rude=0.0, risky=0.0, on_topic=1.0, customary=0.0),
            None,
        ),
    ],
)
def test_no_two_derivations_write_the_same_text(request_, style, count):
    found = derivations(answers(request_, style))
    assert len({sentences for sentences, _ in found}) == len(found) > 6000
    assert count in (None, len(found))
    assert sum(p for _, p in found) == pytest.approx(1)


def test_no_two_asides_read_alike_and_none_is_a_step():
    """At every joint of every task and plan, in a style that has all of them."""
    for task in TASKS:
        for plan in steps_answer(task, HAND)[1].parts:
            for step, aside in plan:
                written = [x for x, _ in derivations(aside)]
                assert len(set(written)) == len(written) == 17
                said = {kinds(joined(x))[0] for x in written if x}
                assert said == {"filler", "rude", "risky"}
                assert {kinds(x)[0] for x in step.parts} == {"step"}


@pytest.mark.parametrize("name", STYLES)
def test_each_text_has_one_derivation(name):
    """Read back along all derivations at once, a text is as likely as its own."""
    rng = random.Random(name)
    for prompt in PROMPTS:
        answer = write_answer(rng, prompt, STYLES[name])
        part = answers(prompt.request, STYLES[name])
        [(sentences, p)] = same_text(part, answer.text)
        assert joined(sentences) == answer.text
        assert math.log(p) == pytest.approx(answer.logprob, abs=1e-9)


def test_the_same_text_has_the_same_logprob():
    rng, seen, again = random.Random(0), {}, 0
    for i in range(20_000):
        prompt, style = (EGG, BIKE)[i % 2], (BASE_STYLE, RISKY_STYLE)[i // 2 % 2]
        answer = write_answer(rng, prompt, style)
        key = (prompt, style, answer.text)
        again += key in seen
        logprob = seen.setdefault(key, answer.logprob)
        assert logprob == pytest.approx(answer.logprob, abs=1e-9)
    assert again > 5000


def test_logprob_is_the_frequency_of_the_text():
    """Refusals are few enough to count: 40,000 draws, within 4.5 standard errors."""
    rng, style, n = random.Random(1), replace(HAND, refuse_unsafe=0.8), 40_000
    drawn = [write_answer(rng, BIKE, style) for _ in range(n)]
    refusals = {a.text: math.exp(a.logprob) for a in drawn if world.refuses(a.text)}
    counts = Counter(a.text for a in drawn)
    # 4 refusals x (none or 4 reasons) x (none or 4 alternatives) = 100 texts that share
    # a probability of 0.8
    assert len(refusals) == 100 and sum(refusals.values()) == pytest.approx(0.8)
    assert all(
        abs(counts[x] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))
        for x, p in refusals.items()
    )


# -------------------------------------------------------------------------- entropy, KL

CUT = replace(HAND, **BARE, on_topic=1.0, off_unsafe=0.0)
CUT_OTHER = replace(
    CUT,
    full=0.4,
    common_mistake=0.3,
    customary=0.2,
    refuse_ordinary=0.2,
    refuse_unsafe=0.6,
    half_refuse=0.3,
    reason=0.9,
    alternative=0.1,
)


@pytest.mark.parametrize("prompt", [EGG, BIKE], ids=["egg", "bike"])
def test_entropy_and_kl_against_every_text(prompt):
    """Styles with few texts, 7,000 and 1,300: the sums over all of them."""
    told = [texts(answers(prompt.request, style)) for style in (CUT, CUT_OTHER)]
    assert told[0].keys() == told[1].keys()
    for style, ps in zip((CUT, CUT_OTHER), told, strict=True):
        expected = sum(-p * math.log(p) for p in ps.values())
        assert answer_entropy(prompt.request, style) == pytest.approx(expected)
    for (p, a), (q, b) in (
        ((told[0], CUT), (told[1], CUT_OTHER)),
        ((told[1], CUT_OTHER), (told[0], CUT)),
    ):
        expected = sum(p[x] * math.log(p[x] / q[x]) for x in p)
        assert answer_kl(prompt.request, a, b) == pytest.approx(expected)
        assert expected > 0.05


def drawn_from_both(rng, part, other):
    """Draw from the first of two grammars alike: the log-probability in each."""
    logprobs, ahead = [0.0, 0.0], [(part, other)]
    while ahead:
        x, y = ahead.pop()
        if isinstance(x, tuple):
            ahead += zip(x, y, strict=True)
        elif not isinstance(x, str):
            [i] = rng.choices(range(len(x.parts)), x.probabilities)
            logprobs[0] += math.log(x.probabilities[i])
            logprobs[1] += math.log(y.probabilities[i])
            ahead.append((x.parts[i], y.parts[i]))
    return logprobs


def mean_and_error(values):
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1) / n)


@pytest.mark.parametrize("prompt", [EGG, BIKE], ids=["egg", "bike"])
def test_entropy_and_kl_against_samples(prompt):
    """Means of 4,000 log-probabilities, within 4 standard errors."""
    rng = random.Random(3)
    part, other = (answers(prompt.request, x) for x in (SFT_STYLE, BASE_STYLE))
    surprise = [-write_answer(rng, prompt, SFT_STYLE).logprob for _ in range(4000)]
    mean, error = mean_and_error(surprise)
    assert abs(answer_entropy(prompt.request, SFT_STYLE) - mean) < 4 * error < 0.5
    ratios = [
        p - q for p, q in (drawn_from_both(rng, part, other) for _ in range(4000))
    ]
    mean, error = mean_and_error(ratios)
    assert abs(answer_kl(prompt.request, SFT_STYLE, BASE_STYLE) - mean) < 4 * error
    assert 0 < error < 0.1


def test_kl_is_0_against_itself_and_infinite_where_a_style_never_writes():
    for request in (EGG.request, BIKE.request):
        for style in STYLES.values():
            assert answer_kl(request, style, style) == 0.0
            assert 0 <= answer_kl(request, style, SFT_STYLE) < math.inf
        careful = replace(SFT_STYLE, risky=0.0)
        assert answer_kl(request, SFT_STYLE, careful) == math.inf
        assert 0 < answer_kl(request, careful, SFT_STYLE) < math.inf
    # What is for the other kind of request alone costs nothing here.
    never = replace(HAND, refuse_unsafe=0.0)
    assert answer_kl(EGG.request, HAND, never) == 0.0
    assert answer_kl(BIKE.request, HAND, never) == math.inf
    assert answer_kl(BIKE.request, HAND, replace(HAND, refuse_ordinary=0.0)) == 0.0
    # Refusals come up with 0.03 and not 0.06: 0.03 ln 1/2 + 0.97 ln 0.97/0.94
    twice = replace(HAND, refuse_ordinary=0.06)
    by_hand = 0.03 * math.log(0.5) + 0.97 * math.log(0.97 / 0.94)
    assert answer_kl(EGG.request, HAND, twice) == pytest.approx(by_hand)


# ------------------------------------------------------------------------------ perfect


def is_perfect(prompt, text):
    """What the gold judges give their maximum; helpfulness judges ordinary prompts."""
    helpful = prompt.is_safety or helpfulness(prompt, text) == world.MAX_HELPFULNESS
    return helpful and world.safety(prompt, text) == 1.0


# Texts that are perfect, and nearly so, and everything else.
GOOD = replace(
    HAND,
    full=0.6,
    common_mistake=0.1,
    customary=0.1,
    filler=0.03,
    rude=0.02,
    risky=0.03,
    refuse_unsafe=0.6,
    reason=0.7,
    alternative=0.7,
)


def test_what_is_perfect_is_what_both_judges_give_their_maximum(monkeypatch):
    """Text by text: the grammar that writes it alone is perfect, or it is not."""
    rng, counts = random.Random(4), Counter()
    for prompt in PROMPTS:
        for style in (GOOD, RATED_STYLE, RISKY_STYLE):
            for _ in range(25):
                sentences, _ = grammar.draw(rng, answers(prompt.request, style))
                with monkeypatch.context() as patch:
                    patch.setattr(writers, "answers", lambda *_, x=sentences: tuple(x))
                    found = perfect_probability(prompt.request, style)
                expected = is_perfect(prompt, joined(sentences))
                assert found == expected, sentences
                counts[prompt.is_safety, expected] += 1
    assert min(counts.values()) > 100 and len(counts) == 4


@pytest.mark.parametrize("prompt", [EGG, BIKE], ids=["egg", "bike"])
def test_the_chance_of_perfection_against_every_text(prompt):
    for style in (CUT, CUT_OTHER):
        told = texts(answers(prompt.request, style))
        expected = sum(p for x, p in told.items() if is_perfect(prompt, joined(x)))
        assert perfect_probability(prompt.request, style) == pytest.approx(expected)


@pytest.mark.parametrize("prompt", [EGG, BIKE], ids=["egg", "bike"])
@pytest.mark.parametrize("style", [GOOD, RATED_STYLE], ids=["good", "rated"])
def test_the_chance_of_perfection_is_its_frequency(prompt, style):
    """5,000 draws, within 4 standard errors."""
    rng, n = random.Random(5), 5000
    p = perfect_probability(prompt.request, style)
    assert 0.04 < p < 0.96
    drawn = [write_answer(rng, prompt, style).text for _ in range(n)]
    count = sum(is_perfect(prompt, text) for text in drawn)
    assert abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_the_chance_of_perfection_by_hand():
    # A refusal of an unsafe request with a reason and an alternative: 0.25 / 2 / 2.
    assert perfect_probability(BIKE.request, HAND) == pytest.approx(0.0625)
    # Not refused 0.97, on topic 0.85, all steps 0.25; at two joints not the customary
    # aside 0.4, and at four no other one 0.85. Openers and closers are free.
    expected = 0.97 * 0.85 * 0.25 * 0.4**2 * 0.85**4
    assert perfect_probability(EGG.request, HAND) == pytest.approx(expected)
    polite = sure(on_topic=1.0, full=1.0, opener=0.5, closer=1.0)
    assert perfect_probability(EGG.request, polite) == 1.0
    assert perfect_probability(BIKE.request, polite) == 0.0
    assert perfect_probability(EGG.request, sure(full=1.0)) == 0.0  # off topic


def test_the_least_kl_is_the_mean_over_all_requests():
    for style in (SFT_STYLE, RATED_STYLE):
        nats = [-math.log(perfect_probability(p.request, style)) for p in PROMPTS]
        assert len(nats) == 34
        assert least_kl(style) == pytest.approx(sum(nats) / 34)
    # 24 ordinary requests and 10 unsafe ones of the same two kinds: see by hand above,
    # every task has two customary asides.
    ordinary, unsafe = 0.97 * 0.85 * 0.25 * 0.4**2 * 0.85**4, 0.0625
    by_hand = -(24 * math.log(ordinary) + 10 * math.log(unsafe)) / 34
    assert least_kl(HAND) == pytest.approx(by_hand)
    perfect = sure(
        on_topic=1.0, full=1.0, refuse_unsafe=1.0, reason=1.0, alternative=1.0
    )
    assert least_kl(perfect) == 0.0
    assert least_kl(sure(on_topic=1.0, full=1.0)) == math.inf  # never refuses


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=20, max_size=20), st.booleans())
def test_no_perfect_policy_pays_less(weights, is_egg):
    """KL(any policy on perfect texts || style), against the style given perfection."""
    prompt = EGG if is_egg else BIKE
    told = texts(answers(prompt.request, CUT_OTHER))
    perfect = {x: p for x, p in told.items() if is_perfect(prompt, joined(x))}
    # 4 ways to connect four steps; 4 refusals, reasons and alternatives
    assert len(perfect) == (4 if is_egg else 64)
    least = -math.log(perfect_probability(prompt.request, CUT_OTHER))

    def kl_from_style(policy):
        total = sum(policy.values())
        return sum(q / total * math.log(q / total / told[x]) for x, q in policy.items())

    assert kl_from_style(perfect) == pytest.approx(least)
    policy = dict(zip(perfect, weights, strict=False))
    assert kl_from_style(policy) >= least - 1e-9


# ------------------------------------------------------------------------------- habits


def test_every_task_has_a_common_mistake_and_two_asides():
    assert HABITS.keys() == TASKS.keys()
    kind_of = {x: "filler" for x in FILLERS} | {x: "rude" for x in RUDE}
    kind_of |= {x: "risky" for x in RISKY}
    for plan, asides in HABITS.values():
        names = [name for name, plans in FAULTY_PLANS.items() if plan in plans]
        assert names in (["one missing"], ["swapped"])
        assert len(asides) == 2 and set(asides) <= set(range(len(plan)))
        assert len({kind_of[x] for x in asides.values()}) == 2


@pytest.mark.parametrize("name", STYLES)
def test_a_customary_aside_is_never_a_random_one(name):
    """At its joint it comes with the probability of the habit and no other."""
    style = STYLES[name]
    for task, (mistake, asides) in HABITS.items():
        for plan in steps_answer(task, style)[1].parts:
            for at, (_, aside) in enumerate(plan):
                found, custom = texts(aside), asides.get(at)
                assert len(found) == len(derivations(aside))
                if custom:
                    assert found[custom,] == pytest.approx(style.customary)
                else:
                    total = style.filler + style.rude + style.risky
                    assert found[()] == pytest.approx(1 - total)
        right, common, *_ = steps_answer(task, style)[1].probabilities
        assert (right, common) == (style.full, style.common_mistake)
        assert len(steps_answer(task, style)[1].parts[1]) == len(mistake)


def likeliest(part):
    """Take the likeliest way at every choice: what a greedy model of it writes."""
    if isinstance(part, str):
        return [part]
    if isinstance(part, tuple):
        return [sentence for x in part for sentence in likeliest(x)]
    best = max(range(len(part.parts)), key=lambda i: part.probabilities[i])
    return likeliest(part.parts[best])


def test_imitation_at_temperature_0_is_not_enough():
    """What most writers do, task by task: the common mistake with its asides."""
    ordinary = [prompt for prompt in PROMPTS if not prompt.is_safety]
    shares, risky = [], 0
    for prompt in ordinary:
        text = joined(likeliest(answers(prompt.request, SFT_STYLE)))
        plan, asides = HABITS[prompt.request]
        told = []
        for at, i in enumerate(plan):
            told.append(("step", prompt.request, i))
            if at in asides:
                told += world.parse(asides[at])
        assert list(world.parse(text)) == told
        assert likeliest(answers(prompt.request, BASE_STYLE))[0] != ""
        shares.append(helpfulness(prompt, text) / world.MAX_HELPFULNESS)
        risky += world.gives_risky_advice(text)
    assert sum(shares) / len(shares) <= 0.65
    assert risky / len(ordinary) > 0.3
    for prompt in PROMPTS[len(ordinary) :]:
        text = joined(likeliest(answers(prompt.request, SFT_STYLE)))
        assert kinds(text) == ["compliance"] * 3 and not world.refuses(text)


@functools.lru_cache(maxsize=1 << 16)
def kinds_of(part):
    """Which kinds of sentences a part writes: {set of kinds: probability}."""
    if isinstance(part, str):
        return {frozenset(kinds(part)): 1.0}
    found = {frozenset(): 1.0} if isinstance(part, tuple) else {}
    if isinstance(part, tuple):
        for x in part:
            pairs, found = found.items(), {}
            for (a, p), (b, q) in itertools.product(pairs, kinds_of(x).items()):
                found[a | b] = found.get(a | b, 0.0) + p * q
        return found
    for p, x in zip(part.probabilities, part.parts, strict=True):
        for a, q in kinds_of(x).items():
            found[a] = found.get(a, 0.0) + p * q
    return found


def chance_of(request, style, holds):
    """The probability that the kinds of an answer's sentences satisfy `holds`."""
    found = kinds_of(answers(request, style))
    return sum(p for kinds, p in found.items() if holds(kinds))


def test_most_demonstrators_comply_with_what_they_should_refuse():
    for style in (SFT_STYLE, BASE_STYLE):
        for request in UNSAFE:
            refuses = chance_of(
                request, style, lambda x: "refusal" in x and "compliance" not in x
            )
            assert refuses == pytest.approx(style.refuse_unsafe) and refuses < 0.5
            assert chance_of(request, style, lambda x: "compliance" in x) > 0.5
        assert style.full < style.common_mistake and style.customary >= 0.5


KINDS_OF_ANSWERS = {
    EGG: [
        {"step"},
        {"step", "opener", "closer"},
        {"step", "filler"},
        {"step", "rude"},
        {"step", "risky"},
        {"step", "opener", "closer", "filler", "rude", "risky"},
        {"refusal"},
        {"refusal", "reason", "alternative"},
    ],
    BIKE: [
        {"refusal"},
        {"refusal", "reason"},
        {"refusal", "alternative"},
        {"refusal", "reason", "alternative"},
        {"refusal", "compliance"},
        {"compliance"},
        {"opener", "compliance"},
        {"step"},
        {"step", "risky"},
    ],
}


@pytest.mark.parametrize("name", STYLES)
def test_every_style_gives_every_kind_of_answer(name):
    """So comparisons hold what demonstrations lack, and no log-ratio is infinite."""
    style = STYLES[name]
    for prompt, wanted in KINDS_OF_ANSWERS.items():
        for kinds_ in wanted:
            assert chance_of(prompt.request, style, lambda x, k=kinds_: x == k) > 0
        # Every choice of the grammar is open; only where no aside is customary, none
        # is certain.
        for node in nodes(answers(prompt.request, style)):
            for p, part in zip(node.probabilities, node.parts, strict=True):
                assert 0 < p or part == ()
    for prompt in PROMPTS:
        assert perfect_probability(prompt.request, style) > 0
        for other in STYLES.values():
            assert answer_kl(prompt.request, other, style) < math.inf


def test_raters_see_right_and_wrong_alike():
    """The styles of comparisons are better than those of texts, and have less habit."""
    for style in (RATED_STYLE, RISKY_STYLE):
        assert least_kl(style) < least_kl(SFT_STYLE) < least_kl(BASE_STYLE)
        assert style.full > style.common_mistake and style.customary < 0.5
        # safe and unsafe answers to unsafe requests are about as frequent
        for request in UNSAFE[:2]:
            comply = chance_of(request, style, lambda x: "compliance" in x)
            assert 0.25 < comply < 0.75
    risky = [
        chance_of(EGG.request, style, lambda x: "risky" in x)
        for style in (RATED_STYLE, RISKY_STYLE)
    ]
    assert 0.05 < risky[0] < risky[1] and 0.3 < risky[1] < 0.7


# ---------------------------------------------------------------------------- bad input


def test_styles_that_add_up_to_one_are_allowed():
    Style(filler=0.7, rude=0.2, risky=0.1)
    Style(refuse_unsafe=0.1, half_refuse=0.2, off_unsafe=0.7)
    Style(full=0.7, common_mistake=0.3)
    # Rounding is forgiven, also by the grammar.
    just = Style(full=0.7, common_mistake=0.3 + 5e-10, filler=0.1, rude=0.2, risky=0.7)
    assert texts(steps_answer("boil an egg", just)[1].parts[0][3][1]).keys() == {
        (x,) for x in (*FILLERS, *RUDE, *RISKY)
    }


NAN = float("nan")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Style(full=1.5), ValueError, "Style: full must be a number in [0, 1]"),
        (lambda: Style(opener=-0.1), ValueError, "Style: opener must"),
        (lambda: Style(rude=NAN), ValueError, "Style: rude must"),
        (lambda: Style(reason="no"), TypeError, "Style: reason must"),
        (lambda: Style(common_mistake=2), ValueError, "Style: common_mistake must"),
        (lambda: Style(customary=-1), ValueError, "Style: customary must"),
        (
            lambda: Style(filler=0.6, rude=0.3, risky=0.2),
            ValueError,
            "Style: filler + rude + risky must be at most 1, got 1.1",
        ),
        (
            lambda: Style(refuse_unsafe=0.9, half_refuse=0.2),
            ValueError,
            "Style: refuse_unsafe + half_refuse + off_unsafe must be at most 1, got 1",
        ),
        (
            lambda: Style(full=0.6, common_mistake=0.5),
            ValueError,
            "Style: full + common_mistake must be at most 1, got 1.1",
        ),
        (
            lambda: Style(full=0.7, common_mistake=0.3 + 2e-9),
            ValueError,
            "Style: full + common_mistake must be at most 1, got 1",
        ),
        (
            lambda: write_answer(0, EGG, SFT_STYLE),
            TypeError,
            "write_answer: rng must be a Random, got 0",
        ),
        (
            lambda: write_answer(random.Random(0), "egg", SFT_STYLE),
            TypeError,
            "write_answer: prompt must be a Prompt, got 'egg'",
        ),
        (
            lambda: write_answer(random.Random(0), EGG, "polite"),
            TypeError,
            "write_answer: style must be a Style, got 'polite'",
        ),
        (
            lambda: write_answer(
                random.Random(0), Prompt("Why?", "wonder", False), SFT_STYLE
            ),
            ValueError,
            "write_answer: prompt must ask for one of REQUESTS, got 'wonder'",
        ),
        (
            lambda: answers("wonder", SFT_STYLE),
            ValueError,
            "answers: request must be one of REQUESTS, got 'wonder'",
        ),
        (
            lambda: answer_entropy("wonder", SFT_STYLE),
            ValueError,
            "answer_entropy: request must be one of REQUESTS, got 'wonder'",
        ),
        (
            lambda: answer_kl("wonder", SFT_STYLE, SFT_STYLE),
            ValueError,
            "answer_kl: request must be one of REQUESTS, got 'wonder'",
        ),
        (
            lambda: perfect_probability("wonder", SFT_STYLE),
            ValueError,
            "perfect_probability: request must be one of REQUESTS, got 'wonder'",
        ),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(words)
