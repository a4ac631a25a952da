"""Several processes train as one does, are cut short, go on, and die with a word.

Each test waits for processes that torchrun starts, and for no longer than `LIMIT`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_worker as w
import pytest
import torch
from safetensors.torch import load_file
from test_reward_file import lines, written

from minillama import distributed as d
from minillama import reward_file as f
from minillama.__main__ import main
from minillama.accumulate import known_loss
from minillama.checkpoint import OtherRun, load_sharded
from minillama.gae import gae
from minillama.kl import kl_penalised_rewards
from minillama.lm import LMSettings, response_logprobs, train_lm
from minillama.optim import Stepper
from minillama.ppo import Experience, ppo_step
from minillama.preference_loss import pair_loss, pair_scores
from minillama.reward_model import RewardModel
from minillama.whiten import logit, whiten

ROOT = Path(__file__).resolve().parents[1]
WORKER = str(ROOT / "tests/distributed_worker.py")
LIMIT = 600  # seconds, after which what hangs is killed; a launch takes about ten
TOLERANCE = 1e-5  # nats, or units of value squared; losses are 0.1 to 4
ENGINES, TASKS = ("ddp", "fsdp"), ("sft", "reward", "ppo")


def environment(**more):
    """That of this process, without what torchrun itself may have put there."""
    kept = {k: v for k, v in os.environ.items() if k not in d.ADDRESS}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    return kept | own | more


def ended(process, limit=LIMIT):
    """Wait for a process; return its exit status and what it said."""
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # torchrun passes it on
        said, _ = process.communicate(timeout=60)
        pytest.fail(f"no end after {limit} s; it said: {said[-3000:]}")
    return process.returncode, said


def begun(command, **more):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def torchrun(count, *command):
    """Run a command in so many processes of this machine: status, what they said."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    return ended(begun([*start, *command]))


# --------------------------------------------------------------------------------------
# In one process


def rank(number, count):
    return d.Processes(number, count, "cpu")


def test_a_batch_is_cut_so_that_weighted_means_give_its_mean():
    """Five items that count 1 2 3 4 5 times, 15 in all; two processes, 2 in memory.

    ceil(5 / (2 * 2)) = 2 parts each: process 0 has items 0, 4 and then 2, process 1 has
    1 and then 3. Weights: 2 * (1 + 5) / 15, 2 * 3 / 15; 2 * 2 / 15, 2 * 4 / 15.
    """
    given = list("abcde"), [1, 2, 3, 4, 5], 2
    assert d.parts_of(*given, rank(0, 2)) == [(["a", "e"], 12 / 15), (["c"], 6 / 15)]
    assert d.parts_of(*given, rank(1, 2)) == [(["b"], 4 / 15), (["d"], 8 / 15)]
    assert d.parts_of(*given, rank(0, 1)) == [
        (["a", "d"], 5 / 15),
        (["b", "e"], 7 / 15),
        (["c"], 3 / 15),
    ]


def test_a_process_without_items_computes_one_that_weighs_nothing():
    parts = [d.parts_of(["a", "b"], [3, 1], 9, rank(r, 3)) for r in range(3)]
    assert parts == [[(["a"], 9 / 4)], [(["b"], 3 / 4)], [(["a"], 0.0)]]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_item_counts_once_whatever_the_processes(size, count):
    items = list(range(10, 21))
    cut = [d.parts_of(items, items, size, rank(r, count)) for r in range(count)]
    assert len({len(parts) for parts in cut}) == 1
    counted = [i for parts in cut for part, weight in parts if weight for i in part]
    assert sorted(counted) == items
    assert all(len(part) <= size for parts in cut for part, _ in parts)
    weights = [weight for parts in cut for _, weight in parts]
    assert sum(weights) == pytest.approx(count)


def test_a_known_loss_hands_its_gradients_over_once():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    loss = known_loss(torch.tensor(3.5), [torch.tensor([0.5, -1.0])], [weight])
    assert loss.item() == 3.5 and loss.requires_grad
    loss.backward()
    assert weight.grad.tolist() == [0.5, -1.0]


def test_outside_of_torchrun_nothing_starts(monkeypatch):
    for name in d.ADDRESS:
        monkeypatch.delenv(name, raising=False)
    assert not d.launched()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="start: the .* must have RANK, .* got RANK$"):
        d.start("cpu")
    for name in d.ADDRESS:
        monkeypatch.setenv(name, "0")
    assert d.launched()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_another_run_is_refused_before_it_is_read(tmp_path):
    stepper = Stepper(torch.nn.Linear(1, 1), 0.1)
    assert load_sharded(tmp_path, {"model": stepper}, {}) == []
    (tmp_path / "step-000000003").mkdir()
    record = '{"identity": {"seed": 0}, "losses": [], "steps": {}}'
    (tmp_path / "step-000000003/record.json").write_text(record)
    with pytest.raises(OtherRun, match="step-000000003 must .* with other seed; name"):
        load_sharded(tmp_path, {"model": stepper}, {"seed": 1})
    with pytest.raises(OtherRun, match="step-000000003 must be a whole checkpoint"):
        load_sharded(tmp_path, {"model": stepper}, {"seed": 0})


