"""Dialogues in the format of whichever tokenizer a folder holds."""

import pytest
from sentences import TEXTS, llama_layout

from minillama import llama_tokenizer, tokenizer
from minillama.chat_format import (
    chat_format,
    encode_turns,
    load_chat_format,
    with_pairs,
)
from minillama.hf_config import COURSE_IDS, SpecialIds
from minillama.preference_file import Comparison, Fault, Tally

OURS = tokenizer.train_tokenizer(TEXTS, 300)
THEIRS = llama_tokenizer.Llama2Tokenizer(llama_layout())
TURNS = (("user", "How?"), ("assistant", "Fill a pot."), ("user", "And then?"))


def test_one_question_is_the_courses_own_format():
    assert encode_turns(OURS, TURNS[:1]) == tokenizer.encode_prompt(OURS, "How?")


def test_several_turns_piece_by_piece():
    said = "".join(OURS.tokens(encode_turns(OURS, TURNS))).replace("\u2581", " ")
    assert said == "<s>[INST] How?[/INST] Fill a pot.</s><s>[INST] And then?[/INST]"


def test_a_system_message_opens_the_first_question():
    with_system = encode_turns(OURS, (("system", "Be kind."), *TURNS))
    asked = (("user", "Be kind.\n\nHow?"), *TURNS[1:])
    assert with_system == encode_turns(OURS, asked)


def test_other_turns_are_refused():
    with pytest.raises(ValueError, match="encode_turns: turns must .* user, assistant"):
        encode_turns(OURS, TURNS[:2])


def test_each_tokenizer_has_its_format():
    course, llama2 = chat_format(OURS), chat_format(THEIRS)
    assert course.encode_prompt(TURNS) == encode_turns(OURS, TURNS)
    assert llama2.encode_prompt(TURNS) == llama_tokenizer.encode_prompt(THEIRS, TURNS)
    assert course.encode_response("So.") == tokenizer.encode_response(OURS, "So.")
    assert llama2.encode_response("So.") == llama_tokenizer.encode_response(
        THEIRS, "So."
    )
    assert course.special_ids == COURSE_IDS and llama2.special_ids == SpecialIds(
        1, 2, 0
    )


@pytest.mark.parametrize("of", [OURS, THEIRS])
def test_a_folder_tells_which_it_is(tmp_path, of):
    (tmp_path / "tokenizer.model").write_bytes(of.model_bytes)
    found = load_chat_format(str(tmp_path))
    assert type(found.tokenizer) is type(of)
    assert found.encode_prompt(TURNS) == chat_format(of).encode_prompt(TURNS)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="load_tokenizer: .* got none"):
        load_chat_format(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(llama_layout(add_dummy_prefix=False))
    with pytest.raises(ValueError, match="Llama 2's layout"):
        load_chat_format(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="must be a SentencePiece model"):
        load_chat_format(tmp_path)


def test_pairs_stay_beside_their_comparisons_where_some_are_skipped():
    good, long = (
        Comparison((("user", text),), "Yes.", "No.", None, None, text)
        for text in ("How?", "How? " * 40)
    )
    chat, tally = chat_format(OURS), Tally()
    encoders = chat.encode_prompt, chat.encode_response
    found = list(with_pairs([long, good, long], *encoders, 20, tally))
    assert [comparison for comparison, _ in found] == [good]
    assert found[0][1].chosen[-1] == tokenizer.EOS_ID
    assert tally.skipped == {"prompt too long": 2}
    with pytest.raises(Fault, match="prompt must leave room"):
        list(with_pairs([long], *encoders, 20))
