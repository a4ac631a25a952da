"""The teacher's guide says what the notebooks, the editions and the checks say."""

import ast
import importlib
import re

import nbformat
import pytest

from minillama.course import checks, mend, release, sync

PATHS = {path.stem: path for path in sorted(sync.NOTEBOOKS.glob("*.ipynb"))}
LESSONS = {stem[:2]: nbformat.read(PATHS[stem], as_version=4) for stem in PATHS}
GUIDE = (sync.NOTEBOOKS / "README.md").read_text(encoding="utf-8")
PARTS = re.split(r"^## (.+)\n", GUIDE, flags=re.M)  # text, title, text, title, …
PART = dict(zip(PARTS[1::2], PARTS[2::2], strict=True))
SECTIONS = {
    text[1:3]: text for text in re.split(r"^### ", PART["The lessons"], flags=re.M)[1:]
}
CODE = re.compile(r"`([^`]+)`")
MINUTES_FOR_A_POINT = 8


def numbers(text):
    """The lessons that a text names, in its order."""
    return re.findall(r"(?<![\d.,])\d\d(?![\d.,]\d|\d)", re.sub(r"\(\S+\)", "", text))


def exercises(notebook):
    """Pairs of an exercise's names and its points in nbgrader's edition."""
    cells = release.nbgrader_edition(notebook).cells
    roles = [cell.metadata.get("nbgrader", {}) for cell in cells]
    points = [role.points for role in roles if role.get("points")]
    names = [
        [mend.mended_name(c)] if mend.mended_name(c) else written_in(c)
        for c in notebook.cells
        if release.is_exercise(c) or mend.mended_name(c)
    ]
    return list(zip(names, points, strict=True))


def written_in(cell):
    """The functions and classes that a student writes in a cell."""
    _, names = release.blanked(cell.source)
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def needs(lesson):
    """The lessons that a lesson needs and does not build for its readers."""
    first = LESSONS[lesson].cells[0].source
    line = next(x for x in first.split("\n") if x.startswith("**You need**"))
    line = re.split(r"\*\*You (?:write|mend)\*\*", line)[0]
    line = re.sub(r"the models of .*? \(built for you\)", "", line)
    line = re.sub(r"\[(\d\d)_\w+\]\(\S+\)", r"\1", line)
    if a_to_b := re.search(r"(\d\d) to (\d\d)", line):
        return [f"{i:02}" for i in range(int(a_to_b[1]), int(a_to_b[2]) + 1)]
    return re.findall(r"\b\d\d\b", line)


def closure(step):
    """All that each lesson needs, by way of others too; step: lesson -> lessons."""
    found = {}
    for lesson in sorted(step):
        found[lesson] = set(step[lesson]).union(*(found[x] for x in step[lesson]))
    return found


def tables(text):
    """The tables of a text: lists of rows, {head of a column: cell}."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        head, _, *rows = [
            [x.strip() for x in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.strip().split("\n")
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def of_syllabi():
    """The three tables of syllabi, each with the column of lessons in its rows."""
    half_day, two_days, term = tables(PART["Three syllabi"])
    for row in half_day + two_days:
        row["named"] = row["lesson"]
    for row in term:
        row["named"] = f"{row['in class']}; {row['homework']}"
    return {"half a day": half_day, "two days": two_days, "a term": term}


def headings(lesson):
    """The titles of a lesson's sections."""
    prose = [c.source for c in LESSONS[lesson].cells if c.cell_type == "markdown"]
    titles = re.findall(r"^#+ (.+)$", "\n".join(prose), re.M)
    return {title.replace("*", "") for title in titles}


# ------------------------------------------------------------------------------ lessons


def test_every_notebook_has_a_section():
    assert [re.match(r"\[(\w+)\]", x)[1] for x in SECTIONS.values()] == list(PATHS)
    for lesson, section in SECTIONS.items():
        title = LESSONS[lesson].cells[0].source.partition("\n")[0]
        assert f"\n**{title.split(' · ')[1]}**\n" in section, lesson


@pytest.mark.parametrize("lesson", LESSONS)
def test_exercises_and_points_are_those_of_the_editions(lesson):
    line = re.search(r"^\*\*Exercises\*\*(.*)$", SECTIONS[lesson], re.M)[1]
    told = [
        (CODE.findall(part), int((re.search(r" (\d+)\.?$", part) or [0, 0])[1]))
        for part in line.partition(": ")[2].split("; ")
        if "`" in part
    ]
    right = exercises(LESSONS[lesson])
    assert told == right
    total = re.search(r", (\d+) points", line)
    assert int(total[1] if total else 0) == sum(points for _, points in right)


@pytest.mark.parametrize("lesson", LESSONS)
def test_each_open_task_is_named(lesson):
    prose = [c.source for c in LESSONS[lesson].cells if c.cell_type == "markdown"]
    asked = re.findall(r"^\*{0,2}(\d)\.[* ]", "\n".join(prose[-12:]), re.M)
    line = re.search(r"^\*\*Open tasks\*\*: (.*)$", SECTIONS[lesson], re.M)[1]
    assert re.findall(r"(?:^|; )(\d) ", line) == sorted(set(asked))


