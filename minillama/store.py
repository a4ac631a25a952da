"""A build-if-missing store of trained stages: one safetensors file each.

A file is named by a key: a hash of the stage's name, its settings, the text of all code
that it is built by (`sources`) and PyTorch's version, "2.13.0" whatever the wheel: the
part after a "+" names a build of the same version. Whoever changes one of these gets a
new key and so a new file. The file also records the content of the parents it was built
from; a stage whose parents now have other weights is stale and is built again.

`MINILLAMA_ARTIFACTS` names the folder; without it, it is `build/artifacts` of this
checkout, the same one from the command line and from `notebooks/`. A folder that cannot
be written to serves what it has. Empty the store by deleting the folder.

Left out: eviction of old files, remote stores, and pickle in any form.
"""

import hashlib
import json
import os
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MethodType, ModuleType

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor, nn

from minillama.contracts import expects
from minillama.sources import is_code, texts_behind

PROJECT = Path(__file__).resolve().parents[1]
# Raised when the layout of a file changes: older files are then never looked at.
FORMAT = 2
# How often a waiting process looks whether a lock is free; it sleeps in between.
SECONDS_BETWEEN_LOOKS = 0.25
PLAIN = (bool, int, float, str, type(None))


class DamagedStage(ValueError):
    """A stored file that is cut short, altered, or not the stage that its name says."""


def store_folder():
    """Return the folder of trained stages.

    A relative `MINILLAMA_ARTIFACTS` is taken from the checkout.
    """
    named = Path(os.environ.get("MINILLAMA_ARTIFACTS") or "build/artifacts")
    return PROJECT / named.expanduser()


def say(line):
    """Write one line to standard error at once, whole also beside other processes."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


# --------------------------------------------------------------------------------- keys


@expects("tensors: dict", "-> text")
def digest(tensors):
    """Return the sha256 over name, dtype, shape and bytes of every tensor of a dict."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        result.update(plain.view(torch.uint8).numpy())
    return result.hexdigest()


