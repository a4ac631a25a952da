"""A build-if-missing store of trained stages: one safetensors file each, named by what it was made of.

A stage's key is a hash of its name, its settings, the source text of the code that builds it and the version
of PyTorch. Whoever changes one of these gets a new key and so a new file: a stale stage is never served.
``MINILLAMA_ARTIFACTS`` names the folder; without it, it is ``build/artifacts`` of this checkout, the same one
from the command line and from ``notebooks/``. Empty the store by deleting that folder.

Left out: eviction of old files, remote stores, and pickle in any form.
"""

import functools
import hashlib
import inspect
import json
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

PROJECT = Path(__file__).resolve().parents[1]
FORMAT = 1  # raised when the layout of a file changes: files of an older layout are then never looked at


class DamagedStage(ValueError):
    """A stored file that is cut short, altered, or not the stage that its name says."""


def store_folder():
    """The folder of trained stages; a relative ``MINILLAMA_ARTIFACTS`` is taken from the checkout."""
    return (
        PROJECT
        / Path(os.environ.get("MINILLAMA_ARTIFACTS") or "build/artifacts").expanduser()
    )


@functools.cache
def source_text(source):
    """The source text of a module, class or function.

    Read once in a process: an edit made while a kernel runs belongs to the next kernel, which imports it.
    """
    return inspect.getsource(source)


def key(name, settings, sources):
    """The identity of a stage, 64 hexadecimal digits.

    name: letters, digits, ``-`` and ``_`` (ValueError otherwise).
    settings: dict of JSON values (TypeError otherwise): seed, kind of device, the stage's own settings, and
    the keys of the stages it starts from, so that a change of a parent reaches its children.
    sources: list of modules, classes or functions whose exact text counts; what they call does not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"key: name must be letters, digits, - and _, got {name!r}")
    for setting, value in settings.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise TypeError(
                f"key: settings[{setting!r}] must be a JSON value: {error}"
            ) from error
    identity = {
        "format": FORMAT,
        "torch": torch.__version__,
        "name": name,
        "settings": settings,
        "sources": [[source.__name__, source_text(source)] for source in sources],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def stage(name, settings, sources, build, about=None, folder=None, rebuild=False):
    """Return the stored result of a stage, building it first if it is missing or damaged, or if ``rebuild``.

    name, settings, sources: see `key`.
    build: called without arguments; returns (tensors, notes), a dict of tensors and a dict of JSON values
    (curves, texts). Its exceptions pass through and leave nothing in the store. It may train, with gradients,
    also when the stage is asked for under `torch.no_grad`.
    about: what is built and about how long it takes, e.g. "the SFT policy, about 60 s", for the one line on
    standard error.
    folder: another store than `store_folder()`.

    Returns (tensors, notes) as read back from the file, so the first call and all later ones agree bit for
    bit; tensors are on the CPU. Of several processes that ask at once, one builds and the others wait.
    """
    identity = key(name, settings, sources)
    folder = store_folder() if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{identity[:16]}.safetensors"
    about = name if about is None else about
    with _one_at_a_time(path, about):
        if rebuild or not _is_sound(path, identity):
            _build(path, identity, settings, build, about)
        return _read(path, identity)


@contextmanager
def _one_at_a_time(path, about):
    """Hold the stage's lock file; say so if that takes waiting. A process that dies loses its lock."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(
            f"waiting for another process to build {about}", file=sys.stderr, flush=True
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_sound(path, identity):
    """Whether the stage is there and undamaged; damage is reported on standard error."""
    if not path.exists():
        return False
    try:
        _read(path, identity)
    except DamagedStage as error:
        print(f"rebuilding a damaged stage: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _build(path, identity, settings, build, about):
    """Call ``build`` and store what it returns under ``path``, in one step as seen from outside."""
    print(f"building {about}, once", file=sys.stderr, flush=True)
    start = time.perf_counter()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # a stage trains, whoever asks for it
        tensors, notes = build()
    tensors = {name: _as_stored(name, tensor) for name, tensor in tensors.items()}
    record = {
        "key": identity,
        "settings": settings,
        "notes": notes,
        "seconds": round(time.perf_counter() - start, 1),
    }
    record = json.loads(
        json.dumps(record)
    )  # as it will be read back: tuples are lists, keys are strings
    record["sha256"] = _digest(record, tensors)
    data = safetensors.torch.save(tensors, metadata={"record": json.dumps(record)})
    unfinished = path.with_suffix(
        ".unfinished"
    )  # same folder, hence same file system: the rename is atomic
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _as_stored(name, tensor):
    """A copy on the CPU that shares memory with no other: tied weights are stored twice."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"stage: build must return tensors, got {type(tensor).__name__} for {name!r}"
        )
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _digest(record, tensors):
    """sha256 over the record and over name, dtype, shape and bytes of every tensor."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path, identity):
    """Read and verify a file; returns (tensors, notes) or raises DamagedStage."""
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        record = _record(data)
        expected = record.pop("sha256")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedStage(f"{path.name} is unreadable ({error})") from error
    if record.get("key") != identity or _digest(record, tensors) != expected:
        raise DamagedStage(f"{path.name} is not what was written (sha256 differs)")
    return tensors, record["notes"]


def _record(data):
    """The record in a safetensors file: 8 bytes give the length of a JSON header that holds it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["record"])
