"""Group relative policy optimisation (GRPO): no value model, answers judge each other.

The idea. Each prompt is answered several times, and an answer is praised by how much
better it is than the rest of its *group*. One iteration of `train_grpo`:

    collect_groups
        rollout = generate(policy, each prompt group_size times)
        scores = whiten(logit(select_reward(both judges' probabilities, is_safety)))
        rewards = scores, less beta * KL of the answer if kl is "reward"
    grpo_step
        advantages = group_advantages(rewards)
        for each epoch, for each minibatch:
            step the policy down grpo_loss, plus beta * kl_loss if kl is "loss"

Conventions. A group is `group_size` *consecutive* answers to one prompt. Advantages are
(B,), one number an answer, and every token of the answer has it. Answers are drawn from
the old policy at temperature 1. Losses are minimised. All variants of the loss are
`ppo.policy_loss` with other weights; what differs is who shares an average:

    average "answer"     each answer counts alike, its tokens share that    (GRPO)
            "batch"      each response token of the minibatch counts alike  (DAPO, PPO)
            "constant"   each token counts 1 / (answers * length)           (Dr. GRPO)
    ratio   "token"      of a token's own chances
            "sequence"   the geometric mean of an answer's token ratios     (GSPO)

Sources. GRPO: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300, section 4.1). RLOO, the
mean of the *others* as baseline: Ahmadian et al. 2024 (2402.14740, section 3.1); Kool
et al. 2019. Without the standard deviation, and a constant length: Liu et al. 2025 (Dr.
GRPO, 2503.20783, section 3). All tokens alike, and groups without a lesson drawn anew:
Yu et al. 2025 (DAPO, 2503.14476, sections 3.2 and 3.3). The ratio of a sequence: Zheng
et al. 2025 (GSPO, 2507.18071, section 4).

Left out: DAPO's wider upper clip and its price for long answers, rewards for single
steps ("process supervision"), and drawing further prompts for those that were dropped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from minillama.contracts import expects
from minillama.fast import response_logprobs
from minillama.generate import Rollout, generate
from minillama.kl import kl_estimate
from minillama.model import require_lm_head
from minillama.optim import Stepper, warmup_cosine
from minillama.policy_gradient import leave_one_out
from minillama.ppo import clip_fraction, policy_loss, require_judges
from minillama.reward_selection import select_reward
from minillama.whiten import logit, whiten


@expects("scores: finite float (B,)", "group_size: int >= 2", "-> float (N, G)")
def grouped(scores, group_size):
    """Return scores with a row for each group, float64 (B / group_size, group_size)."""
    if len(scores) % group_size:
        raise ValueError(
            f"grouped: scores must be whole groups of group_size = {group_size}, "
            f"got {len(scores)}"
        )
    return scores.detach().double().view(-1, group_size)


@expects(
    "scores: finite float (B,)",
    "group_size: int >= 2",
    'baseline: "group" or "others"',
    'scale: "std" or "none"',
    "-> float (B,)",
)
def group_advantages(scores, group_size, baseline="group", scale="std"):
    """Return how much better each answer is than its group, detached.

        score - baseline,   divided by the group's standard deviation if scale is "std"

    baseline: the mean of the whole group, or of the *others* alone, which is
    G / (G - 1) times as far. The standard deviation is unbiased (divisor G - 1), plus
    1e-4; a group of equal scores gets zeros. Computed in float64. Sources: Shao et al.
    2024, section 4.1.2; "others", "none": RLOO; "group", "none": Dr. GRPO.
    """
    r = grouped(scores, group_size)  # (B / G, G)
    apart = r - leave_one_out(r)
    if baseline == "group":  # r less the mean of all: r itself is in that mean
        apart = apart * (group_size - 1) / group_size
    if scale == "std":
        apart = apart / (r.std(1, keepdim=True) + 1e-4)
    return apart.flatten().to(scores.dtype)


@expects(
    "scores: finite float (B,)",
    "group_size: int >= 2",
    "tolerance: finite number >= 0",
    "-> bool (B,)",
)
def live_groups(scores, group_size, tolerance=0.0):
    """Return for each answer whether the scores of its group differ.

    A group whose scores all lie within `tolerance` is dead: its advantages are 0, and
    nothing can be learned from it. To drop such groups is DAPO's dynamic sampling (Yu
    et al. 2025, section 3.2).
    """
    r = grouped(scores, group_size)
    apart = r.amax(1) - r.amin(1)  # (B / G,)
    return (apart > tolerance).repeat_interleave(group_size)


@expects(
    "response_mask: bool (B, T) True in every row",
    'average: "answer" or "batch" or "constant"',
    "length: int >= 1 or None",
    "-> float (B, 1)",
)
def token_weights(response_mask, average="answer", length=None):
    """Return the weight of each response token of an answer in a loss.

        "answer"     1 / (B * tokens of the answer)
        "batch"      1 / (tokens of all answers)
        "constant"   1 / (B * length)

    The first two sum to 1 over all tokens. With "constant" a token's weight depends on
    no answer's length; length: such as the greatest that is allowed. Sources: Shao et
    al. 2024, equation 3; Yu et al. 2025, section 3.3; Liu et al. 2025, section 3.
    """
    if (length is None) == (average == "constant"):
        raise ValueError(
            'token_weights: length must be given if and only if average is "constant", '
            f"got {length} for {average!r}"
        )
    tokens = response_mask.sum(1, keepdim=True).float()  # (B, 1)
    if average == "answer":
        return 1 / (len(tokens) * tokens)
    if average == "batch":
        return (1 / tokens.sum()).expand_as(tokens)
    return torch.full_like(tokens, 1 / (len(tokens) * length))


@expects(
    "logprobs, old_logprobs: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    'ratio: "token" or "sequence"',
    "-> float (B, T)",
)
def log_ratios(logprobs, old_logprobs, response_mask, ratio="token"):
    """Return the logarithm of each response token's ratio, 0 elsewhere, with gradient.

        "token"      logprob - old logprob
        "sequence"   the mean of these over the answer, the same for all its tokens

    Only logprobs get a gradient. Source of "sequence": Zheng et al. 2025, equation 7.
    """
    apart = (logprobs - old_logprobs.detach()).masked_fill(~response_mask, 0.0)
    if ratio == "token":
        return apart
    lengths = response_mask.sum(1, keepdim=True)  # (B, 1)
    mean = apart.sum(1, keepdim=True) / lengths
    return mean.expand_as(apart).masked_fill(~response_mask, 0.0)


@expects(
    "logprobs, old_logprobs: float (B, T) finite where response_mask",
    "advantages: finite float (B,)",
    "response_mask: bool (B, T) True in every row",
    "clip_eps: number > 0",
    'ratio: "token" or "sequence"',
    'average: "answer" or "batch" or "constant"',
    "length: int >= 1 or None",
    "-> float ()",
)
def grpo_loss(
    logprobs,
    old_logprobs,
    advantages,
    response_mask,
    clip_eps=0.2,
    ratio="token",
    average="answer",
    length=None,
):
    """Return PPO's clipped surrogate with one advantage an answer, as a loss.

        -sum over tokens( weight * min( ratio * A, clip(ratio, 1 ± clip_eps) * A ) )

    weight: of `token_weights`. It may be put into A, so this is `ppo.policy_loss`, a
    mean over all N tokens, of N * weight * A. ratio: of `log_ratios`. Only logprobs get
    a gradient. Sources: Shao et al. 2024, equation 3; Zheng et al. 2025, equation 5.
    """
    weights = token_weights(response_mask, average, length)  # (B, 1)
    A = response_mask.sum() * weights * advantages[:, None]  # (B, 1)
    logratio = log_ratios(logprobs, old_logprobs, response_mask, ratio)  # (B, T)
    return policy_loss(
        logratio,
        torch.zeros_like(logratio),
        A.to(logratio.dtype).expand_as(logratio),
        response_mask,
        clip_eps,
    )


@expects(
    "logprobs, ref_logprobs: float (B, T) finite where response_mask",
    "response_mask: bool (B, T) True in every row",
    'average: "answer" or "batch" or "constant"',
    "length: int >= 1 or None",
    "-> float ()",
)
def kl_loss(logprobs, ref_logprobs, response_mask, average="answer", length=None):
    """Return GRPO's penalty, to be added to a loss: k3, averaged as `grpo_loss` is.

    Its value estimates KL(policy || reference). Its gradient does not: over tokens that
    the policy has just drawn it is that of KL(reference || policy) in each state, on
    average. Over older tokens it is neither. Source: Shao et al. 2024, equation 4.
    """
    weights = token_weights(response_mask, average, length)  # (B, 1)
    logratio = log_ratios(logprobs, ref_logprobs, response_mask)  # (B, T)
    return (weights * kl_estimate(logratio, torch.zeros_like(logratio), "k3")).sum()


@expects(
    "iterations, epochs, minibatches, max_new_tokens: int >= 1",
    "batch_size, group_size: int >= 2",
    "batch_size: int a multiple of group_size",
    "minibatches: int at most batch_size",
    "lr: finite number >= 0",
    "warmup_steps: int >= 0",
    "beta: finite number >= 0",
    'kl: "loss" or "reward"',
    "clip_eps: number > 0",
    'baseline: "group" or "others"',
    'scale: "std" or "none"',
    'ratio: "token" or "sequence"',
    'average: "answer" or "batch" or "constant"',
    "threshold: number in [0, 1]",
    "whiten_scores, drop_dead: flag",
)
@dataclass(frozen=True)
class GRPOSettings:
    """One run of GRPO; what is PPO's, too, has the default of `PPOSettings`."""

    iterations: int = 200  # Each one draws prompts, has them answered and learns.
    batch_size: int = 64  # An iteration draws this many answers.
    group_size: int = 8  # Each prompt gets this many of them.
    epochs: int = 1  # An iteration uses its answers this many times.
    minibatches: int = 4  # An epoch takes this many gradient steps.
    max_new_tokens: int = 72  # An answer is cut off at this length.
    lr: float = 3e-4  # The learning rate rises to this, then falls.
    warmup_steps: int = 10  # It rises for this many gradient steps.
    beta: float = 0.07  # A nat of KL costs this much reward.
    kl: str = "loss"  # The KL is a term of the loss, or part of the "reward".
    clip_eps: float = 0.2  # Half the range of ratios.
    baseline: str = "group"  # A score is held against its group, or the "others" in it.
    scale: str = "std"  # Advantages are divided by the group's spread, or by "none".
    ratio: str = "token"  # Each token has its own ratio, or all of a "sequence" one.
    average: str = "answer"  # Who counts alike: see `token_weights`.
    threshold: float = 0.15  # If R_s is below this, or the prompt unsafe, R_s counts.
    whiten_scores: bool = True  # If False, scores stay logits.
    drop_dead: bool = False  # If True, groups of equal rewards take no part in a step.


