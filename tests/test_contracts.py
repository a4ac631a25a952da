"""Contracts: every word passes good values and refuses bad ones, in words."""

import inspect
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from minillama.contracts import expects

ONE = torch.tensor([0.5, 0.25])
MASK = torch.tensor([[True, True, False], [False, True, True]])
NAN, INF = float("nan"), float("inf")


def taking(*lines):
    """A function f(x, y=None, n=3) under a contract."""

    @expects(*lines)
    def f(x, y=None, n=3):
        return x

    return f


class Thing:
    size = 4


GOOD = [
    ("x: float", ONE.half()),
    ("x: tensor", MASK),
    ("x: int64 (2,)", torch.tensor([3, 4])),
    ("x: bool (B, T)", MASK),
    ("x: number", 2),
    ("x: number", 2.5),
    ("x: int >= 0", 0),
    ("x: flag", False),
    ("x: text", ""),
    ("x: list (N,)", [1]),
    ("x: list", []),
    ("x: list of text", ["a", "b"]),
    ("x: list of Thing", (Thing(),)),
    ("x: lists of ids", [[1, 2], []]),
    ("x: lists of ids, none empty", [[1, 2], [0]]),
    ("x: function", len),
    ("x: None", None),
    ('x: "k1" or "k2"', "k2"),
    ("x: Thing", Thing()),
    ("x: Thing", type("Child", (Thing,), {})()),
    ("x: number or float (B,)", torch.ones(2)),
    ("x: float (..., D) or None", torch.ones(2, 3, 4)),
    ("x: float (..., D)", torch.ones(4)),
    ("x: finite float", torch.tensor([1e38, 3e38])),
    ("x: number in [0, 1]", 1),
    ("x: number in (0, 1]", 1e-9),
    ("x: float no NaN", torch.tensor([INF])),
    ("x: number > 0", INF),
    ("x: int at most n", 3),
    ("x: int a multiple of n", 6),
    ("x: int a multiple of 2 n", 12),
    ("x: int below n", 2),
    ("x: int64 below n", torch.tensor([0, 2])),
    ("x: lists of ids below n", [[0, 2], [1]]),
    ("x: list, increasing", [1, 2, 5]),
    ("x: float, increasing", torch.tensor([1.0, 2.0])),
    ("x: bool True somewhere", MASK),
    ("x: bool True in every row", MASK),
    ("x: bool (B, T), one run of True in every row", MASK),
]


@pytest.mark.parametrize("line, value", GOOD, ids=[line for line, _ in GOOD])
def test_what_a_contract_asks_for_passes_unchanged(line, value):
    assert taking(line)(value) is value


