"""Checks of lessons 01 to 06: tokens, the model, sampling, training on text."""

import bisect
import dataclasses
import functools
import itertools
import math
from collections import Counter

import torch

from minillama import model
from minillama.course.checks.case import (
    check,
    error_of,
    gradient,
    row,
    tiny_config,
    tiny_llama,
    tiny_tokenizer,
)
from minillama.data import Example

NOTHING = torch.tensor(0.0)


def randomised(module, seed=0):
    """Return the module with every parameter, norms too, drawn anew and large."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
    return module


def gap(got, expected):
    """Return the largest difference, a number that a message can show."""
    if not isinstance(got, torch.Tensor):
        return got
    if got.shape != expected.shape:
        return tuple(got.shape)
    return (got.detach() - expected.detach()).abs().max()


def in_pieces(call, cache, x, mask):
    """Return call(x, mask, cache) joined over pieces of x (B, T, …), or its error.

    The pieces have two columns, one and the rest. A cache that is not used shows as
    shapes that do not fit.
    """
    sizes = [2, 1, x.shape[1] - 3]
    pieces = zip(x.split(sizes, 1), mask.split(sizes, 1), strict=True)
    try:
        with torch.no_grad():
            return torch.cat([call(x, mask, cache) for x, mask in pieces], 1)
    except NotImplementedError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"


def wrong_gradients(module, got, expected, **inputs):
    """Return the names of weights, and of inputs, that feel `got` in a wrong way.

    The gradient is that of a sum with random shares, so that nothing cancels.
    """
    leaves = dict(module.named_parameters()) | inputs
    wrong = [name for name, x in leaves.items() if not x.requires_grad]
    if wrong or not got.requires_grad:
        return wrong or sorted(leaves)
    shares = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9))
    slopes = (
        torch.autograd.grad(
            (result * shares).sum(),
            leaves.values(),
            retain_graph=True,
            allow_unused=True,
        )
        for result in (got, expected)
    )
    for name, one, other in zip(leaves, *slopes, strict=True):
        if one is None or (one - other).abs().max() > 1e-4 * other.abs().max():
            wrong.append(name)
    return wrong


# ---------------------------------------------------------------------------- 01 tokens


@check
def count_pairs(f):
    """Check `count_pairs(words)`."""
    words = {("a", "b", "a", "b"): 2, ("b", "a"): 1}
    yield (
        "abab twice and ba once",
        dict(f(words)),
        {("a", "b"): 4, ("b", "a"): 3},
        "a word that comes twice counts twice; a b is another pair than b a",
    )
    yield (
        "the words stay as they were",
        words,
        {("a", "b", "a", "b"): 2, ("b", "a"): 1},
        "change no argument",
    )
    yield (
        "three equal pieces hold two pairs",
        dict(f({("a", "a", "a"): 1})),
        {("a", "a"): 2},
        "look at every place but the last",
    )
    yield (
        "a word of one piece has no pair",
        dict(f({("tea",): 5})),
        {},
        "count within each word",
    )
    yield (
        "a piece may be longer than a letter",
        dict(f({("t", "ea"): 3, ("ea", "t"): 1})),
        {("t", "ea"): 3, ("ea", "t"): 1},
        "count pieces, not letters",
    )
    yield (
        "what comes back",
        isinstance(f(words), Counter),
        True,
        "return a Counter, which knows its most_common",
    )


@check
def merge(f):
    """Check `merge(pieces, pair)`."""
    yield (
        "e + a in s e a t",
        f(("s", "e", "a", "t"), ("e", "a")),
        ("s", "ea", "t"),
        "glue the two, keep the rest; a tuple comes back",
    )
    yield (
        "at every place",
        f(("e", "a", "e", "a", "t", "e", "a"), ("e", "a")),
        ("ea", "ea", "t", "ea"),
        "a pair may stand there more than once, and at both ends",
    )
    yield (
        "from left to right",
        f(("a", "a", "a"), ("a", "a")),
        ("aa", "a"),
        "a piece that was glued is used up",
    )
    yield (
        "both pieces, in this order only",
        f(("a", "e", "b", "a", "e"), ("e", "a")),
        ("a", "e", "b", "a", "e"),
        "a e is another pair than e a, and so are e b and b a",
    )
    yield (
        "pieces, not letters",
        f(("t", "e", "a", "m", "t", "ea"), ("te", "a")),
        ("t", "e", "a", "m", "t", "ea"),
        "there is no piece te yet, and t ea is another pair than te a",
    )
    yield (
        "whole pieces",
        f(("te", "a", "m", "e", "am"), ("e", "a")),
        ("te", "a", "m", "e", "am"),
        "te a and e am are other pairs than e a",
    )
    yield (
        "bytes are pieces too",
        f((b"a", b"b", b"c"), (b"a", b"b")),
        (b"ab", b"c"),
        "glue with +",
    )
    yield ("no pieces", f((), ("a", "b")), (), "then there is nothing to glue")


@check
def train_tokenizer(f):
    """Check `train_tokenizer(texts, vocab_size)`."""
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
            (
                "identity normalisation, no dummy prefix, byte fallback, and no space "
                "removed"
            ),
        )
    yield (
        "the pieces of 'ab'",
        trained.tokens(trained.encode("ab")),
        ["ab"],
        "no dummy prefix: a text gets no space that it has not",
    )
    typed = "[INST] [/INST] </s> <s> <pad> <unk>"
    yield (
        "the ids of symbols in a text that spells them",
        [i for i in trained.encode(typed) if i < 6],
        [],
        "control symbols cannot be typed, user-defined ones can",
    )
    yield (
        "a piece may begin with a space",
        sorted(f([" ab"] * 20, 267).tokens(range(262, 267))),
        ["a", "ab", "b", "▁", "▁ab"],
        "train on the texts as they are",
    )
    texts = ("XyXyXy", "Xy", "Xy", "Xy", "XzXzXzXzXz")  # six times Xy, five times Xz
    counted = f((text for text in texts), 266).tokens(range(262, 266))
    yield (
        "pieces of texts from a generator, the merged one and the letters",
        [counted[0], *sorted(counted[1:])],
        ["Xy", "X", "y", "z"],
        "every text counts once, as often as it comes; a generator gives them once",
    )
    yield (
        "a letter that comes once in 3000",
        "z" in f(["ab" * 100] * 15 + ["z"], 266).tokens(range(262, 266)),
        True,
        "character_coverage 1: bytes are for letters that the texts never have",
    )
    yield (
        "ids of twenty texts 'ab', of at most 400",
        f(["ab"] * 20, 400).vocab_size,
        265,
        "the limit is soft: a, b and ab, for no piece reaches over two texts",
    )
    yield (
        "262 leaves no room",
        error_of(lambda: f(["ab"], 262)),
        ValueError,
        "6 symbols and 256 bytes",
    )
    yield (
        "264 leave no room for five letters",
        error_of(lambda: f(["abcde"], 264)),
        ValueError,
        "every letter of the texts must fit: refuse",
    )


# spaces, letters, line ends and symbols where a careless hand would lose them
TYPED = "  Ab [INST]\n <s> ab </s>[/INST]  b \n "


@check
def encode_prompt(f):
    """Check `encode_prompt(tokenizer, prompt)`."""
    tiny = tiny_tokenizer()
    ab, space = tiny.encode("ab"), tiny.encode(" ")
    yield (
        "<s> [INST] ab [/INST]",
        f(tiny, "ab"),
        [1, 4, *space, *ab, 5],
        "ids 1, 4 and 5 around the pieces of ' ab'",
    )
    spelled = f(tiny, TYPED)
    yield (
        "the symbols of a prompt that spells symbols",
        [i for i in spelled if i < 6],
        [1, 4, 5],
        "encode the text by itself, as text: nobody can type a symbol",
    )
    yield (
        "the texts come back, ends of lines at their ends too",
        [tiny.decode(f(tiny, text)) for text in (TYPED, "\nb\t")],
        [" " + TYPED, " \nb\t"],
        "no piece may be lost, and one space be added, whatever is there already",
    )
    yield (
        "an empty prompt is a prompt",
        f(tiny, ""),
        [1, 4, *space, 5],
        "the space stays",
    )
    yield (
        "ids of a long prompt",
        len(f(tiny, "ab " * 1000)),
        3 + len(tiny.encode(" " + "ab " * 1000)),
        "cut nothing off, and let no id 2 end it: the model is to go on from here",
    )


@check
def encode_response(f):
    """Check `encode_response(tokenizer, response)`."""
    tiny = tiny_tokenizer()
    ab, space = tiny.encode("ab"), tiny.encode(" ")
    yield ("ab </s>", f(tiny, "ab"), [*space, *ab, 2], "the pieces of ' ab', then id 2")
    spelled = f(tiny, TYPED + "</s>")
    yield (
        "the symbols of a response that spells symbols",
        [i for i in spelled if i < 6],
        [2],
        "encode the text by itself, as text, and end it whatever it says",
    )
    yield (
        "the texts come back, whatever they end in",
        [tiny.decode(f(tiny, text)) for text in (TYPED, "\nb\t", "b</s>")],
        [" " + TYPED, " \nb\t", " b</s>"],
        "no piece may be lost, and one space be added, whatever is there already",
    )
    yield (
        "ids of a long response",
        len(f(tiny, "ab " * 1000)),
        1 + len(tiny.encode(" " + "ab " * 1000)),
        "cut nothing off",
    )
    yield (
        "an empty response ends at once",
        f(tiny, ""),
        [*space, 2],
        "the space stays",
    )


@check
def decode_response(f):
    """Check `decode_response(tokenizer, ids)`."""
    tiny = tiny_tokenizer()
    ids = [*tiny.encode(" ab b"), 2]
    yield (
        "the text without its opening space",
        f(tiny, ids),
        "ab b",
        "encode_response put one space before it",
    )
    more = [*ids, *tiny.encode("bbb"), 2, 3]
    yield (
        "what follows the end does not count",
        f(tiny, more),
        "ab b",
        "cut at the first id 2",
    )
    yield (
        "the ids stay as they were",
        more,
        [*ids, *tiny.encode("bbb"), 2, 3],
        "change no argument",
    )
    yield (
        "responses that were cut off",
        [f(tiny, tiny.encode(text)) for text in (" ab b", " ab b ab b")],
        ["ab b", "ab b ab b"],
        "there may be no id 2",
    )
    yield (
        "a response of its end alone",
        f(tiny, [2, *ids[:-1]]),
        "",
        "the first id 2 may stand at place 0",
    )
    yield (
        "one space only, and nothing else",
        f(tiny, [*tiny.encode(" " + TYPED + "☺"), 2]),
        TYPED + "☺",
        "remove one space in front, and decode all ids together",
    )
    yield (
        "texts that end in a space and in a new line",
        [f(tiny, tiny.encode(" " + text)) for text in ("b ", "\nb\n")],
        ["b ", "\nb\n"],
        "what stands at the end stays",
    )
    yield (
        "a response without an opening space",
        f(tiny, [*tiny.encode("ab b"), 2]),
        "ab b",
        "a model may write so; then there is nothing to remove",
    )
    yield (
        "other symbols end nothing",
        f(tiny, [*tiny.encode(" ab"), 3, 5, *tiny.encode("b"), 2]),
        "abb",
        "id 2 alone is the end; decode leaves symbols out",
    )
    yield (
        "a tensor of ids",
        f(tiny, torch.tensor(ids)),
        "ab b",
        "turn each id into an int",
    )


def counted():
    """Return counts of pairs, new ones each time, so that nobody can spoil them.

    0 came once, 1 three times, 2 never; 2 stands before nothing that counts.
    """
    return torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).double()


@check
def count_bigrams(f):
    """Check `count_bigrams(examples, vocab_size)`."""
    texts = [Example([0, 1, 1], 1), Example([2, 1, 0, 1], 2), Example([2], 1)]
    counts = f(texts, 3)
    yield (
        "three texts by hand",
        counts,
        counted(),
        "row: the token before; column: the token that came; count from loss_start on",
    )
    yield (
        "numbers that can be divided and multiplied",
        counts.dtype,
        torch.float64,
        "the table is float64",
    )
    yield (
        "the texts stay as they were",
        [text.ids for text in texts],
        [[0, 1, 1], [2, 1, 0, 1], [2]],
        "change no argument",
    )
    yield (
        "the last token of a text is not followed by the next text",
        f([Example([0, 1], 1), Example([2, 3], 1)], 4).nonzero().tolist(),
        [[0, 1], [2, 3]],
        "count within each text",
    )
    yield (
        "a token after itself in three equal texts, and a row for every id",
        f([Example([1, 1, 1], 1) for _ in range(3)], 3),
        torch.tensor([[0, 0, 0], [0, 6, 0], [0, 0, 0]]),
        "the table is (V, V) whatever comes; every text counts, and all of its pairs",
    )
    yield (
        "only the pairs whose second token counts",
        f([Example([0, 1, 2, 0, 1], 3)], 3).nonzero().tolist(),
        [[0, 1], [2, 0]],
        "the first token that counts stands at loss_start; its pair begins one before",
    )
    yield (
        "no pair at all",
        f([Example([1], 1)], 2),
        torch.zeros(2, 2),
        "then the table is zeros",
    )


@check
def unigram_logprobs(f):
    """Check `unigram_logprobs(counts)`."""
    untouched = counted()
    yield (
        "(1 + 1, 3 + 1, 0 + 1) / (4 + 3) by hand",
        f(untouched),
        torch.tensor([2 / 7, 4 / 7, 1 / 7]).log(),
        "how often each token came, plus 1, over all of them; natural logarithms",
    )
    yield ("the counts stay as they were", untouched, counted(), "change no argument")
    yield (
        "no counts at all",
        f(torch.zeros(4, 4)),
        torch.full((4,), -math.log(4)),
        "then all tokens are equally likely",
    )
    yield (
        "one more for every token, not for every pair",
        f(torch.tensor([[0.0, 6.0], [1.0, 0.0]])).exp(),
        torch.tensor([2 / 9, 7 / 9]),
        "(1 + 1, 6 + 1) / (7 + 2)",
    )


@check
def bigram_logprobs(f):
    """Check `bigram_logprobs(counts, strength=1.0)`."""
    untouched = counted()
    # one more sighting in each row, shared as 2/7, 4/7, 1/7
    yield (
        "three rows by hand",
        f(untouched).exp(),
        torch.tensor([[2.0, 18.0, 1.0], [9.0, 11.0, 1.0], [6.0, 12.0, 3.0]]) / 21,
        "(count + strength * p(b)) / (sum of the row + strength)",
    )
    yield ("the counts stay as they were", untouched, counted(), "change no argument")
    yield (
        "four more sightings a row",
        f(untouched, strength=4.0).exp(),
        torch.tensor([[8.0, 30.0, 4.0], [15.0, 23.0, 4.0], [12.0, 24.0, 6.0]]) / 42,
        "strength multiplies the unigram's probabilities",
    )
    yield (
        "a quarter of a sighting a row",
        f(untouched, 0.25).exp(),
        torch.tensor([[2.0, 60.0, 1.0], [30.0, 32.0, 1.0], [18.0, 36.0, 9.0]]) / 63,
        "the strength may be below 1; divide each row by its own sum",
    )
    yield (
        "two tokens, each followed by the other, by hand",
        f(torch.tensor([[0.0, 6.0], [2.0, 0.0]])).exp(),
        torch.tensor([[0.3 / 7, 6.7 / 7], [2.3 / 3, 0.7 / 3]]),
        "the unigram's probabilities are 0.3 and 0.7",
    )
    yield (
        "what was seen a million times speaks for itself",
        f(1e6 * counted())[:2, :2].exp(),
        torch.tensor([[0.0, 1.0], [0.5, 0.5]]),
        "the strength does not grow with the counts",
    )


@check
def table_nats(f):
    """Check `table_nats(logprobs, counts)`."""
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    table = table.double().log()
    given = table.clone(), counted()
    # two pairs of ln 4, one of ln 10, one of -ln .8
    by_hand = (2 * math.log(4) + math.log(10) - math.log(0.8)) / 4
    yield (
        "four pairs by hand",
        row(f(*given)),
        row(by_hand),
        "-sum of count * log p, divided by the number of pairs",
    )
    yield (
        "table and counts stay as they were",
        torch.stack(given),
        torch.stack((table, counted())),
        "change no argument",
    )
    yield ("a number", type(f(table, counted())), float, "take .item() of the tensor")
    yield (
        "ten times as much text of the same kind, and a sixteenth",
        row(f(table, 10 * counted()), f(table, counted() / 16)),
        row(by_hand, by_hand),
        "a mean over pairs does not grow with the text",
    )
    impossible = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double().log()
    yield (
        "what never came may be impossible",
        row(f(impossible, torch.tensor([[0.0, 3.0], [1.0, 0.0]]))),
        row(math.log(2) / 4),
        "0 times -inf is NaN: leave pairs out that were not counted",
    )
    yield (
        "what came and was held for impossible",
        f(impossible, torch.tensor([[1.0, 3.0], [1.0, 0.0]])),
        math.inf,
        "one such pair makes the loss infinite",
    )


# ---------------------------------------------------------------------------- 02 blocks


@check
def rms_norm(f):
    """Check `RMSNorm(dim, eps)`, the class."""
    norm = f(2, eps=1e-5)
    yield (
        "what it learns",
        {name: tuple(p.shape) for name, p in norm.named_parameters()},
        {"weight": (2,)},
        "one weight a feature, an nn.Parameter",
    )
    given = torch.tensor([[3.0, 4.0]])
    yield (
        "(3, 4) by hand",
        norm(given),
        torch.tensor([[0.8485, 1.1314]]),
        "divide by sqrt(25 / 2)",
    )
    yield (
        "(3, 4) itself afterwards",
        given,
        torch.tensor([[3.0, 4.0]]),
        "compute a new tensor",
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
        "eps is 1e-5 unless another is given",
        f(1)(torch.tensor([[0.003]])),
        torch.tensor([[0.6882]]),
        "0.003 / sqrt(0.000009 + 0.00001)",
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
    half = f(2).bfloat16()(torch.tensor([[25.0, 34.0]]).bfloat16())
    yield (
        "bfloat16 loses nothing on the way",
        half,
        torch.tensor([[0.8359375, 1.140625]]),
        "compute in float32; round once, at the end",
    )
    yield ("bfloat16 in, out comes", half.dtype, torch.bfloat16, "convert back")
    norm = f(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
    yield (
        "one learned weight a feature, 1 at the start",
        norm(torch.tensor([[3.0, 4.0]])),
        torch.tensor([[1.6971, -1.1314]]),
        "multiply by self.weight at the end",
    )
    x = torch.tensor([[3.0, 4.0], [1.0, -2.0]], requires_grad=True)
    root = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    yield (
        "what gets a wrong gradient",
        wrong_gradients(norm, norm(x), x / root * norm.weight, x=x),
        [],
        "the root and the weight are part of the graph: detach nothing, freeze nothing",
    )


@check
def rope_cos_sin(f):
    """Check `rope_cos_sin(positions, head_dim, theta)`."""
    # frequencies 1 and 100^(-1/2)
    given = torch.tensor([[0, 1, 30]])
    cos, sin = f(given, 4, theta=100.0)
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
    yield (
        "each row has positions of its own",
        f(torch.tensor([[0, 1], [30, 0]]), 4, theta=100.0)[1][..., 0, :],
        torch.tensor([[[0, 0], [1, 0.1]], [[30, 3], [0, 0]]]).sin(),
        "positions are (B, T), one row for each text",
    )
    yield (
        "the positions stay as they were",
        given.tolist(),
        [[0, 1, 30]],
        "change no argument",
    )
    yield (
        "three pairs of features, and theta 1000",
        f(torch.tensor([[2]]), 6, theta=1000.0)[1].flatten(),
        torch.tensor([2.0, 0.2, 0.02]).sin(),
        "E = 6: exponents 0, -2/6 and -4/6",
    )
    yield (
        "theta is 10000 unless another is given",
        f(torch.tensor([[3]]), 4)[1].flatten(),
        torch.tensor([3.0, 0.03]).sin(),
        "E = 4: exponents 0 and -1/2",
    )
    far = torch.tensor([[300, 5000]])
    yield (
        "far positions: the first pair of 300 and 5000",
        torch.stack([x[0, :, 0, 0] for x in f(far, 4)]),
        torch.stack((far[0].double().cos(), far[0].double().sin())),
        "any position has its angle, in float32 at least",
    )
    yield (
        "float32, as the weights",
        (cos.dtype, sin.dtype),
        (torch.float32, torch.float32),
        "turn whole positions into floats before multiplying",
    )


@check
def rotate(f):
    """Check `rotate(x, cos, sin)`."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    quarter = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 1, 1, 1, 2)
    yield (
        "the pair (1, 3) turns by 90 degrees, (2, 4) not at all",
        f(x, *quarter),
        torch.tensor([-3.0, 2.0, 1.0, 4.0]).view(1, 1, 1, 4),
        "(a cos - b sin, b cos + a sin), a and b half a head apart",
    )
    yield (
        "x stays as it was",
        x.flatten().tolist(),
        [1.0, 2.0, 3.0, 4.0],
        "compute a new tensor",
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
    many = torch.arange(1.0, 17.0).view(2, 2, 2, 2)  # B = T = heads = 2, one pair
    turns = torch.tensor([[0.0, 1.0], [2.0, 3.0]]) * math.pi / 2
    turns = turns.view(2, 2, 1, 1)  # by 0, 90, 180, 270 degrees
    yield (
        "each token of each text by its own angle, all heads alike",
        f(many, turns.cos(), turns.sin()).flatten(0, 1),
        torch.tensor(
            [
                [[1.0, 2.0], [3.0, 4.0]],
                [[-6.0, 5.0], [-8.0, 7.0]],
                [[-9.0, -10.0], [-11.0, -12.0]],
                [[14.0, -13.0], [16.0, -15.0]],
            ]
        ),
        "cos and sin are (B, T, 1, E / 2): let them broadcast over the heads",
    )
    turns = turns[1:]  # by 180 and 270 degrees in both texts
    yield (
        "one row of angles serves all texts",
        f(many, turns.cos(), turns.sin())[:, :, 0],
        torch.tensor([[[-1.0, -2.0], [6.0, -5.0]], [[-9.0, -10.0], [14.0, -13.0]]]),
        "cos and sin may be (1, T, 1, E / 2)",
    )
    yield (
        "the gradient of the sum of what comes out",
        gradient(lambda x: f(x, angle.cos(), angle.sin()), x),
        torch.cat((angle.cos() + angle.sin(), angle.cos() - angle.sin()), -1),
        "detach nothing",
    )
    yield ("float32 in, out comes", turned.dtype, torch.float32, "change no dtype")


@check
def feed_forward(f):
    """Check `FeedForward(config)`, the class."""
    config = tiny_config(dim=2, n_heads=1, ffn_dim=1)
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
    # silu(1) = .7311, silu(-1) = -.2689
    by_hand = torch.tensor([[[1.4621, 14.6212], [-0.5379, -5.3788]]])
    yield (
        "down(silu(gate(x)) * up(x)) by hand",
        network(x),
        by_hand,
        "silu(1) * 2 = 1.4621; only the gate goes through silu",
    )
    network = randomised(f(tiny_config(dim=4, n_heads=1, ffn_dim=3)))
    x = 3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    gate, up, down = (
        getattr(network, f"{name}_proj").weight for name in ("gate", "up", "down")
    )
    by_hand = (x @ gate.T * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T
    yield (
        "how far two texts of three tokens are from the formula",
        gap(network(x), by_hand),
        NOTHING,
        "silu(z) = z * sigmoid(z), for every token of every text",
    )
    yield (
        "what gets a wrong gradient",
        wrong_gradients(network, network(x), by_hand, x=x),
        [],
        "detach nothing, freeze nothing",
    )


@check
def one_token_floor(f):
    """Check `one_token_floor(counts)`."""
    untouched = counted()
    yield (
        "after 0 always 1, after 1 one of two",
        row(f(untouched)),
        row(math.log(2) / 2),
        "(2 * 0 + 2 * ln 2) / 4; a token that never came has no row to divide",
    )
    yield ("the counts stay as they were", untouched, counted(), "change no argument")
    yield ("a number", type(f(counted())), float, "nats a token")
    uneven = torch.tensor([[1.0, 3.0], [6.0, 0.0]]).double()
    entropy = (math.log(4) + 3 * math.log(4 / 3)) / 4
    yield (
        "rows weigh as often as they came",
        row(f(uneven), f(uneven.T)),
        row(0.4 * entropy, (math.log(7) + 6 * math.log(7 / 6)) / 10),
        "4 of 10 tokens come after 0, so its row's entropy counts 0.4; then 7 of 10",
    )
    yield (
        "counts ten times as large, and shares that add up to 1",
        row(f(10 * uneven), f(uneven / 10)),
        row(0.4 * entropy, 0.4 * entropy),
        "divide each row by its own sum, and smooth nothing",
    )
    yield (
        "four equally frequent pairs in each row",
        row(f(torch.ones(4, 4))),
        row(math.log(4)),
        "natural logarithms",
    )


@check
def one_token(f):
    """Check `OneToken(config, generator)`, the class."""
    config = tiny_config(n_layers=2, ffn_dim=40, norm_eps=0.1)
    network = f(config, torch.Generator().manual_seed(0))
    weights = dict(network.named_parameters())
    yield (
        "embedding, norm, feed-forward, norm, output",
        {name: tuple(p.shape) for name, p in weights.items()},
        {
            "embed_tokens.weight": (11, 32),
            "mlp_norm.weight": (32,),
            "mlp.gate_proj.weight": (40, 32),
            "mlp.up_proj.weight": (40, 32),
            "mlp.down_proj.weight": (32, 40),
            "norm.weight": (32,),
            "lm_head.weight": (11, 32),
        },
        "embed_tokens, mlp_norm, mlp, norm, and lm_head without bias",
    )
    yield (
        "small weights, those back into the stream smaller",
        [
            0.8 < weights[f"{name}.weight"].std().item() / std < 1.2
            for name, std in (
                ("embed_tokens", 0.02),
                ("mlp.up_proj", 0.02),
                ("mlp.down_proj", 0.01),
                ("lm_head", 0.02),
            )
        ],
        [True] * 4,
        "draw_weights(self, config.n_layers, generator) at the end of __init__",
    )
    yield (
        "the same generator gives the same weights",
        f(config, torch.Generator().manual_seed(0)).lm_head.weight,
        network.lm_head.weight,
        "hand the generator on",
    )
    randomised(network)
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    logits = network(ids)
    w = {name.removesuffix(".weight"): p for name, p in weights.items()}

    def normed(x, scale):
        return x / (x.square().mean() + 0.1).sqrt() * scale

    def by_hand(token):
        x = w["embed_tokens"][token]
        y = normed(x, w["mlp_norm"])
        gate, up = w["mlp.gate_proj"] @ y, w["mlp.up_proj"] @ y
        x = x + w["mlp.down_proj"] @ (gate * torch.sigmoid(gate) * up)
        return w["lm_head"] @ normed(x, w["norm"])

    expected = torch.stack([torch.stack([by_hand(i) for i in r]) for r in ids.tolist()])
    yield (
        "eight tokens, one at a time",
        logits,
        expected.detach(),
        "x + mlp(mlp_norm(x)), then the last norm, then lm_head; norm_eps is config's",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, logits, expected),
        [],
        "detach nothing, freeze nothing",
    )
    yield (
        "a token sees itself alone",
        network(ids.roll(1, 0).flip(1)),
        logits.roll(1, 0).flip(1),
        "nothing may pass between positions or texts",
    )
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    yield (
        "a mask may be given, and changes nothing",
        network(ids, mask),
        logits,
        "forward(ids, mask=None): there is nobody else to be hidden",
    )


# ------------------------------------------------------------------------- 03 attention


@check
def token_positions(f):
    """Check `token_positions(mask)`."""
    mask = torch.tensor(
        [[True] * 4, [False, False, True, True], [True, True, False, False]]
    )
    given = mask.clone()
    yield (
        "no padding, left padding, right padding",
        f(given),
        torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1]]),
        "count the real tokens so far, from 0",
    )
    yield ("the mask stays as it was", given, mask, "change no argument")
    yield (
        "a hole in the middle shifts nothing",
        f(torch.tensor([[True, False, False, True, True]])),
        torch.tensor([[0, 0, 0, 1, 2]]),
        "it is the count of real tokens that matters, not where padding stands",
    )
    yield (
        "the last three of 3000 tokens",
        f(torch.ones(1, 3000, dtype=torch.bool))[0, -3:],
        torch.tensor([2997, 2998, 2999]),
        "a text may be long",
    )
    yield (
        "whole numbers",
        f(mask).dtype,
        torch.int64,
        "positions are int64",
    )


