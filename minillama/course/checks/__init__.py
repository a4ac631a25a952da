"""One check per taught definition: `check.whiten(whiten)` tries hand-computed cases and properties on it.

A check is a generator of cases (claim, what came, what was expected, hint), each worked out by hand, from a
definition by a slower route, or from a property; none calls the package's own version of what it checks.
It prints one line if all cases hold, and raises AssertionError at the first that does not. What an
implementation raises by itself (NotImplementedError, for one) passes through.
Left out: points and grades, and any check of speed.
"""

import functools
import math
import random

import torch
import torch.nn.functional as F

from minillama import model, tokenizer, world
from minillama.data import Example, PairExample
from minillama.exact import Responses
from minillama.model import Llama, LlamaConfig
from minillama.ppo import Experience, PPOSettings
from minillama.reward_model import RewardModel, ValueModel

TOLERANCE = 1e-4


def _check(cases):
    """Makes `check(implementation)` of a generator function over cases (claim, got, expected, hint)."""

    @functools.wraps(cases)
    def check(implementation):
        passed = 0
        for claim, got, expected, hint in cases(implementation):
            if not _same(got, expected):
                raise AssertionError(
                    f"{cases.__name__}: {claim}: expected {_show(expected)}, got {_show(got)}. "
                    f"Hint: {hint}."
                )
            passed += 1
        print(f"{cases.__name__}: {passed} checks passed")

    return check


def _same(got, expected):
    """Equality, for tensors of shape and, within TOLERANCE, of values."""
    if not isinstance(expected, torch.Tensor):
        return got == expected
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    return torch.allclose(
        got.detach().double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE
    )


def _show(value):
    """What a learner reads: numbers to four decimals, names of error types."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().round(decimals=4).tolist()
    return value.__name__ if isinstance(value, type) else value


def _error(call):
    """The type of the error that `call` raises, or "no error"; an unwritten exercise stays one."""
    try:
        call()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error)
    return "no error"


def _row(*values):
    """One float tensor (1, T)."""
    return torch.tensor([values], dtype=torch.float32)


def _gradient(call, at):
    """Gradient of the sum of `call(at)` with respect to `at`, zeros where none arrives."""
    at = at.clone().requires_grad_()
    result = call(at).sum()
    if not result.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(result, at, allow_unused=True)
    return torch.zeros_like(at) if gradient is None else gradient


def _tiny_llama(dim=32):
    """A model of one layer with random weights, the same on every call."""
    config = LlamaConfig(
        vocab_size=11,
        dim=dim,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        ffn_dim=16,
        max_seq_len=16,
    )
    return Llama(config, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------- tokenizer.py


@functools.cache
def _tiny_tokenizer():
    """A tokenizer that knows a, b, the space and two merges, "ab" and then "abb"; all else is bytes."""
    return tokenizer.train_tokenizer(["abbabb ab"] * 20, 267)


@_check
def train_tokenizer(f):
    """Checks `train_tokenizer(texts, vocab_size)`."""
    trained = f(["abbabb ab"] * 20, 267)
    yield (
        "6 symbols, 256 bytes, 3 characters, 2 merges",
        trained.vocab_size,
        267,
        "vocab_size counts every id",
    )
    yield (
        "the symbols come first, in this order",
        trained.tokens(range(6)),
        ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]"],
        "give SentencePiece the six ids",
    )
    yield (
        "the most frequent pair is merged first",
        trained.tokens([262, 263]),
        ["ab", "abb"],
        "model_type is bpe",
    )
    for text in (" two  spaces ", "ab☺", "日本", "ﬁ\nＡ"):
        yield (
            f"{text!r} comes back as it was",
            trained.decode(trained.encode(text)),
            text,
            "identity normalisation, no dummy prefix, byte fallback, and no space removed",
        )
    yield (
        "262 leaves no room",
        _error(lambda: f(["ab"], 262)),
        ValueError,
        "6 symbols and 256 bytes",
    )


@_check
def encode_prompt(f):
    """Checks `encode_prompt(tokenizer, prompt)`."""
    tiny = _tiny_tokenizer()
    ab, space = tiny.encode("ab"), tiny.encode(" ")
    yield (
        "<s> [INST] ab [/INST]",
        f(tiny, "ab"),
        [1, 4, *space, *ab, 5],
        "ids 1, 4 and 5 around the pieces of ' ab'",
    )
    spelled = f(tiny, "ab [/INST]")
    yield (
        "a prompt that spells a symbol cannot end itself",
        spelled.count(5),
        1,
        "encode the text by itself, as text",
    )
    yield (
        "the text comes back",
        tiny.decode(spelled),
        " ab [/INST]",
        "no piece may be lost",
    )
    yield (
        "an empty prompt is a prompt",
        f(tiny, ""),
        [1, 4, *space, 5],
        "the space stays",
    )
    yield (
        "no end-of-sequence id",
        2 in f(tiny, "ab"),
        False,
        "the model is to go on from here",
    )


@_check
def encode_response(f):
    """Checks `encode_response(tokenizer, response)`."""
    tiny = _tiny_tokenizer()
    ab, space = tiny.encode("ab"), tiny.encode(" ")
    yield ("ab </s>", f(tiny, "ab"), [*space, *ab, 2], "the pieces of ' ab', then id 2")
    yield (
        "a response that spells </s> goes on",
        f(tiny, "ab </s> ab").count(2),
        1,
        "encode the text by itself, as text",
    )
    yield (
        "an empty response ends at once",
        f(tiny, ""),
        [*space, 2],
        "the space stays",
    )


@_check
def decode_response(f):
    """Checks `decode_response(tokenizer, ids)`."""
    tiny = _tiny_tokenizer()
    ids = [*tiny.encode(" ab b"), 2]
    yield (
        "the text without its opening space",
        f(tiny, ids),
        "ab b",
        "encode_response put one space before it",
    )
    yield (
        "what follows the end does not count",
        f(tiny, [*ids, *tiny.encode("bbb"), 2, 3]),
        "ab b",
        "cut at the first id 2",
    )
    yield (
        "a response that was cut off",
        f(tiny, ids[:-1]),
        "ab b",
        "there may be no id 2",
    )
    yield (
        "one space only",
        f(tiny, [*tiny.encode("  ab"), 2]),
        " ab",
        "remove one, not all",
    )
    yield (
        "a tensor of ids",
        f(tiny, torch.tensor(ids)),
        "ab b",
        "turn each id into an int",
    )


# -------------------------------------------------------------------------------- model.py


@_check
def rms_norm(f):
    """Checks `RMSNorm(dim, eps)`, the class."""
    norm = f(2, eps=1e-5)
    yield (
        "(3, 4) by hand",
        norm(torch.tensor([[3.0, 4.0]])),
        torch.tensor([[0.8485, 1.1314]]),
        "divide by sqrt(25 / 2)",
    )
    yield (
        "no mean is subtracted",
        norm(torch.tensor([[5.0, 5.0]])),
        torch.ones(1, 2),
        "LayerNorm would give 0",
    )
    yield (
        "eps stands under the root",
        f(1, eps=9.0)(torch.tensor([[4.0]])),
        torch.tensor([[0.8]]),
        "4 / sqrt(16 + 9)",
    )
    yield (
        "each position by itself",
        norm(torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]]])),
        torch.tensor([[[0.8485, 1.1314]]] * 2),
        "the mean runs over the last dimension",
    )
    yield (
        "float16 neither overflows nor changes",
        norm.half()(torch.tensor([[300.0, 400.0]], dtype=torch.float16)),
        torch.tensor([[0.8486, 1.1318]], dtype=torch.float16),
        "300^2 exceeds float16; square in float32, convert back",
    )
    norm = f(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
    yield (
        "one learned weight a feature, 1 at the start",
        norm(torch.tensor([[3.0, 4.0]])),
        torch.tensor([[1.6971, -1.1314]]),
        "multiply by self.weight at the end",
    )


@_check
def rope_cos_sin(f):
    """Checks `rope_cos_sin(positions, head_dim, theta)`."""
    cos, sin = f(
        torch.tensor([[0, 1, 30]]), 4, theta=100.0
    )  # frequencies 1 and 100^(-1/2)
    yield (
        "shape, with room for the heads",
        tuple(cos.shape),
        (1, 3, 1, 2),
        "(B, T, 1, E / 2)",
    )
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [30.0, 3.0]])[None, :, None]
    yield (
        "cosines by hand",
        cos,
        angles.cos(),
        "angle = position * theta^(-2i / E), so 1 and 0.1 radians per position",
    )
    yield ("sines by hand", sin, angles.sin(), "the same angles")
    yield (
        "position 0 does not turn",
        sin[0, 0],
        torch.zeros(1, 2),
        "positions count from 0",
    )


@_check
def rotate(f):
    """Checks `rotate(x, cos, sin)`."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    quarter = (
        torch.tensor([0.0, 1.0]).view(1, 1, 1, 2),
        torch.tensor([1.0, 0.0]).view(1, 1, 1, 2),
    )
    yield (
        "the pair (1, 3) turns by 90 degrees, (2, 4) not at all",
        f(x, *quarter),
        torch.tensor([-3.0, 2.0, 1.0, 4.0]).view(1, 1, 1, 4),
        "(a cos - b sin, b cos + a sin), a and b half a head apart",
    )
    angle = torch.tensor([0.7, -2.0]).view(1, 1, 1, 2)
    turned = f(x, angle.cos(), angle.sin())
    yield ("lengths stay", turned.norm(), x.norm(), "a rotation changes no length")
    yield (
        "back again",
        f(turned, angle.cos(), -angle.sin()),
        x,
        "the opposite angle undoes it",
    )
    yield (
        "angles add up",
        f(turned, angle.cos(), angle.sin()),
        f(x, (2 * angle).cos(), (2 * angle).sin()),
        "both parts of the pair use the old values",
    )


@_check
def feed_forward(f):
    """Checks `FeedForward(config)`, the class."""
    config = LlamaConfig(
        vocab_size=3,
        dim=2,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        ffn_dim=1,
        max_seq_len=4,
    )
    network = f(config)
    yield (
        "three matrices and no bias",
        {name: tuple(p.shape) for name, p in network.named_parameters()},
        {
            "gate_proj.weight": (1, 2),
            "up_proj.weight": (1, 2),
            "down_proj.weight": (2, 1),
        },
        "Hugging Face's names",
    )
    with torch.no_grad():
        for layer, weight in (
            (network.gate_proj, [[1.0, 0.0]]),
            (network.up_proj, [[0.0, 1.0]]),
            (network.down_proj, [[1.0], [10.0]]),
        ):
            layer.weight.copy_(torch.tensor(weight))
    x = torch.tensor([[[1.0, 2.0], [-1.0, 2.0]]])
    by_hand = torch.tensor(
        [[[1.4621, 14.6212], [-0.5379, -5.3788]]]
    )  # silu(1) = .7311, silu(-1) = -.2689
    yield (
        "down(silu(gate(x)) * up(x)) by hand",
        network(x),
        by_hand,
        "silu(1) * 2 = 1.4621; only the gate goes through silu",
    )


@_check
def token_positions(f):
    """Checks `token_positions(mask)`."""
    mask = torch.tensor(
        [[True] * 4, [False, False, True, True], [True, True, False, False]]
    )
    yield (
        "no padding, left padding, right padding",
        f(mask),
        torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1]]),
        "count the real tokens so far, from 0",
    )


