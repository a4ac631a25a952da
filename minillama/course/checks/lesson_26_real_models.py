"""Checks of 26_real_models."""

import math

import torch
from torch import nn

from minillama.course.checks.case import check, dtype_of, error_of, tiny_tokenizer
from minillama.tokenizer import BOS_ID, END_INST_ID, EOS_ID, INST_ID


def _of_turns(turns, length):
    """Frequencies that make so many turns in a length, float32."""
    return torch.tensor(turns) * 2 * math.pi / length


@check
def llama3_scaling(f):
    """Check `Llama3Scaling(factor, low, high, original_max_seq_len).scale`."""
    frequency = _of_turns([10.0, 0.5, 2.5, 4.0, 1.0], 1000)
    got = f(8.0, 1.0, 4.0, 1000).scale(frequency)
    yield (
        "10 turns in 1,000 tokens: fast, stays",
        got[0] / frequency[0],
        torch.tensor(1.0),
        "at least `high` turns: nothing changes",
    )
    yield (
        "half a turn: slow, an eighth",
        got[1] / frequency[1],
        torch.tensor(1 / 8),
        "at most `low` turns: divide by the factor; turns = L f / (2 pi)",
    )
    yield (
        "2.5 turns, in the middle between 1 and 4",
        got[2] / frequency[2],
        torch.tensor(0.5 + 0.5 / 8),
        "s = 1/2: f (s + (1 - s) / factor)",
    )
    yield (
        "4 turns and 1 turn, the ends of the ramp",
        got[3:] / frequency[3:],
        torch.tensor([1.0, 1 / 8]),
        "s is 1 at `high` and 0 at `low`",
    )
    frequency = _of_turns([3.0, 1.0, 7.0, 5.0], 64)
    yield (
        "other settings: 3, 1, 7 and 5 turns in 64, factor 2, between 2 and 6",
        f(2.0, 2.0, 6.0, 64).scale(frequency) / frequency,
        torch.tensor([0.625, 0.5, 1.0, 0.875]),
        "s = (turns - low) / (high - low), between 0 and 1",
    )
    yield (
        "no factor, no change",
        f(1.0, 1.0, 4.0, 64).scale(frequency) / frequency,
        torch.ones(4),
        "s + (1 - s) / 1 is 1",
    )
    before = frequency.clone()
    f(4.0, 2.0, 6.0, 64).scale(frequency)
    yield (
        "the frequencies that are given",
        frequency,
        before,
        "return new ones, change none",
    )
    yield (
        "float32 stays float32",
        dtype_of(lambda: f(4.0, 2.0, 6.0, 64).scale(frequency)),
        torch.float32,
        "no float64 on the way out",
    )
    for low, high in ((4.0, 1.0), (2.0, 2.0)):
        yield (
            f"low = {low}, high = {high}",
            error_of(lambda low=low, high=high: f(8.0, low, high, 64)),
            ValueError,
            "refuse a ramp that does not rise, when it is made",
        )


@check
def encode_turns(f):
    """Check `encode_turns(course_tokenizer, turns)`."""
    words = tiny_tokenizer()

    def asked(text):
        return [BOS_ID, INST_ID, *words.encode(f" {text}"), END_INST_ID]

    def said(text):
        return [*words.encode(f" {text}"), EOS_ID]

    yield (
        "one question",
        f(words, [("user", "ab b")]),
        asked("ab b"),
        "<s> [INST] question [/INST], as `encode_prompt` has it",
    )
    turns = [("user", "ab"), ("assistant", "b"), ("user", "bb a")]
    yield (
        "two questions, one answer between them",
        f(words, turns),
        [*asked("ab"), *said("b"), *asked("bb a")],
        "each question opens with <s>, each answer ends with </s>",
    )
    turns += [("assistant", "a"), ("user", "b")]
    yield (
        "three questions",
        f(words, tuple(turns)),
        [*asked("ab"), *said("b"), *asked("bb a"), *said("a"), *asked("b")],
        "user and assistant take turns",
    )
    yield (
        "a system message",
        f(words, [("system", "a b"), *turns[:3]]),
        [*asked("a b\n\nab"), *said("b"), *asked("bb a")],
        "before the first question, with an empty line between them",
    )
    for claim, wrong in {
        "an answer at the end": [("user", "a"), ("assistant", "b")],
        "two questions in a row": [("user", "a"), ("user", "b")],
        "a system message in the middle": [*turns[:2], ("system", "a"), turns[2]],
        "no turn": [],
    }.items():
        yield (
            claim,
            error_of(lambda wrong=wrong: f(words, wrong)),
            ValueError,
            "refuse it: llama_tokenizer.require_turns does",
        )


def _linear(bias=False, dtype=torch.float32):
    """A layer from three to two, its weights by hand."""
    linear = nn.Linear(3, 2, bias, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]]))
        if bias:
            linear.bias.copy_(torch.tensor([10.0, 20.0]))
    return linear


