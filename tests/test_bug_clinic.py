"""The bug clinic: every pitfall is shown where it says, and checks decide on a mend.

The table of pitfalls stands in lesson 28. A row links to lessons; in each of them a
code cell has the tag `pitfall-` and the row's name, and what the cell shows is
committed with it.
"""

import ast
import contextlib
import io
import math
import re

import nbformat
import pytest
import torch

from minillama.course import checks, mend, release, sick_runs, sync

CLINIC = sync.NOTEBOOKS / "28_bug_clinic.ipynb"
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| (.*\.ipynb.*) \|$", re.MULTILINE)
LINK = re.compile(r"\[(\d\d)\]\((\w+\.ipynb)\)")


def read(path):
    return nbformat.read(path, as_version=4)


def tag_of(name):
    """ "a bound, quoted" -> "pitfall-a-bound-quoted"."""
    return "pitfall-" + re.sub(r"\W+", "-", name.lower()).strip("-")


def rows(notebook):
    """The table of pitfalls: {tag: names of the notebooks that show it}."""
    text = "\n".join(x.source for x in notebook.cells if x.cell_type == "markdown")
    found = {}
    for name, symptom, links in ROW.findall(text):
        assert symptom and tag_of(name) not in found, name
        found[tag_of(name)] = {file for _, file in LINK.findall(links)}
        assert all(file.startswith(number) for number, file in LINK.findall(links))
    return found


def shows(cell):
    """A demonstration is a code cell that prints or draws something, or asserts it."""
    is_code = cell.cell_type == "code"
    return is_code and bool(cell.outputs or "assert " in cell.source)


def shown(notebooks):
    """Where pitfalls are shown: {tag: names of notebooks}."""
    found = {}
    for path in notebooks:
        for cell in read(path).cells:
            for tag in cell.metadata.get("tags", []):
                if tag.startswith("pitfall-") and shows(cell):
                    found.setdefault(tag, set()).add(path.name)
    return found


def test_every_pitfall_is_shown_where_the_table_says_and_nowhere_else():
    table, cells = rows(read(CLINIC)), shown(sync.NOTEBOOKS.glob("*.ipynb"))
    assert table == cells
    assert len(table) >= 36


def test_a_row_without_a_cell_and_a_cell_without_a_row_are_found(tmp_path):
    notebook = nbformat.v4.new_notebook()
    table = "| defect | sign | lesson |\n|---|---|---|\n| A bad, bad sign | x | {} |"
    link = "[01](01_a.ipynb)"
    notebook.cells = [
        nbformat.v4.new_markdown_cell(table.format(link)),
        nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["pitfall-silent"]}),
        nbformat.v4.new_code_cell("assert x", metadata={"tags": ["pitfall-loud"]}),
    ]
    nbformat.write(notebook, tmp_path / "01_a.ipynb")
    assert rows(notebook) == {"pitfall-a-bad-bad-sign": {"01_a.ipynb"}}
    assert shown(tmp_path.glob("*.ipynb")) == {"pitfall-loud": {"01_a.ipynb"}}


# ------------------------------------------------------------------ the twelve snippets


def mends():
    """(mending cell, cells above it, the check's call) of each of the twelve."""
    cells = read(CLINIC).cells
    for i, cell in enumerate(cells):
        if mend.mended_name(cell):
            yield cell, cells[:i], cells[i + 1].source


MENDS = list(mends())
NAMES = [mend.mended_name(cell) for cell, *_ in MENDS]