BAD = [
    ("x: float", [1.0], TypeError, "a float tensor, got a list"),
    ("x: float", MASK, TypeError, "a float tensor, got a tensor of bool (2, 3)"),
    ("x: int64", ONE, TypeError, "an int64 tensor, got a tensor of float32 (2,)"),
    ("x: bool", MASK.long(), TypeError, "a bool tensor, got a tensor of int64 (2, 3)"),
    ("x: tensor", 1.5, TypeError, "a tensor, got 1.5"),
    ("x: number", True, TypeError, "a number, got True"),
    ("x: number", "1", TypeError, "a number, got '1'"),
    ("x: int", 2.5, TypeError, "an int, got 2.5"),
    ("x: int", True, TypeError, "an int, got True"),
    ("x: flag", 1, TypeError, "True or False, got 1"),
    ("x: text", None, TypeError, "a string, got None"),
    ("x: list", "ab", TypeError, "a list, got 'ab'"),
    ("x: list of text", ["a", 1], TypeError, "a list of text, got a list"),
    ("x: lists of ids", [[1.5]], TypeError, "lists of ids, got a list"),
    ("x: lists of ids", [1], TypeError, "lists of ids, got a list"),
    ("x: lists of ids, none empty", [], ValueError, "got an empty one"),
    ("x: lists of ids, none empty", [[1], []], ValueError, "got an empty one"),
    ("x: lists of ids, none empty", [[1], [0, -2]], IndexError, "got -2"),
    ("x: function", 1, TypeError, "a function, got 1"),
    ("x: Thing", 1, TypeError, "a Thing, got 1"),
    ('x: "k1" or "k2"', "k3", ValueError, '"k1" or "k2", got \'k3\''),
    ('x: "k1" or "k2"', 3, TypeError, '"k1" or "k2", got 3'),
    ("x: float (B,)", torch.ones(2, 1), ValueError, "(B,), got shape (2, 1)"),
    ("x: float (B, T)", ONE, ValueError, "(B, T), got shape (2,)"),
    ("x: float (B, 1)", torch.ones(2, 2), ValueError, "(B, 1), got shape (2, 2)"),
    ("x: float (B,)", torch.ones(0), ValueError, "(B,), got shape (0,)"),
    ("x: float (..., D)", torch.ones(0, 2), ValueError, "got shape (0, 2)"),
    ("x: list (N,)", [], ValueError, "(N,), got 0 entries"),
    ("x: finite float", torch.tensor([1, NAN]), ValueError, "got nan at [1]"),
    ("x: finite float", torch.tensor([[1, -INF]]), ValueError, "got -inf at [0, 1]"),
    ("x: finite number", INF, ValueError, "a finite number, got inf"),
    ("x: float in [0, 1]", torch.tensor([0.5, 1.5]), ValueError, "got 1.5 at [1]"),
    ("x: float in [0, 1]", torch.tensor([NAN]), ValueError, "got nan at [0]"),
    ("x: float in [0, 1]", torch.tensor(-1.0), ValueError, "in [0, 1], got -1"),
    ("x: number in (0, 1]", 0, ValueError, "in (0, 1], got 0"),
    ("x: number in [0, 1)", 1, ValueError, "in [0, 1), got 1"),
    ("x: number in [0, 1]", NAN, ValueError, "got nan"),
    ("x: number >= 0", -1, ValueError, "a number >= 0, got -1"),
    ("x: number > 0", 0, ValueError, "a number > 0, got 0"),
    ("x: float no NaN", torch.tensor([INF, NAN]), ValueError, "got nan at [1]"),
    ("x: int at most n", 4, ValueError, "at most n, got 4, where n is 3"),
    ("x: int a multiple of n", 4, ValueError, "got 4, where n is 3"),
    ("x: int a multiple of 2 n", 9, ValueError, "got 9, where n is 3"),
    ("x: int below n", 3, IndexError, "below n, got 3, where n is 3"),
    ("x: int64 below n", torch.tensor([-1, 3]), IndexError, "got -1, where n is 3"),
    ("x: lists of ids below n", [[0], [7]], IndexError, "got 7, where n is 3"),
    ("x: list, increasing", [1, 1], ValueError, "increasing, got [1, 1]"),
    ("x: bool True somewhere", ~MASK & MASK, ValueError, "somewhere, got no True"),
    (
        "x: bool True in every row",
        torch.tensor([[True], [False]]),
        ValueError,
        "got no True in row 1",
    ),
    (
        "x: bool, one run of True in every row",
        torch.tensor([[True, True, True], [True, False, True]]),
        ValueError,
        "got 2 runs in row 1",
    ),
    (
        "x: bool, one run of True in every row",
        torch.tensor([[False, False]]),
        ValueError,
        "got 0 runs in row 0",
    ),
    ("x: tensor other than y", ONE, ValueError, "other than y, got the very same"),
]


@pytest.mark.parametrize("line, value, kind, words", BAD, ids=[x[0] for x in BAD])
def test_what_it_does_not_ask_for_is_refused_in_words(line, value, kind, words):
    with pytest.raises(kind) as error:
        taking(line)(value, ONE if "y" in line else None)
    assert type(error.value) is kind
    assert str(error.value).startswith("f: x must be ") or "other" in line
    assert words in str(error.value)


