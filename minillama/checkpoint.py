"""A training that can be interrupted: weights, optimiser and losses in one file.

What a training goes on from is written beside the old file and then put in its place,
so that a process that is killed leaves a whole checkpoint, the old one or the new one.
Going on from it gives the weights, bit for bit, that the training would have reached
without the interruption, provided that all else is the same: `identity` says what else
there is, and a checkpoint of another identity is refused.

Left out: several checkpoints of one run, the state of random generators (draw what is
random from the seed and the step), pickle.
"""

import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minillama.contracts import expects


class OtherRun(ValueError):
    """A file of another run, or a damaged one, where this one's belongs."""


def _optimiser_tensors(optimizer):
    """Name -> tensor of an optimiser's state: two moments and a count a parameter."""
    return {
        f"optimizer.{i}.{name}": tensor
        for i, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


@expects("path: Path", "stepper: Stepper", "losses: list of number", "identity: dict")
def save_checkpoint(path, stepper, losses, identity):
    """Write what a training goes on from, in one step as seen from outside.

    losses: those of all steps so far, nats. identity: JSON values that decide what the
    training gives, for `load_checkpoint` to compare.
    """
    weights = stepper.model.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    tensors |= _optimiser_tensors(stepper.optimizer)
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    record = {"identity": identity, "steps": stepper.steps}
    unfinished = path.with_suffix(".unfinished")
    try:
        save_file(tensors, unfinished, metadata={"record": json.dumps(record)})
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def require_same(caller, path, found, identity):
    """Refuse, in the name of a caller, a file that another run has written."""
    found, identity = json.loads(json.dumps([found, identity]))
    names = [x for x in {**found, **identity} if found.get(x) != identity.get(x)]
    if names:
        raise OtherRun(
            f"{caller}: {path} must be of the same run, got one with other "
            f"{', '.join(names)}; name another folder, or delete this one"
        )


@expects("path: Path", "stepper: Stepper", "identity: dict", "-> list")
def load_checkpoint(path, stepper, identity):
    """Put a stepper where a checkpoint stands; return the losses so far, nats.

    Without a file nothing changes, and there are none. Raises `OtherRun`
    for a damaged file and for one of another identity, naming what differs.
    """
    if not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["record"])
            require_same("load_checkpoint", path, record["identity"], identity)
            # Copies: nothing shall hold the file open when the next one replaces it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except SafetensorError as error:
        raise OtherRun(
            f"load_checkpoint: {path} must be a whole checkpoint, got {error}; delete "
            "it to start again"
        ) from error
    losses, weights, state = tensors.pop("losses").tolist(), {}, {}
    for name, tensor in tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            weights[rest] = tensor
        else:
            index, part = rest.split(".")
            state.setdefault(int(index), {})[part] = tensor
    stepper.model.load_state_dict(weights)
    groups = stepper.optimizer.state_dict()["param_groups"]
    stepper.optimizer.load_state_dict({"state": state, "param_groups": groups})
    stepper.steps = record["steps"]
    return losses
