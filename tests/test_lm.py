"""Padding, batches, the next-token loss and the optimiser's guard."""

import math

import pytest
import torch

from minillama.data import Example, length_batches, length_groups, pad, pad_examples
from minillama.lm import (
    LMSettings,
    Stepper,
    TrainingDiverged,
    evaluate_lm,
    lm_loss,
    lm_loss_of,
    train_lm,
    warmup_cosine,
)
from minillama.model import Llama, LlamaConfig


def tiny():
    return Llama(LlamaConfig(12, 16, 1, 2, 1, 24, 16), torch.Generator().manual_seed(0))


def test_padding_on_either_side():
    ids, mask = pad([[1, 2, 3], [4]], pad_id=0)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]] and mask.tolist() == [[True] * 3, [True, False, False]]
    ids, mask = pad([[1, 2, 3], [4]], "left", 0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[True] * 3, [False, False, True]]
    for arguments in (([],), ([[1], []],), ([[1]], "up")):
        with pytest.raises(ValueError, match="pad: s"):
            pad(*arguments)


def test_loss_mask_starts_where_it_should():
    _, mask, loss_mask = pad_examples([Example([1, 2, 3, 4], 2), Example([1, 2], 1)])
    assert loss_mask.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert mask.sum() == 6


def test_batches_hold_each_text_once_and_similar_lengths():
    lengths = [i % 37 for i in range(1000)]
    batches = length_batches(lengths, 20, torch.Generator().manual_seed(0))
    flat = [i for batch in batches for i in batch]
    assert len(batches) == 50 and len(set(flat)) == len(flat) == 1000
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 6  # 37 lengths in 16 sorted batches: about 2.3; unsorted it is about 34
    assert batches == length_batches(lengths, 20, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="batch_size"):
        length_batches(lengths, 1001, torch.Generator())


def test_loss_by_hand():
    # position 0 gives token 1 a probability of 3/4: logits (0, ln 3); position 1 gives token 0 a half
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]])
    ids = torch.tensor([[0, 1, 0]])
    loss = lm_loss(logits, ids, torch.tensor([[False, True, True]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert lm_loss(logits, ids, torch.tensor([[False, True, False]])).item() == pytest.approx(math.log(4 / 3))


def test_selected_logits_give_the_same_loss():
    model = tiny()
    ids, mask, loss_mask = pad_examples([Example([1, 2, 3, 4, 5], 2), Example([6, 7, 8], 1)])
    torch.testing.assert_close(lm_loss_of(model, ids, mask, loss_mask), lm_loss(model(ids, mask), ids, loss_mask))


def test_bad_loss_masks():
    logits, ids = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)
    for mask in ([[True, True]], [[False, False]], [[False, True, True]]):
        with pytest.raises(ValueError, match="loss_mask"):
            lm_loss(logits, ids, torch.tensor(mask))
    with pytest.raises(TypeError, match="loss_mask"):
        lm_loss(logits, ids, torch.ones(1, 2))


def test_length_groups_hold_every_real_token_once_and_in_order():
    lengths = [3, 9, 1, 4, 4, 8, 2]
    ids, mask = pad([list(range(10 * n, 10 * n + n)) for n in lengths], "left")
    seen = {}
    for rows, columns in length_groups(mask, size=3):
        assert columns.shape[1] == max(lengths[row] for row in rows)  # as short as can be
        texts, real = ids[rows].gather(1, columns), mask[rows].gather(1, columns)
        seen |= {int(row): text[kept].tolist() for row, text, kept in zip(rows, texts, real, strict=True)}
    assert seen == {row: list(range(10 * n, 10 * n + n)) for row, n in enumerate(lengths)}


def test_schedule():
    assert [warmup_cosine(s, 110, 10) for s in (0, 9, 10, 60, 110, 500)] == pytest.approx([0.1, 1, 1, 0.5, 0, 0])


def test_training_lowers_the_loss_and_evaluation_agrees():
    model, examples = tiny(), [Example([1, 2, 3, 4, 5, 6], 1), Example([1, 7, 8, 9], 1)] * 4
    losses = train_lm(model, examples, LMSettings(steps=60, batch_size=8, lr=1e-2), torch.Generator().manual_seed(0))
    assert losses[0] == pytest.approx(math.log(12), abs=0.1) and losses[-1] < 0.6
    loss, tokens = evaluate_lm(model, examples)
    assert tokens == 4 * (5 + 3) and loss < 0.6


def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    stepper = Stepper(model, lr=0.1)
    stepper.step(model.weight.sum() ** 2, [0])
    good = model.weight.item()
    stepper.step(model.weight.sum() ** 2, [1])   # finite under `good`, which becomes the last good weight
    with pytest.raises(TrainingDiverged, match=r"step 2: loss is not finite, batch of examples \[7, 9\]") as caught:
        stepper.step(model.weight.sum() * math.inf, [7, 9])
    assert model.weight.item() == good and caught.value.model is model
    with pytest.raises(TrainingDiverged, match="gradient norm"):
        stepper.step((model.weight.sum() - model.weight.sum().detach()).abs().sqrt(), [3])  # slope of sqrt at 0


def test_broken_weights_stop_the_loop():
    model = tiny()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(TrainingDiverged, match=r"batch of examples \[\d"):
        train_lm(model, [Example([1, 2, 3], 1)] * 4, LMSettings(steps=2, batch_size=4), torch.Generator())
