"""The audit of a reward model: each number by hand, on models whose habit is known."""

import math
import random

import matplotlib.pyplot as plt
import pytest
import torch

from minillama import audit, world, writers
from minillama.course import plots
from minillama.data import dialogue_example
from minillama.model import Llama, LlamaConfig
from minillama.reward_model import RewardModel

PROMPTS = [prompt for prompt in world.held_out_prompts() if not prompt.is_safety][::20]
EGG = world.find_prompt("How do I boil an egg?")


def words(text):
    return len(text.split())


def likes_length(dialogues):
    return torch.tensor([float(words(text)) for _, text in dialogues])


def knows_the_truth(dialogues):
    return torch.tensor(
        [
            world.helpfulness(world.find_prompt(prompt), text)
            for prompt, text in dialogues
        ]
    )


def preference(chosen, rejected):
    return world.Preference(EGG, chosen, rejected, 0, True, True)


def test_agreement_counts_probabilities_and_ties():
    differences, exact = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.9, 0.9, 0.9])
    assert audit.agreement(differences, exact) == pytest.approx((0.9 + 0.1 + 0.5) / 3)
    assert audit.length_only_accuracy(
        torch.tensor([3.0, 1.0]), torch.tensor([0.2, 0.4])
    ) == pytest.approx(0.7)


def test_the_brier_score_is_lowest_at_the_exact_probability():
    exact = torch.tensor([0.9, 0.5])
    assert audit.brier_floor(exact) == pytest.approx((0.09 + 0.25) / 2)
    assert audit.brier_score(exact, exact) == pytest.approx(audit.brier_floor(exact))
    assert audit.brier_score(torch.tensor([1.0, 0.5]), exact) == pytest.approx(
        (0.09 + 0.01 + 0.25) / 2
    )
    outcomes = (
        torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0)) < exact
    )
    predicted = torch.tensor([0.7, 0.2])
    simulated = (predicted - outcomes.float()).square().mean().item()
    assert audit.brier_score(predicted, exact) == pytest.approx(simulated, abs=0.005)


def test_correlation_is_pearsons():
    x, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 1.0, 0.0])
    assert audit.correlation(x, y) == pytest.approx(
        torch.corrcoef(torch.stack((x, y)))[0, 1].item()
    )
    assert audit.correlation(x, 2 * x + 5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "x, y",
    [
        (torch.ones(3), torch.arange(3.0)),
        (torch.ones(1), torch.ones(1)),
        (torch.arange(3.0), torch.full((3,), 0.1)),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2, 2), torch.ones(2, 2)),
        (torch.tensor([1.0, math.nan]), torch.arange(2.0)),
    ],
)
def test_correlation_refuses_what_has_none(x, y):
    with pytest.raises(ValueError, match=r"correlation: (x|y|x and y) must"):
        audit.correlation(x, y)


def test_length_buckets_by_hand():
    longer_by, differences = (
        torch.tensor([-3.0, 0.0, 1.0, 5.0]),
        torch.tensor([1.0, 1.0, -1.0, 1.0]),
    )
    found = audit.length_buckets(longer_by, differences, torch.ones(4), [-4, 0, 2, 4])
    assert found[:2] == [(-4, 0, 1, 1.0), (0, 2, 2, 0.5)]
    assert found[2][2] == 0 and math.isnan(found[2][3])


@pytest.mark.parametrize("flaw", audit.FLAWS)
def test_a_flawed_answer_is_worse_than_the_dull_one(flaw):
    rng = random.Random(0)
    for prompt in PROMPTS:
        flawed = audit.flawed_answer(rng, prompt, flaw)
        assert world.helpfulness(prompt, flawed) < world.MAX_HELPFULNESS
        kinds = [kind for kind, _, _ in world.parse(flawed)]
        assert kinds[0] == "opener" and kinds[-1] == "closer" and "unknown" not in kinds


