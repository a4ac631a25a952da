"""PPO for language models: the two clipped losses.

Conventions. Both losses are minimised, and both are a mean over *all response tokens of the batch*: a long
answer weighs more than a short one. ratio = exp(logprobs - old_logprobs), where the old policy sampled the
tokens.

Schulman et al. 2017 (arXiv 1707.06347, equation 7) has the clipped objective. The clipped value loss is not
in that paper: it is from OpenAI's baselines (Huang et al. 2022, "The 37 Implementation Details of Proximal
Policy Optimization", detail 9).
"""

from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from minillama.fast import by_length, response_logprobs, response_values
from minillama.gae import gae
from minillama.generate import generate
from minillama.kl import kl_estimate, kl_penalised_rewards
from minillama.optim import Stepper, warmup_cosine
from minillama.reward_model import RewardModel
from minillama.reward_selection import select_reward
from minillama.whiten import logit, masked_mean, whiten


def policy_loss(logprobs, old_logprobs, advantages, response_mask, clip_eps=0.2):
    """PPO's clipped surrogate as a loss, a mean over all response tokens of the batch.

        -mean( min( ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps) * A ) )

    logprobs, old_logprobs, advantages: (B, T), aligned with the tokens. response_mask: bool (B, T), True =
    response token. Returns a scalar; gradients flow through `logprobs`.
    Raises TypeError for a mask that is not boolean, ValueError for different shapes, clip_eps <= 0 or a batch
    without response token. Source: Schulman et al. 2017, equation 7.
    """
    if (
        not logprobs.shape
        == old_logprobs.shape
        == advantages.shape
        == response_mask.shape
    ):
        shapes = [
            tuple(tensor.shape)
            for tensor in (logprobs, old_logprobs, advantages, response_mask)
        ]
        raise ValueError(
            "policy_loss: logprobs, old_logprobs, advantages, response_mask must be (B, T) "
            f"alike, got {shapes}"
        )
    if response_mask.dtype != torch.bool:
        raise TypeError(
            f"policy_loss: response_mask must be boolean (True = response), got {response_mask.dtype}"
        )
    if not clip_eps > 0:
        raise ValueError(f"policy_loss: clip_eps must be > 0, got {clip_eps}")

    logratio = logprobs - old_logprobs.detach()  # (B, T)
    ratio = logratio.masked_fill(~response_mask, 0.0).exp()  # no overflow on padding
    advantages = advantages.detach()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages
    return -masked_mean(torch.minimum(unclipped, clipped), response_mask)


def value_loss(values, old_values, returns, response_mask, clip_eps=0.2):
    """Half the squared error of the values, clipped around the old values, a mean over all response tokens.

        1/2 * mean( max( (v - R)^2, (old_v + clip(v - old_v, -clip_eps, clip_eps) - R)^2 ) )

    values, old_values, returns: (B, T), in units of reward, as is clip_eps (inf = no clipping).
    response_mask: bool (B, T), True = response token. Returns a scalar; gradients flow through `values`.
    Raises TypeError for a mask that is not boolean, ValueError for different shapes, clip_eps <= 0 or a batch
    without response token. Source: Huang et al. 2022, detail 9.
    """
    if not values.shape == old_values.shape == returns.shape == response_mask.shape:
        shapes = [
            tuple(tensor.shape)
            for tensor in (values, old_values, returns, response_mask)
        ]
        raise ValueError(
            "value_loss: values, old_values, returns, response_mask must be (B, T) "
            f"alike, got {shapes}"
        )
    if not clip_eps > 0:
        raise ValueError(f"value_loss: clip_eps must be > 0, got {clip_eps}")

    old_values, returns = old_values.detach(), returns.detach()
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)  # (B, T)
    squared_error = torch.maximum(
        (values - returns).square(), (clipped - returns).square()
    )
    return 0.5 * masked_mean(squared_error, response_mask)


