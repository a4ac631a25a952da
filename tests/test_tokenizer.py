"""Round trips on any text, bytes for unknown characters, symbols nobody can spell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama import tokenizer as t

TEXTS = [" How do I boil an egg?", " First, fill a pot with water."] * 20
TOKENIZER = t.train_tokenizer(TEXTS, 320)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581")))
def test_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_unknown_characters_become_bytes():
    # UTF-8 of U+86CB
    pieces = ["<0xE8>", "<0x9B>", "<0x8B>"]
    assert TOKENIZER.tokens(TOKENIZER.encode("蛋")) == pieces


def test_no_text_spells_a_symbol():
    ids = TOKENIZER.encode("[INST] </s> <pad> [/INST]")
    assert not set(ids) & set(range(len(t.SPECIAL_SYMBOLS)))
    assert TOKENIZER.tokens(range(6)) == list(t.SPECIAL_SYMBOLS)
    assert t.PAD_ID != t.EOS_ID


def test_chat_layout():
    prompt, response = (
        t.encode_prompt(TOKENIZER, "How do I?"),
        t.encode_response(TOKENIZER, "First, fill."),
    )
    assert prompt[:2] == [t.BOS_ID, t.INST_ID] and prompt[-1] == t.END_INST_ID
    assert response[-1] == t.EOS_ID
    assert TOKENIZER.decode(prompt) == " How do I?"
    after = [*response, t.PAD_ID, *prompt]
    assert t.decode_response(TOKENIZER, after) == "First, fill."
    assert t.decode_response(TOKENIZER, torch.tensor(after)) == "First, fill."
    assert t.decode_response(TOKENIZER, response[:-1]) == "First, fill."
    assert t.decode_response(TOKENIZER, []) == ""


def test_training_is_deterministic():
    again = t.train_tokenizer((text for text in TEXTS), 320)
    assert again.model_bytes == TOKENIZER.model_bytes
    stored = t.Tokenizer(bytearray(TOKENIZER.model_bytes))
    assert stored.encode("egg") == TOKENIZER.encode("egg")
    assert 262 < TOKENIZER.vocab_size <= 320


BAD = [
    (lambda: t.train_tokenizer(TEXTS, 262), ValueError, "train_tokenizer: vocab_size"),
    (lambda: t.train_tokenizer([]), ValueError, "train_tokenizer: texts must hold"),
    (lambda: t.train_tokenizer([""]), ValueError, "train_tokenizer: texts .* 1 empty"),
    (lambda: t.train_tokenizer(iter(())), TypeError, "train_tokenizer: texts must be"),
    (lambda: t.train_tokenizer("a text"), TypeError, "train_tokenizer: texts must be"),
    (lambda: t.train_tokenizer([b"a"]), TypeError, "train_tokenizer: texts must be"),
    (lambda: t.Tokenizer(b"junk"), ValueError, "Tokenizer: model_bytes .* got 4 bytes"),
    (lambda: t.Tokenizer(b""), ValueError, "Tokenizer: model_bytes .* got 0 bytes"),
    (lambda: t.Tokenizer(7), TypeError, "Tokenizer: model_bytes must be a bytes"),
    (lambda: TOKENIZER.encode(b"a"), TypeError, "Tokenizer.encode: text must be"),
    (lambda: TOKENIZER.encode("a\ud800"), ValueError, r"Tokenizer.encode: .* at 1"),
    (lambda: TOKENIZER.encode("\udfff"), ValueError, r"Tokenizer.encode: .* at 0"),
    (lambda: TOKENIZER.decode([320]), IndexError, "Tokenizer.decode: ids .* got 320"),
    (lambda: TOKENIZER.decode([1, -1]), IndexError, "Tokenizer.decode: ids .* got -1"),
    (
        lambda: TOKENIZER.decode([1.5]),
        TypeError,
        "Tokenizer.decode: ids must be a list",
    ),
    (lambda: TOKENIZER.decode("ab"), TypeError, "Tokenizer.decode: ids must be a list"),
    (lambda: TOKENIZER.tokens([320]), IndexError, "Tokenizer.tokens: ids .* got 320"),
    (lambda: t.encode_prompt(TOKENIZER, 7), TypeError, "encode_prompt: prompt must be"),
    (
        lambda: t.encode_response(None, "a"),
        TypeError,
        "encode_response: tokenizer must",
    ),
    (
        lambda: t.decode_response(TOKENIZER, 7),
        TypeError,
        "decode_response: ids must be",
    ),
]


@pytest.mark.parametrize("call, error, words", BAD)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()
