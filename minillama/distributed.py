"""Many machines: the same training step on several processes, with PyTorch's engines.

`torchrun` starts the processes. Each holds the model, or a share of it, and computes
its part of every batch; an engine averages the gradients, and all take the same step:

    ddp     every process holds all weights, gradients and moments
            (DistributedDataParallel: Li et al. 2020, arXiv 2006.15704)
    fsdp    every process holds a share of them, and gathers a layer's weights while it
            computes with them (fully_shard: Zhao et al. 2023, arXiv 2304.11277; the
            idea is ZeRO's, Rajbhandari et al. 2020, arXiv 1910.02054)

Conventions. W processes have ranks 0 to W - 1. A batch is the whole batch, the same
list on every process, and its loss is the mean over all of it, over tokens or pairs as
in one process. Sums are taken in another order than in one process, so that losses
agree up to float32 rounding and not bit for bit.

Left out: models that do not fit in one process before they are shared out, tensor and
pipeline parallelism, half precision, reading different data on each process, sharing
out models that only judge, going on with fewer processes when one has died (start
again: `checkpoint.load_sharded` serves any number of processes and either engine).
"""

import math
import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minillama.accumulate import known_loss
from minillama.contracts import expects
from minillama.data import pad_examples
from minillama.gae import gae
from minillama.kl import kl_penalised_rewards
from minillama.ppo import Experience, policy_loss, value_loss
from minillama.preference_loss import pair_loss
from minillama.whiten import whiten

PATIENCE = timedelta(minutes=10)  # A process that waits longer for others gives up.
ADDRESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

# --------------------------------------------------------------------------------------
# Processes and models


@expects("rank: int >= 0", "count: int >= 1", 'device: "cpu" or "cuda"')
@dataclass(frozen=True)
class Processes:
    """The processes of one training, and which of them this is."""

    rank: int  # This one's number, from 0; the first one prints and writes.
    count: int  # So many there are: W.
    device: str  # Where each computes; "cuda" is a GPU of its own.


def launched():
    """Say whether torchrun, or what speaks as it does, has started this process."""
    return all(name in os.environ for name in ADDRESS)


@expects('device: "cpu" or "cuda"', "-> Processes")
def start(device):
    """Meet the other processes that torchrun has started; say which one this is.

    On "cuda" each process of a machine takes the GPU of its LOCAL_RANK. A process that
    ends takes the others with it: torchrun stops them, and where it is not there they
    raise RuntimeError as soon as the connection is lost, or after `PATIENCE`. Raises
    ValueError outside of torchrun.
    """
    if not launched():
        raise ValueError(
            f"start: the environment must have {', '.join(ADDRESS)}, as torchrun sets "
            f"them, got {', '.join(x for x in ADDRESS if x in os.environ) or 'none'}"
        )
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def stop():
    """Leave the other processes; they need not have finished."""
    dist.destroy_process_group()


@expects("identity: dict", "processes: Processes")
def require_agreement(identity, processes):
    """Refuse a training whose processes start from different things.

    identity: JSON values that decide what the training gives; ValueError names those
    that are not the same everywhere.
    """
    told = [None] * processes.count
    dist.all_gather_object(told, identity)
    names = [x for x in identity if any(other.get(x) != identity[x] for other in told)]
    if names:
        raise ValueError(
            "require_agreement: identity must be the same on all processes, got other "
            f"{', '.join(names)}"
        )


@expects("model: Module", "function: function")
class AsForward(nn.Module):
    """A model of which `function(model, ...)` is the forward, where an engine acts."""

    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs):
        """Return `function(model, *inputs)`; without inputs, nothing: see `whole`."""
        return self.function(self.model, *inputs) if inputs else None


@expects(
    "model: Module",
    "function: function",
    'engine: "ddp" or "fsdp"',
    "processes: Processes",
    "-> Module",
)
def spread(model, function, engine, processes):
    """Hand a model to an engine; the result computes `function(model, ...)`.

    model: a `Llama`, or one that has a body `llama`; it is changed in place, must have
    the same weights on every process, and goes to a `Stepper` as the result of this
    call. function: asks each block of the model once, from first to last.
    """
    asked = AsForward(model, function)
    if engine == "ddp":
        return DistributedDataParallel(asked)
    # Imported here: it takes a second, which a command in one process need not wait.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device, (processes.count,))
    # The last block goes with embedding, norm and head: fast.py asks its parts alone.
    for block in getattr(model, "llama", model).layers[:-1]:
        fully_shard(block, mesh=mesh)
    return fully_shard(asked, mesh=mesh)


