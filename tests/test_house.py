"""The rules of the tree: who imports whom, what no file holds, how code is written.

And a README that knows every file.
"""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ROOT / "minillama/course/checks"

# Imports go downwards only: a module may import those of earlier levels, none of its
# own. `__init__` is the package itself, which imports nothing, so that every module can
# be had alone; course/ stands above everything, so nothing outside imports it.
LEVELS = [
    ["__init__"],
    ["contracts"],
    ["sources", "rope_scaling", "accumulate", "evidence", "lora", "scaling"],
    [
        "model",
        "tokenizer",
        "world",
        "grammar",
        "whiten",
        "kl",
        "gae",
        "reward_selection",
        "arena",
    ],
    ["data", "fast", "writers", "llama_tokenizer", "hf_config", "hf_files"],
    ["generate", "exact", "optim", "store", "preference_file"],
    ["lm", "reward_model", "checkpoint", "chat_format"],
    [
        "ladder",
        "preference_loss",
        "audit",
        "best_of_n",
        "policy_gradient",
        "process_reward",
    ],
    ["dpo", "off_policy", "ppo"],
    ["grpo"],
    ["stages"],
    ["preference_audit", "budget"],
    ["pipeline", "distributed", "hf"],
    ["any_reward_model"],
    ["reward_file"],
    ["__main__"],
    [
        "course.__init__",
        "course.bpe",
        "course.plots",
        "course.sync",
        "course.tidy",
        "course.tiny_cache",
        "course.mend",
        "course.sick_runs",
    ],
    ["course.checks.case", "course.book", "course.release"],
    ["course.checks.shared"],
    [f"course.checks.{x.stem}" for x in sorted(CHECKS.glob("lesson_*.py"))],
    ["course.checks.__init__", "course.checks"],  # its file, and how others import it
    ["course.mine"],
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
    """Return the files of the project itself, whatever else lies in the checkout."""
    patterns = [
        "README.md",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        "*.txt",
        "*.toml",
        "*.py",
        ".gitignore",
        ".ci/*",
        ".devcontainer/*",
        ".github/**/*.yml",
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


PACKAGES = ("minillama", "minillama.course", "minillama.course.checks")


def own_imports(source, package="minillama"):
    """Return the modules of ours that `source` imports anywhere in it, below minillama.

    package: the dotted package of the file, to resolve relative imports.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            # `from package import module`
            modules = [f"{base}.{alias.name}" for alias in node.names]
            found += modules if base in PACKAGES else [base]
    return [
        "__init__" if name == "minillama" else name.removeprefix("minillama.")
        for name in found
        if name.split(".")[0] == "minillama"
    ]


def dotted(path):
    """Return a module's name below minillama, as LEVELS has it: course.sync."""
    return ".".join(path.relative_to(ROOT / "minillama").with_suffix("").parts)


def upward_imports(name, imports):
    """Yield what a module imports against the rules, given all that it imports."""
    for target in imports:
        if LEVEL.get(target, len(LEVELS)) >= LEVEL[name]:
            yield f"{name} imports {target}"


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_imports_go_downwards(path):
    name = dotted(path)
    assert name in LEVEL, f"{name} has no place in LEVELS"
    package = ".".join(["minillama", *name.split(".")[:-1]])
    imports = own_imports(path.read_text(encoding="utf-8"), package)
    assert list(upward_imports(name, imports)) == []


@pytest.mark.parametrize("name", ["sync", "plots", "tidy"])
def test_tools_of_the_course_know_no_algorithm(name):
    source = (ROOT / f"minillama/course/{name}.py").read_text(encoding="utf-8")
    assert own_imports(source, "minillama.course") == []


@pytest.mark.parametrize(
    "source, expected",
    [
        ("from minillama.gae import gae", ["gae"]),
        ("from minillama import gae, kl", ["gae", "kl"]),
        ("import minillama.gae as g", ["gae"]),
        ("import minillama", ["__init__"]),
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
        ("from minillama.course.checks import case", ["course.checks.case"]),
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
        ("grammar", "contracts", True),
        ("grammar", "world", False),
        ("world", "grammar", False),
        ("writers", "world", True),
        ("writers", "grammar", True),
        ("writers", "data", False),
        ("audit", "writers", True),
        ("ladder", "lm", True),
        ("ladder", "audit", False),
        ("lm", "ladder", False),
        ("stages", "store", True),
        ("pipeline", "course.sync", False),
        ("ppo", "stages", False),
        ("hf", "model", True),
        ("__main__", "pipeline", True),
        ("__main__", "course.sync", False),
        ("__init__", "contracts", False),
        ("course.checks.lesson_08_reward_head", "reward_model", True),
        ("course.checks.lesson_17_gae", "course.checks.lesson_19_ppo", False),
        ("course.sync", "course.plots", False),
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


def annotated_signatures(tree):
    """Yield the functions that annotate an argument or what they return."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            arguments = [x for x in ast.walk(node.args) if isinstance(x, ast.arg)]
            if getattr(node, "returns", None) or any(x.annotation for x in arguments):
                yield node.name


def double_backticks(tree):
    """Yield the docstrings that hold double backticks, by the line they belong to."""
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and "``" in (ast.get_docstring(node) or ""):
            yield getattr(node, "name", "the module")


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_one_manner(path):
    """Contracts say types, and dataclass fields; a docstring has single backticks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(annotated_signatures(tree)) == []
    assert list(double_backticks(tree)) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(x: int): pass",
        "def f() -> int: pass",
        "async def f(*, x: int = 1): pass",
        "def f(*x: int): pass",
        "def f(**x: int): pass",
        "def f(x: int, /): pass",
        "class C:\n    def f(self, x: int): pass",
    ],
)
def test_an_annotated_signature_is_found(source):
    assert list(annotated_signatures(ast.parse(source))) == ["f"]


def test_fields_may_be_annotated_and_backticks_are_found_in_docstrings_only():
    fields = ast.parse("@dataclass\nclass C:\n    x: int = 1\ny = lambda x: x")
    assert list(annotated_signatures(fields)) == []
    tree = ast.parse("'''``a``'''\ndef f():\n    '''``a``'''\nx = '``'")
    assert list(double_backticks(tree)) == ["the module", "f"]


def test_ruff_finds_nothing_and_keeps_lines_short():
    with (ROOT / "pyproject.toml").open("rb") as file:
        ruff = tomllib.load(file)["tool"]["ruff"]
    assert ruff["line-length"] == 88 and "E" in ruff["lint"]["select"]
    assert not {"ignore", "extend-ignore", "per-file-ignores"} & set(ruff["lint"])
    for command in (
        ["check", "--no-cache", "--output-format=concise"],
        ["format", "--check", "--no-cache"],
    ):
        told = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stdout


def test_long_lines_cannot_hide_behind_a_remark():
    """`noqa: E501` is for nobody; other remarks name the one rule they break."""
    for path in [*modules(), *modules("tests"), ROOT / "conftest.py"]:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if remark := re.search(r"#\s*no" r"qa(.*)", line):
                assert re.match(r": [A-Z]\d+", remark[1]) and "E501" not in remark[1]


def readme_tree():
    """Return the fenced block of the README that draws the tree."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    return next(
        block for block in blocks if "minillama/" in block and "Makefile" in block
    )


def test_the_readmes_tree_lists_what_exists():
    tree = readme_tree()
    there = [path.name for path in modules() if path.name != "__init__.py"]
    there = [re.sub(r"^lesson_\d.*", "lesson_*.py", name) for name in there]
    there += [
        name
        for name in (
            "Makefile",
            "LICENSE",
            "CITATION.cff",
            "requirements.txt",
            "pyproject.toml",
            "conftest.py",
        )
    ]
    there += ["notebooks/", "tests/", "course/", ".ci/run"]
    assert [
        name for name in there if not re.search(rf"(?<![\w.]){re.escape(name)}", tree)
    ] == []


@pytest.mark.parametrize("page", ["README.md", "notebooks/README.md"])
def test_every_link_of_a_readme_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert links
    missing = [x for x in links if not ((ROOT / page).parent / x).exists()]
    assert not missing


def test_the_readmes_tree_lists_nothing_else():
    names = re.findall(r"(?<![\w<>*.])\w+\.(?:py|toml|txt|cfg)\b", readme_tree())
    exist = {path.name for path in text_files()}
    assert [name for name in names if name not in exist] == []
