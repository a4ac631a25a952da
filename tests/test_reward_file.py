"""A reward model from a file: learned, resumed bit for bit, written, or refused."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sentences import llama_layout
from transformers import AutoModelForSequenceClassification

from minillama import reward_file as f
from minillama.checkpoint import OtherRun
from minillama.hf import load_reward_model, save_llama
from minillama.hf_config import SpecialIds
from minillama.model import Llama, LlamaConfig
from minillama.optim import TrainingDiverged
from minillama.preference_file import Fault
from minillama.tokenizer import PAD_ID

ROOT = Path(__file__).resolve().parents[1]
THINGS = ("egg", "tap", "tree", "letter", "window", "bread", "button", "door")


def lines(count, seed=0):
    """Comparisons in which the kind answer is chosen, however long it is."""
    rng, said = random.Random(seed), []
    for i in range(count):
        thing = rng.choice(THINGS)
        asked = f"\n\nHuman: What about the {thing} of {i}?\n\nAssistant: "
        steps = [f"Turn the {thing}.", "Wait a bit.", "Look at it again."]
        kind, rude = (
            " ".join(rng.sample(steps, rng.randint(1, 3)) + [end])
            for end in ("Good luck with it.", "Leave me alone.")
        )
        said.append(json.dumps({"chosen": asked + kind, "rejected": asked + rude}))
    return said


def written(path, said):
    path.write_text("\n".join(said) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path):
    """A short training on 60 lines."""
    data = written(tmp_path / "pairs.jsonl", lines(60))
    return f.FileSettings(data, None, tmp_path / "out", batch_size=8, max_tokens=64)


@pytest.fixture
def base(tmp_path):
    """A tiny folder of Llama 2's layout."""
    folder = tmp_path / "base"
    config = LlamaConfig(340, 16, 1, 2, 1, 24, 90)
    ids = SpecialIds(1, 2, None)
    save_llama(Llama(config, torch.Generator().manual_seed(0)), folder, ids)
    (folder / "tokenizer.model").write_bytes(llama_layout())
    return folder


def fit(settings):
    with f.locked(settings.out):
        return f.fit(f.prepare(settings), settings)


def weights_of(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_known_preference_is_learned_from_400_lines(tmp_path):
    data = written(tmp_path / "a.jsonl", lines(400))
    settings = f.FileSettings(data, None, tmp_path / "out", max_tokens=64)
    report = fit(settings)
    assert list(report) == ["identity", "data", "losses", "held_out"]
    held_out = report["held_out"]
    assert held_out["accuracy"] > 0.9 and held_out["interval"][0] > 0.8
    assert held_out["length"]["length_only"] < 0.8
    assert 20 < held_out["pairs"] < 60
    assert report["data"]["trained_on"] + report["data"]["held_out"] == 400
    assert len(report["losses"]) == report["data"]["trained_on"] // 16
    assert json.loads((settings.out / "report.json").read_text()) == report
    said = f.report_table(report)
    assert "400 of 400 lines kept" in said and "accuracy" in said
    names = {path.name for path in settings.out.iterdir()}
    assert names - {".lock"} == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "report.json",
    }


def test_transformers_loads_it_and_gives_the_same_scores(settings):
    fit(settings)
    theirs = AutoModelForSequenceClassification.from_pretrained(settings.out).eval()
    ids = torch.tensor([[1, 4, 9, 5, 30, 2], [1, 4, 5, 8, 2, PAD_ID]])
    with torch.no_grad():
        logits = theirs(ids, attention_mask=(ids != PAD_ID).long()).logits[:, 0]
        ours = load_reward_model(settings.out)(ids, ids != PAD_ID)
    torch.testing.assert_close(ours, logits, atol=1e-5, rtol=1e-5)


