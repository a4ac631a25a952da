"""Her own package: what a student wrote in her notebooks, put to work.

    python -m minillama.course.mine build/student      (make mine FROM=build/student)

1. Each exercise of her notebooks is run through its lesson's checks, in a process of
   its own. What passes is hers; what is not written, or fails, stays the course's and
   is named with its lesson and the check's words.
2. A copy of the package is written to build/mine/ in which her definitions stand in the
   place of the course's: sync.py, run backwards.
3. On that copy all checks run again, together, then the unit tests of the modules that
   have something of hers, then the whole pipeline: a policy aligned with her own code.

The tests ask for more than the checks, and may fail where her code is right: what fails
is listed and changes nothing. How she words an error is her affair.

Left out: notebooks of other names than the course's, and cells that are not exercises.
What is not of the course and her notebook imports, such as math, goes along with a cell
that uses it; what she tries out in an exercise's cell, below the definitions, does not.
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
SHOWN = ("helpfulness", "refusal", "risky_advice")
TESTS = """
import sys, pytest

raises = pytest.raises
pytest.raises = lambda *kinds, match=None, **named: raises(*kinds, **named)
sys.exit(pytest.main(sys.argv[1:]))
"""


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
                source = standing_alone(sources[ours.id], cell.file, theirs)
                found.append(Piece(path.stem, cell.file, cell.names, source, tried))
    return found


def standing_alone(source, file, cells):
    """Return a cell's source with the imports that it needs and its file lacks.

    They are those of her notebook's cells, but for imports from the course. Statements
    that neither define nor import are taken out. What does not parse stays as it is.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return source
    lines = source.split("\n")
    for statement in reversed(body):
        if not sync.names_of(statement) and not _is_import(statement):
            del lines[_first(statement) - 1 : statement.end_lineno]
    used = {x.id for statement in body for x in ast.walk(statement) if _is_name(x)}
    needed = used - set(vars(module_of(file)))
    bound = {name: line for name, line in _imports(cells) if name in needed}
    return "\n".join([lines[0], *dict.fromkeys(bound.values()), *lines[1:]])


def _is_import(statement):
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _is_name(node):
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _imports(cells):
    """Yield (name, import statement) of code cells, but for imports from the course."""
    for cell in cells:
        try:
            body = ast.parse(cell.source).body if cell.cell_type == "code" else []
        except SyntaxError:  # also what IPython alone understands
            continue
        for statement in filter(_is_import, body):
            for alias in statement.names:
                name = alias.asname or alias.name.partition(".")[0]
                line = ast.unparse(_only(statement, alias))
                if "minillama" not in line:
                    yield name, line


def _only(statement, alias):
    """An import statement of one name out of several."""
    if isinstance(statement, ast.Import):
        return ast.Import([alias])
    return ast.ImportFrom(statement.module, [alias], statement.level)


def module_of(file):
    """Return the module of a file of the package."""
    return importlib.import_module(file.removesuffix(".py").replace("/", "."))


def failure(piece):
    """Run a piece's checks on it in place of the package's; return what went wrong.

    The answer is one text, "" if all is well. The rest of the package is the course's.
    """
    namespace = dict(vars(module_of(piece.file)))
    for name in piece.names:
        del namespace[name]
    try:
        exec(compile(piece.source, piece.file, "exec"), namespace)
        hers = sync.definitions(piece.source)
        for name in piece.names:
            if name not in hers and name in namespace:
                return f"{name} is imported: not written yet"
            if name not in hers and not is_private(name):
                return f"{name} is not defined in the cell"
        for name in set(hers) - set(piece.names):
            if hasattr(module_of(piece.file), name):
                return f"{piece.file} has a {name} of its own: call yours otherwise"
        for check, name in piece.checks:
            getattr(checks, check)(namespace[name])
    except NameError as error:
        return (
            f"NameError: {error}. A cell goes into {piece.file} alone: define or "
            "import in it, inside of the function, what the rest of your notebook has"
        )
    except NotImplementedError as error:
        return str(error).partition(". ")[0] or "not written yet"
    except AssertionError as error:
        return str(error)
    except BaseException as error:  # whatever she wrote: it is named, not raised
        return f"{type(error).__name__}: {error}"
    return ""


def is_private(name):
    """Return whether a name is a helper's, which she may do without."""
    return name.startswith("_")