@check
def attention_bias(f):
    """Check `attention_bias(key_mask, n_queries)`."""
    mask = torch.tensor(
        [
            [True, True, True],
            [False, True, True],
            [True, True, False],
            [True, False, False],
        ]
    )
    allowed = torch.tensor(
        [
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
            [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
            [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        ]
    )
    given = mask.clone()
    bias = f(given, 3)
    yield (
        "shape",
        tuple(bias.shape),
        (4, 1, 1, 3, 3),
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
        "padding in the middle is hidden from what follows",
        (f(torch.tensor([[True, False, True]]), 3)[0, 0, 0] == 0).int(),
        torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
        "a key must be real wherever it stands; each token sees itself",
    )
    yield ("float32", bias.dtype, torch.float32, "it is added to scores")
    yield (
        "the mask is left as it was",
        given.int(),
        mask.int(),
        "do not write into what you are given",
    )
    yield (
        "one new token sees all that is cached",
        f(mask, 1)[:, 0, 0].isfinite().int(),
        torch.tensor([[[1, 1, 1]], [[0, 1, 1]], [[1, 1, 1]], [[1, 0, 1]]]),
        "the queries are the last n_queries positions",
    )
    yield (
        "the last two of four tokens, one of them padding",
        f(torch.tensor([[True, False, False, True]]), 2)[0, 0, 0].isfinite().int(),
        torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]]),
        "queries 2 and 3: neither looks ahead, each sees itself",
    )


