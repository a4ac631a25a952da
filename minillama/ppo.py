"""Proximal policy optimisation (PPO) of a language model: losses, steps and the loop.

One iteration of `train_ppo`:

    collect_experience
        rollout = generate(policy, prompts drawn at random)
        selected = select_reward(both judges' probabilities, is_safety)
        scores = whiten(logit(selected))
        rewards = -beta * KL on every response token, + scores on the last one
        advantages, returns = gae(rewards, values)
    ppo_step
        advantages = whiten(advantages)
        for each epoch, for each minibatch:
            step the policy down policy_loss, the value model down value_loss

Conventions. Both losses are minimised, and both are a mean over *all response tokens*
of a minibatch: a long answer weighs more than a short one. The *old* policy is the one
that sampled the tokens, at temperature 1; ratio = exp(logprobs - old_logprobs). The
reference never moves; the caller hands in a copy of the policy as it starts. Old
log-probabilities, old values, advantages and returns are constants.

Sources. Schulman et al. 2017 (arXiv 1707.06347, equation 7) have the clipped objective.
The clipped value loss is not in that paper: it is from OpenAI's baselines (Huang et al.
2022, "The 37 Implementation Details of Proximal Policy Optimization", detail 9). The KL
as a reward is from Ziegler et al. 2019 (1909.08593, section 2). Two judges, whitened
scores and one step a minibatch are Llama 2's (2307.09288, section 3.2.3), a value model
with a body of its own that starts as a reward model's is InstructGPT's (2203.02155,
appendix C.4).

Left out:
1. language modelling mixed into the loss (InstructGPT's PPO-ptx),
2. an entropy bonus, and a stop of the epochs once the KL from the old policy is large,
3. a beta that follows a target KL (Ziegler et al., section 2.2),
4. advantages whitened in each minibatch instead of once an iteration (Huang et al.,
   detail 7), and one body for policy and value model.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from minillama.contracts import expects
from minillama.fast import by_length, response_logprobs, response_values
from minillama.gae import gae
from minillama.generate import Rollout, generate
from minillama.kl import kl_estimate, kl_penalised_rewards
from minillama.model import require_lm_head
from minillama.optim import Stepper, warmup_cosine
from minillama.reward_model import RewardModel
from minillama.reward_selection import select_reward
from minillama.whiten import logit, whiten


@expects(
    "logprobs, old_logprobs, advantages: float (B, T), finite where response_mask",
    "response_mask: bool (B, T), True somewhere",
    "clip_eps: number > 0",
    "-> float ()",
)
def policy_loss(logprobs, old_logprobs, advantages, response_mask, clip_eps=0.2):
    """Return PPO's clipped surrogate as a loss, a mean over all response tokens.

        -mean( min( ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A ) )

    Only logprobs get a gradient: 0 where the clipped term is the smaller one.
    Source: Schulman et al. 2017, equation 7.
    """
    logratio = (logprobs - old_logprobs.detach())[response_mask]  # (N,)
    A = advantages.detach()[response_mask]  # (N,)
    # exp overflows at 88.7, and 0 * inf is NaN; with A >= 0 such a ratio is clipped
    ratio = logratio.masked_fill((logratio > 80) & (A >= 0), 80.0).exp()
    return -torch.minimum(ratio * A, ratio.clamp(1 - clip_eps, 1 + clip_eps) * A).mean()


@expects(
    "values, old_values, returns: float (B, T), finite where response_mask",
    "response_mask: bool (B, T), True somewhere",
    "clip_eps: number > 0",
    "-> float ()",
)
def value_loss(values, old_values, returns, response_mask, clip_eps=0.2):
    """Return half the squared error of clipped values, a mean over all response tokens.

        1/2 * mean( max( (v - R)^2, (clipped - R)^2 ) )
        clipped = old_v + clip(v - old_v, -clip_eps, clip_eps)

    clip_eps is in units of reward, as the values are; inf clips nothing. Only values
    get a gradient. Source: Huang et al. 2022, detail 9.
    """
    old_values, returns = old_values.detach(), returns.detach()
    v, old_v, R = (x[response_mask] for x in (values, old_values, returns))  # (N,)
    clipped = old_v + (v - old_v).clamp(-clip_eps, clip_eps)  # (N,)
    return 0.5 * torch.maximum((v - R).square(), (clipped - R).square()).mean()


@expects(
    "logprobs, old_logprobs: float (B, T), finite where response_mask",
    "response_mask: bool (B, T), True somewhere",
    "clip_eps: number > 0",
    "-> float ()",
)
def clip_fraction(logprobs, old_logprobs, response_mask, clip_eps=0.2):
    """Return the share of response tokens whose ratio is more than clip_eps from 1.

    A diagnostic without gradient. It also counts ratios that the sign of the advantage
    leaves unclipped.
    """
    ratio = (logprobs - old_logprobs).detach()[response_mask].exp()  # (N,)
    return ((ratio - 1).abs() > clip_eps).float().mean()


@expects(
    "iterations, epochs, minibatches, max_new_tokens: int >= 1",
    "batch_size: int >= 2",
    "minibatches: int at most batch_size",
    "policy_lr, value_lr: finite number >= 0",
    "warmup_steps: int >= 0",
    "beta: finite number >= 0",
    "gamma, lam: number in [0, 1]",
    "clip_eps: number > 0",
    "threshold: number in [0, 1]",
    "whiten_scores: flag",
)
@dataclass(frozen=True)
class PPOSettings:
    """One run of PPO; the defaults are the course's run, with Llama 2's clip_eps."""

    iterations: int = 200  # Each one draws prompts, has them answered and learns.
    batch_size: int = 64  # An iteration answers this many prompts.
    epochs: int = 1  # An iteration uses its answers this many times.
    minibatches: int = 4  # An epoch takes this many gradient steps.
    max_new_tokens: int = 72  # An answer is cut off at this length.
    policy_lr: float = 3e-4  # The policy's learning rate rises to this, then falls.
    value_lr: float = 1e-3  # The value model's learning rate, likewise.
    warmup_steps: int = 10  # Both rates rise for this many gradient steps.
    beta: float = 0.07  # A nat of KL costs this much reward.
    gamma: float = 1.0  # Each token of delay multiplies a reward by this.
    lam: float = 0.95  # GAE's lambda: 1 takes whole returns, 0 one step and a value.
    clip_eps: float = 0.2  # Half the range of ratios, and of values around old ones.
    threshold: float = 0.15  # If R_s is below this, or the prompt unsafe, R_s counts.
    whiten_scores: bool = True  # If False, scores stay logits, and beta is per logit.


@expects("safety, helpfulness: RewardModel")
@dataclass(frozen=True)
class Judges:
    """The two reward models that PPO climbs, both frozen and in eval mode."""

    safety: RewardModel  # The sigmoid of its score is R_s.
    helpfulness: RewardModel  # The sigmoid of its score is R_h.

    def __post_init__(self):
        for name, judge in vars(self).items():
            if judge.training:
                raise ValueError(f"Judges: {name} must be in eval mode, got train mode")

    @expects(
        "ids: int64 (B, T)",
        "mask: bool (B, T) one run of True in every row",
        "-> float (B,) in [0, 1]",
        "-> float (B,) in [0, 1]",
    )
    @torch.no_grad()
    def probabilities(self, ids, mask):
        """Return R_s and R_h of each text: the sigmoids of both models' scores."""
        safety, helpfulness = (
            by_length(judge, mask, ids, mask)  # judge(ids, mask), in fewer steps
            for judge in (self.safety, self.helpfulness)
        )
        return torch.sigmoid(safety), torch.sigmoid(helpfulness)


