"""nbgrader's own commands on the course that `make nbgrader` writes: who gets what.

Four students hand in three lessons; tests/test_release.py is about the course itself.
"""

import importlib.util
import re
import subprocess
import sys
from itertools import cycle

import nbformat
import pytest

from minillama.course import release, sync

if not importlib.util.find_spec("nbgrader"):
    pytest.skip("`make nbgrader` installs nbgrader, CI does", allow_module_level=True)

# No stages of their own, or those of every run; and what the third student gets wrong.
LESSONS = {
    "01_tokens": ("tuple(merged)", "tuple(merged[:1])", "merge"),
    "14_policy_gradient": ("return -(A * logp)", "return (A * logp)", "reinforce_loss"),
    "15_whiten": ("correction=1", "correction=0", "whiten"),
}


def nbgrader(course, *command):
    """Run a command of nbgrader in the course; return what it said."""
    command = [sys.executable, "-m", "nbgrader", *command]
    told = subprocess.run(command, cwd=course, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout + told.stderr


def read(path):
    return nbformat.read(path, as_version=4)


def released(course, lesson):
    return read(course / "release" / lesson / f"{lesson}.ipynb")


def hand_in(course, student, lesson, notebook):
    folder = course / "submitted" / student / lesson
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{lesson}.ipynb")


def role(cell):
    return cell.metadata.get("nbgrader", {})


def solved(notebook):
    """Write the course's own text into every blank."""
    for cell in sync.definition_cells(notebook):
        if cell.is_exercise:
            notebook.cells[cell.index].source = sync.expected_source(cell)
    return notebook


def with_mistake(notebook, right, wrong, name):
    (cell,) = [x for x in solved(notebook).cells if role(x).get("grade_id") == name]
    assert right in cell.source
    cell.source = cell.source.replace(right, wrong)
    return notebook


def cheated(notebook):
    """Write nothing, and get rid of the checks or give them the course's own."""
    cells, ways = [], cycle(("delete", "replace", "unmark", "import"))
    for cell in notebook.cells:
        if role(cell).get("grade"):
            way = next(ways)
            if way == "delete":
                continue
            if way == "replace":
                cell.source = "print('fine')"
            if way == "unmark":
                del cell.metadata["nbgrader"]
            if way == "import":
                said = re.search(r'"(from minillama.* import .*)"', cells[-1].source)
                cells.append(nbformat.v4.new_code_cell(said[1]))
        cells.append(cell)
    notebook.cells = cells
    return notebook


def up_to_the_last_check(lesson, folder):
    """Write a lesson without what is below: it costs time and gives no points."""
    notebook = read(sync.NOTEBOOKS / f"{lesson}.ipynb")
    *_, last = (i for i, x in enumerate(notebook.cells) if release.is_exercise(x))
    notebook.cells = notebook.cells[: last + 2]
    nbformat.write(notebook, folder / f"{lesson}.ipynb")
    return folder / f"{lesson}.ipynb"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A graded course: its folder."""
    out, notebooks = map(tmp_path_factory.mktemp, ("course", "notebooks"))
    paths = [up_to_the_last_check(lesson, notebooks) for lesson in LESSONS]
    assert release.write_nbgrader_course(out, paths) == len(LESSONS)
    for lesson, mistake in LESSONS.items():
        nbgrader(out, "generate_assignment", lesson)
        hand_in(out, "untouched", lesson, released(out, lesson))
        hand_in(out, "right", lesson, solved(released(out, lesson)))
        hand_in(out, "mistaken", lesson, with_mistake(released(out, lesson), *mistake))
        hand_in(out, "cheated", lesson, cheated(released(out, lesson)))
        nbgrader(out, "autograde", lesson)
    return out


@pytest.fixture(scope="module")
def points(course):
    """{(student, lesson): {check: (points, of how many)}}, from the gradebook."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        return {
            (student.id, lesson): {
                grade.name: (grade.score, grade.max_score)
                for grade in book.find_submission(lesson, student.id)
                .notebooks[0]
                .grades
            }
            for student in book.students
            for lesson in LESSONS
        }


@pytest.mark.parametrize("lesson", LESSONS)
def test_students_get_the_blank_edition(course, lesson):
    """The same blanks as by `make student`, and locked checks that show no more."""
    blank = release.student_edition(read(sync.NOTEBOOKS / f"{lesson}.ipynb"))
    given = released(course, lesson)
    blanks, written = (
        [x.source for x in edition.cells if release.is_exercise(x)]
        for edition in (blank, given)
    )
    assert blanks == written
    checks = [x for x in given.cells if role(x).get("grade")]
    assert len(checks) == len(blanks)
    for check in checks:
        assert check.metadata.editable is False and check.metadata.deletable is False
        assert all(line.startswith("check.") for line in check.source.split("\n"))


@pytest.mark.parametrize("lesson", LESSONS)
@pytest.mark.parametrize("student", ["untouched", "cheated"])
def test_nothing_written_is_worth_nothing(points, student, lesson):
    of_all = points["right", lesson]
    assert {x: (0, most) for x, (_, most) in of_all.items()} == points[student, lesson]


@pytest.mark.parametrize("lesson", LESSONS)
def test_all_right_gets_every_point(points, lesson):
    assert all(got == most > 0 for got, most in points["right", lesson].values())


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_mistake_costs_its_own_exercise(points, lesson):
    *_, name = LESSONS[lesson]
    got = points["mistaken", lesson]
    assert [x for x, (score, most) in got.items() if score < most] == [f"check-{name}"]
    assert got[f"check-{name}"][0] == 0


def test_feedback_says_what_was_wrong_and_grades_can_be_had(course, points):
    lesson = "15_whiten"
    nbgrader(course, "generate_feedback", lesson, "--student", "mistaken")
    page = course / "feedback/mistaken" / lesson / f"{lesson}.html"
    assert "Hint: " in page.read_text(encoding="utf-8")
    nbgrader(course, "export")
    lines = (course / "grades.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * len(LESSONS)
