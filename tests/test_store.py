"""The store of trained stages: what is kept, what is served, and what a key is made of."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from minillama import store


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
    """What is in the store, lock files aside: an unlocked lock file is no trace of a stage."""
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
    assert base == store.key(
        "toy", {"b": (2, 3), "a": 1}, [files]
    )  # order of settings, tuple or list
    others = [
        store.key("toy2", {"a": 1, "b": [2, 3]}, [files]),
        store.key("toy", {"a": 1.5, "b": [2, 3]}, [files]),
        store.key("toy", {"a": 1, "b": [2, 3]}, [toy]),
        store.key("toy", {"a": 1, "b": [2, 3]}, [files, plots]),
    ]
    monkeypatch.setattr(torch, "__version__", "0.0")
    others.append(store.key("toy", {"a": 1, "b": [2, 3]}, [files]))
    assert len({base, *others}) == 6


def test_changed_source_is_another_stage(tmp_path, monkeypatch):
    """A second process imports the edited file; a process that imported the old text keeps the old key."""
    monkeypatch.syspath_prepend(tmp_path)
    module_file = tmp_path / "toy_stage_source.py"

    def key_in_a_new_process(text):
        module_file.write_text(text)
        sys.modules.pop("toy_stage_source", None)
        importlib.invalidate_caches()
        return store.key("toy", {}, [importlib.import_module("toy_stage_source")])

    first = key_in_a_new_process("steps = 100\n")
    old_module = sys.modules["toy_stage_source"]
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
    whole, identity = path.read_bytes(), store.key("bits", {}, [])
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place]
            + bytes([whole[place] ^ (1 << place % 8)])
            + whole[place + 1 :]
        )
        with pytest.raises(store.DamagedStage):
            store._read(path, identity)


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


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def no_space(source, target):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(store.os, "replace", no_space)
        toy(tmp_path, Builder())
    assert files(tmp_path) == []


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
    time.sleep(2)
    return {"weight": torch.ones(2)}, {}
(folder / f"{sys.argv[2]} is here").touch()
while len(list(folder.glob("*is here"))) < 2:
    time.sleep(0.01)
print(store.stage("race", {"seed": 0}, [], build, "a race", folder / "store")[0]["weight"].sum().item())
"""


def test_of_two_processes_at_once_one_builds(tmp_path):
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
    assert [out for out, _ in outputs] == ["2.0\n", "2.0\n"]
    assert (tmp_path / "calls.txt").read_text() == "built\n"
    assert sorted(err for _, err in outputs) == [
        "building a race, once\n",
        "waiting for another process to build a race\n",
    ]


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="name must be letters"):
        store.key("../toy", {}, [])
    with pytest.raises(TypeError, match=r"settings\['lr'\] must be a JSON value"):
        store.key("toy", {"lr": torch.tensor(0.1)}, [])


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
