"""The command line: `python -m minillama run` trains and reports, `… ask` answers.

`… reward-model` trains a reward model on a file of preferences, under torchrun on many
processes, of which the first one prints and writes; `… audit` asks any reward model
what it has learned. What was asked in a wrong way gets one line on
standard error and exit status 2; what went wrong on the way, a diverged training or a
full disk, one line and 1.
"""

import argparse
import json
import math
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import torch

from minillama import any_reward_model, distributed, pipeline, reward_file, stages
from minillama.checkpoint import OtherRun
from minillama.optim import TrainingDiverged
from minillama.preference_audit import table
from minillama.preference_file import StrictTally, Tally, read_preferences


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors take one line."""

    def error(self, message):
        """Say what is wrong and leave with exit status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def temperature(text):
    """Read a temperature, a finite number that is at least 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def at_least(lowest, kind=int):
    """Return a reader of numbers of a kind that are at least so much, and finite."""

    def number(text):
        found = kind(text)
        if not lowest <= found < math.inf:
            raise ValueError
        return found

    return number


def share(text):
    """Read a share, at least 0 and below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise ValueError
    return number


def folder_or_none(text):
    """Read the name of a folder; "none" stands for none."""
    return None if text == "none" else Path(text)


def add_course_commands(commands):
    """Add `run` and `ask`."""
    run = commands.add_parser("run", help="train all from random weights, and report")
    run.add_argument(
        "--out",
        type=Path,
        default=Path("build/run"),
        help="folder of report.json and the figure (default: build/run)",
    )
    ask = commands.add_parser("ask", help="hear the policy before and after PPO")
    ask.add_argument("question", nargs="+", help="such as: How do I boil an egg?")
    ask.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        help="1 as in the report (default), 0 for the most probable tokens",
    )
    for command in (run, ask):
        command.add_argument(
            "--quick",
            action="store_true",
            help="a few steps of everything: a test, no result",
        )


def add_reward_model(commands):
    """Add `reward-model`; the defaults are those of `FileSettings`."""
    command = commands.add_parser(
        "reward-model", help="train a reward model on a file of preferences"
    )
    command.add_argument(
        "--base",
        type=folder_or_none,
        required=True,
        help="a Hugging Face LLaMA folder with its tokenizer.model; none: a new model",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="the folder that is written"
    )
    counts = at_least(1)
    for name, kind, about in (
        ("epochs", counts, "the training goes through the file so often"),
        ("batch-size", counts, "comparisons a step"),
        ("micro-batch-size", counts, "so many of them in memory at a time"),
        ("lr", at_least(0, float), "peak; default 0.001 for a new model, else 0.00001"),
        ("max-tokens", at_least(2), "longer dialogues are cut"),
        ("vocab-size", at_least(263), "most pieces of a new model's tokenizer"),
        ("held-out", share, "share of the prompts kept for judging"),
        ("strength", str, "column of strengths, 0 to 3, that ask for a margin"),
        ("margin", str, "column of margins"),
        ("save-every", counts, "steps between checkpoints"),
    ):
        default = getattr(reward_file.FileSettings, name.replace("-", "_"))
        shown = "" if default is None else f" (default: {default})"
        command.add_argument(
            f"--{name}", type=kind, default=default, help=f"{about}{shown}"
        )
    command.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto (default): bf16 on a GPU that has it, else and under torchrun fp32",
    )
    command.add_argument(
        "--engine",
        choices=("ddp", "fsdp"),
        help="under torchrun: whole weights on every process (ddp, default), or shares",
    )
    return command


def add_audit(commands):
    """Add `audit`."""
    command = commands.add_parser(
        "audit", help="ask any reward model what it has learned"
    )
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        help="a folder that reward-model has written, or that transformers' "
        "AutoModelForSequenceClassification loads",
    )
    command.add_argument(
        "--max-tokens",
        type=at_least(2),
        help="longer dialogues are cut (default: what the model reads)",
    )
    command.add_argument(
        "--limit", type=at_least(1), help="look at the first so many comparisons only"
    )
    command.add_argument("--report", type=Path, help="a JSON file to be written")
    return command


def parser():
    """Return the parser of all commands; the environment is not asked here."""
    whole = Parser("minillama", description="RLHF from scratch, held against the truth")
    commands = whole.add_subparsers(dest="command", required=True)
    add_course_commands(commands)
    for command in (add_reward_model(commands), add_audit(commands)):
        command.add_argument(
            "--data",
            type=Path,
            required=True,
            help="JSON lines of chosen and rejected dialogues, plain or gzip",
        )
        command.add_argument(
            "--bad-lines",
            choices=("refuse", "skip"),
            default="refuse",
            help="refuse (default): stop at the first; skip: count them, go on",
        )
    for name, command in commands.choices.items():
        if name != "audit":
            command.add_argument(
                "--seed", type=int, help="default: MINILLAMA_SEED, or else 0"
            )
        command.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            help="default: MINILLAMA_DEVICE, or else auto",
        )
    return whole