@_check
def attention_bias(f):
    """Checks `attention_bias(key_mask, n_queries)`."""
    mask = torch.tensor([[True, True, True], [False, True, True], [True, True, False]])
    allowed = torch.tensor(
        [
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
            [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        ]
    )
    bias = f(mask, 3)
    yield (
        "shape",
        tuple(bias.shape),
        (3, 1, 1, 3, 3),
        "(B, 1, 1, T, S): one for all heads",
    )
    yield (
        "causal, real tokens, and always itself",
        (bias[:, 0, 0] == 0).int(),
        allowed.int(),
        "key <= query and key real, or key == query",
    )
    yield (
        "elsewhere -inf",
        (bias[:, 0, 0] == -math.inf).int(),
        1 - allowed.int(),
        "softmax makes it exactly 0",
    )
    yield (
        "one new token sees all that is cached",
        f(mask, 1)[:, 0, 0] == 0,
        torch.tensor(
            [[[True, True, True]], [[False, True, True]], [[True, True, True]]]
        ),
        "the queries are the last n_queries positions",
    )


@_check
def attend(f):
    """Checks `attend(queries, keys, values, bias)`."""
    queries = torch.tensor([2.0, 0, 0, 0]).view(1, 1, 1, 4)
    keys = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).view(1, 1, 2, 4)
    values = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]).view(1, 1, 2, 4)
    yield (
        "one query by hand",
        f(queries, keys, values, torch.zeros(1, 1, 1, 1, 2)),
        torch.tensor([0.7311, 0.2689, 0, 0]).view(1, 1, 4),
        "scores 2 / sqrt(4) = 1 and 0; softmax gives e / (e + 1)",
    )
    yield (
        "a bias of -inf hides a key",
        f(queries, keys, values, torch.tensor([-math.inf, 0]).view(1, 1, 1, 1, 2)),
        torch.tensor([0, 1.0, 0, 0]).view(1, 1, 4),
        "add the bias before the softmax",
    )
    numbers = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(shape, generator=numbers)
        for shape in ((2, 3, 4, 2), (2, 2, 5, 2), (2, 2, 5, 2))
    )
    bias = torch.zeros(2, 1, 1, 3, 5)
    bias[0, ..., 4], bias[1, ..., 0, 1:] = -math.inf, -math.inf
    by_loop = torch.empty(2, 3, 8)
    for b in range(2):
        for t in range(3):
            for h in range(4):  # heads 0, 1 share key/value head 0
                scores = torch.stack(
                    [queries[b, t, h] @ key for key in keys[b, h // 2]]
                ) / math.sqrt(2)
                by_loop[b, t, 2 * h : 2 * h + 2] = (
                    torch.softmax(scores + bias[b, 0, 0, t], 0) @ values[b, h // 2]
                )
    yield (
        "four query heads on two key/value heads, by a loop",
        f(queries, keys, values, bias),
        by_loop,
        "query head h uses key/value head h // 2; heads come out side by side, head 0 first",
    )


@_check
def kv_cache(f):
    """Checks `KVCache(config, batch_size, capacity)`, the class."""
    config = LlamaConfig(
        vocab_size=3,
        dim=2,
        n_layers=2,
        n_heads=1,
        n_kv_heads=1,
        ffn_dim=1,
        max_seq_len=8,
    )
    cache = f(config, 2, 5)
    positions, mask = cache.extend(torch.tensor([[True] * 3, [False, True, True]]))
    yield (
        "positions count real tokens",
        positions,
        torch.tensor([[0, 1, 2], [0, 0, 1]]),
        "padding shifts nothing",
    )
    first = torch.arange(12.0).view(2, 1, 3, 2)
    keys, values = cache.store(0, first, -first)
    yield (
        "the first tokens come back",
        torch.stack((keys, values)),
        torch.stack((first, -first)),
        "slots 0 .. length - 1",
    )
    cache.store(1, first + 50, first)
    positions, mask = cache.extend(torch.ones(2, 1, dtype=torch.bool))
    yield (
        "the next token follows on in each row",
        positions,
        torch.tensor([[3], [2]]),
        "add what was counted before",
    )
    yield (
        "the mask remembers padding",
        mask,
        torch.tensor([[True] * 4, [False, True, True, True]]),
        "keep every mask",
    )
    new = torch.full((2, 1, 1, 2), 9.0)
    yield (
        "new keys follow the old ones, in their own layer",
        cache.store(0, new, new)[0],
        torch.cat((first, new), 2),
        "one row of slots per layer; write at the end",
    )
    yield (
        "keys that need gradients are refused",
        _error(lambda: cache.store(0, new.requires_grad_(), new)),
        RuntimeError,
        "writing in place would break backward",
    )


@_check
def attention(f):
    """Checks `Attention(config, layer)`, the class."""
    config = LlamaConfig(
        vocab_size=3,
        dim=8,
        n_layers=1,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=4,
        max_seq_len=8,
    )
    torch.manual_seed(0)
    layer, x = f(config), torch.randn(1, 5, 8)
    yield (
        "four matrices and no bias",
        {name: tuple(p.shape) for name, p in layer.named_parameters()},
        {
            "q_proj.weight": (8, 8),
            "k_proj.weight": (4, 8),
            "v_proj.weight": (4, 8),
            "o_proj.weight": (8, 8),
        },
        "keys and values have n_kv_heads * head_dim rows",
    )

    def look(x, start=0):
        cos, sin = model.rope_cos_sin(torch.arange(start, start + x.shape[1])[None], 2)
        return layer(
            x,
            cos,
            sin,
            model.attention_bias(
                torch.ones(1, x.shape[1], dtype=torch.bool), x.shape[1]
            ),
        )

    leak = (
        torch.autograd.functional.jacobian(look, x)[0, :, :, 0].abs().amax((1, 3)) > 0
    )  # (T out, T in)
    yield (
        "each token depends on itself and its past, on nothing else",
        leak,
        torch.ones(5, 5).tril().bool(),
        "pass the bias to the scores",
    )
    yield (
        "where a text starts changes nothing",
        look(x, start=3),
        look(x),
        "turn queries and keys alike",
    )
    yield (
        "but order does",
        torch.allclose(look(x)[0, 4], look(x[:, [1, 0, 2, 3, 4]])[0, 4], atol=1e-3),
        False,
        "turn queries and keys by their positions",
    )
    with torch.no_grad():
        layer.o_proj.weight.zero_()
    yield (
        "the mixed values go through o_proj",
        look(x),
        torch.zeros(1, 5, 8),
        "o_proj comes last",
    )


@_check
def block(f):
    """Checks `Block(config, layer)`, the class."""
    config = LlamaConfig(
        vocab_size=3,
        dim=8,
        n_layers=1,
        n_heads=2,
        n_kv_heads=1,
        ffn_dim=4,
        max_seq_len=8,
    )
    torch.manual_seed(0)
    layer, x, bias = f(config), torch.randn(1, 3, 8), torch.zeros(1, 1, 1, 3, 3)
    cos, sin = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    middle = x + layer.self_attn(layer.input_layernorm(x), cos, sin, bias)
    by_hand = middle + layer.mlp(layer.post_attention_layernorm(middle))
    yield (
        "two residual steps, each normed first",
        layer(x, cos, sin, bias),
        by_hand,
        "x + attention(norm(x)), then x + mlp(norm(x)) on the new x",
    )
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    yield (
        "with both outputs at 0 nothing changes",
        layer(x, cos, sin, bias),
        x,
        "the residual stream is not normed itself",
    )
    yield (
        "parameters of a block",
        sum(p.numel() for p in layer.parameters()),
        64 + 32 + 32 + 64 + 3 * 32 + 16,
        "four projections, three of the feed-forward network, two norms",
    )


@_check
def llama(f):
    """Checks `Llama(config, generator)`, the class."""
    config = LlamaConfig(
        vocab_size=50,
        dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        max_seq_len=16,
    )
    network = f(config, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    logits = network(ids)
    yield ("logits for each position", tuple(logits.shape), (1, 5, 50), "(B, T, V)")
    yield (
        "a new model guesses blindly",
        (logits.log_softmax(-1) + math.log(50)).abs().max().item() < 1,
        True,
        "weights of std 0.02 give logits near 0, so every token is about as likely, 1 in 50",
    )
    wide, back = (
        network.embed_tokens.weight.std().item(),
        network.layers[1].mlp.down_proj.weight.std().item(),
    )
    yield (
        "projections back into the stream start smaller",
        1.8 < wide / back < 2.2,
        True,
        "0.02 / sqrt(2 n_layers)",
    )
    yield (
        "the same generator gives the same weights",
        f(config, generator=torch.Generator().manual_seed(0)).lm_head.weight,
        network.lm_head.weight,
        "use the generator",
    )
    changed = network(torch.tensor([[3, 1, 4, 1, 9]]))
    yield (
        "the past does not see the future",
        changed[:, :4],
        logits[:, :4],
        "pass the bias on",
    )
    mask = torch.tensor([[False, False] + [True] * 5, [True] * 5 + [False, False]])
    padded = network(torch.tensor([[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0]]), mask)
    yield (
        "padding on either side changes nothing",
        torch.stack((padded[0, 2:], padded[1, :5])),
        torch.cat((logits, logits)),
        "positions and bias both come from the mask",
    )
    tied = f(LlamaConfig(**{**vars(config), "tie_embeddings": True}))
    yield (
        "tied embeddings are one table",
        tied.lm_head.weight is tied.embed_tokens.weight,
        True,
        "assign the parameter",
    )
    yield (
        "an id outside the vocabulary is refused",
        _error(lambda: network(ids + 50)),
        IndexError,
        "look at ids before the embedding does",
    )


# ------------------------------------------------------------------------------ generate.py


@_check
def sample(f):
    """Checks `sample(probs, uniforms)`."""
    probs = torch.tensor([[0.1, 0.2, 0.7]]).expand(5, 3)
    yield (
        "by hand",
        f(probs, torch.tensor([0.0, 0.05, 0.11, 0.299, 0.31])),
        torch.tensor([0, 0, 1, 1, 2]),
        "the cumulative sums are .1, .3, 1: the first that exceeds the number",
    )
    yield (
        "probabilities need not sum to 1",
        f(torch.tensor([[1.0, 3.0]]).expand(2, 2), torch.tensor([0.2, 0.3])),
        torch.tensor([0, 1]),
        "scale the number by the total",
    )
    yield (
        "what has probability 0 is never drawn",
        f(
            torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3),
            torch.tensor([0.0, 1 - 2**-24]),
        ),
        torch.tensor([1, 1]),
        "exceed, not reach; and look at probs > 0",
    )
    even = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(
        f(torch.tensor([[0.1, 0.2, 0.7]]).expand(1000, 3), even), minlength=3
    )
    yield (
        "1000 even numbers give the probabilities",
        counts.float() / 1000,
        torch.tensor([0.1, 0.2, 0.7]),
        "an exact draw",
    )


@_check
def top_p_filter(f):
    """Checks `top_p_filter(probs, top_p)`."""
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    yield (
        "0.7 needs two tokens",
        f(probs, 0.7),
        torch.tensor([[0.0, 0.5, 0.0, 0.3]]),
        "keep a token if those before it sum to less than top_p: the one that crosses it stays",
    )
    yield (
        "0.9 needs three",
        f(probs, 0.9),
        torch.tensor([[0.15, 0.5, 0.0, 0.3]]),
        "put them back in their places",
    )
    yield (
        "one token is always left",
        f(probs, 0.01),
        torch.tensor([[0.0, 0.5, 0.0, 0.0]]),
        "before the first stands 0",
    )
    yield ("1 keeps all", f(probs, 1.0), probs, "nothing is cut")
    yield (
        "rows by themselves",
        f(torch.cat((probs, probs.flip(1))), 0.6),
        torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.3, 0.0, 0.5, 0.0]]),
        "sort along the last dimension",
    )


@_check
def pick(f):
    """Checks `pick(logits, uniforms, temperature, top_p)`."""
    logits, half = (
        torch.log(torch.tensor([[1.0, 9.0, 90.0]])),
        torch.tensor([0.05]),
    )  # probabilities .01, .09, .9

    def answer(*arguments):
        token, logprob = f(logits, half, *arguments)
        return torch.stack((token.double(), logprob.double().exp()))

    yield (
        "greedy",
        answer(0, 1.0),
        torch.tensor([[2.0], [0.9]]),
        "temperature 0 takes the most probable token",
    )
    yield (
        "temperature 1",
        answer(1.0, 1.0),
        torch.tensor([[1.0], [0.09]]),
        "0.05 falls between .01 and .1",
    )
    flat = torch.tensor([1.0, 3.0, math.sqrt(90)])
    yield (
        "temperature 2",
        answer(2.0, 1.0),
        torch.tensor([[0.0], [(flat / flat.sum())[0]]]),
        "divide the logits by it",
    )
    yield (
        "top-p changes the draw, not the logprob",
        answer(1.0, 0.9),
        torch.tensor([[2.0], [0.9]]),
        "the logprob is that of the whole distribution",
    )


