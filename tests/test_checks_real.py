"""Checks of lesson 26 pass the package and fail plausible mistakes."""

import math

import pytest
import torch
from mistakes import both_tests
from torch import nn

from minillama import chat_format, llama_tokenizer, lora, rope_scaling, tokenizer
from minillama.course import checks

RIGHT = {
    "llama3_scaling": rope_scaling.Llama3Scaling,
    "encode_turns": chat_format.encode_turns,
    "lora_linear": lora.LoRALinear,
}


def scaling(scale, is_refused=True):
    """A class with this `scale(self, frequency)`."""

    class Scaling:
        def __init__(self, factor, low, high, length):
            if is_refused and high <= low:
                raise ValueError
            self.factor, self.low, self.high, self.length = factor, low, high, length

        def turns(self, frequency):
            return self.length * frequency / (2 * math.pi)

        def share(self, turns):
            return ((turns - self.low) / (self.high - self.low)).clamp(0, 1)

    Scaling.scale = scale
    return Scaling


def in_wavelengths(self, frequency):
    """As Llama 3.1's reference code says it, with a loop."""
    scaled = []
    for f in frequency.flatten().tolist():
        wavelength = 2 * math.pi / f
        if wavelength <= self.length / self.high:
            scaled.append(f)
        elif wavelength >= self.length / self.low:
            scaled.append(f / self.factor)
        else:
            s = (self.length / wavelength - self.low) / (self.high - self.low)
            scaled.append((1 - s) * f / self.factor + s * f)
    return torch.tensor(scaled).view(frequency.shape)


def by_where(self, frequency):
    turns = self.turns(frequency)
    s = (turns - self.low) / (self.high - self.low)
    ramp = frequency * s + frequency / self.factor * (1 - s)
    slow = torch.where(turns < self.low, frequency / self.factor, ramp)
    return torch.where(turns > self.high, frequency, slow)


def of_share(change):
    """A scaling that multiplies by change(share kept, factor)."""
    return scaling(
        lambda self, f: f * change(self.share(self.turns(f)), self.factor),
    )


def unclamped(self, s):
    return s + (1 - s) / self.factor


def in_place(self, frequency):
    s = self.share(self.turns(frequency))
    return frequency.mul_(s + (1 - s) / self.factor)


def turns_by(
    refuses=llama_tokenizer.require_turns,
    joint="\n\n",
    question=tokenizer.encode_prompt,
    answer=tokenizer.encode_response,
):
    """`encode_turns` in one loop over the turns, with one thing changed."""

    def f(words, turns):
        refuses("encode_turns", turns)
        ids, before = [], ""
        for role, text in turns:
            if role == "system":
                before = text + joint
            elif role == "user":
                ids, before = ids + question(words, before + text), ""
            else:
                ids = ids + answer(words, text)
        return ids

    return f


def with_system_turn(words, turns):
    llama_tokenizer.require_turns("encode_turns", turns)
    ids = []
    for role, text in turns:
        is_answer = role == "assistant"
        encode = tokenizer.encode_response if is_answer else tokenizer.encode_prompt
        ids += encode(words, text)
    return ids


def by_pairs(words, turns):
    llama_tokenizer.require_turns("encode_turns", turns)
    turns = list(turns)
    if turns[0][0] == "system":
        turns[:2] = [("user", f"{turns[0][1]}\n\n{turns[1][1]}")]
    *before, (_, last) = turns
    whole = [
        tokenizer.encode_prompt(words, asked) + tokenizer.encode_response(words, said)
        for (_, asked), (_, said) in zip(before[::2], before[1::2], strict=True)
    ]
    return sum(whole, []) + tokenizer.encode_prompt(words, last)


def one_bos(words, turns):
    ids = chat_format.encode_turns(words, turns)
    return [tokenizer.BOS_ID] + [i for i in ids if i != tokenizer.BOS_ID]


def adapter(**methods):
    """`LoRALinear` with some methods replaced."""
    return type("LoRALinear", (lora.LoRALinear,), methods)


def starting(change):
    """`LoRALinear` that is changed once it has been made."""

    def start(self, linear, rank, alpha, generator=None):
        lora.LoRALinear.__init__(self, linear, rank, alpha, generator)
        with torch.no_grad():
            change(self, rank, alpha, generator)

    return adapter(__init__=start)


def merging(change):
    """`LoRALinear` whose merged layer is changed."""

    def merged(self):
        with torch.no_grad():
            return change(self, lora.LoRALinear.merged(self))

    return adapter(merged=merged)


def by_einsum(self, x):
    low = torch.einsum("ri,...i->...r", self.A, x)
    return self.linear(x) + torch.einsum("or,...r->...o", self.B, low) * self.scale


def merged_by_identity(self):
    """What the adapter makes of unit vectors, by another route."""
    outputs, inputs = self.linear.weight.shape
    bias = self.linear.bias
    same = nn.Linear(inputs, outputs, bias is not None).to(self.A)
    with torch.no_grad():
        shift = 0 if bias is None else bias
        same.weight.copy_((self(torch.eye(inputs).to(self.A)) - shift).T)
        if bias is not None:
            same.bias.copy_(bias)
    return same


