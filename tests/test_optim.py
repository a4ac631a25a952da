"""The schedule, and the guard against divergence."""

import math

import pytest
import torch

from minillama.model import Llama, LlamaConfig
from minillama.optim import Stepper, TrainingDiverged, warmup_cosine


def tiny():
    return Llama(LlamaConfig(12, 16, 1, 2, 1, 24, 16), torch.Generator().manual_seed(0))


def test_schedule():
    assert [
        warmup_cosine(s, 110, 10) for s in (0, 9, 10, 60, 110, 500)
    ] == pytest.approx([0.1, 1, 1, 0.5, 0, 0])


def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    stepper = Stepper(model, lr=0.1)
    stepper.step(model.weight.sum() ** 2, [0])
    good = model.weight.item()
    stepper.step(
        model.weight.sum() ** 2, [1]
    )  # finite under `good`, which becomes the last good weight
    with pytest.raises(
        TrainingDiverged,
        match=r"step 2: loss is not finite, batch of examples \[7, 9\]",
    ) as caught:
        stepper.step(model.weight.sum() * math.inf, [7, 9])
    assert model.weight.item() == good and caught.value.model is model
    with pytest.raises(TrainingDiverged, match="gradient norm"):
        stepper.step(
            (model.weight.sum() - model.weight.sum().detach()).abs().sqrt(), [3]
        )  # slope of sqrt at 0