@expects(
    "ids: int64 (B, T)",
    "mask, response_mask: bool (B, T)",
    "logprobs, ref_logprobs, values, rewards, advantages, returns: float (B, T)",
    "safety, helpfulness, selected, scores: float (B,)",
)
@dataclass
class Experience(Rollout):
    """One iteration's answers, a `Rollout`, and all that PPO needs to know of them.

    A tensor is (B, T), an entry for each token of `ids` and 0 off the response, or
    (B,), an entry for each answer.
    """

    ref_logprobs: Tensor  # (B, T): the reference's log-probability of each token.
    values: Tensor  # (B, T): what the value model expected before each token.
    safety: Tensor  # (B,): R_s, a probability.
    helpfulness: Tensor  # (B,): R_h, a probability.
    selected: Tensor  # (B,): R_c, the one of both that counts.
    scores: Tensor  # (B,): the logit of R_c, whitened unless that is switched off.
    rewards: Tensor  # (B, T): the KL penalty, and the score on the last token.
    advantages: Tensor  # (B, T): how much better a token was than expected.
    returns: Tensor  # (B, T): what the values should have been.

    @expects("index: int64 (N,)", "-> Experience")
    def rows(self, index):
        """Return the answers at `index` as an `Experience` of their own."""
        return Experience(**{name: x[index] for name, x in vars(self).items()})


