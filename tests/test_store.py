"""The store of trained stages: what it keeps and serves, and what a key is made of."""

import errno
import hashlib
import importlib
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch
from filelock import FileLock

from minillama import gae, kl, store
from minillama.model import Llama, LlamaConfig
from minillama.reward_model import RewardModel


class Builder:
    """A build function that counts its calls."""

    def __init__(self, value=1.0):
        self.calls = 0
        self.value = value

    def __call__(self):
        self.calls += 1
        return {"weight": torch.full((2, 3), self.value)}, {"loss": [1.5, 0.5]}


def toy(folder, build, settings=None, sources=()):
    return store.stage(
        "toy", settings or {"seed": 0}, list(sources), build, "a toy, about 1 s", folder
    )


def files(folder):
    """What is in the store; an unlocked lock file is no trace of a stage."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_stage_is_built_once_and_read_back_bit_for_bit(tmp_path, capsys):
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared,
        "tied": shared,
        "transposed": shared.t(),
        "scalar": torch.tensor(float("nan")),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5).bfloat16(),
        "ids": torch.tensor([2**40]),
        "mask": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    notes = {"curve": [0.1, 1e-300], "text": "naïve ✓", "none": None}
    first, second = (toy(tmp_path, lambda: (tensors, notes)) for _ in range(2))
    assert (
        capsys.readouterr().err == "building a toy, about 1 s, once\n"
    )  # the second call says nothing
    for stored, stored_notes in (first, second):
        assert stored_notes == notes
        assert stored.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (
                stored[name].dtype == tensor.dtype
                and stored[name].shape == tensor.shape
            )
            here, there = stored[name].flatten(), tensor.detach().flatten()
            assert torch.equal(
                here.view(torch.uint8), there.view(torch.uint8)
            )  # bits: nan equals nan
    assert len(files(tmp_path)) == 1


def test_what_comes_back_is_the_callers_own(tmp_path):
    build = Builder()
    toy(tmp_path, build)[0]["weight"].zero_()
    assert toy(tmp_path, build)[0]["weight"].eq(1).all()


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_stage_trains_with_gradients_whoever_asks_for_it(tmp_path, off):
    def build():
        weight = torch.ones(2, requires_grad=True)
        (weight**2).sum().backward()
        return {"slope": weight.grad}, {}

    with off():
        tensors, _ = store.stage("slope", {}, [], build, folder=tmp_path)
    assert tensors["slope"].tolist() == [2.0, 2.0]


def test_a_changed_setting_is_another_stage(tmp_path):
    assert toy(tmp_path, Builder(1.0), {"seed": 0})[0]["weight"][0, 0] == 1
    assert toy(tmp_path, Builder(2.0), {"seed": 1})[0]["weight"][0, 0] == 2
    assert (
        toy(tmp_path, Builder(3.0), {"seed": 0})[0]["weight"][0, 0] == 1
    )  # both are kept
    assert len(files(tmp_path)) == 2


def test_a_fresh_build_replaces_what_is_stored(tmp_path):
    toy(tmp_path, Builder(1.0))
    fresh, _ = store.stage(
        "toy", {"seed": 0}, [], Builder(2.0), folder=tmp_path, rebuild=True
    )
    assert fresh["weight"][0, 0] == toy(tmp_path, Builder(3.0))[0]["weight"][0, 0] == 2


def test_the_key_depends_on_everything_it_names_and_on_nothing_else(monkeypatch):
    base = store.key("toy", {"a": 1, "b": [2, 3]}, [files])
    assert re.fullmatch("[0-9a-f]{64}", base)
    # The order of settings and of sources does not matter, nor a tuple for a list.
    assert base == store.key("toy", {"b": (2, 3), "a": 1}, [files, files])
    assert store.key("a", {}, [files, toy]) == store.key("a", {}, [toy, files])
    monkeypatch.setattr(torch, "__version__", "2.6.0+cu124")
    one = store.key("toy", {}, [])
    others = [
        base,
        store.key("toy2", {"a": 1, "b": [2, 3]}, [files]),
        store.key("toy", {"a": 1.5, "b": [2, 3]}, [files]),
        store.key("toy", {"a": 1, "b": [2, 3]}, [toy]),
        store.key("toy", {"a": 1, "b": [2, 3]}, [files, kl]),
        store.key("toy", {"a": 1, "b": [2, 3]}, [files, gae]),
        one,
    ]
    # Another wheel of the same version is no other PyTorch.
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    assert store.key("toy", {}, []) == one
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert store.key("toy", {}, []) == one
    monkeypatch.setattr(torch, "__version__", "2.6.1+cpu")
    others.append(store.key("toy", {}, []))
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    others.append(store.key("toy", {}, []))
    assert len(set(others)) == len(others)


def test_the_key_by_hand(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    identity = {
        "format": store.FORMAT,
        "name": "Toy_2-b",
        "settings": {"a": 1},
        "sources": store.sources_of([kl.kl_estimate]),
        "torch": "2.6.0",
    }
    told = json.dumps(identity, sort_keys=True)
    expected = hashlib.sha256(told.encode()).hexdigest()
    assert store.key("Toy_2-b", {"a": 1}, [kl.kl_estimate]) == expected


def rated():
    return RATE


def test_constants_of_a_users_function_count(monkeypatch):
    told = dict(store.sources_of([rated]))
    assert told[f"RATE in {__name__}.rated"] == {"x": 1, "y": None}
    assert f"{__name__}.Pair" in told  # the class of what it uses
    first = store.key("toy", {}, [rated])
    monkeypatch.setattr(sys.modules[__name__], "RATE", Pair(2))
    assert store.key("toy", {}, [rated]) != first
    monkeypatch.setattr(sys.modules[__name__], "RATE", Builder())
    message = f"^key: RATE in {__name__}.rated must be plain data, .*, got a Builder$"
    with pytest.raises(TypeError, match=message):
        store.key("toy", {}, [rated])


def test_the_record_beside_the_tensors(tmp_path, monkeypatch):
    clock = [10.0]

    def build():
        clock[0] = 12.345  # so that it took 2.3 s
        return Builder()()

    with monkeypatch.context() as patch:
        patch.setattr(store.time, "perf_counter", lambda: clock[0])
        folder = tmp_path / "new" / "nested"
        store.stage("toy", {"seed": 0}, [], build, None, folder, parents={"base": "1"})
    [path] = folder.glob("*.safetensors")
    record = store._record(path.read_bytes())
    assert re.fullmatch("[0-9a-f]{64}", record.pop("sha256"))
    assert record == {
        "key": store.key("toy", {"seed": 0}, []),
        "settings": {"seed": 0},
        "parents": {"base": "1"},
        "notes": {"loss": [1.5, 0.5]},
        "seconds": 2.3,
    }
    assert path.name == f"toy-{record['key'][:16]}.safetensors"


def test_the_key_is_the_same_in_every_process():
    program = (
        "from minillama import kl, store\n"
        "print(store.key('toy', {'b': 1, 'a': [2]}, [kl.kl_estimate, kl]))"
    )
    keys = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=store.PROJECT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        keys.add(done.stdout.strip())
    assert keys == {store.key("toy", {"a": [2], "b": 1}, [kl, kl.kl_estimate])}


def test_changed_source_is_another_stage(tmp_path, monkeypatch):
    """A new process imports the edited file; an old one keeps the old text's key."""
    monkeypatch.syspath_prepend(tmp_path)
    module_file = tmp_path / "toy_stage_source.py"

    def key_in_a_new_process(text):
        module_file.write_text(text)
        sys.modules.pop("toy_stage_source", None)
        importlib.invalidate_caches()
        return store.key("toy", {}, [importlib.import_module("toy_stage_source")])

    first = key_in_a_new_process("steps = 100\n")
    old_module = sys.modules["toy_stage_source"]
    assert store.key("toy", {}, [old_module]) == first
    assert key_in_a_new_process("steps = 2000\n") != first
    assert store.key("toy", {}, [old_module]) == first
    assert key_in_a_new_process("steps = 100\n") == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: (
            data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
        ),  # one bit of one weight
        lambda data: data.replace(b"1.5", b"2.5"),  # a note
        lambda data: data.replace(b"weight", b"height"),
    ],
    ids=[
        "last byte lost",
        "cut in the header",
        "empty",
        "a byte more",
        "bit flip",
        "note altered",
        "renamed",
    ],
)
def test_a_damaged_file_is_noticed_and_rebuilt(tmp_path, capsys, damage):
    build = Builder()
    toy(tmp_path, build)
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    capsys.readouterr()
    tensors, notes = toy(tmp_path, build)
    said = capsys.readouterr().err.splitlines()
    assert (
        said[0].startswith(f"rebuilding a damaged stage: {path.name} is ")
        and len(said) == 2
    )
    assert (
        tensors["weight"].eq(1).all()
        and notes == {"loss": [1.5, 0.5]}
        and build.calls == 2
    )
    toy(tmp_path, build)
    assert build.calls == 2


