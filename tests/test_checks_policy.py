"""Checks of lessons 14 to 20 pass the package and fail plausible mistakes."""

import copy
import dataclasses
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mistakes import altered, both_tests, mean_of_everything, row_means

from minillama import (
    best_of_n,
    exact,
    kl,
    lm,
    policy_gradient,
    ppo,
    reward_model,
    whiten,
)
from minillama import gae as gae_module
from minillama.course.checks import policy

RIGHT = {
    "reinforce_loss": policy_gradient.reinforce_loss,
    "leave_one_out": policy_gradient.leave_one_out,
    "rewards_to_go": policy_gradient.rewards_to_go,
    "gradient_variance": policy_gradient.gradient_variance,
    "masked_mean": whiten.masked_mean,
    "logit": whiten.logit,
    "whiten": whiten.whiten,
    "exact_kl": kl.exact_kl,
    "kl_estimate": kl.kl_estimate,
    "kl_penalised_rewards": kl.kl_penalised_rewards,
    "gae": gae_module.gae,
    "value_model": reward_model.ValueModel,
    "exact_values": exact.exact_values,
    "policy_loss": ppo.policy_loss,
    "value_loss": ppo.value_loss,
    "objective": exact.objective,
    "optimal_policy": exact.optimal_policy,
    "response_logprobs": lm.response_logprobs,
    "ppo_step": ppo.ppo_step,
    "best_of_n_policy": best_of_n.best_of_n_policy,
    "best_of_n_mean": best_of_n.best_of_n_mean,
}


def with_arguments(function, change):
    """The function with its positional arguments changed."""
    return lambda *arguments, **named: function(*change(*arguments), **named)


def kl_rewards(sign=-1.0, everywhere=False, last_column=False, per_token_score=False):
    def f(scores, logprobs, ref_logprobs, mask, beta):
        # its refusals
        kl.kl_penalised_rewards(scores, logprobs, ref_logprobs, mask, beta)
        rewards = sign * beta * (logprobs - ref_logprobs)
        rewards = rewards if everywhere else rewards * mask
        at = torch.arange(mask.shape[1])
        last = (
            (mask * at).argmax(1)
            if not last_column
            else torch.full((len(mask),), mask.shape[1] - 1)
        )
        return rewards + scores[:, None] * (
            mask if per_token_score else at == last[:, None]
        )

    return f


def clipped(minimum=torch.minimum, mean=whiten.masked_mean, sign=-1.0, both=True):
    def f(logprobs, old, advantages, mask, clip_eps=0.2):
        ppo.policy_loss(logprobs.detach(), old, advantages, mask, clip_eps)
        ratio = (logprobs - old).exp()
        limited = ratio.clamp(1 - clip_eps if both else None, 1 + clip_eps)
        return sign * mean(minimum(ratio * advantages, limited * advantages), mask)

    return f


def values(half=0.5, pick=torch.maximum, mean=whiten.masked_mean):
    def f(new, old, returns, mask, clip_eps=0.2):
        ppo.value_loss(new.detach(), old, returns, mask, clip_eps)
        limited = old + (new - old).clamp(-clip_eps, clip_eps)
        return half * mean(pick((new - returns) ** 2, (limited - returns) ** 2), mask)

    return f


def biased_whiten(v, mask=None, shift_mean=True):
    mask = torch.ones_like(v, dtype=torch.bool) if mask is None else mask
    return whiten.whiten(v, mask, shift_mean) * (mask.sum() / (mask.sum() - 1)) ** 0.5


class NotShifted(reward_model.ValueModel):
    def forward(self, ids, mask=None):
        return self.value(self.llama.hidden(ids, mask)).squeeze(-1)


class ValuesOnPadding(reward_model.ValueModel):
    def forward(self, ids, mask=None):
        return F.pad(
            self.value(self.llama.hidden(ids, mask)).squeeze(-1)[:, :-1], (1, 0)
        )