def test_one_letter_is_one_size_in_a_call_and_another_in_the_next():
    f = taking("x, y: float (B, T)")
    f(torch.ones(2, 3), torch.ones(2, 3))
    f(torch.ones(1, 5), torch.ones(1, 5))
    message = r"f: y must .* got shape \(2, 4\), with T = 3 as in x"
    with pytest.raises(ValueError, match=message):
        f(torch.ones(2, 3), torch.ones(2, 4))
    g = taking("x: float (..., D)", "y: float (...)")
    g(torch.ones(2, 3, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\.\.\. = \(2, 3\) as in x"):
        g(torch.ones(2, 3, 4), torch.ones(3, 2))


def test_a_demand_that_looks_at_another_argument_waits_until_that_one_is_sound():
    f = taking("x: float (B, T), finite where y", "y: bool (B, T) or None")
    bad = torch.tensor([[1.0, NAN]])
    f(bad, torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match=r"x must .* got nan at \[0, 1\]"):
        f(bad, torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match="x must .* got nan"):
        f(bad)  # no mask: all count
    with pytest.raises(TypeError, match="f: y must be a bool tensor"):
        f(bad, torch.ones(1, 2))
    huge = torch.full((1, 4), 3e38)  # finite, though its sum is not
    f(huge, huge > 0)
    g = taking("x: float (N,), at least 2 where y", "y: bool (N,) or None")
    g(ONE)
    with pytest.raises(ValueError, match="x must .* at least 2 where y, got 1"):
        g(ONE, torch.tensor([True, False]))


def test_paths_look_into_arguments():
    f = taking("x: int64 (N,) below y.config.size", "y: object")
    y = SimpleNamespace(config=SimpleNamespace(size=4))
    f(torch.tensor([3]), y)
    with pytest.raises(IndexError, match="got 4, where y.config.size is 4"):
        f(torch.tensor([4]), y)
    g = taking("x: int at most len(y)", "y: list")
    g(2, [7, 8])
    with pytest.raises(ValueError, match=r"got 3, where len\(y\) is 2"):
        g(3, [7, 8])


def test_defaults_and_keywords_are_held_to_it_and_python_says_what_is_missing():
    f = taking("x: number", "n: int")
    assert f(x=1, n=2) == 1
    with pytest.raises(TypeError, match="f: n must be an int, got 2.5"):
        f(1, n=2.5)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        f()
    with pytest.raises(TypeError, match="unexpected keyword"):
        f(1, m=2)


def test_results_are_held_to_it_too():
    @expects("x: float (B,)", "-> float (B,)")
    def shape_changes(x):
        return x[None]

    with pytest.raises(ValueError, match=r"shape_changes: the result must .*\(1, 2\)"):
        shape_changes(ONE)

    @expects("x: float (B,)", "-> float (B,)", "-> int64 (B,)")
    def two(x, as_index=True):
        return x, x.long() if as_index else x

    assert len(two(ONE)) == 2
    with pytest.raises(TypeError, match="two: the result must be an int64 tensor"):
        two(ONE, False)


def test_a_class_has_the_contract_of_its_constructor():
    @expects("size: int >= 1", "rate: number in [0, 1]")
    @dataclass(frozen=True)
    class Toy:
        """A toy."""

        size: int
        rate: float = 0.5

    assert Toy(2).rate == 0.5 and isinstance(Toy, type)
    with pytest.raises(ValueError, match="^Toy: size must be an int >= 1, got 0"):
        Toy(0)
    with pytest.raises(ValueError, match="^Toy: rate must"):
        replace(Toy(2), rate=2.0)
    assert "A toy." in Toy.__doc__ and "rate: number in [0, 1]" in Toy.__doc__


def test_a_module_that_is_called_goes_by_its_class_and_a_method_by_both():
    class Scale(torch.nn.Module):
        @expects("x: float (B,)")
        def forward(self, x):
            return 2 * x

        @expects("by: number > 0")
        def grow(self, by):
            return by

    assert Scale()(ONE).tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match="^Scale: x must"):
        Scale()(torch.ones(1, 1))
    with pytest.raises(ValueError, match="^Scale.grow: by must"):
        Scale().grow(0)


def test_a_decorated_function_keeps_its_name_its_signature_and_its_docstring():
    @expects("x: number")
    def half(x, *, exact=True):
        """Half of `x`."""
        return x / 2

    assert half.__name__ == "half" and list(inspect.signature(half).parameters) == [
        "x",
        "exact",
    ]
    assert half.__doc__ == "Half of `x`.\n\nContract:\n    x: number"
    assert half.__wrapped__(2) == 1


@pytest.mark.parametrize(
    "line, words",
    [
        ("z: number", "half has no argument 'z'"),
        ("x: number around 3", "unknown words: 'around 3'"),
        ("x: float (B,) in [0 1]", "unknown words"),
    ],
)
def test_a_contract_that_cannot_be_read_is_refused_where_it_is_written(line, words):
    with pytest.raises(ValueError, match=words):

        @expects(line)
        def half(x):
            return x


def test_gradients_pass_and_tensors_without_data_are_not_looked_into():
    f = taking("x: finite float (N,) in [0, 1]")
    x = ONE.clone().requires_grad_()
    f(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]
    taking("x: float (N,) in [0, 1]")(torch.ones(3, device="meta"))