@check
def attend(f):
    """Check `attend(queries, keys, values, bias)`."""
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
    yield (
        "a bias of 1 for the second key evens the two out",
        f(queries, keys, values, torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)),
        torch.tensor([0.5, 0.5, 0, 0]).view(1, 1, 4),
        "add the bias to the scores, whatever it is",
    )
    numbers = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(shape, generator=numbers)
        for shape in ((2, 3, 6, 2), (2, 2, 5, 2), (2, 2, 5, 2))
    )
    bias = torch.zeros(2, 1, 1, 3, 5)
    bias[0, ..., 4], bias[1, ..., 0, 1:] = -math.inf, -math.inf

    def by_loop(queries, keys, values):
        mixed = torch.empty(2, 3, 12)
        for b in range(2):
            for t in range(3):
                for h in range(6):  # heads 0 to 2 share key/value head 0
                    scores = torch.stack(
                        [queries[b, t, h] @ key for key in keys[b, h // 3]]
                    ) / math.sqrt(2)
                    mixed[b, t, 2 * h : 2 * h + 2] = (
                        torch.softmax(scores + bias[b, 0, 0, t], 0) @ values[b, h // 3]
                    )
        return mixed

    given = queries.clone(), keys.clone(), values.clone(), bias.clone()
    yield (
        "six query heads on two key/value heads, by a loop",
        f(*given),
        by_loop(queries, keys, values),
        (
            "query head h uses key/value head h // 3; heads come out side by side, "
            "head 0 first"
        ),
    )
    yield (
        "which of the four arguments changed",
        [
            i
            for i, (x, y) in enumerate(
                zip(given, (queries, keys, values, bias), strict=True)
            )
            if not torch.equal(x, y)
        ],
        [],
        "compute new tensors",
    )
    shares = torch.randn(2, 3, 12, generator=numbers)
    parts = {"queries": queries, "keys": keys, "values": values}
    for at, name in enumerate(parts):

        def mixed(x, how, at=at, rest=()):
            three = [x if i == at else y for i, y in enumerate(parts.values())]
            return how(*three, *rest) * shares

        yield (
            f"how far the gradient at {name} is from the loop's",
            gap(
                gradient(lambda x: mixed(x, f, rest=(bias,)), parts[name]),  # noqa: B023
                gradient(lambda x: mixed(x, by_loop), parts[name]),  # noqa: B023
            ),
            NOTHING,
            "detach nothing",
        )


def _attention_by_hand(layer, x, angles, bias, heads, kv_heads):
    """Attention with `layer`'s matrices, head by head; angles: (B, T, E / 2)."""
    half = angles.shape[-1]
    queries, keys, values = (
        (x @ p.weight.T).split(2 * half, -1)
        for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )

    def turned(y):  # as complex numbers
        y = torch.complex(y[..., :half], y[..., half:])
        y = y * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((y.real, y.imag), -1)

    mixed = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = turned(queries[head]) @ turned(keys[shared]).mT / math.sqrt(2 * half)
        weights = (scores + bias[:, 0, 0]).softmax(-1)
        mixed.append(weights @ values[shared])
    return torch.cat(mixed, -1) @ layer.o_proj.weight.T


@check
def attention(f):
    """Check `Attention(config, layer)`, the class."""
    config = tiny_config(dim=8, n_heads=4, n_kv_heads=2)
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
        mask = torch.ones(1, x.shape[1], dtype=torch.bool)
        return layer(x, cos, sin, model.attention_bias(mask, x.shape[1]))

    out = look(x)
    yield (
        "what comes back, and its shape",
        (type(out).__name__, tuple(getattr(out, "shape", ()))),
        ("Tensor", (1, 5, 8)),
        "return o_proj of the mixed values, a tensor (B, T, D)",
    )
    slopes = torch.autograd.functional.jacobian(look, x)[0, :, :, 0]
    leak = slopes.abs().amax((1, 3)) > 0  # (T out, T in)
    yield (
        "each token depends on itself and its past, on nothing else",
        leak,
        torch.ones(5, 5).tril().bool(),
        "pass the bias to the scores",
    )
    yield (
        "how far a text moves that starts at position 3",
        gap(look(x, start=3), look(x)),
        NOTHING,
        "turn queries and keys alike, and the values not",
    )
    yield (
        "but order does: does the last token move with the order of the others?",
        not torch.allclose(look(x)[0, 4], look(x[:, [1, 0, 2, 3, 4]])[0, 4], atol=1e-3),
        True,
        "turn queries and keys by their positions",
    )
    both = torch.cat((x, x.flip(1)))
    yield (
        "how far two texts at once are from each by itself",
        gap(look(both), torch.cat((look(x), look(x.flip(1))))),
        NOTHING,
        "no text may use another's queries, keys or values",
    )
    small = f(tiny_config(dim=2, n_heads=1, n_kv_heads=1))
    with torch.no_grad():
        small.q_proj.weight.zero_()  # all scores are 0, so all weights are equal
        small.k_proj.weight.fill_(9.0)
        small.v_proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        small.o_proj.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        still = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
        bias = torch.tensor([[0.0, -math.inf], [0.0, 0.0]]).view(1, 1, 1, 2, 2)
        got = small(torch.tensor([[[1.0, 1.0], [3.0, 5.0]]]), *still, bias)
    yield (
        "equal scores average the values, by hand",
        got,
        torch.tensor([[[2.0, 1.0], [6.0, 2.0]]]),
        "values (1, 2) and (3, 10), their average (2, 6), then o_proj swaps the two",
    )
    with torch.no_grad():
        layer.o_proj.weight.zero_()
    yield (
        "how far from 0 it is with o_proj at 0",
        gap(look(x), torch.zeros(1, 5, 8)),
        NOTHING,
        "o_proj comes last; the stream is added by the block",
    )
    # three layers, six heads of size 4, so wider than the stream; two padded texts
    config = tiny_config(dim=12, n_layers=3, n_heads=6, n_kv_heads=2, head_size=4)
    layer = f(config, 2)
    yield (
        "matrices of heads of size 4",
        {name: tuple(p.shape) for name, p in layer.named_parameters()},
        {
            "q_proj.weight": (24, 12),
            "k_proj.weight": (8, 12),
            "v_proj.weight": (8, 12),
            "o_proj.weight": (12, 24),
        },
        "config.head_dim is dim / n_heads only if no head_size is given",
    )
    randomised(layer)
    x = torch.randn(2, 6, 12, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]]).bool()
    positions = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 2, 3, 4]])
    angles = positions[..., None] * torch.tensor([1.0, 0.01])
    turns = angles.cos()[:, :, None], angles.sin()[:, :, None]
    bias = model.attention_bias(mask, 6)
    expected = _attention_by_hand(layer, x, angles, bias, 6, 2)
    got = layer(x, *turns, bias)
    yield (
        "how far two padded texts are from attention head by head",
        gap(got, expected),
        NOTHING,
        "each text has angles and a bias of its own; three heads share keys and values",
    )
    yield (
        "what gets a wrong gradient",
        wrong_gradients(layer, got, expected, x=x),
        [],
        "detach nothing, freeze nothing",
    )

    def reading(layer):
        def with_cache(x, mask, cache):
            at = slice(cache.length, cache.length + x.shape[1])
            seen = cache.extend(mask)[1]
            bias = model.attention_bias(seen, x.shape[1])
            return layer(x, *(turn[:, at] for turn in turns), bias, cache)

        return with_cache

    caches = [model.KVCache(config, 2, 6) for _ in range(2)]
    yield (
        "how far texts read in pieces, with a cache, are from texts read at once",
        gap(in_pieces(reading(layer), caches[0], x.detach(), mask), expected),
        NOTHING,
        "store the turned keys, and attend to all that store returns",
    )
    in_pieces(reading(f(config)), caches[1], x.detach(), mask)
    yield (
        "which layers of their caches layer 2 and one without a number filled",
        [[i for i in range(3) if cache.keys[i].abs().sum() > 0] for cache in caches],
        [[2], [0]],
        "store under the layer's own number, which is 0 unless another is given",
    )