class SharesTheBody(reward_model.ValueModel):
    def __init__(self, model):
        super().__init__(model)
        self.llama = model.llama


class StartsFromTheScore(reward_model.ValueModel):
    def __init__(self, model):
        super().__init__(model)
        self.value = copy.deepcopy(model.score)


def no_shift(v, mask=None, shift_mean=True):
    return whiten.whiten(v, mask, not shift_mean)


def unmasked(v, mask=None, shift_mean=True):
    return (
        whiten.whiten(v, None, shift_mean)
        if mask is None
        else whiten.whiten(v.nan_to_num(), None, shift_mean)
    )


def gae_backwards(rewards, v, mask, gamma=1.0, lam=0.95):
    advantages, returns = gae_module.gae(
        rewards.flip(1), v.flip(1), mask.flip(1), gamma, lam
    )
    return advantages.flip(1), returns.flip(1)


def stepped(change):
    """`ppo_step` on what change(experience, settings) makes of both."""

    def f(
        policy,
        value_model,
        policy_stepper,
        value_stepper,
        experience,
        settings,
        generator,
    ):
        experience, settings = change(experience, settings)
        return ppo.ppo_step(
            policy,
            value_model,
            policy_stepper,
            value_stepper,
            experience,
            settings,
            generator,
        )

    return f


def step_without_whitening(
    policy, value_model, policy_stepper, value_stepper, experience, settings, generator
):
    with mock.patch.object(ppo, "whiten", lambda values, mask: values):
        return ppo.ppo_step(
            policy,
            value_model,
            policy_stepper,
            value_stepper,
            experience,
            settings,
            generator,
        )


def step_that_whitens_minibatches(
    policy, value_model, policy_stepper, value_stepper, experience, settings, generator
):
    right = ppo.policy_loss
    with mock.patch.object(
        ppo, "policy_loss", lambda *a: right(*a[:2], whiten.whiten(a[2], a[3]), *a[3:])
    ):
        return ppo.ppo_step(
            policy,
            value_model,
            policy_stepper,
            value_stepper,
            experience,
            settings,
            generator,
        )


def step_in_one_order(
    policy, value_model, policy_stepper, value_stepper, experience, settings, generator
):
    with mock.patch.object(torch, "randperm", lambda n, generator: torch.arange(n)):
        return ppo.ppo_step(
            policy,
            value_model,
            policy_stepper,
            value_stepper,
            experience,
            settings,
            generator,
        )


def rectangle_logprobs(model, ids, mask, response_mask):
    return lm.token_logprobs(model(ids), ids) * response_mask


def best_of_n_mean_with(choose):
    """choose(scores, gold, n), which refuses what `best_of_n_mean` refuses."""

    def f(scores, gold, n):
        best_of_n.best_of_n_mean(scores, gold, n)
        return choose(scores, gold, n)

    return f


def knowing_the_token(logp, rewards, responses, gamma=1.0):
    """Values of the state after token t: averaged one token too late."""
    later = exact.Responses(
        responses.ids.roll(-1, 1), responses.mask, responses.response_mask
    )
    return exact.exact_values(logp, rewards, later, gamma)


def monte_carlo(logp, rewards, responses, gamma=1.0):
    """Advantages of what came, not of what is expected."""
    values, _ = exact.exact_values(logp, rewards, responses, gamma)
    return values, gae_module.gae(rewards, values, responses.response_mask, gamma, 1.0)[
        0
    ]


def over_padding(logp, rewards, responses, gamma=1.0):
    everywhere = exact.Responses(
        responses.ids, responses.mask, torch.ones_like(responses.mask)
    )
    return exact.exact_values(logp, rewards, everywhere, gamma)


