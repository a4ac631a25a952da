"""The schedule, clipping, and the guard against divergence."""

import inspect
import math

import pytest
import torch

from minillama.optim import Stepper, TrainingDiverged, warmup_cosine


class Weight(torch.nn.Module):
    """One number per entry of `start`, so that a step can be done by hand."""

    def __init__(self, *start):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(start))


def test_schedule():
    # up: 1/10, 10/10; down: (1 + cos(pi/2)) / 2 half way, 0 at the end and after it
    assert [
        warmup_cosine(s, 110, 10) for s in (0, 9, 10, 60, 110, 500)
    ] == pytest.approx([0.1, 1, 1, 0.5, 0, 0])
    assert warmup_cosine(0, 1, 0) == 1.0 and warmup_cosine(5, 5, 5) == 1.0
    # past a warm-up that takes all the steps: cos(pi)
    assert warmup_cosine(6, 5, 5) == pytest.approx(0.0)


@pytest.mark.parametrize(
    "arguments, named",
    [((-50, 10, 5), "step"), ((0, 0, 5), "total_steps"), ((0, 10, -1), "warmup_steps")],
)
def test_a_schedule_of_negative_steps_is_refused(arguments, named):
    with pytest.raises(ValueError, match=f"warmup_cosine: {named} must be an int >="):
        warmup_cosine(*arguments)


def test_two_steps_of_adam_by_hand():
    """Gradients 1 and 3, betas (0.5, 0.75), lr 0.1, schedule 1 then 1/2.

    Step 0: m/(1 - b1) = 1, v/(1 - b2) = 1, so the weight falls by 0.1 * 1.
    Step 1: m = 0.5 * 0.5 + 0.5 * 3 = 1.75, over 0.75 = 7/3; v = 0.75 * 0.25 + 0.25 * 9
    = 2.4375, over 7/16 = 39/7; it falls by 0.05 * (7/3) / sqrt(39/7).
    """
    model = Weight(1.0)
    stepper = Stepper(
        model, 0.1, lambda step: (1.0, 0.5)[step], betas=(0.5, 0.75), max_norm=math.inf
    )
    assert stepper.step(model.weight.sum(), [0]).item() == 1.0
    assert model.weight.item() == pytest.approx(0.9)
    assert stepper.step(3 * model.weight.sum(), [0]).item() == 3.0
    assert model.weight.item() == pytest.approx(
        0.9 - 0.05 * (7 / 3) / math.sqrt(39 / 7)
    )
    assert stepper.steps == 2 and stepper.optimizer.param_groups[0]["lr"] == 0.05


def test_the_defaults_are_llamas():
    defaults = inspect.signature(Stepper.__init__).parameters
    assert defaults["betas"].default == (0.9, 0.95)
    assert defaults["max_norm"].default == 1.0
    stepper = Stepper(Weight(1.0), 0.1)
    group = stepper.optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0.0
    assert group["eps"] == 1e-8 and stepper.max_norm == 1.0
    assert [stepper.schedule(step) for step in (0, 7)] == [1.0, 1.0]


def test_long_gradients_are_clipped_to_max_norm():
    """The gradient (3, 4) has norm 5; with max_norm 1/2 it becomes (0.3, 0.4)."""
    model = Weight(0.0, 0.0)
    stepper = Stepper(model, 0.1, max_norm=0.5)
    norm = stepper.step((model.weight * torch.tensor([3.0, 4.0])).sum(), [0])
    assert norm.item() == 5.0  # as it was before
    torch.testing.assert_close(
        model.weight.grad, torch.tensor([0.3, 0.4]), atol=1e-5, rtol=0
    )


def test_gradients_of_one_step_do_not_reach_the_next():
    model = Weight(0.0)
    stepper = Stepper(model, 0.0, max_norm=math.inf)
    norms = [stepper.step(2 * model.weight.sum(), [0]).item() for _ in range(2)]
    assert norms == [2.0, 2.0]


def test_a_weight_that_a_loss_does_not_reach_stays():
    """Its momentum of the step before must not move it."""
    model = Weight(1.0)
    model.other = torch.nn.Parameter(torch.tensor(2.0))
    stepper = Stepper(model, 0.1)
    stepper.step(model.weight.sum() + model.other, [0])
    moved = model.weight.item()
    stepper.step(model.other, [0])
    assert model.weight.item() == moved and model.weight.grad is None


def test_frozen_weights_stay():
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    stepper = Stepper(model, 0.1)
    stepper.step(model(torch.ones(1, 1)).sum(), [0])
    assert torch.equal(model.bias, before) and len(stepper.last_good) == 1


