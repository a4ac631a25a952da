"""Her own package: what a student wrote in her notebooks, put to work.

    python -m minillama.course.mine build/student      (make mine FROM=build/student)

1. Each exercise of her notebooks is run through its lesson's checks, in a process of
   its own. What passes is hers; what is not written, or fails, stays the course's and
   is named with its lesson and the check's words.
2. A copy of the package is written to build/mine/ in which her definitions stand in the
   place of the course's: sync.py, run backwards.
3. On that copy all checks run again, together, then the unit tests of the modules that
   have something of hers, then the whole pipeline: a policy aligned with her own code.

Left out: notebooks of other names than the course's, and cells that are not exercises.
"""

import argparse
import ast
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat

from minillama.course import checks, release, sync

MINE = sync.PROJECT / "build/mine"
SECONDS = 120  # A check that takes longer has failed.
FORKS = "forkserver"  # imports PyTorch once; not on Windows
MARK = ".written-by-make-mine"  # Only a folder that has it is written over.
COPIED = ("minillama", "tests", "conftest.py", "pyproject.toml")


@dataclass(frozen=True)
class Piece:
    """One exercise as somebody wrote it."""

    lesson: str  # The notebook's stem.
    file: str  # The file of the package that it belongs to.
    names: tuple[str, ...]  # It is asked to define these names.
    source: str  # It reads so.
    checks: tuple[tuple[str, str], ...]  # (check, name that it is called with).


def checks_after(cells, index):
    """Return the calls `check.CHECK(NAME)` in the code cell after an exercise."""
    following = next(x for x in cells[index + 1 :] if x.cell_type == "code")
    calls = [
        x for x in ast.walk(ast.parse(following.source)) if isinstance(x, ast.Call)
    ]
    return tuple(
        (call.func.attr, call.args[0].id)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) == "check"
    )


def pieces(folder, course=sync.NOTEBOOKS):
    """Return the `Piece`s of a folder of notebooks, in the order of the course.

    An exercise is found again by the id of its cell. Raises ValueError if no notebook
    of the course is there.
    """
    found, known = [], sorted(Path(course).glob("*.ipynb"))
    hers = [path for path in known if (Path(folder) / path.name).is_file()]
    if not hers:
        raise ValueError(f"there is no notebook of the course in {folder}")
    for path in hers:
        theirs = nbformat.read(Path(folder) / path.name, as_version=4).cells
        sources = {cell.get("id"): cell.source for cell in theirs}
        notebook = nbformat.read(path, as_version=4)
        for cell in sync.definition_cells(notebook):
            ours = notebook.cells[cell.index]
            if release.is_exercise(ours) and ours.id in sources:
                tried = checks_after(notebook.cells, cell.index)
                source = sources[ours.id]
                found.append(Piece(path.stem, cell.file, cell.names, source, tried))
    return found


def failure(piece):
    """Run a piece's checks on it in place of the package's; return what went wrong.

    The answer is one text, "" if all is well. The rest of the package is the course's.
    """
    module = importlib.import_module(piece.file.removesuffix(".py").replace("/", "."))
    namespace = dict(vars(module))
    for name in piece.names:
        del namespace[name]
    try:
        exec(compile(piece.source, piece.file, "exec"), namespace)
        for name in piece.names:
            if name not in namespace:
                return f"{name} is not defined in the cell"
        for check, name in piece.checks:
            getattr(checks, check)(namespace[name])
    except NotImplementedError as error:
        return str(error).partition(". ")[0] or "not written yet"
    except AssertionError as error:
        return str(error)
    except BaseException as error:  # whatever she wrote: it is named, not raised
        return f"{type(error).__name__}: {error}"
    return ""


def _answer(piece, end):
    with contextlib.redirect_stdout(io.StringIO()):
        end.send(failure(piece))


def tried(piece, seconds=SECONDS):
    """Return `failure` of a piece from a process of its own, which cannot harm ours."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context(FORKS if FORKS in known else "spawn")
    if FORKS in known:
        context.set_forkserver_preload([__spec__.name])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(piece, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else f"no end after {seconds} s"
    except EOFError:
        process.join()
        return f"the process died with exit code {process.exitcode}"
    finally:
        process.kill()


def put(piece, project):
    """Put a piece into a copy of the package, each name in the place of the course's.

    What else the cell defines or imports stands in front of its first name.
    """
    path = Path(project) / piece.file
    text = path.read_text(encoding="utf-8")
    hers = sync.definitions(piece.source)
    lines = piece.source.split("\n")
    others = [
        "\n".join(lines[_first(x) - 1 : x.end_lineno])
        for x in ast.parse(piece.source).body
        if not set(sync.names_of(x)) & set(piece.names)
    ]
    package = sync.definitions(text)
    for i, name in enumerate(piece.names):
        mine = "\n\n\n".join([*(others if i == 0 else []), hers[name][0]])
        text = text.replace(package[name][0], mine, 1)
    path.write_text(text, encoding="utf-8")


def _first(statement):
    """The number of a statement's first line, decorators included."""
    decorators = getattr(statement, "decorator_list", [])
    return min(x.lineno for x in [statement, *decorators])


