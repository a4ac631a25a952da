"""Contracts: what a function expects of its arguments, said once above its body and checked at every call.

    @expects(
        "safety, helpfulness: float (B,) in [0, 1]",
        "is_safety_prompt: bool (B,)",
        "threshold: number in [0, 1]",
        "-> float (B,)",
    )
    def select_reward(safety, helpfulness, is_safety_prompt, threshold=0.15):

A line names arguments and says in words what they must be; a line that begins with an arrow speaks of the
result (several such lines: of the parts of a tuple). Commas join demands, "or" joins alternatives.

    float, int64, bool, tensor   a tensor of this dtype (tensor: any)
    number, int, flag, text      a real number, an integer, True or False, a string
    list, lists of ids           a list or tuple; a list of non-empty lists of ids that are at least 0
    function, None, "k1"         something that can be called, nothing, exactly this string
    Llama, Generator, …          an instance of a class of this name
    (B, T), (B, 1), (..., D)     a shape: one letter is one size throughout a call, `...` any leading sizes;
                                 no size may be 0; a list has the shape (N,)
    finite, finite where M, at least 2 where M, no NaN, in [0, 1), >= 0, > 0, at most X, below X, increasing,
    True somewhere, True in every row, one run of True in every row, a multiple of X, other than X

X and M name another argument or a field of one (`model.config.vocab_size`), `len(x)` is a length. What is
wrong raises TypeError for a wrong type or dtype, IndexError for an id that is not `below` the size of its
vocabulary, ValueError for the rest; the message names the function, the argument, the contract and what came.

On a class (a dataclass, say) the contract is that of its constructor. Left out: contracts between two
arguments that have no word here; the body of a function checks those.
"""

import functools
import inspect
import math
import numbers
import re

import torch
from torch import Tensor

DTYPES = {"float": None, "tensor": None, "int64": torch.int64, "bool": torch.bool}
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf)"


class Broken(Exception):
    """A contract is not kept: the kind of error that the caller will see, and what came instead."""

    def __init__(self, kind, got):
        super().__init__(got)
        self.kind, self.got = kind, got


def expects(*lines):
    """Decorate a function or a class with a contract; the module's docstring has the words.

    Raises ValueError while decorating for a word that is not known or an argument that does not exist.
    """

    def decorate(target):
        function = target.__init__ if isinstance(target, type) else target
        name = re.sub(
            r"(.*<locals>\.)|(\.(forward|__init__|__call__)$)", "", target.__qualname__
        )
        checked = _checked(function, name, lines)
        told = "\n        ".join(lines)
        target.__doc__ = (
            f"{target.__doc__ or name}\n    Contract:\n        {told}\n    "
        )
        checked.__doc__ = target.__doc__
        if function is target:
            return checked
        target.__init__ = checked
        return target

    return decorate


def _checked(function, name, lines):
    """`function`, with its arguments and its result held against the lines of a contract."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    defaults = {
        p.name: p.default for p in parameters.values() if p.default is not p.empty
    }
    arguments, results = [], []
    for line in lines:
        subjects, words = re.fullmatch(r"(->|[\w, ]+:) (.+)", line).groups()
        contract = (
            words,
            [
                _alternative(part)
                for part in re.split(r" or (?=[^)\]]*(?:[(\[]|$))", words)
            ],
        )
        if subjects == "->":
            results.append(contract)
        for subject in re.findall(r"\w+", subjects):
            if subject not in names:
                raise ValueError(f"expects: {name} has no argument {subject!r}")
            arguments.append((subject, *contract))

    @functools.wraps(function)
    def checked(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
        sizes = {}
        present = [
            argument for argument in arguments if argument[0] in given
        ]  # Python itself says what is missing
        for question in (_itself, _beside_the_others):
            for subject, words, alternatives in present:
                _hold(
                    question,
                    name,
                    subject,
                    words,
                    alternatives,
                    given[subject],
                    given,
                    sizes,
                )
        result = function(*args, **kwargs)
        parts = (result,) if len(results) == 1 else result
        for (words, alternatives), part in zip(
            results, parts if results else (), strict=True
        ):
            _hold(_itself, name, "the result", words, alternatives, part, given, sizes)
        return result

    return checked


def _hold(question, name, subject, words, alternatives, value, given, sizes):
    """Hold one value against its contract; raises what the caller of `name` is to see."""
    try:
        question(alternatives, value, subject, given, sizes)
    except Broken as broken:
        raise broken.kind(
            f"{name}: {subject} must be {words}, got {broken.got}"
        ) from None


def _itself(alternatives, value, subject, given, sizes):
    """Is the value of one of the kinds, and does it meet the demands on that kind?"""
    for is_kind, demands, _ in alternatives:
        if is_kind(value):
            for ask in demands:
                ask(value, subject, given, sizes)
            return
    of_wrong_value = isinstance(value, str) and any(
        is_kind.__name__ == "is_text" for is_kind, _, _ in alternatives
    )
    raise Broken(ValueError if of_wrong_value else TypeError, _type_of(value))


def _beside_the_others(alternatives, value, subject, given, sizes):
    """Does the value meet the demands that look at other arguments, which are known to be sound by now?"""
    for is_kind, _, demands in alternatives:
        if is_kind(value):
            for ask in demands:
                ask(value, subject, given, sizes)
            return


def _type_of(value):
    """A value's type in words: its dtype for a tensor, the value itself where it is short."""
    if isinstance(value, Tensor):
        return f"dtype {value.dtype}".replace("torch.", "")
    if isinstance(value, str | numbers.Number | None):
        return repr(value)
    return f"a {type(value).__name__}"


