"""Cases, their checks, and the tiny models that checks share."""

import functools
import traceback
from pathlib import Path

import torch

from minillama import tokenizer
from minillama.model import Llama, LlamaConfig

TOLERANCE = 1e-4
LONG = 110  # More of a value than so many characters is not shown.
OURS = [Path(file).parent for file in (tokenizer.__file__, torch.__file__)]


def check(cases):
    """Make `check(implementation)` of a generator of (claim, got, expected, hint)."""

    @functools.wraps(cases)
    def check(implementation):
        passed = 0
        try:
            for claim, got, expected, hint in cases(implementation):
                if not same(got, expected):
                    raise AssertionError(
                        f"{cases.__name__}: {claim}: {told(got, expected)}. "
                        f"Hint: {hint}."
                    )
                passed += 1
        except (AssertionError, NotImplementedError):
            raise
        except Exception as error:
            if not is_ours(error):
                raise
            raise AssertionError(
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


def same(got, expected):
    """Compare, tensors by shape and, within TOLERANCE, by values, errors by kind."""
    if isinstance(expected, type) and issubclass(expected, Exception):
        return isinstance(got, type) and issubclass(got, expected)
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
