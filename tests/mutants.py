"""Mutation testing: `make mutants FILE=minillama/kl.py`.

mutmut changes the functions of one file, one change at a time, and runs the unit tests
of that file against each change. A change that no test notices survives: a line that
the tests do not check. The script works on a copy in build/mutants/, prints each
survivor, and exits with 1 if fewer than 90 % are killed.

mutmut leaves decorated functions alone, so in the copy `@expects(…)` above `def f`
becomes `f = expects(…)(f)` below it: the same function, with a body that is mutated.

With `ARGS=--survivors` only the survivors of the last run and the functions changed
since then are run again: for work on the tests. What counts is a run of all.

A survivor that computes the same as the original goes, as it was printed and with a
reason, into tests/equivalent_mutants.txt; it is counted apart.
"""

import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

LEAST = 0.9
EQUIVALENT = Path("tests/equivalent_mutants.txt")
# Decorators that change what a name is, not what it computes, stay where they are.
STAY = {"property", "cached_property", "staticmethod", "classmethod", "setter"}
SURVIVED = {0, 5, 33, None}  # exit codes of mutmut; 5 and 33: no test calls it
TIMEOUT = {-24, 24, 36, 152, 255}

# The unit tests of each file, as far as they exist, and options of pytest.
TESTS = {
    "arena": ["test_arena.py"],
    "audit": ["test_audit.py"],
    "best_of_n": ["test_best_of_n.py"],
    "contracts": ["test_contracts.py"],
    "data": ["test_data.py"],
    "dpo": ["test_dpo.py"],
    "evidence": ["test_evidence.py"],
    "exact": ["test_exact.py"],
    "fast": ["test_fast.py"],
    "gae": ["test_gae.py"],
    "generate": ["test_generate.py"],
    "grammar": ["test_grammar.py"],
    "grpo": ["test_grpo.py"],
    "hf": ["test_hf.py"],
    "kl": ["test_kl.py"],
    "ladder": ["test_ladder.py"],
    "lm": ["test_lm.py"],
    "model": ["test_model.py"],
    "off_policy": ["test_off_policy.py"],
    "optim": ["test_optim.py"],
    "policy_gradient": ["test_policy_gradient.py"],
    "ppo": ["test_ppo.py", "-k", "not exact_optimum"],
    "preference_loss": ["test_preference_loss.py"],
    "process_reward": ["test_process_reward.py"],
    "reward_model": ["test_reward_model.py"],
    "reward_selection": ["test_reward_selection.py"],
    "sources": ["test_sources.py", "-k", "not first_import"],
    # Mutants of one builder stand in the text of another, which so reads its settings.
    "stages": [
        "test_stages.py",
        "-k",
        "not which_stages and not other_code and not hangs_on",
    ],
    "store": ["test_store.py", "-k", "not processes and not every_process"],
    "whiten": ["test_whiten.py"],
    "world": ["test_world.py"],
    "writers": ["test_writers.py"],
}
# What every public function refuses: for all files.
ALWAYS = ["test_bad_input.py"]
# It counts names, and mutants are names too.
ALWAYS += [
    "--deselect",
    "tests/test_bad_input.py::test_the_table_knows_every_public_function",
]

# Left out, these save two garbage collections of 0.2 s each, per mutant.
QUICK = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
# A mutant's process is forked from one that has run all tests: nothing is left to
# import (0.1 s instead of 1 s), but no remembered result may hide the mutant.
FORGET = """

import sys


def pytest_sessionstart():
    for name, module in list(sys.modules.items()):
        if name.startswith("minillama"):
            for value in vars(module).values():
                while value is not None:  # a cache may lie below a contract
                    getattr(value, "cache_clear", int)()
                    value = getattr(value, "__wrapped__", None)
"""


def decorators_below(source):
    """Rewrite `@d` above `def f` as `f = d(f)` below it; nested functions stay."""
    lines = source.splitlines()
    for function in reversed(_functions(ast.parse(source)).values()):
        decorators = [
            ast.get_source_segment(source, d) for d in function.decorator_list
        ]
        if not decorators or STAY & {d.split(".")[-1] for d in decorators}:
            continue
        call = function.name
        for decorator in reversed(decorators):
            call = f"{decorator}({call})"
        indent = " " * function.col_offset
        lines.insert(function.end_lineno, f"{indent}{function.name} = {call}")
        first = function.decorator_list[0].lineno
        del lines[first - 1 : function.lineno - 1]
    return "\n".join(lines) + "\n"


def _functions(tree, prefix=""):
    """Return {name: node} of functions and methods, `Class.method`, in their order."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= _functions(node, f"{prefix}{node.name}.")
    return found


def selection(file):
    """Return the tests that are run against a file, as words for pytest."""
    words = [*TESTS[file.stem], *ALWAYS]
    words = [f"tests/{word}" if word.endswith(".py") else word for word in words]
    return [word for word in words if word[-3:] != ".py" or Path(word).exists()]


# Collects the tests twice in one process, as mutmut does, and prints what got lost.
TWICE = """
import sys
import pytest

class Ids:
    def pytest_collection_finish(self, session):
        self.found = {item.nodeid for item in session.items}

first, second = Ids(), Ids()
for ids in (first, second):
    pytest.main(["--collect-only", "-qq", *sys.argv[1:]], plugins=[ids])
for name in sorted(first.found - second.found):
    print("LOST", name)
