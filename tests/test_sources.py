"""Which source texts a result depends on, in toy packages and in the package itself."""

import functools
import inspect
import linecache
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field

import pytest
import torch

import minillama
from minillama import sources, stages, store, world
from minillama.contracts import expects
from minillama.sources import Sources

# ------------------------------------------------------------------- texts of a package

CONTRACTS = """
import functools

WORDS = {"int": int}


def expects(*lines):
    def decorate(function):
        return function
    return decorate


def unused():
    pass
"""
WORLD = """
'''A toy world.'''
from dataclasses import dataclass

TASKS = {"egg": 4}
OTHER = 5
STRENGTHS = ["weak"]
STRENGTHS.append("strong")


@dataclass
class Style:
    full: float = 0.5

    def rate(self):
        return scale(self.full)


SFT_STYLE = Style(0.25)


def scale(x):
    return x * TASKS["egg"]


def write_answer(rng, style):
    return style.rate()


def unrelated():
    return OTHER
"""
STAGES = """
from toys import world
from toys import world as earth
from toys.contracts import expects
from .world import SFT_STYLE, Style as S
import toys.world
import toys.world as globe
import torch, math


def plain():
    return 1


def by_module():
    return world.scale(2)


def by_other_name():
    return earth.scale(2)


def by_dotted_path():
    return toys.world.scale(2)


def by_import_as():
    return globe.scale(2)


def by_import_inside():
    from toys.world import scale as s
    return s(2)


def by_module_import_inside():
    import toys.world as w
    return w.scale(2)


def by_class_method():
    return S()


def by_constant():
    return SFT_STYLE


def by_default(x=world.TASKS):
    return x


@expects("x: int")
def by_contract(x):
    return x


@math.floor
@world.unrelated
def by_second_decorator():
    pass


class Base(S):
    pass


def by_base_class():
    return Base


def by_nested_function():
    def inner():
        return [world.scale(i) for i in range(3)]
    return inner


def by_annotation(x: world.Style):
    return x


def by_lambda():
    return lambda: f"{world.scale(1)}"


def by_whole_module(name):
    return getattr(world, name)


def by_itself():
    return by_other_function()


def by_other_function():
    return by_itself() or by_module()
"""
TOYS = {"contracts": CONTRACTS, "world": WORLD, "stages": STAGES, "__init__": ""}


def reached(name, module="stages", **changed):
    return Sources({**TOYS, **changed}, "toys").reach([(module, name)])


def names(name, module="stages"):
    places = reached(name, module)
    return {".".join(place) for place in places if place[1] not in ("", "STRENGTHS")}


def test_a_definition_alone_reaches_itself():
    assert reached("plain") == {
        ("stages", "plain"): "def plain():\n    return 1",
        ("stages", ""): "",
    }


@pytest.mark.parametrize(
    "name",
    [
        "by_module",
        "by_other_name",
        "by_dotted_path",
        "by_import_as",
        "by_import_inside",
        "by_module_import_inside",
        "by_nested_function",
        "by_lambda",
    ],
)
def test_every_way_to_name_a_function_of_another_module(name):
    assert names(name) == {f"stages.{name}", "world.scale", "world.TASKS"}


@pytest.mark.parametrize(
    "name, more",
    [
        ("by_class_method", {"world.Style", "world.scale", "world.TASKS"}),
        ("by_annotation", {"world.Style", "world.scale", "world.TASKS"}),
        (
            "by_constant",
            {"world.SFT_STYLE", "world.Style", "world.scale", "world.TASKS"},
        ),
        ("by_default", {"world.TASKS"}),
        ("by_contract", {"contracts.expects"}),
        ("by_second_decorator", {"world.unrelated", "world.OTHER"}),
        (
            "by_base_class",
            {"stages.Base", "world.Style", "world.scale", "world.TASKS"},
        ),
        (
            "by_itself",
            {"stages.by_other_function", "stages.by_module"}
            | {"world.scale", "world.TASKS"},
        ),
        (
            "by_whole_module",
            {"world.TASKS", "world.OTHER", "world.Style"}
            | {"world.SFT_STYLE", "world.scale", "world.write_answer"}
            | {"world.unrelated"},
        ),
    ],
)
def test_what_else_a_definition_names(name, more):
    assert names(name) == {f"stages.{name}"} | more


