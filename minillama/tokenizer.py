"""Text to ids and back: SentencePiece BPE with byte fallback, and the chat format of Llama 2.

The settings follow LLaMA's tokenizer (Touvron et al. 2023, arXiv 2302.13971, section 2.1): byte-pair
encoding, unknown characters split into UTF-8 bytes. Three choices differ from SentencePiece's defaults so
that ``decode(encode(text)) == text`` for every string: no normalisation, no dummy prefix, no trimming of
spaces. (The one exception is U+2581, SentencePiece's own sign for a space; it comes back as a space.)

``[INST]`` and ``[/INST]`` are control symbols with ids of their own. No text can spell them, so a user who
types "[/INST]" gets ordinary pieces and cannot end the prompt early. The padding id is not the
end-of-sequence id: a model that never sees EOS in its loss never learns to stop.

Left out: system prompts, several turns in one sequence, tokenizers trained elsewhere.
"""

import io

import sentencepiece

UNK_ID, BOS_ID, EOS_ID, PAD_ID, INST_ID, END_INST_ID = range(6)
SPECIAL_SYMBOLS = (
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "[INST]",
    "[/INST]",
)  # position = id


class Tokenizer:
    """A trained SentencePiece model, kept as bytes so that it can be stored beside the weights."""

    def __init__(self, model_bytes):
        """``model_bytes``: the serialised SentencePiece model, as `train_tokenizer` makes it."""
        self.model_bytes = bytes(model_bytes)
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)

    @property
    def vocab_size(self):
        return self.pieces.get_piece_size()

    def encode(self, text):
        """Ids of plain text, without any special symbol: list of int."""
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be a str, got {type(text).__name__}")
        return self.pieces.encode(text)

    def decode(self, ids):
        """Text of ids; control symbols (BOS, EOS, PAD, [INST], [/INST]) vanish."""
        ids = [int(i) for i in ids]
        if any(not 0 <= i < self.vocab_size for i in ids):
            raise IndexError(
                f"decode: ids must lie in [0, {self.vocab_size}), got {min(ids)} to {max(ids)}"
            )
        return self.pieces.decode(ids)

    def tokens(self, ids):
        """The piece each id stands for, for looking at: list of str."""
        return [self.pieces.id_to_piece(int(i)) for i in ids]


def train_tokenizer(texts, vocab_size=1024):
    """Train byte-pair encoding on an iterable of strings; the same texts give the same model.

    256 of the ids are single bytes and 6 are special symbols, so ``vocab_size`` must exceed 262. Fewer
    pieces are learned when the texts run out of merges (the limit is soft).
    """
    if vocab_size <= 256 + len(SPECIAL_SYMBOLS):
        raise ValueError(
            f"train_tokenizer: vocab_size must exceed 262 (bytes and symbols), got {vocab_size}"
        )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
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
    return Tokenizer(model.getvalue())


def encode_prompt(tokenizer, prompt):
    """``<s> [INST] prompt [/INST]`` as a list of ids; what follows is the model's to write."""
    return [BOS_ID, INST_ID, *tokenizer.encode(" " + prompt), END_INST_ID]


def encode_response(tokenizer, response):
    """``response </s>`` as a list of ids, to be appended to `encode_prompt`."""
    return [*tokenizer.encode(" " + response), EOS_ID]


def decode_response(tokenizer, ids):
    """The text of a response, up to its EOS if it has one, without the space that opens it."""
    ids = [int(i) for i in ids]
    if EOS_ID in ids:
        ids = ids[: ids.index(EOS_ID)]
    return tokenizer.decode(ids).removeprefix(" ")