def test_killed_in_the_middle_it_goes_on_to_the_same_weights(tmp_path):
    data = written(tmp_path / "a.jsonl", lines(200))
    whole = f.FileSettings(
        data, None, tmp_path / "whole", epochs=3, batch_size=4, max_tokens=64
    )
    expected = fit(whole)
    command = f"-m minillama reward-model --data {data} --base none --device cpu "
    command += f"--out {tmp_path}/cut --epochs 3 --batch-size 4 --max-tokens 64 "
    command += "--save-every 1 --seed 0"
    process = subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    path, limit = tmp_path / "cut" / f.CHECKPOINT, time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with safe_open(path, "pt") as file:
        done = json.loads(file.metadata()["record"])["steps"]
    assert 1 <= done < len(expected["losses"])
    assert not (tmp_path / "cut" / f.REPORT).exists()
    cut = replace(whole, out=tmp_path / "cut")
    assert fit(cut) == expected
    assert weights_of(cut.out) == weights_of(whole.out)
    assert fit(cut) == expected and not path.exists()  # once more: it is finished


@pytest.mark.parametrize("dtype, stops", [("fp32", (1, 3, 5)), ("bf16", (2,))])
def test_after_any_step_it_goes_on_to_the_same_weights(
    settings, monkeypatch, dtype, stops
):
    settings = replace(settings, dtype=dtype)
    expected = fit(settings)
    for stop in stops:
        cut = replace(settings, out=settings.out.with_name(f"cut{stop}"), save_every=1)
        steps, step = [], f.Stepper.step

        def interrupted(self, *given, stop=stop, steps=steps, step=step):
            steps.append(given)
            if len(steps) > stop:
                raise KeyboardInterrupt
            return step(self, *given)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(f.Stepper, "step", interrupted)
            fit(cut)
        assert fit(cut) == expected and weights_of(cut.out) == weights_of(settings.out)


def test_parts_of_a_batch_train_as_the_whole_batch(settings):
    whole = fit(settings)
    parts = replace(settings, out=settings.out.with_name("parts"), micro_batch_size=3)
    found = fit(parts)
    assert found["losses"] == pytest.approx(whole["losses"], abs=1e-4)
    assert found["identity"] != whole["identity"]


def test_bfloat16_learns_as_well_and_writes_float32(settings):
    half = replace(settings, dtype="bf16", epochs=2)
    report = fit(half)
    assert report["losses"][-1] < 0.3 < report["losses"][0]
    assert load_reward_model(half.out).llama.norm.weight.dtype == torch.float32


