"""The next-token loss and the loop of language modelling."""

import math

import pytest
import torch

from minillama.data import Example, pad_examples
from minillama.fast import lm_loss_of
from minillama.lm import LMSettings, evaluate_lm, lm_loss, train_lm
from minillama.model import Llama, LlamaConfig
from minillama.optim import TrainingDiverged


def tiny():
    return Llama(LlamaConfig(12, 16, 1, 2, 1, 24, 16), torch.Generator().manual_seed(0))


def test_loss_by_hand():
    # position 0 gives token 1 a probability of 3/4: logits (0, ln 3); position 1 gives token 0 a half
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]])
    ids = torch.tensor([[0, 1, 0]])
    loss = lm_loss(logits, ids, torch.tensor([[False, True, True]]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert lm_loss(
        logits, ids, torch.tensor([[False, True, False]])
    ).item() == pytest.approx(math.log(4 / 3))


def test_selected_logits_give_the_same_loss():
    model = tiny()
    ids, mask, loss_mask = pad_examples(
        [Example([1, 2, 3, 4, 5], 2), Example([6, 7, 8], 1)]
    )
    torch.testing.assert_close(
        lm_loss_of(model, ids, mask, loss_mask),
        lm_loss(model(ids, mask), ids, loss_mask),
    )


def test_bad_loss_masks():
    logits, ids = torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)
    for mask in ([[True, True]], [[False, False]], [[False, True, True]]):
        with pytest.raises(ValueError, match="loss_mask"):
            lm_loss(logits, ids, torch.tensor(mask))
    with pytest.raises(TypeError, match="loss_mask"):
        lm_loss(logits, ids, torch.ones(1, 2))


def test_training_lowers_the_loss_and_evaluation_agrees():
    model, examples = (
        tiny(),
        [Example([1, 2, 3, 4, 5, 6], 1), Example([1, 7, 8, 9], 1)] * 4,
    )
    losses = train_lm(
        model,
        examples,
        LMSettings(steps=60, batch_size=8, lr=1e-2),
        torch.Generator().manual_seed(0),
    )
    assert losses[0] == pytest.approx(math.log(12), abs=0.1) and losses[-1] < 0.6
    loss, tokens = evaluate_lm(model, examples)
    assert tokens == 4 * (5 + 3) and loss < 0.6


def test_broken_weights_stop_the_loop():
    model = tiny()
    model.norm.weight.data[0] = math.nan
    with pytest.raises(TrainingDiverged, match=r"batch of examples \[\d"):
        train_lm(
            model,
            [Example([1, 2, 3], 1)] * 4,
            LMSettings(steps=2, batch_size=4),
            torch.Generator(),
        )
