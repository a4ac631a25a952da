"""Editions: a blank is a blank, says how to go on, and can be filled again."""

import ast
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from minillama.course import mend, release, sync, tidy

NOTEBOOKS = [
    path
    for path in sorted(sync.NOTEBOOKS.glob("*.ipynb"))
    # the map has no exercises, the clinic others: test_bug_clinic.py
    if not path.name.startswith(("00_", "28_"))
]
SOURCE = '''# minillama/toy.py
SIZE = 2  # bounds


# Why this is here.
@decorated(
    "x: int",
)
def double(
    x,
):
    """Twice x.

    Of any number.
    """

    # the trick
    y = x

    return 2 * y


def half(x):
    # no docstring
    return x / 2


def abstract(x):
    """Whatever."""


@dataclass
class Point:
    """A point."""

    x: int = 0

    @property
    def norm(self):
        """Its length."""
        return abs(self.x)'''
BLANK = '''# minillama/toy.py
SIZE = 2  # bounds


# Why this is here.
@decorated(
    "x: int",
)
def double(
    x,
):
    """Twice x.

    Of any number.
    """
    # your code
    raise NotImplementedError(
        "double is not written yet. To go on with the course's own, run: "
        "from minillama.toy import double"
    )


def half(x):
    # your code
    raise NotImplementedError(
        "half is not written yet. To go on with the course's own, run: "
        "from minillama.toy import half"
    )


def abstract(x):
    """Whatever."""


@dataclass
class Point:
    """A point."""

    x: int = 0

    @property
    def norm(self):
        """Its length."""
        # your code
        raise NotImplementedError(
            "Point.norm is not written yet. To go on with the course's own, run: "
            "from minillama.toy import Point"
        )'''


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_bodies_go_and_all_else_stays():
    assert release.blanked(SOURCE) == (BLANK, ["double", "half", "Point.norm"])


@pytest.mark.parametrize("source", ["SIZE = 2", 'def f():\n    """Nothing."""'])
def test_a_cell_without_a_body_is_no_exercise(source):
    with pytest.raises(ValueError, match="no body to take out of the cell of minilla"):
        release.blanked(f"# minillama/toy.py\n{source}")


def test_the_course_is_not_touched():
    notebook = read(NOTEBOOKS[0])
    before = nbformat.writes(notebook)
    release.student_edition(notebook)
    assert nbformat.writes(notebook) == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_filled_again_it_is_the_course(path):
    """`sync` puts the package's definitions into the blanks: then all is as it was."""
    course = read(path)
    student = release.student_edition(course)
    exercises = 0
    for ours, hers in zip(course.cells, student.cells, strict=True):
        assert hers.cell_type == "markdown" or not hers.outputs
        if release.is_exercise(ours):
            exercises += 1
            assert hers.source != ours.source
        else:
            assert hers.source == ours.source
    assert exercises >= 2
    for cell in sync.definition_cells(student):
        filled = sync.expected_source(cell)
        assert filled == course.cells[cell.index].source


def run_definitions(cell, namespace):
    """Run a definition cell, and of any other cell the imports."""
    kept = ast.AST if sync.cell_header(cell) else ast.Import | ast.ImportFrom
    tree = ast.parse(cell.source)
    tree.body = [x for x in tree.body if isinstance(x, kept)]
    exec(compile(tree, "notebook", "exec"), namespace)


def is_check(statement):
    return ast.unparse(statement).startswith("check.")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_unwritten_exercise_says_how_to_go_on(path):
    """Its check comes next, fails with the blank's words, and passes after them."""
    namespace = {}
    cells = code_cells(release.student_edition(read(path)))
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        run_definitions(cell, namespace)
        if not release.is_exercise(cell):
            continue
        names = {x for node in ast.parse(cell.source).body for x in sync.names_of(node)}
        checks = [
            x
            for x in ast.parse(following.source).body
            if is_check(x) and names & {y.id for y in x.value.args}
        ]
        assert checks, f"no check after {cell.source[:80]}"
        for check in checks:
            with pytest.raises(NotImplementedError) as caught:
                exec(ast.unparse(check), namespace)
            name, _, rest = str(caught.value).partition(" is not written yet. ")
            exec(rest.partition("run: ")[2], namespace)
            assert f"def {name.split('.')[-1]}(" in cell.source
            exec(ast.unparse(check), namespace)