def test_adversarial_pairs_find_the_honest_model_and_the_habit():
    pairs = audit.adversarial_pairs(random.Random(0), PROMPTS)
    assert len(pairs) == len(PROMPTS) * len(audit.FLAWS) and len(audit.FLAWS) >= 6
    assert all(
        world.helpfulness(prompt, dull) == world.MAX_HELPFULNESS
        for _, prompt, dull, _ in pairs
    )
    assert set(audit.accuracy_by_flaw(knows_the_truth, pairs).values()) == {1.0}
    fooled = audit.accuracy_by_flaw(likes_length, pairs)
    assert fooled["a step is repeated"] == fooled["empty talk"] == 0.0


def test_preferred_words_cancel_what_both_answers_share():
    chosen, rejected = ["good egg"] * 3 + ["egg"], ["bad egg"] * 3 + ["good egg"]
    found = audit.preferred_words(
        chosen, rejected, torch.tensor([1.0, 1.0, -1.0, 1.0]), smallest=0.6
    )
    assert found == [
        ("good", 0.5),
        ("bad", pytest.approx(1 / 3)),
    ]  # good: 2 of 4, bad: 1 of 3, egg: in no pair alone


def test_balanced_groups_have_as_many_long_winners_as_short_ones():
    rng, annotator = random.Random(1), world.Annotator(length_bias=1.0)
    groups = []
    for prompt in PROMPTS * 5:
        texts = [
            writers.write_answer(rng, prompt, writers.RATED_STYLE).text
            for _ in range(8)
        ]
        groups.append(
            world.collect_preferences(
                rng, annotator, [prompt] * 7, [(texts[0], text) for text in texts[1:]]
            )
        )
    by = [
        words(x.chosen) - words(x.rejected)
        for group in audit.length_balanced(groups, words, rng)
        for x in group
    ]
    assert len(by) > 20 and sorted(by) == sorted(-x for x in by)
    before = [words(x.chosen) - words(x.rejected) for group in groups for x in group]
    assert sum(before) > 0 and sum(x == 0 for x in by) == sum(x == 0 for x in before)
    assert all(audit.length_balanced(groups, words, rng))  # no empty group


def test_an_audit_of_two_models():
    rng, fair = random.Random(2), world.Annotator()
    pairs = [
        preference(
            *(
                writers.write_answer(rng, EGG, writers.RATED_STYLE).text
                for _ in range(2)
            )
        )
        for _ in range(200)
    ]
    exact = torch.tensor([fair.prefers(EGG, x.chosen, x.rejected) for x in pairs])
    honest = audit.audit(
        knows_the_truth, pairs, words, exact, audit.adversarial_pairs(rng, PROMPTS)
    )
    assert honest.accuracy == pytest.approx(
        honest.ceiling
    ) and honest.brier == pytest.approx(honest.brier_floor, abs=1e-6)
    assert (
        set(honest.flaws.values()) == {1.0}
        and sum(bucket[2] for bucket in honest.buckets) == 200
    )
    habit = audit.audit(likes_length, pairs, words, exact)
    assert habit.correlation == pytest.approx(1.0)
    assert habit.accuracy in (
        pytest.approx(habit.length_only),
        pytest.approx(1 - habit.length_only),
    )
    assert (
        habit.flaws == {}
        and "200 pairs" in honest.table()
        and "a refusal" in honest.table()
    )
    labels_only = audit.audit(likes_length, pairs, words)
    assert math.isnan(labels_only.ceiling) and math.isnan(labels_only.brier_floor)


def test_the_figure_shows_every_flaw():
    pairs = [
        preference("First, fill a pot with water.", "Good luck."),
        preference("Good luck.", "Leave fast. Tell no one."),
    ]
    report = audit.audit(
        likes_length,
        pairs,
        words,
        adversarial=audit.adversarial_pairs(random.Random(0), PROMPTS),
    )
    figure, axes = plt.subplots(1, 2)
    left, right = plots.audit_figure(axes, report)
    assert f"{report.correlation:+.2f}" in left.get_title() + left.get_title(loc="left")
    (marks, _) = right.get_lines()
    assert list(marks.get_xdata()) == list(report.flaws.values())
    assert marks.get_marker() == "o"  # a bar of length 0 would not be seen
    plt.close(figure)


