"""What test_distributed.py has torchrun start: small trainings, cut, gone on, killed.

Not a test itself. The test imports the tasks from here, and trains on them with the
functions for one process.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from minillama import distributed as d
from minillama.checkpoint import load_sharded, save_sharded
from minillama.data import Example, PairExample, endless_batches
from minillama.fast import lm_loss_of
from minillama.lm import response_logprobs
from minillama.model import Llama, LlamaConfig
from minillama.optim import Stepper, warmup_cosine
from minillama.ppo import Judges, PPOSettings, collect_experience
from minillama.preference_loss import pair_scores
from minillama.reward_model import RewardModel, ValueModel, response_values

STEPS, CUT = 20, 16
CONFIG = LlamaConfig(60, 16, 2, 2, 1, 24, 40)
IDENTITY = {"data": "drawn here"}
BATCH = 5  # with two processes and parts of 2, as many as 2 and 1 and 1 and 1
PPO = PPOSettings(batch_size=9, minibatches=4, max_new_tokens=8)  # minibatches of 3, 2


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def schedule(step):
    return warmup_cosine(step, STEPS, 2)


def llama(**changes):
    return Llama(replace(CONFIG, **changes), seeded(0))


def texts(count, longest=14):
    """Random ids, 4 to 14 a text."""
    of = seeded(1)
    lengths = torch.randint(4, longest + 1, (count,), generator=of).tolist()
    return [torch.randint(5, 60, (n,), generator=of).tolist() for n in lengths]


def examples():
    """Texts of which from one token to almost all count."""
    return [Example(ids, 1 + i % (len(ids) - 1)) for i, ids in enumerate(texts(17))]


def pairs():
    said = texts(34)
    return [
        PairExample(*sides, 0.1 * (i % 3), True, True, 1)
        for i, sides in enumerate(zip(said[::2], said[1::2], strict=True))
    ]


def models():
    """Policy and value model, and what collects experience and stays as it is."""
    policy = llama(tie_embeddings=True)
    judge = RewardModel(policy, generator=seeded(2)).eval()
    return policy.eval(), ValueModel(judge).eval(), judge


def prompts():
    return texts(PPO.batch_size, 9), torch.arange(PPO.batch_size) % 2 == 0


def collect(policy, settings, generator, mine):
    """Let a policy answer some of the prompts; models as they are at first judge."""
    _, value_model, judge = models()
    ref_policy = llama(tie_embeddings=True, rope_theta=500.0).eval()
    judges, (asked, safe) = Judges(judge, judge), prompts()
    given = asked[mine], safe[mine], settings, generator
    return collect_experience(policy, ref_policy, value_model, judges, *given)


@cache
def experience(seed):
    """Answers of the policy as it is at first, the same in every process."""
    return collect(models()[0], PPO, seeded(seed), slice(None))


class Recorder(Stepper):
    """A `Stepper` that keeps the losses it has descended."""

    def __init__(self, *given):
        super().__init__(*given)
        self.losses = []

    def step(self, loss, batch_ids):
        self.losses.append(loss.item())
        return super().step(loss, batch_ids)


def lm_steppers(engine, processes):
    model = llama(tie_embeddings=True).train()
    spread = d.spread(model, lm_loss_of, engine, processes)
    return {"model": Recorder(spread, 1e-2, schedule)}


def pair_steppers(engine, processes):
    model = RewardModel(llama(), generator=seeded(2)).train()
    spread = d.spread(model, pair_scores, engine, processes)
    return {"model": Recorder(spread, 1e-2, schedule)}


def ppo_steppers(engine, processes):
    policy, value_model, _ = models()
    policy = d.spread(policy, response_logprobs, engine, processes)
    value_model = d.spread(value_model, response_values, engine, processes)
    return {
        "policy": Recorder(policy, 3e-3, schedule),
        "value": Recorder(value_model, 3e-3, schedule),
    }


def on_batches(step, items, steppers, processes, begin, end):
    """Take a step on each batch from one to another, in parts of 2 items."""
    order = endless_batches(len(items), BATCH, seeded(3))
    for number, batch in zip(range(end), order, strict=False):
        if number >= begin:
            chosen = [items[i] for i in batch]
            step(steppers["model"], chosen, 2, processes, batch)


def on_answers(steppers, processes, begin, end):
    """Take the steps from one to another on answers that were drawn before."""
    steppers = steppers["policy"], steppers["value"]
    for i in range(begin // PPO.minibatches, end // PPO.minibatches):
        d.ppo_step_together(
            *steppers, experience(i), PPO, seeded(100 + i), 1, processes
        )


TASKS = {
    "sft": (lm_steppers, partial(on_batches, d.lm_step, examples())),
    "reward": (pair_steppers, partial(on_batches, d.pair_step, pairs())),
    "ppo": (ppo_steppers, on_answers),
}


def losses_of(steppers):
    return {name: stepper.losses for name, stepper in steppers.items()}


def train(out, save, load):
    """Train every task with either engine; the first process writes the losses.

    save: a name for the checkpoints after step CUT of a training from the start. load:
    names of checkpoints to go on from. "-" stands for none.
    """
    processes, told = d.start("cpu"), {}
    for engine in ("ddp", "fsdp"):
        for task, (make, walk) in TASKS.items():
            if save != "-":
                steppers = make(engine, processes)
                walk(steppers, processes, 0, CUT)
                folder = out / save / engine / task
                save_sharded(folder, steppers, [0.5] * CUT, IDENTITY)
                walk(steppers, processes, CUT, STEPS)
                told[f"{save} whole {engine} {task}"] = losses_of(steppers)
            for name in load.replace("-", "").split():
                steppers = make(engine, processes)
                folder = out / name / engine / task
                assert load_sharded(folder, steppers, IDENTITY) == [0.5] * CUT
                assert all(s.steps == CUT for s in steppers.values())
                walk(steppers, processes, CUT, STEPS)
                told[f"{name} gone on {engine} {task}"] = losses_of(steppers)
        if save != "-":
            told[f"answers {engine}"] = answers(engine, processes)
    if processes.rank == 0:
        name = f"{processes.count} {save} {load}.json"
        (out / name).write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.barrier()
    if save == "-":  # torchrun shall see how one dies and the other waits for it
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        torch.distributed.barrier()
    d.stop()


def answers(engine, processes):
    """Collect with a policy that is spread, take a step; answers and losses."""
    steppers = ppo_steppers(engine, processes)
    spread = steppers["policy"].model
    policy = (spread.module if engine == "ddp" else spread).model
    mine = slice(processes.rank, None, processes.count)
    as_logits = replace(PPO, whiten_scores=False)
    with d.whole(spread):
        told = collect(policy, as_logits, seeded(10 + processes.rank), mine)
    told = d.share_answers(told, PPO, processes)
    given = told, PPO, seeded(5), 4, processes
    losses = d.ppo_step_together(steppers["policy"], steppers["value"], *given)
    everywhere = [None] * processes.count
    mine = {name: x.tolist() for name, x in vars(told).items()}
    torch.distributed.all_gather_object(everywhere, mine)
    assert all(others == mine for others in everywhere)
    return {"answers": mine, "losses": losses}


def die(rank, after, *command):
    """Run a command in which one process is killed after so many steps."""
    step, taken = Stepper.step, []

    def deadly(self, *given):
        taken.append(given)
        if len(taken) > int(after) and os.environ["RANK"] == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given)

    Stepper.step = deadly
    from minillama.__main__ import main

    main(list(command))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]), *sys.argv[3:])
    else:
        die(*sys.argv[2:])
