"""Dialogues of several turns as ids, in the format that a model's tokenizer asks for.

Two kinds of tokenizer.model are told apart by their first pieces: the course's, whose
tags are symbols,

    <s> [INST] question [/INST] answer </s> <s> [INST] question [/INST] answer </s>

and those of Llama 2's layout (llama_tokenizer.py). A system message stands before the
first question, in the course's format with an empty line between them.

Left out: chat templates of tokenizer_config.json, see any_reward_model.py for those.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minillama import llama_tokenizer, tokenizer
from minillama.contracts import expects
from minillama.hf_config import COURSE_IDS, SpecialIds
from minillama.preference_file import encode_pairs


@dataclass(frozen=True)
class ChatFormat:
    """How a model's tokenizer turns a dialogue into ids."""

    tokenizer: object  # A `Tokenizer` or a `Llama2Tokenizer`.
    encode_prompt: object  # Turns (role, text), the last one the user's, to ids.
    encode_response: object  # The text of an answer to ids, the end included.
    special_ids: SpecialIds  # What config.json says of the symbols.


@expects("course_tokenizer: Tokenizer", "turns: list (N,)")
def encode_turns(course_tokenizer, turns):
    """Return the ids of a dialogue, in the course's format, up to the next answer.

    turns: pairs (role, text) as for `llama_tokenizer.encode_prompt`. One question alone
    gives what `tokenizer.encode_prompt` gives.
    """
    llama_tokenizer.require_turns("encode_turns", turns)
    texts = [text for _, text in turns]
    if turns[0][0] == "system":
        system, first, *rest = texts
        texts = [f"{system}\n\n{first}", *rest]
    ids = []
    for i in range(0, len(texts), 2):
        ids += tokenizer.encode_prompt(course_tokenizer, texts[i])
        for answer in texts[i + 1 : i + 2]:
            ids += tokenizer.encode_response(course_tokenizer, answer)
    return ids


@expects("of: Tokenizer or Llama2Tokenizer")
def chat_format(of):
    """Return the `ChatFormat` that belongs to a tokenizer."""
    if isinstance(of, llama_tokenizer.Llama2Tokenizer):
        return ChatFormat(
            of,
            partial(llama_tokenizer.encode_prompt, of),
            partial(llama_tokenizer.encode_response, of),
            SpecialIds(tokenizer.BOS_ID, tokenizer.EOS_ID, llama_tokenizer.PAD_ID),
        )
    encoders = partial(encode_turns, of), partial(tokenizer.encode_response, of)
    return ChatFormat(of, *encoders, COURSE_IDS)


@expects("folder: text or Path")
def load_chat_format(folder):
    """Read the tokenizer.model of a model's folder, of either kind: a `ChatFormat`.

    Raises as `load_tokenizer` does for a folder without one, or one of another layout.
    """
    path, symbols = Path(folder) / "tokenizer.model", tokenizer.SPECIAL_SYMBOLS
    if path.exists():
        found = tokenizer.Tokenizer(path.read_bytes())
        first = range(min(len(symbols), found.vocab_size))
        if tuple(found.tokens(first)) == symbols:
            return chat_format(found)
    return chat_format(llama_tokenizer.load_tokenizer(folder))


@expects(
    "comparisons: generator or islice or list of Comparison",
    "encode_prompt, encode_response: function",
    "max_tokens: int >= 2",
    "tally: Tally or None",
    "margins: list or None",
    "view: function",
)
def with_pairs(
    comparisons,
    encode_prompt,
    encode_response,
    max_tokens,
    tally=None,
    margins=None,
    view=lambda comparison: comparison,
):
    """Yield (comparison, `PairExample`) for each comparison that can be encoded.

    As `encode_pairs`, which says what becomes of the others, but beside each pair
    stands what it was made of. view maps a comparison to the one that is encoded.
    """
    for comparison in comparisons:
        for pair in encode_pairs(
            [view(comparison)],
            encode_prompt,
            encode_response,
            max_tokens,
            margins,
            tally,
        ):
            yield comparison, pair