def _filled(f, rank, alpha, bias=False):
    """A `LoRALinear` on `_linear` with A and B by hand."""
    adapter = f(_linear(bias), rank, alpha)
    with torch.no_grad():
        adapter.A.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])[:rank])
        adapter.B.copy_(torch.tensor([[2.0, 1.0], [-1.0, 1.0]])[:, :rank])
    return adapter


X = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]])  # (1, 2, 3)


PLAIN = torch.tensor([[[7.0, 1.0], [-2.0, -2.0]]])  # W x, (1, 2, 2)


RANK_1 = torch.tensor([[[6.0, -3.0], [2.0, -1.0]]])  # B A x of rank 1


RANK_2 = torch.tensor([[[15.0, 6.0], [-1.0, -4.0]]])  # of rank 2


@check
def lora_linear(f):
    """Check `LoRALinear(linear, rank, alpha, generator)`."""

    def seeded(seed=0):
        return torch.Generator().manual_seed(seed)

    layer, state = _linear(), torch.get_rng_state()
    adapter = f(layer, 2, 6.0, seeded())
    yield (
        "global random numbers",
        "the same" if torch.equal(torch.get_rng_state(), state) else "drawn",
        "the same",
        "draw from the generator that is given",
    )
    yield (
        "the shapes of A and B",
        [tuple(adapter.A.shape), tuple(adapter.B.shape)],
        [(2, 3), (2, 2)],
        "A maps to the rank, B from it",
    )
    wide = f(nn.Linear(400, 5), 50, 1.0, seeded())
    spread = wide.A.std().item() * 20
    yield (
        "the spread of A for 400 inputs",
        0.9 < spread < 1.1,
        True,
        "a standard deviation of 1 / sqrt(inputs): 1/20",
    )
    yield (
        "two adapters from one seed, and one from another",
        [torch.equal(f(_linear(), 2, 6.0, seeded(i)).A, adapter.A) for i in (0, 1)],
        [True, False],
        "draw A from the generator",
    )
    yield (
        "a new adapter",
        adapter(X),
        PLAIN,
        "B is 0 at the start, so nothing changes",
    )
    yield (
        "what learns",
        [name for name, x in adapter.named_parameters() if x.requires_grad],
        ["A", "B"],
        "freeze the layer; A and B are parameters",
    )
    yield (
        "rank 1, alpha 2",
        _filled(f, 1, 2.0)(X),
        PLAIN + 2 * RANK_1,
        "W x + (alpha / rank) B A x",
    )
    yield (
        "rank 2, alpha 3",
        _filled(f, 2, 3.0)(X),
        PLAIN + 1.5 * RANK_2,
        "divide alpha by the rank",
    )
    bias = torch.tensor([10.0, 20.0])
    yield (
        "a layer with a bias",
        _filled(f, 2, 3.0, bias=True)(X),
        PLAIN + 1.5 * RANK_2 + bias,
        "the bias belongs to the layer, once",
    )
    adapter, x = _filled(f, 2, 3.0), X.clone().requires_grad_()
    adapter(x).sum().backward()
    yield (
        "the gradient of the input",
        x.grad,
        torch.tensor([[[2.5, 0.5, 12.0]] * 2]),  # column sums of W + 1.5 B A
        "it flows through both ways",
    )
    yield (
        "the gradient of A",
        adapter.A.grad,
        1.5 * torch.tensor([[1.0, 3.0, 2.0], [2.0, 6.0, 4.0]]),
        "B's column sums, 1 and 2, by the sum of both x, times alpha / rank",
    )
    yield (
        "the gradient of B",
        adapter.B.grad,
        1.5 * torch.tensor([[4.0, 6.0], [4.0, 6.0]]),
        "A times the sum of both x, times alpha / rank",
    )
    yield (
        "the layer's own weight",
        [adapter.linear.weight.grad, adapter.linear.weight.requires_grad],
        [None, False],
        "it does not learn",
    )
    adapter = _filled(f, 2, 3.0, bias=True)
    before = adapter.linear.weight.clone()
    merged = adapter.merged()
    yield (
        "merged: a plain layer",
        type(merged),
        nn.Linear,
        "return an nn.Linear",
    )
    yield (
        "merged: its weight",
        merged.weight,
        before + 1.5 * torch.tensor([[2.0, 2.0, 3.0], [-1.0, -1.0, 3.0]]),
        "W + (alpha / rank) B A",
    )
    yield ("merged: its bias", merged.bias, bias, "the bias stays")
    yield (
        "merged: the adapter's own layer",
        adapter.linear.weight,
        before,
        "a new layer: the old one stays as it is",
    )
    with torch.no_grad():
        merged.bias.add_(1)
    yield (
        "merged: the adapter's own bias, after a change of the new one",
        adapter.linear.bias,
        bias,
        "copy it: the new layer shares nothing with the old one",
    )
    double = f(_linear(dtype=torch.float64), 2, 3.0)
    yield (
        "a layer in float64",
        [dtype_of(lambda: double(X.double())), double.merged().weight.dtype],
        [torch.float64] * 2,
        "A and B have the dtype of W",
    )