"""


def unfindable(words, folder):
    """Return the ids of tests that have another id when they are collected again.

    mutmut asks for tests by id in a fork of the process that has run them all. It calls
    a mutant killed where pytest does not find one of them: so all mutants of what such
    a test calls. An id of `ids=str` is escaped once more each time.
    """
    command = [sys.executable, "-c", TWICE, *QUICK, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return [line.removeprefix("LOST ") for line in lines if line.startswith("LOST ")]


def prepare(file, folder):
    """Write the copy that mutmut works on, with its settings in setup.cfg."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("minillama", "tests"):
        shutil.copytree(
            name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy("pyproject.toml", folder)
    conftest = Path("conftest.py").read_text()
    (folder / "conftest.py").write_text(f"{conftest}{FORGET}")
    (folder / file).write_text(decorators_below(file.read_text()))
    settings = {
        "source_paths": "minillama",
        "only_mutate": file,
        "also_copy": "conftest.py",
        "pytest_add_cli_args_test_selection": "\n    ".join(["", *selection(file)]),
        "pytest_add_cli_args": "\n    ".join(["", *QUICK]),
        # A mutant may take ten times as long as its tests took, and ten seconds.
        "timeout_multiplier": 10,
        "use_git_change_detection": False,
    }
    text = "\n".join(f"{key} = {value}" for key, value in settings.items())
    (folder / "setup.cfg").write_text(f"[mutmut]\n{text}\n")


def run_mutmut(folder):
    """Run mutmut in the folder, with one thread for each of two children."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [Path(sys.executable).absolute().parent / "mutmut", "run"]
    with open(folder / "mutmut.log", "w") as log:
        done = subprocess.run(
            [*command, "--max-children", "2"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    if done.returncode:
        end = (folder / "mutmut.log").read_text()[-3000:]
        sys.exit(f"{end}\nmutants: mutmut stopped; do the tests pass without mutants?")


def read_mutants(file, folder):
    """Return (function, line, removed, added, exit code) of the mutants, by line."""
    meta = json.loads((folder / "mutants" / f"{file}.meta").read_text())
    lines = (folder / "mutants" / file).read_text().splitlines()
    versions = _functions(ast.parse("\n".join(lines))).values()
    versions = {
        node.name: lines[node.lineno - 1 : node.end_lineno] for node in versions
    }
    originals = _functions(ast.parse(file.read_text()))
    found = []
    for key, code in meta["exit_code_by_key"].items():
        mutant = key.rpartition(".")[2]  # x_f__mutmut_3, or xǁClassǁf__mutmut_3
        stem = mutant.rpartition("__mutmut_")[0]
        function = stem.replace("ǁ", ".").removeprefix("x_").removeprefix("x.")
        both = [f"{stem}__mutmut_orig", mutant]
        both = [
            [line.replace(name, function.split(".")[-1]) for line in versions[name]]
            for name in both
        ]
        diff = list(difflib.unified_diff(*both, lineterm="", n=0))[2:]
        removed, added = (
            tuple(" ".join(line[1:].split()) for line in diff if line[0] == sign)
            for sign in "-+"
        )
        offset = int(re.search(r"\d+", diff[0])[0]) - 1
        found.append(
            (function, originals[function].lineno + offset, removed, added, code)
        )
    return sorted(found, key=lambda mutant: mutant[1])


def read_equivalent(file):
    """Return {(function, removed, added)} of the mutants listed as equivalent."""
    listed = set()
    for block in EQUIVALENT.read_text().split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines or lines[0].split()[0] != str(file):
            continue
        removed, added, reasons = (
            tuple(line[1:].strip() for line in lines[1:] if line[0] == sign)
            for sign in "-+="
        )
        if not reasons or not reasons[0]:
            sys.exit(f"{EQUIVALENT}: a mutant without a reason:\n{block}")
        listed.add((lines[0].split()[1], removed, added))
    return listed


def report(file, mutants, equivalent, seconds):
    """Print the survivors and the share killed, and return that share."""
    survivors = [mutant for mutant in mutants if mutant[-1] in SURVIVED]
    alike = [m for m in survivors if (m[0], m[2], m[3]) in equivalent]
    left = [mutant for mutant in survivors if mutant not in alike]
    for function, line, removed, added, code in left:
        print(f"\n{file} {function} line {line}{' (no test calls it)' if code else ''}")
        print(
            "\n".join(
                [f"- {text}" for text in removed] + [f"+ {text}" for text in added]
            )
        )
    counted = len(mutants) - len(alike)
    share = 1 - len(left) / counted
    slow = sum(mutant[-1] in TIMEOUT for mutant in mutants)
    print(
        f"\n{file}: {counted} mutants, {counted - len(left)} killed ({slow} by time), "
        f"{share:.1%}; {len(left)} survived; {len(alike)} equivalent, not counted; "
        f"{seconds:.0f} s"
    )
    for function, removed, added in equivalent - {(m[0], m[2], m[3]) for m in alike}:
        print(f"listed as equivalent, but no survivor: {function} {removed} -> {added}")
    return share


def main():
    """Mutate one file and exit with 1 if too many mutants survive."""
    start = time.time()
    file = Path(sys.argv[1])
    if file.stem not in TESTS:
        sys.exit(f"mutants: FILE must be one of {', '.join(TESTS)}, got {file}")
    folder = Path("build/mutants") / file.stem
    meta = folder / "mutants" / f"{file}.meta"
    kept = json.loads(meta.read_text()) if "--survivors" in sys.argv else None
    prepare(file, folder)
    if lost := unfindable(selection(file), folder):
        sys.exit("\n".join(["mutants: tests that have no findable id:", *lost]))
    if kept:  # mutmut runs what has no result yet, and what is in a changed function
        codes = kept["exit_code_by_key"]
        codes |= {key: None for key, code in codes.items() if code in SURVIVED}
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps(kept))
    run_mutmut(folder)
    mutants = read_mutants(file, folder)
    sys.exit(report(file, mutants, read_equivalent(file), time.time() - start) < LEAST)


if __name__ == "__main__":
    main()