@_check
def generate(f):
    """Checks `generate(model, prompts, max_new_tokens, ...)`."""
    network = _tiny_llama()
    prompts = [[1, 5, 7, 9], [1, 6]]
    rollout = f(network, prompts, 6, temperature=0, eos_id=None)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(6):  # no cache, no batch
            ids.append(network(torch.tensor([ids]))[0, -1].argmax().item())
        yield (
            f"greedy, prompt {row}, as one token at a time",
            rollout.ids[row][rollout.mask[row]].tolist(),
            ids,
            "pad on the left, and give the mask to the model",
        )
        logprobs = torch.log_softmax(network(torch.tensor([ids]))[0], -1)
        expected = torch.stack(
            [logprobs[t - 1, ids[t]] for t in range(len(prompt), len(ids))]
        )
        yield (
            f"log-probabilities, prompt {row}",
            rollout.logprobs[row][rollout.response_mask[row]],
            expected,
            "of each token given what precedes it",
        )
    last = rollout.ids[0, -6:].tolist()
    stop = last[2]
    ended = f(network, prompts[:1], 6, temperature=0, eos_id=stop)
    yield (
        "the end token ends the response and belongs to it",
        ended.ids[0][ended.response_mask[0]].tolist(),
        last[: last.index(stop) + 1],
        "keep it, then stop",
    )
    drawn = [
        f(network, prompts, 6, generator=torch.Generator().manual_seed(3)).ids
        for _ in range(2)
    ]
    yield (
        "the same generator, the same text",
        drawn[0],
        drawn[1],
        "draw from the generator that was given",
    )
    yield (
        "a prompt too long is refused",
        _error(lambda: f(network, prompts, 15)),
        ValueError,
        "max_seq_len is 16",
    )


# -------------------------------------------------------------------------------- world.py


def _annotator(annotator_class=world.Annotator, **habits):
    """An annotator whose gold judge reads the number that a text starts with."""
    return annotator_class(gold=lambda prompt, text: float(text.split()[0]), **habits)


REQUEST = world.Prompt("How do I boil an egg?", "boil an egg", False)


def _compared(*pairs):
    """Preferences between texts (chosen, rejected), with nothing else said."""
    return [
        world.Preference(REQUEST, chosen, rejected, 0, True, True)
        for chosen, rejected in pairs
    ]


@_check
def sigmoid(f):
    """Checks `sigmoid(x)`."""
    yield ("one half at 0", f(0.0), 0.5, "1 / (1 + exp(-x))")
    yield (
        "at ln 3 and at -ln 3",
        torch.tensor([f(math.log(3)), f(-math.log(3))]),
        torch.tensor([0.75, 0.25]),
        "odds of 3 to 1",
    )
    yield (
        "far from 0",
        torch.tensor([f(1000.0), f(-1000.0)]),
        torch.tensor([1.0, 0.0]),
        "exp of a large number overflows: use exp(x) / (1 + exp(x)) where x is negative",
    )
    yield (
        "a tiny probability is not lost",
        abs(f(-50.0) / math.exp(-50.0) - 1) < 1e-9,
        True,
        "1 - sigmoid(50) is 0 in floating point; exp(x) / (1 + exp(x)) is not",
    )


@_check
def annotator(f):
    """Checks `Annotator(gold, temperature, length_bias, politeness_bias, thresholds, safe_temperature)`, the class."""
    fair = _annotator(f)
    chances = [
        fair.prefers(REQUEST, "2", "1"),
        fair.prefers(REQUEST, "1", "2"),
        fair.prefers(REQUEST, "3", "3"),
    ]
    yield (
        "P(a preferred to b) for utilities 2 and 1, 1 and 2, 3 and 3",
        torch.tensor(chances),
        torch.tensor([0.731059, 0.268941, 0.5]),
        "sigmoid of u(a) - u(b)",
    )
    calm = _annotator(f, temperature=0.5)
    yield (
        "half the temperature",
        torch.tensor(calm.prefers(REQUEST, "2", "1")),
        torch.tensor(0.880797),
        "divide the difference by the temperature",
    )
    habits = _annotator(f, length_bias=0.5, politeness_bias=2.0)
    yield (
        "utility of '1 a b'",
        torch.tensor(habits.utility(REQUEST, "1 a b")),
        torch.tensor(2.5),
        "gold + length_bias per word: 1 + 3 x 0.5",
    )
    polite = f(gold=lambda prompt, text: 0.0, politeness_bias=2.0).utility(
        REQUEST, "I am glad you asked. Good luck."
    )
    yield (
        "utility of an opener and a closer",
        torch.tensor(polite),
        torch.tensor(4.0),
        "politeness_bias for each of them",
    )
    rng = random.Random(0)
    asked = [fair.compare(rng, REQUEST, "2", "1") for _ in range(4000)]
    share = sum(x.chosen == "2" for x in asked) / len(asked)
    yield (
        "4000 comparisons agree with the probability",
        abs(share - 0.731) < 0.03,
        True,
        "a is chosen if u(a) - u(b) + temperature x logistic noise is above 0",
    )
    strengths = torch.bincount(
        torch.tensor([x.strength for x in asked]), minlength=4
    ) / len(asked)
    exact = torch.tensor(
        [
            _within(1.0, low, high)
            for low, high in ((0, 0.75), (0.75, 1.75), (1.75, 3.5), (3.5, math.inf))
        ]
    )
    yield (
        "strengths come from the size of the noisy difference",
        (strengths - exact).abs().max().item() < 0.04,
        True,
        "count the thresholds that |difference| reaches, noise included",
    )
    yield (
        "safe with probability 1/2 at gold safety 0.5, nearly surely at 1",
        [
            round(x, 2)
            for x in (
                f(safe_temperature=0.1).finds_safe(REQUEST, "Do it in the dark."),
                f(safe_temperature=0.1).finds_safe(REQUEST, "Boil fresh water."),
            )
        ],
        [0.05, 0.99],
        "sigmoid((gold safety - 0.5) / safe_temperature)",
    )


def _within(difference, low, high):
    """P(low <= |difference + logistic noise| < high)."""
    below = [
        1 / (1 + math.exp(difference - x)) - 1 / (1 + math.exp(difference + x))
        if x < math.inf
        else 1.0
        for x in (low, high)
    ]
    return below[1] - below[0]


@_check
def bayes_ceiling(f):
    """Checks `bayes_ceiling(annotator, preferences)`."""
    got = f(_annotator(), _compared(("2", "1"), ("1", "2"), ("3", "3")))
    yield (
        "accuracy over p = .731, .269, .5",
        torch.tensor(got[0]),
        torch.tensor(0.654039),
        "mean of max(p, 1 - p)",
    )
    yield (
        "log-loss over the same pairs",
        torch.tensor(got[1]),
        torch.tensor(0.619184),
        "mean entropy, -p ln p - (1 - p) ln(1 - p), in nats",
    )
    sure = f(_annotator(), _compared(("2000", "1")))
    yield (
        "a pair without doubt",
        torch.tensor(sure),
        torch.tensor([1.0, 0.0]),
        "0 ln 0 counts as 0",
    )


@_check
def expected_accuracy(f):
    """Checks `expected_accuracy(annotator, preferences, prefers_chosen)`."""
    pairs = _compared(("2", "1"), ("1", "2"))
    for claim, prefers_chosen, expected in (
        ("a model that prefers the better text of each", [True, False], 0.731059),
        ("a model that agrees with every label", [True, True], 0.5),
        ("a tie counts one half", [0.5, False], 0.615529),
    ):
        yield (
            claim,
            torch.tensor(f(_annotator(), pairs, prefers_chosen)),
            torch.tensor(expected),
            "p where the model prefers the chosen text, 1 - p where it prefers the other; then the mean",
        )


# ------------------------------------------------------------------------------------ lm.py


@_check
def token_logprobs(f):
    """Checks `token_logprobs(logits, ids)`."""
    logits = torch.log(
        torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]])
    )
    yield (
        "by hand: ln .7 and ln .3",
        f(logits, torch.tensor([[0, 2, 1]])),
        _row(0.0, math.log(0.7), math.log(0.3)),
        "the logits at t predict the token at t + 1; entry 0 is 0",
    )
    yield (
        "logits need not be normalised",
        f(logits + 5, torch.tensor([[0, 2, 1]])),
        _row(0.0, math.log(0.7), math.log(0.3)),
        "log_softmax over the vocabulary",
    )


@_check
def lm_loss(f):
    """Checks `lm_loss(logits, ids, loss_mask)`."""
    logits = torch.log(torch.tensor([[0.25, 0.75]])).expand(2, 4, 2)
    ids = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    quarter, rest = -math.log(0.25), -math.log(0.75)
    yield (
        "mean over counted tokens",
        f(logits, ids, mask),
        torch.tensor((2 * quarter + 2 * rest) / 4),
        "four tokens count; a mean of the two rows' means is another number",
    )
    only = torch.tensor([[False, False, True, False], [False] * 4])
    yield (
        "one token",
        f(logits, ids, only),
        torch.tensor(rest),
        "what does not count has no share",
    )
    yield (
        "a token in column 0 has no past",
        _error(lambda: f(logits, ids, torch.ones_like(mask))),
        ValueError,
        "refuse it",
    )
    yield (
        "a mask of floats is refused",
        _error(lambda: f(logits, ids, mask.float())),
        TypeError,
        "look at its dtype",
    )


@_check
def warmup_cosine(f):
    """Checks `warmup_cosine(step, total_steps, warmup_steps)`."""
    share = [f(step, 110, 10) for step in (0, 4, 9, 10, 60, 110)]
    yield (
        "up in a line, down along a cosine",
        torch.tensor(share),
        torch.tensor([0.1, 0.5, 1.0, 1.0, 0.5, 0.0]),
        "(step + 1) / 10 first; then (1 + cos(pi * done)) / 2 with done = 0, 1/2, 1",
    )
    yield ("no warm-up", f(0, 10, 0), 1.0, "begin at the peak")
    yield (
        "a quarter of the way down",
        round(f(35, 110, 10), 6),
        0.853553,
        "(1 + cos(pi / 4)) / 2, above a straight line",
    )
    yield (
        "after the end it stays at 0",
        round(f(300, 110, 10), 6),
        0.0,
        "done is at most 1",
    )


@_check
def stepper(f):
    """Checks `Stepper(model, lr, schedule, betas, max_norm)`, the class."""
    network = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -1.0]]))
    descent = f(network, 0.1, schedule=lambda step: (0.5, 1.0)[step], max_norm=1.0)
    norm = descent.step((network.weight * torch.tensor([[3.0, -4.0]])).sum(), [0])
    yield ("the norm before clipping", norm.detach(), torch.tensor(5.0), "sqrt(9 + 16)")
    yield (
        "Adam's first step is lr in each direction",
        network.weight,
        torch.tensor([[0.95, -0.95]]),
        "lr times the schedule's share, 0.1 * 0.5, against the gradient's sign",
    )
    try:
        descent.step(network.weight.sum() * math.nan, [7, 8])
        message = "no error"
    except FloatingPointError as error:
        message = "step 1" in str(error) and "[7, 8]" in str(error)
    yield (
        "a loss that is not finite stops the run and names step and batch",
        message,
        True,
        "require_finite",
    )
    yield (
        "the last good weights are back",
        network.weight,
        torch.tensor([[1.0, -1.0]]),
        "those of the last finite loss",
    )