def test_a_text_has_its_decorators_and_nothing_of_its_neighbours():
    found = reached("by_second_decorator")
    assert found["stages", "by_second_decorator"] == (
        "@math.floor\n@world.unrelated\ndef by_second_decorator():\n    pass"
    )


PLANTED = {  # builder -> an edit of a helper elsewhere that must be caught
    "by_module": ("world", 'x * TASKS["egg"]', 'x + TASKS["egg"]'),
    "by_class_method": ("world", "return scale(self.full)", "return self.full"),
    "by_constant": ("world", "Style(0.25)", "Style(0.75)"),
    "by_default": ("world", '{"egg": 4}', '{"egg": 3}'),
    "by_contract": ("contracts", "return function", "return None"),
    "by_whole_module": ("world", "OTHER = 5", "OTHER = 6"),
    "by_import_inside": ("world", '{"egg": 4}', '{"egg": 3}'),
    "by_nested_function": ("world", 'x * TASKS["egg"]', 'x + TASKS["egg"]'),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_edit_is_caught(name):
    module, old, new = PLANTED[name]
    assert TOYS[module].count(old) == 1
    assert reached(name, **{module: TOYS[module].replace(old, new)}) != reached(name)


@pytest.mark.parametrize(
    "module, old, new",
    [
        ("world", "return OTHER", "return 0"),
        ("world", "A toy world", "Another world"),
        ("contracts", "def unused():\n    pass", ""),
        ("stages", "def plain():\n    return 1", "def plain():\n    return 2"),
        ("world", "\n\n\ndef scale", "\n\n\n# A comment.\n\n\ndef scale"),
    ],
)
def test_an_unrelated_edit_changes_nothing(module, old, new):
    assert TOYS[module].count(old) == 1
    changed = {module: TOYS[module].replace(old, new)}
    for name in ("by_module", "by_class_method", "by_contract"):
        assert reached(name, **changed) == reached(name)


def test_a_statement_that_defines_nothing_counts_for_all_of_its_module():
    found = reached("scale", "world")
    assert found["world", ""] == 'STRENGTHS.append("strong")'
    assert ("world", "STRENGTHS") in found


def test_names_bound_in_unusual_places():
    text = """
if True:
    def early(): return helper()
else:
    late = 2
for step in range(3):
    pass
total = [inner for inner in (1, 2) if (last := inner)]
a, (b, *c) = 1, (2, 3)
n: int = 0
n += 1
def helper(): return n
async def waits(): return helper()
"""
    parts = Sources({"x": text}, "toys")
    assert parts.member("x", "late") == ("x", "late")
    assert parts.member("x", "step") == ("x", "step")
    assert parts.member("x", "last") == ("x", "last")
    assert parts.member("x", "c") == ("x", "c")
    assert parts.member("x", "inner") is None
    assert parts.reach([("x", "n")])["x", "n"] == "n: int = 0\nn += 1"
    assert {n for _, n in parts.reach([("x", "early")])} == {"early", "late"} | {
        "helper",
        "n",
        "",
    }
    assert {n for _, n in parts.reach([("x", "waits")])} == {"waits", "helper", "n", ""}


def test_a_name_that_is_passed_on_is_found_where_it_is_defined():
    texts = {
        "a": "from toys.b import f\nfrom toys import f as g\nimport toys",
        "b": "from toys.c import f",
        "c": "def f(): return 1",
        "__init__": "from toys.c import f",
        "d": "from toys import a\ndef use(): return a.f()\ndef up(): return a.g()"
        "\ndef far(): return a.toys.c.f()\ndef none(): return a.missing()",
    }
    parts = Sources(texts, "toys")
    for name in ("use", "up", "far"):
        assert {p for p in parts.reach([("d", name)]) if p[1]} == {
            ("d", name),
            ("c", "f"),
        }
    assert {p for p in parts.reach([("d", "none")]) if p[1]} == {("d", "none")}


def test_other_packages_are_no_business_of_this_one():
    texts = {"a": "import torch\nfrom toysaurus import f\ndef g(): return torch.f(f)"}
    assert {p for p in Sources(texts, "toys").reach([("a", "g")])} == {
        ("a", "g"),
        ("a", ""),
    }


# ----------------------------------------------------------------------- code in memory


def labels(*roots):
    found = sources.texts_behind(roots, lambda value, name: (repr(value), set()))
    return {name for name, _ in found}


def told(*roots):
    return dict(
        sources.texts_behind(
            roots, lambda x, name: (store.content(x, name), store.code_in(x))
        )
    )


PACE = 3
helper_of_lambda = [1, 2]


class Own:
    """A user's own class, with a method, a property and a static method."""

    @functools.cache  # noqa: B019
    def score(self):
        return world.sigmoid(PACE)

    @property
    def prompts(self):
        return world.training_prompts()

    @staticmethod
    def find():
        return world.find_prompt("x")


class Child(Own):
    pass


def own_list():
    return [PACE]


@dataclass
class Record:
    """A dataclass: what its decorator makes has no text of its own."""

    values: list = field(default_factory=own_list)
    pace: int = PACE

    @expects("x: int")
    def rated(self, x):
        return world.sigmoid(x)


def own_helper(x=helper_of_lambda, *, y=PACE):
    return x


def own_builder():
    def inner():
        return own_helper() + torch.ones(1)

    return inner() + PACE + len([])


@torch.no_grad()
def own_decorated():
    return own_helper()


@functools.lru_cache
def own_cached():
    return own_helper()


def own_user_of_wrapped():
    return own_decorated() + own_cached()


def own_user_of_a_module():
    return minillama.world.normalise("x")


def own_user_of_a_whole_module(name):
    return getattr(world, name)


def test_a_users_function_reaches_her_own_helpers_and_constants():
    found = told(own_builder)
    here = __name__
    assert found.keys() == {
        f"{here}.own_builder",
        f"{here}.own_helper",
        f"PACE in {here}.own_builder",
        f"default 0 in {here}.own_helper",
        f"default of y in {here}.own_helper",
    }
    assert found[f"PACE in {here}.own_builder"] == 3
    assert found[f"{here}.own_helper"] == inspect.getsource(own_helper)


def test_a_users_class_reaches_what_its_methods_use():
    found = labels(Child)
    assert {f"{__name__}.Child", f"{__name__}.Own"} <= found
    assert {"minillama.world.sigmoid", "minillama.world.TASKS"} <= found
    assert f"PACE in {__name__}.Own" in found
    assert {"minillama.world.find_prompt", "minillama.world.PHRASINGS"} <= found


def test_a_users_dataclass_reaches_defaults_decorators_and_methods():
    found = told(Record)
    assert {f"{__name__}.Record", f"{__name__}.own_list"} <= found.keys()
    assert found[f"PACE in {__name__}.Record"] == 3
    assert {"minillama.world.sigmoid", "minillama.contracts.expects"} <= found.keys()


def test_wrapped_functions_are_looked_into():
    assert f"{__name__}.own_helper" in labels(own_decorated)
    assert f"{__name__}.own_helper" in labels(own_cached)
    found = labels(own_user_of_wrapped)
    assert {f"{__name__}.own_{x}" for x in ("decorated", "cached", "helper")} <= found


def test_a_users_attribute_of_a_module_is_followed():
    assert "minillama.world.normalise" in labels(own_user_of_a_module)
    found = labels(own_user_of_a_whole_module)
    assert {"minillama.world.bayes_ceiling", "minillama.world.safety"} <= found


def test_what_a_function_closes_over_counts():
    def outer(pace):
        def inner():
            return pace

        return inner

    assert told(outer(2)) != told(outer(3))
    assert told(outer(own_helper)) != told(outer(own_builder))


def test_a_module_as_a_whole():
    assert "minillama.world.bayes_ceiling" in labels(world)
    assert "minillama.world.bayes_ceiling" not in labels(world.sigmoid)


def test_python_and_torch_are_left_out():
    assert (
        labels(torch.sigmoid, len, inspect.getsource, torch.nn.Linear, torch) == set()
    )


def test_contracts_of_the_package_count_whoever_uses_them():
    for root in (stages.build_base, stages.Settings, store.key):
        assert "minillama.contracts.expects" in labels(root)


def test_a_users_own_module_counts_with_all_that_it_reaches(tmp_path, monkeypatch):
    (tmp_path / "my_helpers.py").write_text(
        "from minillama import world\nRATE = 2\n"
        "def rate(): return world.sigmoid(RATE)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_helpers

    def build():
        return my_helpers.rate()

    found = labels(build)
    assert {"my_helpers", "my_helpers.rate", "minillama.world.sigmoid"} <= found
    assert "RATE in my_helpers.rate" in found


BUILDERS = {
    "tokenizer": stages.build_tokenizer,
    "base": stages.build_base,
    "sft": stages.build_sft,
    "helpfulness": stages.build_helpfulness,
    "safety": stages.build_safety,
    "policy": stages.build_policy,
    "lesson_policy": stages.build_ppo,
    "lesson_reward_model": stages.fit_reward_model,
}


# A lesson's reward model starts from the SFT model and from groups that it is given.
FROM_THE_WORLD = set(BUILDERS) - {"lesson_reward_model"}


@functools.cache
def as_it_is(builder):
    return sources.OURS.reach([("stages", builder)])


def rebuilt_by(module, old, new):
    """The stages whose own code changes with an edit of a module of the package."""
    text = minillama.TEXTS[module]
    assert text.count(old) == 1, f"{text.count(old)} times {old!r} in {module}"
    edited = Sources({**minillama.TEXTS, module: text.replace(old, new)})
    found = set()
    for name, builder in BUILDERS.items():
        found_now = edited.reach([("stages", builder.__name__)])
        if found_now != as_it_is(builder.__name__):
            found.add(name)
    return found


@pytest.mark.parametrize(
    "module, old, new, expected",
    [
        ("world", '"Add two cups of water."', '"Add water."', FROM_THE_WORLD),
        ("gae", "def gae(", "def gae( ", {"policy", "lesson_policy"}),
        ("kl", "def kl_estimate(", "def kl_estimate( ", {"policy", "lesson_policy"}),
        (
            "preference_loss",
            "def pair_loss(",
            "def pair_loss( ",
            {"helpfulness", "safety", "lesson_reward_model"},
        ),
        (
            "reward_model",
            "class RewardModel(",
            "class RewardModel( ",
            # Through its judges, a lesson's policy too: see test_stages.
            {"helpfulness", "safety", "lesson_reward_model", "policy"},
        ),
        ("world", "def bayes_ceiling(", "def bayes_ceiling( ", set()),
        ("stages", "def default_settings(", "def default_settings( ", set()),
        ("stages", '"base": 80', '"base": 81', set()),
        ("stages", "corpus: int = 36_000", "corpus: int = 35_000", set()),
        ("pipeline", "def wins(", "def wins( ", set()),
    ],
)
def test_which_stages_an_edit_of_the_course_rebuilds(module, old, new, expected):
    assert rebuilt_by(module, old, new) == expected


def test_texts_are_those_of_the_first_import(tmp_path):
    """An edit after the import does not lend its text to the code that was imported."""
    package = tmp_path / "minillama"
    package.mkdir()
    for name, text in minillama.TEXTS.items():
        (package / f"{name}.py").write_text(text)
    program = """
        import sys
        from pathlib import Path
        from minillama import world
        path = Path(world.__file__)
        if "edit" in sys.argv:
            path.write_text(path.read_text().replace("def sigmoid(", "def sigmoid( "))
        from minillama import store
        print(path, store.key("x", {}, [world.sigmoid]))
    """

    def run(*arguments):
        command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        path, key = done.stdout.split()
        assert path == str(package / "world.py")
        return key

    first = run()
    assert run("edit") == first  # the old code, under the old text's key
    assert run() != first  # the new code


def test_a_class_of_a_cell_has_the_text_of_the_last_cell_that_defines_it(monkeypatch):
    """A dataclass has no method of its own from which its cell could be known."""
    for size in (1, 2):
        lines = ["@dataclass\n", "class InACell:\n", f"    size: int = {size}\n"]
        entry = (0, None, lines, f"cell {size}")
        monkeypatch.setitem(linecache.cache, f"cell {size}", entry)
        in_a_cell = type("InACell", (), {"__module__": "__main__"})
        expected = f"class InACell:\n    size: int = {size}"
        assert sources.text_of(in_a_cell) == expected