def test_every_flipped_bit_is_noticed(tmp_path):
    store.stage(
        "bits", {}, [], lambda: ({"w": torch.ones(2)}, {"n": 1}), folder=tmp_path
    )
    [path] = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    asked = store.Stage("bits", store.key("bits", {}, []), {}, {}, "bits", path)
    assert store._read(whole, asked)[1:] == ({"n": 1}, {})
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        with pytest.raises(store.DamagedStage, match=f"^{path.name} is "):
            store._read(whole[:place] + flipped + whole[place + 1 :], asked)


def test_another_stages_file_under_this_name_is_not_served(tmp_path, capsys):
    toy(tmp_path, Builder(1.0), {"seed": 0})
    [first] = tmp_path.glob("*.safetensors")
    toy(tmp_path, Builder(2.0), {"seed": 1})
    [second] = set(tmp_path.glob("*.safetensors")) - {first}
    second.write_bytes(first.read_bytes())
    assert toy(tmp_path, Builder(3.0), {"seed": 1})[0]["weight"][0, 0] == 3
    assert "rebuilding a damaged stage" in capsys.readouterr().err


def test_a_build_that_raises_leaves_nothing_and_frees_the_lock(tmp_path):
    def fails():
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        toy(tmp_path, fails)
    assert files(tmp_path) == []
    for lock in tmp_path.glob("*.lock"):
        FileLock(lock).acquire(timeout=0).lock.release()
    with pytest.raises(
        TypeError, match="build must return tensors, got list for 'weight'"
    ):
        toy(tmp_path, lambda: ({"weight": [1.0]}, {}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        toy(tmp_path, lambda: ({}, {"set": {1}}))
    assert files(tmp_path) == []
    assert toy(tmp_path, Builder())[0]["weight"].eq(1).all()


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_full_disk_costs_the_file_and_not_the_training(
    tmp_path, monkeypatch, capsys, fails
):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    build = Builder()
    with monkeypatch.context() as patch:
        patch.setattr(store.os, fails, no_space)
        tensors, notes = toy(tmp_path, build)
    assert tensors["weight"].eq(1).all() and notes == {"loss": [1.5, 0.5]}
    assert files(tmp_path) == []
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "building a toy, about 1 s, once" and len(said) == 2
    assert re.fullmatch(
        r"warning: toy-[0-9a-f]{16}.safetensors is used but could not be kept: "
        r"\[Errno 28\] No space left on device",
        said[1],
    )
    toy(tmp_path, build)
    assert build.calls == 2 and len(files(tmp_path)) == 1
    toy(tmp_path, build)
    assert build.calls == 2


@pytest.fixture
def read_only(monkeypatch):
    """Make all folders unwritable, as root may not see otherwise: no lock, no file."""

    opened = store.Path.open

    def refuse(*arguments, **_):
        raise PermissionError(errno.EACCES, "Permission denied")

    def open_for_reading(path, mode="r", *arguments, **named):
        if "w" in mode:
            refuse()
        return opened(path, mode, *arguments, **named)

    def forbid():

        monkeypatch.setattr(store.FileLock, "acquire", refuse)
        monkeypatch.setattr(store.Path, "mkdir", refuse)
        monkeypatch.setattr(store.Path, "open", open_for_reading)
        monkeypatch.setattr(store.os, "replace", refuse)

    return forbid


def test_a_read_only_store_serves_what_is_sound(tmp_path, read_only, capsys):
    build = Builder(2.0)
    toy(tmp_path, build)
    capsys.readouterr()
    read_only_files = files(tmp_path)
    read_only()
    tensors, notes = toy(tmp_path, build)
    assert tensors["weight"].eq(2).all() and notes == {"loss": [1.5, 0.5]}
    assert build.calls == 1 and capsys.readouterr().err == ""
    assert files(tmp_path) == read_only_files


def test_where_nothing_can_be_written_a_stage_is_trained_and_returned(
    tmp_path, read_only, capsys
):
    read_only()
    build = Builder(2.0)
    tensors, notes = toy(tmp_path / "store", build)
    assert tensors["weight"].eq(2).all() and notes == {"loss": [1.5, 0.5]}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "building a toy, about 1 s, once" and len(said) == 2
    assert said[1].startswith("warning: toy-") and said[1].endswith("Permission denied")


def test_a_folder_that_cannot_be_is_no_reason_to_stop(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    tensors, _ = toy(tmp_path / "file" / "store", Builder(2.0))
    assert tensors["weight"].eq(2).all()
    assert capsys.readouterr().err.count("warning: ") == 1


def test_a_file_system_without_locks_is_still_written(tmp_path, monkeypatch):
    def refuse(*arguments, **_):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(store.FileLock, "acquire", refuse)
    build = Builder()
    toy(tmp_path, build)
    toy(tmp_path, build)
    assert build.calls == 1 and len(files(tmp_path)) == 1


# ------------------------------------------------------------------------------ parents


def family(folder, parent, child, rebuild_parent=False):
    """A stage and one that starts from its weights; the child's tensors."""
    tensors, _ = store.stage(
        "parent", {}, [], parent, folder=folder, rebuild=rebuild_parent
    )
    parents = {"parent": store.digest(tensors), "other": "0"}
    settings = {"parent": store.key("parent", {}, [])}
    return store.stage("child", settings, [], child, folder=folder, parents=parents)[0]


def test_a_child_is_served_only_with_the_parents_it_was_built_from(tmp_path, capsys):
    child = Builder(1.0)
    family(tmp_path, Builder(5.0), child)
    family(tmp_path, Builder(6.0), child)
    assert child.calls == 1  # the parent was there
    family(tmp_path, Builder(5.0), child, rebuild_parent=True)
    assert child.calls == 1  # the parent came out alike
    capsys.readouterr()
    family(tmp_path, Builder(6.0), child, rebuild_parent=True)
    assert child.calls == 2  # the parent has other weights
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == [
        "rebuilding a stale stage: child, as parent changed",
        "building child, once",
    ]
    family(tmp_path, Builder(6.0), child)
    assert child.calls == 2 and len(files(tmp_path)) == 2
    settings = {"parent": store.key("parent", {}, [])}
    store.stage("child", settings, [], child, folder=tmp_path, parents={"a": "1"})
    parents = {"a": "2", "b": "3"}
    store.stage("child", settings, [], child, folder=tmp_path, parents=parents)
    said = capsys.readouterr().err
    assert "rebuilding a stale stage: child, as a, b changed\n" in said


def test_a_digest_depends_on_names_dtypes_shapes_and_bytes():
    plain = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        plain,
        {"a": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "c": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int32)},
        {"a": torch.zeros(2, 3), "b": torch.full((1,), 2.0)},
        {},
    ]
    assert len({store.digest(tensors) for tensors in others}) == len(others)
    again = {"b": torch.ones(1), "a": torch.zeros(3, 2).t()}
    assert store.digest(again) == store.digest(plain)


# ----------------------------------------------------------- what a key says of a value


@dataclass(frozen=True)
class Pair:
    x: object
    y: object = None

    def method(self):
        return self.x


RATE = Pair(1)


class Scaled(torch.nn.Linear):
    """A module with settings of its own, public and private."""

    def __init__(self, k=1, hidden=2):
        super().__init__(1, 1)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.k, self._hidden = k, hidden


class Renamed(Scaled):
    pass


def small_judge(pooling="last", seed=0):
    config = LlamaConfig(16, 8, 1, 2, 1, 8, 16)
    generator = torch.Generator().manual_seed(seed)
    return RewardModel(Llama(config, generator), pooling=pooling, generator=generator)


def test_contents_differ_where_values_do():
    values = [
        None,
        True,
        1,
        1.5,
        "1",
        [1, 2],
        [2, 1],
        (1, 2),
        {1, 2},
        frozenset({3}),
        range(3),
        {"a": 1},
        {"a": 2},
        {"b": 2},
        Scaled(),
        Scaled(k=2),
        Renamed(),
        Pair(1).method,
        Pair(5).method,
        Pair(1),
        Pair(1, 2),
        Pair(torch.ones(2)),
        Pair(torch.zeros(2)),
        torch.zeros(3),
        [Pair(1)],
        [Pair(2)],
        store.key,
        Pair,
        small_judge(),
        small_judge(pooling="mean"),
        small_judge(seed=1),
    ]
    told = [repr(store.content(value, "x")) for value in values]
    assert len(set(told)) == len(values)
    assert told == [repr(store.content(value, "x")) for value in values]
    assert store.content({3, 1, 2}, "x") == store.content({2, 3, 1}, "x")


def test_a_models_config_counts_where_the_weights_do_not_differ():
    config = LlamaConfig(16, 8, 1, 2, 1, 8, 16)
    one = Llama(config, torch.Generator().manual_seed(0))
    other = Llama(replace(config, max_seq_len=8), torch.Generator().manual_seed(0))
    assert store.digest(one.state_dict()) == store.digest(other.state_dict())
    assert store.content(one, "x") != store.content(other, "x")


def test_training_mode_and_private_attributes_are_no_settings():
    assert store.content(Scaled(), "x") == store.content(Scaled(hidden=3), "x")
    assert store.content(small_judge(), "x") == store.content(small_judge().eval(), "x")


def test_what_has_no_content_is_refused():
    for value, name in [
        (Builder(), "x"),
        (torch.Generator(), "x"),
        ([torch.ones(2)], "x"),
        ([object()], "x"),
        ([torch.nn.Parameter(torch.ones(1))], "x"),
        (Pair(Builder()), "x.x"),
        ({"a": Builder()}, r"x\['a'\]"),
        (Builder().__call__, "x"),
    ]:
        kind = type(value).__name__ if isinstance(value, list) else r"\w+"
        message = f"^key: {name} must be plain data, tensors or a model, got a {kind}$"
        with pytest.raises(TypeError, match=message):
            store.content(value, "x")


def test_code_that_values_bring_along():
    assert store.code_in(1) == store.code_in("x") == store.code_in(None) == set()
    assert store.code_in([Pair(store.key)]) == {list, Pair, store.key}
    assert store.code_in({"a": Pair(Pair(1))}) == {dict, Pair}
    assert store.code_in((Pair, {2})) == {tuple, Pair, set}
    assert {RewardModel, torch.nn.Linear} < store.code_in(Pair(small_judge()))
    builder = Builder()
    assert store.code_in(builder.__call__) == {Builder, Builder.__call__}


def test_a_stage_may_build_its_parent_first(tmp_path):
    parent = Builder(2.0)

    def child():
        tensors, _ = store.stage("parent", {}, [], parent, folder=tmp_path)
        return {"weight": tensors["weight"] * 2}, {}

    settings = {"parent": store.key("parent", {}, [])}
    assert toy(tmp_path, child, settings)[0]["weight"].eq(4).all()
    assert toy(tmp_path, child, settings)[0]["weight"].eq(4).all() and parent.calls == 1


RACER = """
import pathlib, sys, time
import torch
from minillama import store
folder = pathlib.Path(sys.argv[1])
def build():
    with (folder / "calls.txt").open("a") as log:
        log.write("built\\n")
    time.sleep(3)
    return {"weight": torch.ones(2)}, {}
(folder / f"{sys.argv[2]} is here").touch()
while len(list(folder.glob("*is here"))) < 2:
    time.sleep(0.01)
before = time.process_time()
result = store.stage("race", {"seed": 0}, [], build, "a race", folder / "store")
print(result[0]["weight"].sum().item(), time.process_time() - before)
"""


def test_of_two_processes_at_once_one_builds_and_the_other_sleeps(tmp_path):
    commands = [[sys.executable, "-c", RACER, tmp_path, name] for name in "ab"]
    racers = [
        subprocess.Popen(
            command,
            cwd=store.PROJECT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for command in commands
    ]
    outputs = [racer.communicate(timeout=120) for racer in racers]
    for out, _ in outputs:
        total, seconds = map(float, out.split())
        assert total == 2.0
        assert seconds < 0.5  # of work, in 3 s of waiting or of building by sleeping
    assert (tmp_path / "calls.txt").read_text() == "built\n"
    assert sorted(err for _, err in outputs) == [
        "building a race, once\n",
        "waiting for another process to build a race\n",
    ]


def test_a_waiting_process_sleeps_between_looks(tmp_path, monkeypatch, capsys):
    build = Builder()
    toy(tmp_path, build)
    [lock] = tmp_path.glob("*.lock")
    held, looks = FileLock(lock, thread_local=False), []
    other = threading.Thread(target=held.acquire)
    other.start()
    other.join()

    def look(seconds):
        looks.append(seconds)
        held.release()

    monkeypatch.setattr(time, "sleep", look)
    store.stage("toy", {"seed": 0}, [], build, folder=tmp_path, rebuild=True)
    assert "waiting for another process to build toy\n" in capsys.readouterr().err
    assert looks and looks[0] == pytest.approx(store.SECONDS_BETWEEN_LOOKS)
    assert store.SECONDS_BETWEEN_LOOKS >= 0.1


def test_a_line_is_written_at_once(monkeypatch):
    written = []
    monkeypatch.setattr(sys.stderr, "write", written.append)
    store.say("a line")
    assert written == ["a line\n"]


def test_bad_arguments_are_refused():
    for name in ("../toy", "", "a b", "toy\n"):
        with pytest.raises(ValueError, match="key: name must be letters"):
            store.key(name, {}, [])
    with pytest.raises(TypeError, match=r"settings\['lr'\] must be a JSON value"):
        store.key("toy", {"lr": torch.tensor(0.1)}, [])
    with pytest.raises(
        TypeError, match="key: sources must be functions, classes or modules, got a int"
    ):
        store.key("toy", {}, [1])
    with pytest.raises(TypeError, match="got a Builder"):
        store.key("toy", {}, [Builder()])
    with pytest.raises(TypeError, match="stage: build must be"):
        store.stage("toy", {}, [], None)
    with pytest.raises(TypeError, match="key: settings must be"):
        store.key("toy", None, [])


def test_the_default_store_does_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MINILLAMA_ARTIFACTS", raising=False)
    here = store.store_folder()
    assert (
        here.parts[-2:] == ("build", "artifacts")
        and (here.parents[1] / "pyproject.toml").is_file()
    )
    monkeypatch.chdir(tmp_path)
    assert store.store_folder() == here
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", "elsewhere")
    assert store.store_folder() == store.PROJECT / "elsewhere"
    monkeypatch.setenv("MINILLAMA_ARTIFACTS", str(tmp_path))
    toy(None, Builder())
    assert len(files(tmp_path)) == 1