def reinforce(mean=None, sign=-1.0, detached=True, masked=True):
    """REINFORCE's loss in another style; `mean` of what each token has."""

    def f(logprobs, advantages, mask):
        # its refusals
        policy_gradient.reinforce_loss(logprobs.detach(), advantages, mask)
        weights = advantages.detach() if detached else advantages
        terms = weights * logprobs
        if mean:
            return sign * mean(terms, mask)
        terms = torch.where(mask, terms, 0.0) if masked else terms
        return sign * terms.sum(1).mean()

    return f


def others_by_mask(scores):
    """Leave-one-out by a matrix with a zero diagonal."""
    policy_gradient.leave_one_out(scores)
    K = scores.shape[-1]
    return scores @ (1 - torch.eye(K)) / (K - 1)


def to_go(change=lambda x: x, masked=True):
    def f(rewards, mask):
        policy_gradient.rewards_to_go(rewards, mask)
        counted = torch.where(mask, rewards, 0.0) if masked else rewards.detach()
        return change(counted.flip(1).cumsum(1).flip(1)) * mask

    return f


def to_go_loop(rewards, mask):
    """Rewards to go token by token."""
    result = torch.zeros_like(policy_gradient.rewards_to_go(rewards, mask))
    for b, t in mask.nonzero().tolist():
        result[b, t] = rewards[b, t:][mask[b, t:]].sum().item()
    return result


def centred(gradients, chances):
    """The variance as the mean squared distance from the mean."""
    policy_gradient.gradient_variance(gradients, chances)
    apart = gradients - (chances[:, None] * gradients).sum(0)
    return (chances * apart.square().sum(1)).sum()