def namespace():
    """What the notebook's first code cell imports."""
    first = next(x for x in read(CLINIC).cells if x.cell_type == "code")
    tree = ast.parse(first.source)
    tree.body = [x for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
    names = {}
    exec(compile(tree, "notebook", "exec"), names)
    return names


def defined(source, name):
    names = namespace()
    exec(compile(source, "notebook", "exec"), names)
    return names[name]


def test_twelve_are_to_be_mended_and_the_head_names_them():
    head = re.search(r"\*\*You mend\*\* (.*?)\. \*\*", read(CLINIC).cells[0].source)
    assert len(NAMES) == 12 and re.findall(r"`(\w+)`", head[1]) == NAMES


@pytest.mark.parametrize("cell, above, check", MENDS, ids=NAMES)
def test_checks_decide(cell, above, check, capsys):
    """What a student gets fails its check in the check's words; the mended passes."""
    name = mend.mended_name(cell)
    assert check == f"check.{name}({name})"
    decide = getattr(checks, name)
    decide(defined(cell.source, name))
    assert " checks passed" in capsys.readouterr().out
    broken = mend.still_broken(cell, above)
    assert broken.startswith(f"# exercise · mend {name}_broken\n")
    assert f"{name}_broken" not in broken.partition("\n")[2]
    with pytest.raises(AssertionError, match=f"(?s){name}: .*expected .*Hint: "):
        decide(defined(broken, name))


@pytest.mark.parametrize("cell, above, check", MENDS, ids=NAMES)
def test_a_snippet_is_short_and_its_answer_is_folded(cell, above, check):
    code, _ = sync.definitions(cell.source)[mend.mended_name(cell)]
    body = ast.parse(code).body[0].body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno < 15
    cells = read(CLINIC).cells
    at = next(i for i, other in enumerate(cells) if other.id == cell.id)
    answer = cells[at + 2].source
    folded = r"<details><summary>Answer</summary>\n\n\*Names? of the defect"
    assert re.match(folded, answer)
    assert LINK.search(answer.partition("</details>")[0])


def test_in_the_blank_edition_the_code_is_broken():
    course = read(CLINIC)
    student = release.student_edition(course)
    for i, (ours, hers) in enumerate(zip(course.cells, student.cells, strict=True)):
        if mend.mended_name(ours):
            assert hers.source == mend.still_broken(ours, course.cells[:i])
        else:
            assert hers.source == ours.source


def test_only_what_is_broken_above_can_be_mended():
    source = "# exercise · mend f_broken\ndef f(): return 1"
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["exercise"]})
    above = nbformat.v4.new_code_cell("def f_broken(): return 2\n\n\nprint(f_broken())")
    assert mend.mended_name(cell) == "f"
    assert mend.still_broken(cell, [above]) == (
        "# exercise · mend f_broken\ndef f(): return 2"
    )
    with pytest.raises(ValueError, match="no cell above defines f_broken"):
        mend.still_broken(cell, [])
    for other in (
        nbformat.v4.new_code_cell(source),
        nbformat.v4.new_code_cell("def f(): ...", metadata={"tags": ["exercise"]}),
        nbformat.v4.new_markdown_cell(source, metadata={"tags": ["exercise"]}),
    ):
        assert mend.mended_name(other) is None


# ------------------------------------------------------------------------ the sick runs


def rng():
    return torch.Generator().manual_seed(0)


SETUP = sick_runs.new_setup(rng())


@pytest.mark.parametrize("run", sick_runs.RUNS.values(), ids=sick_runs.RUNS)
def test_a_run_is_the_same_on_every_call_and_sick_is_another(run):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        faults = False, False, True
        well, again, sick = (run(SETUP, fault, rng(), steps=4) for fault in faults)
    assert said.getvalue() == ""
    assert well == again and well != sick and well.keys() == sick.keys()
    for curves in (well, sick):
        assert all(len(curve) == 4 for curve in curves.values())
        assert all(math.isfinite(x) for curve in curves.values() for x in curve)


def test_the_setup_is_what_it_says():
    assert torch.allclose(SETUP.chain.sum(1), torch.ones(8).double())
    assert torch.allclose(SETUP.usual @ SETUP.chain, SETUP.usual)
    assert math.isclose(SETUP.logp(SETUP.home).exp().sum().item(), 1, rel_tol=1e-9)
    ids = sick_runs.text(SETUP, rng())
    assert ids.shape == (64, 16) and 0 <= ids.min() <= ids.max() < 8
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert sick_runs.cut(mask).tolist() == [[True, True, False], [True, False, False]]
    assert sick_runs.share_right(torch.tensor([2.0, 0.0, -1.0, 1.0])) == 0.625
    assert sick_runs.columns([{"a": 1, "b": 2}, {"a": 3, "b": 4}]) == {
        "a": [1, 3],
        "b": [2, 4],
    }


def test_every_sick_run_has_the_fault_that_its_diagnosis_names():
    well, sick = (sick_runs.reinforce(SETUP, x, rng(), steps=30) for x in (False, True))
    assert well["gradient norm"] == well["norm of this batch"]
    assert sick["gradient norm"][-1] > 3 * sick["norm of this batch"][-1]
    curves = sick_runs.direct(SETUP, True, rng(), steps=30)
    assert all(abs(x - math.log(2)) < 1e-9 for x in curves["loss"])
    assert curves["accuracy"] == 30 * [0.5] and curves["KL"][-1] > 0.01
    assert max(sick_runs.groups(SETUP, True, rng())["reward"]) <= 1
    assert max(sick_runs.groups(SETUP, False, rng())["reward"]) > 2
    leaky = sick_runs.reward_model(SETUP, True, rng())
    assert sum(leaky["accuracy"][-10:]) / 10 > 0.95
    assert max(leaky["accuracy on fresh pairs"]) < 0.8