# --------------------------------------------------------------------------------------
# The same losses, 1 process or 2, at one go or cut


def alone():
    """The losses of every task in one process, by the functions for one process."""
    settings = LMSettings(w.STEPS, w.BATCH, 1e-2, 2)
    model = w.llama(tie_embeddings=True)
    told = {"sft": {"model": train_lm(model, w.examples(), settings, w.seeded(3))}}

    model, pairs = RewardModel(w.llama(), generator=w.seeded(2)).train(), w.pairs()
    stepper = w.Recorder(model, 1e-2, w.schedule)
    order = w.endless_batches(len(pairs), w.BATCH, w.seeded(3))
    for _, batch in zip(range(w.STEPS), order, strict=False):
        chosen = [pairs[i] for i in batch]
        loss = pair_loss(*pair_scores(model, chosen), chosen)
        stepper.step(loss, batch)
    told["reward"] = {"model": stepper.losses}

    iterations = range(w.STEPS // w.PPO.minibatches)
    told["ppo"] = ppo_alone([(w.experience(i), w.seeded(100 + i)) for i in iterations])
    return told


def ppo_alone(iterations):
    """The losses of PPO's steps on (experience, generator) one after the other."""
    policy, value_model, _ = w.models()
    steppers = [w.Recorder(x, 3e-3, w.schedule) for x in (policy, value_model)]
    for experience, generator in iterations:
        ppo_step(policy, value_model, *steppers, experience, w.PPO, generator)
    return {"policy": steppers[0].losses, "value": steppers[1].losses}


def largest_difference(found, expected):
    """Between losses of the same steps, the last ones expected."""
    assert found.keys() == expected.keys()
    apart = 0.0
    for name, losses in found.items():
        assert 0 < len(losses) <= w.STEPS
        pairs = zip(losses, expected[name][-len(losses) :], strict=True)
        apart = max([apart, *(abs(a - b) for a, b in pairs)])
    return apart


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """What 2, 1 and again 2 processes told, the later ones going on from the first.

    Of each launch: exit status, what was said, losses. In the last a process dies.
    """
    out, found = tmp_path_factory.mktemp("trainings"), []
    for count, save, load in ((2, "two", "-"), (1, "one", "two"), (2, "-", "two one")):
        status, said = torchrun(count, WORKER, "train", out, save, load)
        path = out / f"{count} {save} {load}.json"
        assert path.exists(), said[-5000:]
        told = json.loads(path.read_text(encoding="utf-8"))
        found.append((status, said, told))
    return found


@pytest.fixture(scope="module")
def told(launches):
    return [told for _, _, told in launches]


@pytest.fixture(scope="module")
def expected():
    return alone()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", TASKS)
def test_each_loss_of_twenty_steps_is_that_of_one_process(told, expected, task, engine):
    two, one, _ = told
    for found in (two[f"two whole {engine} {task}"], one[f"one whole {engine} {task}"]):
        assert {len(losses) for losses in found.values()} == {w.STEPS}
        apart = largest_difference(found, expected[task])
        print(f"{engine}, {task}: {apart:.1e} apart at most")  # pytest -rP shows it
        assert apart < TOLERANCE
    assert max(map(max, expected[task].values())) > 0.05  # they are losses


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "told_by, save", [(1, "two"), (2, "two"), (2, "one")], ids=["2to1", "2to2", "1to2"]
)
def test_from_a_checkpoint_they_go_on_with_any_number_of_processes(
    told, expected, task, engine, told_by, save
):
    found = told[told_by][f"{save} gone on {engine} {task}"]
    assert {len(losses) for losses in found.values()} == {w.STEPS - w.CUT}
    assert largest_difference(found, expected[task]) < TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_collects_what_it_would_alone(told, engine):
    found, expected = told[1][f"answers {engine}"]["answers"], w.experience(10)
    for name, x in vars(expected).items():
        torch.testing.assert_close(torch.tensor(found[name]), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_of_two_processes_are_credited_as_those_of_one(told, engine):
    found = told[0][f"answers {engine}"]
    e = Experience(**{name: torch.tensor(x) for name, x in found["answers"].items()})
    prompts = w.prompts()[0]
    for row, prompt in enumerate(prompts[::2] + prompts[1::2]):
        assert e.ids[row][e.mask[row] & ~e.response_mask[row]].tolist() == prompt
    policy, value_model, _ = w.models()
    logprobs = response_logprobs(policy, e.ids, e.mask, e.response_mask)
    torch.testing.assert_close(e.logprobs, logprobs, atol=1e-5, rtol=1e-5)
    scores = whiten(logit(e.selected))
    torch.testing.assert_close(e.scores, scores)
    rewards = kl_penalised_rewards(
        scores, e.logprobs, e.ref_logprobs, e.response_mask, w.PPO.beta
    )
    torch.testing.assert_close(e.rewards, rewards)
    advantages, returns = gae(rewards, e.values, e.response_mask)
    torch.testing.assert_close(e.advantages, advantages)
    torch.testing.assert_close(e.returns, returns)
    losses = {"policy": found["losses"][0], "value": found["losses"][1]}
    assert largest_difference(losses, ppo_alone([(e, w.seeded(5))])) < TOLERANCE


# --------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def file_run(tmp_path_factory):
    """A training on a file in one process: its settings and its report."""
    out = tmp_path_factory.mktemp("file")
    data = written(out / "pairs.jsonl", lines(100))
    settings = f.FileSettings(
        data,
        None,
        out / "one",
        batch_size=7,
        max_tokens=64,
        micro_batch_size=2,
        lr=1e-5,
    )
    with f.locked(settings.out):
        report = f.fit(f.prepare(settings), settings)
    assert min(report["losses"]) > 0.05  # so that there is something to compare
    return settings, report


def command(settings, *more):
    """The command for the same training into another folder."""
    given = f"reward-model --data {settings.data} --base none --device cpu --seed 0 "
    given += f"--out {settings.out} --batch-size {settings.batch_size} "
    given += (
        f"--micro-batch-size {settings.micro_batch_size} --max-tokens 64 --lr 0.00001"
    )
    return [*given.split(), *more]


def require_the_same(settings, report, out):
    """The folder `out` holds what one process reached, up to rounding."""
    found = json.loads((out / "report.json").read_text())
    assert found["losses"] == pytest.approx(report["losses"], abs=TOLERANCE)
    assert found["data"] == report["data"]
    assert found["held_out"]["accuracy"] == report["held_out"]["accuracy"]
    one, other = (load_file(x / "model.safetensors") for x in (settings.out, out))
    assert one.keys() == other.keys()
    apart = max((other[name] - x).abs().max().item() for name, x in one.items())
    print(f"weights {apart:.1e} apart at most")
    assert apart < 1e-6  # of 12 steps of 1e-5 at most
    names = {path.name for path in out.iterdir()} - {".lock"}
    assert names == {path.name for path in settings.out.iterdir()} - {".lock"}


def test_what_cannot_be_is_refused_before_the_processes_meet(monkeypatch, capsys):
    given = "reward-model --data no.jsonl --base none --out no".split()
    for more, words in (
        (["--engine", "fsdp"], "--engine must be given under torchrun, got fsdp"),
        (["--dtype", "bf16"], "--dtype must be fp32 under torchrun, got bf16"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main([*given, *more])
        assert leaving.value.code == 2 and words in capsys.readouterr().err
        for name in d.ADDRESS:
            monkeypatch.setenv(name, "0")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_process_that_dies_ends_the_others_and_torchrun_says_who_died(launches):
    for status, said, _ in launches[:2]:
        assert status == 0, said[-5000:]
    status, said, _ = launches[2]
    assert status != 0
    assert re.search(r"rank\s*: 1 .*\n\s*exitcode\s*: -9", said), said[-3000:]


def test_killed_under_one_engine_the_command_goes_on_under_the_other(
    file_run, tmp_path
):
    """At first nobody watches the processes: the one left notices by itself."""
    settings, report = file_run
    cut = replace(settings, out=tmp_path / "cut")
    given = command(cut, "--save-every", "2", "--engine")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    place |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    die = [WORKER, "die", 1, 5, *given, "fsdp"]
    both = [begun(die, RANK=str(r), **place) for r in range(2)]
    status, said = ended(both[1])
    assert status == -signal.SIGKILL, said[-3000:]
    status, said = ended(both[0])
    assert status != 0, said[-3000:]
    assert re.search("closed by peer|reset by peer|Broken pipe", said), said[-3000:]
    names = [path.name for path in (cut.out / f.SHARDED).glob("step-*")]
    assert names == ["step-000000004"] and not (cut.out / f.REPORT).exists()
    with pytest.raises(OtherRun, match="on several processes; go on as there"):
        f.train(f.prepare(cut), cut)

    status, said = torchrun(2, "-m", "minillama", *given, "ddp")
    assert status == 0, said[-5000:]
    for once in ("going on after step 4 of 12", "comparisons held out:", "written: "):
        assert said.count(once) == 1, said[-3000:]
    require_the_same(settings, report, cut.out)


def test_the_line_that_lesson_27_prints_joins_two_launchers(file_run, tmp_path):
    """As on two machines, but with one process each and an address of this one."""
    settings, report = file_run
    cells = json.loads((ROOT / "notebooks/27_scaling.ipynb").read_text("utf-8"))
    prose = "\n".join("".join(cell["source"]) for cell in cells["cells"])
    printed = re.search(r"torchrun (--nnodes 2 [^`]+) -m minillama", prose)[1]
    assert "--nproc-per-node 8" in printed and "first-machine:29500" in printed
    line = printed.replace("--nproc-per-node 8", "--nproc-per-node 1")
    line = line.replace("first-machine:29500", f"localhost:{free_port()}")
    start = ["-m", "torch.distributed.run", *line.replace("\\", "").split()]
    joined = replace(settings, out=tmp_path / "joined")
    given = [*start, "-m", "minillama", *command(joined, "--engine", "fsdp")]
    both = [begun(given) for _ in range(2)]
    for process in both:
        status, said = ended(process)
        assert status == 0, said[-3000:]
    require_the_same(settings, report, joined.out)