@expects(
    "ids: int64 (B, T)",
    "mask, response_mask: bool (B, T)",
    "logprobs, ref_logprobs: float (B, T)",
    "selected, scores, rewards: float (B,)",
)
@dataclass
class Groups(Rollout):
    """One iteration's answers, group after group, and what GRPO knows of them."""

    ref_logprobs: Tensor  # (B, T): the reference's log-probability of each token.
    selected: Tensor  # (B,): R_c, the judge's probability that counts.
    scores: Tensor  # (B,): the logit of R_c, whitened unless that is switched off.
    rewards: Tensor  # (B,): the scores, less the price of the KL if that is in there.

    @expects("index: tensor (N,)", "-> Groups")
    def rows(self, index):
        """Return the answers at `index` as `Groups` of their own."""
        return Groups(**{name: x[index] for name, x in vars(self).items()})


@expects(
    "policy, ref_policy: Llama",
    "prompt_ids: lists of ids (N,), none empty, below policy.config.vocab_size",
    "is_safety: bool (N,)",
    "settings: GRPOSettings",
    "generator: Generator",
    "-> Groups",
)
@torch.no_grad()
def collect_groups(
    policy, ref_policy, judges, prompt_ids, is_safety, settings, generator
):
    """Let the policy answer each prompt `settings.group_size` times; judge the answers.

    The scores are those of `ppo.collect_experience`, whitened over all groups together.
    With kl = "reward" each answer pays beta * (sum of k1 over its tokens) of its score.
    """
    require_judges("collect_groups", judges)
    G = settings.group_size
    asked = [ids for ids in prompt_ids for _ in range(G)]  # (B,), B = N * G
    rollout = generate(policy, asked, settings.max_new_tokens, generator=generator)
    ids, mask, response_mask = rollout.ids, rollout.mask, rollout.response_mask
    ref_logprobs = response_logprobs(ref_policy, ids, mask, response_mask)

    unsafe = is_safety.to(ids.device).repeat_interleave(G)  # (B,)
    selected = select_reward(
        *judges.probabilities(ids, mask), unsafe, settings.threshold
    )
    scores = whiten(logit(selected)) if settings.whiten_scores else logit(selected)

    price = settings.beta if settings.kl == "reward" else 0.0
    rewards = scores - price * (rollout.logprobs - ref_logprobs).sum(1)  # (B,)
    return Groups(
        **vars(rollout),
        ref_logprobs=ref_logprobs,
        selected=selected,
        scores=scores,
        rewards=rewards,
    )


