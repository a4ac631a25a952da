"""Editions of the course: the blank one, in which a student writes, and nbgrader's.

    python -m minillama.course.release student  [--out build/student]
    python -m minillama.course.release nbgrader [--out build/nbgrader]

An *exercise* is a definition cell (sync.py) with the tag `exercise`. In the blank
edition the bodies of its functions and methods are taken out; signatures, contracts,
docstrings, fields and constants stay. A blank says how to go on with the course's own
version. All outputs are taken out too, since they hold the answers to predictions.
`make sync` on a blank edition gives the course's sources again.

The other edition is a course for nbgrader, which collects and grades. A notebook is an
assignment. A body is a solution region, which nbgrader takes out, and leaves the same
blank. The check after an exercise is a locked cell with a point for each body.
Left out: prose is never touched, but for links between lessons, and other definition
cells stay as they are. Code that wants to outwit a check in its own kernel can: only a
teacher who reads it sees that.
"""

import argparse
import ast
import re
import sys
from itertools import takewhile
from pathlib import Path

import nbformat

from minillama.course import mend, sync, tidy

LESSON = re.compile(r"\]\((\d\d_\w+)\.ipynb")  # a link to it
NOT_HERS = "this is the course's own: no points"
CONFIG = '''"""nbgrader's settings, written by `make nbgrader` and yours to change."""

import os
import sys
from pathlib import Path

import minillama  # noqa: F401  sets how PyTorch's threads wait, for the kernels too

# nbgrader calls a program, alembic, that lies beside this Python.
beside = str(Path(sys.executable).parent)
os.environ["PATH"] = beside + os.pathsep + os.environ["PATH"]

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "minillama"

# What a solution region leaves. Below it stands an error that says how to go on.
c.ClearSolutions.code_stub = {"python": "# your code"}

# A check that was deleted is put back. (One that was changed always is.)
c.OverwriteCells.add_missing_cells = True

# Seconds for a cell; an endless loop costs so long. With all trained stages in the
# store a cell takes less than a minute, so fill it first: `make test` does. In lessons
# 05, 18, 19 and 21 to 24 what fails its check may train for longer, and is cut short.
# No point is lost by that: checks take seconds and need no cell that trains.
c.Execute.timeout = 300

# The notebooks find the package and the store of trained stages by themselves, if
# nbgrader runs from the .venv of the checkout. MINILLAMA_ARTIFACTS names another store.
'''


def is_exercise(cell):
    """Return whether a student writes this cell (as nbformat reads it)."""
    return "exercise" in cell.metadata.get("tags", []) and bool(sync.cell_header(cell))


def blanked(source):
    """Return the source of a definition cell without the bodies, and their names.

    A name is that of a function, or Class.method. A body that is no more than a
    docstring stays. Raises ValueError where nothing is left to write.
    """
    return _rewritten(source, lambda node, body, blank: blank)


def with_regions(source):
    """Return what `blanked` does, with the bodies as nbgrader's solution regions.

    With "# your code" in the place of each region it is `blanked`. So a blank's error
    stands below its region, where nothing arrives.
    """
    return _rewritten(source, _region)


def _region(node, body, blank):
    """The lines of a function's solution region, and of what is left without it."""
    indent = " " * (node.col_offset + 4)
    end = [] if isinstance(node.body[-1], ast.Return) else [f"{indent}return"]
    begins, ends = (f"{indent}### {x} SOLUTION" for x in ("BEGIN", "END"))
    return [begins, *body, *end, ends, *blank[1:]]


def _rewritten(source, rewrite):
    """Return a source with other lines for each body, and the names.

    The lines are rewrite(node, body, blank): its function, its lines, a blank's lines.
    """
    file = sync.HEADER.match(source)[1]
    lines, names = source.split("\n"), []
    # from below, so that line numbers above stay right
    for name, node in reversed(list(_functions(ast.parse(source)))):
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body:
            continue
        first = body[0].lineno - 1  # the index of the first line that goes
        while lines[first - 1].strip() == "" or lines[first - 1].lstrip()[0] == "#":
            first -= 1
        blank = _blank(name, file, node.col_offset + 4)
        body_lines = lines[first : node.end_lineno]
        lines[first : node.end_lineno] = rewrite(node, body_lines, blank)
        names.insert(0, name)
    if not names:
        raise ValueError(f"there is no body to take out of the cell of {file}")
    return "\n".join(lines), names


