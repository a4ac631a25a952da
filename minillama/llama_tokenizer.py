"""Tokenizers of real models: SentencePiece files as Llama 2's, and its chat format.

Llama 2, TinyLlama and their kin bring a `tokenizer.model`: byte-pair encoding with
bytes for unknown characters, `<unk>`, `<s>`, `</s>` and the 256 bytes as the first ids,
no normalisation, and a space put before every text. The format is that of Llama 2's
reference code (Touvron et al. 2023, arXiv 2307.09288; `chat_completion`):

    <s>[INST] <<SYS>>
    system
    <</SYS>>

    first question [/INST] answer </s><s>[INST] second question [/INST] answer </s>

The tags are plain text, as there: pieces, not symbols. A text that holds one could end
a prompt early, so it is refused. There is no padding symbol; `<unk>`, which no text
encodes to, serves as one, since the end of a text must not look like padding.

Left out: tokenizers of other layouts (Llama 3's tiktoken file, tokenizer.json, unigram
models), and chat templates other than this one.
"""

from pathlib import Path

from minillama.contracts import expects
from minillama.tokenizer import BOS_ID, EOS_ID, Tokenizer, as_list

PAD_ID = 0  # <unk>
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _layout_faults(pieces):
    """What sets a SentencePiece model apart from Llama 2's layout, in words."""
    symbols = (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id())
    size = pieces.get_piece_size()
    rest = range(259, size)
    scores = [pieces.get_score(i) for i in rest]
    # Two spaces, a ligature and a space: what a normaliser would change.
    kept = pieces.normalize("  \ufb01 ") == "\u2581\u2581\u2581\ufb01\u2581"
    checks = {
        "<unk>, <s>, </s> at 0, 1, 2 and no padding symbol": symbols == (0, 1, 2, -1),
        "the 256 bytes from id 3 on": size > 259
        and [pieces.id_to_piece(i) for i in range(3, 259)] == BYTES,
        "no other control symbol": not any(map(pieces.is_control, rest)),
        "whole numbers as scores, as byte-pair encoding has": scores
        == [int(score) for score in scores],
        "texts as they are, with a space before": kept,
    }
    return [name for name, holds in checks.items() if not holds]


@expects("model_bytes: bytes or bytearray")
class Llama2Tokenizer:
    """A SentencePiece model of Llama 2's layout, with a `Tokenizer` inside.

    `encode`, `decode` and `tokens` are those of `Tokenizer`, and `decode(encode(text))
    == text` holds here, too. The functions of tokenizer.py for the course's own format
    refuse it: theirs are symbols that it does not have. Raises ValueError for a model
    of another layout.
    """

    def __init__(self, model_bytes):
        plain = Tokenizer(model_bytes)
        if faults := _layout_faults(plain.pieces):
            raise ValueError(
                "Llama2Tokenizer: model_bytes must be a SentencePiece model of Llama "
                f"2's layout, got one without {'; '.join(faults)}"
            )
        self.model_bytes, self.vocab_size = plain.model_bytes, plain.vocab_size
        self.encode, self.decode, self.tokens = plain.encode, plain.decode, plain.tokens


@expects("folder: text or Path")
def load_tokenizer(folder):
    """Read the `tokenizer.model` of a checkpoint's folder: a `Llama2Tokenizer`.

    Raises FileNotFoundError without that file, and ValueError for one that is not a
    SentencePiece model, or is of another layout.
    """
    path = Path(folder) / "tokenizer.model"
    if not path.exists():
        raise FileNotFoundError(
            f"load_tokenizer: {folder} must hold a SentencePiece file tokenizer.model, "
            "got none (tokenizer.json is not read)"
        )
    return Llama2Tokenizer(path.read_bytes())


def roles_alternate(roles):
    """Whether roles are user, assistant, user, … after at most one system at first."""
    rest = roles[roles[:1] == ["system"] :]
    wanted = ["user", "assistant"] * len(rest)
    return bool(rest) and rest == wanted[: len(rest)]


def require_turns(caller, turns):
    """Refuse, in the name of a caller, turns that do not end with a question."""
    roles = [role for role, _ in turns]
    if not roles_alternate(roles) or roles[-1] != "user":
        raise ValueError(
            f"{caller}: turns must go from user to user by way of assistant, got "
            + ", ".join(map(str, roles))
        )


def require_no_tags(caller, text):
    """Refuse, in the name of a caller's argument, a text that holds a tag."""
    for tag in TAGS:
        if tag in text:
            raise ValueError(f"{caller} must hold no tag of the format, got {tag}")


@expects("tokenizer: Llama2Tokenizer", "turns: list of tuple")
def encode_prompt(tokenizer, turns):
    """Return the ids of a dialogue up to the answer that the model writes next.

    turns: pairs (role, text), perhaps one "system" first, then "user" and "assistant"
    in turns, "user" last. What stands between tags loses the blanks around it. Raises
    ValueError for other roles and for a text that holds a tag of the format.
    """
    require_turns("encode_prompt", turns)
    for _, text in turns:
        require_no_tags("encode_prompt: turns", text)
    texts = [text for _, text in turns]
    if turns[0][0] == "system":
        system, first, *rest = texts
        texts = [f"<<SYS>>\n{system}\n<</SYS>>\n\n{first}", *rest]
    ids = []
    for i in range(0, len(texts), 2):
        ids += [BOS_ID, *tokenizer.encode(f"[INST] {texts[i].strip()} [/INST]")]
        for answer in texts[i + 1 : i + 2]:
            ids += encode_response(tokenizer, answer)
    return ids


@expects("tokenizer: Llama2Tokenizer", "response: text")
def encode_response(tokenizer, response):
    """Return the ids of `response </s>`, to be appended to `encode_prompt`.

    The space before the response comes from the tokenizer, the one after it is the
    format's. Blanks around it are dropped. Raises ValueError for a tag in it.
    """
    require_no_tags("encode_response: response", response)
    return [*tokenizer.encode(f"{response.strip()} "), EOS_ID]


@expects("tokenizer: Llama2Tokenizer", "ids: list of ids or int64 or range")
def decode_response(tokenizer, ids):
    """Return a response's text up to its EOS, without the blanks around it."""
    ids = as_list(ids, "decode_response")
    if EOS_ID in ids:
        ids = ids[: ids.index(EOS_ID)]
    return tokenizer.decode(ids).strip()
