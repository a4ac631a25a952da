"""The cell filler and the figures: what minillama.course promises about them."""

import json

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch

from minillama.course import plots, sync

matplotlib.use("Agg")


# --------------------------------------------------------------------------------- sync

PACKAGE = '''"""A toy module."""

from dataclasses import dataclass

EPS = 1e-6
# Two comment lines
# about a pair.
LOW, HIGH = 0, 1  # bounds


@dataclass(frozen=True)
class Point:
    """A point."""

    x: int = 0


# Why this is here.
def double(x):
    """Twice x."""

    return 2 * x  # exactly
'''

DOUBLE = '''# Why this is here.
def double(x):
    """Twice x."""

    return 2 * x  # exactly'''
POINT = '@dataclass(frozen=True)\nclass Point:\n    """A point."""\n\n    x: int = 0'


def project_with(tmp_path, *sources):
    """A project with one module and one notebook with the given code cells."""
    (tmp_path / "minillama").mkdir(exist_ok=True)
    (tmp_path / "minillama" / "toy.py").write_text(PACKAGE)
    (tmp_path / "notebooks").mkdir(exist_ok=True)
    cells = [
        nbformat.v4.new_code_cell(
            source,
            execution_count=3,
            metadata={"tags": ["kept"]},
            outputs=[nbformat.v4.new_output("stream", text="é 1\n")],
        )
        for source in sources
    ]
    path = tmp_path / "notebooks" / "01_toy.ipynb"
    cells.insert(0, nbformat.v4.new_markdown_cell("# minillama/toy.py"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def filled(tmp_path, source):
    path = project_with(tmp_path, source)
    sync.sync(path, project=tmp_path)
    return nbformat.read(path, 4).cells[1].source


@pytest.mark.parametrize(
    "stubs, expected",
    [
        ("def double(): ...", DOUBLE),
        ("class Point: ...\ndef double(): ...", POINT + "\n\n\n" + DOUBLE),
        (
            "def double(): ...\n\n\nclass Point: ...",
            DOUBLE + "\n\n\n" + POINT,
        ),  # the cell's order
        (
            "EPS = 0\nLOW, HIGH = 0, 0",
            "EPS = 1e-6\n# Two comment lines\n# about a pair.\n"
            "LOW, HIGH = 0, 1  # bounds",
        ),
        ("EPS: float = 0\ndef double(): ...", "EPS = 1e-6\n\n\n" + DOUBLE),
    ],
)
def test_stubs_are_filled_from_the_package(tmp_path, stubs, expected):
    once = filled(tmp_path, "# minillama/toy.py\n" + stubs)
    assert once == "# minillama/toy.py\n" + expected
    assert filled(tmp_path, once) == once


def test_an_exercise_says_so_in_its_first_line(tmp_path):
    path = project_with(tmp_path, "# minillama/toy.py\ndef double(): ...")
    for tags, header in (
        (["exercise"], "# exercise · minillama/toy.py\n"),
        ([], "# minillama/toy.py\n"),
    ):
        notebook = nbformat.read(path, 4)
        notebook.cells[1].metadata["tags"] = tags
        nbformat.write(notebook, path)
        assert sync.sync(path, project=tmp_path) == [
            "01_toy.ipynb, cell 1, minillama/toy.py: "
            + ("double" if tags else "(layout)")
        ]
        assert nbformat.read(path, 4).cells[1].source == header + DOUBLE


def test_sync_touches_nothing_but_the_source_of_definition_cells(tmp_path):
    others = [
        "def double(): ...",
        "# minillama/toy.py is a module\nx = 1",
        "x = '# minillama/toy.py'",
    ]
    path = project_with(tmp_path, "# minillama/toy.py\ndef double(): ...", *others)
    before = json.loads(path.read_text(encoding="utf-8"))
    assert sync.sync(path, project=tmp_path) == [
        "01_toy.ipynb, cell 1, minillama/toy.py: double"
    ]
    text = path.read_text(encoding="utf-8")
    after = json.loads(text)
    assert "".join(after["cells"][1].pop("source")).endswith(DOUBLE)
    before["cells"][1].pop("source")
    assert before == after
    assert (
        text
        == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True)
        + "\n"
    )
    assert "é" in text


def test_a_notebook_in_order_is_not_written(tmp_path):
    path = project_with(tmp_path, "# minillama/toy.py\n" + DOUBLE)
    path.write_text(
        path.read_text() + "\n"
    )  # not as Jupyter writes it: any rewriting would show
    before = path.read_bytes()
    assert sync.sync(path, project=tmp_path) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "source, named",
    [
        (DOUBLE.replace("2 * x", "3 * x"), "double"),
        (DOUBLE.replace("# Why this is here.\n", ""), "double"),
        (POINT + "\n\n\n" + DOUBLE.replace("Twice", "thrice"), "double"),
        (POINT + "\n\n" + DOUBLE, "(layout)"),
        (DOUBLE + "\n", "(layout)"),
    ],
)
def test_check_names_what_differs_and_changes_nothing(tmp_path, capsys, source, named):
    path = project_with(tmp_path, "# minillama/toy.py\n" + source)
    before = path.read_bytes()
    assert sync.main(["--check"], tmp_path) == 1
    assert (
        capsys.readouterr().out
        == f"differs: 01_toy.ipynb, cell 1, minillama/toy.py: {named}\n"
    )
    assert path.read_bytes() == before
    assert sync.main([str(path)], tmp_path) == 0
    assert sync.main(["--check"], tmp_path) == 0


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "# minillama/toy.py\ndef triple(): ...",
            "cell 1: minillama/toy.py defines no triple at top level",
        ),
        (
            "# minillama/toys.py\ndef double(): ...",
            "cell 1: there is no file minillama/toys.py",
        ),
        (
            "# minillama/toy.py\ndef double(): ...\nprint(1)",
            r"cell 1 \(.*toy.py\) holds more than def.*: p",
        ),
        ("# minillama/toy.py\nEPS = 1\nEPS += 1", "holds more than definitions: EPS"),
        ("# minillama/toy.py\n", "defines nothing"),
        ("# minillama/toy.py\ndef double(:", "does not parse"),
        (
            "# minillama/toy.py\ndef double(): ...\ndef double(): ...",
            "double is defined twice",
        ),
    ],
)
def test_cells_that_cannot_be_filled_are_errors(tmp_path, source, message):
    path = project_with(tmp_path, source)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        sync.sync(path, project=tmp_path)
    assert path.read_bytes() == before


