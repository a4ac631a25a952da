"""Text to ids and back: SentencePiece BPE with bytes, and the chat format of Llama 2.

The settings follow LLaMA's tokenizer (Touvron et al. 2023, arXiv 2302.13971, section
2.1): byte-pair encoding, unknown characters split into UTF-8 bytes. Three choices
differ from SentencePiece's defaults so that `decode(encode(text)) == text` for every
string: no normalisation, no dummy prefix, no trimming of spaces. (The one exception is
U+2581, SentencePiece's own sign for a space; it comes back as a space.)

`[INST]` and `[/INST]` are control symbols with ids of their own. No text can spell
them, so a user who types "[/INST]" gets ordinary pieces and cannot end the prompt
early. The padding id is not the end-of-sequence id: a model that never sees EOS in its
loss never learns to stop.

Left out: system prompts, several turns in one sequence, tokenizers trained elsewhere.
"""

import io
import re

import sentencepiece

from minillama.contracts import expects

UNK_ID, BOS_ID, EOS_ID, PAD_ID, INST_ID, END_INST_ID = range(6)
# The position of a symbol is its id.
SPECIAL_SYMBOLS = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")


def load_pieces(model_bytes):
    """A SentencePiece processor; ValueError for bytes that are none."""
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.load_from_serialized_proto(model_bytes or b"-")  # b"" would pass
    except RuntimeError as error:
        raise ValueError(
            "Tokenizer: model_bytes must be a SentencePiece model, got "
            f"{len(model_bytes)} bytes that are none"
        ) from error
    return pieces


def as_list(ids, caller):
    """The ids of one text as integers; those of several are refused for a caller."""
    if len(shape := tuple(getattr(ids, "shape", (0,)))) != 1:
        raise ValueError(f"{caller}: ids must be those of one text, got shape {shape}")
    return [int(i) for i in ids]


@expects("model_bytes: bytes or bytearray")
class Tokenizer:
    """A trained SentencePiece model, kept as bytes to be stored beside the weights.

    `model_bytes` is the serialised model, as `train_tokenizer` makes it.
    """

    def __init__(self, model_bytes):
        self.model_bytes = bytes(model_bytes)
        self.pieces = load_pieces(self.model_bytes)

    @property
    def vocab_size(self):
        """The number of ids."""
        return self.pieces.get_piece_size()

    @expects("text: text")
    def encode(self, text):
        """Return the ids of plain text, a list without any special symbol."""
        if surrogate := re.search("[\ud800-\udfff]", text):
            raise ValueError(
                "Tokenizer.encode: text must be Unicode without lone surrogates, got "
                f"{surrogate[0]!r} at {surrogate.start()}"
            )
        return self.pieces.encode(text)

    @expects("ids: list of ids or int64 or range")
    def decode(self, ids):
        """Return the text of ids; control symbols (BOS, EOS, PAD, [INST], …) vanish."""
        return self.pieces.decode(self._known(ids, "decode"))

    @expects("ids: list of ids or int64 or range")
    def tokens(self, ids):
        """Return the piece that each id stands for, for looking at: a list of str."""
        return [self.pieces.id_to_piece(i) for i in self._known(ids, "tokens")]

    def _known(self, ids, method):
        """The ids as a list; IndexError, in a method's name, for one without piece."""
        ids = as_list(ids, f"Tokenizer.{method}")
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise IndexError(
                    f"Tokenizer.{method}: ids must be below vocab_size = "
                    f"{self.vocab_size}, got {i}"
                )
        return ids


@expects("texts: list of text or generator", "vocab_size: int >= 263")
def train_tokenizer(texts, vocab_size=1024):
    """Train byte-pair encoding; the same texts give the same model.

    256 of the ids are single bytes and 6 are special symbols; every character of the
    texts must fit beside these 262. Fewer pieces are learned when the texts run out of
    merges (the limit is soft).
    """
    texts = list(texts)
    if not any(texts):
        raise ValueError(
            f"train_tokenizer: texts must hold some text, got {len(texts)} empty ones"
        )
    model = io.BytesIO()
    settings = dict(
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=PAD_ID,
        control_symbols=list(SPECIAL_SYMBOLS[4:]),
        num_threads=1,
        minloglevel=2,
    )
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, **settings
        )
    except RuntimeError as error:
        if "Vocabulary size is smaller" not in str(error):
            raise
        raise ValueError(
            "train_tokenizer: vocab_size must leave room for every character of texts, "
            f"got {vocab_size}"
        ) from error
    return Tokenizer(model.getvalue())


@expects("tokenizer: Tokenizer", "prompt: text")
def encode_prompt(tokenizer, prompt):
    """Return the ids of `<s> [INST] prompt [/INST]`; the model writes what follows."""
    return [BOS_ID, INST_ID, *tokenizer.encode(" " + prompt), END_INST_ID]


@expects("tokenizer: Tokenizer", "response: text")
def encode_response(tokenizer, response):
    """Return the ids of `response </s>`, to be appended to `encode_prompt`."""
    return [*tokenizer.encode(" " + response), EOS_ID]


@expects("tokenizer: Tokenizer", "ids: list of ids or int64 or range")
def decode_response(tokenizer, ids):
    """Return a response's text up to its EOS, without the space that opens it."""
    ids = as_list(ids, "decode_response")
    if EOS_ID in ids:
        ids = ids[: ids.index(EOS_ID)]
    return tokenizer.decode(ids).removeprefix(" ")