def require_judges(caller, judges):
    """Refuse, in the name of a caller, what is no `Judges` nor does as they do."""
    if not callable(getattr(judges, "probabilities", None)):
        raise TypeError(
            f"{caller}: judges must be Judges or have their method probabilities, "
            f"got a {type(judges).__name__}"
        )


@expects(
    "policy, ref_policy: Llama",
    "value_model: ValueModel",
    "prompt_ids: lists of ids (B,), none empty, below policy.config.vocab_size",
    "is_safety: bool (B,)",
    "settings: PPOSettings",
    "generator: Generator",
    "-> Experience",
)
@torch.no_grad()
def collect_experience(
    policy, ref_policy, value_model, judges, prompt_ids, is_safety, settings, generator
):
    """Let the policy answer each prompt; judge, penalise and credit its answers.

    The reward is Llama 2's (section 3.2.3): R_c = select(R_s, R_h), then
    whiten(logit(R_c)) on the last token, and only *then* -beta * k1 on every token.
    """
    require_judges("collect_experience", judges)
    rollout = generate(policy, prompt_ids, settings.max_new_tokens, generator=generator)
    ids, mask, response_mask = rollout.ids, rollout.mask, rollout.response_mask
    ref_logprobs = response_logprobs(ref_policy, ids, mask, response_mask)
    values = response_values(value_model, ids, mask, response_mask)

    safety, helpfulness = judges.probabilities(ids, mask)  # (B,) each
    selected = select_reward(
        safety, helpfulness, is_safety.to(ids.device), settings.threshold
    )
    scores = whiten(logit(selected)) if settings.whiten_scores else logit(selected)

    rewards = kl_penalised_rewards(
        scores, rollout.logprobs, ref_logprobs, response_mask, settings.beta
    )
    advantages, returns = gae(
        rewards, values, response_mask, settings.gamma, settings.lam
    )
    return Experience(
        **vars(rollout),
        ref_logprobs=ref_logprobs,
        values=values,
        safety=safety,
        helpfulness=helpfulness,
        selected=selected,
        scores=scores,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )


@expects(
    "policy: Llama",
    "value_model: ValueModel",
    "experience: Experience",
    "settings: PPOSettings",
    "generator: Generator",
    "-> number in [0, 1]",
    "-> number >= 0",
)
def ppo_step(
    policy, value_model, policy_stepper, value_stepper, experience, settings, generator
):
    """Take all gradient steps on an `Experience`; return two means over the steps.

    The means are those of the clip fraction and of the value loss. Every epoch shuffles
    the answers and cuts them into minibatches. The advantages are whitened once, over
    all response tokens of the iteration; the returns were taken from them before and
    stay in units of reward.
    """
    if len(experience.ids) < settings.minibatches:
        raise ValueError(
            f"ppo_step: experience must have at least settings.minibatches = "
            f"{settings.minibatches} answers, got {len(experience.ids)}"
        )
    for model, stepper in ((policy, policy_stepper), (value_model, value_stepper)):
        if getattr(stepper, "model", model) is not model:
            raise ValueError(
                "ppo_step: policy_stepper and value_stepper must be those of policy "
                "and value_model, got one of another model"
            )
    whitened = whiten(experience.advantages, experience.response_mask)
    experience = replace(experience, advantages=whitened)
    eps, fractions, losses = settings.clip_eps, [], []
    for _ in range(settings.epochs):
        order = torch.randperm(len(experience.ids), generator=generator)
        for index in order.tensor_split(settings.minibatches):
            batch = experience.rows(index.to(experience.ids.device))
            counted = batch.response_mask

            logprobs = response_logprobs(policy, batch.ids, batch.mask, counted)
            loss = policy_loss(logprobs, batch.logprobs, batch.advantages, counted, eps)
            policy_stepper.step(loss, index.tolist())
            clipped = clip_fraction(logprobs, batch.logprobs, counted, eps)
            fractions.append(clipped.item())

            values = response_values(value_model, batch.ids, batch.mask, counted)
            loss = value_loss(values, batch.values, batch.returns, counted, eps)
            value_stepper.step(loss, index.tolist())
            losses.append(loss.item())
    return sum(fractions) / len(fractions), sum(losses) / len(losses)


@expects("experience: Experience")
def summary(experience):
    """Return four means over one `Experience`, by name.

    proxy: logit of the selected probability, per answer. kl: estimate of KL(policy ||
    reference) by k1, nats per answer. length: tokens per answer. entropy: of the
    policy, estimated by -logprobs, nats per token.
    """
    counted = experience.response_mask
    kl = kl_estimate(experience.logprobs, experience.ref_logprobs)  # (B, T)
    return {
        "proxy": logit(experience.selected).mean().item(),
        "kl": kl.masked_fill(~counted, 0.0).sum(1).mean().item(),
        "length": counted.sum(1).float().mean().item(),
        "entropy": -experience.logprobs[counted].mean().item(),
    }


