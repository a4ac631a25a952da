"""The whole run in miniature: through the command line, without a network, the same twice, stopped when it must."""

import json
import math
from dataclasses import replace

import pytest
import torch

from minillama import pipeline, stages, world
from minillama.__main__ import main
from minillama.optim import TrainingDiverged


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path / "store"))
    return tmp_path


def quick_run(out, capsys, *arguments):
    main(["run", "--quick", "--device", "cpu", "--out", str(out), *arguments])
    return json.loads((out / "report.json").read_text()), capsys.readouterr().out


def test_run_and_ask_offline(store, no_network, capsys):
    report, printed = quick_run(store / "a", capsys)
    assert set(report) == {
        "helpfulness",
        "refusal",
        "risky_advice",
        "win_rate",
        "kl",
        "reward_model",
        "seconds",
        "peak_rss_mb",
        "seed",
        "device",
    }
    for name in ("helpfulness", "refusal", "risky_advice"):
        assert set(report[name]) == {"before", "after"} and all(
            map(math.isfinite, report[name].values())
        )
    for kind in ("helpfulness", "safety"):
        assert (
            0.3
            < report["reward_model"][kind]["accuracy"]
            <= report["reward_model"][kind]["ceiling"]
            < 1
        )
    assert {
        "tokenizer",
        "base",
        "sft",
        "helpfulness",
        "safety",
        "policy",
        "total",
    } <= set(report["seconds"])
    assert (
        0 <= report["win_rate"] <= 1
        and report["seed"] == 0
        and report["device"] == "cpu"
    )
    assert (store / "a/learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "win rate" in printed and printed.count("  before: ") == 5
    main(["ask", "--quick", "--device", "cpu", "How do I boil an egg?"])
    answered = capsys.readouterr().out
    assert all(
        words in answered
        for words in ("before PPO", "after PPO", "R_s", "gold helpfulness")
    ), answered
    again, _ = quick_run(store / "b", capsys)
    other, _ = quick_run(store / "c", capsys, "--seed", "1")
    for each in (report, again, other):
        del each["seconds"], each["peak_rss_mb"]
    assert again == report and other != report


def test_stages_come_from_the_store_until_a_setting_changes(store, monkeypatch):
    first = stages.Stages(stages.QUICK)
    weights = first.sft.lm_head.weight
    calls = []
    monkeypatch.setattr(
        stages, "train_lm", lambda *arguments: calls.append(arguments) or [0.0]
    )
    second = stages.Stages(stages.QUICK)
    assert (
        torch.equal(second.sft.lm_head.weight, weights)
        and second.notes["sft"] == first.notes["sft"]
    )
    assert not calls and len(first.notes["sft"]["curve"]) == stages.QUICK.sft.steps
    changed = replace(stages.QUICK, sft=replace(stages.QUICK.sft, steps=4))
    assert (
        stages.Stages(changed).sft is not None and len(calls) == 1
    )  # the base model was served, SFT built anew
    assert stages.Stages(replace(stages.QUICK, seed=1)).keys == {}


def test_a_diverging_run_keeps_its_last_good_weights(store):
    broken = replace(stages.QUICK, base=replace(stages.QUICK.base, lr=math.inf))
    with pytest.raises(TrainingDiverged, match="step 0: weights .*batch of examples"):
        pipeline.run(broken, store / "out")
    from safetensors.torch import load_file

    assert all(
        tensor.isfinite().all()
        for tensor in load_file(store / "out/last_good.safetensors").values()
    )
    assert not list((store / "store").glob("base-*.safetensors"))


def test_wins_and_gold_summary_by_hand():
    egg, bike = world.find_prompt("boil an egg"), world.find_prompt("steal a bike")
    good, bad = world.TASKS["boil an egg"][0], world.RUDE[0]
    assert pipeline.wins(
        [egg, egg, bike], [good, bad, world.REFUSALS[0]], [bad, bad, good]
    ) == pytest.approx(2.5 / 3)
    summary = stages.gold_summary(
        [egg, egg, bike], [good, world.RISKY[0], world.REFUSALS[0]]
    )
    assert summary == {
        "helpfulness": pytest.approx(0.5 / 5.5),
        "risky_advice": 0.5,
        "refusal": 1.0,
    }


def test_held_out_pairs_are_on_fresh_prompts():
    fresh = set(world.held_out_prompts())
    for held_out in (True, False):
        groups = stages.draw_preferences(
            stages.QUICK, "safety", "x", 30, 4, held_out=held_out
        )
        assert all(
            len(group) == 6 and len({x.prompt for x in group}) == 1 for group in groups
        )
        assert all((group[0].prompt in fresh) is held_out for group in groups)
    assert not any(
        g[0].prompt.is_safety
        for g in stages.draw_preferences(
            stages.QUICK, "helpfulness", "x", 30, 2, held_out=True
        )
    )


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stages.choose_device("auto") == "cpu"
    for name in ("cuda", "tpu"):
        with pytest.raises(ValueError, match="name"):
            stages.choose_device(name)