def test_an_audit_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="audit: preferences must be at least 2"):
        audit.audit(likes_length, [preference("a", "b")], words)
    with pytest.raises(ValueError, match="with as many exact, got 2 and 3"):
        audit.audit(likes_length, [preference("a", "b")] * 2, words, torch.ones(3))


def test_the_longer_the_better_or_the_worse():
    exact = torch.tensor([0.9, 0.8])
    assert audit.length_only_accuracy(torch.tensor([1.0, 2.0]), exact) == pytest.approx(
        0.85
    )
    assert audit.length_only_accuracy(torch.tensor([-1.0, -2.0]), exact) == (
        pytest.approx(0.85)
    )


def test_every_flaw_by_hand():
    """The steps of an egg, with what is wrong in them."""
    a, b, c, d = world.TASKS[EGG.request]
    assert len(audit.FLAWS) == 7

    def all_of(flaw):
        rng = random.Random(0)
        return {tuple(audit.spoiled_steps(rng, EGG, flaw)) for _ in range(99)}

    assert all_of("a step is missing") == {(b, c, d), (a, c, d), (a, b, d)}
    assert all_of("two steps are swapped") == {(b, a, c, d), (a, c, b, d), (a, b, d, c)}
    assert all_of("a step is repeated") == {(a, b, c, d, x) for x in (a, b, c)}
    assert all_of("a refusal") == {(a, b, c, d)}
    for steps in all_of("a step of another task"):
        others = [step for step in steps if step not in (a, b, c, d)]
        assert (
            len(steps) == 5 and len(others) == 1 and steps.index(others[0]) in (1, 2, 3)
        )
        assert [step for step in steps if step not in others] == [a, b, c, d]
    # one remark after step 1, 2 or 3: the opener stays first and the closer last
    places = set()
    for seed in range(30):
        flawed = audit.flawed_answer(random.Random(seed), EGG, "a rude remark")
        places.add([kind for kind, _, _ in world.parse(flawed)].index("rude"))
    assert places == {2, 3, 4}


def test_draws_by_hand():
    """Seed 0 begins with 0.844, 0.758, 0.421, 0.259."""
    assert audit.pick(random.Random(0), "abcd") == "d"  # 0.844 of 4 is 3.4
    rng = random.Random(0)
    assert [audit.pick(rng, range(100)) for _ in range(4)] == [84, 75, 42, 25]
    # Each sentence takes a number, also where there is one word: then 0.758 is the
    # second of two and 0.421 the first.
    assert audit.said_in_order(
        random.Random(0), ("Do A.", "Do B.", "Do C.", "Do D.")
    ) == ["First, do A.", "Then, do B.", "Next, do C.", "Last, do D."]


def test_only_flaws_that_occur_are_told():
    pairs = audit.adversarial_pairs(random.Random(0), [EGG])
    some = [pair for pair in pairs if pair[0] in ("a refusal", "empty talk")]
    assert audit.accuracy_by_flaw(knows_the_truth, some) == {
        "a refusal": 1.0,
        "empty talk": 1.0,
    }
    ties = audit.accuracy_by_flaw(lambda dialogues: torch.zeros(len(dialogues)), pairs)
    assert set(ties.values()) == {0.5} and list(ties) == list(audit.FLAWS)


def test_words_that_decide_few_pairs_are_passed_over():
    chosen, rejected = ["a x", "b x", "a y"], ["z", "z", "z"]
    ups = torch.ones(3)
    assert audit.preferred_words(chosen, rejected, ups, smallest=0.5) == [
        ("a", 1.0),
        ("x", 1.0),
        ("z", 0.0),
    ]
    assert ("b", 1.0) in audit.preferred_words(chosen, rejected, ups)
    # one of 11 pairs is less than the default of a tenth, one of 10 is not
    for count, told in ((10, True), (11, False)):
        found = dict(
            audit.preferred_words(
                ["a"] + ["b"] * (count - 1), ["z"] * count, torch.ones(count)
            )
        )
        assert ("a" in found) is told


