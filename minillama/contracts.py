"""Contracts: what a function expects, said once above its body, checked at each call.

    @expects(
        "safety, helpfulness: float (B,) in [0, 1]",
        "is_safety_prompt: bool (B,)",
        "threshold: number in [0, 1]",
        "-> float (B,)",
    )
    def select_reward(safety, helpfulness, is_safety_prompt, threshold=0.15):

A line names arguments and says in words what they must be. A line that begins with an
arrow speaks of the result; several of them, of the parts of a tuple. "or" joins
alternatives. The words, in this order:

    float, int64, bool, tensor   a tensor of this dtype (tensor: of any)
    number, int, flag, text      a real number, an integer, True or False, a string
    list, list of X, lists of X  a list or tuple; of items X, of lists of items X; X is
                                 one of the words above or below, or ids (integers)
    function, None, "k1"         something to call, nothing, exactly this string
    Llama, Generator, …          an instance of a class of this name
    (B, T), (B, 1), (..., D)     its shape: a letter is one size throughout a call,
                                 `...` any leading sizes; no size is 0; a list has (N,)
    finite (before the kind), finite where M, no NaN, in [0, 1), >= 0, > 0,
    at most X, below X, at least 2 where M, increasing, none empty, True somewhere,
    True in every row, one run of True in every row, a multiple of X, other than X

X and M name another argument or a field of one (`model.config.vocab_size`); `len(x)`
is a length. What is wrong raises TypeError for a type or dtype, IndexError for an id
that is not `below` the size of its vocabulary, ValueError for the rest. The message
names the function, the argument, the contract and what came:

    select_reward: safety must be a float tensor (B,) in [0, 1], got 1.5 at [3]

On a class the contract is that of its constructor. Left out: relations between two
arguments that have no word here; the body checks those in one line. Under
`torch.compile` contracts are not checked.
"""

import functools
import inspect
import math
import numbers
import re

import torch
from torch import Tensor


class Broken(Exception):
    """A demand that is not met: the kind of error to raise, and what came."""

    def __init__(self, kind, got):
        super().__init__(got)
        self.kind, self.got = kind, got


def expects(*lines):
    """Decorate a function or a class with a contract in the words of this module.

    Raises ValueError, while decorating, for unknown words or an unknown argument.
    """

    def decorate(target):
        is_class = isinstance(target, type)
        name = re.sub(r".*<locals>\.|\.(forward|__call__)$", "", target.__qualname__)
        checked = _checked(target.__init__ if is_class else target, name, lines)
        contract = "\n".join(f"    {line}" for line in lines)
        doc = f"{inspect.cleandoc(target.__doc__ or name)}\n\nContract:\n{contract}"
        if is_class:
            target.__init__, target.__doc__ = checked, doc
            return target
        checked.__doc__ = doc
        return checked

    return decorate


def _checked(function, name, lines):
    """`function` with its arguments and its result held against a contract."""
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    defaults = {
        x.name: x.default for x in parameters.values() if x.default is not x.empty
    }
    arguments, results = [], []
    for line in lines:
        subjects, words = re.fullmatch(r"(->|[\w, ]+:) (.+)", line).groups()
        contract = _read(words)
        if subjects == "->":
            results.append(("the result", *contract))
        for subject in re.findall(r"\w+", subjects):
            if subject not in names:
                raise ValueError(f"expects: {name} has no argument {subject!r}")
            arguments.append((subject, *contract))

    def hold(contracts, given, sizes):
        """All that looks at one value alone comes first, then what compares two."""
        chosen = []
        try:
            for subject, words, alternatives in contracts:
                if subject in given:  # Python itself says which argument is missing
                    value = given[subject]
                    alternative = _alternative_for(value, alternatives)
                    chosen.append((subject, words, value, alternative))
                    for ask in alternative.alone:
                        ask(value, subject, given, sizes)
            for subject, words, value, alternative in chosen:  # noqa: B007
                for ask in alternative.beside:
                    ask(value, subject, given, sizes)
        except Broken as broken:
            message = f"{name}: {subject} must be {words}, got {broken.got}"
            raise broken.kind(message) from None

    @functools.wraps(function)
    def checked(*args, **kwargs):
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        given, sizes = {**defaults, **dict(zip(names, args, strict=False))}, {}
        given.update(kwargs)
        hold(arguments, given, sizes)
        result = function(*args, **kwargs)
        for contract, part in zip(results, _parts(result, results), strict=True):
            hold([contract], given | {"the result": part}, sizes)
        return result

    return checked