def require_own_folder(out):
    """Refuse a folder that holds anything but an earlier copy: it is written over."""
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise ValueError(f"--out must be an empty folder or an earlier one, got {out}")


def copy_project(out, project=sync.PROJECT):
    """Write what a run of the tests needs into a folder, over an earlier copy."""
    skipped = shutil.ignore_patterns("__pycache__")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    for name in COPIED:
        if (project / name).is_dir():
            shutil.rmtree(out / name, ignore_errors=True)
            shutil.copytree(project / name, out / name, ignore=skipped)
        else:
            shutil.copy(project / name, out / name)


def in_copy(out, *command):
    """Run Python in the copy, with its package and a store of its own."""
    own = {"PYTHONPATH": str(out), "MINILLAMA_ARTIFACTS": str(out / "artifacts")}
    return subprocess.run([sys.executable, *command], cwd=out, env=os.environ | own)


def tests_of(good, out):
    """Return what pytest runs: all checks, and the tests of modules with her code."""
    together = sorted(out.glob("tests/test_checks_*.py"))
    stems = dict.fromkeys(Path(piece.file).stem for piece in good)
    files = (out / f"tests/test_{stem}.py" for stem in stems)
    return [
        *(f"{path}::test_the_package_passes" for path in together),
        *(str(path) for path in files if path.is_file()),
    ]


def chosen(found, only, without):
    """Return the pieces that `--only` and `--except` leave; names must be known."""
    known = {name for piece in found for name in piece.names}
    for name in [*only, *without]:
        if name not in known:
            raise ValueError(f"{name} is no exercise of these notebooks")
    return [
        piece
        for piece in found
        if (not only or set(piece.names) & set(only))
        and not set(piece.names) & set(without)
    ]


def sorted_out(found):
    """Try every piece, say how it went, return those that pass."""
    good, unwritten = [], 0
    for piece in found:
        wrong = tried(piece)
        names = ", ".join(piece.names)
        if not wrong:
            good.append(piece)
            print(f"{piece.lesson:20} {names}: yours", flush=True)
        elif wrong.endswith("not written yet"):
            unwritten += 1
        else:
            print(f"{piece.lesson:20} {names}: the course's, since\n    {wrong}")
    failed = len(found) - len(good) - unwritten
    print(f"{len(good)} exercises are yours, {failed} failed, {unwritten} not written")
    return good


def beside(out, project=sync.PROJECT):
    """Return the lines that compare her policy with the course's, if that has run."""
    reports = {"yours": out / "run/report.json"}
    if (project / "build/run/report.json").is_file():
        reports["the course's"] = project / "build/run/report.json"
    read = {name: json.loads(path.read_text()) for name, path in reports.items()}
    lines = [f"{'after PPO, sampled':22}" + "".join(f"{name:>14}" for name in read)]
    for number in ("helpfulness", "refusal", "risky_advice"):
        values = "".join(f"{x[number]['after']:14.3f}" for x in read.values())
        lines.append(f"{number:22}{values}")
    return lines


def main(arguments=None, project=sync.PROJECT):
    """The command line; the exit status is that of the tests and the run."""
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.mine", description=__doc__.split("\n")[0]
    )
    parser.add_argument("notebooks", type=Path, help="the folder of your notebooks")
    parser.add_argument("--out", type=Path, default=MINE, help="the folder to write")
    parser.add_argument("--only", default="", help="take these names alone: a,b")
    parser.add_argument("--except", dest="without", default="", help="leave out: a,b")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything"
    )
    options = parser.parse_args(arguments)
    only, without = (x.split(",") if x else [] for x in (options.only, options.without))
    out = options.out.resolve()
    try:
        require_own_folder(out)
        found = chosen(pieces(options.notebooks), only, without)
    except (OSError, ValueError) as error:
        print(f"mine: {error}", file=sys.stderr)
        return 2
    good = sorted_out(found)
    if not good:
        return 1
    copy_project(out, project)
    for piece in good:
        put(piece, out)
    print(f"\nyour package: {out / 'minillama'}; its tests:", flush=True)
    tests = in_copy(out, "-m", "pytest", "-q", "-n0", *tests_of(good, out)).returncode
    quick = ["--quick"] * options.quick
    ran = in_copy(out, "-m", "minillama", "run", "--out", str(out / "run"), *quick)
    if ran.returncode == 0:
        print("", *beside(out, project), sep="\n")
    return tests or ran.returncode


if __name__ == "__main__":
    sys.exit(main())
