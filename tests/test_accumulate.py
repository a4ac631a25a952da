"""Parts of a batch make the step of the whole; half precision has masters."""

import copy

import pytest
import torch

from minillama.accumulate import accumulated_loss, follow, working_copy
from minillama.model import Llama, LlamaConfig
from minillama.optim import Stepper, TrainingDiverged
from minillama.reward_model import RewardModel

CONFIG = LlamaConfig(30, 16, 1, 2, 1, 24, 16)
IDS = torch.randint(0, 30, (6, 5), generator=torch.Generator().manual_seed(1))


def reward_model():
    generator = torch.Generator().manual_seed(0)
    model = RewardModel(Llama(CONFIG, generator), generator=generator)
    return model.train()


def losses(model, sizes):
    """The mean of squared scores of IDS, in parts that each have their share."""
    for rows in IDS.split(sizes):
        yield model(rows).square().mean() * (len(rows) / len(IDS))


def test_by_hand():
    """(2w)² + 3w at w = 5: 100 + 15, gradient 8w + 3 = 43; halved upstream 21.5."""
    w = torch.nn.Parameter(torch.tensor([5.0]))
    loss = accumulated_loss([((2 * w) ** 2).sum(), 3 * w.sum()], [w], [w])
    assert loss.item() == 115.0 and w.grad is None
    (loss / 2).backward()
    assert w.grad.item() == 21.5


def test_one_part_is_the_plain_step_bit_for_bit():
    plain, parted = reward_model(), reward_model()
    for _ in range(3):
        for model, make in ((plain, None), (parted, list(parted.parameters()))):
            # A new stepper each time has fresh moments, for both.
            stepper = Stepper(model, 0.01)
            if make is None:
                loss = model(IDS).square().mean()
            else:
                loss = accumulated_loss(losses(model, [6]), make, stepper.parameters)
            stepper.step(loss, [0])
    pairs = zip(plain.parameters(), parted.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("sizes", [[3, 3], [4, 2], [1] * 6])
def test_parts_have_the_gradient_of_the_whole_batch(sizes):
    whole, parted = reward_model(), reward_model()
    expected = whole(IDS).square().mean()
    expected.backward()
    weights = list(parted.parameters())
    loss = accumulated_loss(losses(parted, sizes), weights, weights)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(whole.parameters(), weights, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_only_one_graph_is_alive_at_a_time():
    model, alive = reward_model(), []

    def counted():
        for loss in losses(model, [2, 2, 2]):
            alive.append(loss.grad_fn is not None)
            yield loss
            with pytest.raises(RuntimeError, match="second time"):
                loss.backward()

    weights = list(model.parameters())
    accumulated_loss(counted(), weights, weights)
    assert alive == [True] * 3


def test_the_guard_sees_what_is_not_finite():
    model = reward_model()
    stepper, before = Stepper(model, 0.01), copy.deepcopy(model.state_dict())
    weights = stepper.parameters
    broken = (loss * float("nan") for loss in losses(model, [6]))
    with pytest.raises(TrainingDiverged, match="loss is not finite"):
        stepper.step(accumulated_loss(broken, weights, weights), [0])
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())


def test_float32_works_on_the_model_itself_and_bfloat16_on_a_copy():
    model = reward_model()
    assert working_copy(model, torch.float32) is model
    follow(model, model)
    half = working_copy(model, torch.bfloat16)
    assert half.llama.norm.weight.dtype == torch.bfloat16
    assert half.score.weight.dtype == torch.float32
    assert model.llama.norm.weight.dtype == torch.float32


def test_small_steps_are_not_lost_in_half_precision():
    """A step of 1e-5 moves no bfloat16 weight near 1, but ten of them its master."""
    model = reward_model()
    half, stepper = working_copy(model, torch.bfloat16), Stepper(model, 1e-5)
    for _ in range(10):
        parts = losses(half, [3, 3])
        loss = accumulated_loss(parts, list(half.parameters()), stepper.parameters)
        stepper.step(loss, [0])
        follow(half, model)
    norm = model.llama.norm.weight
    assert norm.dtype == torch.float32 and (norm - 1).abs().max() > 5e-5
    assert (half.llama.norm.weight == 1).all()  # 1 - 1e-4 is 1 in bfloat16
    assert torch.equal(half.score.weight, model.score.weight)