@check
def attention_only(f):
    """Check `AttentionOnly(config, positions, generator)`, the class."""
    config = tiny_config(n_layers=2, rope_theta=100.0, norm_eps=0.1)

    def draw(seed=0, **named):
        return f(config, generator=torch.Generator().manual_seed(seed), **named)

    network = draw()
    yield (
        "the parts and their names",
        sorted(name.removesuffix(".weight") for name, _ in network.named_parameters()),
        [
            *(f"attention.{x}_proj" for x in "koqv"),
            *("attention_norm", "embed_tokens", "lm_head", "norm"),
        ],
        "embed_tokens, attention_norm, attention, norm, lm_head",
    )
    yield (
        "weights are those of the generator, as small as Llama's",
        (
            torch.equal(network.lm_head.weight, draw().lm_head.weight),
            torch.equal(network.lm_head.weight, draw(1).lm_head.weight),
            0.015 < network.lm_head.weight.std().item() < 0.025,
            0.008 < network.attention.o_proj.weight.std().item() < 0.012,
        ),
        (True, False, True, True),
        "draw_weights(self, config.n_layers, generator): std 0.02, o_proj's 0.01",
    )
    blind = draw(positions=False)
    randomised(network)
    with torch.no_grad():
        for one, other in zip(network.parameters(), blind.parameters(), strict=True):
            other.copy_(one)
    ids = torch.tensor([[3, 1, 4, 1, 5]])

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight

    def by_hand(speed):
        angles = torch.arange(5)[None, :, None] * 100.0 ** (-torch.arange(8) / 8)
        bias = torch.full((5, 5), -math.inf).triu(1).view(1, 1, 1, 5, 5)
        x = network.embed_tokens.weight[ids]
        read = norm(x, network.attention_norm.weight)
        x = x + _attention_by_hand(
            network.attention, read, speed * angles, bias, heads=2, kv_heads=1
        )
        return norm(x, network.norm.weight) @ network.lm_head.weight.T

    logits, expected = network(ids), by_hand(1)
    yield (
        "how far it is from norm, attention, sum, norm and output by hand",
        gap(logits, expected),
        NOTHING,
        "x + attention(attention_norm(x)), then lm_head(norm(x)); rope_theta and "
        "norm_eps are config's",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, logits, expected),
        [],
        "detach nothing, freeze nothing",
    )
    yield (
        "how far it is without positions",
        gap(blind(ids), by_hand(0)),
        NOTHING,
        "every token stands at position 0, so nothing turns; the rest stays",
    )
    with torch.no_grad():
        yield (
            "how far the past moves with the future",
            gap(network(torch.tensor([[3, 1, 4, 1, 9]]))[:, :4], logits[:, :4]),
            NOTHING,
            "pass attention_bias on",
        )
        mask = torch.tensor([[False, False] + [True] * 5, [True] * 5 + [False] * 2])
        mask = torch.cat(
            (mask, torch.tensor([[True, True, False, False] + 3 * [True]]))
        )
        padded = torch.tensor(
            [[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0], [3, 1, 0, 0, 4, 1, 5]]
        )
        for name, reader in (("with", network), ("without", blind)):
            got = reader(padded, mask)[mask].view(3, 5, -1)
            yield (
                f"how far padding on any side moves it, {name} positions",
                gap(got, reader(ids).expand(3, -1, -1)),
                NOTHING,
                "on the left, on the right or in the middle: positions and bias both "
                "come from the mask",
            )
        shuffled = torch.tensor([[4, 3, 1, 1, 5]])
        yield (
            "with positions, order counts",
            torch.allclose(network(shuffled)[0, -1], logits[0, -1], atol=1e-2),
            False,
            "the angles come from token_positions",
        )
        yield (
            "without positions, how far a shuffled past moves it",
            gap(blind(shuffled)[0, -1], blind(ids)[0, -1]),
            NOTHING,
            "every token stands at position 0",
        )


