"""Checks of 01_tokens."""

import math
from collections import Counter

import torch

from minillama.course.checks.case import check, error_of, row, tiny_tokenizer
from minillama.course.checks.shared import TYPED, counted
from minillama.data import Example


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
