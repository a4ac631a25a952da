"""Her own package: what passes its checks is hers, what does not is named."""

import json
import re
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


def cell(source, kind="code"):
    return nbformat.from_dict({"cell_type": kind, "source": source})


def test_a_cell_takes_along_the_imports_of_its_notebook():
    """Only what it uses and its file lacks; nothing that it merely tries out."""
    above = [
        cell("import math\nimport torch.nn.functional as F, os\nfrom torch import nn"),
        cell("%matplotlib inline"),
        cell("import json", "markdown"),
        cell("from minillama.kl import kl_estimate"),
    ]
    source = (
        "# exercise · minillama/gae.py\n"
        "def gae(x):\n    return F.pad(x, json, kl_estimate) * math.pi\n\n\n"
        "print(gae(1),\n      2)"
    )
    header, body = source.split("\n", 1)
    alone = mine.standing_alone(source, "minillama/gae.py", above)
    lines = ["import math", "import torch.nn.functional as F"]
    assert alone.split("\n")[0] == header
    assert sorted(alone.split("\n")[1:3]) == lines
    assert alone.split("\n", 3)[3] == body.partition("print")[0].removesuffix("\n")
    wrong = "def gae(:"
    assert mine.standing_alone(wrong, "minillama/gae.py", above) == wrong


@pytest.mark.parametrize(
    "source, words",
    [
        ("from minillama.kl import kl_estimate", "is imported: not written yet"),
        ("def kl_estimate(a): ...\ndef kl_estimate(b): ...", "is defined twice"),
        ("def kl_estimate(a): ...\ndef exact_kl(b): ...", "call yours otherwise"),
        (
            "def kl_estimate(a, b, kind='k1'):\n    return help_me(a)",
            "A cell goes into",
        ),
    ],
)
def test_names_that_do_not_fit_are_named(course, source, words):
    assert words in mine.failure(with_source(of(course, "kl_estimate"), source))


def test_two_helpers_of_one_name_and_file(course):
    helpers = {}
    for name, source, wrong in (
        ("kl_estimate", "def half(a):\n    return a / 2", ""),
        ("exact_kl", "def half(a):\n    return a / 2", ""),
        ("kl_penalised_rewards", "def half(a):\n    return a * 2", "has another half"),
        ("gae", "def half(a):\n    return a * 2", ""),  # another file
    ):
        found = mine.clash(with_source(of(course, name), source), helpers)
        assert wrong in found and bool(found) == bool(wrong)


def test_a_private_helper_may_be_left_out(course, tmp_path):
    piece = of(course, "pair_example")
    body = piece.source.partition("@functools")[0].replace(
        "_dialogue(tokenizer, preference.prompt.text, text)",
        "dialogue_example(tokenizer, preference.prompt.text, text, True)",
    )
    piece = with_source(piece, body)
    assert mine.failure(piece) == ""
    mine.copy_project(tmp_path)
    mine.put(piece, tmp_path)
    assert "def _dialogue(" in (tmp_path / "minillama/data.py").read_text()


def test_what_fails_together_is_named(capsys):
    calls = [("minillama/kl.py", "kl_estimate", x) for x in ("kl_estimate", "exact_kl")]
    assert mine.together(calls) == 1
    said = capsys.readouterr().out
    assert said.startswith("exact_kl of minillama/kl.py: ")
    assert "1 of 2 checks pass, all together" in said


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
    assert "sampled answers, before and after PPO" in said
    assert "yours, seed" in said
    assert "math.prod" in (out / "minillama/gae.py").read_text()
    text = (out / "minillama/whiten.py").read_text()
    assert LOGIT in text and WHITEN not in text
    report = json.loads(Path(out / "run/report.json").read_text())
    assert 0 <= report["refusal"]["after"] <= 1


BLANK = r'(?m)^ *# your code\n *raise NotImplementedError\(\n *"{} is not .*\n.*\n *\)$'


def answered(source, answers):
    """A blank with every body from answers, {name: body}."""
    for name in release.blanked(source)[1]:
        body = answers.pop(name)
        blank = BLANK.format(re.escape(name))
        source, count = re.subn(blank, lambda _: body, source)  # noqa: B023
        assert count == 1, name
    return source


def test_a_full_set_of_answers_in_another_style(tmp_path, capsys):
    """All checks pass on a package of her own, and it aligns (for a few steps)."""
    text = (Path(__file__).parent / "another_style.txt").read_text(encoding="utf-8")
    parts = (part.split("\n", 1) for part in re.split("(?m)^== ", text)[1:])
    answers = {name: body.rstrip("\n") for name, body in parts}
    folder, out = tmp_path / "student", tmp_path / "mine"
    paths = sorted(sync.NOTEBOOKS.glob("*.ipynb"))
    release.write_student_edition(folder, paths)
    for path in folder.glob("*.ipynb"):
        notebook = read(path)
        for each in filter(release.is_exercise, notebook.cells):
            each.source = answered(each.source, answers)
        nbformat.write(notebook, path)
    assert not answers
    found, helpers = mine.pieces(folder), {}
    assert not any(mine.clash(piece, helpers) for piece in found)
    mine.copy_project(out)
    for piece in found:
        mine.put(piece, out)
    assert mine.checked_together(out, mine.all_checks())
    run = ("-m", "minillama", "run", "--quick", "--out", str(out / "run"))
    assert mine.in_copy(out, *run).returncode == 0
    assert mine.beside(out, tmp_path)[-1].endswith("after `make run`.")
