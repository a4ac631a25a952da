"""Numbers about comparisons without gold, against arithmetic by hand and simulation."""

import json
import math

import pytest
import torch

from minillama import preference_audit as a
from minillama.preference_file import Comparison


def test_accuracy_counts_ties_one_half():
    found = a.accuracy_of(torch.tensor([1.0, -2.0, 0.0, 3.0]), list("abcd"))
    assert found["accuracy"] == 0.625 and found["ties"] == 1
    assert found["interval"][0] < 0.625 < found["interval"][1]


def test_calibration_by_hand():
    """p of 0.75 twice, one right; of 0.95 once, wrong: (2·0.25 + 0.95) / 3."""
    differences = torch.tensor([math.log(3), -math.log(3), -math.log(19)])
    found = a.calibration(differences)
    assert [(x["pairs"], x["accuracy"]) for x in found["bins"]] == [(2, 0.5), (1, 0.0)]
    assert [x["confidence"] for x in found["bins"]] == pytest.approx([0.75, 0.95])
    assert found["error"] == pytest.approx((2 * 0.25 + 0.95) / 3)
    sure = a.calibration(torch.tensor([500.0, 0.0]))["bins"]
    assert [(x["low"], x["high"], x["pairs"]) for x in sure] == [
        (0.5, 0.6, 1),
        (0.9, 1.0, 1),
    ]


def test_a_calibrated_model_has_a_small_error():
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(20_000, generator=generator)
    right = torch.rand(20_000, generator=generator) < torch.sigmoid(scores)
    differences = torch.where(right, scores, -scores)
    assert a.calibration(differences)["error"] < 0.02
    assert a.calibration(3 * differences)["error"] > 0.1  # too sure


def test_habits_of_people_and_of_the_model():
    chosen = ["Sorry! No.", "Fine.", "I apologise.", "Well."]
    rejected = ["No.", "Sorry, not sure.", "Go.", "Ok."]
    differences = torch.tensor([1.0, -1.0, 1.0, 0.0])
    found = {x["habit"]: x for x in a.habits(chosen, rejected, differences)}
    # Three pairs differ in apologies; people chose them twice, the model each time.
    assert found["apologies"] == {
        "habit": "apologies",
        "pairs": 3,
        "people": pytest.approx(2 / 3),
        "model": 1.0,
    }
    assert found["exclamation marks"]["pairs"] == 1
    assert found["hedges"]["people"] == 0.0 and found["hedges"]["model"] == 1.0
    assert "digits" not in found


@pytest.mark.parametrize(
    "habit, text, count",
    [
        ("words", "Fill a pot.", 3),
        ("lines", "a\nb", 2),
        ("items of lists", "- a\n* b\n1. c\nd 2. e", 3),
        ("question marks", "So? What?", 2),
        ("bold, code, headings", "# a\n**b** `c`", 5),
        ("please and thanks", "Please, thanks; thankful.", 2),
        ("refusals", "I can't and cannot.", 2),
    ],
)
def test_what_is_counted(habit, text, count):
    assert a.HABITS[habit](text) == count


def test_words_stand_by_how_far_model_and_people_part():
    chosen, rejected = ["egg tea"] * 4, ["pan", "pan", "pan", "pan tea"]
    differences = torch.tensor([1.0, 1.0, -1.0, 1.0])
    found = a.words(chosen, rejected, differences)
    assert found[0] == {"word": "tea", "people": 1.0, "model": pytest.approx(2 / 3)}
    assert {"word": "pan", "people": 0.0, "model": 0.25} in found
    assert len(a.words(chosen, rejected, differences, most=1)) == 1


def comparisons(*pairs):
    return [
        Comparison((("user", f"{i}?"),), chosen, rejected, None, None, f"line {i}")
        for i, (chosen, rejected) in enumerate(pairs)
    ]


def test_length_says_what_it_says():
    chosen, rejected = ["a b c", "a b", "a", "a b"], ["a", "a", "a b", "b c"]
    found = a.length_report(chosen, rejected, torch.tensor([2.0, 1.0, -1.0, 0.5]), 2)
    # longer by 2, 1, -1, 0: longer wins twice, one tie: 0.625
    assert found["length_only"] == 0.625 and found["correlation"] > 0.9
    assert sum(x["pairs"] for x in found["buckets"]) == 4
    flat = a.length_report(["a"], ["b"], torch.tensor([1.0]))
    assert flat["correlation"] is None
    assert flat["buckets"] == [{"low": 0.0, "high": 1.0, "pairs": 1, "accuracy": 1.0}]


def test_the_whole_is_json_and_a_table():
    pairs = comparisons(("Yes, please do.", "No."), ("Well!", "No, sorry."))
    audited = a.audit_comparisons(pairs, torch.tensor([1.0, 0.0]), torch.zeros(2))
    assert audited == json.loads(json.dumps(audited, allow_nan=False))
    assert audited["pairs"] == audited["prompts"] == 2 and audited["accuracy"] == 0.75
    expected = (math.log1p(math.exp(-1)) + math.log(2)) / 2
    assert audited["loss"] == pytest.approx(expected, abs=1e-6)
    said = a.table(audited)
    assert "accuracy 0.750 (" in said and "apologies" in said
    audited["other_prompt"] = a.accuracy_of(torch.ones(2), [1, 2]) | {"pairs": 2}
    assert "with the prompt of another pair: 1.000" in a.table(audited)
    one = a.audit_comparisons(pairs[:1], torch.ones(1), torch.zeros(1))
    assert one["length"]["correlation"] is None and "differences: none" in a.table(one)
    assert a.table({"pairs": 0}).startswith("0 pairs")