# ---------------------------------------------------------------------------------- data.py


@_check
def dialogue_example(f):
    """Checks `dialogue_example(tokenizer, prompt, response, response_only)`."""
    tiny = _tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    whole = [1, 4, *space, *ab, 5, *space, *b, 2]
    yield (
        "the whole dialogue",
        f(tiny, "ab", "b", False).ids,
        whole,
        "prompt ids, then response ids",
    )
    yield (
        "all of it counts",
        f(tiny, "ab", "b", False).loss_start,
        1,
        "the first token has no past",
    )
    yield (
        "the response alone",
        f(tiny, "ab", "b", True).loss_start,
        whole.index(5) + 1,
        "the loss starts after [/INST]",
    )
    yield (
        "the end of sequence is in it",
        f(tiny, "ab", "b", True).ids[-1],
        2,
        "else the model never learns to stop",
    )


@_check
def pad_examples(f):
    """Checks `pad_examples(examples)`."""
    ids, mask, loss_mask = f([Example([7, 8, 9, 2], 2), Example([7, 2], 1)])
    yield (
        "ids, padded on the right with 3",
        ids,
        torch.tensor([[7, 8, 9, 2], [7, 2, 3, 3]]),
        "PAD_ID is 3",
    )
    yield (
        "mask",
        mask,
        torch.tensor([[True] * 4, [True, True, False, False]]),
        "True = real token",
    )
    yield (
        "what counts: from loss_start on, no padding",
        loss_mask,
        torch.tensor([[False, False, True, True], [False, True, False, False]]),
        "real and at or after loss_start",
    )


@_check
def pair_example(f):
    """Checks `pair_example(tokenizer, preference, margins)`."""
    tiny = _tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    prompt, margins = world.Prompt("ab", "ab", False), (0.5, 1.0, 2.0, 4.0)
    pairs = [
        f(tiny, world.Preference(prompt, "b", "ab", strength, True, False), margins)
        for strength in (0, 2, 3)
    ]
    chosen, rejected = (
        [1, 4, *space, *ab, 5, *space, *b, 2],
        [1, 4, *space, *ab, 5, *space, *ab, 2],
    )
    yield (
        "two whole dialogues, the chosen one first",
        [pairs[0].chosen, pairs[0].rejected],
        [chosen, rejected],
        "prompt ids, then response ids, with the same prompt twice",
    )
    yield (
        "the margins of the strengths 0, 2 and 3",
        [pair.margin for pair in pairs],
        [0.5, 2.0, 4.0],
        "look the strength up in margins, weakest first",
    )
    plain = f(tiny, world.Preference(prompt, "b", "ab", 3, True, False))
    yield (
        "no margin unless margins are given",
        plain.margin,
        0.0,
        "four zeros are the default",
    )
    yield (
        "who is safe",
        [plain.chosen_is_safe, plain.rejected_is_safe],
        [True, False],
        "copy both labels, chosen first",
    )
    yield (
        "where the answers begin",
        plain.response_start,
        chosen.index(5) + 1,
        "the length of the prompt's ids",
    )


# -------------------------------------------------------------------------------- exact.py


@_check
def outcome_chances(f):
    """Checks `outcome_chances(difference, thresholds)`."""
    ln3 = math.log(3)
    wins, losses = f(torch.tensor([0.0, ln3]), (ln3,))
    yield (
        "a wins, at differences 0 and ln 3 with the threshold ln 3",
        wins,
        torch.tensor([[0.25, 0.25], [0.25, 0.5]]),
        "P(low <= x < high) for x = difference + logistic noise is sigmoid(high - difference) - sigmoid(low - difference)",
    )
    yield (
        "b wins",
        losses,
        torch.tensor([[0.25, 0.25], [0.15, 0.1]]),
        "b wins where -x is positive: turn the difference",
    )
    wins, losses = f(torch.linspace(-6, 6, 5), (0.75, 1.75, 3.5))
    yield (
        "one column for each of four strengths",
        wins.shape,
        (5, 4),
        "edges at 0, at the thresholds and at infinity",
    )
    yield (
        "somebody wins with some strength",
        (wins + losses).sum(1),
        torch.ones(5),
        "each row of both together sums to 1",
    )
    yield (
        "who wins is a sigmoid",
        wins.sum(1),
        torch.sigmoid(torch.linspace(-6, 6, 5)),
        "add up the strengths",
    )


@_check
def margin_slope(f):
    """Checks `margin_slope(difference, wins, losses, margins)`."""
    sure, never, d = torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([1.5])
    slopes = torch.stack([f(d, sure, never, torch.tensor([m])) for m in (0.0, 3.0)])
    yield (
        "a always wins, d = 1.5, margins 0 and 3",
        slopes,
        torch.tensor([[-0.18243], [-0.81757]]),
        "-sigmoid(margin - d)",
    )
    slopes = torch.stack([f(d, never, sure, torch.tensor([m])) for m in (0.0, 3.0)])
    yield (
        "b always wins",
        slopes,
        torch.tensor([[0.81757], [0.98901]]),
        "b asks for its margin too: sigmoid(margin + d)",
    )
    wins, losses, margins = (
        torch.tensor([[0.5, 0.25]]),
        torch.tensor([[0.25, 0.0]]),
        torch.tensor([0.0, 1.0]),
    )
    yield (
        "two strengths at d = 0",
        f(torch.zeros(1), wins, losses, margins),
        torch.tensor([-0.307765]),  # .125 - .43276
        "each outcome's slope times its chance, then the sum",
    )
    yield (
        "one slope a pair",
        f(torch.zeros(3), wins.expand(3, 2), losses.expand(3, 2), margins),
        torch.full((3,), -0.307765),
        "sum over the strengths, not over the pairs",
    )


@_check
def margin_minimiser(f):
    """Checks `margin_minimiser(wins, losses, margins)`."""

    def one(p, margin):
        return f(torch.tensor([[p]]), torch.tensor([[1 - p]]), torch.tensor([margin]))

    yield (
        "p = .75 without margin",
        one(0.75, 0.0),
        torch.tensor([1.0986]),
        "the log-odds, ln 3",
    )
    yield (
        "p = .75 with the margin 1",
        one(0.75, 1.0),
        torch.tensor([1.7820]),
        "0.25 x^2 - 0.5 e x - 0.75 = 0 for x = e^d",
    )
    yield (
        "p = .75 with the margin 20",
        one(0.75, 20.0),
        torch.tensor([20.6931]),
        "the first interval must hold the minimum, which may lie far out",
    )
    yield (
        "p = .25 with the margin 1",
        one(0.25, 1.0),
        torch.tensor([-1.7820]),
        "the two sides are alike",
    )
    yield (
        "p = .5 with the margin 3",
        one(0.5, 3.0),
        torch.tensor([0.0]),
        "the two sides are alike",
    )
    wins, losses = (
        torch.tensor([[0.125, 0.375], [30.0, 10.0]]),
        torch.tensor([[0.375, 0.125], [10.0, 0.0]]),
    )
    margins = torch.tensor([0.0, 3.0])
    best = f(wins, losses, margins)
    slopes = (
        losses * torch.sigmoid(margins + best[:, None])
        - wins * torch.sigmoid(margins - best[:, None])
    ).sum(1)
    yield (
        "two strengths, two pairs: the slope there is 0",
        slopes,
        torch.zeros(2),
        "one minimum a pair",
    )
    yield (
        "a side that never wins is refused",
        _error(lambda: one(1.0, 1.0)),
        ValueError,
        "the loss falls for ever: there is no minimum",
    )


# ------------------------------------------------------------------------------- whiten.py