WRONG = [
    ("reinforce_loss", reinforce(sign=1.0)),
    ("reinforce_loss", reinforce(mean=whiten.masked_mean)),
    ("reinforce_loss", reinforce(mean=row_means)),
    ("reinforce_loss", reinforce(detached=False)),
    ("reinforce_loss", reinforce(masked=False)),
    # 0 * NaN on padding
    ("reinforce_loss", reinforce(mean=lambda x, mask: (x * mask).sum(1).mean())),
    ("leave_one_out", lambda x: x.mean(-1, keepdim=True).expand_as(x)),
    ("leave_one_out", lambda x: (x.sum() - x) / (x.numel() - 1)),
    ("leave_one_out", lambda x: (x.sum(-1, keepdim=True) - x) / x.shape[-1]),
    ("leave_one_out", altered(policy_gradient.leave_one_out, torch.neg)),
    (
        "leave_one_out",
        lambda x: (x.sum(-1, keepdim=True) - x) / max(x.shape[-1] - 1, 1),
    ),
    ("rewards_to_go", to_go(masked=False)),
    ("rewards_to_go", to_go(lambda x: x.roll(-1, 1))),
    ("rewards_to_go", to_go(lambda x: x.flip(1))),
    ("rewards_to_go", to_go(lambda x: x[:, :1].expand_as(x))),
    ("rewards_to_go", to_go()),  # rewards keep a gradient
    ("gradient_variance", lambda g, p: g.var(0).sum()),
    ("gradient_variance", lambda g, p: p @ g.square().sum(1)),
    ("gradient_variance", lambda g, p: centred(g, p).sqrt()),
    ("gradient_variance", lambda g, p: centred(g, p) / g.shape[1]),
    ("gradient_variance", lambda g, p: centred(g, torch.full_like(p, 1 / len(p)))),
    ("masked_mean", mean_of_everything),
    ("masked_mean", lambda x, m: (x * m).sum() / m.numel()),
    ("masked_mean", lambda x, m: row_means(x.nan_to_num(), m)),
    ("logit", lambda p, eps=1e-6: torch.log(p / (1 - p))),
    ("logit", altered(whiten.logit, torch.neg)),
    ("logit", lambda p, eps=1e-6: whiten.logit(p, eps) / math.log(10)),
    ("whiten", biased_whiten),
    ("whiten", no_shift),
    ("whiten", unmasked),
    ("whiten", lambda v, mask=None, shift_mean=True: (v - v.mean()) / v.std()),
    ("exact_kl", with_arguments(kl.exact_kl, lambda a, b: (b, a))),
    ("exact_kl", altered(kl.exact_kl, torch.neg)),
    (
        "exact_kl",
        lambda a, b: (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).mean(-1),
    ),
    ("kl_estimate", lambda a, b, kind="k1": kl.kl_estimate(b, a, kind)),
    ("kl_estimate", lambda a, b, kind="k1": kl.kl_estimate(a, b, "k1")),
    (
        "kl_estimate",
        lambda a, b, kind="k1": (
            2 * kl.kl_estimate(a, b, kind)
            if kind == "k2"
            else kl.kl_estimate(a, b, kind)
        ),
    ),
    ("kl_penalised_rewards", kl_rewards(sign=1.0)),
    ("kl_penalised_rewards", kl_rewards(everywhere=True)),
    ("kl_penalised_rewards", kl_rewards(last_column=True)),
    ("kl_penalised_rewards", kl_rewards(per_token_score=True)),
    ("gae", gae_backwards),
    ("gae", lambda r, v, m, gamma=1.0, lam=0.95: gae_module.gae(r, v, m, lam, gamma)),
    ("gae", lambda *a, **k: gae_module.gae(*a, **k)[::-1]),
    ("gae", lambda r, v, m, gamma=1.0, lam=0.95: gae_module.gae(r, v, m, gamma, 1.0)),
    ("value_model", NotShifted),
    ("value_model", ValuesOnPadding),
    ("value_model", SharesTheBody),
    ("value_model", StartsFromTheScore),
    (
        "exact_values",
        lambda logp, r, x, gamma=1.0: exact.exact_values(
            torch.zeros_like(logp), r, x, gamma
        ),
    ),
    (
        "exact_values",
        lambda logp, r, x, gamma=1.0: exact.exact_values(logp.exp(), r, x, gamma),
    ),
    ("exact_values", lambda logp, r, x, gamma=1.0: exact.exact_values(logp, r, x)),
    (
        "exact_values",
        lambda logp, r, x, gamma=1.0: exact.exact_values(logp, r, x, gamma)[::-1],
    ),
    ("exact_values", knowing_the_token),
    ("exact_values", monte_carlo),
    ("exact_values", over_padding),
    ("exact_values", altered(exact.exact_values, lambda x: (x[0].roll(1, 1), x[1]))),
    ("policy_loss", clipped(minimum=torch.maximum)),
    ("policy_loss", clipped(mean=row_means)),
    ("policy_loss", clipped(sign=1.0)),
    ("policy_loss", clipped(both=False)),
    ("value_loss", values(half=1.0)),
    ("value_loss", values(pick=torch.minimum)),
    ("value_loss", values(mean=row_means)),
    (
        "objective",
        lambda logp, ref, r, beta: (
            exact.objective(logp, ref, r, 0.0) + beta * exact.response_kl(logp, ref)
        ),
    ),
    (
        "objective",
        lambda logp, ref, r, beta: (
            (logp.exp() * r).sum() - beta * exact.response_kl(ref, logp)
        ),
    ),
    (
        "objective",
        lambda logp, ref, r, beta: (
            (logp.exp() * r).mean() - beta * exact.response_kl(logp, ref)
        ),
    ),
    (
        "objective",
        lambda logp, ref, r, beta: (
            exact.objective(logp, ref, r, beta).detach() + 0 * logp.sum()
        ),
    ),
    ("objective", lambda logp, ref, r, beta: beta * exact.objective(logp, ref, r, 1.0)),
    (
        "optimal_policy",
        lambda ref, r, beta: exact.optimal_policy(ref, r * beta**2, beta),
    ),
    (
        "optimal_policy",
        lambda ref, r, beta: (ref + r / beta, exact.optimal_policy(ref, r, beta)[1]),
    ),
    ("optimal_policy", altered(exact.optimal_policy, lambda x: (x[0], 2 * x[1]))),
    ("optimal_policy", lambda ref, r, beta: exact.optimal_policy(ref.exp(), r, beta)),
    (
        "optimal_policy",
        lambda ref, r, beta: exact.optimal_policy(torch.zeros_like(ref), r, beta),
    ),
    (
        "optimal_policy",
        lambda ref, r, beta: exact.optimal_policy(ref, r, max(beta, 1e-6)),
    ),
    ("response_logprobs", rectangle_logprobs),
    ("response_logprobs", lambda m, ids, mask, r: lm.token_logprobs(m(ids, mask), ids)),
    (
        "response_logprobs",
        lambda m, ids, mask, r: lm.token_logprobs(m(ids, mask), ids).roll(-1, 1) * r,
    ),
    (
        "response_logprobs",
        lambda m, ids, mask, r: lm.response_logprobs(m, ids, mask, r).detach(),
    ),
    (
        "response_logprobs",
        lambda m, ids, mask, r: lm.response_logprobs(m, ids, mask, r).exp() * r,
    ),
    ("ppo_step", step_without_whitening),
    ("ppo_step", step_that_whitens_minibatches),
    ("ppo_step", step_in_one_order),
    ("ppo_step", stepped(lambda x, s: (x, dataclasses.replace(s, epochs=1)))),
    ("ppo_step", stepped(lambda x, s: (x, dataclasses.replace(s, minibatches=1)))),
    (
        "ppo_step",
        stepped(
            lambda x, s: (
                dataclasses.replace(
                    x, returns=whiten.whiten(x.returns, x.response_mask)
                ),
                s,
            )
        ),
    ),
    (
        "ppo_step",
        stepped(lambda x, s: (dataclasses.replace(x, advantages=-x.advantages), s)),
    ),
    ("ppo_step", altered(ppo.ppo_step, lambda x: x[::-1])),
    ("best_of_n_policy", lambda logp, r, n: best_of_n.best_of_n_policy(logp, -r, n)),
    ("best_of_n_policy", lambda logp, r, n: best_of_n.best_of_n_policy(logp, r, n + 1)),
    ("best_of_n_policy", lambda logp, r, n: (n * logp).log_softmax(0)),
    (
        "best_of_n_policy",
        lambda logp, r, n: best_of_n.best_of_n_policy(
            logp, r + 1e-3 * torch.arange(len(r)), n
        ),
    ),
    (
        "best_of_n_mean",
        best_of_n_mean_with(
            lambda scores, gold, n: gold.gather(
                1, scores[:, :n].argmax(1, True)
            ).squeeze(1)
        ),
    ),
    (
        "best_of_n_mean",
        best_of_n_mean_with(
            lambda scores, gold, n: best_of_n.best_of_n_mean(gold, gold, n)
        ),
    ),
    (
        "best_of_n_mean",
        best_of_n_mean_with(
            lambda scores, gold, n: best_of_n.best_of_n_mean(scores, scores, n)
        ),
    ),
    (
        "best_of_n_mean",
        best_of_n_mean_with(
            lambda scores, gold, n: best_of_n.best_of_n_mean(scores, gold, n).mean()
        ),
    ),
    (
        "best_of_n_mean",
        lambda scores, gold, n: best_of_n.best_of_n_mean(
            scores, gold, min(n, scores.shape[1])
        ),
    ),
]


test_the_package_passes, test_mistakes_are_caught = both_tests(policy, RIGHT, WRONG)


# Right answers in another style than the package's, of lesson 14.
ANOTHER_STYLE = {
    "reinforce_loss": reinforce(),
    "leave_one_out": others_by_mask,
    "rewards_to_go": to_go_loop,
    "gradient_variance": centred,
}


@pytest.mark.parametrize("name", ANOTHER_STYLE)
def test_another_style_passes(name):
    getattr(policy, name)(ANOTHER_STYLE[name])