def test_the_points_of_the_course_are_summed():
    total = sum(points for x in LESSONS.values() for _, points in exercises(x))
    assert f"They are {total} in all." in PART["Before the first class"]


@pytest.mark.parametrize("lesson", LESSONS)
def test_prerequisites_are_those_of_the_notebook(lesson):
    line = re.search(r"^\*\*Needs\*\* (.*)$", SECTIONS[lesson], re.M)[1]
    assert numbers(line) == needs(lesson)


def test_the_graph_has_all_that_is_needed_and_no_more():
    drawn = {x: set() for x in LESSONS}
    for line in re.search(r"flowchart LR\n(.*?)```", GUIDE, re.S)[1].split("\n"):
        groups = [re.findall(r"\d\d", part) for part in line.split("-->")]
        for before, after in zip(groups, groups[1:], strict=False):
            for each in after:
                drawn[each] |= set(before)
    assert closure(drawn) == closure({x: needs(x) for x in LESSONS})


@pytest.mark.parametrize("lesson", LESSONS)
def test_class_minutes_follow_the_rule(lesson):
    """Within a quarter of an hour: else a lesson has changed and the guide has not."""
    cells = LESSONS[lesson].cells
    prose = [c.source for c in cells if c.cell_type == "markdown"]
    predictions = sum(text.count("**Predict.**") for text in prose)
    led = len(" ".join(prose).split()) / 100 + 2 * predictions
    led += sum(c.cell_type == "code" for c in cells) / 2
    written = sum(points for _, points in exercises(LESSONS[lesson]))
    line = re.search(r"^\*\*Class\*\* (.*)$", SECTIONS[lesson], re.M)[1]
    told = [int(x) for x in re.findall(r"\d+", line)]
    rule = [led, led + MINUTES_FOR_A_POINT * written] if written else [led]
    assert told == pytest.approx(rule, abs=15)


# -------------------------------------------------------------------------- wrong lines


def names_of(notebook, index):
    """What an exercise's cell finds: its module's names, or the notebook's imports."""
    if header := sync.cell_header(notebook.cells[index]):
        module = header.removesuffix(".py").replace("/", ".")
        return dict(vars(importlib.import_module(module)))
    names = {}
    for cell in notebook.cells[:index]:
        if cell.cell_type == "code":
            body = ast.parse(cell.source).body
            imports = [x for x in body if isinstance(x, ast.Import | ast.ImportFrom)]
            exec("\n".join(map(ast.unparse, imports)), names)  # noqa: S102
    return names


def complaint(notebook, right, wrong):
    """What the check of an exercise says if one line of it is another."""
    for i, cell in enumerate(notebook.cells):
        is_exercise = release.is_exercise(cell) or mend.mended_name(cell)
        if not is_exercise or right not in cell.source:
            continue
        names = names_of(notebook, i) | {"check": checks}
        lines = notebook.cells[i + 1].source.split("\n")
        exec(cell.source.replace(right, wrong), names)  # noqa: S102
        try:
            for line in lines:
                if line.startswith("check."):
                    exec(line, names)  # noqa: S102
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError(f"{wrong!r} passes")
    raise AssertionError(f"no exercise has {right!r}")


@pytest.mark.parametrize("lesson", [x for x in LESSONS if exercises(LESSONS[x])])
def test_wrong_answers_are_caught_as_told(lesson):
    rows = tables(SECTIONS[lesson])[0]
    assert 3 <= len(rows) <= 6
    for row in rows:
        wrong, right = CODE.findall(row["wrong line"].replace("\\|", "|"))
        said = complaint(LESSONS[lesson], right, wrong).lower()
        quotes = CODE.findall(row["the check says"].replace("\\|", "|"))
        assert quotes
        for quote in quotes:
            assert quote.lower() in said, (wrong, said)


# ------------------------------------------------------------------------------ syllabi


@pytest.mark.parametrize("name", ["half a day", "two days", "a term"])
def test_no_lesson_stands_before_one_that_it_needs(name):
    met = set()
    for row in of_syllabi()[name]:
        for lesson in numbers(row["named"]):
            assert set(needs(lesson)) <= met, (lesson, set(needs(lesson)) - met)
            met.add(lesson)
    assert len(met) > 10


def test_the_minutes_of_syllabi_add_up():
    syllabi = of_syllabi()
    assert sum(int(row["minutes"]) for row in syllabi["half a day"]) == 4 * 60
    for day in "12":
        rows = [row for row in syllabi["two days"] if row["day"] == day]
        assert sum(int(row["minutes"]) for row in rows) == 6 * 60
    assert [row["week"] for row in syllabi["a term"]] == [str(i + 1) for i in range(14)]


def test_quoted_headings_exist():
    """In a row of a syllabus, and behind "See" in an answer to a student."""
    places = [
        (row["named"], row["named"] + row.get("how", ""))
        for rows in of_syllabi().values()
        for row in rows
    ]
    answers = re.sub(r"(?<!\n)\n(?!\n)", " ", PART["What students ask"]).split("\n\n")
    for answer in answers:
        *_, seen = answer.partition(" See ")
        assert numbers(seen) and '"' in seen, answer
        places.append((seen, seen))
    for lessons, text in places:
        known = set().union(*map(headings, numbers(lessons)))
        assert set(re.findall(r'"([^"]+)"', text)) <= known, text