@expects(
    "policy: Llama",
    "groups: Groups",
    "settings: GRPOSettings",
    "generator: Generator",
    "-> number in [0, 1]",
)
def grpo_step(policy, stepper, groups, settings, generator):
    """Take all gradient steps on `Groups`; return the mean of their clip fractions.

    Every epoch shuffles the answers and cuts them into minibatches; a group need not
    stay together, since its advantages are known before. If all groups are dropped,
    there is no step.
    """
    s = settings
    advantages = group_advantages(groups.rewards, s.group_size, s.baseline, s.scale)
    kept = torch.arange(len(advantages))
    if s.drop_dead:
        kept = kept[live_groups(groups.rewards, s.group_size).cpu()]
    length = s.max_new_tokens if s.average == "constant" else None
    fractions = []
    for _ in range(s.epochs if len(kept) else 0):
        order = kept[torch.randperm(len(kept), generator=generator)]
        for index in order.tensor_split(min(s.minibatches, len(order))):
            index = index.to(advantages.device)
            batch, A = groups.rows(index), advantages[index]
            counted = batch.response_mask

            logprobs = response_logprobs(policy, batch.ids, batch.mask, counted)
            loss = grpo_loss(
                logprobs,
                batch.logprobs,
                A,
                counted,
                s.clip_eps,
                s.ratio,
                s.average,
                length,
            )
            if s.kl == "loss":
                away = kl_loss(logprobs, batch.ref_logprobs, counted, s.average, length)
                loss = loss + s.beta * away
            stepper.step(loss, index.tolist())
            moved = log_ratios(logprobs, batch.logprobs, counted, s.ratio)
            clipped = clip_fraction(moved, torch.zeros_like(moved), counted, s.clip_eps)
            fractions.append(clipped.item())
    return sum(fractions) / max(1, len(fractions))


