"""Padding, batches of similar length, examples."""

import pytest
import torch

from minillama.data import Example, length_batches, pad, pad_examples


def test_padding_on_either_side():
    ids, mask = pad([[1, 2, 3], [4]], pad_id=0)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]] and mask.tolist() == [
        [True] * 3,
        [True, False, False],
    ]
    ids, mask = pad([[1, 2, 3], [4]], "left", 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [
        [True] * 3,
        [False, False, True],
    ]
    for arguments in (([],), ([[1], []],), ([[1]], "up")):
        with pytest.raises(ValueError, match="pad: s"):
            pad(*arguments)


def test_loss_mask_starts_where_it_should():
    _, mask, loss_mask = pad_examples([Example([1, 2, 3, 4], 2), Example([1, 2], 1)])
    assert loss_mask.tolist() == [
        [False, False, True, True],
        [False, True, False, False],
    ]
    assert mask.sum() == 6


def test_batches_hold_each_text_once_and_similar_lengths():
    lengths = [i % 37 for i in range(1000)]
    batches = length_batches(lengths, 20, torch.Generator().manual_seed(0))
    flat = [i for batch in batches for i in batch]
    assert len(batches) == 50 and len(set(flat)) == len(flat) == 1000
    spread = [
        max(lengths[i] for i in batch) - min(lengths[i] for i in batch)
        for batch in batches
    ]
    assert (
        sum(spread) / len(spread) < 6
    )  # 37 lengths in 16 sorted batches: about 2.3; unsorted it is about 34
    assert batches == length_batches(lengths, 20, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="batch_size"):
        length_batches(lengths, 1001, torch.Generator())
