"""`make tidy`: after a run and a save, only what really changed differs from git."""

import copy
import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minillama.course import tidy

VIEW = new_output(
    "display_data", {tidy.WIDGET: {"model_id": "box"}, "text/plain": "interactive(…)"}
)
WIDGETS = {
    tidy.STATE: {
        "state": {
            "box": {"state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_out"]}},
            "slider": {"state": {"value": 5}},
            "out": {
                "state": {
                    "outputs": [
                        {
                            "output_type": "display_data",
                            "data": {"text/plain": "shown"},
                            "metadata": {},
                        }
                    ]
                }
            },
        }
    }
}


def printed(text, name="stdout"):
    return new_output("stream", text=text, name=name)


def lesson():
    """A lesson as committed: prints, a result, a duration, a slider, an exercise."""
    picture = new_output(
        "display_data", {"image/png": "iVBO", "text/plain": "<Figure>"}
    )
    result = new_output("execute_result", {"text/plain": "4"}, execution_count=2)
    cells = [
        new_markdown_cell("# Title", id="a"),
        new_code_cell("print(1)\nprint(2)", id="b", outputs=[printed("1\n2\n")]),
        new_code_cell("2 + 2", id="c", outputs=[result]),
        new_code_cell("clock()", id="d", outputs=[printed("took 1.5 s\n")]),
        new_code_cell("interact(draw)", id="e", outputs=[picture]),
        new_code_cell("def f(): ...", id="f", metadata={"tags": ["exercise"]}),
    ]
    for count, cell in enumerate(cells[1:], start=1):
        cell.execution_count = count
    return new_notebook(cells=cells, metadata=copy.deepcopy(tidy.METADATA))


def run_and_saved():
    """The same after Run All and a save: noise everywhere, but nothing new."""
    notebook = lesson()
    notebook.metadata.language_info.update(version="3.12.1", mimetype="text/x-python")
    notebook.metadata.kernelspec.display_name = "Python 3 (ipykernel)"
    notebook.metadata.widgets = WIDGETS
    for count, cell in enumerate(notebook.cells, start=7):
        cell.metadata.update(execution={"iopub.status.busy": "2026"}, scrolled=True)
        if cell.cell_type == "code":
            cell.execution_count = count
    _, b, c, d, e, _ = notebook.cells
    b.outputs = [printed("1\n"), printed("bar 9%", "stderr"), printed("2\n")]
    c.outputs[0].execution_count = 9
    d.outputs = [printed("took 27 s\n")]
    e.outputs = [VIEW]
    return notebook


def written(notebook, path):
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def project(tmp_path):
    """A checkout with one committed lesson."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/sanitize.cfg").write_text(
        "Durations.\nregex: \\d+(\\.\\d+)? s\\b\nreplace: DURATION\n", encoding="utf-8"
    )
    written(lesson(), tmp_path / "notebooks/01_x.ipynb")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    git(tmp_path, *who, "commit", "--quiet", "-m", "lesson")
    return tmp_path


def git(folder, *arguments):
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_a_lesson_as_committed_is_left_alone(project):
    assert not tidy.tidy(project / "notebooks/01_x.ipynb", project)


def test_a_run_and_a_save_leave_nothing(project, capsys):
    path = project / "notebooks/01_x.ipynb"
    committed = path.read_text(encoding="utf-8")
    written(run_and_saved(), path)
    assert tidy.main([], project) == 0
    assert capsys.readouterr().out == "tidied: 01_x.ipynb\n"
    assert path.read_text(encoding="utf-8") == committed
    assert tidy.main([str(path)], project) == 0 and not capsys.readouterr().out


def test_what_really_changed_stays(project):
    path = project / "notebooks/01_x.ipynb"
    notebook = run_and_saved()
    _, b, c, d, e, f = notebook.cells
    b.outputs = [printed("1\n3\n")]
    d.source, d.outputs = "clock(2)", [printed("took 3 s\n")]
    e.outputs = [printed("no slider\n")]
    f.outputs = [new_output("error", ename="E", evalue="x", traceback=["x"])]
    notebook.cells.append(new_code_cell("9", id="new", metadata={"collapsed": True}))
    tidy.tidy(written(notebook, path), project)
    _, b, c, d, e, f, new = nbformat.read(path, as_version=4).cells
    assert b.outputs == [printed("1\n3\n")]
    # The source is another, so 3 s is not taken for the committed 1.5 s.
    assert d.source == "clock(2)" and d.outputs == [printed("took 3 s\n")]
    assert e.outputs == [printed("no slider\n")]
    assert f.outputs[0].ename == "E" and f.metadata == {"tags": ["exercise"]}
    assert new.execution_count == 6 and new.metadata == {}


def test_a_tag_that_hides_folds_the_cell_in_jupyterlab(project):
    path, notebook = project / "notebooks/1.ipynb", lesson()
    notebook.cells[1].metadata.tags = ["hide-cell"]
    notebook.cells[2].metadata.jupyter = {"source_hidden": True}  # by a reader
    tidy.tidy(written(notebook, path), project)
    _, b, c, *_ = nbformat.read(path, as_version=4).cells
    assert b.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert b.metadata.tags == ["hide-cell"] and c.metadata == {}


def test_outputs_that_differ_in_kind_are_not_the_same(project):
    path = project / "notebooks/01_x.ipynb"
    notebook = run_and_saved()
    # 4 as a print is not the committed result 4.
    notebook.cells[2].outputs = [printed("4")]
    tidy.tidy(written(notebook, path), project)
    assert nbformat.read(path, as_version=4).cells[2].outputs == [printed("4")]


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_new_widget_becomes_what_it_showed(tmp_path, is_saved):
    notebook = run_and_saved()
    if not is_saved:
        del notebook.metadata["widgets"]
    path = written(notebook, tmp_path / "new.ipynb")
    tidy.tidy(path, tmp_path)  # no commit, no sanitize.cfg
    mended = nbformat.read(path, as_version=4)
    shown = [output.data for output in mended.cells[4].outputs]
    assert shown == ([{"text/plain": "shown"}] if is_saved else [])
    assert mended.metadata == tidy.METADATA
    assert mended.cells[3].outputs == [printed("took 27 s\n")]


def test_without_git_nothing_is_put_back(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    path = written(run_and_saved(), project / "notebooks/01_x.ipynb")
    tidy.tidy(path, project)
    assert nbformat.read(path, as_version=4).cells[3].outputs[0].text == "took 27 s\n"


def test_the_sanitizers_are_those_of_the_tests():
    patterns = dict(tidy.sanitizers())
    assert "DURATION" in patterns.values()
    took = [tidy.said([printed(f"took {s} s")], patterns.items()) for s in (9, 12.3)]
    assert took[0] == took[1]


def test_a_picture_in_and_beside_a_widget_is_kept_once(tmp_path):
    picture = new_output("display_data", {"image/png": "aGk=", "text/plain": "Figure"})
    other = new_output("display_data", {"image/png": "eW8=", "text/plain": "Figure"})
    notebook = lesson()
    notebook.cells[4].outputs = [picture, copy.deepcopy(picture), other]
    notebook.cells[3].outputs = [printed("1\n"), printed("1\n")]
    path = written(notebook, tmp_path / "twice.ipynb")
    tidy.tidy(path, tmp_path)
    mended = nbformat.read(path, as_version=4)
    assert mended.cells[4].outputs == [picture, other]
    assert mended.cells[3].outputs == [printed("1\n1\n")]
