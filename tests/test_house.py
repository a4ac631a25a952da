"""The rules of the tree: who may import whom, what no file holds, and a README that knows every file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports go downwards only: a module may import those of earlier levels, none of its own.
LEVELS = [
    ["minillama", "contracts"],
    ["sources"],
    ["model", "tokenizer", "world", "whiten", "kl", "gae", "reward_selection"],
    ["data", "fast"],
    ["generate", "exact", "optim", "store"],
    ["lm", "reward_model"],
    [
        "preference_loss",
        "audit",
        "best_of_n",
        "policy_gradient",
        "dpo",
        "grpo",
        "off_policy",
        "process_reward",
    ],
    ["ppo"],
    ["stages"],
    ["pipeline", "distributed", "hf"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

MACHINE_PATH = re.compile(
    r"(?<![\w.)\]])/(home|Users|root|tmp|work|workspace|mnt|opt|private|srv)/"
    r"|\b[A-Z]:[\\/]+Users\b"
)
PICTURE = re.compile(r'"image/png": ("[^"]*"|\[[^\]]*\])')  # base64 may spell anything
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
UNSAFE = re.compile(r"\bpickle\.loads?\(|\bweights_only\s*=\s*Fal" r"se")


def modules(folder="minillama"):
    return sorted((ROOT / folder).rglob("*.py"))


def text_files():
    """The files of the project itself, whatever else lies in the checkout."""
    patterns = [
        "README.md",
        "Makefile",
        "LICENSE",
        "*.txt",
        "*.toml",
        "*.py",
        ".gitignore",
        ".ci/*",
        "minillama/**/*.py",
        "tests/**/*.py",
        "tests/*.cfg",
        "notebooks/*.ipynb",
    ]
    return sorted(
        path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()
    )


def relative(path):
    return path.relative_to(ROOT).as_posix()


def own_imports(source, package="minillama"):
    """The modules of ours that ``source`` imports anywhere in it, as dotted names below ``minillama``.

    package: the dotted package of the file, to resolve relative imports.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                package.split(".")[: package.count(".") + 2 - node.level]
                if node.level
                else []
            )
            base = ".".join([*above, node.module] if node.module else above)
            splits = base in (
                "minillama",
                "minillama.course",
            )  # `from package import module`
            found += (
                [f"{base}.{alias.name}" for alias in node.names] if splits else [base]
            )
    return [
        name.removeprefix("minillama.")
        for name in found
        if name.split(".")[0] == "minillama"
    ]


def upward_imports(name, imports):
    """What a module outside course/ imports against the rules, given what it imports."""
    for target in imports:
        if (
            LEVEL.get(target, len(LEVELS)) >= LEVEL[name]
        ):  # course/ has no level: nothing here may import it
            yield f"{name} imports {target}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "minillama").glob("*.py")), ids=relative
)
def test_imports_go_downwards(path):
    imports = own_imports(path.read_text(encoding="utf-8"))
    if path.stem == "__init__":
        assert imports == [], (
            "the package itself imports nothing, so that every module can be had alone"
        )
    else:
        assert path.stem in LEVEL, f"{path.name} has no place in LEVELS"
        assert list(upward_imports(path.stem, imports)) == []


@pytest.mark.parametrize("name", ["sync", "plots"])
def test_tools_of_the_course_know_no_algorithm(name):
    source = (ROOT / f"minillama/course/{name}.py").read_text(encoding="utf-8")
    assert own_imports(source, "minillama.course") == []


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from minillama.gae import gae", ["gae"]),
        ("from minillama import gae, kl", ["gae", "kl"]),
        ("import minillama.gae as g", ["gae"]),
        ("from .gae import gae", ["gae"]),
        ("from . import gae", ["gae"]),
        (
            "def f():\n    from minillama.course.artifacts import stage",
            ["course.artifacts"],
        ),
        (
            "from minillama.course import artifacts, sync",
            ["course.artifacts", "course.sync"],
        ),
        ("import torch\nfrom minillamas import x", []),
    ],
)
def test_every_form_of_import_is_seen(source, expected):
    assert own_imports(source) == expected


@pytest.mark.parametrize(
    "name, target, allowed",
    [
        ("ppo", "gae", True),
        ("gae", "ppo", False),
        ("gae", "audit", False),
        ("model", "tokenizer", False),
        ("stages", "store", True),
        ("pipeline", "course.sync", False),
        ("ppo", "stages", False),
        ("hf", "model", True),
        ("__main__", "pipeline", True),
        ("lm", "unheard_of", False),
    ],
)
def test_upward_imports_are_found(name, target, allowed):
    assert (list(upward_imports(name, [target])) == []) is allowed


@pytest.mark.parametrize(
    "path", [*modules(), *modules("tests"), ROOT / "conftest.py"], ids=relative
)
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
        "no module docstring"
    )


@pytest.mark.parametrize("path", text_files(), ids=relative)
def test_files_hold_nothing_unsafe_unfinished_or_local(path):
    text = PICTURE.sub("", path.read_text(encoding="utf-8"))
    for pattern in (UNSAFE, UNFINISHED, MACHINE_PATH):
        found = pattern.search(text)
        assert not found, (
            f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]}"
        )


@pytest.mark.parametrize(
    "text, pattern",
    [
        ("x = pickle." + "load(f)", UNSAFE),
        ("torch.load(f, weights_only=" + "False)", UNSAFE),
        ("# TO" + "DO: test", UNFINISHED),
        ("'/" + "home/ann'+'/x'", MACHINE_PATH),
        ("open(r'D:" + "\\Users')", MACHINE_PATH),
    ],
)
def test_what_no_file_may_hold_is_recognised(text, pattern):
    assert pattern.search(text.replace("'+'", ""))


def readme_tree():
    """The fenced block of the README that draws the tree."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return next(
        block for block in blocks if "minillama/" in block and "Makefile" in block
    )


def test_the_readmes_tree_lists_what_exists():
    tree = readme_tree()
    there = [path.name for path in modules() if path.name != "__init__.py"]
    there += [
        name
        for name in (
            "Makefile",
            "LICENSE",
            "requirements.txt",
            "pyproject.toml",
            "conftest.py",
        )
    ]
    there += ["notebooks/", "tests/", "course/", ".ci/run"]
    assert [
        name for name in there if not re.search(rf"(?<![\w.]){re.escape(name)}", tree)
    ] == []


def test_the_readmes_tree_lists_nothing_else():
    names = re.findall(r"(?<![\w<>*.])\w+\.(?:py|toml|txt|cfg)\b", readme_tree())
    exist = {path.name for path in text_files()}
    assert [name for name in names if name not in exist] == []