# ---------------------------------------------------------------------------------------------------------
# From words to questions


def _alternative(words):
    """One alternative, such as "finite float (B,) >= 0": (is it of this kind?, demands on it, demands beside others)."""
    text, demands = words.strip(), []
    if text.startswith("finite "):
        text, demands = (
            text.removeprefix("finite "),
            [_between("(", "-inf", "inf", ")")],
        )
    kind = re.match(r'lists of ids|\w+|"[^"]*"', text)[0]
    text = text[len(kind) :].strip()
    if shape := re.match(r"\([^)]*\)", text):
        demands.insert(0, _shape(re.findall(r"\.\.\.|\w+", shape[0])))
        text = text[len(shape[0]) :]
    for pattern, make in DEMANDS:
        while found := re.match(rf"[, ]*{pattern}", text):
            demands.append(make(*found.groups()))
            text = text[len(found[0]) :]
    if text.strip(", "):
        raise ValueError(f"expects: {words!r} has unknown words: {text!r}")
    return (
        _is_kind(kind),
        [ask for ask in demands if not ask.late],
        [ask for ask in demands if ask.late],
    )


def _is_kind(kind):
    """A function that says whether a value is of the kind that a contract's first word names."""
    if kind in DTYPES:
        dtype = DTYPES[kind]
        if kind == "float":
            return lambda value: isinstance(value, Tensor) and value.is_floating_point()
        return lambda value: (
            isinstance(value, Tensor) and (dtype is None or value.dtype == dtype)
        )
    if kind.startswith('"'):

        def is_text(value):
            return value == kind.strip('"')

        return is_text
    return {
        "number": lambda value: (
            isinstance(value, numbers.Real) and not isinstance(value, bool)
        ),
        "int": lambda value: (
            isinstance(value, numbers.Integral) and not isinstance(value, bool)
        ),
        "flag": lambda value: isinstance(value, bool),
        "text": lambda value: isinstance(value, str),
        "list": lambda value: isinstance(value, list | tuple),
        "lists of ids": _is_lists_of_ids,
        "function": callable,
        "None": lambda value: value is None,
    }.get(kind) or (lambda value: any(c.__name__ == kind for c in type(value).__mro__))


def _is_lists_of_ids(value):
    return isinstance(value, list | tuple) and all(
        isinstance(row, list | tuple)
        and all(isinstance(i, int) and not isinstance(i, bool) for i in row)
        for row in value
    )


def demand(late=False):
    """Mark a maker of demands; late ones look at other arguments, which are checked before."""

    def mark(make):
        @functools.wraps(make)
        def made(*words):
            ask = make(*words)
            ask.late = late
            return ask

        return made

    return mark


@demand()
def _shape(letters):
    """The sizes that a tensor or a list has, equal wherever the same letter stands, and none of them 0."""
    leading = letters[:1] == ["..."]
    letters = letters[1:] if leading else letters

    def ask(value, subject, given, sizes):
        shape = tuple(value.shape) if isinstance(value, Tensor) else (len(value),)
        front = shape[: len(shape) - len(letters)]
        if len(shape) < len(letters) or front and not leading or 0 in shape:
            raise Broken(ValueError, _shape_of(value))
        for letter, size in [
            *zip(letters, shape[len(front) :], strict=True),
            *([("...", front)] if leading else []),
        ]:
            wanted, source = (
                (int(letter), None)
                if letter.isdigit()
                else sizes.setdefault(letter, (size, subject))
            )
            if size != wanted:
                of = f", with {letter} = {wanted} as in {source}" if source else ""
                raise Broken(ValueError, f"{_shape_of(value)}{of}")

    return ask


def _shape_of(value):
    return (
        f"shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else f"{len(value)} entries"
    )


def _extremes(value):
    """Lowest and highest entry of a tensor or of a number; NaN wherever one is in it."""
    if not isinstance(value, Tensor):
        return value, value
    if value.is_meta or value.numel() == 0:
        return 0, 0
    low, high = value.detach().aminmax()
    return low.item(), high.item()


def _first(value, wrong):
    """The first wrong entry and where it stands, in words."""
    if not isinstance(value, Tensor):
        return repr(value)
    at = wrong(value.detach()).nonzero()[0].tolist()
    return f"{value[tuple(at)].item():.6g} at {at}" if at else f"{value.item():.6g}"


