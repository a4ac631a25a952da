"""Round trips on any text, bytes for unknown characters, symbols that no text can spell."""

import pytest
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
    assert TOKENIZER.tokens(TOKENIZER.encode("蛋")) == [
        "<0xE8>",
        "<0x9B>",
        "<0x8B>",
    ]  # UTF-8 of U+86CB


def test_no_text_spells_a_symbol():
    assert not set(TOKENIZER.encode("[INST] </s> <pad> [/INST]")) & set(
        range(len(t.SPECIAL_SYMBOLS))
    )
    assert (
        TOKENIZER.tokens(range(6)) == list(t.SPECIAL_SYMBOLS) and t.PAD_ID != t.EOS_ID
    )


def test_chat_layout():
    prompt, response = (
        t.encode_prompt(TOKENIZER, "How do I?"),
        t.encode_response(TOKENIZER, "First, fill."),
    )
    assert (
        prompt[:2] == [t.BOS_ID, t.INST_ID]
        and prompt[-1] == t.END_INST_ID
        and response[-1] == t.EOS_ID
    )
    assert TOKENIZER.decode(prompt) == " How do I?"
    assert (
        t.decode_response(TOKENIZER, [*response, t.PAD_ID, *prompt]) == "First, fill."
    )


def test_training_is_deterministic():
    assert t.train_tokenizer(TEXTS, 320).model_bytes == TOKENIZER.model_bytes
    assert t.Tokenizer(TOKENIZER.model_bytes).encode("egg") == TOKENIZER.encode("egg")


def test_bad_arguments():
    with pytest.raises(ValueError, match="vocab_size"):
        t.train_tokenizer(TEXTS, 262)
    with pytest.raises(TypeError, match="text"):
        TOKENIZER.encode(b"bytes")
    with pytest.raises(IndexError, match="ids"):
        TOKENIZER.decode([TOKENIZER.vocab_size])