@expects("spread_model: Module")
@contextmanager
def whole(spread_model):
    """Hold all weights of a model on every process, to be read: sampled from, written.

    Within, the model that was given to `spread` is as it was before. All processes have
    to enter; they do not wait for each other afterwards.
    """
    from torch.distributed.fsdp import FSDPModule

    shards = [x for x in spread_model.modules() if isinstance(x, FSDPModule)]
    if shards:
        spread_model()  # FSDP takes the module that is asked first for the outermost
    for shard in shards:
        shard.unshard()
    for shard in shards[1:]:  # the outermost keeps its weights anyway
        shard.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for shard in shards[1:]:
            shard.set_reshard_after_forward(True, recurse=False)
        for shard in shards:
            shard.reshard()


# --------------------------------------------------------------------------------------
# One step


@expects(
    "items: list (N,)",
    "counts: list of int (N,)",
    "size: int >= 1",
    "processes: Processes",
    "-> list",
)
def parts_of(items, counts, size, processes):
    """Cut a batch into this process's parts: a list of (items of the part, weight).

        weight = W * (what counts in the part) / (what counts in the batch)

    counts: over how much of each item a loss is a mean: its tokens, or 1. The engines
    divide the sum of all gradients by W, so that the weighted means over the parts give
    the gradient of the mean over the batch, however uneven the parts. A part has at
    most `size` items. All processes have as many parts, for they exchange something in
    each; one that has no item left computes the first of the batch, with weight 0.
    """
    if min(counts) < 1:
        raise ValueError(f"parts_of: counts must be at least 1, got {min(counts)}")
    W, N, cut = processes.count, len(items), []
    n_parts = math.ceil(N / (size * W))
    for part in range(n_parts):
        mine = range(part * W + processes.rank, N, n_parts * W)
        weight = W * sum(counts[i] for i in mine) / sum(counts)
        cut.append(([items[i] for i in mine] or items[:1], weight))
    return cut