def test_an_untouched_notebook_stops_at_the_first_blank(tmp_path):
    student = release.student_edition(read(sync.NOTEBOOKS / "01_tokens.ipynb"))
    client = NotebookClient(student, timeout=300, kernel_name="python3")
    with pytest.raises(CellExecutionError, match="count_pairs is not written yet"):
        client.execute(cwd=tmp_path)


def test_the_command_writes_every_notebook(tmp_path, capsys):
    assert release.main(["student", "--out", str(tmp_path / "new/student")]) == 0
    written = sorted((tmp_path / "new/student").glob("*.ipynb"))
    assert [path.name for path in written] == [
        path.name for path in sorted(sync.NOTEBOOKS.glob("*.ipynb"))
    ]
    assert f"{len(written)} notebooks written to" in capsys.readouterr().out
    assert "NotImplementedError" in written[1].read_text(encoding="utf-8")


def test_somebodys_work_is_not_written_over(tmp_path, capsys):
    paths = NOTEBOOKS[:2]
    (tmp_path / paths[0].name).write_text("her work")
    assert release.write_student_edition(tmp_path, paths) == 1
    assert (tmp_path / paths[0].name).read_text() == "her work"
    assert release.main(["student", "--out", str(tmp_path)]) == 0
    assert "2 were there before and stay as they are" in capsys.readouterr().out


def names_in(sentence):
    return re.findall(r"`(\w+)`", sentence)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_you_write_names_what_is_blank(path):
    course = read(path)
    head = re.search(r"\*\*You write\*\* (.*?\.)(?:\s|$)", course.cells[0].source)
    blanks = [
        name.partition(".")[0]
        for cell in course.cells
        if release.is_exercise(cell)
        for name in release.blanked(cell.source)[1]
        if not name.startswith("_")  # a helper of an exercise is no promise
    ]
    assert names_in(head[1]) == list(dict.fromkeys(blanks))


def without_regions(source):
    """What nbgrader leaves of a source with solution regions, by our settings."""
    region = re.compile(r"### BEGIN SOLUTION\n.*?### END SOLUTION", re.DOTALL)
    return region.sub("# your code", source)


def test_a_body_becomes_a_region_above_the_blanks_error():
    marked, names = release.with_regions(SOURCE)
    assert names == ["double", "half", "Point.norm"]
    assert without_regions(marked) == BLANK
    regions = re.findall(r"BEGIN SOLUTION\n(.*?) *### END", marked, re.DOTALL)
    assert regions[1] == "    # no docstring\n    return x / 2\n"
    space = {}
    source, _ = release.with_regions("# minillama/toy.py\ndef f(x):\n    x.append(1)")
    exec(source, space)
    assert space["f"]([]) is None  # nothing arrives at the error


def graded(path):
    """The code cells of the nbgrader edition."""
    return code_cells(release.nbgrader_edition(read(path)))