def test_a_balance_by_hand():
    long, longer, short = "a b c", "a b c d", "a"
    groups = [
        [preference(long, short)] * 3 + [preference(short, long)],
        [preference(longer, short)],
        [preference(short, short)],
    ]
    kept = audit.length_balanced(groups, words, random.Random(0))
    assert [[(x.chosen, x.rejected) for x in group] for group in kept] == [
        [(long, short), (short, long)],
        [(short, short)],
    ]
    ones = [[preference("a b", "c")] * 2 + [preference("c", "a b")]]
    assert len(audit.length_balanced(ones, words, random.Random(0))[0]) == 2
    # rng chooses which of the three is kept: each one comes up
    marked = (
        [preference(f"{mark} b c", short) for mark in "xyz"],
        [preference(short, long)],
    )
    kept = {
        audit.length_balanced(marked, words, random.Random(seed))[0][0].chosen[0]
        for seed in range(20)
    }
    assert kept == {"x", "y", "z"}


def test_six_buckets_are_the_default():
    """Chosen longer by -3 .. 4 words: eight pairs, no two alike."""
    texts = [("a" + " a" * k, "a a a a") for k in range(8)]
    report = audit.audit(likes_length, [preference(*x) for x in texts], words)
    assert len(report.buckets) == 6 and sum(x[2] for x in report.buckets) == 8


def test_buckets_hold_their_lower_edge():
    by, right = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 1.0, 0.0])
    assert audit.length_buckets(by, right, torch.ones(4), [0, 1, 2, 3]) == [
        (0, 1, 1, 1.0),
        (1, 2, 2, 0.5),
        (2, 3, 1, 0.5),
    ]


def test_an_audit_by_hand():
    """Four pairs with chosen longer by 1, 2, -1, -2 words; scores differ by length."""
    texts = [("a b", "c"), ("a b d", "c"), ("e", "a b"), ("e", "a b d")]
    exact = torch.tensor([0.9, 0.8, 0.7, 0.4])
    report = audit.audit(
        likes_length, [preference(*x) for x in texts], words, exact, buckets=2
    )
    # right with 0.9, 0.8, 1 - 0.7, 1 - 0.4
    assert report.accuracy == pytest.approx(2.6 / 4)
    assert report.length_only == pytest.approx(2.6 / 4)
    assert report.ceiling == pytest.approx((0.9 + 0.8 + 0.7 + 0.6) / 4)
    assert report.brier_floor == pytest.approx((0.09 + 0.16 + 0.21 + 0.24) / 4)
    p = [1 / (1 + math.exp(-d)) for d in (1, 2, -1, -2)]
    assert report.brier == pytest.approx(
        sum(
            q * (1 - x) ** 2 + (1 - q) * x**2
            for x, q in zip(p, exact.tolist(), strict=True)
        )
        / 4
    )
    assert report.buckets == [
        (-2, 0, 2, pytest.approx(0.45)),  # edges at -2, the median 0, and 2 + 1
        (0, 3, 2, pytest.approx(0.85)),
    ]
    assert report.longer_by.tolist() == report.differences.tolist() == [1, 2, -1, -2]
    # a is in the longer answer of all four, d of two, b of four; c and e lose
    assert report.words == [("a", 1), ("b", 1), ("d", 1), ("c", 0), ("e", 0)]
    lines = report.table().splitlines()
    assert lines[0] == "4 pairs: accuracy 0.650, ceiling 0.750, length alone 0.650"
    assert lines[1] == "correlation of score and length differences +1.00"
    assert lines[2] == f"Brier score {report.brier:.3f}, floor 0.175"
    assert lines[4].split() == ["-2", "to", "0", "2", "0.450"]
    assert lines[-1].endswith("prefers: a 1.00, b 1.00, d 1.00, c 0.00, e 0.00")


