"""The audit of a reward model: each number by hand, on models whose habit is known."""

import math
import random

import matplotlib.pyplot as plt
import pytest
import torch

from minillama import audit, world
from minillama.course import plots

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
        (torch.ones(2), torch.ones(3)),
    ],
)
def test_correlation_refuses_what_has_none(x, y):
    with pytest.raises(ValueError, match="correlation: x and y"):
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
            world.write_answer(rng, prompt, world.RATED_STYLE).text for _ in range(8)
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
            *(world.write_answer(rng, EGG, world.RATED_STYLE).text for _ in range(2))
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
    assert [round(bar.get_width(), 6) for bar in right.patches] == [
        round(share, 6) for share in report.flaws.values()
    ]
    plt.close(figure)


def test_an_audit_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="audit: preferences must be at least 2"):
        audit.audit(likes_length, [preference("a", "b")], words)
    with pytest.raises(ValueError, match="with as many exact, got 2 and 3"):
        audit.audit(likes_length, [preference("a", "b")] * 2, words, torch.ones(3))
