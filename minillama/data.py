"""From texts to padded batches: examples, padding on either side, batches of indices.

Left out: batches of texts of similar length and several texts packed into one row,
which both need less padding; files on disk, worker processes.
"""

import functools
from dataclasses import dataclass

import torch

from minillama.contracts import expects
from minillama.tokenizer import PAD_ID, encode_prompt, encode_response


@expects("ids: list (T,)", "loss_start: int >= 1")
@dataclass(frozen=True)
class Example:
    """One text as ids, and where its loss starts."""

    ids: list  # The whole text, special symbols included.
    loss_start: int  # Tokens count from here on: from 1, or from the response's first.


def require_ids(caller, examples, vocab_size):
    """Refuse, in the name of a caller, examples with ids beyond the vocabulary."""
    for i, example in enumerate(examples):
        if not 0 <= min(example.ids) <= max(example.ids) < vocab_size:
            raise IndexError(
                f"{caller}: examples must have ids below vocab_size = {vocab_size}, "
                f"got {min(example.ids)} to {max(example.ids)} at [{i}]"
            )


@expects(
    "tokenizer: Tokenizer",
    "prompt, response: text",
    "response_only: flag",
)
def dialogue_example(tokenizer, prompt, response, response_only):
    """Return `<s> [INST] prompt [/INST] response </s>` as an `Example`."""
    prompt_ids = encode_prompt(tokenizer, prompt)
    return Example(
        prompt_ids + encode_response(tokenizer, response),
        len(prompt_ids) if response_only else 1,
    )


@expects(
    "sequences: lists of ids, none empty",
    'side: "right" or "left"',
    "pad_id: int >= 0",
)
def pad(sequences, side="right", pad_id=PAD_ID):
    """Pad lists of ids to one length: ids (B, T) and their mask (B, T).

    The mask is True at real tokens; `side` is where the padding goes.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    columns = torch.arange(int(lengths.max()))
    mask = columns < lengths[:, None]  # (B, T)
    if side == "left":
        mask = mask.flip(1)
    ids = torch.full(mask.shape, pad_id)
    flat = [i for sequence in sequences for i in sequence]
    ids[mask] = torch.tensor(flat)  # row by row, as the mask reads
    return ids, mask


@expects("examples: list of Example (N,)")
def pad_examples(examples):
    """Pad examples on the right: ids, mask and loss_mask, (B, T) each.

    The loss_mask is True where a token's loss counts.
    """
    ids, mask = pad([example.ids for example in examples])
    starts = torch.tensor([example.loss_start for example in examples])
    return ids, mask, mask & (torch.arange(ids.shape[1]) >= starts[:, None])


@expects(
    "count: int >= 1", "batch_size: int >= 1, at most count", "generator: Generator"
)
def endless_batches(count, batch_size, generator):
    """Yield batches without end: lists of `batch_size` indices below `count`.

    Each epoch goes through all of them in a random order of its own. The last of an
    order, which fill no batch, sit this epoch out. Texts of one batch so differ in
    length: batches of alike ones need less padding, but teach less (05, exercise 4).
    """
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


@dataclass(frozen=True, slots=True)
class PairExample:
    """One `world.Preference` as ids: two whole dialogues and what is known of them."""

    chosen: list  # The dialogue that was preferred.
    rejected: list  # The dialogue that was not.
    margin: float  # The chosen score shall exceed the rejected one by so much.
    chosen_is_safe: bool  # The annotator called the chosen answer safe.
    rejected_is_safe: bool  # The annotator called the rejected answer safe.
    response_start: int  # Both answers begin here, where the prompt ends.


@functools.lru_cache(maxsize=64)  # an answer stands in several comparisons of its group
def _dialogue(tokenizer, prompt, response):
    return dialogue_example(tokenizer, prompt, response, True)


@expects(
    "tokenizer: Tokenizer",
    "preference: Preference",
    "margins: list (4,)",
)
def pair_example(tokenizer, preference, margins=(0.0, 0.0, 0.0, 0.0)):
    """Return a `world.Preference` as a `PairExample`.

    `margins` gives the margin of each strength, weakest first.
    """
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
