"""Fill the notebooks' definition cells from the package, or check that they agree.

A definition cell is a code cell whose first line is a comment that names a file, such
as `# minillama/kl.py`. Below it stand top-level definitions of that file (def, class,
constant). In a cell with the tag `exercise`, which JupyterLab hides, the line says so:
`# exercise · minillama/kl.py`. An author writes stubs, such as `def gae(): ...`; the
names are read from the cell and the text is taken from the package:

    python -m minillama.course.sync            # rewrite what differs
    python -m minillama.course.sync --check    # change nothing; exit 1 and name it

Only the source of such cells is ever touched, never outputs, ids or other cells. Left
out: definitions inside of other definitions, and any way from a cell back to the
package.
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import nbformat

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS = PROJECT / "notebooks"
HEADER = re.compile(r"# (?:exercise · )?(minillama/[\w/]+\.py)")


@dataclass(frozen=True)
class DefinitionCell:
    """One definition cell of a notebook."""

    index: int  # It is this one among all cells of the notebook.
    file: str  # It quotes this file.
    names: tuple[str, ...]  # It defines these names, in this order.
    is_exercise: bool = False  # Students write it.


def names_of(statement):
    """Return the names that a top-level statement defines, () if it defines none."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (statement.name,)
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return ()
    targets = (
        statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    )
    return tuple(
        node.id
        for target in targets
        for node in ast.walk(target)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )


def definitions(source):
    """Map each name that `source` defines at top level to its text.

    The values are pairs (text, is it a constant?). The text runs over whole lines and
    includes decorators and the comment lines directly above. Raises ValueError if a
    name is defined twice, SyntaxError if `source` does not parse.
    """
    lines, found = source.split("\n"), {}
    for statement in ast.parse(source).body:
        names = names_of(statement)
        decorators = getattr(statement, "decorator_list", [])
        first = min(node.lineno for node in [statement, *decorators]) - 1
        while (
            first > 0
            and lines[first - 1].startswith("#")
            and not HEADER.fullmatch(lines[first - 1])
        ):
            first -= 1
        text = "\n".join(lines[first : statement.end_lineno])
        for name in names:
            if name in found:
                raise ValueError(f"{name} is defined twice")
            found[name] = text, isinstance(statement, ast.Assign | ast.AnnAssign)
    return found


def cell_header(cell):
    """Return the file that a definition cell names, None for every other cell."""
    match = HEADER.fullmatch(cell["source"].split("\n", 1)[0].rstrip())
    return match[1] if match and cell["cell_type"] == "code" else None


def definition_cells(notebook):
    """List the `DefinitionCell`s of a notebook (as nbformat reads it), in order.

    Raises ValueError if a definition cell does not parse, defines nothing, or holds
    anything but definitions.
    """
    cells = []
    for index, cell in enumerate(notebook["cells"]):
        if file := cell_header(cell):
            place = f"cell {index} ({file})"
            try:
                body = ast.parse(cell["source"]).body
            except SyntaxError as error:
                raise ValueError(f"{place} does not parse: {error}") from error
            for statement in body:
                if not names_of(statement):
                    raise ValueError(
                        f"{place} holds more than definitions: {ast.unparse(statement)}"
                    )
            if not body:
                raise ValueError(
                    f"{place} defines nothing: write a stub such as def name(): ..."
                )
            names = tuple(name for node in body for name in names_of(node))
            is_exercise = "exercise" in cell["metadata"].get("tags", [])
            cells.append(DefinitionCell(index, file, names, is_exercise))
    return cells


def expected_source(cell, project=PROJECT):
    """Return the source that a `DefinitionCell` must have.

    It is the cell's header and the package's text of its names. Two blank lines
    separate definitions, none separate one constant from the next. Raises ValueError
    for a file or a name that the package does not have.
    """
    path = project / cell.file
    if not path.is_file():
        raise ValueError(f"cell {cell.index}: there is no file {cell.file}")
    package = definitions(path.read_text(encoding="utf-8"))
    for name in cell.names:
        if name not in package:
            raise ValueError(
                f"cell {cell.index}: {cell.file} defines no {name} at top level"
            )
    # `a, b = …` is one piece, not two.
    pieces = list(dict.fromkeys(package[name] for name in cell.names))
    source = f"# {'exercise · ' * cell.is_exercise}{cell.file}\n{pieces[0][0]}"
    for (_, follows_constant), (text, is_constant) in pairwise(pieces):
        source += ("\n" if follows_constant and is_constant else "\n\n\n") + text
    return source


def differing(source, cell, project=PROJECT):
    """List the names in a cell's `source` that differ from the package.

    The list is empty if the source is as `sync` writes it.
    """
    expected = expected_source(cell, project)
    if source == expected:
        return []
    here, there = definitions(source), definitions(expected)
    return [name for name in cell.names if here[name] != there[name]] or ["(layout)"]


def sync(path, check=False, project=PROJECT):
    """Bring a notebook's definition cells up to date; return a line per difference.

    With check=True the file at `path` is left alone. It is written as Jupyter writes
    it, and only if something differs.
    """
    notebook, report = nbformat.read(path, as_version=4), []
    for cell in definition_cells(notebook):
        names = differing(notebook.cells[cell.index].source, cell, project)
        if names:
            report.append(
                f"{path.name}, cell {cell.index}, {cell.file}: {', '.join(names)}"
            )
            notebook.cells[cell.index].source = expected_source(cell, project)
    if report and not check:
        nbformat.write(notebook, path)
    return report


def taught(folder=NOTEBOOKS):
    """Map each name in a definition cell to the notebooks that define it.

    They are given by their stems, once per cell.
    """
    found = {}
    for path in sorted(Path(folder).glob("*.ipynb")):
        for cell in definition_cells(nbformat.read(path, as_version=4)):
            for name in cell.names:
                found.setdefault(name, []).append(path.stem)
    return found


def main(arguments=None, project=PROJECT):
    """Run the command line; return the exit status.

    It is 1 if --check found a difference, or if a cell is in error.
    """
    description = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.sync", description=description
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing, exit 1 if a cell differs"
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb"
    )
    options = parser.parse_args(arguments)
    status = 0
    for path in options.notebooks or sorted(project.glob("notebooks/*.ipynb")):
        try:
            report = sync(path, options.check, project)
        except ValueError as error:
            report, status = [f"{path.name}, {error}"], 1
        for line in report:
            print(("differs: " if options.check else "filled: ") + line)
        status = status or int(options.check and bool(report))
    return status


if __name__ == "__main__":
    sys.exit(main())
