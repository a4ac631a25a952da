"""Padding, batches of similar length, examples."""

import itertools

import pytest
import torch

from minillama.data import (
    Example,
    dialogue_example,
    endless_batches,
    length_batches,
    pad,
    pad_examples,
    pair_example,
)
from minillama.tokenizer import PAD_ID, encode_prompt, encode_response, train_tokenizer
from minillama.world import Preference, find_prompt

TOKENIZER = train_tokenizer(["How do I boil an egg? Fill a pot."] * 9, 280)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_padding_on_either_side():
    ids, mask = pad([[1, 2, 3], [4]], pad_id=0)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]] and ids.dtype == torch.int64
    assert mask.tolist() == [[True] * 3, [True, False, False]]
    ids, mask = pad([[1, 2, 3], [4]], "left", 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    assert pad([[1, 2], [4]])[0].tolist() == [[1, 2], [4, PAD_ID]]


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([],), ValueError, "sequences must be lists of ids ?, none empty, got an"),
        (([[1], []],), ValueError, "sequences must .* got an empty one"),
        (([[1.5]],), TypeError, "sequences must be lists of ids"),
        ((["ab"],), TypeError, "sequences must be lists of ids"),
        ((torch.ones(1, 2).long(),), TypeError, "sequences .* got a tensor of int64"),
        (([[3, -1]],), IndexError, "sequences must .* got -1"),
        (([[1]], "up"), ValueError, 'side must be "right" or "left", got \'up\''),
        (([[1]], "left", -3), ValueError, "pad_id must be an int >= 0, got -3"),
        (([[1]], "left", 0.5), TypeError, "pad_id must be an int >= 0, got 0.5"),
    ],
)
def test_what_cannot_be_padded_is_refused(arguments, error, words):
    with pytest.raises(error, match=f"^pad: {words}"):
        pad(*arguments)


def test_loss_mask_starts_where_it_should():
    ids, mask, loss_mask = pad_examples([Example([1, 2, 3, 4], 2), Example([1, 2], 1)])
    assert ids.tolist() == [[1, 2, 3, 4], [1, 2, PAD_ID, PAD_ID]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert loss_mask.tolist() == [
        [False, False, True, True],
        [False, True, False, False],
    ]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: Example([1, 2], 0), ValueError, "Example: loss_start must be an int"),
        (lambda: Example([], 1), ValueError, "Example: ids must be a list"),
        (lambda: Example(None, 1), TypeError, "Example: ids must be a list"),
        (lambda: pad_examples([]), ValueError, "pad_examples: examples must be a list"),
        (lambda: pad_examples([[1]]), TypeError, "pad_examples: examples must be a"),
    ],
)
def test_bad_examples_are_refused(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


def test_a_dialogue_counts_whole_or_from_its_response_on():
    prompt, response = (
        encode_prompt(TOKENIZER, "How do I?"),
        encode_response(TOKENIZER, "Fill."),
    )
    whole = dialogue_example(TOKENIZER, "How do I?", "Fill.", False)
    assert whole == Example(prompt + response, 1)
    answer = dialogue_example(TOKENIZER, "How do I?", "Fill.", True)
    assert answer == Example(prompt + response, len(prompt))
    with pytest.raises(TypeError, match="^dialogue_example: response must be a string"):
        dialogue_example(TOKENIZER, "How?", None, True)


def test_a_preference_becomes_two_dialogues():
    prompt = find_prompt("boil an egg")
    preference = Preference(prompt, "Fill a pot.", "No.", 2, True, False)
    pair = pair_example(TOKENIZER, preference, (0.0, 0.25, 0.5, 1.0))
    first, second = (
        dialogue_example(TOKENIZER, prompt.text, text, True)
        for text in ("Fill a pot.", "No.")
    )
    assert (pair.chosen, pair.rejected) == (first.ids, second.ids)
    assert (pair.margin, pair.response_start) == (0.5, first.loss_start)
    assert (pair.chosen_is_safe, pair.rejected_is_safe) == (True, False)
    assert pair_example(TOKENIZER, preference).margin == 0.0
    with pytest.raises(ValueError, match=r"^pair_example: margins must be a list \(4,"):
        pair_example(TOKENIZER, preference, (0.0, 1.0))
    with pytest.raises(TypeError, match="^pair_example: preference must be a Preferen"):
        pair_example(TOKENIZER, ("a", "b"))


def test_batches_hold_each_text_once_and_similar_lengths():
    lengths = [i % 37 for i in range(1000)]
    batches = length_batches(lengths, 20, rng())
    flat = [i for batch in batches for i in batch]
    assert len(batches) == 50 and len(set(flat)) == len(flat) == 1000
    spread = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
        for batch in batches
    ]
    # 37 lengths in 16 sorted batches: about 2.3; unsorted it is about 34
    assert sum(spread) / len(spread) < 6
    assert batches == length_batches(lengths, 20, rng())


def test_batches_by_another_route():
    """The same draws, spelled out: shuffle, cut off what is left over, sort, mix."""
    lengths = [7, 3, 9, 1, 8, 2, 5, 4, 6, 0, 11]
    generator = rng(3)
    order = torch.randperm(11, generator=generator).tolist()[:10]
    first, second = (
        sorted(group, key=lengths.__getitem__) for group in (order[:8], order[8:])
    )
    batches = [first[i : i + 2] for i in (0, 2, 4, 6)] + [second]
    mixed = torch.randperm(5, generator=generator).tolist()
    assert length_batches(lengths, 2, rng(3), buckets=4) == [batches[i] for i in mixed]


def test_batches_come_in_random_order():
    """Else short texts would always come before long ones."""
    first = [
        length_batches(list(range(64)), 8, rng(seed))[0][0] // 8 for seed in range(20)
    ]
    assert len(set(first)) > 4


def test_texts_that_fill_no_batch_may_have_any_length():
    """Of 100 texts of lengths 0 to 99 and batches of 8, four sit out: any four.

    Their mean is 49.5 over the seeds, give or take 28.9 / sqrt(4 * 200) = 1.0; it was
    97.5 when they were the longest of their group.
    """
    left_out = []
    for seed in range(200):
        batches = length_batches(list(range(100)), 8, rng(seed))
        assert len(batches) == 12 and all(len(batch) == 8 for batch in batches)
        left_out += set(range(100)) - {i for batch in batches for i in batch}
    assert len(left_out) == 800 and abs(sum(left_out) / 800 - 49.5) < 4


def test_endless_batches_go_on_with_new_epochs():
    lengths = list(range(16))
    batches = list(itertools.islice(endless_batches(lengths, 2, rng(1)), 16))
    generator = rng(1)
    epochs = [length_batches(lengths, 2, generator) for _ in range(2)]
    assert batches == epochs[0] + epochs[1] and epochs[0] != epochs[1]


@pytest.mark.parametrize("function", [length_batches, endless_batches])
@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            dict(batch_size=4),
            ValueError,
            "batch_size .* got 4, where len.lengths. is 3",
        ),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1.* got 0"),
        (dict(batch_size=-1), ValueError, "batch_size must be an int >= 1.* got -1"),
        (dict(batch_size=1.0), TypeError, "batch_size must be an int"),
        (dict(lengths=[1.5]), TypeError, "lengths must be a list of int"),
        (dict(generator=7), TypeError, "generator must be a Generator, got 7"),
    ],
    ids=str,
)
def test_bad_batches_are_refused(function, change, error, words):
    good = dict(lengths=[1, 2, 3], batch_size=2, generator=rng())
    with pytest.raises(error, match=f"^{function.__name__}: {words}"):
        function(**{**good, **change})
