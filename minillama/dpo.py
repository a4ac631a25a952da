"""Preference losses on the policy itself, without a reward model: DPO, IPO, KTO.

The best policy for a reward r and a price beta is pi*(y) = pi_ref(y) exp(r(y) / beta)
/ Z (exact.py). Solved for r, up to a constant of the prompt:

    r(y) = beta * (log pi*(y) - log pi_ref(y)) + beta log Z

So every policy is the best one for some reward, its *implicit reward*, and the losses
of a reward model can be put on it. DPO is `bradley_terry_loss` of implicit rewards: the
constant cancels between two answers to one prompt.

Conventions. Log-probabilities are of *whole* answers, sums over response tokens, never
means. The *log-ratio* is policy less reference, in nats. The reference never moves, and
its log-probabilities are constants. "mean" is over the pairs or answers of the batch.

Sources. DPO: Rafailov et al. 2023 (arXiv 2305.18290, equation 7). IPO: Azar et al. 2023
(2310.12036, equation 17). KTO: Ethayarajh et al. 2024 (2402.01306, equation 8). Best of
n kept as training data: Dong et al. 2023 (2304.06767, RAFT). Left out: label smoothing,
length-normalised and reference-free variants (SimPO, ORPO).
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from minillama.contracts import expects
from minillama.data import Example, endless_batches, pad_examples
from minillama.fast import response_logprobs
from minillama.model import require_lm_head
from minillama.optim import Stepper, warmup_cosine
from minillama.preference_loss import bradley_terry_loss, reduce_losses


@expects(
    "logprobs, ref_logprobs: finite float (B,)",
    "beta: finite number > 0",
)
def implicit_reward(logprobs, ref_logprobs, beta):
    """Return the reward for which a policy is the best one, (B,), in units of reward.

        beta * (log pi(y) - log pi_ref(y))

    It is known up to one constant for each prompt. The gradient flows into logprobs.
    Source: Rafailov et al. 2023, equation 5.
    """
    return beta * (logprobs - ref_logprobs.detach())


@expects(
    "chosen_logprobs, rejected_logprobs: finite float (B,)",
    "ref_chosen_logprobs, ref_rejected_logprobs: finite float (B,)",
    "beta: finite number > 0",
    'reduction: "mean" or "sum" or "none"',
)
def dpo_loss(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    beta,
    reduction="mean",
):
    """Compute the Bradley-Terry loss of two implicit rewards, in nats.

        -logsigmoid(beta * (log-ratio of chosen - log-ratio of rejected))

    beta: reward per nat, as in `exact.objective`. reduction: over pairs, to a scalar;
    "none" leaves (B,). A policy equal to the reference has the loss ln 2.
    Source: Rafailov et al. 2023, equation 7.
    """
    return bradley_terry_loss(
        implicit_reward(chosen_logprobs, ref_chosen_logprobs, beta),
        implicit_reward(rejected_logprobs, ref_rejected_logprobs, beta),
        reduction=reduction,
    )


@expects(
    "chosen_logprobs, rejected_logprobs: finite float (B,)",
    "ref_chosen_logprobs, ref_rejected_logprobs: finite float (B,)",
    "tau: finite number > 0",
    'reduction: "mean" or "sum" or "none"',
)
def ipo_loss(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    tau,
    reduction="mean",
):
    """Square the distance of the gap between two log-ratios from its target, in nats^2.

        (log-ratio of chosen - log-ratio of rejected - 1 / (2 tau))^2

    tau: price of a nat, where being preferred for certain is worth 1. An answer that
    always wins so ends 1 / (2 tau) nats ahead, not infinitely far. reduction: as for
    `dpo_loss`. Source: Azar et al. 2023, equation 17.
    """
    chosen = chosen_logprobs - ref_chosen_logprobs.detach()  # (B,)
    rejected = rejected_logprobs - ref_rejected_logprobs.detach()
    return reduce_losses((chosen - rejected - 1 / (2 * tau)).square(), reduction)


@expects(
    "logprobs, ref_logprobs: finite float (B,)",
    "desirable: bool (B,)",
    "reference_kl: finite float () >= 0",
    "beta: finite number > 0",
    "desirable_weight, undesirable_weight: finite number >= 0",
    'reduction: "mean" or "sum" or "none"',
)
def kto_loss(
    logprobs,
    ref_logprobs,
    desirable,
    reference_kl,
    beta,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    reduction="mean",
):
    """Compute the loss of single answers that somebody called good or bad.

        good:  desirable_weight   * (1 - sigmoid(beta * (log-ratio - reference_kl)))
        bad:   undesirable_weight * (1 - sigmoid(beta * (reference_kl - log-ratio)))

    desirable: True = good. reference_kl: the reference point in nats, a constant, as
    from `mismatched_kl`: gains count from there. reduction: over answers, to a scalar;
    "none" leaves (B,). Source: Ethayarajh et al. 2024, equation 8.
    """
    gain = beta * (logprobs - ref_logprobs.detach() - reference_kl.detach())  # (B,)
    losses = torch.where(
        desirable,
        desirable_weight * torch.sigmoid(-gain),
        undesirable_weight * torch.sigmoid(gain),
    )
    return reduce_losses(losses, reduction)


@expects("logprobs, ref_logprobs: finite float (B,)", "-> float ()")
def mismatched_kl(logprobs, ref_logprobs):
    """Estimate KTO's reference point from answers that belong to *other* prompts.

        max(0, mean(log-ratio))

    logprobs: of answers after a prompt of somebody else's, in nats. It stands for
    KL(policy || reference) without sampling from the policy, and has a bias for that;
    no gradient flows. Source: Ethayarajh et al. 2024, section 4.1.
    """
    return (logprobs - ref_logprobs).detach().mean().clamp(min=0)


@expects("model: Llama", "examples: list of Example (B,)", "-> float (B,)")
def answer_logprobs(model, examples):
    """Return log p(answer | prompt) of whole answers, in nats, with gradient.

    An answer begins at an example's loss_start and ends with its EOS.
    """
    require_lm_head(model, "answer_logprobs")
    device = next(model.parameters()).device
    ids, mask, counted = (x.to(device) for x in pad_examples(examples))  # (B, T) each
    return response_logprobs(model, ids, mask, counted).sum(1)


@expects(
    "policy, ref_policy: Llama",
    "pairs: list of PairExample (B,)",
)
def pair_logprobs(policy, ref_policy, pairs):
    """Return the four log-probabilities of each pair, in the order of `dpo_loss`.

    (B,) each: chosen and rejected of the policy, with gradient, then of the reference.
    Either model reads both sides in one concatenated forward, and a text that stands in
    several pairs once, as in `pair_scores`.
    """
    sides = [(tuple(x.chosen), x.response_start) for x in pairs]
    sides += [(tuple(x.rejected), x.response_start) for x in pairs]
    row = {side: i for i, side in enumerate(dict.fromkeys(sides))}
    examples = [Example(list(ids), start) for ids, start in row]  # N distinct texts
    rows = [row[side] for side in sides]
    logprobs = answer_logprobs(policy, examples)[rows]  # (2B,)
    with torch.no_grad():
        ref_logprobs = answer_logprobs(ref_policy, examples)[rows]  # (2B,)
    return *logprobs.chunk(2), *ref_logprobs.chunk(2)


@expects("examples: list of Example (B,)")
def mismatched(examples):
    """Put behind each prompt the answer of the next example; the last takes the first.

    These are the texts that `mismatched_kl` asks about.
    """
    following = [*examples[1:], examples[0]]
    return [
        Example(x.ids[: x.loss_start] + y.ids[y.loss_start :], x.loss_start)
        for x, y in zip(examples, following, strict=True)
    ]


@expects(
    'loss: "dpo" or "ipo"',
    "epochs, batch_size: int >= 1",
    "lr: finite number >= 0",
    "warmup_steps: int >= 0",
    "beta: finite number > 0",
    "desirable_weight, undesirable_weight: finite number >= 0",
)
@dataclass(frozen=True)
class DirectSettings:
    """One run of preference learning without a reward model."""

    loss: str = "dpo"  # On pairs: "dpo", or "ipo" with tau = beta.
    epochs: int = 1  # The loop passes over the data so often.
    batch_size: int = 16  # Each step sees so many groups of pairs, or labelled answers.
    lr: float = 3e-4  # The learning rate peaks here, after the warm-up.
    warmup_steps: int = 10  # The learning rate climbs for so many steps.
    beta: float = 0.1  # A nat costs so much reward.
    desirable_weight: float = 1.0  # A good answer counts so much in `kto_loss`.
    undesirable_weight: float = 1.0  # A bad one.


def require_direct(caller, policy, ref_policy, count, settings):
    """Refuse, in the name of a caller, what can be no run of `settings`."""
    require_lm_head(policy, caller)
    if count < settings.batch_size:
        raise ValueError(
            f"{caller}: there must be at least settings.batch_size = "
            f"{settings.batch_size} groups or answers, got {count}"
        )
    if ref_policy is policy:
        raise ValueError(
            f"{caller}: ref_policy must be a copy of policy, got policy itself"
        )


@expects(
    "policy, ref_policy: Llama",
    "groups: lists of PairExample none empty",
    "settings: DirectSettings",
    "generator: Generator",
    "desc: text or None",
    "-> list",
)
def train_on_pairs(policy, ref_policy, groups, settings, generator, desc=None):
    """Train a policy on groups of pairs in place; return the history, a dict a step.

    The groups are those of `train_reward_model`: the pairs of one compare answers to
    one prompt. generator (CPU) orders the batches; desc names the progress bar, None
    shows none. Columns: loss; accuracy, the share of pairs whose chosen answer has the
    larger implicit reward, a tie counting one half; chosen and rejected, mean
    log-ratios in nats.
    """
    require_direct("train_on_pairs", policy, ref_policy, len(groups), settings)
    for pair in (pair for group in groups for pair in group):
        if pair.chosen == pair.rejected:
            raise ValueError(
                "train_on_pairs: groups must hold pairs of different sides, got a pair "
                f"of two equal ones, ids {pair.chosen}"
            )
    loss_of = {"dpo": dpo_loss, "ipo": ipo_loss}[settings.loss]
    steps = settings.epochs * (len(groups) // settings.batch_size)
    batches = endless_batches(len(groups), settings.batch_size, generator)
    stepper = Stepper(
        policy,
        settings.lr,
        lambda step: warmup_cosine(step, steps, settings.warmup_steps),
    )
    policy.train()
    history = []
    for _ in tqdm(range(steps), desc=desc, disable=desc is None):
        batch = next(batches)
        pairs = [pair for i in batch for pair in groups[i]]
        four = pair_logprobs(policy, ref_policy, pairs)  # (B,) each
        loss = loss_of(*four, settings.beta)
        stepper.step(loss, batch)
        chosen, rejected = (four[0] - four[2]).detach(), (four[1] - four[3]).detach()
        history.append(
            {
                "loss": loss.item(),
                "accuracy": (0.5 + 0.5 * torch.sign(chosen - rejected)).mean().item(),
                "chosen": chosen.mean().item(),
                "rejected": rejected.mean().item(),
            }
        )
    policy.eval()
    return history


@expects(
    "policy, ref_policy: Llama",
    "examples: list of Example (N,)",
    "desirable: bool (N,)",
    "settings: DirectSettings",
    "generator: Generator",
    "desc: text or None",
    "-> list",
)
def train_on_labels(
    policy, ref_policy, examples, desirable, settings, generator, desc=None
):
    """Train a policy by `kto_loss` on labelled answers in place; return the history.

    desirable: True = good. Each batch gives its own reference point, from `mismatched`
    answers, so it must have two. Columns: loss; desirable and undesirable, mean
    log-ratios in nats, NaN where a batch has none; reference_kl in nats. The rest as in
    `train_on_pairs`.
    """
    if settings.batch_size < 2:
        raise ValueError(
            "train_on_labels: settings.batch_size must be at least 2, since the "
            f"reference point needs an answer of another, got {settings.batch_size}"
        )
    require_direct("train_on_labels", policy, ref_policy, len(examples), settings)
    steps = settings.epochs * (len(examples) // settings.batch_size)
    batches = endless_batches(len(examples), settings.batch_size, generator)
    stepper = Stepper(
        policy,
        settings.lr,
        lambda step: warmup_cosine(step, steps, settings.warmup_steps),
    )
    policy.train()
    history = []
    for _ in tqdm(range(steps), desc=desc, disable=desc is None):
        batch = next(batches)
        some, good = [examples[i] for i in batch], desirable[batch]
        apart = mismatched(some)
        with torch.no_grad():
            ref_logprobs = answer_logprobs(ref_policy, some)  # (B,)
            reference_kl = mismatched_kl(
                answer_logprobs(policy, apart), answer_logprobs(ref_policy, apart)
            )
        logprobs = answer_logprobs(policy, some)  # (B,)
        loss = kto_loss(
            logprobs,
            ref_logprobs,
            good.to(logprobs.device),
            reference_kl,
            settings.beta,
            settings.desirable_weight,
            settings.undesirable_weight,
        )
        stepper.step(loss, batch)
        logratio = (logprobs - ref_logprobs).detach().cpu()
        history.append(
            {
                "loss": loss.item(),
                "desirable": logratio[good].mean().item(),
                "undesirable": logratio[~good].mean().item(),
                "reference_kl": reference_kl.item(),
            }
        )
    policy.eval()
    return history