def _parts(result, results):
    """The parts of a result that a contract speaks of: none, all, or a tuple's."""
    return result if len(results) > 1 else (result,) if results else ()


# --------------------------------------------------------------------------------------
# From words to questions


class Alternative:
    """One alternative: is a value of its kind, and what is asked of it."""

    def __init__(self, words):
        text = words.removeprefix("finite ")
        kind = re.match(r'lists? of \w+|\w+|"[^"]*"', text)[0]
        text = text[len(kind) :].strip()
        self.is_kind, self.is_text = _is_kind(kind), kind.startswith('"')
        self.alone, self.beside = [], []
        self.words = f"{_in_words(kind)} {text}".strip()
        if text.startswith("("):
            shape, text = re.fullmatch(r"(\([^)]*\))(.*)", text).groups()
            self.alone.append(_shape(re.findall(r"\.\.\.|\w+", shape)))
        if words.startswith("finite "):
            self.words = self.words.replace(" ", " finite ", 1)
            self.alone.append(_between("(", "-inf", "inf", ")"))
        while text := text.strip(", "):
            for pattern, make, asks in DEMANDS:
                if found := re.match(pattern, text):
                    getattr(self, asks).append(make(*found.groups()))
                    text = text[len(found[0]) :]
                    break
            else:
                raise ValueError(f"expects: {words!r} has unknown words: {text!r}")


def _read(words):
    """A contract in a caller's words, and its alternatives."""
    parts = re.split(r" or (?=[^)\]]*(?:[(\[]|$))", words)
    alternatives = [Alternative(part.strip()) for part in parts]
    return " or ".join(alternative.words for alternative in alternatives), alternatives


def _alternative_for(value, alternatives):
    """The first alternative whose kind the value is of; TypeError to be, if none is."""
    for alternative in alternatives:
        if alternative.is_kind(value):
            return alternative
    text_wanted = any(alternative.is_text for alternative in alternatives)
    kind = ValueError if text_wanted and isinstance(value, str) else TypeError
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        raise Broken(kind, f"a tensor of {dtype} {tuple(value.shape)}")
    short = isinstance(value, str | numbers.Number | None)
    raise Broken(kind, repr(value) if short else f"a {type(value).__name__}")


KINDS = {  # the first word of an alternative: what it is in a message, and its test
    "float": (
        "a float tensor",
        lambda x: isinstance(x, Tensor) and x.is_floating_point(),
    ),
    "int64": (
        "an int64 tensor",
        lambda x: isinstance(x, Tensor) and x.dtype == torch.int64,
    ),
    "bool": (
        "a bool tensor",
        lambda x: isinstance(x, Tensor) and x.dtype == torch.bool,
    ),
    "tensor": ("a tensor", lambda x: isinstance(x, Tensor)),
    "number": (
        "a number",
        lambda x: isinstance(x, numbers.Real) and not isinstance(x, bool),
    ),
    "int": (
        "an int",
        lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool),
    ),
    "ids": (
        "ids",
        lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool),
    ),
    "flag": ("True or False", lambda x: isinstance(x, bool)),
    "text": ("a string", lambda x: isinstance(x, str)),
    "list": ("a list", lambda x: isinstance(x, list | tuple)),
    "function": ("a function", callable),
    "None": ("None", lambda x: x is None),
}