def content(value, name):
    """Say in JSON values what a value is, equally in every process.

    Tensors and modules are told by digests, lists by their entries' `repr`, functions
    and classes by name (their texts are for `key`). Other objects raise TypeError.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Tensor):
        return digest({"": value})
    if isinstance(value, nn.Module):
        return {
            "weights": digest(value.state_dict()),
            "modules": [[n, _plain(m)] for n, m in value.named_modules()],
        }
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        return {part: content(x, f"{name}.{part}") for part, x in parts.items()}
    if isinstance(value, dict):
        return [[repr(k), content(x, f"{name}[{k!r}]")] for k, x in value.items()]
    if is_code(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, MethodType):
        return [value.__name__, content(value.__self__, name)]
    text = repr(value)
    if not isinstance(value, list | tuple | set | frozenset | range) or re.search(
        r" at 0x|\b(tensor|array|Parameter)\(", text
    ):
        kind = type(value).__name__
        raise TypeError(
            f"key: {name} must be plain data, tensors or a model, got a {kind}"
        )
    if isinstance(value, set | frozenset):
        text = f"a set of {sorted(map(repr, value))}"
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(module):
    """The settings that a module keeps as attributes, such as `pooling`."""
    kept = {n: v for n, v in vars(module).items() if n[0] != "_" and n != "training"}
    kept = {n: v for n, v in kept.items() if isinstance(v, PLAIN) or is_dataclass(v)}
    return [type(module).__qualname__, repr(sorted(kept.items()))]


def code_in(value):
    """Return the set of functions and classes that a value brings along."""
    if is_code(value):
        return {value}
    if isinstance(value, MethodType):
        return {value.__func__} | code_in(value.__self__)
    if isinstance(value, nn.Module):
        return {type(module) for module in value.modules()}
    found = set() if isinstance(value, PLAIN) else {type(value)}
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        inner = (each for each in value if not isinstance(each, PLAIN))
        found |= set().union(*map(code_in, inner))
    return found


@expects("sources: list")
def sources_of(sources):
    """Return [name, text] of all definitions that the sources use, sorted.

    sources: functions, classes, or modules of the package as a whole.
    """
    for source in sources:
        if not is_code(source) and not isinstance(source, ModuleType):
            kind = type(source).__name__
            told = f"key: sources must be functions, classes or modules, got a {kind}"
            raise TypeError(told)
    return texts_behind(sources, lambda x, name: (content(x, name), code_in(x)))


@expects("name: text", "settings: dict", "sources: list")
def key(name, settings, sources):
    """Return the identity of a stage, 64 hexadecimal digits.

    name: letters, digits, `-` and `_`.
    settings: JSON values: the stage's own settings, and the keys of the stages it
    starts from, so that a change of a parent reaches its children.
    sources: functions and classes; all that they use counts, see `sources`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"key: name must be letters, digits, - and _, got {name!r}")
    for setting, value in settings.items():
        try:
            json.dumps(value)
        except TypeError as error:
            told = f"key: settings[{setting!r}] must be a JSON value, got one that is "
            raise TypeError(f"{told}not: {error}") from error
    identity = {
        "format": FORMAT,
        "torch": torch.__version__.partition("+")[0],
        "name": name,
        "settings": settings,
        "sources": sources_of(sources),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------- stages


@dataclass(frozen=True)
class Stage:
    """What is asked of the store: a key with its settings, and where it is kept."""

    name: str
    identity: str
    settings: dict
    # Name -> `digest` of the tensors of each stage that this one starts from.
    parents: dict
    # For people: what is built and about how long it takes.
    about: str
    path: Path


@expects(
    "name: text",
    "settings: dict",
    "sources: list",
    "build: function",
    "about: text or None",
    "parents: dict or None",
    "rebuild: flag",
)
def stage(
    name,
    settings,
    sources,
    build,
    about=None,
    folder=None,
    rebuild=False,
    parents=None,
):
    """Return the stored result of a stage; build it if it is missing, damaged or stale.

    name, settings, sources: see `key`.
    build: called without arguments; returns (tensors, notes), a dict of tensors and a
    dict of JSON values (curves, texts). Its exceptions pass through and leave nothing
    in the store. It may train, also when the stage is asked for under `torch.no_grad`.
    about: for a line on standard error, e.g. "the SFT policy, about 60 s".
    folder: another store than `store_folder()`.
    rebuild: build it even if it is there.
    parents: name -> `digest` of what each parent holds now.

    Returns (tensors, notes) as the file holds them, so that the first call and all
    later ones agree bit for bit; tensors are on the CPU. Of several processes that ask
    at once, one builds and the others wait. A store that cannot be written to costs the
    file, with a warning, and not the training.
    """
    folder = store_folder() if folder is None else Path(folder)
    identity = key(name, settings, sources)
    path = folder / f"{name}-{identity[:16]}.safetensors"
    asked = Stage(name, identity, settings, dict(parents or {}), about or name, path)
    if not rebuild and (found := _find(asked, quiet=True)):
        return found
    with _one_at_a_time(asked):
        # Another process may have built it while this one waited.
        if not rebuild and (found := _find(asked)):
            return found
        data = _build(asked, build)
        _keep(data, path)
        return _read(data, asked)[:2]


def _find(asked, quiet=False):
    """What the store has of a stage, None if it is missing, damaged or stale."""
    complain = (lambda line: None) if quiet else say
    try:
        tensors, notes, parents = _read(asked.path.read_bytes(), asked)
    except OSError:
        return None
    except DamagedStage as error:
        complain(f"rebuilding a damaged stage: {error}")
        return None
    if parents != asked.parents:
        others = [n for n in asked.parents if parents.get(n) != asked.parents[n]]
        told = f"{asked.name}, as {', '.join(others)} changed"
        complain(f"rebuilding a stale stage: {told}")
        return None
    return tensors, notes


@contextmanager
def _one_at_a_time(asked):
    """Hold the stage's lock where the store can have one; say so if that takes waiting.

    A process that dies loses its lock.
    """
    lock = FileLock(f"{asked.path}.lock", poll_interval=SECONDS_BETWEEN_LOOKS)
    try:
        asked.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process to build {asked.about}")
            lock.acquire()
    except (OSError, NotImplementedError):
        lock = None  # nothing can be written here: `_keep` says so after the training
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _build(asked, build):
    """Call `build` and return the bytes of the file to be."""
    say(f"building {asked.about}, once")
    start = time.perf_counter()
    # A stage trains, whoever asks for it.
    with torch.inference_mode(False), torch.enable_grad():
        tensors, notes = build()
    tensors = {name: _as_stored(name, tensor) for name, tensor in tensors.items()}
    record = {
        "key": asked.identity,
        "settings": asked.settings,
        "parents": asked.parents,
        "notes": notes,
        "seconds": round(time.perf_counter() - start, 1),
    }
    # As it will be read back: tuples are lists, keys are strings.
    record = json.loads(json.dumps(record))
    record["sha256"] = _seal(record, tensors)
    return safetensors.torch.save(tensors, metadata={"record": json.dumps(record)})


def _as_stored(name, tensor):
    """A copy on the CPU that shares no memory: tied weights are kept twice."""
    if not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise TypeError(f"stage: build must return tensors, got {kind} for {name!r}")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _keep(data, path):
    """Write a file in one step as seen from outside, or say that the disk refused."""
    # In the same folder, hence on the same file system: the renaming is atomic.
    unfinished = path.with_suffix(".unfinished")
    try:
        try:
            with unfinished.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        say(f"warning: {path.name} is used but could not be kept: {error}")


def _seal(record, tensors):
    """The sha256 over the record and the tensors."""
    text = json.dumps(record, sort_keys=True) + digest(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(data, asked):
    """Verify a file's bytes: (tensors, notes, parents), or DamagedStage is raised."""
    name = asked.path.name
    try:
        tensors = safetensors.torch.load(data)
        record = _record(data)
        seal = record.pop("sha256")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedStage(f"{name} is unreadable ({error})") from error
    if record.get("key") != asked.identity or _seal(record, tensors) != seal:
        raise DamagedStage(f"{name} is not what was written (sha256 differs)")
    return tensors, record["notes"], record["parents"]


def _record(data):
    """The record in a file: 8 bytes hold the length of the JSON header around it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["record"])