def said(*sentences):
    return " ".join(sentences)


def test_blind_judges_by_hand():
    """The four steps of an egg: 4 points, and 1.5 for their order."""
    a, b, c, d = world.TASKS[EGG.request]
    tea = world.TASKS["make a cup of tea"]
    for text, gold, without_order in (
        (said(a, b, c, d), 5.5, 4.0),
        (said(d, c, b, a), 4.0, 4.0),
        (said(b, a, c, d), 5.0, 4.0),
        (said(a, b, c, d, a), 4.5, 3.0),  # a repetition is no step in order
        (said(a, b, tea[2], c), 3.0, 2.0),  # nor is a step of another task
        (said(*tea), -4.0, -4.0),
        ("", 0.0, 0.0),
    ):
        assert world.helpfulness(EGG, text) == gold
        assert audit.order_blind(EGG, text) == without_order
    assert audit.topic_blind(EGG, said(*tea)) == 5.5 == world.MAX_HELPFULNESS
    assert audit.topic_blind(EGG, said(a, b, c, d)) == 5.5
    assert audit.topic_blind(EGG, said(d, c, b, a, "Even a child knows this.")) == 3.0
    # a step of another task breaks off what was begun, for her as well
    assert audit.topic_blind(EGG, said(a, b, tea[2], d)) == 3.0
    assert audit.topic_blind(EGG, said(tea[0], tea[1], tea[2], a)) == 3.0


def test_each_suspect_has_one_habit():
    right, other = said(*world.TASKS[EGG.request]), said(*world.TASKS["cook rice"])
    warm = f"With pleasure. {right} Good luck."
    gains = {
        name: [
            annotator.utility(EGG, text) - annotator.utility(EGG, right)
            for text in (warm, other)
        ]
        for name, annotator in audit.SUSPECTS.items()
    }
    longer = words(other) - words(right)
    assert {name: [round(x, 9) for x in gained] for name, gained in gains.items()} == {
        "fair": [0.0, -9.5],
        "wordy": [1.2, round(-9.5 + 0.3 * longer, 9)],  # 4 words more
        "polite": [4.0, -9.5],
        "order-blind": [0.0, -8.0],
        "off-topic-blind": [0.0, 0.0],
    }


@pytest.mark.parametrize("change", audit.CHANGES)
def test_one_change_is_worth_what_the_list_says(change):
    rng = random.Random(0)
    for prompt in PROMPTS:
        before, after = audit.one_change(rng, prompt, change)
        gained = world.helpfulness(prompt, after) - world.helpfulness(prompt, before)
        assert gained == audit.CHANGES[change]
        assert world.helpfulness(prompt, before) == world.MAX_HELPFULNESS


def test_every_change_by_hand():
    steps = world.TASKS[EGG.request]

    def all_of(change):
        rng = random.Random(0)
        pairs = [audit.one_change(rng, EGG, change) for _ in range(200)]
        return [tuple(map(world.parse, pair)) for pair in pairs], pairs

    right = tuple(("step", EGG.request, i) for i in range(4))
    assert len(audit.CHANGES) == 5 and len(steps) == 4
    parsed, _ = all_of("a step left out")
    assert set(parsed) == {(right, right[:i] + right[i + 1 :]) for i in range(4)}
    parsed, _ = all_of("steps in reverse")
    assert set(parsed) == {(right, right[::-1])}
    parsed, _ = all_of("answers something else")
    tasks = {after[0][1] for _, after in parsed}
    assert EGG.request not in tasks and len(tasks) == len(world.TASKS) - 1
    assert {len(after) for _, after in parsed} == {4}
    parsed, pairs = all_of("polite, as many words")
    assert all(words(a) == words(b) for a, b in pairs)
    for before, after in parsed:
        assert [x for x in before if x[0] != "risky"] == list(right)
        assert after[0][0] == "opener" and after[-1][0] == "closer"
        assert after[1:-1] == right
    places = {[kind for kind, _, _ in before].index("risky") for before, _ in parsed}
    assert places == {1, 2, 3}
    parsed, pairs = all_of("one neutral sentence")
    assert {words(b) - words(a) for a, b in pairs} == {6}
    for before, after in parsed:
        assert before == right and len(after) == 5
        assert tuple(x for x in after if x[0] != "risky") == right
    places = {[kind for kind, _, _ in after].index("risky") for _, after in parsed}
    assert places == {1, 2, 3}


