"""Cases, their checks, and the tiny models that checks share."""

import dataclasses
import functools
import random
import re
import traceback
from pathlib import Path

import torch

from minillama import tokenizer
from minillama.model import Llama, LlamaConfig

TOLERANCE = 1e-4
LONG = 110  # More of a value than so many characters is not shown.
OURS = [Path(file).parent for file in (tokenizer.__file__, torch.__file__)]


class CheckFailed(AssertionError):
    """What a check has to say; IPython shows it in a few lines, without a traceback."""

    def _render_traceback_(self):
        """Return the lines: what was checked, expected and got, and the hint."""
        return re.split(r": (?=expected )|, (?=got )| (?=Hint: )", str(self))


def check(cases, may_draw=False):
    """Make `check(implementation)` of a generator of (claim, got, expected, hint).

    may_draw: the implementation may use the random numbers that everybody draws from.
    """

    @functools.wraps(cases)
    def check(implementation):
        passed, tried = 0, guarded(implementation, cases.__name__, may_draw)
        try:
            for claim, got, expected, hint in cases(tried):
                if not same(got, expected):
                    raise CheckFailed(
                        f"{cases.__name__}: {claim}: {told(got, expected)}. "
                        f"Hint: {hint}."
                    )
                passed += 1
        except (AssertionError, NotImplementedError):
            raise
        except Exception as error:
            if not is_ours(error):
                raise
            raise CheckFailed(
                f"{cases.__name__}: after {passed} checks: expected something to "
                f"go on with, got {type(error).__name__}: {cut(error)}. Hint: is a "
                "`return` missing, or is what comes back of another kind or shape "
                "than the docstring says?"
            ) from error
        print(f"{cases.__name__}: {passed} checks passed")

    return check


def is_ours(error):
    """Did a check stumble over what it got, rather than the implementation itself?"""
    files = [
        Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)
    ]
    return all(any(home in file.parents for home in OURS) for file in files)


def guarded(implementation, name, may_draw):
    """Return a function that fails if a call changes what is not its own.

    That is an argument, or, unless it may draw, the state of the random numbers that
    everybody draws from. A class comes back as it is.
    """
    if isinstance(implementation, type):
        return implementation

    @functools.wraps(implementation)
    def call(*arguments, **named):
        given = {**dict(enumerate(arguments, 1)), **named}
        before, state = held(given), (torch.get_rng_state(), random.getstate())
        result = implementation(*arguments, **named)
        for (key, was), (_, now) in zip(before, held(given), strict=True):
            if not alike(was, now):
                raise CheckFailed(
                    f"{name}: argument {key} after a call: {told(now, was)}. "
                    "Hint: change no argument, work on something new."
                )
        if not may_draw and not alike(
            state, (torch.get_rng_state(), random.getstate())
        ):
            raise CheckFailed(
                f"{name}: global random numbers: expected none drawn and nothing "
                "seeded, got another state after a call. Hint: draw from the "
                "generator that is given alone."
            )
        return result

    return call


def held(value):
    """Return a copy of what a call could change: tensors, and what holds them.

    Of a model that is its mode and what of it may learn: a step may change weights.
    """
    if isinstance(value, torch.nn.Module):
        learns = [x.requires_grad for x in value.parameters()]
        return [x.training for x in value.modules()] + learns
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.items())
    return [held(x) for x in value] if isinstance(value, list | tuple) else value


def alike(was, now):
    """Return whether two such copies agree, NaN with NaN."""
    if isinstance(was, torch.Tensor) and isinstance(now, torch.Tensor):
        same = was.shape == now.shape and was.dtype == now.dtype
        return same and bool(((was == now) | ((was != was) & (now != now))).all())
    if isinstance(was, list | tuple) and isinstance(now, list | tuple):
        return len(was) == len(now) and all(map(alike, was, now))
    return was is now or was == now


def same(got, expected):
    """Compare, tensors by shape and, within TOLERANCE, by values, errors by kind."""
    if isinstance(expected, type) and issubclass(expected, Exception):
        return isinstance(got, type) and issubclass(got, expected)
    if isinstance(expected, tuple) and isinstance(got, tuple):
        if any(isinstance(kind, type) for kind in expected):
            return len(got) == len(expected) and all(map(same, got, expected))
    if not isinstance(expected, torch.Tensor):
        return got == expected
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    return bool(close(got, expected).all())


def close(got, expected):
    """Return, entry by entry, whether two tensors of one shape agree."""
    return torch.isclose(
        got.detach().double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE
    )


def show(value):
    """Return what a learner reads: four decimals, names of error types."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value.tolist()
        return value.detach().double().round(decimals=4).tolist()
    return value.__name__ if isinstance(value, type) else value


def cut(value):
    """Return a value as text, its end left out if it is long."""
    text = str(value)
    return text if len(text) <= LONG else f"{text[:LONG]} …"


def told(got, expected):
    """Return "expected …, got …"; of large things, what differs."""
    tensors = [isinstance(x, torch.Tensor) for x in (expected, got)]
    long = max(len(str(show(x))) for x in (expected, got)) > LONG
    if all(tensors) and long:
        if got.shape != expected.shape:
            return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        at = tuple((~close(got, expected)).nonzero()[0].tolist())
        return f"expected {show(expected[at])} at {list(at)}, got {show(got[at])}"
    if isinstance(expected, dict) and isinstance(got, dict) and long:
        pairs = [x.items() for x in (expected, got)]
        expected, got = (
            dict(pair for pair in one if pair not in other)
            for one, other in (pairs, pairs[::-1])
        )
    quote = repr if isinstance(expected, str) and isinstance(got, str) else show
    end = "" if len(set(tensors)) == 1 else f", a {type(got).__name__}"
    if got is None:
        end = ", as if a `return` were missing"
    return f"expected {cut(quote(expected))}, got {cut(quote(got))}{end}"


def error_of(call):
    """Return the type of the error that `call` raises, or "no error".

    An exercise that is not written yet stays one: NotImplementedError passes.
    """
    try:
        call()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error)
    return "no error"


def dtype_of(call):
    """Return the dtype of what `call` returns, or the type of torch's error."""
    try:
        return call().dtype
    except NotImplementedError:
        raise
    except RuntimeError as error:
        return type(error)


def row(*values):
    """Return one float tensor (1, T)."""
    return torch.tensor([values], dtype=torch.float32)


def gradient(call, at):
    """Return the gradient of the sum of `call(at)` at `at`, 0 where none arrives."""
    at = at.clone().requires_grad_()
    result = call(at).sum()
    if not result.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(result, at, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient


def scaled(call, power=1):
    """Return call(c) / c^power for a small and a large c, two that should be alike."""
    results = []
    for c in (1e-4, 1e4):
        result = call(c)
        result = torch.stack(result) if isinstance(result, tuple) else result
        results.append(torch.as_tensor(result) / c**power)
    return torch.stack(results)


def tiny_config(**changes):
    """Return the settings of a model of one small layer, some of them changed."""
    tiny = {"vocab_size": 11, "dim": 32, "n_layers": 1, "n_heads": 2}
    tiny |= {"n_kv_heads": 1, "ffn_dim": 16, "max_seq_len": 16}
    return LlamaConfig(**tiny | changes)


def tiny_llama(**changes):
    """Return a model of these settings with random weights, the same on every call."""
    return Llama(tiny_config(**changes), generator=torch.Generator().manual_seed(0))


@functools.cache
def tiny_tokenizer():
    """Return a tokenizer of a, b, the space, two merges, "ab" and "abb", and bytes."""
    return tokenizer.train_tokenizer(["abbabb ab"] * 20, 267)
