"""Padding, examples, batches."""

import itertools

import pytest
import torch

from minillama.data import (
    Example,
    dialogue_example,
    endless_batches,
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


def take(count, batches):
    return list(itertools.islice(batches, count))


def test_an_epoch_holds_every_index_once():
    batches = take(50, endless_batches(1000, 20, rng()))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert batches == take(50, endless_batches(1000, 20, rng()))
    assert all(type(i) is int for batch in batches for i in batch)


def test_every_epoch_is_a_random_order_of_its_own():
    generator = rng(3)
    orders = [torch.randperm(11, generator=generator).tolist() for _ in range(3)]
    expected = [order[i : i + 2] for order in orders for i in range(0, 10, 2)]
    assert take(15, endless_batches(11, 2, rng(3))) == expected
    assert len({tuple(sorted(order[10:])) for order in orders}) > 1


def test_any_text_may_sit_out_and_a_batch_may_be_all():
    left_out = set()
    for seed in range(400):
        batches = take(12, endless_batches(100, 8, rng(seed)))
        left_out |= set(range(100)) - {i for batch in batches for i in batch}
    assert left_out == set(range(100))
    assert [sorted(x) for x in take(2, endless_batches(3, 3, rng()))] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            dict(batch_size=4),
            ValueError,
            "batch_size .* got 4, where count is 3",
        ),
        (dict(batch_size=0), ValueError, "batch_size must be an int >= 1.* got 0"),
        (dict(batch_size=-1), ValueError, "batch_size must be an int >= 1.* got -1"),
        (dict(batch_size=1.0), TypeError, "batch_size must be an int"),
        (dict(count=0), ValueError, "count must be an int >= 1, got 0"),
        (dict(count=[1, 2, 3]), TypeError, "count must be an int"),
        (dict(generator=7), TypeError, "generator must be a Generator, got 7"),
    ],
    ids=str,
)
def test_bad_batches_are_refused(change, error, words):
    good = dict(count=3, batch_size=2, generator=rng())
    with pytest.raises(error, match=f"^endless_batches: {words}"):
        endless_batches(**{**good, **change})
