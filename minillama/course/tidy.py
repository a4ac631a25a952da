"""Take out of the notebooks what running and saving them leaves behind.

After Run All and a save in JupyterLab or with nbconvert, what differs from the last
commit is then what really changed. `python -m minillama.course.tidy` (`make tidy`)
mends every notebook, or those named:

- cell metadata other than tags, time stamps among them; the notebook's own metadata
  beside the kernel, the state of widgets among them;
- cells tagged hide-input or hide-cell (as the book reads them) are folded again;
- execution counts: 1, 2, … in the order of the cells;
- standard error (progress bars, warnings), and standard output in one piece;
- outputs that say what the committed ones say, up to durations and the like
  (tests/sanitize.cfg), become the committed ones again;
- widgets, which show nothing without a kernel, become the committed outputs again, or
  else what they showed, where their state was saved (nbconvert does), or nothing.

Cells are matched with the last commit by their id and must have the same source.
Left out: sources and prose are never touched (`make sync` fills definition cells).
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import nbformat

PROJECT = Path(__file__).resolve().parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
FOLDED = {  # JupyterLab's own words for what a tag hides
    "hide-input": {"source_hidden": True},
    "hide-cell": {"source_hidden": True, "outputs_hidden": True},
}
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def committed(path):
    """Return the cells of the notebook's last commit by their ids, {} without one."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    try:
        shown = subprocess.run(command, cwd=path.parent, capture_output=True)
    except FileNotFoundError:  # no git on this machine
        return {}
    if shown.returncode:
        return {}
    notebook = nbformat.reads(shown.stdout.decode("utf-8"), as_version=4)
    return {cell.id: cell for cell in notebook.cells}


def sanitizers(project=PROJECT):
    """Return (pattern, replacement) pairs of what may differ between two right runs."""
    path = project / "tests/sanitize.cfg"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return re.findall(r"^regex: (.*)\nreplace: (.*)$", text, re.MULTILINE)


def has_widget(outputs):
    """Return whether an output is a view of a widget."""
    return any(WIDGET in output.get("data", {}) for output in outputs)


def shown_by(model_id, widgets):
    """Return the outputs inside a widget, as far as its state was saved."""
    state = widgets.get(model_id, {}).get("state", {})
    outputs = list(state.get("outputs", []))
    for child in state.get("children", []):
        outputs += shown_by(child.removeprefix("IPY_MODEL_"), widgets)
    return outputs


def without_widgets(outputs, widgets):
    """Return outputs with what each widget showed in its place, a picture once."""
    static = []
    for output in outputs:
        view = output.get("data", {}).get(WIDGET)
        for shown in shown_by(view["model_id"], widgets) if view else [output]:
            if "image/png" not in shown.get("data", {}) or shown not in static:
                static.append(shown)
    return [nbformat.from_dict(output) for output in static]


def said(outputs, patterns):
    """Return what outputs say, without what may differ between two right runs."""
    texts = []
    for output in outputs:
        pieces = [output.get("text", ""), *map(str, output.get("data", {}).values())]
        for pattern, replacement in patterns:
            pieces = [re.sub(pattern, replacement, piece) for piece in pieces]
        texts.append((output.output_type, output.get("name"), pieces))
    return texts


def without_noise(outputs):
    """Return outputs without standard error and with neighbouring prints joined."""
    kept = []
    for output in outputs:
        is_print = output.output_type == "stream"
        if is_print and output.name == "stderr":
            continue
        if is_print and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def tidied(cell, before, widgets, patterns):
    """Return the outputs that a code cell should have.

    before: the committed cell of the same id and source, or None.
    """
    outputs = without_noise(without_widgets(cell.outputs, widgets))
    if not before:
        return outputs
    same = said(outputs, patterns) == said(before.outputs, patterns)
    live = has_widget(cell.outputs) and before.outputs
    return before.outputs if same or live else outputs


def tidy(path, project=PROJECT):
    """Mend the notebook at `path` in place; return whether its text has changed."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    widgets = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    earlier, patterns, count = committed(path), sanitizers(project), 0
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        kept = {"tags": tags} if tags else {}
        for tag in FOLDED.keys() & tags:
            kept["jupyter"] = FOLDED[tag]
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        before = earlier.get(cell.id)
        is_same = before and before.source == cell.source
        cell.outputs = tidied(cell, before if is_same else None, widgets, patterns)
        count += 1
        for counted in [cell, *cell.outputs]:
            if "execution_count" in counted:
                counted.execution_count = count
    mended = nbformat.writes(notebook) + "\n"
    if mended != text:
        path.write_text(mended, encoding="utf-8", newline="\n")
    return mended != text


def main(arguments=None, project=PROJECT):
    """The command line: name the notebooks that were mended."""
    parser = argparse.ArgumentParser(
        prog="python -m minillama.course.tidy", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "notebooks", nargs="*", type=Path, help="default: notebooks/*.ipynb"
    )
    options = parser.parse_args(arguments)
    for path in options.notebooks or sorted(project.glob("notebooks/*.ipynb")):
        if tidy(path, project):
            print(f"tidied: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
