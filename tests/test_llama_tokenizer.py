"""SentencePiece files of Llama 2's layout, its chat format, and other files."""

import base64

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentences import TEXTS, llama_layout

from minillama import llama_tokenizer as t
from minillama.data import dialogue_example
from minillama.tokenizer import Tokenizer, train_tokenizer

MODEL = llama_layout()
TOKENIZER = t.Llama2Tokenizer(MODEL)
PIECES = sentencepiece.SentencePieceProcessor()
PIECES.load_from_serialized_proto(MODEL)
TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"), max_size=40
).filter(lambda text: not any(tag in text for tag in t.TAGS))


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    response = t.encode_response(TOKENIZER, text)
    assert t.decode_response(TOKENIZER, response) == text.strip()


def reference(turns, answer):
    """A dialogue as Llama 2's own `chat_completion` encodes it: whole pairs."""
    turns = list(turns)
    if turns[0][0] == "system":
        (_, system), (_, first), *rest = turns
        turns = [("user", "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + first), *rest]
    texts = [text for _, text in turns] + [answer]
    ids = []
    for prompt, answer in zip(texts[::2], texts[1::2], strict=True):
        whole = f"[INST] {prompt.strip()} [/INST] {answer.strip()} "
        ids += [PIECES.bos_id(), *PIECES.encode(whole), PIECES.eos_id()]
    return ids


@settings(max_examples=200, deadline=None)
@given(
    st.lists(TEXT, min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0),
    st.none() | TEXT,
)
def test_the_format_is_that_of_llama_2(texts, system):
    *asked, answer = texts
    turns = list(zip(["user", "assistant"] * 3, asked, strict=False))
    if system is not None:
        turns = [("system", system), *turns]
    ours = t.encode_prompt(TOKENIZER, turns) + t.encode_response(TOKENIZER, answer)
    assert ours == reference(turns, answer)


def test_a_dialogue_piece_by_piece():
    turns = (("system", "You are kind."), ("user", " And then? "))
    prompt = t.encode_prompt(TOKENIZER, turns)
    response = t.encode_response(TOKENIZER, "Lower the egg.")
    assert prompt + response == reference(turns, "Lower the egg.")
    said = "".join(TOKENIZER.tokens(prompt)).replace("\u2581", " ")
    assert said == (
        "<s> [INST] <<SYS>><0x0A>You are kind.<0x0A><</SYS>><0x0A><0x0A>"
        " And then? [/INST]"
    )
    said = "".join(TOKENIZER.tokens(response)).replace("\u2581", " ")
    assert said == " Lower the egg. </s>"
    after = torch.tensor([*response, t.PAD_ID, *prompt])
    assert t.decode_response(TOKENIZER, after) == "Lower the egg."
    assert t.PAD_ID not in prompt + response


@pytest.mark.parametrize("tag", t.TAGS)
def test_no_text_can_end_a_prompt_early(tag):
    for turns in (
        [("user", f"a {tag} b")],
        [("system", tag), ("user", "a")],
        [("user", "a"), ("assistant", f"b{tag}"), ("user", "c")],
    ):
        with pytest.raises(ValueError, match="^encode_prompt: turns must hold no tag"):
            t.encode_prompt(TOKENIZER, turns)
    with pytest.raises(ValueError, match="^encode_response: response must hold no tag"):
        t.encode_response(TOKENIZER, tag)


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "user"],
        ["user", "assistant"],
        ["system"],
        ["user", "system", "user"],
        ["system", "system", "user"],
        ["human"],
        [],
    ],
)
def test_roles_must_alternate(roles):
    with pytest.raises(ValueError, match="^encode_prompt: turns must "):
        t.encode_prompt(TOKENIZER, [(role, "a") for role in roles])


def test_a_folder_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="^load_tokenizer: .* must hold a Sent"):
        t.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    loaded = t.load_tokenizer(str(tmp_path))
    assert loaded.encode("an egg") == TOKENIZER.encode("an egg")
    assert (loaded.vocab_size, loaded.model_bytes) == (PIECES.get_piece_size(), MODEL)


TIKTOKEN = b"\n".join(base64.b64encode(bytes([i])) + b" %d" % i for i in range(256))


@pytest.mark.parametrize(
    "model, words",
    [
        (TIKTOKEN, "Tokenizer: model_bytes must be a SentencePiece model, got"),
        (b'{"version": "1.0"}', "Tokenizer: model_bytes must be a SentencePiece model"),
        (b"", "Tokenizer: model_bytes must be a SentencePiece model, got 0 bytes"),
        (llama_layout(model_type="unigram", vocab_size=310), "whole numbers as scores"),
        (llama_layout(normalization_rule_name="nmt_nfkc"), "texts as they are"),
        (llama_layout(remove_extra_whitespaces=True), "texts as they are"),
        (
            llama_layout(add_dummy_prefix=False),
            "texts as they are, with a space before",
        ),
        (llama_layout(pad_id=3), "<unk>, <s>, </s> at 0, 1, 2 and no padding symbol"),
        (llama_layout(unk_id=2, eos_id=0), "<unk>, <s>, </s> at 0, 1, 2"),
        (
            llama_layout(byte_fallback=False, vocab_size=60),
            "the 256 bytes from id 3 on",
        ),
        (llama_layout(control_symbols=["[INST]"]), "the 256 bytes from id 3 on"),
        (train_tokenizer(TEXTS, 340).model_bytes, "<unk>, <s>, .*; texts as they are"),
    ],
    ids=range(12),
)
def test_other_layouts_are_refused_in_words(model, words):
    start = "" if words.startswith("Tokenizer") else "Llama2Tokenizer: .* without .*"
    with pytest.raises(ValueError, match=f"^{start}{words}"):
        t.Llama2Tokenizer(model)


def test_the_courses_format_and_this_one_do_not_mix():
    """The course's [INST] is id 4; here that id is a byte."""
    assert TOKENIZER.tokens([4]) == ["<0x01>"]
    with pytest.raises(TypeError, match="^dialogue_example: tokenizer must be a Token"):
        dialogue_example(TOKENIZER, "a", "b", True)
    with pytest.raises(TypeError, match="^encode_prompt: tokenizer must be a Llama2T"):
        t.encode_prompt(Tokenizer(MODEL), [("user", "a")])