@demand(late=True)
def _finite(mask):
    """Neither inf nor NaN where the argument `mask` is True, or anywhere if that is None."""

    def ask(value, subject, given, sizes):
        if given.get(mask) is not None:
            value = torch.where(given[mask], value, 0.0)
        if (
            not math.isfinite(value.detach().sum().item())
            and not value.isfinite().all()
        ):  # a sum may overflow
            raise Broken(ValueError, _first(value, lambda x: ~x.isfinite()))

    return ask


@demand(late=True)
def _at_least_where(least, mask):
    """How many entries must count."""

    def ask(value, subject, given, sizes):
        count = value.numel() if given.get(mask) is None else int(given[mask].sum())
        if count < int(least):
            raise Broken(ValueError, str(count))

    return ask


@demand()
def _no_nan():
    def ask(value, subject, given, sizes):
        if math.isnan(_extremes(value)[0]):
            raise Broken(ValueError, _first(value, torch.isnan))

    return ask


@demand()
def _between(left, low, high, right):
    """Every entry in an interval; NaN is in none."""
    low, high = float(low), float(high)

    def inside(x):
        return (x > low if left == "(" else x >= low) & (
            x < high if right == ")" else x <= high
        )

    def ask(value, subject, given, sizes):
        if not all(inside(extreme) for extreme in _extremes(value)):
            raise Broken(ValueError, _first(value, lambda x: ~inside(x)))

    return ask


def _look_up(path, given):
    """The value of `len(x)` or of `model.config.vocab_size`, None where the argument was not given."""
    name, *fields = re.sub(r"len\((.*)\)", r"\1", path).split(".")
    value = given.get(name)
    for field in fields:
        value = getattr(value, field)
    return len(value) if path.startswith("len(") else value


@demand(late=True)
def _at_most(path):
    def ask(value, subject, given, sizes):
        if not value <= _look_up(path, given):
            raise Broken(ValueError, f"{value!r}, where it is {_look_up(path, given)}")

    return ask


@demand(late=True)
def _below(path):
    """Token ids from 0 up to the size of a vocabulary, in a tensor, in lists or alone: else IndexError."""

    def ask(value, subject, given, sizes):
        size = _look_up(path, given)
        entries = (
            [i for row in value for i in row]
            if isinstance(value, list | tuple)
            else None
        )
        low, high = (
            _extremes(value) if entries is None else (min(entries), max(entries))
        )
        if not (0 <= low and high < size):
            raise Broken(IndexError, f"{low if low < 0 else high}, where it is {size}")

    return ask


@demand(late=True)
def _multiple_of(factor, path):
    def ask(value, subject, given, sizes):
        if value % (int(factor or 1) * _look_up(path, given)):
            raise Broken(
                ValueError, f"{value}, where {path} is {_look_up(path, given)}"
            )

    return ask


@demand(late=True)
def _other_than(path):
    def ask(value, subject, given, sizes):
        if value is _look_up(path, given):
            raise Broken(ValueError, "the very same")

    return ask


@demand()
def _increasing():
    def ask(value, subject, given, sizes):
        if not all(a < b for a, b in zip(value, value[1:], strict=False)):
            raise Broken(
                ValueError,
                f"{value if isinstance(value, list | tuple) else value.tolist()}",
            )

    return ask


@demand()
def _not_empty_rows():
    def ask(value, subject, given, sizes):
        if not value or not all(value):
            raise Broken(ValueError, "an empty one")
        if min(min(row) for row in value) < 0:
            raise Broken(IndexError, f"{min(min(row) for row in value)}")

    return ask


@demand()
def _true(where):
    """How often True must stand in a boolean tensor: somewhere, in every row, in one run in every row."""

    def ask(value, subject, given, sizes):
        if where == "True somewhere":
            if not value.any():
                raise Broken(ValueError, "none")
            return
        if where == "True in every row":
            good, what = value.any(-1), "no True"
        else:
            runs = (value[..., 1:] > value[..., :-1]).sum(-1) + value[..., 0]
            good, what = runs == 1, "another number of runs"
        if not good.all():
            raise Broken(ValueError, f"{what} in row {int(good.int().argmin())}")

    return ask


DEMANDS = [
    (r"finite where (\w+)", _finite),
    (r"at least (\d+) where (\w+)", _at_least_where),
    (r"no NaN", _no_nan),
    (rf"in ([\[(])({NUMBER}), ({NUMBER})([\])])", _between),
    (rf">= ({NUMBER})", lambda low: _between("[", low, "inf", "]")),
    (rf"> ({NUMBER})", lambda low: _between("(", low, "inf", "]")),
    (r"at most ([\w.()]+)", _at_most),
    (r"below ([\w.]+)", _below),
    (r"a multiple of (?:(\d+) )?([\w.]+)", _multiple_of),
    (r"other than ([\w.]+)", _other_than),
    (r"increasing", _increasing),
    (r"none empty", _not_empty_rows),
    (r"(one run of True in every row|True in every row|True somewhere)", _true),
]