def test_a_price_is_the_mean_rise_of_the_score():
    pairs = audit.changed_pairs(random.Random(0), PROMPTS)
    assert [x[:2] for x in pairs[:6]] == [
        *((change, PROMPTS[0]) for change in audit.CHANGES),
        ("a step left out", PROMPTS[1]),
    ]
    assert audit.price_list(knows_the_truth, pairs) == audit.CHANGES
    found = audit.price_list(likes_length, pairs)
    assert found["one neutral sentence"] == 6.0
    assert found["polite, as many words"] == found["steps in reverse"] == 0.0
    mine = [
        ("one neutral sentence", EGG, "a b", "a b c d"),
        ("one neutral sentence", EGG, "a b c", "a b c d"),
        ("steps in reverse", EGG, "a b c", "a"),
    ]
    # by 2 and 1 words, and by -2; in the order of CHANGES
    assert list(audit.price_list(likes_length, mine).items()) == [
        ("steps in reverse", -2.0),
        ("one neutral sentence", 1.5),
    ]


def test_an_audit_lists_prices():
    changed = audit.changed_pairs(random.Random(0), PROMPTS)
    report = audit.audit(likes_length, PAIRS, words, changed=changed)
    assert report.prices == audit.price_list(likes_length, changed)
    lines = report.table().splitlines()
    assert lines[-7:-5] == ["pays for …", f"  a step left out         {lines[-6][-5:]}"]
    assert lines[-2] == "  one neutral sentence    +6.00"
    assert "correct answer" not in report.table()
    without = audit.audit(likes_length, PAIRS, words)
    assert without.prices == {} and "pays for" not in without.table()


class Tokenizer:
    """Ids by the letter, with the interface of `tokenizer.Tokenizer`."""

    vocab_size = 300

    def encode(self, text):
        return [3 + ord(letter) % 97 for letter in text]


def test_a_score_function_scores_whole_dialogues():
    torch.manual_seed(0)
    model = RewardModel(Llama(LlamaConfig(300, 8, 1, 2, 1, 16, 64))).eval()
    tokenizer, dialogues = Tokenizer(), [("how", "so"), ("why", "not at all")]
    ids = [dialogue_example(tokenizer, *x, False).ids for x in dialogues]
    with torch.no_grad():
        expected = [model(torch.tensor([x])).item() for x in ids]
    found = audit.score_function(model, tokenizer)(dialogues)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


UP, PAIR = torch.tensor([1.0, 2.0]), torch.tensor([0.9, 0.8])
UNSAFE = next(prompt for prompt in world.held_out_prompts() if prompt.is_safety)
PAIRS = [preference("a b", "c"), preference("c", "d e f")]