def _exchange(model, now):
    """Let the backward passes within exchange gradients, or only add them up."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if now else model.no_sync()
    model.set_requires_gradient_sync(now)
    return nullcontext()


@expects(
    "stepper: Stepper",
    "loss_of: function",
    "parts: list (N,)",
    "processes: Processes",
    "batch_ids: list",
    "-> number",
)
def descend(stepper, loss_of, parts, processes, batch_ids):
    """Descend once on a batch, with all processes; return its loss.

    stepper: that of a model from `spread`, which loss_of(items) asks for the mean loss
    of some items. parts: from `parts_of`. Raises `TrainingDiverged` as the stepper.
    """
    stepper.optimizer.zero_grad()  # what the last step has left
    total = torch.zeros((), device=processes.device)
    for i, (items, weight) in enumerate(parts):
        with _exchange(stepper.model, now=i == len(parts) - 1):
            loss = weight * loss_of(items)
            loss.backward()
        total += loss.detach()
    dist.all_reduce(total)
    mean = total / processes.count
    gradients = [weight.grad for weight in stepper.parameters]
    stepper.step(known_loss(mean, gradients, stepper.parameters), batch_ids)
    return mean.item()


@expects(
    "stepper: Stepper",
    "examples: list of Example (B,)",
    "size: int >= 1",
    "processes: Processes",
    "batch_ids: list",
)
def lm_step(stepper, examples, size, processes, batch_ids):
    """Descend once on texts; return the loss, nats per counted token of the batch.

    The model is spread with `fast.lm_loss_of`. size: texts in memory at a time.
    """

    def loss_of(part):
        ids, mask, loss_mask = (x.to(processes.device) for x in pad_examples(part))
        return stepper.model(ids, mask, loss_mask)

    counts = [len(example.ids) - example.loss_start for example in examples]
    parts = parts_of(examples, counts, size, processes)
    return descend(stepper, loss_of, parts, processes, batch_ids)


@expects(
    "stepper: Stepper",
    "pairs: list of PairExample (B,)",
    "size: int >= 1",
    "processes: Processes",
    "batch_ids: list",
)
def pair_step(stepper, pairs, size, processes, batch_ids):
    """Descend once on comparisons; return the loss, nats per pair of the batch.

    The model is spread with `pair_scores`. size: pairs in memory at a time.
    """

    def loss_of(part):
        scores = stepper.model(part)  # chosen and rejected, (B,) each
        stepper.require_finite("scores", torch.cat(scores), batch_ids)
        return pair_loss(*scores, part)

    parts = parts_of(pairs, [1] * len(pairs), size, processes)
    return descend(stepper, loss_of, parts, processes, batch_ids)


# --------------------------------------------------------------------------------------
# PPO


@expects(
    "experience: Experience",
    "settings: PPOSettings",
    "processes: Processes",
    "-> Experience",
)
def share_answers(experience, settings, processes):
    """Return the answers of all processes, those of the first one first.

    experience: from `ppo.collect_experience` with whiten_scores=False, of this
    process's share of the prompts and with a generator of its own; models that are
    spread have to be `whole` for it. Scores are whitened over all answers here, if the
    settings say so, and rewards, advantages and returns follow from them.
    """
    told = [None] * processes.count
    dist.all_gather_object(told, {k: x.cpu() for k, x in vars(experience).items()})
    width, joined = max(one["ids"].shape[1] for one in told), {}
    for name in told[0]:
        shares = [one[name] for one in told]  # (b,) or (b, t) each
        if shares[0].ndim == 2:
            shares = [F.pad(x, (0, width - x.shape[1])) for x in shares]  # (b, T)
        joined[name] = torch.cat(shares).to(processes.device)
    e, counted = Experience(**joined), joined["response_mask"]
    scores = whiten(e.scores) if settings.whiten_scores else e.scores
    rewards = kl_penalised_rewards(
        scores, e.logprobs, e.ref_logprobs, counted, settings.beta
    )
    advantages, returns = gae(rewards, e.values, counted, settings.gamma, settings.lam)
    found = {"rewards": rewards, "advantages": advantages, "returns": returns}
    return replace(e, scores=scores, **found)


@expects(
    "policy_stepper, value_stepper: Stepper",
    "experience: Experience",
    "settings: PPOSettings",
    "generator: Generator",
    "size: int >= 1",
    "processes: Processes",
    "-> list",
    "-> list",
)
def ppo_step_together(
    policy_stepper, value_stepper, experience, settings, generator, size, processes
):
    """Take the gradient steps of `ppo.ppo_step`; return all policy and value losses.

    experience: all answers, the same on every process. The policy is spread with
    `lm.response_logprobs`, the value model with `reward_model.response_values`.
    generator: the same everywhere, for the order. size: answers in memory at a time.
    """
    whitened = whiten(experience.advantages, experience.response_mask)
    experience = replace(experience, advantages=whitened)
    tokens = experience.response_mask.sum(1).tolist()
    eps, policy_losses, value_losses = settings.clip_eps, [], []

    def asked(stepper, rows):
        batch = experience.rows(torch.tensor(rows, device=processes.device))
        return stepper.model(batch.ids, batch.mask, batch.response_mask), batch

    def policy_loss_of(rows):
        logprobs, old = asked(policy_stepper, rows)
        return policy_loss(
            logprobs, old.logprobs, old.advantages, old.response_mask, eps
        )

    def value_loss_of(rows):
        values, old = asked(value_stepper, rows)
        return value_loss(values, old.values, old.returns, old.response_mask, eps)

    for _ in range(settings.epochs):
        order = torch.randperm(len(tokens), generator=generator)
        for index in order.tensor_split(settings.minibatches):
            rows = index.tolist()
            parts = parts_of(rows, [tokens[i] for i in rows], size, processes)
            for stepper, loss_of, losses in (
                (policy_stepper, policy_loss_of, policy_losses),
                (value_stepper, value_loss_of, value_losses),
            ):
                losses.append(descend(stepper, loss_of, parts, processes, rows))
    return policy_losses, value_losses
