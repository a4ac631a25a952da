"""The front of the machine: the command line, make, and pytest's own lines.

Wrong usage gets one line on standard error and exit status 2.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
import torch

from minillama import pipeline, reward_file, stages
from minillama.__main__ import file_settings_of, main, parser, settings_of
from minillama.optim import TrainingDiverged

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("MINILLAMA_SEED", "MINILLAMA_DEVICE", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch, tmp_path):
    """No variables of the caller, no GPU, a store of its own."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path / "store"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


TRAIN = "reward-model --data no.jsonl --base none --out no".split()

# ----------------------------------------------------------------- the command line


def left(capsys, *arguments):
    """What the command line leaves with: (exit status, the lines of standard error)."""
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    told = capsys.readouterr()
    assert told.out == ""
    return leaving.value.code, told.err.strip().split("\n")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "arguments are required: command"),
        (["walk"], "invalid choice: 'walk'"),
        (["run", "--device", "gpu"], "--device: invalid choice: 'gpu'"),
        (["run", "--device", "cuda"], "CUDA"),
        (["run", "--seed", "one"], "--seed: invalid int value: 'one'"),
        (["run", "for your life"], "unrecognized arguments: for your life"),
        (["ask"], "arguments are required: question"),
        (["ask", ""], "question must have words, got ''"),
        (["ask", " ", ""], "question must have words"),
        (["ask", "--quick", "word " * 200], "question must be at most 136 tokens"),
        (["ask", "x", "--temperature", "-1"], "--temperature: invalid"),
        (["ask", "x", "--temperature", "nan"], "--temperature: invalid"),
        (["ask", "x", "--temperature", "inf"], "--temperature: invalid"),
        (["reward-model", "--data", "a"], "are required: --base, --out"),
        (["audit", "--data", "a"], "are required: --model"),
        ([*TRAIN, "--batch-size", "0"], "--batch-size: invalid"),
        ([*TRAIN, "--held-out", "1"], "--held-out: invalid"),
        ([*TRAIN, "--lr", "nan"], "--lr: invalid"),
        ([*TRAIN, "--vocab-size", "9"], "--vocab-size: invalid"),
        ([*TRAIN, "--dtype", "fp16"], "--dtype: invalid choice: 'fp16'"),
        ([*TRAIN, "--engine", "tpu"], "--engine: invalid choice: 'tpu'"),
        ([*TRAIN, "--engine", "ddp"], "--engine must be given under torchrun"),
        ([*TRAIN, "--bad-lines", "mend"], "--bad-lines: invalid choice: 'mend'"),
        ([*TRAIN, "--device", "cuda"], "CUDA"),
        (["audit", "--model", "a", "--data", "b", "--seed", "1"], "unrecognized"),
    ],
)
def test_wrong_usage_gets_one_line(arguments, words, capsys):
    status, lines = left(capsys, *arguments)
    # A question's length is known once the tokenizer is, which may have to be built.
    lines = [line for line in lines if not line.startswith("building ")]
    assert status == 2 and len(lines) == 1, lines
    assert words in lines[0] and lines[0].startswith("minillama")


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("MINILLAMA_SEED", "abc", ["MINILLAMA_SEED", "'abc'"]),
        ("MINILLAMA_SEED", "1.5", ["MINILLAMA_SEED", "'1.5'"]),
        ("MINILLAMA_DEVICE", "gpu", ["MINILLAMA_DEVICE", "'gpu'"]),
        ("MINILLAMA_DEVICE", "cuda", ["MINILLAMA_DEVICE", "'cuda'"]),
    ],
)
def test_a_wrong_variable_is_named(name, value, words, capsys, monkeypatch):
    monkeypatch.setenv(name, value)
    for command in (["run"], ["ask", "x"]):
        status, lines = left(capsys, *command)
        assert status == 2 and len(lines) == 1
        assert all(word in lines[0] for word in words), lines


def test_wrong_usage_ends_the_process_with_status_2():
    command = [sys.executable, "-m", "minillama", "ask", ""]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 2 and told.stdout == ""
    assert told.stderr == "minillama: ask: question must have words, got ''\n"


def settings(*arguments):
    return settings_of(parser().parse_args(arguments))


def test_options_go_before_variables_and_these_before_defaults(monkeypatch):
    assert settings("run") == stages.Settings()
    assert settings("run", "--seed", "3") == stages.Settings(seed=3)
    assert settings("ask", "x", "--quick") == stages.QUICK
    monkeypatch.setenv("MINILLAMA_SEED", "7")
    assert settings("run").seed == settings("ask", "x", "--quick").seed == 7
    assert settings("run", "--seed", "0").seed == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settings("run").device == "cuda" == settings("run", "--quick").device
    monkeypatch.setenv("MINILLAMA_DEVICE", "cpu")
    assert settings("run").device == "cpu"
    assert settings("run", "--device", "cuda").device == "cuda"
    assert settings("run", "--device", "auto").device == "cuda"


