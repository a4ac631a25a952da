"""Her own package: what passes its checks is hers, what does not is named."""

import json
from pathlib import Path

import nbformat
import pytest

from minillama.course import mine, release, sync

# Bodies for blanks: two right ones in another style, one that is wrong.
GAE = """
    advantages = torch.zeros_like(rewards)
    for i, row in enumerate(response_mask):
        later, trace = 0.0, 0.0
        for t in reversed(row.nonzero().flatten().tolist()):
            delta = rewards[i, t] + gamma * later - values[i, t]
            trace = delta + discount(gamma, lam) * trace
            advantages[i, t], later = trace, values[i, t]
    advantages = advantages.detach()
    return advantages, torch.where(response_mask, advantages + values.detach(), 0.0)


def discount(gamma, lam):
    return math.prod([gamma, lam])"""
LOGIT = """
    q = p.double().clamp(eps, 1 - eps)
    return (torch.log(q) - torch.log1p(-q)).to(p.dtype)"""
WHITEN = """
    return (values - values.mean()) * values.var().rsqrt()"""


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="module")
def course():
    return mine.pieces(sync.NOTEBOOKS)


def of(course, name):
    return next(piece for piece in course if name in piece.names)


def written(source, body):
    """A blank with its body written by somebody, who needs an import for it."""
    blank, _ = release.blanked(source)
    header, _, rest = blank.partition("\n")
    top = rest.partition("    # your code")[0].rstrip()
    return f"{header}\nimport math\n\n\n{top}{body}"


def with_source(piece, source):
    return mine.Piece(piece.lesson, piece.file, piece.names, source, piece.checks)


def test_every_exercise_is_found_with_its_checks(course):
    assert {piece.lesson for piece in course} == {
        path.stem
        for path in sync.NOTEBOOKS.glob("*.ipynb")
        if path.stem[:2] not in ("00", "28")  # these write nothing of the package
    }
    assert all(piece.checks for piece in course)
    assert of(course, "rotate").checks == (
        ("rope_cos_sin", "rope_cos_sin"),
        ("rotate", "rotate"),
    )
    assert of(course, "gae").file == "minillama/gae.py"


def test_the_course_put_back_is_the_package(course, tmp_path):
    mine.copy_project(tmp_path)
    for piece in course:
        mine.put(piece, tmp_path)
    for path in sorted((sync.PROJECT / "minillama").rglob("*.py")):
        copied = tmp_path / path.relative_to(sync.PROJECT)
        assert copied.read_text() == path.read_text()


def test_another_style_passes_and_stands_in_the_place_of_the_course(course, tmp_path):
    piece = of(course, "gae")
    piece = with_source(piece, written(piece.source, GAE))
    assert mine.tried(piece) == ""
    mine.copy_project(tmp_path)
    mine.put(piece, tmp_path)
    text = (tmp_path / "minillama/gae.py").read_text()
    assert text.count("def gae(") == 1 and GAE.partition("\n\n\n")[0] in text
    assert (
        text.index("import math") < text.index("def discount(") < text.index("def gae")
    )


@pytest.mark.parametrize(
    "source, words",
    [
        ("def kl_estimate(a, b, kind='k1'):\n    return b - a", "kl_estimate: "),
        ("def kl_estimate(a, b, kind='k1'):\n    a - b", "got None"),
        ("def kl_estimate(a, b):\n    return a - b", "TypeError: "),
        ("def kl_estimate(a, b, kind='k1'):\n    return a - c", "NameError: name 'c'"),
        ("def kl_estimate(a, b, kind='k1') return a", "SyntaxError: "),
        ("def kl(a, b):\n    return a - b", "kl_estimate is not defined in the cell"),
        ("import os\n\nos._exit(3)", "the process died with exit code 3"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("while True:\n    pass", "no end after 2 s"),
    ],
)
def test_what_is_wrong_is_named(course, source, words):
    wrong = mine.tried(with_source(of(course, "kl_estimate"), source), seconds=2)
    assert words in wrong


def test_a_blank_is_not_written_yet(course):
    piece = of(course, "objective")
    blank, _ = release.blanked(piece.source)
    assert mine.tried(with_source(piece, blank)) == "objective is not written yet"


def test_only_and_except(course):
    names = [x.names for x in mine.chosen(course, ["gae", "rotate"], ["rotate"])]
    assert names == [("gae",)]
    assert len(mine.chosen(course, [], ["gae"])) == len(course) - 1
    with pytest.raises(ValueError, match="gea is no exercise of these notebooks"):
        mine.chosen(course, ["gea"], [])


def test_a_folder_with_something_else_is_not_written_over(tmp_path, capsys):
    (tmp_path / "tests").mkdir()
    for out in (tmp_path, sync.PROJECT):
        assert mine.main([str(sync.NOTEBOOKS), "--out", str(out)]) == 2
        words = "mine: --out must be an empty folder or an earlier one, got"
        assert words in capsys.readouterr().err
    assert (tmp_path / "tests").is_dir()


def test_a_folder_without_notebooks(tmp_path, capsys):
    assert mine.main([str(tmp_path)]) == 2
    assert "mine: there is no notebook of the course in" in capsys.readouterr().err


def test_a_student_aligns_a_policy_with_her_own_code(tmp_path, capsys):
    """Two right answers, a wrong one and blanks: hers are used, the wrong one named."""
    release.write_student_edition(
        tmp_path, [sync.NOTEBOOKS / "15_whiten.ipynb", sync.NOTEBOOKS / "17_gae.ipynb"]
    )
    answers = {"gae": GAE, "logit": LOGIT, "whiten": WHITEN}
    for path in tmp_path.glob("*.ipynb"):
        notebook = read(path)
        for cell in sync.definition_cells(notebook):
            if release.is_exercise(notebook.cells[cell.index]):
                for name in set(cell.names) & set(answers):
                    ours = sync.expected_source(cell)
                    notebook.cells[cell.index].source = written(ours, answers[name])
        nbformat.write(notebook, path)
    out = tmp_path / "mine"
    assert mine.main([str(tmp_path), "--out", str(out), "--quick"]) == 0
    said = capsys.readouterr().out
    assert "17_gae               gae: yours" in said
    assert "15_whiten            logit: yours" in said
    assert "15_whiten            whiten: the course's, since\n    whiten: " in said
    assert "2 exercises are yours, 1 failed, 2 not written" in said
    assert "after PPO, sampled" in said and "yours" in said
    assert "math.prod" in (out / "minillama/gae.py").read_text()
    text = (out / "minillama/whiten.py").read_text()
    assert LOGIT in text and WHITEN not in text
    report = json.loads(Path(out / "run/report.json").read_text())
    assert 0 <= report["refusal"]["after"] <= 1
