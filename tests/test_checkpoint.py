"""A training goes on from its file bit for bit, and from no other file."""

import math

import pytest
import torch
from torch import nn

from minillama.checkpoint import OtherRun, load_checkpoint, save_checkpoint
from minillama.optim import Stepper, TrainingDiverged

IDENTITY = {"seed": 0, "data": "abc"}
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def stepper():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return Stepper(model, 0.1, lambda step: 1 / (step + 1))


def walk(of, steps, losses=()):
    """Take steps; return the losses, those given first."""
    losses = list(losses)
    for _ in range(steps):
        loss = (of.model(X) - 1).square().mean()
        of.step(loss, [0])
        losses.append(loss.item())
    return losses


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole, first, second = stepper(), stepper(), stepper()
    expected = walk(whole, 9)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, first, walk(first, 4), IDENTITY)
    losses = load_checkpoint(path, second, IDENTITY)
    assert losses == expected[:4] and second.steps == 4
    assert walk(second, 5, losses) == expected
    a, b = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_without_a_file_nothing_changes(tmp_path):
    fresh = stepper()
    assert load_checkpoint(tmp_path / "a", fresh, IDENTITY) == [] and fresh.steps == 0


def test_before_the_first_step_there_is_no_optimiser_state(tmp_path):
    path = tmp_path / "a"
    save_checkpoint(path, stepper(), [], IDENTITY)
    assert load_checkpoint(path, stepper(), IDENTITY) == []


def test_a_step_that_diverges_after_loading_leaves_the_loaded_weights(tmp_path):
    path, first, second = tmp_path / "a", stepper(), stepper()
    save_checkpoint(path, first, walk(first, 4), IDENTITY)
    load_checkpoint(path, second, IDENTITY)
    with pytest.raises(TrainingDiverged):
        second.step((second.model(X) * math.nan).sum(), [0])
    a, b = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_run_is_refused_and_what_differs_is_named(tmp_path):
    path, of = tmp_path / "a.safetensors", stepper()
    save_checkpoint(path, of, walk(of, 1), IDENTITY)
    with pytest.raises(OtherRun, match="got one with other seed, threads; name"):
        load_checkpoint(path, of, {**IDENTITY, "seed": 1, "threads": 2})
    assert load_checkpoint(path, of, {"data": "abc", "seed": 0})


def test_a_damaged_file_is_refused_and_an_old_one_outlives_a_failed_writing(tmp_path):
    path, of = tmp_path / "a.safetensors", stepper()
    save_checkpoint(path, of, walk(of, 1), IDENTITY)
    whole = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(path, of, [0.5], {"seed": {1}})
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    path.write_bytes(whole[:-9])
    with pytest.raises(OtherRun, match="must be a whole checkpoint"):
        load_checkpoint(path, of, IDENTITY)