def test_the_commands_get_what_was_said(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(pipeline, "run", lambda *given: calls.append(given))
    monkeypatch.setattr(pipeline, "question_ids", lambda stages, question: [1])
    monkeypatch.setattr(
        pipeline,
        "ask",
        lambda stages, *given: calls.append((stages.settings, *given)) or "answer",
    )
    main(["run", "--seed", "1"])
    main(["run", "--out", str(tmp_path)])
    main("ask --seed 1 How do I boil an egg?".split())
    assert capsys.readouterr().out == "answer\n"
    main(["ask", "How do I boil an egg?", "--temperature", "0"])
    one, default = stages.Settings(seed=1), stages.Settings()
    assert calls == [
        (one, Path("build/run")),
        (default, tmp_path),
        (one, "How do I boil an egg?", 1.0),
        (default, "How do I boil an egg?", 0.0),
    ]


@pytest.mark.parametrize(
    "error, status, words",
    [
        (TrainingDiverged("step 3: loss is NaN", None), 1, "step 3: loss is NaN"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "the same command goes on from here"),
    ],
)
def test_what_goes_wrong_on_the_way_gets_one_line(
    error, status, words, capsys, monkeypatch
):
    def run(*given):
        raise error

    monkeypatch.setattr(pipeline, "run", run)
    code, lines = left(capsys, "run")
    assert code == status and len(lines) == 1 and words in lines[0]


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    def run(*given):
        raise ValueError("a defect")

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(ValueError, match="a defect"):
        main(["run"])


def test_threads_sleep_unless_the_caller_says_otherwise():
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    outer = {k: v for k, v in os.environ.items() if k not in names}
    code = f"import minillama, os; print(*map(os.environ.get, {names}))"
    for given, expected in (
        ({}, "PASSIVE 3000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ):
        told = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=outer | given,
            capture_output=True,
            text=True,
        )
        assert told.stdout.strip() == expected


# ------------------------------------------------------- a model of one's own file


def line(asked, chosen, rejected):
    sides = {"chosen": chosen, "rejected": rejected}
    return json.dumps(
        {s: f"\n\nHuman: {asked}\n\nAssistant: {x}" for s, x in sides.items()}
    )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sixty comparisons, the kind answer chosen, gzipped; and lines instead of bars."""
    monkeypatch.setattr(stages, "shown", lambda name: None)
    path = tmp_path / "pairs.jsonl.gz"
    said = [line(f"What is {i}?", f"{i}, please.", f"{i}, go.") for i in range(60)]
    path.write_bytes(gzip.compress("\n".join(said).encode()))
    return path


def test_a_file_becomes_a_model_and_a_model_is_audited(data, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "audit.json"
    train = f"reward-model --data {data} --base none --out {out} --batch-size 4 "
    train += "--max-tokens 40 --epochs 2"
    main(train.split())
    first = capsys.readouterr()
    assert "60 of 60 lines kept" in first.out and "accuracy 1.000" in first.out
    assert first.out.endswith(f"written: {out}\n") and "step 24 of 24" in first.err
    main(train.split())
    again = capsys.readouterr()
    assert again.out == first.out and again.err == ""  # it was finished
    main(f"audit --model {out} --data {data} --limit 9 --report {report}".split())
    told = capsys.readouterr().out
    assert "9 of 9 lines kept" in told and "9 pairs of 9 prompts" in told
    found = json.loads(report.read_text())
    assert found["accuracy"] == 1.0 and found["data"]["lines"] == 9
    assert found["model"] in told


def test_a_bad_line_a_missing_file_and_another_run_get_one_line(data, tmp_path, capsys):
    out = tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    bad.write_text(line("a", "b", "c") + "\n[]\n")
    train = f"reward-model --base none --out {out} --batch-size 1 --held-out 0"
    status, lines = left(capsys, *train.split(), "--data", str(bad))
    assert status == 2 and len(lines) == 1 and "bad.jsonl, line 2: " in lines[0]
    main([*train.split(), "--data", str(bad), "--bad-lines", "skip"])
    assert "1 of 2 lines kept" in capsys.readouterr().out
    status, lines = left(capsys, *train.split(), "--data", str(data))
    assert status == 2 and len(lines) == 1 and "other data, " in lines[0]
    for command in (train, f"audit --model {out}"):
        status, lines = left(capsys, *command.split(), "--data", f"{tmp_path}/no")
        assert status == 1 and len(lines) == 1 and "No such file" in lines[0]
    status, lines = left(capsys, "audit", "--model", str(tmp_path), "--data", str(bad))
    assert status == 1 and len(lines) == 1 and "config.json" in lines[0]


def test_the_settings_of_a_training_are_what_was_said(monkeypatch):
    def said(*more):
        return file_settings_of(parser().parse_args([*TRAIN, *more]))

    default = reward_file.FileSettings(Path("no.jsonl"), None, Path("no"))
    assert said() == default
    assert said("--seed", "3", "--bad-lines", "skip", "--lr", "0.1") == replace(
        default, seed=3, skip_bad_lines=True, lr=0.1
    )
    assert said("--base", "a/b", "--dtype", "bf16", "--strength", "s") == replace(
        default, base=Path("a/b"), dtype="bf16", strength="s"
    )
    monkeypatch.setenv("MINILLAMA_SEED", "7")
    assert said().seed == 7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, dtype in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert (said().device, said().dtype) == ("cuda", dtype)
        assert said("--device", "cpu").dtype == "fp32"


# ----------------------------------------------------------------- make


def make(*arguments, **variables):
    """Run make in the project as if .venv were ready: (status, output, errors)."""
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    strange = ("MAKE", "MFLAGS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    outer = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
    told = subprocess.run(
        ["make", "--no-print-directory", "-o", ".venv/.ready", *arguments],
        cwd=ROOT,
        env=outer | variables,
        capture_output=True,
        text=True,
    )
    return told.returncode, told.stdout, told.stderr


def test_make_says_what_it_can_do():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = makefile.split(".PHONY: ")[1].split("\n")[0].split()
    status, told, _ = make()
    assert status == 0 and told == make("help")[1]
    assert [name for name in targets if f"make {name}" not in told] == ["help"]


@pytest.mark.parametrize("target", ["lab", "test"])
def test_make_knows_its_notebooks(target):
    status, told, error = make(target, "NB=99")
    assert status == 2 and told == ""
    assert "there is no notebook 99" in error and len(error.strip().split("\n")) == 1


def test_make_passes_arguments_on():
    for target in ("run", "test", "lab", "bench"):
        assert "--some-option" in make("-n", target, "ARGS=--some-option")[1], target
    lab = make("-n", "lab")[1]
    assert "root_dir=." in lab and "notebooks/00_map.ipynb" in lab
    assert "notebooks/09_bradley_terry.ipynb" in make("-n", "lab", "NB=09")[1]
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    assert ("--allow-root" in lab) == is_root


def test_make_test_runs_everything_once_side_by_side():
    told = make("-n", "test", "MINILLAMA_SEED=0")[1]
    words = told.split()
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    run = [Path(word).name for word in words if word.endswith(".ipynb")]
    assert sorted(run) == notebooks and words.count("tests") == 1
    assert "--dist=loadfile" in words and "--nbval" in words
    one = make("-n", "test", "NB=09")[1].split()
    assert sum(word.endswith(".ipynb") for word in one) == 1
    assert "tests" not in one and "--dist=loadfile" not in one
    assert "--nbval-lax" in make("-n", "test", "MINILLAMA_SEED=1")[1].split()


def test_make_lets_threads_sleep_one_each_in_tests(tmp_path):
    shown = tmp_path / "show"
    shown.write_text(
        "#!/bin/sh\necho $OMP_WAIT_POLICY $GOMP_SPINCOUNT $OMP_NUM_THREADS.\n"
    )
    shown.chmod(0o755)
    surroundings = {"OMP_NUM_THREADS": "5"}

    def threads(target, **more):
        told = make("--silent", target, f"PY={shown}", **surroundings, **more)[1]
        return told.strip().split("\n")[-1]

    assert threads("test") == "PASSIVE 3000 1."
    assert threads("run") == "PASSIVE 3000 5."
    assert threads("lab") == "PASSIVE 3000 5."
    assert threads("run", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE 5."


# ------------------------------------------------------- pytest with several workers


def notebook(path, *sources_and_prints):
    """Write a notebook of cells, each a source and what it is said to print."""
    cells = [
        nbformat.v4.new_code_cell(
            source,
            execution_count=count,
            outputs=[nbformat.v4.new_output("stream", text=text, name="stdout")],
        )
        for count, (source, text) in enumerate(sources_and_prints, start=1)
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_whole_files_side_by_side_with_a_line_for_each(tmp_path):
    """A cell needs the names of earlier ones: one kernel, one worker a notebook."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    good = [
        ("x = 1\nprint(x)", "1\n"),
        *[("x += 1\nprint(x)", f"{i}\n") for i in (2, 3)],
    ]
    notebook(tmp_path / "good.ipynb", *good)
    notebook(tmp_path / "bad.ipynb", *good[:1], ("print(x)", "9\n"), *good[1:])
    (tmp_path / "test_x.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    command = "-m pytest good.ipynb bad.ipynb test_x.py --nbval --nbval-current-env"
    command += (
        " -n 2 --dist=loadfile --no-loadscope-reorder --junitxml=out/junit.xml -rs"
    )
    told = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line.strip() for line in told.stdout.split("\n")]
    assert told.returncode == 1, told.stdout
    for name, counts in (
        ("good.ipynb", "3 passed"),
        ("bad.ipynb", "1 failed, 1 passed, 2 skipped"),
        ("test_x.py", "2 passed"),
    ):
        assert f"{name} …" in lines
        assert any(line.endswith(f" s {name}: {counts}") for line in lines), told.stdout
    assert "FAILED bad.ipynb::Cell 1" in lines
    assert any("bad.ipynb: Cell 1 failed" in line for line in lines)
    closing = "1 failed, 6 passed, 2 skipped"
    assert any(line.startswith("=") and closing in line for line in lines)
    junit = ElementTree.parse(tmp_path / "out/junit.xml").find("testsuite")
    assert [junit.get(name) for name in ("tests", "failures", "skipped")] == [
        "9",
        "1",
        "2",
    ]
