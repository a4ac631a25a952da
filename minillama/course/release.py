"""Editions of the course: today the blank one, in which a student writes.

    python -m minillama.course.release student [--out build/student]

An *exercise* is a definition cell (sync.py) with the tag `exercise`. In the blank
edition the bodies of its functions and methods are taken out; signatures, contracts,
docstrings, fields and constants stay. A blank says how to go on with the course's own
version. All outputs are taken out too, since they hold the answers to predictions.
`make sync` on a blank edition gives the course's sources again.
Left out: prose is never touched, and other definition cells stay as they are.
"""

import argparse
import ast
import sys
from pathlib import Path

import nbformat

from minillama.course import mend, sync

STUDENT = sync.PROJECT / "build/student"


def is_exercise(cell):
    """Return whether a student writes this cell (as nbformat reads it)."""
    return "exercise" in cell.metadata.get("tags", []) and bool(sync.cell_header(cell))


def blanked(source):
    """Return the source of a definition cell without the bodies, and their names.

    A name is that of a function, or Class.method. A body that is no more than a
    docstring stays. Raises ValueError where nothing is left to write.
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
        lines[first : node.end_lineno] = _blank(name, file, node.col_offset + 4)
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
            cell.outputs, cell.execution_count = [], None
            if is_exercise(cell):
                cell.source, _ = blanked(cell.source)
            elif mend.mended_name(cell):
                cell.source = mend.still_broken(cell, notebook.cells[:i])
    return notebook


def write_student_edition(out, notebooks):
    """Write blanks of notebooks, given by their paths; return how many were written.

    A notebook that lies in the folder `out` already may hold somebody's work: it stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    missing = [path for path in notebooks if not (out / path.name).exists()]
    for path in missing:
        notebook = student_edition(nbformat.read(path, as_version=4))
        nbformat.write(notebook, out / path.name)
    return len(missing)


def main(arguments=None, project=sync.PROJECT):
    """The command line: say where the edition lies."""
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.release", description=__doc__.split("\n")[0]
    )
    parser.add_argument("edition", choices=["student"])
    parser.add_argument("--out", type=Path, default=STUDENT, help="the folder")
    options = parser.parse_args(arguments)
    paths = sorted(project.glob("notebooks/*.ipynb"))
    written = write_student_edition(options.out, paths)
    print(f"{written} notebooks with blanks in {options.out}")
    if written < len(paths):
        print(f"{len(paths) - written} were there before and stay as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