def _functions(tree):
    """Yield (name, node) of functions of a module and methods of its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    yield f"{node.name}.{method.name}", method


def _blank(name, file, indent):
    """The lines of a body that is still to be written."""
    module, top = file.removesuffix(".py").replace("/", "."), name.partition(".")[0]
    lines = (
        "# your code",
        "raise NotImplementedError(",
        f'    "{name} is not written yet. To go on with the course\'s own, run: "',
        f'    "from {module} import {top}"',
        ")",
    )
    return [" " * indent + line for line in lines]


def student_edition(notebook):
    """Return a copy of a notebook with blanks for exercises and without outputs."""
    notebook = nbformat.from_dict(notebook)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            _empty(cell)
            if is_exercise(cell):
                cell.source, _ = blanked(cell.source)
            elif mend.mended_name(cell):
                cell.source = mend.still_broken(cell, notebook.cells[:i])
    return notebook


def nbgrader_edition(notebook):
    """Return a copy of a notebook as nbgrader's source: solutions, checks with points.

    Each exercise counts alone: before its check the course's own takes the place of the
    exercises above it, which may have failed, and after it that of this one, so that a
    class does not train every stage with everybody's code. nbgrader hides those lines
    from students. What else was in the check's cell goes into a cell of its own, since
    it may need other cells. Links follow the lessons, which lie in a folder each.
    """
    notebook = nbformat.from_dict(notebook)
    cells, names, above = [], [], []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type != "code":
            cell.source = LESSON.sub(r"](../\1/\1.ipynb", cell.source)
            continue
        _empty(cell)
        if is_exercise(cell) or mend.mended_name(cell):
            cell.source, names = _solution(cell, cells)
            cell.metadata.nbgrader = _role(names[0])
            own = _imports(cell, names)
        elif names:
            checks, rest = _split(cell.source)
            cell.source = "\n".join([_before(names, above), *checks, *_after(own)])
            cell.metadata.nbgrader = _role(f"check-{names[0]}", points=len(names))
            cells += [nbformat.v4.new_code_cell(x, id=f"{cell.id}-after") for x in rest]
            above, names = above + own, []
    notebook.cells = cells
    return notebook


def _empty(cell):
    """Take outputs and count out of a code cell, and unfold what hid an answer."""
    cell.outputs, cell.execution_count = [], None
    cell.metadata.pop("jupyter", None)
    if "tags" in cell.metadata:
        cell.metadata.tags = [x for x in cell.metadata.tags if x not in tidy.FOLDED]


def _solution(cell, earlier):
    """Return the source of an exercise with solution regions, and the names in them.

    A mending cell defines what is broken, and below it, in a region, what is mended.
    """
    if is_exercise(cell):
        return with_regions(cell.source)
    broken, mended = mend.still_broken(cell, earlier), cell.source.partition("\n")[2]
    source = f"{broken}\n\n\n### BEGIN SOLUTION\n{mended}\n### END SOLUTION"
    return source, [mend.mended_name(cell)]


def _role(name, points=0):
    """What nbgrader reads of a cell: a solution, or a locked check worth points."""
    is_check = points > 0
    role = {"schema_version": 3, "grade_id": re.sub(r"\W", "-", name), "task": False}
    role |= {"solution": not is_check, "grade": is_check, "locked": is_check}
    return nbformat.from_dict(role | ({"points": points} if is_check else {}))


def _split(source):
    """Return the checks that a cell begins with, and [the rest of its source]."""
    lines = source.split("\n")
    checks = list(takewhile(lambda line: line.startswith("check."), lines))
    rest = "\n".join(lines[len(checks) :]).strip()
    return checks, [rest] if rest else []


def _before(names, above):
    """What nbgrader hides and runs before the checks.

    What was imported counts for nothing, since a blank itself proposes to import it.
    """
    lines = [
        "from minillama.course import checks as check",
        *above,
        *(
            f"assert {x}.__module__[:9] != 'minillama', {NOT_HERS!r}"
            for x in tops(names)
        ),
    ]
    return "\n".join(["### BEGIN HIDDEN TESTS", *lines, "### END HIDDEN TESTS"])


def _after(own):
    """What nbgrader hides and runs after checks that pass."""
    return ["### BEGIN HIDDEN TESTS", *own, "### END HIDDEN TESTS"] if own else []


def _imports(cell, names):
    """The lines that put the course's own in the place of a definition cell's."""
    if not (file := sync.cell_header(cell)):
        return []
    module = file.removesuffix(".py").replace("/", ".")
    return [f"from {module} import {x}" for x in tops(names)]


def tops(names):
    """Return functions and classes, once each, from names such as Class.method."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def write_missing(edition, places):
    """Write editions of notebooks, {path: place}; return how many were written.

    What lies there already may hold somebody's work: it stays.
    """
    missing = {path: place for path, place in places.items() if not place.exists()}
    for path, place in missing.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(edition(nbformat.read(path, as_version=4)), place)
    return len(missing)


def write_student_edition(out, notebooks):
    """Write blanks of notebooks, given by their paths; return how many were written."""
    return write_missing(student_edition, {path: out / path.name for path in notebooks})


def write_nbgrader_course(out, notebooks):
    """Write an nbgrader course, a notebook an assignment; return how many were written.

    nbgrader's settings stay, too, if they are there.
    """
    places = {path: out / "source" / path.stem / path.name for path in notebooks}
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "nbgrader_config.py").exists():
        (out / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
    return write_missing(nbgrader_edition, places)


WRITERS = {"student": write_student_edition, "nbgrader": write_nbgrader_course}


def main(arguments=None, project=sync.PROJECT):
    """The command line: say where the edition lies."""
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.release", description=__doc__.split("\n")[0]
    )
    parser.add_argument("edition", choices=WRITERS)
    parser.add_argument("--out", type=Path, help="the folder; default build/EDITION")
    options = parser.parse_args(arguments)
    out = options.out or project / "build" / options.edition
    paths = sorted(project.glob("notebooks/*.ipynb"))
    written = WRITERS[options.edition](out, paths)
    print(f"{written} notebooks written to {out}")
    if written < len(paths):
        print(f"{len(paths) - written} were there before and stay as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