def role(cell):
    return cell.metadata.get("nbgrader", {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbgrader_gets_exercises_and_locked_checks_with_points(path):
    cells, course = graded(path), read(path)
    ids = [role(cell)["grade_id"] for cell in cells if role(cell)]
    assert len(ids) == len(set(ids)) == 2 * sum(map(release.is_exercise, course.cells))
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        assert release.is_exercise(cell) == bool(role(cell).get("solution"))
        if release.is_exercise(cell):
            names = re.findall(r"BEGIN SOLUTION", cell.source)
            assert role(following)["points"] == len(names) > 0
            assert role(following)["locked"] and role(following)["grade"]
        elif cell.id.endswith("-after"):
            assert not re.search(r"^check\.", cell.source, re.MULTILINE)
    theirs, ours = (
        " ".join(x.source for x in edition if not release.is_exercise(x))
        for edition in (cells, code_cells(course))
    )
    hidden = re.compile(r"### BEGIN HIDDEN.*?### END HIDDEN TESTS", re.DOTALL)
    assert hidden.sub("", theirs).split() == ours.split()  # nothing else is lost


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_exercise_counts_alone(path):
    """With all others blank its check passes, and with all solved every check does."""
    cells = graded(path)
    exercises = [i for i, cell in enumerate(cells) if release.is_exercise(cell)]

    def passed(solved):
        """The exercises whose checks pass when those of `solved` are written."""
        namespace, passes = {"__name__": "__main__"}, []
        for i, cell in enumerate(cells):
            if i in exercises and i not in solved:
                cell = nbformat.from_dict(
                    {**cell, "source": without_regions(cell.source)}
                )
            if not role(cell).get("grade"):
                run_definitions(cell, namespace)
                continue
            try:
                exec(cell.source, namespace)
            except NotImplementedError:
                continue
            passes.append(i - 1)
        return passes

    assert passed(exercises) == exercises
    assert [passed([i]) for i in exercises] == [[i] for i in exercises]


def test_a_function_to_mend_counts_when_it_is_mended():
    """The region defines it anew; without the region it is what a student gets."""
    path = sync.NOTEBOOKS / "28_bug_clinic.ipynb"
    namespace, broken = (
        {"__name__": "__main__"},
        code_cells(release.student_edition(read(path))),
    )
    for cell, given in zip(graded(path), broken, strict=True):
        if not role(cell):
            run_definitions(cell, namespace)
        elif role(cell)["solution"]:
            without = without_regions(cell.source)
            assert without.removesuffix("\n\n\n# your code") == given.source
            sources = without, cell.source
        else:
            exec(sources[0], namespace)
            with pytest.raises(AssertionError):
                exec(cell.source, namespace)
            exec(sources[1], namespace)
            exec(cell.source, namespace)
    assert sum(role(x).get("points", 0) for x in graded(path)) >= 12


def test_what_is_folded_in_the_course_lies_open_in_a_students_edition():
    notebook = read(sync.NOTEBOOKS / "28_bug_clinic.ipynb")
    folded = [x for x in code_cells(notebook) if "jupyter" in x.metadata]
    assert sum(bool(mend.mended_name(cell)) for cell in folded) == 12
    for edition in (release.student_edition, release.nbgrader_edition):
        for cell in code_cells(edition(notebook)):
            assert "jupyter" not in cell.metadata
            assert not tidy.FOLDED.keys() & cell.metadata.get("tags", [])


def test_the_courses_own_answer_is_worth_nothing():
    cells = graded(sync.NOTEBOOKS / "15_whiten.ipynb")
    namespace = {}
    exec("from minillama.whiten import logit", namespace)
    check = next(cell for cell in cells if role(cell).get("grade"))
    with pytest.raises(AssertionError, match="the course's own: no points"):
        exec(check.source, namespace)


def test_links_between_lessons_follow_the_folders():
    notebook = nbformat.v4.new_notebook()
    text = (
        "[14](14_policy_gradient.ipynb) and [a paper](https://example.org/14_x.ipynb)"
    )
    notebook.cells = [nbformat.v4.new_markdown_cell(text)]
    (cell,) = release.nbgrader_edition(notebook).cells
    moved = "(../14_policy_gradient/14_policy_gradient.ipynb)"
    assert cell.source == text.replace("(14_policy_gradient.ipynb)", moved)


def test_the_command_writes_an_nbgrader_course_once(tmp_path, capsys):
    assert release.main(["nbgrader", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "source/17_gae/17_gae.ipynb").is_file()
    for name in ("nbgrader_config.py", "source/17_gae/17_gae.ipynb"):
        (tmp_path / name).write_text("a teacher's work")
    assert release.main(["nbgrader", "--out", str(tmp_path)]) == 0
    assert "were there before and stay as they are" in capsys.readouterr().out
    for name in ("nbgrader_config.py", "source/17_gae/17_gae.ipynb"):
        assert (tmp_path / name).read_text() == "a teacher's work"


def test_nbgraders_settings_are_python():
    ast.parse(release.CONFIG)