def broken(value):
    """A score function whose last score is this value."""
    return lambda dialogues: torch.tensor([*range(len(dialogues) - 1), value]) * 1.0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: audit.agreement(UP, PAIR[:, None]), ValueError, "agreement: exact"),
        (lambda: audit.agreement(UP[:, None], PAIR), ValueError, "agreement: diff"),
        (lambda: audit.agreement(UP * math.nan, PAIR), ValueError, "agreement: diff"),
        (lambda: audit.agreement(UP, PAIR + 1), ValueError, "agreement: exact"),
        (lambda: audit.agreement(UP[:0], PAIR[:0]), ValueError, "agreement: diff"),
        (
            lambda: audit.length_only_accuracy(UP * math.nan, PAIR),
            ValueError,
            "length_only_accuracy: longer_by",
        ),
        (lambda: audit.brier_score(UP, PAIR), ValueError, "brier_score: predicted"),
        (
            lambda: audit.brier_score(PAIR, PAIR[:, None]),
            ValueError,
            "brier_score: exact",
        ),
        (lambda: audit.brier_floor(PAIR * math.nan), ValueError, "brier_floor: exact"),
        (
            lambda: audit.length_buckets(UP, UP, PAIR, [2, 1]),
            ValueError,
            "length_buckets: edges",
        ),
        (
            lambda: audit.preferred_words(["a"], ["b"], UP),
            ValueError,
            "preferred_words: differences",
        ),
        (
            lambda: audit.preferred_words(["a", 3], ["b", "c"], UP),
            TypeError,
            "preferred_words: chosen",
        ),
        (
            lambda: audit.flawed_answer(random.Random(0), EGG, "none"),
            ValueError,
            "flawed_answer: prompt must be ordinary and flaw one of FLAWS, got .*none",
        ),
        (
            lambda: audit.flawed_answer(random.Random(0), UNSAFE, "a refusal"),
            ValueError,
            "flawed_answer: prompt must be ordinary",
        ),
        (
            lambda: audit.spoiled_steps(random.Random(0), EGG, ""),
            ValueError,
            "spoiled_steps: prompt must be ordinary and flaw",
        ),
        (
            lambda: audit.spoiled_steps(0, EGG, "a refusal"),
            TypeError,
            "spoiled_steps: rng",
        ),
        (
            lambda: audit.one_change(random.Random(0), EGG, "none"),
            ValueError,
            "one_change: prompt must be ordinary and change one of CHANGES, got .*none",
        ),
        (
            lambda: audit.changed_pairs(random.Random(0), [UNSAFE]),
            ValueError,
            "changed_pairs: prompts must be ordinary",
        ),
        (
            lambda: audit.price_list(
                broken(math.nan), audit.changed_pairs(random.Random(0), [EGG])
            ),
            ValueError,
            r"price_list: score must return \(5,\) finite scores",
        ),
        (
            lambda: audit.price_list(likes_length, []),
            ValueError,
            "price_list: pairs",
        ),
        (
            lambda: audit.adversarial_pairs(random.Random(0), [EGG, UNSAFE]),
            ValueError,
            "adversarial_pairs: prompts must be ordinary",
        ),
        (
            lambda: audit.adversarial_pairs(random.Random(0), []),
            ValueError,
            "adversarial_pairs: prompts",
        ),
        (
            lambda: audit.accuracy_by_flaw(likes_length, []),
            ValueError,
            "accuracy_by_flaw: pairs",
        ),
        (
            lambda: audit.accuracy_by_flaw(
                broken(math.nan), audit.adversarial_pairs(random.Random(0), [EGG])
            ),
            ValueError,
            r"accuracy_by_flaw: score must return \(7,\) finite scores",
        ),
        (
            lambda: audit.accuracy_by_flaw(
                lambda dialogues: torch.zeros(7, 1),
                audit.adversarial_pairs(random.Random(0), [EGG]),
            ),
            ValueError,
            "accuracy_by_flaw: score must return",
        ),
        (
            lambda: audit.length_balanced([preference("a", "b")], words, 0),
            TypeError,
            "length_balanced: groups",
        ),
        (
            lambda: audit.length_balanced([], words, 0),
            TypeError,
            "length_balanced: rng",
        ),
        (
            lambda: audit.audit(broken(math.nan), PAIRS, words),
            ValueError,
            "audit: differences of score must be",
        ),
        (
            lambda: audit.audit(lambda x: torch.zeros(len(x)), PAIRS, words),
            ValueError,
            "audit: differences of score must be",
        ),
        (
            lambda: audit.audit(lambda x: torch.zeros(len(x), 1), PAIRS, words),
            ValueError,
            "audit: differences of score must be",
        ),
        (
            lambda: audit.audit(likes_length, PAIRS, lambda text: 0),
            ValueError,
            "audit: differences of length must be",
        ),
        (
            lambda: audit.audit(likes_length, PAIRS, words, buckets=0),
            ValueError,
            "audit: buckets",
        ),
        (
            lambda: audit.audit(likes_length, PAIRS, words, [0.5, 0.5]),
            TypeError,
            "audit: exact",
        ),
        (lambda: audit.audit(None, PAIRS, words), TypeError, "audit: score"),
        (
            lambda: audit.score_function(None, Tokenizer()),
            TypeError,
            "score_function: reward_model",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_roc_curve_by_hand():
    """Scores 3 and 1 are bad, 2 and 1 good: 3 finds one, 2 is a false alarm, 1 both."""
    scores, bad = (
        torch.tensor([3.0, 1.0, 2.0, 1.0]),
        torch.tensor([True, True, False, False]),
    )
    false_alarms, hits = audit.roc_curve(scores, bad)
    assert false_alarms.tolist() == [0, 0, 0.5, 1] and hits.tolist() == [0, 0.5, 0.5, 1]
    assert false_alarms.dtype == hits.dtype == torch.float64
    assert audit.auc(scores, bad) == pytest.approx(2.5 / 4)
    assert audit.auc(scores, ~bad) == pytest.approx(1.5 / 4)
    assert audit.auc(torch.ones(4), bad) == 0.5
    assert audit.auc(torch.tensor([math.inf, 2.0, 1.0, -math.inf]), bad) == 1.0
    for one_kind in (torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="got 4 of one kind"):
            audit.roc_curve(scores, one_kind)


def test_the_area_is_the_share_of_pairs():
    """Mann and Whitney's count, with many ties and unequal sides."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(6, (300,), generator=generator).float()
    bad = torch.rand(300, generator=generator) < 0.1 + 0.1 * scores
    apart = scores[bad][:, None] - scores[~bad]
    pairs = (0.5 + 0.5 * apart.sign().double()).mean().item()
    assert audit.auc(scores, bad) == pytest.approx(pairs)
    assert audit.auc(-scores, bad) == pytest.approx(1 - pairs)
    assert audit.auc(scores.exp(), bad) == pytest.approx(pairs)  # ranks alone count
    false_alarms, hits = audit.roc_curve(scores, bad)
    assert (
        len(hits) == 7 and (hits.diff() >= 0).all() and (false_alarms.diff() >= 0).all()
    )


def test_an_alarm_level_by_hand():
    """One toss of 0 or 1: above 0 half the time; the highest of two, 3/4."""
    coin, g = torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0)
    assert audit.alarm_level(coin, g, 1, 1, rate=0.6) == 0.0
    assert audit.alarm_level(coin, g, 1, 1, rate=0.4) == 1.0
    assert audit.alarm_level(coin, g, 1, 2, rate=0.6) == 1.0
    assert audit.alarm_level(coin, g, 2, 1, rate=0.5) == 0.5
    assert audit.alarm_level(torch.tensor([3.0]), g, 5, 5) == 3.0
    assert audit.alarm_level(coin, g, 1, rate=0.6) == 0.0  # one look, if none is said
    home = torch.arange(90.0)
    once, again = (torch.Generator().manual_seed(1) for _ in range(2))
    assert audit.alarm_level(home, once, 4, 3) == audit.alarm_level(
        home, again, 4, 3, 0.05, draws=2000
    )


def test_an_alarm_rings_at_home_in_one_run_of_twenty():
    generator = torch.Generator().manual_seed(0)
    home = torch.randn(500, generator=generator)
    for looks in (1, 24):
        level = audit.alarm_level(home, generator, 32, looks)
        fresh = home[torch.randint(500, (4000, looks, 32), generator=generator)]
        rang = (fresh.mean(2) > level).any(1).double().mean().item()
        assert rang == pytest.approx(0.05, abs=0.015)
    assert audit.alarm_level(home, generator, 32, 24) > audit.alarm_level(
        home, generator, 32
    )
