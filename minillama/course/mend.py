"""Mending cells: exercises of the bug clinic that start from broken code.

A *mending cell* is a code cell with the tag `exercise` whose first line names what is
broken, such as `# exercise · mend gae_broken`. Below it stands the mended function,
`gae`. A code cell above it defines `gae_broken`; in the blank edition a student gets
its text under the name `gae`, and mends that.
Left out: classes, and functions of more than one cell.
"""

import ast
import re

HEADER = re.compile(r"# exercise · mend (\w+)_broken")


def mended_name(cell):
    """Return the name that a mending cell defines, None for every other cell."""
    match = HEADER.fullmatch(cell["source"].partition("\n")[0].rstrip())
    is_exercise = "exercise" in cell["metadata"].get("tags", [])
    return match[1] if match and is_exercise and cell["cell_type"] == "code" else None


def still_broken(cell, earlier):
    """Return the source of a mending cell as a student gets it.

    earlier: the cells above it. Raises ValueError if none defines what is broken.
    """
    name = mended_name(cell)
    header = cell["source"].partition("\n")[0]
    for above in reversed(earlier):
        if above["cell_type"] == "code" and f"def {name}_broken(" in above["source"]:
            text = _function(above["source"], f"{name}_broken")
            return f"{header}\n{text.replace(f'{name}_broken', name)}"
    raise ValueError(f"no cell above defines {name}_broken")


def _function(source, name):
    """The text of a function, decorators included."""
    node = next(x for x in ast.parse(source).body if getattr(x, "name", "") == name)
    first = min(x.lineno for x in [node, *node.decorator_list])
    return "\n".join(source.split("\n")[first - 1 : node.end_lineno])