def _answer(piece, end):
    with contextlib.redirect_stdout(io.StringIO()):
        end.send(failure(piece))


def tried(piece, seconds=SECONDS):
    """Return `failure` of a piece from a process of its own, which cannot harm ours."""
    known = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context(FORKS if FORKS in known else "spawn")
    if FORKS in known:
        context.set_forkserver_preload([checks.__name__, release.__name__])
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
    for i, name in enumerate(name for name in piece.names if name in hers):
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


def all_checks(course=sync.NOTEBOOKS):
    """Return (file, check, name) of every check of a definition cell of the course."""
    calls = []
    for path in sorted(Path(course).glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in sync.definition_cells(notebook):
            for call in checks_after(notebook.cells, cell.index):
                calls.append((cell.file, *call))
    return calls


def together(calls):
    """Run checks on the package as it is imported; return how many fail, and say so."""
    failed = 0
    for file, check, name in calls:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(checks, check)(getattr(module_of(file), name))
        except Exception as error:
            failed += 1
            print(f"{name} of {file}: {type(error).__name__}: {error}")
    print(
        f"{len(calls) - failed} of {len(calls)} checks pass, all together", flush=True
    )
    return failed


def checked_together(out, calls):
    """Return whether checks pass on the copy, in a process of its own."""
    code = (
        f"from minillama.course import mine; raise SystemExit(mine.together({calls}))"
    )
    return in_copy(out, "-c", code).returncode == 0


def tests_of(good, out):
    """Return the files with the tests of modules that have something of hers."""
    stems = dict.fromkeys(Path(piece.file).stem for piece in good)
    files = (out / f"tests/test_{stem}.py" for stem in stems)
    return [str(path) for path in files if path.is_file()]


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


def clash(piece, helpers):
    """Return what is wrong with the names of a piece's own helpers, "" if nothing is.

    In one file a name means one thing. helpers: {(file, name): text}, those of earlier
    pieces, to which this one's are added.
    """
    for name, (text, _) in sync.definitions(piece.source).items():
        if name not in piece.names:
            if helpers.setdefault((piece.file, name), text) != text:
                return f"an earlier cell of yours for {piece.file} has another {name}"
    return ""


def sorted_out(found):
    """Try every piece, say how it went, return those that pass."""
    good, unwritten, helpers = [], 0, {}
    for piece in found:
        wrong = tried(piece) or clash(piece, helpers)
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
    """Return lines: her policy before and after PPO, and the course's if it has run."""
    reports = {"yours": out / "run/report.json"}
    if (project / "build/run/report.json").is_file():
        reports["the course's"] = project / "build/run/report.json"
    read = {name: json.loads(path.read_text()) for name, path in reports.items()}
    heads = "".join(
        f"{name + ', seed ' + str(x['seed']):>24}" for name, x in read.items()
    )
    lines = [f"{'':13}{heads}", f"{'':13}" + f"{'before':>15}{'after':>9}" * len(read)]
    for number in SHOWN:
        values = (
            f"{x[number]['before']:15.3f}{x[number]['after']:9.3f}"
            for x in read.values()
        )
        lines.append(f"{number:13}" + "".join(values))
    if len(read) == 1:
        lines.append("The course's numbers stand beside yours after `make run`.")
    return lines


def main(arguments=None, project=sync.PROJECT):
    """The command line; the exit status is that of the checks and the run."""
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
    print(f"\nyour package: {out / 'minillama'}", flush=True)
    passed = checked_together(out, all_checks())
    if tests := tests_of(good, out):
        print("\nthe package's tests ask for more; what fails is listed:", flush=True)
        in_copy(out, "-c", TESTS, "-q", "-n0", "--tb=no", *tests)
    quick = ["--quick"] * options.quick
    ran = in_copy(out, "-m", "minillama", "run", "--out", str(out / "run"), *quick)
    if ran.returncode:
        print(
            "\nmine: the run failed; leave out what it names, with --except (EXCEPT=)"
        )
        return ran.returncode
    print("", "sampled answers, before and after PPO", *beside(out, project), sep="\n")
    if options.quick:
        print("A few steps align nothing: without --quick the numbers mean something.")
    else:
        print(f"This policy was trained with {len(good)} of your exercises.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
