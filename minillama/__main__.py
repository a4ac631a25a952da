"""The command line: ``python -m minillama run`` trains and reports, ``python -m minillama ask "…"`` answers."""

import argparse
from dataclasses import replace
from pathlib import Path

from minillama import pipeline, stages


def main(arguments=None):
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="minillama", description="RLHF from scratch, checked against the truth."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="train every stage from random weights and report how well it worked",
    )
    run.add_argument(
        "--out",
        type=Path,
        default=Path("build/run"),
        help="folder of report.json and the figure",
    )
    ask = commands.add_parser(
        "ask", help="answer a question with the policy before and after PPO"
    )
    ask.add_argument("question", help='for example "How do I boil an egg?"')
    for command in (run, ask):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        command.add_argument(
            "--quick",
            action="store_true",
            help="a few steps of everything: a test, no result",
        )
    options = parser.parse_args(arguments)
    settings = stages.QUICK if options.quick else stages.Settings()
    settings = replace(
        settings, seed=options.seed, device=stages.choose_device(options.device)
    )
    if options.command == "run":
        pipeline.run(settings, options.out)
    else:
        print(pipeline.ask(stages.Stages(settings), options.question))


if __name__ == "__main__":
    main()