def _in_words(kind):
    """A kind as a message says it."""
    if kind.startswith('"') or " of " in kind:
        return kind if kind.startswith('"') else f"a {kind}".replace("a lists", "lists")
    return KINDS[kind][0] if kind in KINDS else f"a {kind}"


def _is_kind(kind):
    """The test for a kind: a word, a quoted string, a list, a class by its name."""
    if kind.startswith('"'):
        return lambda x: isinstance(x, str) and x == kind.strip('"')
    if " of " in kind:
        outer, inner = kind.split(" of ")
        is_item = _is_kind(inner if outer == "list" else f"list of {inner}")
        return lambda x: isinstance(x, list | tuple) and all(map(is_item, x))
    if kind in KINDS:
        return KINDS[kind][1]
    return lambda x: any(base.__name__ == kind for base in type(x).__mro__)


# --------------------------------------------------------------------------------------
# Demands: each makes a question ask(value, subject, given, sizes) that may raise Broken


def _shape(letters):
    """Sizes of a tensor or list: equal where the same letter stands, none of them 0."""
    leading = letters[0] == "..." if letters else False
    letters = letters[leading:]

    def ask(value, subject, given, sizes):
        is_tensor = isinstance(value, Tensor)
        shape = tuple(value.shape) if is_tensor else (len(value),)
        got = f"shape {shape}" if is_tensor else f"{len(value)} entries"
        front = len(shape) - len(letters)
        if front < 0 or front and not leading or 0 in shape:
            raise Broken(ValueError, got)
        found = list(zip(letters, shape[front:], strict=True))
        for letter, size in [("...", shape[:front]), *found] if leading else found:
            fixed = (int(letter), None) if letter.isdigit() else (size, subject)
            wanted, source = (
                fixed if fixed[1] is None else sizes.setdefault(letter, fixed)
            )
            if size != wanted:
                where = f", with {letter} = {wanted} as in {source}" if source else ""
                raise Broken(ValueError, got + where)

    return ask


def _extremes(value):
    """Lowest and highest entry of a tensor or a number; NaN where there is one."""
    if not isinstance(value, Tensor):
        return value, value
    if value.is_meta or value.numel() == 0:
        return 0, 0
    low, high = value.detach().aminmax()
    return low.item(), high.item()


def _first(value, wrong):
    """The first entry that is wrong, and where it stands, in words."""
    if not isinstance(value, Tensor):
        return repr(value)
    at = wrong(value.detach()).nonzero()[0].tolist()
    return f"{value[tuple(at)].item():.6g}" + (f" at {at}" if at else "")


def _between(left, low, high, right):
    """Every entry in an interval; NaN is in none."""
    low, high = float(low), float(high)

    def inside(x):
        above = x > low if left == "(" else x >= low
        return above & (x < high if right == ")" else x <= high)

    def ask(value, subject, given, sizes):
        if not all(inside(extreme) for extreme in _extremes(value)):
            raise Broken(ValueError, _first(value, lambda x: ~inside(x)))

    return ask


def _finite_where(mask):
    """No inf and no NaN where the argument `mask` is True; anywhere if that is None."""

    def ask(value, subject, given, sizes):
        if math.isfinite(value.detach().sum().item()):
            return
        kept = value if given[mask] is None else torch.where(given[mask], value, 0.0)
        if not kept.isfinite().all():  # a sum of finite numbers may overflow
            raise Broken(ValueError, _first(kept, lambda x: ~x.isfinite()))

    return ask


def _no_nan():
    def ask(value, subject, given, sizes):
        if math.isnan(_extremes(value)[0]):
            raise Broken(ValueError, _first(value, torch.isnan))

    return ask


def _at_least_where(least, mask):
    """How many entries must count."""

    def ask(value, subject, given, sizes):
        count = value.numel() if given[mask] is None else int(given[mask].sum())
        if count < int(least):
            raise Broken(ValueError, str(count))

    return ask