def test_taught_lists_where_each_name_is_defined(tmp_path):
    cells = (
        "# minillama/toy.py\ndef double(): ...",
        "# minillama/toy.py\nLOW, HIGH = 1, 2",
    )
    path = project_with(tmp_path, *cells)
    (path.parent / "02_more.ipynb").write_bytes(path.read_bytes())
    both = ["01_toy", "02_more"]
    assert sync.taught(path.parent) == {"double": both, "LOW": both, "HIGH": both}
    assert sync.definition_cells(nbformat.read(path, 4)) == [
        sync.DefinitionCell(1, "minillama/toy.py", ("double",)),
        sync.DefinitionCell(2, "minillama/toy.py", ("LOW", "HIGH")),
    ]


# -------------------------------------------------------------------------------- plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_learning_curves_draw_labelled_series(ax):
    plots.learning_curves(
        ax,
        [1, 2, 3],
        {"gold": [1, 2, 1], "proxy": torch.tensor([1.0, 2.0, 3.0])},
        "iteration",
        "score",
        "Gold falls while the proxy rises",
    )
    assert [line.get_label() for line in ax.get_lines()] == ["gold", "proxy"]
    assert ax.get_lines()[1].get_ydata().tolist() == [1, 2, 3]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "score")
    assert "Gold falls while the proxy rises" in (
        ax.get_title(),
        ax.get_title(loc="left"),
    )
    with pytest.raises(ValueError, match="'gold' must have 3 values as x, got 2"):
        plots.learning_curves(ax, [1, 2, 3], {"gold": [1, 2]}, "", "", "")