def chosen_device(options):
    """Return the device that options and environment ask for, options first."""
    if options.device:
        return stages.choose_device(options.device)
    return stages.default_settings().device


def settings_of(options):
    """Return the settings that options and environment ask for, options first."""
    default = stages.default_settings()
    return replace(
        stages.QUICK if options.quick else default,
        seed=default.seed if options.seed is None else options.seed,
        device=chosen_device(options),
    )


def file_settings_of(options):
    """Return the `FileSettings` of the command `reward-model`."""
    device, seed = chosen_device(options), options.seed
    dtype = options.dtype
    if dtype == "auto":
        on_gpu = device == "cuda" and torch.cuda.is_bf16_supported()
        dtype = "bf16" if on_gpu and not distributed.launched() else "fp32"
    names = [field.name for field in fields(reward_file.FileSettings)]
    given = {name: x for name, x in vars(options).items() if name in names}
    return reward_file.FileSettings(
        **given
        | {
            "seed": stages.default_settings().seed if seed is None else seed,
            "skip_bad_lines": options.bad_lines == "skip",
            "device": device,
            "dtype": dtype,
        }
    )


# What each command does first is all that can be refused, a ValueError; it returns what
# is then left to be done, a function.


def run(options):
    """Prepare `pipeline.run`."""
    settings = settings_of(options)
    return lambda: pipeline.run(settings, options.out)


def ask(options):
    """Prepare `pipeline.ask`."""
    asked, question = stages.Stages(settings_of(options)), " ".join(options.question)
    pipeline.question_ids(asked, question)
    return lambda: print(pipeline.ask(asked, question, options.temperature))


def reward_model(options):
    """Read the file and the base of a training; prepare `reward_file.fit`."""
    if distributed.launched():
        return reward_model_together(options)
    if options.engine:
        raise ValueError(f"--engine must be given under torchrun, got {options.engine}")
    settings = file_settings_of(options)
    reward_file.require_own_folder(settings.out)
    prepared = reward_file.prepare(settings, stages.shown("reading"))
    bar = stages.shown("reward model")

    def train():
        with reward_file.locked(settings.out):
            report = reward_file.fit(prepared, settings, bar)
        print(f"{reward_file.report_table(report)}\nwritten: {settings.out}")

    return train


def reward_model_together(options):
    """Do the same in each process of torchrun; the first one holds folder and word."""
    if options.dtype == "bf16":
        raise ValueError("--dtype must be fp32 under torchrun, got bf16")
    settings = file_settings_of(options)
    processes = distributed.start(settings.device)
    first = processes.rank == 0
    reward_file.require_own_folder(settings.out)
    prepared = reward_file.prepare(settings, stages.shown("reading") if first else None)
    bar = stages.shown("reward model") if first else None
    engine = options.engine or "ddp"

    def train():
        with reward_file.locked(settings.out) if first else nullcontext():
            report = reward_file.fit_together(
                prepared, settings, processes, engine, bar
            )
        if first:
            print(f"{reward_file.report_table(report)}\nwritten: {settings.out}")
        distributed.stop()

    return train


def audit(options):
    """Load a reward model, read the file; prepare the audit."""
    tally = Tally() if options.bad_lines == "skip" else StrictTally()
    judge = any_reward_model.load_judge(options.model, chosen_device(options))
    longest = min(options.max_tokens or judge.max_tokens, judge.max_tokens)
    judge = replace(judge, max_tokens=longest)
    comparisons = islice(read_preferences(options.data, tally=tally), options.limit)
    pairs = any_reward_model.read_pairs(judge, comparisons, tally)

    def tell():
        audited = any_reward_model.judge_pairs(judge, pairs)
        print(judge.about, *tally.lines(), table(audited), sep="\n")
        if options.report:
            report = {"model": judge.about, "data": tally.report(), **audited}
            text = json.dumps(report, indent=2) + "\n"
            options.report.write_text(text, encoding="utf-8")

    return tell


COMMANDS = {"run": run, "ask": ask, "reward-model": reward_model, "audit": audit}


def main(arguments=None):
    """Parse the command line and do what it says."""
    whole = parser()
    options = whole.parse_args(arguments)
    try:
        try:
            act = COMMANDS[options.command](options)
        except (ValueError, ModuleNotFoundError) as error:
            whole.error(str(error))
        act()
    except OtherRun as error:
        whole.error(str(error))
    except (TrainingDiverged, OSError) as error:
        whole.exit(1, f"{whole.prog}: {error}\n")
    except KeyboardInterrupt:
        whole.exit(
            130, f"{whole.prog}: interrupted; the same command goes on from here\n"
        )


if __name__ == "__main__":
    main()