def _look_up(path, given):
    """The value of `len(x)` or of `model.config.vocab_size`."""
    name, *fields = re.sub(r"len\((.*)\)", r"\1", path).split(".")
    value = functools.reduce(getattr, fields, given[name])
    return len(value) if path.startswith("len(") else value


def _at_most(path):
    def ask(value, subject, given, sizes):
        if not value <= _look_up(path, given):
            raise Broken(
                ValueError, f"{value!r}, where {path} is {_look_up(path, given)}"
            )

    return ask


def _below(path):
    """Ids from 0 up to the size of a vocabulary, in a tensor, in lists or alone."""

    def ask(value, subject, given, sizes):
        size = _look_up(path, given)
        if isinstance(value, list | tuple):
            flat = [
                i for row in value for i in (row if isinstance(row, list) else [row])
            ]
            low, high = min(flat), max(flat)
        else:
            low, high = _extremes(value)
        if not 0 <= low <= high < size:
            wrong = low if low < 0 else high
            raise Broken(IndexError, f"{wrong}, where {path} is {size}")

    return ask


def _multiple_of(factor, path):
    def ask(value, subject, given, sizes):
        if value % (int(factor or 1) * _look_up(path, given)):
            raise Broken(
                ValueError, f"{value}, where {path} is {_look_up(path, given)}"
            )

    return ask


def _other_than(path):
    def ask(value, subject, given, sizes):
        if value is _look_up(path, given):
            raise Broken(ValueError, "the very same object")

    return ask


def _increasing():
    def ask(value, subject, given, sizes):
        entries = value.tolist() if isinstance(value, Tensor) else list(value)
        if not all(a < b for a, b in zip(entries, entries[1:], strict=False)):
            raise Broken(ValueError, str(entries))

    return ask


def _none_empty():
    """A list of lists that all hold something; of ids, none of which is negative."""

    def ask(value, subject, given, sizes):
        if not value or not all(map(len, value)):
            raise Broken(ValueError, "an empty one")
        if isinstance(value[0][0], int) and min(map(min, value)) < 0:
            raise Broken(IndexError, str(min(map(min, value))))

    return ask


def _true(where):
    """How often True must stand in a boolean tensor."""

    def ask(value, subject, given, sizes):
        if where == "True somewhere":
            counts = value.any().view(1)
        elif where == "True in every row":
            counts = value.any(-1)
        else:
            counts = (value[..., 1:] > value[..., :-1]).sum(-1) + value[..., 0]  # runs
        if not (counts == 1).all():
            row = int((counts != 1).int().argmax())
            got = f"{int(counts.flatten()[row])} runs" if "run" in where else "no True"
            in_row = "" if "somewhere" in where else f" in row {row}"
            raise Broken(ValueError, got + in_row)

    return ask


NUMBER = r"[-+]?(?:\d+(?:\.\d+)?(?:e-?\d+)?|inf)"
DEMANDS = [  # words, what makes the question of them, and when it is asked
    (rf"in ([\[(])({NUMBER}), ({NUMBER})([\])])", _between, "alone"),
    (rf">= ({NUMBER})", lambda low: _between("[", low, "inf", "]"), "alone"),
    (rf"> ({NUMBER})", lambda low: _between("(", low, "inf", "]"), "alone"),
    (r"no NaN", _no_nan, "alone"),
    (r"increasing", _increasing, "alone"),
    (r"none empty", _none_empty, "alone"),
    (r"((?:one run of )?True (?:somewhere|in every row))", _true, "alone"),
    (r"finite where (\w+)", _finite_where, "beside"),
    (r"at least (\d+) where (\w+)", _at_least_where, "beside"),
    (r"at most ([\w.()]+)", _at_most, "beside"),
    (r"below ([\w.]+)", _below, "beside"),
    (r"a multiple of (?:(\d+) )?([\w.]+)", _multiple_of, "beside"),
    (r"other than ([\w.]+)", _other_than, "beside"),
]