def clip_fraction(logprobs, old_logprobs, response_mask, clip_eps=0.2):
    """Share of response tokens whose ratio lies outside [1 - clip_eps, 1 + clip_eps], a scalar in [0, 1].

    logprobs, old_logprobs: (B, T). response_mask: bool (B, T), True = response token. A diagnostic without
    gradient; it also counts ratios that the sign of the advantage leaves unclipped.
    Raises as `masked_mean` does.
    """
    ratio = (logprobs - old_logprobs).detach().exp()  # (B, T)
    return masked_mean(((ratio - 1).abs() > clip_eps).float(), response_mask)


@dataclass(frozen=True)
class PPOSettings:
    """One run of PPO; the defaults are the course's run, clip and optimiser as in Llama 2 (section 3.2.3)."""

    iterations: int = 150
    batch_size: int = 64  # prompts, and so answers, per iteration
    epochs: int = 1  # passes over each iteration's answers
    minibatches: int = 4  # gradient steps per pass
    max_new_tokens: int = 72
    policy_lr: float = 4.5e-4
    value_lr: float = 1e-3
    warmup_steps: int = 10  # gradient steps
    beta: float = 0.1  # KL penalty, per nat
    gamma: float = 1.0
    lam: float = 0.95
    clip_eps: float = 0.2
    threshold: float = 0.15  # probability of being safe below which an answer is judged by safety alone
    whiten_scores: bool = (
        True  # False: the logits as they are, so that beta is in their units
    )


@dataclass(frozen=True)
class Judges:
    """The two reward models that PPO climbs, both frozen and in eval mode."""

    safety: RewardModel
    helpfulness: RewardModel

    @torch.no_grad()
    def probabilities(self, ids, mask):
        """(R_s, R_h), two (B,) tensors in [0, 1]: the sigmoids of both models' scores."""
        safety, helpfulness = (
            by_length(judge, mask, ids, mask)  # (B,): judge(ids, mask), in fewer steps
            for judge in (self.safety, self.helpfulness)
        )
        return torch.sigmoid(safety), torch.sigmoid(helpfulness)