def test_the_ladder_shows_how_far_each_rung_is_above_the_floor(ax):
    # 3.5 - 0.5 = 3; three copies at 0.75, 1 and 0.625 are 0.25, 0.5 and 0.125 above
    rungs = {"uniform": [3.5], "one block": [0.75, 1.0, 0.625]}
    plots.ladder(ax, rungs, 0.5)
    spans, dots = ax.get_lines()[::2], ax.get_lines()[1::2]
    assert [x.get_xdata().tolist() for x in dots] == [[3.0], [0.25, 0.5, 0.125]]
    assert [x.get_xdata().tolist() for x in spans] == [[3.0, 3.0], [0.125, 0.5]]
    assert [set(x.get_ydata()) for x in ax.get_lines()] == [{0}, {0}, {1}, {1}]
    assert [x.get_text() for x in ax.get_yticklabels()] == ["uniform", "one block"]
    assert [x.get_text() for x in ax.texts] == ["3.000", "0.250"]  # the middle one
    assert ax.get_xscale() == "log" and "nats per token" in ax.get_xlabel()
    assert ax.get_legend() is None

    plots.ladder(ax, rungs, 0.5, live=("one block", 0.875))
    last = ax.get_lines()[-1]
    assert (last.get_xdata().tolist(), list(last.get_ydata())) == ([0.375], [1])
    assert last.get_color() == plots.ORANGE != ax.get_lines()[0].get_color()
    assert [x.get_text() for x in ax.get_legend().get_texts()] == ["trained just now"]
    with pytest.raises(ValueError, match="live must name one of .*, got 'my block'"):
        plots.ladder(ax, rungs, 0.5, live=("my block", 0.9))


def test_calibration_curve_averages_groups_of_equal_size(ax):
    # Ordered by prediction: (0.1, 0), (0.3, 1) | (0.6, 0), (0.8, 1).
    # Means: (0.2, 0.5) and (0.7, 0.5).
    plots.calibration_curve(ax, [0.8, 0.1, 0.6, 0.3], [1, 0, 0, 1], "toy", bins=2)
    perfect, curve = ax.get_lines()
    assert perfect.get_xdata().tolist() == perfect.get_ydata().tolist() == [0, 1]
    assert curve.get_xdata().tolist() == pytest.approx([0.2, 0.7])
    assert curve.get_ydata().tolist() == pytest.approx([0.5, 0.5])
    plots.calibration_curve(ax, [0.5, 0.5], [0, 1], "another")
    assert [line.get_label() for line in ax.get_lines()] == [
        "perfect",
        "toy",
        "another",
    ]
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        plots.calibration_curve(ax, [1.2], [1], "a score, not a probability")
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        plots.calibration_curve(ax, [0.2, 0.3], [1], "too short")


def test_save_writes_the_same_png_twice(tmp_path, ax):
    ax.plot([0, 1], [0, 1])
    one = plots.save(ax.figure, tmp_path / "deep" / "one.png").read_bytes()
    assert (
        one.startswith(b"\x89PNG")
        and one == plots.save(ax.figure, tmp_path / "two.png").read_bytes()
    )
    with pytest.raises(ValueError, match=r"must end in .png, got one.svg"):
        plots.save(ax.figure, tmp_path / "one.svg")


def test_the_style_gives_each_series_its_colour_and_line():
    with plt.rc_context():
        plots.use_style()
        figure, ax = plt.subplots()
        plots.learning_curves(
            ax, [0, 1], {str(i): [0, i] for i in range(6)}, "x", "y", "title"
        )
        looks = [(line.get_color(), str(line._dash_pattern)) for line in ax.get_lines()]
        plt.close(figure)
    assert [len(set(kind)) for kind in zip(*looks, strict=True)] == [6, 6]