# ----------------------------------------------------------------------------- 04 llama


@check
def block(f):
    """Check `Block(config, layer)`, the class."""
    config = tiny_config(dim=8, n_layers=2, ffn_dim=4, norm_eps=0.1)
    torch.manual_seed(0)
    layer, x = randomised(f(config, 1)), torch.randn(2, 4, 8)
    given = x.clone()
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    cos, sin = model.rope_cos_sin(model.token_positions(mask), 4)
    bias = model.attention_bias(mask, 4)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight

    def by_hand(x):
        read = norm(x, layer.input_layernorm.weight)
        middle = x + layer.self_attn(read, cos, sin, bias)
        read = norm(middle, layer.post_attention_layernorm.weight)
        return middle + layer.mlp(read)

    def with_cache(x, mask, cache):
        positions, seen = cache.extend(mask)
        angles = model.rope_cos_sin(positions, 4)
        return layer(x, *angles, model.attention_bias(seen, x.shape[1]), cache)

    yield (
        "its parts",
        sorted(name for name, _ in layer.named_children()),
        ["input_layernorm", "mlp", "post_attention_layernorm", "self_attn"],
        "Hugging Face's names, so that its weights fit",
    )
    with torch.no_grad():
        got = layer(x, cos, sin, bias)
    yield (
        "how far it is from two residual steps, each normed first",
        gap(got, by_hand(given)),
        NOTHING,
        "x + attention(norm(x)), then x + mlp(norm(x)) on the new x; two norms, each "
        "with norm_eps",
    )
    yield ("how far x itself moved", gap(x, given), NOTHING, "x = x + …, not x += …")
    x.requires_grad_()
    yield (
        "what gets a wrong gradient",
        wrong_gradients(layer, layer(x, cos, sin, bias), by_hand(x), x=x),
        [],
        "detach nothing, freeze nothing",
    )
    cache = model.KVCache(config, 2, 4)
    yield (
        "how far a text read in pieces, with a cache, is from one read at once",
        gap(in_pieces(with_cache, cache, x.detach(), mask), by_hand(x)),
        NOTHING,
        "pass the cache to attention",
    )
    yield (
        "which layers of the cache it filled",
        [i for i in range(2) if cache.keys[i].abs().sum() > 0],
        [1],
        "give attention the layer's number",
    )
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    yield (
        "how far x moves with both outputs at 0",
        gap(layer(x, cos, sin, bias), x),
        NOTHING,
        "the residual stream itself is not normed",
    )
    yield (
        "parameters of a block",
        sum(p.numel() for p in layer.parameters()),
        64 + 32 + 32 + 64 + 3 * 32 + 16,
        "four projections, three of the feed-forward network, two norms",
    )


@check
def llama(f):
    """Check `Llama(config, generator)`, the class."""
    config = tiny_config(
        vocab_size=50,
        dim=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        rope_theta=100.0,
        norm_eps=0.1,
    )
    network = f(config, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    hidden = network.hidden(ids)
    yield (
        "what hidden returns, and its shape",
        (type(hidden).__name__, tuple(getattr(hidden, "shape", ()))),
        ("Tensor", (1, 5, 64)),
        "the states of all tokens after the last norm, (B, T, D)",
    )
    logits = network(ids)
    yield ("logits for each position", tuple(logits.shape), (1, 5, 50), "(B, T, V)")
    yield (
        "the first loss, in units of ln 50",
        round(-logits.log_softmax(-1).mean().item() / math.log(50), 1),
        1.0,
        "weights of std 0.02 give logits near 0, so every token is about as likely",
    )
    last = network.layers[2]
    usual = (network.embed_tokens, network.lm_head, last.self_attn.q_proj)
    back = (last.self_attn.o_proj, last.mlp.down_proj)
    yield (
        "std of embedding, head and queries, in units of 0.02",
        [round(x.weight.std().item() / 0.02, 1) for x in usual],
        [1.0, 1.0, 1.0],
        "draw every matrix with std 0.02",
    )
    yield (
        "std of o_proj and down_proj, in units of 0.02 / sqrt(6)",
        [round(x.weight.std().item() / 0.02 * math.sqrt(6), 1) for x in back],
        [1.0, 1.0],
        "what writes into the stream starts at 0.02 / sqrt(2 n_layers)",
    )
    yield (
        "the norms' weights, smallest and largest",
        [
            round(end(p.min().item() for p in network.parameters() if p.ndim == 1), 4)
            for end in (min, max)
        ],
        [1.0, 1.0],
        "norms start at 1",
    )
    yield (
        "the same generator gives weights that differ by",
        gap(
            f(config, generator=torch.Generator().manual_seed(0)).lm_head.weight,
            network.lm_head.weight,
        ),
        NOTHING,
        "use the generator",
    )
    yield (
        "its parameters",
        sum(p.numel() for p in network.parameters()),
        2 * 50 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 48 + 2 * 64) + 64,
        "two tables, three blocks of their own, a last norm",
    )
    randomised(network)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]])
    mask, ids = mask.bool(), (torch.arange(18).view(3, 6) * 23 + 3) % 50
    given = ids.clone(), mask.clone()

    def by_hand():
        cos, sin = model.rope_cos_sin(model.token_positions(mask), 16, 100.0)
        x = network.embed_tokens.weight[ids]
        for layer in network.layers:
            x = layer(x, cos, sin, model.attention_bias(mask, 6))
        x = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return (x * network.norm.weight) @ network.lm_head.weight.T

    exact = by_hand()
    expected = exact.detach()
    scale = expected.abs().max()
    yield (
        "how far it is from table, blocks, norm and matrix by hand, at real tokens",
        gap(network(*given)[mask] / scale, expected[mask] / scale),
        NOTHING,
        "each block once and in order, the last norm, positions and bias from the "
        "mask, rope_theta and norm_eps from config",
    )
    yield (
        "ids and mask stay as they were",
        torch.stack(given),
        torch.stack((ids, mask.long())),
        "change no argument",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, network(ids, mask)[mask], exact[mask]),
        [],
        "detach nothing, freeze nothing, compute nothing under no_grad",
    )
    yield (
        "how far no mask is from a mask of ones",
        gap(network(ids) / scale, network(ids, torch.ones_like(mask)) / scale),
        NOTHING,
        "without a mask all tokens are real",
    )

    def at_real_tokens(ids, mask, cache):
        return network(ids, mask, cache) * mask[..., None] / scale

    cache = model.KVCache(config, 3, 6)
    yield (
        "how far a batch read in pieces, with a cache, is from one read at once",
        gap(
            in_pieces(at_real_tokens, cache, ids, mask),
            expected * mask[..., None] / scale,
        ),
        NOTHING,
        "extend the cache once and pass it and the mask to every block",
    )
    yield (
        "how far hidden is from what the output matrix reads",
        gap(network.lm_head(network.hidden(ids, mask)), network(ids, mask)),
        NOTHING,
        "hidden ends after the last norm",
    )
    tied = f(dataclasses.replace(config, tie_embeddings=True))
    yield (
        "tied embeddings are one table",
        tied.lm_head.weight is tied.embed_tokens.weight,
        True,
        "assign the parameter",
    )
    yield (
        "an id outside the vocabulary is refused",
        error_of(lambda: network(ids + 50)),
        IndexError,
        "look at ids before the embedding does",
    )
    for length, expected in ((17, ValueError), (16, "no error")):
        many = ids[:1, :1].expand(1, length)
        yield (
            f"a text of {length} tokens",
            error_of(lambda many=many: network(many)),
            expected,
            "max_seq_len is 16: refuse more",
        )


@check
def sample(f):
    """Check `sample(probs, uniforms)`."""
    probs = torch.tensor([[0.1, 0.2, 0.7]]).expand(5, 3)
    yield (
        "by hand",
        f(probs, torch.tensor([0.0, 0.05, 0.11, 0.299, 0.31])),
        torch.tensor([0, 0, 1, 1, 2]),
        "the cumulative sums are .1, .3, 1: the first that exceeds the number",
    )
    yield (
        "numbers that a cumulative sum just reaches",
        f(
            torch.tensor([[0.25, 0.25, 0.125, 0.125, 0.25]]).expand(4, 5),
            torch.tensor([0.25, 0.5, 0.625, 0.75]),
        ),
        torch.tensor([1, 2, 3, 4]),
        "exceed, not reach",
    )
    yield (
        "each row by its own probabilities",
        f(torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([0.5, 0.5])),
        torch.tensor([1, 0]),
        "sum along the last dimension",
    )
    yield (
        "ids are of type",
        str(f(probs, torch.full((5,), 0.5)).dtype),
        "torch.int64",
        "a token id is an int64",
    )
    given = torch.tensor([[1.0, 3.0], [12.0, 4.0]])
    yield (
        "probabilities need not sum to 1",
        torch.stack([f(given, torch.full((2,), u)) for u in (0.2, 0.3, 0.7, 0.8)]),
        torch.tensor([[0, 0], [1, 0], [1, 0], [1, 1]]),
        "scale the number by the total of its row",
    )
    yield (
        "the probabilities stay as they were",
        given,
        torch.tensor([[1.0, 3.0], [12.0, 4.0]]),
        "change no argument",
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


@check
def top_p_filter(f):
    """Check `top_p_filter(probs, top_p)`."""
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    given = probs.clone()
    yield (
        "0.7 needs two tokens",
        f(given, 0.7),
        torch.tensor([[0.0, 0.5, 0.0, 0.3]]),
        (
            "keep a token if those before it sum to less than top_p: the one that "
            "crosses it stays"
        ),
    )
    yield ("the argument stays as it was", given, probs, "write into a new tensor")
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
        "ids that stay of 4 equal ones at 0.5, and of 64 at 0.125",
        [
            f(torch.full((1, n), 1 / n), top_p)[0].nonzero()[:, 0].tolist()
            for n, top_p in ((4, 0.5), (64, 0.125))
        ],
        [[0, 1], list(range(8))],
        "the lower ids: sort stably, and cut by place in the order, not by value",
    )
    yield (
        "rows by themselves",
        f(torch.cat((probs, probs.flip(1))), 0.6),
        torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.3, 0.0, 0.5, 0.0]]),
        "sort along the last dimension",
    )