def in_its_own_layer(self):
    with torch.no_grad():
        self.linear.weight += self.scale * self.B @ self.A
    return self.linear


def sharing_the_bias(self, same):
    same.bias = self.linear.bias
    return same


def without_bias(self, same):
    same.bias = None
    return same


def drawing_globally(self, linear, rank, alpha, generator=None):
    lora.LoRALinear.__init__(self, linear, rank, alpha)


def in_float32(self, linear, rank, alpha, generator=None):
    lora.LoRALinear.__init__(self, linear, rank, alpha, generator)
    self.A.data, self.B.data = self.A.data.float(), self.B.data.float()


WRONG = [
    ("llama3_scaling", of_share(lambda s, factor: (1 - s) + s / factor)),
    ("llama3_scaling", of_share(lambda s, factor: 1 / (s + (1 - s) * factor))),
    ("llama3_scaling", of_share(lambda s, factor: s + (1 - s) * factor)),
    ("llama3_scaling", of_share(lambda s, factor: torch.where(s > 0, 1, 1 / factor))),
    ("llama3_scaling", of_share(lambda s, factor: 1 / factor)),
    ("llama3_scaling", scaling(in_place)),
    ("llama3_scaling", scaling(by_where, is_refused=False)),
    (
        "llama3_scaling",  # without a clamp
        scaling(
            lambda self, f: (
                f * unclamped(self, (self.turns(f) - self.low) / (self.high - self.low))
            )
        ),
    ),
    (
        "llama3_scaling",  # turns in radians
        scaling(lambda self, f: by_where(self, f * 2 * math.pi) / (2 * math.pi)),
    ),
    ("llama3_scaling", scaling(lambda self, f: by_where(self, f).double())),
    ("encode_turns", turns_by(refuses=lambda *_: None)),
    ("encode_turns", turns_by(joint="\n")),
    ("encode_turns", turns_by(joint=" ")),
    (
        "encode_turns",
        turns_by(answer=lambda words, x: tokenizer.encode_response(words, x)[:-1]),
    ),
    ("encode_turns", turns_by(answer=tokenizer.encode_prompt)),
    (
        "encode_turns",
        turns_by(question=lambda words, x: tokenizer.encode_prompt(words, x)[1:]),
    ),
    ("encode_turns", one_bos),
    ("encode_turns", with_system_turn),
    (
        "encode_turns",  # the last question alone
        lambda words, turns: (
            llama_tokenizer.require_turns("encode_turns", turns)
            or tokenizer.encode_prompt(words, turns[-1][1])
        ),
    ),
    ("lora_linear", starting(lambda self, *_: self.B.fill_(0.1))),
    ("lora_linear", starting(lambda self, *_: self.A.zero_())),
    ("lora_linear", starting(lambda self, *_: self.A.mul_(2))),
    ("lora_linear", starting(lambda self, *_: self.linear.requires_grad_(True))),
    ("lora_linear", starting(lambda self, *_: self.A.requires_grad_(False))),
    (
        "lora_linear",
        starting(lambda self, rank, alpha, _: setattr(self, "scale", alpha)),
    ),
    (
        "lora_linear",
        starting(lambda self, rank, alpha, _: setattr(self, "scale", rank / alpha)),
    ),
    ("lora_linear", adapter(__init__=drawing_globally)),
    ("lora_linear", adapter(__init__=in_float32)),
    ("lora_linear", adapter(forward=lambda self, x: self.linear(x))),
    (
        "lora_linear",
        adapter(forward=lambda self, x: self.linear(x) + x @ self.A.T @ self.B.T),
    ),
    (
        "lora_linear",
        adapter(
            forward=lambda self, x: (
                self.linear(x) + (x.detach() @ self.A.T) @ self.B.T * self.scale
            )
        ),
    ),
    (
        "lora_linear",
        adapter(
            forward=lambda self, x: (
                x @ (self.linear.weight + self.scale * self.B @ self.A).T
            )
        ),
    ),
    ("lora_linear", adapter(merged=in_its_own_layer)),
    ("lora_linear", merging(sharing_the_bias)),
    ("lora_linear", merging(without_bias)),
    ("lora_linear", merging(lambda self, same: self)),
    (
        "lora_linear",
        merging(
            lambda self, same: (
                same.weight.sub_(self.scale * self.B @ self.A) is None or same
            )
        ),
    ),
]

STYLES = [
    ("llama3_scaling", scaling(in_wavelengths)),
    ("llama3_scaling", scaling(by_where)),
    ("encode_turns", turns_by()),
    ("encode_turns", by_pairs),
    ("lora_linear", adapter(forward=by_einsum)),
    ("lora_linear", adapter(merged=merged_by_identity)),
]

test_the_package_passes, test_mistakes_are_caught = both_tests(RIGHT, WRONG)


@pytest.mark.parametrize("name, right", STYLES)
def test_other_styles_pass(name, right):
    getattr(checks, name)(right)