def test_a_pretrained_base_with_its_own_tokenizer(settings, base):
    pretrained = replace(settings, base=base, lr=3e-3, max_tokens=512)
    report = fit(pretrained)
    assert report["data"]["max_tokens"] == 90  # what the base reads
    model = load_reward_model(pretrained.out)
    assert model.llama.config.vocab_size == 340
    settings_written = json.loads((pretrained.out / "config.json").read_text())
    assert settings_written["pad_token_id"] == 0
    (base / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        f.prepare(pretrained)


def test_the_learning_rate_is_that_of_the_start(settings):
    assert f.peak_lr(settings) == 1e-3
    assert f.peak_lr(replace(settings, base=Path("x"))) == 1e-5
    assert f.peak_lr(replace(settings, lr=0.5)) == 0.5


BAD = [
    '{"chosen": "x"',
    "[]",
    '{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b"}',
    json.dumps({"chosen": 3, "rejected": 4}),
]


def test_bad_lines_are_refused_or_counted(settings):
    said = lines(60)
    for i, bad in enumerate(BAD):
        said.insert(10 * i + 3, bad)
    written(settings.data, said)
    with pytest.raises(Fault, match="pairs.jsonl, line 4: a line must be one JSON"):
        f.prepare(settings)
    report = fit(replace(settings, skip_bad_lines=True))
    skipped = {"broken line": 2, "missing field": 1, "wrong field": 1}
    assert report["data"]["skipped"] == skipped and report["data"]["lines"] == 64
    assert "1 skipped, missing field; the first:" in f.report_table(report)
    assert "line 24" in f.report_table(report)


def test_margins_and_strengths_are_read_from_columns(settings):
    said = [json.dumps({**json.loads(x), "by": 2, "s": 3}) for x in lines(20)]
    written(settings.data, said)
    assert f.prepare(replace(settings, margin="by")).pairs[0].margin == 2.0
    assert f.prepare(replace(settings, strength="s")).pairs[0].margin == 1.0
    with pytest.raises(Fault, match="no kind"):
        f.prepare(replace(settings, strength="kind"))


def test_without_held_out_prompts_nothing_is_said_about_accuracy(settings):
    report = fit(replace(settings, held_out=0.0))
    assert report["held_out"] == {"pairs": 0} and report["data"]["held_out"] == 0
    assert "0 pairs: nothing can be said" in f.report_table(report)


def test_one_line_is_a_file(settings):
    written(settings.data, lines(1))
    with pytest.raises(ValueError, match="at least batch_size = 8 .* got 1 and 0"):
        f.prepare(replace(settings, held_out=0.0))
    with pytest.raises(ValueError, match="comparisons to train on, got .* held out"):
        f.prepare(replace(settings, held_out=0.999))
    report = fit(replace(settings, held_out=0.0, batch_size=1))
    assert len(report["losses"]) == 1
    settings.data.write_text("")
    with pytest.raises(ValueError, match="comparisons to train on"):
        f.prepare(settings)


def test_all_comparisons_of_a_prompt_are_on_one_side():
    prompts = [(("user", f"question {i}"),) for i in range(2000)]
    held = [prompt for prompt in prompts if f.is_held_out(prompt, 0.1, 0)]
    assert 150 < len(held) < 250
    assert all(f.is_held_out(prompt, 0.2, 0) for prompt in held)
    other = [prompt for prompt in prompts if f.is_held_out(prompt, 0.1, 1)]
    assert held != other and f.is_held_out(list(map(list, held[0])), 0.1, 0)
    assert not any(f.is_held_out(prompt, 0, 0) for prompt in prompts)


def test_another_run_is_refused_and_nothing_of_it_is_touched(
    settings, base, monkeypatch
):
    fit(settings)
    with pytest.raises(
        OtherRun, match="report.json must be .* other initial_weights, "
    ):
        fit(replace(settings, seed=1))
    written(settings.data, lines(61))
    with pytest.raises(OtherRun, match="with other data"):
        fit(settings)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(OtherRun, match="threads"):
        fit(settings)
    f.require_own_folder(settings.out)
    with pytest.raises(OtherRun, match="which holds another model"):
        f.require_own_folder(base)


def test_a_folder_with_another_commands_report_is_refused(settings):
    settings.out.mkdir()
    (settings.out / "report.json").write_text('{"scores": 1}')
    with pytest.raises(OtherRun, match="report.json must be of the same run"):
        fit(settings)


def test_killed_after_the_report_it_is_finished(settings):
    expected = fit(settings)
    (settings.out / f.CHECKPOINT).write_bytes(b"a leftover")
    assert fit(settings) == expected and not (settings.out / f.CHECKPOINT).exists()


def test_one_process_at_a_time(settings):
    with f.locked(settings.out):
        with pytest.raises(OtherRun, match="by one process at a time"):
            with f.locked(settings.out):
                pass
    with f.locked(settings.out):
        pass


def test_a_training_that_diverges_says_so(settings):
    prepared = f.prepare(replace(settings, lr=1e30))
    settings.out.mkdir()
    with pytest.raises(TrainingDiverged, match="step"):
        f.train(prepared, replace(settings, lr=1e30))


def test_long_texts_reach_the_tokenizer_in_pieces(settings):
    long = "tap " * 3000
    asked = "\n\nHuman: x\n\nAssistant: "
    pair = {"chosen": asked + long, "rejected": asked + "No."}
    written(settings.data, [json.dumps(pair)] * 8)
    prepared = f.prepare(replace(settings, held_out=0.0))
    assert max(map(len, prepared.chat.tokenizer.tokens(range(262, 280)))) >= 3
    assert prepared.tally.cut == 8 and len(prepared.pairs[0].chosen) == 64


def test_vocabularies_that_do_not_fit_are_refused(settings, base):
    small = LlamaConfig(300, 16, 1, 2, 1, 24, 90)
    save_llama(Llama(small), base)
    with pytest.raises(ValueError, match="at most vocab_size = 300 pieces, got 3"):
        f.prepare(replace(settings, base=base))