@check
def tiny_cache(f):
    """Check `TinyCache()`, the class."""
    cache, first = f(), torch.arange(24.0).view(2, 2, 3, 2)  # (B, K, T, E)
    keys, values = cache.store(0, first, -first)
    yield (
        "the first tokens come back",
        torch.stack((keys, values)),
        torch.stack((first, -first)),
        "start a layer with what comes, and return it",
    )
    cache.store(1, first + 50, first)
    new = torch.arange(90.0, 98.0).view(2, 2, 1, 2)
    keys, values = cache.store(0, new, 2 * new)
    yield (
        "new keys follow the old ones, in their own layer",
        keys,
        torch.cat((first, new), 2),
        "one entry for each layer; join along the tokens, dimension 2",
    )
    yield (
        "and so do values",
        values,
        torch.cat((-first, 2 * new), 2),
        "join the values as the keys are joined",
    )
    yield (
        "the other layer is as it was",
        cache.store(1, new, new)[0],
        torch.cat((first + 50, new), 2),
        "write into one layer only",
    )
    yield (
        "a third piece follows both",
        torch.stack(tuple(cache.store(0, 3 * new, 4 * new))),
        torch.stack(
            (
                torch.cat((first, new, 3 * new), 2),
                torch.cat((-first, 2 * new, 4 * new), 2),
            )
        ),
        "keep what was joined, keys and values",
    )
    yield (
        "another cache starts empty",
        f().store(0, new, new)[0],
        new,
        "what is kept belongs to one cache, so make it in __init__",
    )
    cache = f()
    for layer in range(6):
        cache.store(layer, new + layer, new - layer)
    again = [cache.store(layer, new, new) for layer in range(6)]
    yield (
        "the first key and the first value of six layers",
        [[x[0, 0, 0, 0].item() for x in both] for both in again],
        [[90.0 + layer, 90.0 - layer] for layer in range(6)],
        "a model may have any number of layers, each with keys and values of its own",
    )
    cache, many = f(), torch.arange(1200.0).view(1, 1, 600, 2)
    for piece in many.split(200, 2):
        keys, values = cache.store(3, piece, -piece)
    yield (
        "how far 600 tokens, stored 200 at a time, are from themselves",
        (gap(keys, many), gap(values, -many)),
        (NOTHING, NOTHING),
        "forget nothing",
    )
    half = new.bfloat16()
    yield (
        "the dtype of what was stored",
        [x.dtype for x in f().store(0, half, half)],
        [torch.bfloat16] * 2,
        "change no dtype",
    )
    layer = randomised(model.Attention(tiny_config(dim=8), 1))
    x, cache = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), f()
    cos, sin = model.rope_cos_sin(torch.arange(5)[None], 4)

    def read(start, stop, cache=None):
        bias = model.attention_bias(torch.ones(2, stop).bool(), stop - start)
        new = slice(start, stop)
        return layer(x[:, new], cos[:, new], sin[:, new], bias, cache)

    yield (
        "how far attention in three pieces is from attention at once",
        gap(
            torch.cat([read(a, b, cache) for a, b in ((0, 3), (3, 4), (4, 5))], 1),
            read(0, 5),
        ),
        NOTHING,
        "return all keys and values of the layer, old ones first",
    )


@check
def kv_cache(f):
    """Check `KVCache(config, batch_size, capacity)`, the class."""
    # three layers; four heads of size 6 share two heads of keys and values
    config = tiny_config(dim=8, n_layers=3, n_heads=4, n_kv_heads=2, head_size=6)
    cache = f(config, 2, 5)
    given = torch.tensor([[True] * 3, [False, True, True]])
    positions, mask = cache.extend(given)
    yield (
        "positions count real tokens",
        positions,
        torch.tensor([[0, 1, 2], [0, 0, 1]]),
        "padding shifts nothing",
    )
    yield (
        "positions are of type",
        positions.dtype,
        torch.int64,
        "whole numbers, as token_positions gives them",
    )
    first = torch.arange(72.0).view(2, 2, 3, 6)
    keys, values = cache.store(0, first, -first)
    yield (
        "the first tokens come back",
        torch.stack((keys, values)),
        torch.stack((first, -first)),
        "slots 0 .. length - 1",
    )
    yield (
        "their dtype",
        [keys.dtype, values.dtype],
        [torch.float32] * 2,
        "float32 unless another is asked for",
    )
    cache.store(1, first + 50, first)
    cache.store(2, first + 70, first + 80)
    positions, mask = cache.extend(torch.tensor([[True], [False]]))
    yield (
        "the next token follows on in each row",
        positions,
        torch.tensor([[3], [1]]),
        "add what was counted before",
    )
    yield (
        "the mask remembers padding",
        mask,
        torch.tensor([[True] * 4, [False, True, True, False]]),
        "keep every mask",
    )
    yield (
        "the mask that was given stays as it was",
        given,
        torch.tensor([[True] * 3, [False, True, True]]),
        "change no argument",
    )
    new = torch.arange(24.0).view(2, 2, 1, 6)
    keys, values = cache.store(0, new, 2 * new)
    yield (
        "new keys follow the old ones, in their own layer",
        keys,
        torch.cat((first, new), 2),
        "one row of slots per layer; write at the end",
    )
    yield (
        "and so do values",
        values,
        torch.cat((-first, 2 * new), 2),
        "write the values where the keys are written",
    )
    yield (
        "the other layers are as they were",
        torch.stack((cache.store(1, new, new)[0], *cache.store(2, new, new))),
        torch.stack([torch.cat((first + i, new), 2) for i in (50, 70, 80)]),
        "write into one layer only",
    )
    yield (
        "after padding a row's count goes on",
        cache.extend(torch.ones(2, 1, dtype=torch.bool))[0],
        torch.tensor([[4], [2]]),
        "count real tokens only",
    )
    yield (
        "a sixth token has no room",
        error_of(lambda: cache.extend(torch.ones(2, 1, dtype=torch.bool))),
        ValueError,
        "capacity is 5",
    )
    pair = f(config, 2, 40)
    pieces = [
        pair.extend(torch.tensor(rows).bool())
        for rows in ([[0, 0], [1, 1]], [[1, 1], [0, 1]])
    ]
    yield (
        "positions if one of two rows is all padding at first",
        [positions.tolist() for positions, _ in pieces],
        [[[0, 0], [0, 1]], [[0, 1], [1, 2]]],
        "each row has a count of its own, and no position is below 0",
    )
    yield (
        "and the mask",
        pieces[1][1].int(),
        torch.tensor([[0, 0, 1, 1], [1, 1, 0, 1]]),
        "each row has a mask of its own",
    )
    pair = f(config, 2, 4)
    refusal = error_of(lambda: pair.extend(torch.ones(1, 2, dtype=torch.bool)))
    yield (
        "a mask of one row for a cache of two is",
        "taken" if refusal == "no error" else "refused",
        "refused",
        "each row of the cache needs a row of the mask",
    )
    half = f(config, 1, 2, dtype=torch.float16)
    half.extend(torch.ones(1, 1, dtype=torch.bool))
    new = torch.ones(1, 2, 1, 6, dtype=torch.float16)
    yield (
        "the dtype that was asked for",
        [x.dtype for x in half.store(0, new, new)],
        [torch.float16] * 2,
        "pass dtype on, for keys and for values",
    )
    feeling = new.clone().requires_grad_()
    for name, pieces in (("keys", (feeling, new)), ("values", (new, feeling))):
        yield (
            f"{name} that need gradients are refused",
            error_of(lambda pieces=pieces: half.store(1, *pieces)),
            RuntimeError,
            "writing in place would break backward",
        )


@check
def pick(f):
    """Check `pick(logits, uniforms, temperature, top_p)`."""
    # probabilities .01, .09, .9, and in the second row .5, .3, .2
    logits = torch.log(torch.tensor([[1.0, 9.0, 90.0], [5.0, 3.0, 2.0]]))
    numbers = torch.tensor([0.05, 0.9])
    given = logits.clone()

    def answer(*arguments):
        token, logprob = f(given, numbers, *arguments)
        return torch.stack((token.double(), logprob.double().exp()))

    def softened(temperature):
        flat = torch.tensor([[0.01, 0.09, 0.9], [0.5, 0.3, 0.2]]) ** (1 / temperature)
        return flat / flat.sum(1, keepdim=True)

    yield (
        "greedy",
        answer(0, 1.0),
        torch.tensor([[2.0, 0.0], [0.9, 0.5]]),
        "temperature 0 takes the most probable token, and softmax(logits) its logprob",
    )
    yield (
        "greedy with a top-p of 0.8",
        answer(0, 0.8),
        torch.tensor([[2.0, 0.0], [0.9, 0.5]]),
        "top-p always keeps the most probable token, and changes no logprob",
    )
    yield (
        "temperature 1",
        answer(1.0, 1.0),
        torch.tensor([[1.0, 2.0], [0.09, 0.2]]),
        "0.05 falls between .01 and .1, 0.9 between .8 and 1",
    )
    for temperature, tokens in ((2.0, (0, 2)), (0.5, (2, 2)), (0.8, (1, 2))):
        probs = softened(temperature)
        yield (
            f"temperature {temperature}",
            answer(temperature, 1.0),
            torch.stack(
                (torch.tensor(tokens), probs[[0, 1], list(tokens)]),
            ),
            "divide the logits by it, for the draw and for the logprob",
        )
    yield (
        "top-p changes the draw, not the logprob",
        answer(1.0, 0.75),
        torch.tensor([[2.0, 1.0], [0.9, 0.3]]),
        "the logprob is that of the whole distribution",
    )
    # temperature 2: .0741, .2224, .7034 and .4154, .3218, .2628; 0.5: .0001, .0099,
    # .99 and .6579, .2368, .1053
    for temperature, top_p, tokens in ((2.0, 0.8, (1, 2)), (0.5, 0.7, (2, 1))):
        probs = softened(temperature)
        yield (
            f"temperature {temperature} and top-p {top_p}",
            answer(temperature, top_p),
            torch.stack((torch.tensor(tokens), probs[[0, 1], list(tokens)])),
            "first the temperature, then top-p; the logprob before top-p",
        )
    yield ("the logits stay as they were", given, logits, "change no argument")
    half = f(logits.bfloat16(), numbers, 1.0, 1.0)[1]
    yield (
        "logprobs of bfloat16 logits are of type",
        str(half.dtype),
        "torch.float32",
        "make float32 of the logits before the softmax",
    )


