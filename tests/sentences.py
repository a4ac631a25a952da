"""What tests of real tokenizers share: SentencePiece models trained here."""

import io

import sentencepiece

TEXTS = [
    " How do I boil an egg? [INST] First, fill a pot with water. [/INST]",
    " <<SYS>> You are kind. <</SYS>> And then? Lower the egg in with a spoon.",
] * 20


def llama_layout(**changes):
    """The bytes of a SentencePiece model, of Llama 2's layout but for the changes."""
    layout = dict(
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, **{**layout, **changes}
    )
    return model.getvalue()
