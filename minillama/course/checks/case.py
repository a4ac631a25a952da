"""Cases, their checks, and the tiny models that checks share."""

import functools

import torch

from minillama import tokenizer
from minillama.model import Llama, LlamaConfig

TOLERANCE = 1e-4


def check(cases):
    """Make `check(implementation)` of a generator of (claim, got, expected, hint)."""

    @functools.wraps(cases)
    def check(implementation):
        passed = 0
        for claim, got, expected, hint in cases(implementation):
            if not same(got, expected):
                raise AssertionError(
                    f"{cases.__name__}: {claim}: expected {show(expected)}, got "
                    f"{show(got)}. "
                    f"Hint: {hint}."
                )
            passed += 1
        print(f"{cases.__name__}: {passed} checks passed")

    return check


def same(got, expected):
    """Compare, tensors by shape and, within TOLERANCE, by values."""
    if not isinstance(expected, torch.Tensor):
        return got == expected
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    return torch.allclose(
        got.detach().double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE
    )


def show(value):
    """Return what a learner reads: four decimals, names of error types."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().round(decimals=4).tolist()
    return value.__name__ if isinstance(value, type) else value


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