def test_last_good_weights_are_those_that_last_gave_a_finite_loss_and_gradient():
    model = Weight(1.0)
    stepper = Stepper(model, 0.1)
    assert stepper.last_good[0].tolist() == [1.0]
    seen = []
    for _ in range(3):
        seen.append(model.weight.item())
        stepper.step(model.weight.sum() ** 2, [0])
        assert stepper.last_good[0].item() == seen[-1] != model.weight.item()


def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    stepper = Stepper(model, lr=0.1)
    stepper.step(model.weight.sum() ** 2, [0])
    good = model.weight.item()
    # finite under `good`, which becomes the last good weight
    stepper.step(model.weight.sum() ** 2, [1])
    for bad in (math.inf, -math.inf, math.nan):
        with pytest.raises(TrainingDiverged) as caught:
            stepper.step(model.weight.sum().abs() * bad, [7, 9])
        assert str(caught.value) == (
            "step 2: loss is not finite, batch of examples [7, 9]; "
            "the last good weights are restored"
        )
        assert model.weight.item() == good and caught.value.model is model
    with pytest.raises(TrainingDiverged, match="step 2: gradient norm is not finite"):
        slope_of_sqrt_at_0 = (model.weight - model.weight.detach()).sum().abs().sqrt()
        stepper.step(slope_of_sqrt_at_0, [3])
    assert model.weight.item() == good


@pytest.mark.parametrize("lr", [math.inf, 1e39])
def test_a_descent_that_breaks_the_weights_is_seen_at_once(lr):
    """Loss and gradient are finite, the weights after them are not."""
    model = Weight(1.0, 2.0)
    stepper = Stepper(model, lr)
    with pytest.raises(TrainingDiverged, match=r"step 0: weights .* examples \[5\]"):
        stepper.step(model.weight.square().sum(), [5])
    assert model.weight.tolist() == [1.0, 2.0]


def test_large_weights_whose_sum_overflows_are_finite():
    model = Weight(3e38, 3e38)
    Stepper(model, 0.0).step((model.weight * 0).sum(), [0])
    Stepper(model, 0.0).require_finite("weight", model.weight, [0])
    assert model.weight.isfinite().all()


def test_what_else_must_be_finite():
    model = Weight(1.0)
    stepper = Stepper(model, 0.1)
    stepper.step(model.weight.sum(), [0])
    stepper.require_finite("scores", torch.tensor([1.0, -2.0]), [0])
    with pytest.raises(TrainingDiverged, match=r"step 1: scores is .* \[4\]"):
        stepper.require_finite("scores", torch.tensor([1.0, math.nan]), [4])
    assert model.weight.item() == 1.0


def test_a_caller_that_sees_divergence_elsewhere_gets_the_error_to_raise():
    model = Weight(1.0)
    stepper = Stepper(model, 0.1)
    stepper.step(model.weight.sum(), [0])
    error = stepper.diverged("generate: model gave logits that are not finite")
    assert isinstance(error, TrainingDiverged) and error.model is model
    assert str(error).startswith("step 1: generate: model gave logits")
    assert model.weight.item() == 1.0


BAD = [
    (dict(lr=-1.0), ValueError, "lr must be a number >= 0, got -1.0"),
    (dict(lr=math.nan), ValueError, "lr must be a number >= 0, got nan"),
    (dict(lr="1"), TypeError, "lr must be a number >= 0, got '1'"),
    (dict(schedule=0.5), TypeError, "schedule must be a function, got 0.5"),
    (dict(betas=0.9), TypeError, r"betas must be a list \(2,\), got 0.9"),
    (dict(max_norm=0), ValueError, "max_norm must be a number > 0, got 0"),
    (dict(model=None), TypeError, "model must be a Module, got None"),
]


@pytest.mark.parametrize("change, error, words", BAD)
def test_bad_arguments(change, error, words):
    with pytest.raises(error, match=f"^Stepper: {words}"):
        Stepper(**{"model": Weight(1.0), "lr": 0.1, **change})


def test_a_loss_for_each_row_is_refused():
    model = Weight(1.0, 2.0)
    stepper = Stepper(model, 0.1)
    with pytest.raises(ValueError, match=r"^Stepper.step: loss must be a float tensor"):
        stepper.step(model.weight, [0])
    with pytest.raises(TypeError, match="^Stepper.step: loss must"):
        stepper.step(1.0, [0])
    with pytest.raises(TypeError, match="^Stepper.step: batch_ids must be a list"):
        stepper.step(model.weight.sum(), 3)
    with pytest.raises(TypeError, match="^Stepper.require_finite: tensor must"):
        stepper.require_finite("x", 1.0, [0])