def convinced(chances):
    """Return a model that gives id i the chance chances[i], whatever it has read."""
    network = tiny_llama()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.embed_tokens.weight.fill_(1.0)
        network.norm.weight.fill_(1.0)  # so that all states are ones
        for i, chance in chances.items():
            network.lm_head.weight[i] = (math.log(chance) + 30) / 32
    return network


def _written(numbers, chances, temperature=1.0, end=None, kept=()):
    """What `convinced` writes in a row of uniform numbers: ids, and their chances."""
    hot = {i: chance ** (1 / temperature) for i, chance in chances.items()}
    total, text = sum(hot.values()), []
    drawn = {i: x for i, x in hot.items() if not kept or i in kept}
    for number in numbers:
        ends = list(itertools.accumulate(drawn.values()))
        text.append(list(drawn)[bisect.bisect_right(ends, number * ends[-1])])
        if text[-1] == end:
            break
    return text, [round(hot[i] / total, 3) for i in text]


@functools.partial(check, may_draw=True)
def generate(f):
    """Check `generate(model, prompts, max_new_tokens, ...)`."""
    network = tiny_llama()
    prompts = [[1, 5, 7, 9], [1, 6]]

    def drawn(prompts, seed=3, **others):
        draw = torch.Generator().manual_seed(seed)
        return f(network, prompts, 6, generator=draw, **others)

    def answer(rollout, row=0):
        return rollout.ids[row][rollout.response_mask[row]].tolist()

    def logprobs(ids, start, temperature=1.0):
        logits = network(torch.tensor([ids]))[0] / temperature
        scored = torch.log_softmax(logits.detach(), -1)
        return torch.stack([scored[t - 1, ids[t]] for t in range(start, len(ids))])

    rollout = f(network, prompts, 6, temperature=0, eos_id=None)
    for i, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(6):  # no cache, no batch
            ids.append(network(torch.tensor([ids]))[0, -1].argmax().item())
        yield (
            f"greedy, prompt {i}, as one token at a time",
            rollout.ids[i][rollout.mask[i]].tolist(),
            ids,
            "pad on the left, and give the mask to the model",
        )
        yield (
            f"log-probabilities, prompt {i}",
            rollout.logprobs[i][rollout.response_mask[i]],
            logprobs(ids, len(prompt)),
            "of each token given what precedes it",
        )
    yield (
        "what the mask of responses leaves out",
        (rollout.ids[:, :4] * rollout.mask[:, :4]).tolist(),
        [[1, 5, 7, 9], [0, 0, 1, 6]],
        "padding, then the prompt; responses start in one column",
    )
    yield (
        "log-probabilities outside the response",
        rollout.logprobs[~rollout.response_mask].abs().sum(),
        NOTHING,
        "0 there",
    )
    last = answer(rollout)
    stop = last[2]
    ended = f(network, prompts, 6, temperature=0, eos_id=stop)
    yield (
        "the end token ends the response and belongs to it",
        answer(ended),
        last[: last.index(stop) + 1],
        "keep it, then stop",
    )
    yield (
        "real tokens after the end, in any row",
        int((ended.mask & ~ended.response_mask)[:, 4:].sum()),
        0,
        "mask is False after the end",
    )
    yield (
        "log-probabilities outside the responses, one of which has ended",
        ended.logprobs[~ended.response_mask].abs().sum(),
        NOTHING,
        "0 after the end too",
    )
    yield (
        "the other row goes on as if alone",
        answer(ended, 1),
        answer(f(network, prompts[1:], 6, temperature=0, eos_id=stop)),
        "a row that has ended ends no other",
    )
    seeds = range(8)
    texts = [answer(drawn(prompts, seed, eos_id=None)) for seed in seeds]
    torch.manual_seed(1)
    yield (
        "the same generators, the same texts",
        [answer(drawn(prompts, seed, eos_id=None)) for seed in seeds],
        texts,
        "draw from the generator that was given",
    )
    yield (
        "other generators, other texts",
        len({tuple(text) for text in texts}) > 1,
        True,
        "temperature is 1 unless another is given",
    )
    yield (
        "a sampled text beside another prompt and alone",
        texts,
        [answer(drawn(prompts[:1], seed, eos_id=None)) for seed in seeds],
        "draw the numbers beforehand, row by row",
    )
    hot = drawn(prompts, temperature=2.5, eos_id=None)
    yield (
        "log-probabilities at temperature 2.5",
        hot.logprobs[0][hot.response_mask[0]],
        logprobs(prompts[0] + answer(hot), 4, 2.5),
        "those of softmax(logits / temperature)",
    )
    yield (
        "a top-p of 0.01 leaves the most probable token",
        answer(drawn(prompts, top_p=0.01, eos_id=None)),
        last,
        "pass top_p on",
    )
    # beliefs that no text changes, so that uniform numbers alone decide
    chances = {2: 0.1, 4: 0.2, 5: 0.3, 6: 0.4}
    sure, prompts = convinced(chances), [[1], [1, 5], [1, 5, 6], [1]]
    numbers = torch.rand(4, 9, generator=torch.Generator().manual_seed(4)).tolist()

    def four(**others):
        draw = torch.Generator().manual_seed(4)
        rollout = f(sure, prompts, 9, generator=draw, **others)
        return rollout, [
            (answer(rollout, i), [round(x, 3) for x in scored.exp().tolist()])
            for i in range(4)
            for scored in [rollout.logprobs[i][rollout.response_mask[i]]]
        ]

    for claim, settings, by_hand in (
        ("nothing else given", {}, {"end": 2}),
        ("temperature 0.5", {"temperature": 0.5}, {"temperature": 0.5, "end": 2}),
        ("temperature 2", {"temperature": 2.0}, {"temperature": 2.0, "end": 2}),
        ("top-p 0.65", {"top_p": 0.65}, {"kept": (5, 6), "end": 2}),
        ("end 4", {"eos_id": 4}, {"end": 4}),
    ):
        rollout, got = four(**settings)
        expected = [_written(row, chances, **by_hand) for row in numbers]
        at = next((i for i in range(4) if got[i] != expected[i]), 0)
        yield (
            f"four prompts, beliefs that stay, {claim}: ids and chances of text {at}",
            got[at],
            expected[at],
            "row i, column t of torch.rand(rows, max_new_tokens) draws its token t; "
            "temperature 1, top-p 1 and end 2 unless others are given",
        )
    rollout, _ = four(pad_id=9, eos_id=6)
    longest = max(len(_written(row, chances, end=6)[0]) for row in numbers)
    yield (
        "columns: the longest prompt and the longest response",
        tuple(rollout.ids.shape),
        (4, 3 + longest),
        "stop when all rows have ended",
    )
    yield (
        "what stands where nothing is real",
        set(rollout.ids[~rollout.mask].tolist()),
        {9},
        "pad_id, before the prompt and after the end",
    )
    rollout, _ = four(eos_id=6)
    yield (
        "and unless another is given",
        set(rollout.ids[~rollout.mask].tolist()),
        {3},
        "pad_id is 3",
    )
    yield (
        "the prompts stay as they were",
        prompts,
        [[1], [1, 5], [1, 5, 6], [1]],
        "change no argument",
    )
    modes = []
    sure.embed_tokens.register_forward_hook(
        lambda module, *_: modes.append(module.training)
    )
    for training in (True, False):
        sure.train(training)
        gentle = f(sure, prompts, 2)
        yield (
            f"mode inside, mode afterwards, gradients, from training = {training}",
            (any(modes), sure.training, gentle.logprobs.requires_grad),
            (False, training, False),
            "eval mode and no gradients inside; the model's own mode comes back",
        )
    for length, expected in ((14, ValueError), (13, "no error")):
        yield (
            f"{length} more tokens after a prompt of 3",
            error_of(lambda length=length: f(network, prompts, length)),
            expected,
            "max_seq_len is 16: refuse more",
        )
    broken = convinced({4: math.inf})
    yield (
        "logits that are not finite",
        error_of(lambda: f(broken, prompts, 2)),
        FloatingPointError,
        "no token can be drawn from them: refuse",
    )
    yield (
        "is the model in training mode after that, as before?",
        broken.training,
        True,
        "its own mode comes back whatever happens: try … finally",
    )


# -------------------------------------------------------------------------- 05 pretrain


@check
def token_logprobs(f):
    """Check `token_logprobs(logits, ids)`."""
    logits = torch.log(
        torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]])
    )
    yield (
        "by hand: ln .7 and ln .3",
        f(logits, torch.tensor([[0, 2, 1]])),
        row(0.0, math.log(0.7), math.log(0.3)),
        "the logits at t predict the token at t + 1; entry 0 is 0",
    )
    yield (
        "logits need not be normalised",
        f(logits + 5, torch.tensor([[0, 2, 1]])),
        row(0.0, math.log(0.7), math.log(0.3)),
        "log_softmax over the vocabulary",
    )
    two, ids = (
        torch.cat((logits, logits.flip(-1) + 1)),
        torch.tensor([[0, 2, 1], [1, 2, 0]]),
    )
    before = two.clone(), ids.clone()
    by_hand = torch.tensor([[0.7, 0.3], [0.1, 0.2]]).log()
    yield (
        "two texts, each by its own logits and ids",
        f(two, ids)[:, 1:],
        by_hand,
        "the second text has 0.1 and 0.2",
    )
    yield (
        "logits and ids stay as they were",
        torch.equal(two, before[0]) and torch.equal(ids, before[1]),
        True,
        "compute a new tensor",
    )
    shares = two.softmax(-1)[:, :2]
    slopes = torch.nn.functional.one_hot(ids[:, 1:], 3) - shares
    yield (
        "the gradient at the logits",
        gradient(lambda x: f(x, ids), two),
        torch.cat((slopes, torch.zeros(2, 1, 3)), 1),
        "1 - p at the token that came, -p at the others, 0 after the last token; "
        "detach nothing",
    )
    yield (
        "every id of six has a log-probability, symbols and padding too",
        f(torch.zeros(1, 7, 6), torch.tensor([[0, 1, 2, 3, 4, 5, 0]])),
        row(0.0, *[-math.log(6)] * 6),
        "ignore no id; whoever calls has a mask",
    )
    yield (
        "logits 0 and 300 far apart",
        f(torch.tensor([[[0.0, 300.0], [0.0, 300.0], [0.0, 0.0]]]), ids[:1] % 2),
        row(0.0, -300.0, 0.0),
        "log_softmax, not the log of a softmax, which is 0 here; clamp nothing",
    )