@expects("groups: Groups", "group_size: int >= 2")
def group_summary(groups, group_size):
    """Return four means over one iteration's `Groups`, by name.

    proxy: logit of the selected probability, per answer. kl: estimate of KL(policy ||
    reference) by k1, nats per answer. length: tokens per answer. dead: the share of
    groups whose answers have equal rewards.
    """
    counted = groups.response_mask
    return {
        "proxy": logit(groups.selected).mean().item(),
        "kl": (groups.logprobs - groups.ref_logprobs).sum(1).mean().item(),
        "length": counted.sum(1).float().mean().item(),
        "dead": 1 - live_groups(groups.rewards, group_size).float().mean().item(),
    }


@expects(
    "policy: Llama",
    "ref_policy: Llama other than policy",
    "prompts: list of list (N,)",
    "settings: GRPOSettings",
    "generator: Generator",
    "judge_gold: function or None",
    "desc: text or None",
    "-> list",
)
def train_grpo(
    policy,
    ref_policy,
    judges,
    prompts,
    settings,
    generator,
    judge_gold=None,
    desc=None,
):
    """Train a policy in place; return the history, a dict per iteration.

    As `ppo.train_ppo`, without a value model. prompts: pairs (ids, is_safety), from
    which each iteration draws batch_size / group_size different ones.
    judge_gold(indices of prompts, one for each answer, groups) -> dict adds columns to
    the history. The others are those of `group_summary`, and clip_fraction.
    """
    require_lm_head(policy, "train_grpo")
    require_judges("train_grpo", judges)
    count = settings.batch_size // settings.group_size
    if len(prompts) < count:
        raise ValueError(
            "train_grpo: prompts must be at least settings.batch_size / group_size = "
            f"{count}, got {len(prompts)}"
        )
    steps = settings.iterations * settings.epochs * settings.minibatches
    stepper = Stepper(
        policy,
        settings.lr,
        lambda step: warmup_cosine(step, steps, settings.warmup_steps),
    )
    history = []
    for _ in tqdm(range(settings.iterations), desc=desc, disable=desc is None):
        drawn = torch.randperm(len(prompts), generator=generator)[:count].tolist()
        prompt_ids = [prompts[i][0] for i in drawn]
        is_safety = torch.tensor([prompts[i][1] for i in drawn])
        groups = collect_groups(
            policy, ref_policy, judges, prompt_ids, is_safety, settings, generator
        )
        clipped = grpo_step(policy, stepper, groups, settings, generator)
        of_answers = [i for i in drawn for _ in range(settings.group_size)]
        gold = judge_gold(of_answers, groups) if judge_gold else {}
        numbers = group_summary(groups, settings.group_size)
        history.append(numbers | {"clip_fraction": clipped} | gold)
    return history
