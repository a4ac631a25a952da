"""From texts to padded batches: examples, padding on either side, length buckets.

Every loop in the course draws its batches from `length_batches`, so that texts of about the same length share
a batch and little work goes into padding. Left out: packing several texts into one row (at some 35 tokens a
text, buckets waste under 5 %), files on disk, worker processes.
"""

import functools
from dataclasses import dataclass

import torch

from minillama.tokenizer import PAD_ID, encode_prompt, encode_response


@dataclass(frozen=True)
class Example:
    """One text as ids, and where its loss starts: 1 for all of it, the prompt's length for the response alone."""

    ids: list
    loss_start: int


def dialogue_example(tokenizer, prompt, response, response_only):
    """``<s> [INST] prompt [/INST] response </s>`` from two strings, as an `Example`."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    return Example(
        prompt_ids + encode_response(tokenizer, response),
        len(prompt_ids) if response_only else 1,
    )


def pad(sequences, side="right", pad_id=PAD_ID):
    """Pad lists of ids to one length: (ids int64 (B, T), mask bool (B, T), True = real token).

    ``side`` is where the padding goes. ValueError for an empty batch, an empty sequence or another side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"pad: side must be 'left' or 'right', got {side!r}")
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise ValueError(
            "pad: sequences must be a non-empty list of non-empty lists of ids"
        )
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    columns = torch.arange(int(lengths.max()))
    mask = columns < lengths[:, None]  # (B, T)
    if side == "left":
        mask = mask.flip(1)
    ids = torch.full(mask.shape, pad_id)
    ids[mask] = torch.tensor(
        [i for sequence in sequences for i in sequence]
    )  # row by row, as the mask reads
    return ids, mask


def pad_examples(examples):
    """Right-padded (ids (B, T), mask (B, T), loss_mask (B, T)); loss_mask is True where a token's loss counts."""
    ids, mask = pad([example.ids for example in examples])
    starts = torch.tensor([example.loss_start for example in examples])
    return ids, mask, mask & (torch.arange(ids.shape[1]) >= starts[:, None])


def length_batches(lengths, batch_size, generator, buckets=16):
    """One epoch of batches: lists of indices into ``lengths``, each of ``batch_size`` texts of similar length.

    The texts are shuffled, cut into groups of ``buckets`` batches, sorted by length inside each group, and the
    batches come in random order. The last texts that fill no batch sit this epoch out.
    """
    if not 0 < batch_size <= len(lengths):
        raise ValueError(
            f"length_batches: batch_size must lie in 1..{len(lengths)} (texts), got {batch_size}"
        )
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch_size * buckets):
        group = sorted(
            order[start : start + batch_size * buckets], key=lambda i: lengths[i]
        )
        batches += [
            group[i : i + batch_size]
            for i in range(0, len(group) - batch_size + 1, batch_size)
        ]
    return [
        batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()
    ]


def endless_batches(lengths, batch_size, generator):
    """`length_batches`, epoch after epoch without end."""
    while True:
        yield from length_batches(lengths, batch_size, generator)


@dataclass(frozen=True)
class PairExample:
    """One `world.Preference` as ids: two whole dialogues, the margin asked between their scores, two labels."""

    chosen: list
    rejected: list
    margin: float
    chosen_is_safe: bool
    rejected_is_safe: bool
    response_start: (
        int  # where the answers begin, in both dialogues: the prompt's length
    )


def pair_example(tokenizer, preference, margins=(0.0, 0.0, 0.0, 0.0)):
    """Tokenise a `world.Preference`; ``margins`` gives the margin of each strength, weakest first."""
    dialogues = [
        _dialogue(tokenizer, preference.prompt.text, text)
        for text in (preference.chosen, preference.rejected)
    ]
    return PairExample(
        *(dialogue.ids for dialogue in dialogues),
        margins[preference.strength],
        preference.chosen_is_safe,
        preference.rejected_is_safe,
        dialogues[0].loss_start,
    )


@functools.lru_cache(maxsize=64)  # an answer stands in several comparisons of its group
def _dialogue(tokenizer, prompt, response):
    return dialogue_example(tokenizer, prompt, response, True)
