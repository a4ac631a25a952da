"""The command line: `python -m minillama run` trains and reports, `… ask` answers.

What was asked in a wrong way gets one line on standard error and exit status 2; what
went wrong on the way, a diverged training or a full disk, one line and 1.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

from minillama import pipeline, stages
from minillama.optim import TrainingDiverged


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


def parser():
    """Return the parser of both commands; the environment is not asked here."""
    whole = Parser("minillama", description="RLHF from scratch, held against the truth")
    commands = whole.add_subparsers(dest="command", required=True)
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
            "--seed", type=int, help="default: MINILLAMA_SEED, or else 0"
        )
        command.add_argument(
            "--device",
            choices=("auto", "cpu", "cuda"),
            help="default: MINILLAMA_DEVICE, or else auto",
        )
        command.add_argument(
            "--quick",
            action="store_true",
            help="a few steps of everything: a test, no result",
        )
    return whole


def settings_of(options):
    """Return the settings that options and environment ask for, options first."""
    default = stages.default_settings()
    return replace(
        stages.QUICK if options.quick else default,
        seed=default.seed if options.seed is None else options.seed,
        device=stages.choose_device(options.device)
        if options.device
        else default.device,
    )


def main(arguments=None):
    """Parse the command line and do what it says."""
    whole = parser()
    options = whole.parse_args(arguments)
    try:
        settings = settings_of(options)
        if options.command == "ask":
            asked, question = stages.Stages(settings), " ".join(options.question)
            pipeline.question_ids(asked, question)
    except ValueError as error:
        whole.error(str(error))
    try:
        if options.command == "ask":
            print(pipeline.ask(asked, question, options.temperature))
        else:
            pipeline.run(settings, options.out)
    except (TrainingDiverged, OSError) as error:
        whole.exit(1, f"{whole.prog}: {error}\n")
    except KeyboardInterrupt:
        whole.exit(
            130, f"{whole.prog}: interrupted; the same command goes on from here\n"
        )


if __name__ == "__main__":
    main()