@check
def lm_loss(f):
    """Check `lm_loss(logits, ids, loss_mask)`."""
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
    sure = torch.tensor([[0.0, 40.0], [40.0, 0.0], [40.0, 0.0], [0.0, 40.0]])[None]
    yield (
        "logits that know the next token have no loss",
        f(
            sure,
            torch.tensor([[0, 1, 0, 0]]),
            torch.tensor([[False, True, True, True]]),
        ),
        torch.tensor(0.0),
        "the logits at t predict the token at t + 1",
    )
    slopes = gradient(lambda x: f(x, ids, mask), logits)
    yield (
        "only logits before a counted token feel the loss",
        (slopes.abs().amax(-1) > 0).int(),
        torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]),
        "select with the mask after the shift; detach nothing",
    )
    yield (
        "more logit at a token that came lowers the loss, by its share",
        slopes[1, 0],
        torch.tensor([-0.75, 0.75]) / 4,
        "(p - 1) / 4 at the token that came, p / 4 at the other",
    )
    yield (
        "chances .1, .2, .3 and .4 of ids 0 to 3, each of which comes once",
        f(
            torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 5, 4),
            torch.tensor([[0, 1, 2, 3, 0]]),
            torch.tensor([[False, True, True, True, True]]),
        ),
        torch.tensor(-math.log(0.1 * 0.2 * 0.3 * 0.4) / 4),
        "the mask alone says what counts, not the ids",
    )
    yield (
        "ids and mask stay as they were",
        torch.stack((ids, mask.long())),
        torch.tensor([[[0, 0, 1, 1], [1, 0, 0, 0]], [[0, 1, 1, 1], [0, 1, 0, 0]]]),
        "change no argument",
    )
    late = torch.tensor([[False, True, True, True], [True, True, False, False]])
    yield (
        "a token in column 0, of the second row alone, has no past",
        error_of(lambda: f(logits, ids, late)),
        ValueError,
        "refuse it in any row",
    )
    yield (
        "a mask of floats is refused",
        error_of(lambda: f(logits, ids, mask.float())),
        TypeError,
        "look at its dtype",
    )


@check
def warmup_cosine(f):
    """Check `warmup_cosine(step, total_steps, warmup_steps)`."""
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
    yield (
        "4 steps of warm-up in 12",
        torch.tensor([f(step, 12, 4) for step in (1, 3, 8)]),
        torch.tensor([0.5, 1.0, 0.5]),
        "divide by warmup_steps, then by total_steps - warmup_steps",
    )


def _adam_by_hand(weight, gradients, lrs, betas):
    """Where AdamW without decay goes, step after step: list of (1, 2) tensors."""
    mean, square, places = 0.0, 0.0, []
    for t, (slope, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        mean = betas[0] * mean + (1 - betas[0]) * slope
        square = betas[1] * square + (1 - betas[1]) * slope**2
        corrected = mean / (1 - betas[0] ** t), square / (1 - betas[1] ** t)
        weight = weight - lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
        places.append(weight)
    return places


@check
def stepper(f):
    """Check `Stepper(model, lr, schedule, betas, max_norm)`, the class."""
    start = torch.tensor([1.0, -1.0, 2.0])

    def fresh(lr=0.1, **settings):
        network = torch.nn.Linear(2, 1)  # two parameters: two weights and a bias
        with torch.no_grad():
            network.weight.copy_(start[:2])
            network.bias.copy_(start[2:])
        return network, f(network, lr, **settings)

    def now(network):
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(network, *slopes):
        """A loss with these slopes."""
        here = torch.cat([p.flatten() for p in network.parameters()])
        return (here * torch.tensor(slopes)).sum()

    def stopped(step):
        """What the error says of step and batch, if the right one comes."""
        try:
            step()
        except FloatingPointError as error:
            return str(error)
        return "no error"

    network, descent = fresh(schedule=lambda step: (0.5, 1.0)[step], max_norm=1.0)
    norm = descent.step(loss(network, 3.0, -4.0, 12.0), [0])
    yield (
        "the norm before clipping",
        torch.as_tensor(norm).detach(),
        torch.tensor(13.0),
        "sqrt(9 + 16 + 144), over all parameters; step returns it",
    )
    yield (
        "Adam's first step is lr in each direction",
        now(network),
        torch.tensor([0.95, -0.95, 1.95]),
        "lr times the schedule's share, 0.1 * 0.5, against the gradient's sign",
    )
    # a loss that is not finite though its gradient is
    said = stopped(
        lambda: descent.step(loss(network, 1.0, 1.0, 1.0) + math.nan, [7, 8])
    )
    yield (
        "a loss that is not finite stops the run and names step and batch",
        ("step 1" in said, "[7, 8]" in said),
        (True, True),
        "raise a FloatingPointError that names the step, counted from 0, and the ids "
        "of the batch",
    )
    yield (
        "the last good weights are back",
        now(network),
        start,
        "those of the last finite loss, all parameters",
    )

    network, descent = fresh(
        0.2, schedule=lambda step: 1 / (step + 1), betas=(0.5, 0.75), max_norm=2.0
    )
    slopes = ((3.0, -4.0, 12.0), (0.3, 0.4, 0.0), (1.0, 0.0, -1.0))
    places = []
    for slope in slopes:
        descent.step(loss(network, *slope), [0])
        places.append(now(network))
    # the first gradient has a norm of 13 and is shortened to 2
    gradients = [torch.tensor(slope) for slope in slopes]
    by_hand = _adam_by_hand(
        start,
        [2 / 13 * gradients[0], *gradients[1:]],
        (0.2, 0.1, 0.2 / 3),
        (0.5, 0.75),
    )
    yield (
        "three steps by hand",
        torch.stack(places),
        torch.stack(by_hand),
        "clip all gradients together, to a norm of 2; forget each after its step; use "
        "the betas, no decay, and the schedule's share of lr",
    )
    # the square root has an infinite slope at 0
    steep = sum((p - p.detach()).sqrt().sum() for p in network.parameters())
    yield (
        "a finite loss with an infinite gradient stops the run",
        "step 3" in stopped(lambda: descent.step(steep, [0])),
        True,
        "look at the gradient's norm too, before the step; good steps count",
    )
    yield (
        "the last good weights are those before the latest good step",
        now(network),
        places[1],
        "renew last_good at each step with a finite loss and gradient",
    )
    network, descent = fresh(schedule=lambda step: 1.0)
    gradients = [gradients[0] / 13, gradients[1], gradients[2] / math.sqrt(2)]
    for slope in slopes:
        descent.step(loss(network, *slope), [0])
    yield (
        "three steps with betas and max_norm left out",
        now(network),
        _adam_by_hand(start, gradients, (0.1,) * 3, (0.9, 0.95))[-1],
        "betas 0.9 and 0.95, max_norm 1",
    )
    network, descent = fresh(schedule=lambda step: 1.0)
    lost = loss(network, 1.0, 1.0, 1.0) * math.inf
    yield (
        "a first loss that is not finite stops the run too",
        ("step 0" in stopped(lambda: descent.step(lost, [5])), now(network).tolist()),
        (True, start.tolist()),
        "the first weights are the last good ones until a step is made",
    )
    network, descent = fresh(schedule=lambda step: math.inf)
    stop = stopped(lambda: descent.step(loss(network, 1.0, 1.0, 1.0), [5]))
    yield (
        "a step that breaks the weights is refused and taken back",
        ("step 0" in stop, now(network).tolist()),
        (True, start.tolist()),
        "look at the weights after the step as well",
    )


# ------------------------------------------------------------------------------- 06 sft


@check
def dialogue_example(f):
    """Check `dialogue_example(tokenizer, prompt, response, response_only)`."""
    tiny = tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    whole = [1, 4, *space, *ab, 5, *space, *b, 2]
    yield (
        "the whole dialogue",
        list(f(tiny, "ab", "b", False).ids),
        whole,
        "prompt ids, then response ids",
    )
    yield (
        "all of it counts, of a longer one too",
        [f(tiny, prompt, "b", False).loss_start for prompt in ("ab", TYPED)],
        [1, 1],
        "the first token has no past",
    )
    yield (
        "the response alone",
        f(tiny, "ab", "b", True).loss_start,
        whole.index(5) + 1,
        "the loss starts after [/INST]",
    )
    longer = f(tiny, "b ab b", "ab b", True)
    yield (
        "the response of a longer prompt",
        list(longer.ids[longer.loss_start :]),
        [*tiny.encode(" ab b"), 2],
        "the length of the prompt's ids, special symbols included",
    )
    yield (
        "the end of sequence is in it",
        f(tiny, "ab", "b", True).ids[-1],
        2,
        "else the model never learns to stop",
    )
    typed = f(tiny, TYPED, TYPED, True)
    yield (
        "a prompt and a response that spell symbols, with spaces at both ends",
        [
            tiny.decode(typed.ids),
            typed.ids.count(5),
            len(typed.ids[typed.loss_start :]),
        ],
        [f" {TYPED} {TYPED}", 1, 2 + len(tiny.encode(" " + TYPED)) - 1],
        "both texts as they are, neither able to type a symbol",
    )


@check
def pad_examples(f):
    """Check `pad_examples(examples)`."""
    given = [Example([7, 8, 9, 2], 2), Example([7, 2], 1), Example([6, 3, 2], 2)]
    ids, mask, loss_mask = f(given)
    yield (
        "ids, padded on the right with 3",
        ids,
        torch.tensor([[7, 8, 9, 2], [7, 2, 3, 3], [6, 3, 2, 3]]),
        "PAD_ID is 3",
    )
    yield (
        "mask",
        mask,
        torch.tensor(
            [[True] * 4, [True, True, False, False], [True, True, True, False]]
        ),
        "True = real token, by the length of its text, whatever its id",
    )
    yield (
        "what counts: from loss_start on, no padding",
        loss_mask,
        torch.tensor(
            [
                [False, False, True, True],
                [False, True, False, False],
                [False, False, True, False],
            ]
        ),
        "real and at or after loss_start",
    )
    yield (
        "ids are int64, masks bool",
        [x.dtype for x in (ids, mask, loss_mask)],
        [torch.int64, torch.bool, torch.bool],
        "compare, and combine with &",
    )
    yield (
        "the examples stay as they were",
        [example.ids for example in given],
        [[7, 8, 9, 2], [7, 2], [6, 3, 2]],
        "pad copies",
    )
    yield (
        "shapes for one text of two ids, and for one of 600",
        [tuple(f([Example([7] * n, 1)])[2].shape) for n in (2, 600)],
        [(1, 2), (1, 600)],
        "as wide as the longest text, no wider",
    )
