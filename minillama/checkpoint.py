"""A training that can be interrupted: weights, optimiser and losses on disk.

What a training goes on from is written beside the old checkpoint and then put in its
place, so that a process that is killed leaves a whole one, the old one or the new one.
Going on from it gives the weights, bit for bit, that the training would have reached
without the interruption, provided that all else is the same: `identity` says what else
there is, and a checkpoint of another identity is refused.

A training in one process writes one file. Several processes write a folder, each its
own share, with PyTorch's torch.distributed.checkpoint; it serves any number of
processes, which then agree up to rounding.

Left out: several checkpoints of one run, the state of random generators (draw what is
random from the seed and the step), pickle.
"""

import json
import os
import shutil

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minillama.contracts import expects

RECORD = "record.json"
AVERAGES = ("exp_avg", "exp_avg_sq")  # what AdamW keeps beside its count


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


def _take_for_good(stepper):
    """Let a divergence fall back on the weights that were loaded, not on older ones."""
    for good, weight in zip(stepper.last_good, stepper.parameters, strict=True):
        good.copy_(weight.detach())


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
    _take_for_good(stepper)
    return losses


# --------------------------------------------------------------------------------------
# Of several processes


def _shares(steppers):
    """Name -> tensor, or this process's share of one, of all that steppers go on from.

    A `Stepper` that has not stepped gets the optimiser state that AdamW starts with.
    """
    shares = {}
    for whose, stepper in steppers.items():
        state = stepper.optimizer.state
        for name, weight in stepper.model.named_parameters():
            if weight not in state:
                count = torch.zeros((), device=weight.device)
                moments = {x: torch.zeros_like(weight) for x in AVERAGES}
                state[weight] = {"step": count, **moments}
            name = name.removeprefix("module.")  # which DistributedDataParallel adds
            shares[f"{whose}.model.{name}"] = weight.detach()
            for part, tensor in state[weight].items():
                shares[f"{whose}.optimizer.{name}.{part}"] = tensor
    return shares


@expects("folder: Path", "steppers: dict", "losses: list of number", "identity: dict")
def save_sharded(folder, steppers, losses, identity):
    """Write what a training goes on from, every process its share, in safetensors.

    All processes call this, on a folder that all see. steppers: by name; their models
    are those of `distributed.spread`. losses: those of all steps so far. identity: JSON
    values that decide what the training gives, up to rounding. The checkpoint gets its
    name, step-N, once it is whole, and then the last one goes.
    """
    # Imported here, as it takes a second that a command in one process need not wait.
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    unfinished, whole = folder / "unfinished", folder / f"step-{len(losses):09d}"
    if dist.get_rank() == 0 and unfinished.exists():  # left by a process that died
        shutil.rmtree(unfinished)
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    save(_shares(steppers), storage_writer=writer)  # returns when all have written
    if dist.get_rank() == 0:
        steps = {name: stepper.steps for name, stepper in steppers.items()}
        record = {"identity": identity, "losses": losses, "steps": steps}
        (unfinished / RECORD).write_text(json.dumps(record), encoding="utf-8")
        unfinished.rename(whole)
        for old in set(folder.glob("step-*")) - {whole}:
            shutil.rmtree(old)


@expects("folder: Path", "steppers: dict", "identity: dict", "-> list")
def load_sharded(folder, steppers, identity):
    """Put steppers where the last `save_sharded` stands; return the losses so far.

    All processes call this; how many there are, and their engine, may be others than
    before. Without a checkpoint nothing changes, and there are no losses. Raises
    `OtherRun` for a damaged one and for one of another identity, naming what differs.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    found = sorted(folder.glob("step-*"))
    if not found:
        return []
    record = json.loads((found[-1] / RECORD).read_text(encoding="utf-8"))
    require_same("load_sharded", found[-1], record["identity"], identity)
    try:
        reader = HuggingFaceStorageReader(str(found[-1]))
        load(_shares(steppers), storage_reader=reader)  # fills the tensors in place
    except CheckpointException as error:
        raise OtherRun(
            f"load_sharded: {found[-1]} must be a whole checkpoint of these models, "
            f"got {error}; delete it to start again"
        ) from error
    for name, stepper in steppers.items():
        stepper.steps = record["steps"][name]
        _take_for_good(stepper)
    return record["losses"]