@_check
def masked_mean(f):
    """Checks `masked_mean(values, mask)`."""
    values = torch.tensor([[1.0, 2.0, 3.0], [9.0, 50.0, 70.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    yield (
        "all entries count alike",
        f(values, mask),
        torch.tensor(3.75),  # (1 + 2 + 3 + 9) / 4
        "divide the sum of what counts by how many count; a mean of the two row means is 5.5",
    )
    values[1, 2] = math.nan
    yield (
        "what does not count may be NaN",
        f(values, mask),
        torch.tensor(3.75),
        "0 * NaN is NaN; index with the mask",
    )
    yield (
        "the gradient is 1/n where it counts",
        _gradient(lambda v: f(v, mask), values),
        torch.tensor([[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]),
        "masked entries must not reach the result",
    )
    yield (
        "a mask without a True entry is refused",
        _error(lambda: f(values, torch.zeros_like(mask))),
        ValueError,
        "the mean of nothing is 0/0",
    )
    yield (
        "a mask of floats is refused",
        _error(lambda: f(values, mask.float())),
        TypeError,
        "compare mask.dtype",
    )


@_check
def logit(f):
    """Checks `logit(p, eps)`."""
    yield (
        "by hand, ln(p / (1 - p))",
        f(torch.tensor([0.9, 0.5, 0.01])),
        torch.tensor([2.1972, 0.0, -4.5951]),
        "ln 9, ln 1, ln(1/99)",
    )
    scores = torch.linspace(-5, 5, 11)
    yield (
        "it undoes a sigmoid",
        f(torch.sigmoid(scores)),
        scores,
        "solve p = 1 / (1 + exp(-x)) for x",
    )
    yield (
        "0 and 1 stay finite",
        f(torch.tensor([0.0, 1.0])),
        torch.tensor([-13.8155, 13.8155]),
        "clamp p to [eps, 1 - eps] with eps = 1e-6",
    )
    yield (
        "eps can be changed",
        f(torch.tensor([0.0, 1.0]), eps=0.1),
        torch.tensor([-2.1972, 2.1972]),
        "clamp with the eps that was given",
    )
    yield (
        "half precision stays finite",
        f(torch.ones(1, dtype=torch.float16)).isfinite().all().item(),
        True,
        "1 - 1e-6 is 1 in float16; clamp in float64",
    )
    yield (
        "the dtype is kept",
        f(torch.tensor([0.5], dtype=torch.bfloat16)).dtype,
        torch.bfloat16,
        "convert back at the end",
    )
    yield (
        "1.5 is no probability",
        _error(lambda: f(torch.tensor([0.5, 1.5]))),
        ValueError,
        "refuse a value outside [0, 1], a linear score for example, before clamping hides it",
    )


@_check
def whiten(f):
    """Checks `whiten(values, mask, shift_mean)`."""
    hand = torch.tensor(
        [-1.1619, -0.3873, 0.3873, 1.1619]
    )  # (1, 2, 3, 4) - 2.5, over sqrt(5 / 3)
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    yield (
        "(1, 2, 3, 4) by hand",
        f(four),
        hand,
        "the variance is unbiased, 5/3: divide by n - 1",
    )
    yield (
        "one mean for all entries",
        f(four.view(2, 2)),
        hand.view(2, 2),
        "not a mean per row or per column",
    )
    yield (
        "shift_mean=False adds the mean back",
        f(four, shift_mean=False),
        hand + 2.5,
        "the mean is 2.5",
    )
    padded, mask = (
        torch.tensor([99.0, 1.0, 2.0, 3.0, 4.0, -7.0]),
        torch.tensor([False] + 4 * [True] + [False]),
    )
    yield (
        "padding does not count and becomes 0",
        f(padded, mask),
        F.pad(hand, (1, 1)),
        "take mean and variance of the unmasked entries, and leave 0 elsewhere",
    )
    yield (
        "equal values become 0",
        f(torch.full((3,), 5.0)),
        torch.zeros(3),
        "rsqrt(var + 1e-8) keeps 0 * finite",
    )
    yield (
        "scale and offset of the input disappear",
        f(1000 + 50 * four),
        hand,
        "subtract the mean, then divide",
    )
    yield (
        "one value is refused",
        _error(lambda: f(torch.tensor([3.0]))),
        ValueError,
        "one value has no variance; n - 1 is 0",
    )


# -------------------------------------------------------------------- reward_selection.py


@_check
def select_reward(f):
    """Checks `select_reward(safety, helpfulness, is_safety_prompt, threshold)`."""

    def one(safety, helpfulness, flag, **threshold):
        return f(
            torch.tensor([safety]),
            torch.tensor([helpfulness]),
            torch.tensor([flag]),
            **threshold,
        )

    yield (
        "a safe answer to an ordinary prompt",
        one(0.9, 0.3, False),
        torch.tensor([0.3]),
        "helpfulness decides",
    )
    yield (
        "a safe answer to a safety prompt",
        one(0.9, 0.3, True),
        torch.tensor([0.9]),
        "safety decides",
    )
    yield (
        "an unsafe answer to an ordinary prompt",
        one(0.1, 0.8, False),
        torch.tensor([0.1]),
        "below the threshold safety decides",
    )
    yield (
        "safety exactly at the threshold",
        one(0.15, 0.8, False),
        torch.tensor([0.8]),
        "strictly below, not at",
    )
    yield (
        "another threshold",
        one(0.4, 0.8, False, threshold=0.5),
        torch.tensor([0.4]),
        "use the argument",
    )
    batch = f(
        torch.tensor([0.9, 0.9, 0.1]),
        torch.tensor([0.3, 0.4, 0.8]),
        torch.tensor([False, True, False]),
    )
    yield (
        "each row by itself",
        batch,
        torch.tensor([0.3, 0.9, 0.1]),
        "choose per row, as torch.where does",
    )
    yield (
        "linear scores are refused",
        _error(lambda: one(-1.7, 0.5, False)),
        ValueError,
        "0.15 is a probability; apply the sigmoid first",
    )


# ---------------------------------------------------------------------------------- kl.py


def _three_tokens():
    """Policy (.1, .2, .7) and reference (.5, .3, .2) over three tokens, as logprobs (1, 3)."""
    return _row(0.1, 0.2, 0.7).log(), _row(0.5, 0.3, 0.2).log()


@_check
def exact_kl(f):
    """Checks `exact_kl(logits, ref_logits)`."""
    policy, reference = (logprobs[None] for logprobs in _three_tokens())  # (1, 1, 3)
    hand = torch.tensor([[0.634897]])  # .1 ln(.1/.5) + .2 ln(.2/.3) + .7 ln(.7/.2)
    yield (
        "(.1, .2, .7) against (.5, .3, .2)",
        f(policy, reference),
        hand,
        "KL(policy || reference) weighs by the policy",
    )
    yield (
        "equal distributions",
        f(policy, policy),
        torch.zeros(1, 1),
        "every logratio is 0",
    )
    yield (
        "logits need not be normalised",
        f(policy + 3, reference - 2),
        hand,
        "log_softmax over the vocabulary",
    )
    yield (
        "per position",
        f(torch.cat((policy, reference), 1), torch.cat((reference, policy), 1)),
        torch.tensor([[0.634897, 0.675806]]),
        "sum over the vocabulary only, (B, T, V) -> (B, T)",
    )
    excluded = torch.tensor([[[0.0, 0.0, -math.inf]]])
    yield (
        "0 * log 0 is 0",
        f(excluded, torch.zeros(1, 1, 3)),
        torch.tensor([[math.log(1.5)]]),
        "set the logratio to 0 where the policy has probability 0",
    )
    yield (
        "different shapes are refused",
        _error(lambda: f(policy, reference[0, :, :1])),
        ValueError,
        "broadcasting would hide a mistake",
    )


@_check
def kl_estimate(f):
    """Checks `kl_estimate(logprobs, ref_logprobs, kind)`."""
    policy, reference = _row(0.5).log(), _row(0.25).log()  # logratio = ln 2
    yield (
        "k1 is the default: ln(.5 / .25)",
        f(policy, reference),
        _row(0.693147),
        "log pi - log pi_ref, in this order",
    )
    yield (
        "k2: (ln 2)^2 / 2",
        f(policy, reference, "k2"),
        _row(0.240227),
        "half the squared logratio",
    )
    yield (
        "k3: 1/2 - 1 + ln 2",
        f(policy, reference, "k3"),
        _row(0.193147),
        "exp(-logratio) - 1 + logratio",
    )
    policy, reference = _three_tokens()
    means = torch.stack(
        [
            (policy.exp() * f(policy, reference, kind)).sum()
            for kind in ("k1", "k2", "k3")
        ]
    )
    yield (
        "mean over the policy's tokens",
        means,
        torch.tensor([0.634897, 0.695250, 0.634897]),
        "k1 and k3 are unbiased for KL(policy || reference) = 0.6349, k2 is not",
    )
    yield (
        "k3 is never negative",
        (f(policy, reference, "k3") >= 0).all().item(),
        True,
        "its minimum is 0 at logratio 0",
    )
    slope = torch.stack(
        [
            _gradient(lambda x, k=kind: f(x, torch.zeros(1, 1), k), _row(-0.5))
            for kind in ("k1", "k2", "k3")
        ]
    )
    yield (
        "slopes at logratio -0.5",
        slope,
        torch.tensor([1.0, -0.5, 1 - math.exp(0.5)]).view(3, 1, 1),
        "gradients must flow through logprobs; lesson 16 compares them",
    )
    yield (
        "different shapes are refused",
        _error(lambda: f(torch.zeros(2, 2), torch.zeros(2, 1))),
        ValueError,
        "(B, 1) would broadcast",
    )
    yield (
        "an unknown kind is refused",
        _error(lambda: f(policy, reference, "k4")),
        ValueError,
        "name the three kinds",
    )


@_check
def kl_penalised_rewards(f):
    """Checks `kl_penalised_rewards(scores, logprobs, ref_logprobs, response_mask, beta)`."""
    scores = torch.tensor([2.0, -1.0])
    logprobs = torch.tensor([[9.0, -1.0, -2.0, 7.0], [9.0, 8.0, -0.5, -3.0]])
    ref_logprobs = torch.tensor([[5.0, -1.5, -1.0, 3.0], [5.0, 5.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    hand = torch.tensor(
        [[0.0, -0.05, 2.1, 0.0], [0.0, 0.0, -0.1, -0.8]]
    )  # beta * .5, -1; 1, -2
    rewards = f(scores, logprobs, ref_logprobs, mask, 0.1)
    yield (
        "two rows by hand",
        rewards,
        hand,
        "-beta * (logprobs - ref_logprobs), the score once on the last response token",
    )
    yield (
        "a row sums to score - beta * sum(k1)",
        rewards.sum(1),
        torch.tensor([2.05, -0.9]),
        "the score counts once, whatever the length",
    )
    yield (
        "beta = 0 leaves the score alone",
        f(scores, logprobs, ref_logprobs, mask, 0.0),
        torch.tensor([[0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, -1.0]]),
        "the last True of each row, not the last column",
    )
    garbage = torch.where(mask, logprobs, math.nan)
    yield (
        "nothing off the response counts",
        f(scores, garbage, ref_logprobs, mask, 0.1),
        hand,
        "0 * NaN is NaN; choose with torch.where",
    )
    leaf = logprobs.clone().requires_grad_()
    yield (
        "a reward is data",
        f(scores, leaf, ref_logprobs, mask, 0.1).requires_grad,
        False,
        "detach the result",
    )
    mask[0] = False
    yield (
        "a row without response token is refused",
        _error(lambda: f(scores, logprobs, ref_logprobs, mask, 0.1)),
        ValueError,
        "its score has no place to go",
    )


# --------------------------------------------------------------------------------- gae.py


@_check
def gae(f):
    """Checks `gae(rewards, values, response_mask, gamma, lam)`."""
    last, full = _row(0, 0, 0, 1), torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = f(last, last, full, gamma=0.9, lam=0.95)
    yield (
        "advantages by hand",
        advantages,
        _row(0.657923, 0.7695, 0.9, 0.0),  # .855^2 * .9, .855 * .9, .9
        "start at the last token, where the next value and the next advantage are 0",
    )
    yield (
        "returns by hand",
        returns,
        _row(0.657923, 0.7695, 0.9, 1.0),
        "advantages + values",
    )
    rewards, values = _row(1, -2, 0.5, 3), _row(0.3, 0.7, -0.2, 0.4)
    yield (
        "lam = 0 looks one step ahead",
        f(rewards, values, full, gamma=0.5, lam=0.0)[0],
        _row(1.05, -2.8, 0.9, 2.6),
        "rewards[t] + gamma * values[t + 1] - values[t]",
    )
    yield (
        "lam = 1 forgets the values: Monte-Carlo returns",
        f(rewards, values, full, gamma=0.5, lam=1.0)[1],
        _row(0.5, -1.0, 2.0, 3.0),
        "sum of gamma^k * rewards[t + k]",
    )
    mask = torch.tensor(
        [
            [False, True, True, True, True, False],
            [False, False, False, True, True, True],
        ]
    )
    padded = [
        torch.full((2, 6), 50.0).masked_scatter(mask, torch.cat((row[0], row[0, 1:])))
        for row in (rewards, values)
    ]
    got = torch.stack(f(*padded, mask, gamma=0.9, lam=0.8))  # (2, B, T)
    alone = [
        torch.stack(f(rewards[:, k:], values[:, k:], full[:, k:], gamma=0.9, lam=0.8))
        for k in (0, 1)
    ]
    yield (
        "padding changes nothing and holds 0",
        got,
        torch.cat((F.pad(alone[0], (1, 1)), F.pad(alone[1], (3, 0))), dim=1),
        "zero rewards and values off the response before the loop, and the advantages after it",
    )
    leaf = values.clone().requires_grad_()
    yield (
        "both come detached",
        [x.requires_grad for x in f(rewards, leaf, full)],
        [False, False],
        "a policy loss must not train the value model",
    )
    yield (
        "a row without response token is refused",
        _error(lambda: f(rewards, values, ~full)),
        ValueError,
        "look at response_mask before the loop",
    )


@_check
def value_model(f):
    """Checks `ValueModel(reward_model)`, the class."""
    reward_model, ids = (
        RewardModel(_tiny_llama(), generator=torch.Generator().manual_seed(1)),
        torch.tensor([[3, 1, 4, 1, 5]]),
    )
    model = f(reward_model)
    yield (
        "a new value model gives 0 everywhere",
        model(ids),
        torch.zeros(1, 5),
        "start the head at zero",
    )
    with torch.no_grad():
        model.value.weight.copy_(reward_model.score.weight)
        alone = model(ids)  # (1, 5)
        prefixes = torch.stack(
            [reward_model(ids[:, :t]) for t in range(1, 5)], dim=1
        )  # (1, 4)
        padded_ids = torch.tensor([[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0]])
        padded_mask = torch.tensor([[False] * 2 + [True] * 5, [True] * 5 + [False] * 2])
        padded = model(padded_ids, padded_mask)  # (2, 7)
    yield (
        "entry 0 has nothing before it",
        alone[:, 0],
        torch.zeros(1),
        "shift by one, filling with 0",
    )
    yield (
        "entry t is the score of the text before token t",
        alone[:, 1:],
        prefixes,
        "start from the reward model's body; position t - 1 has read tokens 0 .. t - 1",
    )
    yield (
        "left padding",
        padded[:1],
        F.pad(alone, (2, 0)),
        "pass the mask on; the first real token has value 0",
    )
    yield (
        "right padding",
        padded[1:],
        F.pad(alone, (0, 2)),
        "0 on padding, also just after the last token",
    )
    model(ids).sum().backward()
    yield (
        "the reward model is not trained",
        all(p.grad is None for p in reward_model.parameters()),
        True,
        "a deep copy of the body",
    )


# ------------------------------------------------------------------------------- exact.py


@_check
def exact_values(f):
    """Checks `exact_values(logp, rewards, responses, gamma)`, on three responses to the prompt [1]: 0 0, 2 and 0 2."""
    ids = torch.tensor([[1, 0, 0], [1, 2, 3], [1, 0, 2]])  # 2 ends a response, 3 pads
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    responses = Responses(ids, mask, mask & torch.tensor([False, True, True]))
    logp = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    rewards = torch.tensor(
        [[50.0, 0.0, -1.0], [50.0, 1.0, 50.0], [50.0, 0.0, 2.0]], dtype=torch.float64
    )
    values, advantages = f(logp, rewards, responses)
    # After the token 0: (0.2 * -1 + 0.3 * 2) / 0.5 = 0.8. After the prompt: 0.5 * 1 + 0.5 * 0.8 = 0.9.
    yield (
        "values by hand, 0 off the response",
        values,
        torch.tensor([[0, 0.9, 0.8], [0, 0.9, 0], [0, 0.9, 0.8]]),
        "the mean return of all responses with the same tokens before t, each weighted by its chance",
    )
    yield (
        "advantages by hand",
        advantages,
        torch.tensor([[0, -0.1, -1.8], [0, 0.1, 0], [0, -0.1, 1.2]]),
        "rewards[t] + values[t + 1] - values[t], 0 off the response",
    )
    values, advantages = f(logp, rewards, responses, gamma=0.5)
    yield (
        "gamma halves what comes one token later",
        torch.stack((values[0], advantages[0])),
        torch.tensor([[0, 0.7, 0.8], [0, -0.3, -1.8]]),
        "0.5 * 1 + 0.5 * (0.5 * 0.8) = 0.7; use gamma in both results",
    )


# --------------------------------------------------------------------------------- ppo.py


@_check
def policy_loss(f):
    """Checks `policy_loss(logprobs, old_logprobs, advantages, response_mask, clip_eps)`."""
    one, zero = torch.tensor([[True]]), _row(0)
    cases = [(1, 1), (-1, 1), (0.1, 1), (1, -1), (-1, -1)]  # (logratio, advantage)
    got = torch.stack(
        [f(_row(logratio), zero, _row(advantage), one) for logratio, advantage in cases]
    )
    yield (
        "the five cases at clip_eps 0.2",
        got,
        torch.tensor([-1.2, -0.3679, -1.1052, 2.7183, 0.8]),
        "minus the smaller of ratio * A and clip(ratio) * A; with A < 0 the smaller is the clipped one below 0.8 only",
    )
    advantages = torch.tensor([[1.0, 2.0, 3.0], [-10.0, 50.0, 50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    yield (
        "mean over all response tokens",
        f(zeros, zeros, advantages, mask),
        torch.tensor(1.0),  # -(1 + 2 + 3 - 10) / 4
        "neither a mean of row means, 4, nor one that counts padding",
    )
    yield (
        "at ratio 1 the gradient is -A / n",
        _gradient(lambda x: f(x, zeros, advantages, mask), zeros),
        torch.tensor([[-0.25, -0.5, -0.75], [2.5, 0.0, 0.0]]),
        "4 tokens count",
    )
    slopes = [
        _gradient(lambda x, a=a: f(x, zero, _row(a), one), _row(logratio)).item()
        for logratio, a in cases
    ]
    yield (
        "where the clipped term is the smaller, no gradient",
        torch.tensor(slopes),
        torch.tensor([0.0, -0.3679, -1.1052, 2.7183, 0.0]),
        "torch.minimum passes the gradient to the smaller one",
    )
    far = torch.where(mask, 0.0, 500.0)
    yield (
        "padding reaches no gradient, even where exp overflows",
        _gradient(lambda x: f(x, zeros, advantages, mask), far).isfinite().all().item(),
        True,
        "0 * inf is NaN; set the logratio to 0 on padding",
    )
    yield (
        "advantages are constants",
        _gradient(lambda a: f(zeros, zeros, a, mask), advantages),
        zeros,
        "detach them",
    )
    yield (
        "old_logprobs are constants",
        _gradient(lambda x: f(zeros, x, advantages, mask), zeros),
        zeros,
        "detach them",
    )
    yield (
        "different shapes are refused",
        _error(lambda: f(zeros, zeros, advantages[:, :1], mask)),
        ValueError,
        "(B, 1) would broadcast",
    )


@_check
def value_loss(f):
    """Checks `value_loss(values, old_values, returns, response_mask, clip_eps)`."""
    one, target = torch.tensor([[True]]), _row(3)

    def loss(value):
        return f(value, _row(1), target, one, clip_eps=0.5)  # old value 1, return 3

    yield (
        "at the old value: (1 - 3)^2 / 2",
        loss(_row(1)),
        torch.tensor(2.0),
        "the factor 1/2",
    )
    yield (
        "a big step to the return: (1.5 - 3)^2 / 2",
        loss(_row(3)),
        torch.tensor(1.125),
        "the larger of the clipped and the unclipped error",
    )
    yield (
        "a big step away: (0 - 3)^2 / 2",
        loss(_row(0)),
        torch.tensor(4.5),
        "clip value - old_value, and take the larger",
    )
    slopes = torch.cat([_gradient(loss, _row(value)) for value in (1, 3, 0)])
    yield (
        "beyond the clipped step, no gradient",
        slopes,
        torch.tensor([[-2.0], [0.0], [-3.0]]),
        "value - return, or 0",
    )
    values, mask = (
        torch.tensor([[1.0, 2.0, 3.0], [5.0, 70.0, 70.0]]),
        torch.tensor([[True] * 3, [True, False, False]]),
    )
    returns = torch.zeros(2, 3)
    yield (
        "mean over all response tokens",
        f(values, values, returns, mask),
        torch.tensor(4.875),  # (1+4+9+25)/4/2
        "neither a mean of row means nor one that counts padding",
    )
    constants = _gradient(
        lambda x: f(values, x[0], x[1], mask), torch.stack((values, returns))
    )
    yield (
        "old_values and returns are constants",
        constants,
        torch.zeros(2, 2, 3),
        "detach them",
    )
    yield (
        "different shapes are refused",
        _error(lambda: f(values, values, returns[:, :1], mask)),
        ValueError,
        "(B, 1) would broadcast",
    )


# --------------------------------------------------------------------- preference_loss.py


@_check
def bradley_terry_loss(f):
    """Checks `bradley_terry_loss(chosen_scores, rejected_scores, margin, reduction)`."""
    zero = torch.zeros(1)
    yield ("equal scores cost ln 2", f(zero, zero), torch.tensor(0.693147), "-log(1/2)")
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    hand = torch.tensor(
        [0.313262, 1.313262, 0.693147]
    )  # ln(1 + exp(-1)), ln(1 + e), ln 2
    yield (
        "one loss per pair",
        f(chosen, rejected, reduction="none"),
        hand,
        "-logsigmoid(chosen - rejected)",
    )
    yield (
        "the mean is the default, sum the other",
        torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
        torch.tensor([0.773224, 2.319671]),
        "mean over the pairs",
    )
    margins = torch.tensor([1 / 3, 2 / 3, 1.0, 3.0])
    yield (
        "a margin per pair",
        f(torch.zeros(4), torch.zeros(4), margins, "none"),
        torch.tensor([0.87364, 1.08104, 1.31326, 3.04859]),
        "subtract it from the difference: ln(1 + exp(m))",
    )
    slopes = torch.cat(
        [
            _gradient(lambda x, m=m: f(x, zero, m), torch.tensor([1.5]))
            for m in (0.0, 3.0)
        ]
    )
    yield (
        "slopes at difference 1.5, margins 0 and 3",
        slopes,
        torch.tensor([-0.18243, -0.81757]),
        "sigmoid(d - m) - 1",
    )
    yield (
        "a constant added to all scores changes nothing",
        f(chosen + 7, rejected + 7, reduction="none"),
        hand,
        "only differences count",
    )
    wrong = torch.tensor([-90.0])
    yield (
        "no overflow at difference -90",
        torch.stack((f(wrong, zero), _gradient(lambda x: f(x, zero), wrong)[0])),
        torch.tensor([90.0, -1.0]),
        "F.logsigmoid, not log(sigmoid), which underflows",
    )
    yield (
        "a margin (B, 1) is refused",
        _error(lambda: f(chosen, rejected, torch.ones(3, 1))),
        ValueError,
        "it would broadcast to a (B, B) loss",
    )
    yield (
        "a negative margin is refused",
        _error(lambda: f(chosen, rejected, -1.0)),
        ValueError,
        "0 or more",
    )


@_check
def safety_label_loss(f):
    """Checks `safety_label_loss(scores, labels, reduction)`."""
    scores, labels = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([True, False, True])
    hand = torch.tensor(
        [0.313262, 1.313262, 0.693147]
    )  # ln(1 + exp(-1)), ln(1 + e), ln 2
    yield (
        "1 is safe",
        f(scores, labels, reduction="none"),
        hand,
        "a high score and the label 1 agree",
    )
    yield (
        "mean over the answers",
        f(scores, labels),
        torch.tensor(0.773224),
        "divide by B",
    )
    yield (
        "labels may be 0.0 and 1.0",
        f(scores, labels.float(), reduction="none"),
        hand,
        "convert to the scores' dtype",
    )
    yield (
        "no overflow",
        f(torch.tensor([-90.0]), torch.tensor([1.0])),
        torch.tensor(90.0),
        "the version with logits",
    )
    yield (
        "labels (B, 1) are refused",
        _error(lambda: f(scores, labels[:, None])),
        ValueError,
        "(B, B) by broadcasting",
    )


class _SumOfIds(torch.nn.Module):
    """Stands in for a reward model: the score is the sum of the real ids; remembers the rows of each call."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.rows.append(len(ids))
        return self.weight * (ids if mask is None else ids * mask).sum(1)


@_check
def pair_scores(f):
    """Checks `pair_scores(reward_model, pairs)`."""
    model = _SumOfIds()
    pairs = [
        PairExample([5, 6, 7], [8, 9], 0.0, True, True, 1),
        PairExample([5, 6, 7], [1], 0.0, True, True, 1),
    ]
    scores = torch.stack(tuple(f(model, pairs)))  # (2, 2)
    yield (
        "the chosen first, then the rejected; padding counts nothing",
        scores,
        torch.tensor([[18.0, 18.0], [17.0, 1.0]]),
        "18 = 5 + 6 + 7 and 17 = 8 + 9; pass the mask that pad returns to the model",
    )
    yield ("one forward", len(model.rows), 1, "pad chosen and rejected texts together")
    yield (
        "a text that stands in two pairs is read once",
        model.rows[0],
        3,
        "collect the distinct texts first",
    )
    scores.sum().backward()
    yield (
        "the gradient reaches the model",
        model.weight.grad,
        torch.tensor(54.0),
        "no detach, no item",
    )


@_check
def centring_loss(f):
    """Checks `centring_loss(chosen_scores, rejected_scores, reduction)`."""
    chosen, rejected = torch.tensor([2.0, 1.0, -2.0]), torch.tensor([1.0, -1.0, 0.5])
    hand = torch.tensor([9.0, 0.0, 2.25])  # (2 + 1)^2, (1 - 1)^2, (-1.5)^2
    yield (
        "one loss per pair",
        f(chosen, rejected, reduction="none"),
        hand,
        "the square of chosen + rejected",
    )
    yield (
        "the mean is the default, sum the other",
        torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
        torch.tensor([3.75, 11.25]),
        "square first, then the mean over the pairs",
    )
    yield (
        "it does not ask which side won",
        f(rejected, chosen, reduction="none"),
        hand,
        "a sum, no difference",
    )
    slopes = torch.stack(
        (
            _gradient(lambda x: f(x, rejected, "sum"), chosen),
            _gradient(lambda x: f(chosen, x, "sum"), rejected),
        )
    )
    yield (
        "it pulls both scores of a pair alike, the harder the further",
        slopes,
        torch.tensor([[6.0, 0.0, -3.0]] * 2),
        "2 (chosen + rejected), for both",
    )
    yield (
        "scores (B, 1) are refused",
        _error(lambda: f(chosen[:, None], rejected)),
        ValueError,
        "(B, B) by broadcasting",
    )
    yield (
        "integer scores are refused",
        _error(lambda: f(chosen.long(), rejected.long())),
        TypeError,
        "floating point only",
    )
    yield (
        "NaN is refused",
        _error(lambda: f(chosen * math.nan, rejected)),
        ValueError,
        "finite scores only",
    )


def _counting_model():
    """A reward model whose lm_head knows one rule: after token a comes a + 1 with probability 1/2, each other with 1/20.

    Embeddings are far apart, both branches of the block are shut: a token's state depends on nothing but itself.
    """
    model = RewardModel(_tiny_llama(), keep_lm_head=True)
    table = torch.full((11, 11), 0.05) + 0.45 * torch.eye(11).roll(
        1, 1
    )  # [a, b] = P(b after a)
    with torch.no_grad():
        model.llama.embed_tokens.weight.copy_(
            10 * torch.eye(11, 32)
        )  # the norm makes it sqrt(32)
        model.llama.lm_head.weight[:, :11] = table.log().T / math.sqrt(32)
        for projection in (
            model.llama.layers[0].self_attn.o_proj,
            model.llama.layers[0].mlp.down_proj,
        ):
            projection.weight.zero_()
    return model


@_check
def chosen_lm_loss(f):
    """Checks `chosen_lm_loss(reward_model, pairs)`, on a language model in which a + 1 follows a with probability 1/2."""
    half, twentieth = math.log(2), math.log(20)
    short = PairExample(
        [1, 5, 6, 7], [1, 5, 9, 2], 0.0, True, True, 2
    )  # 6 and 7 count: 1/2, 1/2
    again = PairExample([1, 5, 6, 7], [1, 5, 9, 9], 0.0, True, True, 2)
    long = PairExample(
        [1, 5, 9, 8, 9, 4], [1, 5, 6, 7], 0.0, True, True, 2
    )  # 9, 8, 9, 4 count: 1/20, 1/20, 1/2, 1/20
    late = PairExample(
        [1, 5, 9, 8, 9, 4], [1, 5, 9, 8, 9, 10], 0.0, True, True, 4
    )  # 9 and 4 count: 1/2, 1/20
    yield (
        "two tokens of an answer, each with probability 1/2",
        f(_counting_model(), [short]),
        torch.tensor(half),
        "the logits at t predict the token at t + 1; count the chosen answer, not its prompt",
    )
    yield (
        "the answer starts where response_start says",
        f(_counting_model(), [late]),
        torch.tensor((half + twentieth) / 2),
        "loss_start is the pair's response_start",
    )
    six = torch.tensor((3 * half + 3 * twentieth) / 6)
    yield (
        "mean over tokens, without padding",
        f(_counting_model(), [short, long]),
        six,
        "six tokens count, each alike; no mean of the two answers' means",
    )
    yield (
        "an answer chosen twice is read once",
        f(_counting_model(), [short, again, long]),
        six,
        "collect the distinct chosen texts first",
    )
    model = _counting_model()
    f(model, [long]).backward()
    reached = [
        layer.weight.grad is not None and layer.weight.grad.abs().max().item() > 1e-6
        for layer in (model.llama.lm_head, model.llama.embed_tokens)
    ]
    yield (
        "its gradient reaches lm_head and body",
        reached,
        [True, True],
        "no detach, no item, no torch.no_grad",
    )
    yield (
        "without lm_head it is refused",
        _error(lambda: f(RewardModel(_tiny_llama()), [short])),
        ValueError,
        "look whether reward_model.llama.lm_head is None",
    )


# ------------------------------------------------------------------------ reward_model.py


def _two_rows():
    """States (2, 4, 2) of two texts, 4 and 2 real tokens, and their mask (right padding); padding holds 99."""
    states = torch.full((2, 4, 2), 99.0)
    states[0] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 2.0], [6.0, 2.0]])
    states[1, :2] = torch.tensor([[4.0, 1.0], [8.0, 3.0]])
    return states, torch.tensor([[True] * 4, [True, True, False, False]])


@_check
def last_token(f):
    """Checks `last_token(mask)`."""
    states, mask = _two_rows()
    yield (
        "booleans come back",
        (f(mask).dtype, tuple(f(mask).shape)),
        (torch.bool, (2, 4)),
        "True or False, (B, T)",
    )
    yield (
        "right padding",
        f(mask).nonzero().tolist(),
        [[0, 3], [1, 1]],
        "the last True of each row, not the last column",
    )
    yield (
        "left padding",
        f(mask.roll(2, 1)[1:]).nonzero().tolist(),
        [[0, 3]],
        "mask.sum() - 1 finds the last real token only where padding stands on the right",
    )
    yield (
        "one real token",
        f(torch.tensor([[False, True, False]])).tolist(),
        [[False, True, False]],
        "that one",
    )
    yield (
        "as an index it picks one state a row",
        states[f(mask)],
        torch.tensor([[6.0, 2.0], [8.0, 3.0]]),
        "one True a row",
    )


@_check
def pool_mean(f):
    """Checks `pool_mean(hidden, mask)`."""
    states, mask = _two_rows()
    yield (
        "right padding",
        f(states, mask),
        torch.tensor([[3.0, 1.0], [6.0, 2.0]]),
        "12 / 4, 4 / 4 and 12 / 2, 4 / 2",
    )
    yield (
        "left padding",
        f(states.roll(2, 1), mask.roll(2, 1))[1],
        torch.tensor([6.0, 2.0]),
        "sum over True, divide by their number",
    )
    noisy = torch.where(mask[:, :, None], states, torch.nan)
    yield (
        "padding may hold anything, NaN included",
        f(noisy, mask)[1],
        torch.tensor([6.0, 2.0]),
        "masked_fill before the sum: 0 times NaN is NaN",
    )


@_check
def score_normalisation(f):
    """Checks `score_normalisation(scores, centre_only)`."""
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0])
    yield (
        "mean and standard deviation of 1, 2, 3, 4",
        torch.tensor(f(scores)),
        torch.tensor([2.5, 1.290994]),
        "the unbiased one, sqrt(5 / 3): divide by N - 1",
    )
    yield ("two plain numbers", [type(x) for x in f(scores)], [float, float], "item()")
    yield (
        "a mean below 0 keeps its sign",
        torch.tensor(f(-scores)),
        torch.tensor([-2.5, 1.290994]),
        "the mean, no size",
    )
    yield (
        "centred only",
        f(scores, centre_only=True),
        (2.5, 1.0),
        "the std is 1.0, so that nothing is rescaled",
    )
    yield (
        "one score can be centred",
        f(torch.tensor([7.0]), centre_only=True),
        (7.0, 1.0),
        "this needs no std",
    )
    far = torch.tensor([1e6 + 1, 1e6 + 2, 1e6 + 3])
    yield (
        "an offset of a million",
        torch.tensor(f(far, True)[0] - 1e6),
        torch.tensor(2.0),
        "sum in float64",
    )
    yield (
        "equal scores have no scale",
        _error(lambda: f(torch.ones(3))),
        ValueError,
        "refuse an std of 0",
    )
    yield (
        "one score has no std",
        _error(lambda: f(torch.ones(1))),
        ValueError,
        "two different ones are needed",
    )
    yield (
        "NaN is refused",
        _error(lambda: f(scores * math.nan, True)),
        ValueError,
        "finite scores only",
    )
    yield (
        "no score at all is refused",
        _error(lambda: f(scores[:0], True)),
        ValueError,
        "at least one",
    )


@_check
def reward_model(f):
    """Checks `RewardModel(llama, pooling, keep_lm_head, generator)`, the class."""
    llama = _tiny_llama(dim=256)
    model = f(llama, generator=torch.Generator().manual_seed(1))
    long, short = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    right, left = (
        torch.cat((long, F.pad(short, (0, 2)))),
        torch.cat((long, F.pad(short, (2, 0)))),
    )
    with torch.no_grad():
        head, states = model.score.weight[0], llama.hidden(short)  # (D,), (1, 3, D)
        by_hand = torch.cat((llama.hidden(long)[:, -1] @ head, states[:, -1] @ head))
        mean_head = (mean_model := f(llama, pooling="mean")).score.weight[0]
        mean_by_hand = torch.stack(
            (llama.hidden(long).mean(1)[0] @ mean_head, states.mean(1)[0] @ mean_head)
        )
    yield (
        "the head's std is 1 / sqrt(dim + 1)",
        0.8 < head.std().item() * math.sqrt(257) < 1.2,
        True,
        "1 / (dim + 1) is the variance",
    )
    yield (
        "right padding: one score per row, at the last real token",
        model(right, mask),
        by_hand,
        "the last True of the mask, not column -1",
    )
    yield (
        "left padding",
        model(left, torch.stack((mask[0], mask[1].flip(0)))),
        by_hand,
        "the last True is not at mask.sum() - 1 here",
    )
    yield (
        "mean pooling, over real tokens",
        mean_model(right, mask),
        mean_by_hand,
        "divide by the number of real tokens",
    )
    parameters = sum(p.numel() for p in model.parameters())
    yield (
        "number of parameters",
        parameters,
        sum(p.numel() for p in llama.parameters()) - 11 * 256 + 256,
        "the lm_head goes, a head of dim weights without bias comes",
    )
    model.train()(right, mask).sum().backward()
    yield (
        "the language model is not trained along",
        all(p.grad is None for p in llama.parameters()),
        True,
        "deep copy",
    )
    model.set_normalisation(2.0, 4.0)
    yield (
        "no normalisation in train mode",
        model.train()(right, mask),
        by_hand,
        "look at self.training",
    )
    yield (
        "normalisation in eval mode",
        model.eval()(right, mask),
        (by_hand - 2) / 4,
        "(score - mean) / std",
    )
    yield (
        "an unknown pooling is refused",
        _error(lambda: f(llama, pooling="first")),
        ValueError,
        '"last" or "mean"',
    )


# ------------------------------------------------------------------------------- audit.py


@_check
def length_only_accuracy(f):
    """Checks `length_only_accuracy(longer_by, exact)`."""
    exact = torch.tensor([0.9, 0.8, 0.6])
    yield (
        "the longer answer of each pair",
        torch.tensor(f(torch.tensor([3.0, 1.0, 2.0]), exact)),
        torch.tensor(0.766667),
        "mean of P(chosen preferred) where the chosen answer is longer",
    )
    yield (
        "a shorter one counts the other way",
        torch.tensor(f(torch.tensor([3.0, 1.0, -2.0]), exact)),
        torch.tensor(0.7),
        "1 - P where the chosen answer is shorter: (0.9 + 0.8 + 0.4) / 3",
    )
    yield (
        "'the shorter one wins' may be the better rule",
        torch.tensor(f(torch.tensor([-1.0, -2.0, -3.0]), exact)),
        torch.tensor(0.766667),
        "the better of both rules: max(a, 1 - a)",
    )
    yield (
        "equal lengths are a coin flip",
        torch.tensor(f(torch.tensor([0.0, 0.0, 5.0]), exact)),
        torch.tensor(0.533333),
        "one half each: (0.5 + 0.5 + 0.6) / 3",
    )


@_check
def brier_score(f):
    """Checks `brier_score(predicted, exact)`."""
    exact = torch.tensor([0.9, 0.5])
    yield (
        "the exact probabilities themselves",
        torch.tensor(f(exact, exact)),
        torch.tensor(0.17),
        "the outcome stays random: p (1 - p), (0.09 + 0.25) / 2",
    )
    yield (
        "certainty about the likelier side",
        torch.tensor(f(torch.tensor([1.0, 1.0]), exact)),
        torch.tensor(0.3),
        "p (1 - predicted)^2 + (1 - p) predicted^2: (0.1 + 0.5) / 2",
    )
    yield (
        "one half for both",
        torch.tensor(f(torch.tensor([0.5, 0.5]), exact)),
        torch.tensor(0.25),
        "1/4 whatever p",
    )
    yield (
        "labels as they are",
        torch.tensor(f(torch.tensor([0.8, 0.4]), torch.ones(2))),
        torch.tensor(0.2),
        "(0.2^2 + 0.6^2) / 2",
    )


@_check
def brier_floor(f):
    """Checks `brier_floor(exact)`."""
    yield (
        "probabilities .9 and .5",
        torch.tensor(f(torch.tensor([0.9, 0.5]))),
        torch.tensor(0.17),
        "p (1 - p): the variance of the outcome, not the smaller of p^2 and (1 - p)^2",
    )
    yield (
        "no doubt, no floor",
        torch.tensor(f(torch.tensor([1.0, 0.0]))),
        torch.tensor(0.0),
        "p (1 - p) at 0 and 1",
    )
    yield (
        "the largest floor",
        torch.tensor(f(torch.tensor([0.5]))),
        torch.tensor(0.25),
        "p (1 - p) at one half",
    )


@_check
def length_balanced(f):
    """Checks `length_balanced(groups, length, rng)`."""
    short, long, longer = "1 a", "1 a b", "1 a b c"
    groups = [
        _compared((long, short), (long, short), (short, long)),
        _compared((longer, short), (long, long)),
        _compared((longer, short), (short, longer), (long, short)),
    ]
    kept = f(groups, lambda text: len(text.split()), random.Random(0))
    by = [
        len(x.chosen.split()) - len(x.rejected.split()) for group in kept for x in group
    ]
    yield (
        "differences of length that are left",
        sorted(by),
        [-2, -1, 0, 1, 2],
        "for each size of the difference keep as many with a longer as with a shorter winner; keep all of equal length",
    )
    yield (
        "never more than were there",
        len(kept) <= 3 and all(len(group) <= 3 for group in kept),
        True,
        "filter each group",
    )
    yield (
        "a group that is left empty is dropped",
        f([_compared((long, short))], len, random.Random(0)),
        [],
        "no empty lists",
    )


class _Recorder:
    """A `Stepper` that takes no step: it keeps the losses and which answers they came from."""

    def __init__(self):
        self.losses, self.rows = [], []

    def step(self, loss, batch_ids):
        self.losses.append(loss.item())
        self.rows.append(list(batch_ids))


def _four_answers(policy):
    """An `Experience` of a tiny policy: four answers of three tokens, with advantages 1, 2, 3 and 6."""
    ids = torch.tensor([[1, 4, 5, 6], [1, 7, 8, 9], [1, 5, 4, 3], [1, 9, 9, 2]])
    mask, response_mask = (
        torch.ones(4, 4, dtype=torch.bool),
        torch.tensor([[False, True, True, True]]).expand(4, 4),
    )
    with torch.no_grad():
        logprobs = F.pad(
            torch.log_softmax(policy(ids)[:, :-1], -1)
            .gather(-1, ids[:, 1:, None])
            .squeeze(-1),
            (1, 0),
        )
    flat, worth = (
        torch.zeros(4),
        torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * response_mask,
    )
    return Experience(
        ids,
        mask,
        response_mask,
        logprobs,
        logprobs,
        torch.zeros(4, 4),
        flat,
        flat,
        flat,
        flat,
        worth,
        worth,
        worth,
    )


@_check
def response_logprobs(f):
    """Checks `response_logprobs(model, ids, mask, response_mask)`."""
    model, zero = _tiny_llama(), torch.zeros(1, 2)
    text, mask = torch.tensor([[3, 1, 4, 1, 5]]), torch.ones(1, 5, dtype=torch.bool)
    counted = torch.tensor([[False, False, True, True, True]])
    table = torch.log_softmax(model(text), -1)[0]  # (5, V)
    expected = torch.stack(
        [table[t - 1, text[0, t]] if t >= 2 else table.new_zeros(()) for t in range(5)]
    )[None]
    yield (
        "log p of a token stands where the token stands",
        f(model, text, mask, counted),
        expected,
        "position t - 1 predicts token t; 0 where the response is not",
    )
    ids = torch.cat((F.pad(text, (2, 0)), F.pad(text, (0, 2))))
    masks = [torch.cat((F.pad(x, (2, 0)), F.pad(x, (0, 2)))) for x in (mask, counted)]
    yield (
        "padding on either side changes nothing",
        f(model, ids, *masks),
        torch.cat((torch.cat((zero, expected), 1), torch.cat((expected, zero), 1))),
        "pass the mask to the model",
    )
    got = f(model, text, mask, counted)
    yield (
        "they carry a gradient",
        got.requires_grad,
        True,
        "PPO's loss climbs through them",
    )


@_check
def ppo_step(f):
    """Checks `ppo_step(policy, value_model, policy_stepper, value_stepper, experience, settings, generator)`."""
    policy, (first, second) = _tiny_llama(), (_Recorder(), _Recorder())
    value_model = ValueModel(RewardModel(policy))
    settings = PPOSettings(epochs=3, minibatches=2)
    clipped, value_error = f(
        policy,
        value_model,
        first,
        second,
        _four_answers(policy),
        settings,
        torch.Generator().manual_seed(0),
    )
    yield (
        "3 epochs of 2 minibatches are 6 steps",
        (len(first.losses), len(second.losses)),
        (6, 6),
        "for both models",
    )
    epochs = [sorted(first.rows[i] + first.rows[i + 1]) for i in (0, 2, 4)]
    yield (
        "every answer once an epoch",
        epochs,
        [[0, 1, 2, 3]] * 3,
        "a random order, cut into minibatches",
    )
    yield (
        "in an order that changes",
        len({tuple(rows) for rows in first.rows[::2]}) > 1,
        True,
        "a new one each epoch",
    )
    # 12 tokens with mean 3 and unbiased variance (4 + 1 + 0 + 9) * 3 / 11
    white = [(worth - 3) / math.sqrt(42 / 11) for worth in (1, 2, 3, 6)]
    expected = torch.tensor([-(white[a] + white[b]) / 2 for a, b in first.rows])
    yield (
        "at ratio 1 the loss is minus the mean advantage, whitened over the whole batch",
        torch.tensor(first.losses),
        expected,
        "whiten once, before the minibatches are cut",
    )
    expected = torch.tensor(
        [
            ((a + b) / 4)
            for a, b in [((1, 4, 9, 36)[i], (1, 4, 9, 36)[j]) for i, j in second.rows]
        ]
    )
    yield (
        "values 0 miss the returns by 1, 2, 3, 6",
        torch.tensor(second.losses),
        expected,
        "returns stay as they are: whitened ones would teach the value model noise",
    )
    yield "no ratio has moved yet", clipped, 0.0, "the mean clip fraction comes first"
    yield (
        "and the mean value loss",
        torch.tensor(value_error),
        torch.tensor(6.25),
        "then this",
    )  # (1 + 4 + 9 + 36) / 4 / 2


def _three_answers():
    """Log-probabilities and scores of three answers: (.5, .3, .2) and (0, 1, 2)."""
    return torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor(
        [0.0, 1.0, 2.0], dtype=torch.float64
    )


@_check
def objective(f):
    """Checks `objective(logp, ref_logp, scores, beta)`."""
    ref_logp, scores = _three_answers()
    logp = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64).log()
    yield (
        "the reference pays no KL: its mean score, 0.3 + 0.4",
        f(ref_logp, ref_logp, scores, 1.0),
        torch.tensor(0.7),
        "E[score] first",
    )
    yield (
        "a policy that left it: 1.6 - 0.5 * 0.6349",
        f(logp, ref_logp, scores, 0.5),
        torch.tensor(1.28255),
        "minus beta times the sum of p * (log p - log ref_p)",
    )
    yield (
        "beta = 0: the mean score alone",
        f(logp, ref_logp, scores, 0.0),
        torch.tensor(1.6),
        "beta multiplies the KL only",
    )
    yield (
        "its slope at the reference is that of the mean score",
        _gradient(lambda x: f(x.log_softmax(0), ref_logp, scores, 1.0), ref_logp),
        torch.tensor([-0.35, 0.09, 0.26]),
        "the KL has its minimum there; nothing may be detached",
    )


@_check
def optimal_policy(f):
    """Checks `optimal_policy(ref_logp, scores, beta)`."""
    ref_logp, scores = _three_answers()
    best, height = f(ref_logp, scores, 1.0)
    yield (
        "weights .5, .3 e, .2 e^2, divided by their sum",
        best.exp(),
        torch.tensor([0.1790, 0.29194, 0.52906]),
        ("pi_ref * exp(score / beta), normalised; log-probabilities go in and out"),
    )
    yield (
        "J(pi*) = beta log Z = log 2.7933",
        height,
        torch.tensor(1.02722),
        "the logarithm of the sum before it is divided out",
    )
    colder, height = f(ref_logp, scores, 0.5)
    yield (
        "half the beta: weights .5, .3 e^2, .2 e^4",
        colder.exp(),
        torch.tensor([0.03667, 0.16256, 0.80077]),
        "the score is divided by beta",
    )
    yield (
        "and half the log of their sum, 13.636",
        height,
        torch.tensor(1.30637),
        "beta log Z, not log Z",
    )
    same, height = f(ref_logp, torch.full_like(scores, 3.0), 0.5)
    yield (
        "equal scores: nothing to gain, the reference stays",
        same,
        ref_logp,
        "a constant drops out when normalised",
    )
    yield "and its objective is that score", height, torch.tensor(3.0), "no KL is paid"
    far, _ = f(ref_logp, 1000 * scores, 1.0)
    yield (
        "scores of 2000 do not overflow",
        far.exp(),
        torch.tensor([0.0, 0.0, 1.0]),
        "use logsumexp",
    )
    yield (
        "beta = 0 is refused",
        _error(lambda: f(ref_logp, scores, 0.0)),
        ValueError,
        "the optimum need not be unique",
    )


@_check
def best_of_n_policy(f):
    """Checks `best_of_n_policy(logp, scores, n)`."""
    logp, scores = _three_answers()
    yield (
        "n = 1 is the policy itself",
        f(logp, scores, 1),
        logp,
        "one draw chooses nothing",
    )
    yield (
        "n = 2: .5^2, .8^2 - .5^2, 1 - .8^2",
        f(logp, scores, 2).exp(),
        torch.tensor([0.25, 0.39, 0.36]),
        "chance that all n score at most this much, less that all n score below",
    )
    yield (
        "the order of the answers does not matter",
        f(logp, -scores, 2).exp(),
        torch.tensor([0.75, 0.21, 0.04]),
        "accumulate in the order of the scores",
    )
    tied = f(logp, torch.tensor([0.0, 1.0, 1.0]), 2).exp()
    yield (
        "ties share .75 as .3 to .2",
        tied,
        torch.tensor([0.25, 0.45, 0.3]),
        "the first draw among equals wins",
    )
    yield (
        "different shapes are refused",
        _error(lambda: f(logp, scores[:2], 2)),
        ValueError,
        "one score an answer",
    )


@_check
def best_of_n_mean(f):
    """Checks `best_of_n_mean(scores, gold, n)`."""
    scores, gold = (
        torch.tensor([[0.3, 0.1, 0.9, 0.5]]),
        torch.tensor([[1.0, 2.0, 3.0, 7.0]]),
    )
    yield (
        "n = 1: the plain mean",
        f(scores, gold, 1),
        torch.tensor([3.25]),
        "every draw is the best of itself",
    )
    yield (
        "n = 4: the gold of the highest score",
        f(scores, gold, 4),
        torch.tensor([3.0]),
        "scores choose, gold reports",
    )
    yield (
        "n = 2: the mean over the six pairs",
        f(scores, gold, 2),
        torch.tensor([4.0]),  # (1 + 3 + 7 + 3 + 7 + 3) / 6
        "the i-th lowest is the best of C(i - 1, n - 1) of the C(M, n) subsets",
    )
    yield (
        "one number a prompt",
        tuple(f(scores.repeat(3, 1), gold.repeat(3, 1), 2).shape),
        (3,),
        "rows are prompts",
    )
    yield (
        "more than there are is refused",
        _error(lambda: f(scores, gold, 5)),
        ValueError,
        "without repetition",
    )