@dataclass
class Experience:
    """One iteration's answers and all that PPO needs to know of them.

    Per token, (B, T) aligned with ``ids``: ids, mask (True = real), response_mask (True = counts), logprobs,
    ref_logprobs, values, rewards, advantages, returns. Per answer, (B,): safety and helpfulness
    (probabilities), selected (the one that counts), scores (logits of ``selected``, whitened unless switched off).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    response_mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    safety: torch.Tensor
    helpfulness: torch.Tensor
    selected: torch.Tensor
    scores: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    def rows(self, index):
        """The answers at ``index``, an `Experience` of their own."""
        return Experience(*(x[index] for x in vars(self).values()))


@torch.no_grad()
def collect_experience(
    policy, ref_policy, value_model, judges, prompt_ids, is_safety, settings, generator
):
    """Let the policy answer each prompt, and judge, penalise and credit its answers: an `Experience`.

    ``prompt_ids``: lists of ids; ``is_safety``: bool (B,). The reward is Llama 2's (section 3.2.3):
    R_c = select(R_s, R_h), then whiten(logit(R_c)) on the last token, *then* -beta * k1 on every token.
    """
    answers = generate(policy, prompt_ids, settings.max_new_tokens, generator=generator)
    ids, mask, response_mask = answers.ids, answers.mask, answers.response_mask
    ref_logprobs = response_logprobs(ref_policy, ids, mask, response_mask)
    values = response_values(value_model, ids, mask, response_mask)
    safety, helpfulness = judges.probabilities(ids, mask)
    selected = select_reward(
        safety, helpfulness, is_safety.to(ids.device), settings.threshold
    )
    scores = whiten(logit(selected)) if settings.whiten_scores else logit(selected)
    rewards = kl_penalised_rewards(
        scores, answers.logprobs, ref_logprobs, response_mask, settings.beta
    )
    advantages, returns = gae(
        rewards, values, response_mask, settings.gamma, settings.lam
    )
    return Experience(
        ids,
        mask,
        response_mask,
        answers.logprobs,
        ref_logprobs,
        values,
        safety,
        helpfulness,
        selected,
        scores,
        rewards,
        advantages,
        returns,
    )


def ppo_step(
    policy, value_model, policy_stepper, value_stepper, experience, settings, generator
):
    """All gradient steps on one `Experience`; returns the mean clip fraction and value loss.

    The advantages are whitened over the whole batch of tokens, once, after the returns were taken from them.
    """
    advantages = whiten(experience.advantages, experience.response_mask)
    experience = replace(experience, advantages=advantages)
    clipped, value_losses = [], []
    for _ in range(settings.epochs):
        order = torch.randperm(len(experience.ids), generator=generator)
        for index in order.chunk(settings.minibatches):
            batch = experience.rows(index.to(experience.ids.device))
            logprobs = response_logprobs(
                policy, batch.ids, batch.mask, batch.response_mask
            )
            policy_stepper.step(
                policy_loss(
                    logprobs,
                    batch.logprobs,
                    batch.advantages,
                    batch.response_mask,
                    settings.clip_eps,
                ),
                index.tolist(),
            )
            values = response_values(
                value_model, batch.ids, batch.mask, batch.response_mask
            )
            loss = value_loss(
                values,
                batch.values,
                batch.returns,
                batch.response_mask,
                settings.clip_eps,
            )
            value_stepper.step(loss, index.tolist())
            clipped.append(
                clip_fraction(
                    logprobs, batch.logprobs, batch.response_mask, settings.clip_eps
                ).item()
            )
            value_losses.append(loss.item())
    return sum(clipped) / len(clipped), sum(value_losses) / len(value_losses)


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
    """Climb the composite reward from ``policy``, in place; returns the history, a list of one dict an iteration.

    ``prompts``: list of (ids, is_safety). ``judge_gold(indices, experience) -> dict`` adds columns to the
    history, for worlds that know the truth; nothing it returns reaches the training.
    """
    total = settings.iterations * settings.epochs * settings.minibatches

    def schedule(step):
        return warmup_cosine(step, total, settings.warmup_steps)

    policy_stepper = Stepper(policy, settings.policy_lr, schedule)
    value_stepper = Stepper(value_model, settings.value_lr, schedule)
    if len(prompts) < settings.batch_size:
        raise ValueError(
            f"train_ppo: prompts must be at least batch_size = {settings.batch_size}, got {len(prompts)}"
        )
    history = []
    for _ in tqdm(range(settings.iterations), desc=desc, disable=desc is None):
        chosen = torch.randperm(len(prompts), generator=generator)[
            : settings.batch_size
        ].tolist()
        experience = collect_experience(
            policy,
            ref_policy,
            value_model,
            judges,
            [prompts[i][0] for i in chosen],
            torch.tensor([prompts[i][1] for i in chosen]),
            settings,
            generator,
        )
        clip_fraction, mean_value_loss = ppo_step(
            policy,
            value_model,
            policy_stepper,
            value_stepper,
            experience,
            settings,
            generator,
        )
        history.append(
            {
                **summary(experience),
                "clip_fraction": clip_fraction,
                "value_loss": mean_value_loss,
                **(judge_gold(chosen, experience) if judge_gold else {}),
            }
        )
    return history


def summary(experience):
    """Means over one `Experience`: proxy (logit of the selected probability), kl (nats an answer), length (tokens)."""
    counted = experience.response_mask
    return {
        "proxy": logit(experience.selected).mean().item(),
        "kl": (kl_estimate(experience.logprobs, experience.ref_logprobs) * counted)
        .sum(1)
        .mean()
        .item(),
        "length": counted.sum(1).float().mean().item(),
        "entropy": -experience.logprobs[counted].mean().item(),
    }