def require_prompts(prompts, policy, settings):
    """Refuse before a run what would stop it in the middle."""
    room = policy.config.max_seq_len - settings.max_new_tokens
    vocab_size = policy.config.vocab_size
    if len(prompts) < settings.batch_size:
        wanted = f"at least settings.batch_size = {settings.batch_size}"
        raise ValueError(f"train_ppo: prompts must be {wanted}, got {len(prompts)}")
    for i, prompt in enumerate(prompts):
        kind, got = None, repr(prompt)
        if [type(part) for part in prompt] != [list, bool] or any(
            type(token) is not int for token in prompt[0]
        ):
            kind = TypeError
        elif not 0 < len(prompt[0]) <= room:
            kind, got = ValueError, f"{len(prompt[0])} ids"
        elif not 0 <= min(prompt[0]) <= max(prompt[0]) < vocab_size:
            kind = IndexError
        if kind:
            raise kind(
                f"train_ppo: prompts must be pairs (ids, is_safety) of at most "
                f"max_seq_len - max_new_tokens = {room} ids below {vocab_size}, and "
                f"True or False, got {got} at [{i}]"
            )


@torch.no_grad()
def require_sound(policy_stepper, value_stepper, experience):
    """Raise `TrainingDiverged` if the last update has broken a model.

    Finite weights can overflow on their way through a model. The next loss would show
    it, but the last update of an iteration has none.
    """
    text = experience.ids, experience.mask, experience.response_mask
    answers = list(range(len(experience.ids)))
    logprobs = response_logprobs(policy_stepper.model, *text)
    policy_stepper.require_finite("logprobs", logprobs, answers)
    values = response_values(value_stepper.model, *text)
    value_stepper.require_finite("values", values, answers)


@expects(
    "policy: Llama",
    "ref_policy: Llama other than policy",
    "value_model: ValueModel",
    "prompts: list of list (N,)",
    "settings: PPOSettings",
    "generator: Generator",
    "judge_gold: function or None",
    "desc: text or None",
    "-> list",
)
def train_ppo(
    policy,
    ref_policy,
    value_model,
    judges,
    prompts,
    settings,
    generator,
    judge_gold=None,
    desc=None,
):
    """Train policy and value model in place; return the history, a dict per iteration.

    prompts: pairs (ids, is_safety), from which each iteration draws settings.batch_size
    different ones. generator: a CPU generator, for prompts, answers and minibatches.
    judge_gold(indices of prompts, experience) -> dict adds columns to the history, for
    worlds that know the truth; nothing it returns reaches the training. desc: names the
    progress bar; None shows none. The columns are those of `summary`, clip_fraction and
    value_loss, both means over the iteration's steps.

    If an update breaks a model, `TrainingDiverged` ends the run and holds that model
    with its last good weights.
    """
    require_lm_head(policy, "train_ppo")
    require_prompts(prompts, policy, settings)
    require_judges("train_ppo", judges)
    total = settings.iterations * settings.epochs * settings.minibatches

    def schedule(step):
        return warmup_cosine(step, total, settings.warmup_steps)

    policy_stepper = Stepper(policy, settings.policy_lr, schedule)
    value_stepper = Stepper(value_model, settings.value_lr, schedule)
    history, experience = [], None
    try:
        for _ in tqdm(range(settings.iterations), desc=desc, disable=desc is None):
            order = torch.randperm(len(prompts), generator=generator)
            batch = order[: settings.batch_size].tolist()
            prompt_ids = [prompts[i][0] for i in batch]
            is_safety = torch.tensor([prompts[i][1] for i in batch])
            experience = collect_experience(
                policy,
                ref_policy,
                value_model,
                judges,
                prompt_ids,
                is_safety,
                settings,
                generator,
            )
            clipped, loss = ppo_step(
                policy,
                value_model,
                policy_stepper,
                value_stepper,
                experience,
                settings,
                generator,
            )
            gold = judge_gold(batch, experience) if judge_gold else {}
            means = {"clip_fraction": clipped, "value_loss": loss}
            history.append(summary(experience) | means | gold)
    except (
        FloatingPointError,
        ValueError,
    ):  # the trace of an update that broke a model
        if experience is not None:
            require_sound(policy_stepper, value_stepper, experience)
        raise
    require_sound(policy_stepper, value_stepper, experience)  # no loss has shown it yet
    return history
