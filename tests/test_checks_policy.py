"""Checks of lessons 14 to 20 pass the package and fail plausible mistakes."""

import copy
import dataclasses
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mistakes import (
    altered,
    both_tests,
    by_default,
    detached,
    in_float32,
    limited,
    mean_of_everything,
    of_the_first_row,
    overwriting,
    rounded,
    row_means,
    seeding,
    switching,
)

from minillama import (
    best_of_n,
    data,
    dpo,
    exact,
    generate,
    grpo,
    kl,
    lm,
    off_policy,
    policy_gradient,
    ppo,
    process_reward,
    reward_model,
    whiten,
    world,
)
from minillama import gae as gae_module
from minillama.course import checks

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
    "implicit_reward": dpo.implicit_reward,
    "dpo_loss": dpo.dpo_loss,
    "ipo_loss": dpo.ipo_loss,
    "kto_loss": dpo.kto_loss,
    "mismatched_kl": dpo.mismatched_kl,
    "pair_logprobs": dpo.pair_logprobs,
    "importance_weights": off_policy.importance_weights,
    "effective_sample_size": off_policy.effective_sample_size,
    "sampling_logprobs": off_policy.sampling_logprobs,
    "squared_error": off_policy.squared_error,
    "group_advantages": grpo.group_advantages,
    "token_weights": grpo.token_weights,
    "grpo_loss": grpo.grpo_loss,
    "kl_loss": grpo.kl_loss,
    "step_labels": process_reward.step_labels,
    "step_targets": process_reward.step_targets,
    "yes_no_scores": process_reward.yes_no_scores,
    "step_loss": process_reward.step_loss,
    "answer_scores": process_reward.answer_scores,
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


def step_in_chunks(*arguments):
    """`chunk` makes three parts of five answers where four were asked for."""
    with mock.patch.object(torch.Tensor, "tensor_split", torch.Tensor.chunk):
        return ppo.ppo_step(*arguments)


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
    return scores @ (1 - torch.eye(K, dtype=scores.dtype)) / (K - 1)


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


def weights_of(
    product=torch.sum, capped=None, detached=True, masked=True, turned=False
):
    """`importance_weights` in another style, with one thing changed."""

    def f(new, old, mask, level="answer", cap=math.inf, above="truncate"):
        # its refusals
        off_policy.importance_weights(new.detach(), old.detach(), mask, level)
        logratio = old - new if turned else new - old
        logratio = logratio.detach() if detached else logratio
        logratio = logratio.masked_fill(~mask, 0.0) if masked else logratio
        if capped == "token first":
            logratio = logratio.clamp(max=math.log(cap))
        if level == "answer":
            logratio = product(logratio, 1, keepdim=True).expand(mask.shape)
        w = logratio.exp()
        if above == "drop" and capped == "times 0":
            w = w * (w <= cap)
        elif above == "drop" and capped != "never dropped":
            w = w.masked_fill(w > cap, 0.0)
        w = w if capped == "token first" else w.clamp(max=cap)
        return w.masked_fill(~mask, 0.0)

    return f


def weights_row_by_row(new, old, mask, level="answer", cap=math.inf, above="truncate"):
    """Importance weights from probabilities, one answer after the other."""
    result = torch.zeros_like(
        off_policy.importance_weights(new, old, mask, level, cap, above)
    )
    for b in range(len(mask)):
        ratios = new.detach()[b, mask[b]].exp() / old.detach()[b, mask[b]].exp()
        w = ratios.prod().expand_as(ratios) if level == "answer" else ratios
        kept = w if above == "truncate" else w.masked_fill(w > cap, 0.0)
        result[b, mask[b]] = kept.clamp(max=cap)
    return result


def law_by_hand(renormalised=True, cut_first=False, cold=False, detached=True):
    """`sampling_logprobs` row by row, token by token."""

    def f(logits, temperature=1.0, top_p=1.0):
        off_policy.sampling_logprobs(logits, temperature, top_p)
        logits = logits.detach() if detached else logits
        rows = []
        for row in logits:
            scaled = row * temperature if cold else row / temperature
            p = scaled.softmax(0)
            ranked = row.softmax(0) if cut_first else p
            kept, total = [], 0.0
            for v in ranked.argsort(descending=True, stable=True).tolist():
                if total < top_p:
                    kept.append(v)
                total += ranked[v].item()
            at = torch.tensor(kept)
            q = torch.zeros_like(p).index_put((at,), p[at])
            rows.append(q / q.sum() if renormalised else q)
        return torch.stack(rows).log()

    return f


def error_by_distance(gradients, chances, truth, n):
    """The squared error as variance about the mean and distance of the mean."""
    off_policy.squared_error(gradients, chances, truth, n)
    mean = (chances[:, None] * gradients).sum(0)
    about = (chances * (gradients - mean).square().sum(1)).sum()
    return about / n + (mean - truth).square().sum()


def group_advantages_with(
    correction=1, of_batch=False, dims=True, eps=1e-4, detached=True, whole=False
):
    """`group_advantages` in another style, with one thing changed."""

    def f(scores, group_size, baseline="group", scale="std"):
        grpo.grouped(scores, group_size)  # its refusals
        r = (scores.detach() if detached else scores).double()
        rows = r.reshape(-1, group_size) if dims else r.reshape(group_size, -1).T
        mean = r.mean() if whole else rows.mean(1, keepdim=True)
        apart = rows - mean
        if baseline == "others":
            apart = apart * group_size / (group_size - 1)
        spread = r.std() if of_batch else rows.std(1, correction=correction)[:, None]
        if scale == "std":
            apart = apart / (spread + eps)
        return (apart if dims else apart.T).flatten().to(scores.dtype)

    return f


def weights_by_hand(average_of=lambda x: x, constant=True, answers=True):
    def f(mask, average="answer", length=None):
        grpo.token_weights(mask, average, length)  # its refusals
        rows = []
        for row in mask:
            tokens, all_tokens = int(row.sum()), int(mask.sum())
            below = {
                "answer": tokens * (len(mask) if answers else 1),
                "batch": all_tokens,
                "constant": len(mask) * ((length or 1) if constant else mask.shape[1]),
            }[average_of(average)]
            rows.append([1 / below])
        return torch.tensor(rows)

    return f


def grpo_by_rows(
    sign=-1.0, minimum=torch.minimum, root=True, width=None, detached=True, filled=True
):
    """`grpo_loss` answer by answer, with one thing changed."""

    def f(
        new, old, A, mask, clip_eps=0.2, ratio="token", average="answer", length=None
    ):
        weights, total = grpo.token_weights(mask, average, length), 0.0
        A = A.detach()
        for i in range(len(A)):
            apart = new[i] - (old[i].detach() if detached else old[i])
            apart = apart[mask[i]] if filled else apart * mask[i]
            if ratio == "sequence":
                mean = apart.mean() if root else apart.sum()
                apart = mean.expand(len(apart))
            r, eps = apart.exp(), width or clip_eps
            least = minimum(r * A[i], r.clamp(1 - eps, 1 + eps) * A[i])
            least = least if filled else least * mask[i]
            total = total + sign * (weights[i] * least).sum()
        return total

    return f


def kl_by_rows(kind="k3", turned=False, average=None, detached=True, filled=True):
    def f(new, ref, mask, how="answer", length=None):
        length = None if average else length
        weights = grpo.token_weights(mask, average or how, length)
        x = new - (ref.detach() if detached else ref)
        x = -x if turned else x
        x = torch.where(mask, x, 0.0) if filled else x
        k = {"k1": x, "k2": x.square() / 2, "k3": (-x).exp() - 1 + x}[kind]
        return (weights * k * mask).sum()

    return f


def of_gaps(loss, turned=False, reference=True, detached=True, own=True):
    """A loss of pairs from their gaps, with one thing changed."""

    def f(chosen, rejected, ref_chosen, ref_rejected, price, reduction="mean"):
        if detached:
            ref_chosen, ref_rejected = ref_chosen.detach(), ref_rejected.detach()
        if not own:
            ref_chosen, ref_rejected = ref_rejected, ref_chosen
        gaps = chosen - rejected
        gaps = gaps - (ref_chosen - ref_rejected if reference else 0.0)
        losses = loss(-gaps if turned else gaps, price)
        return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[
            reduction
        ]()

    return f


def log_of_chance(gaps, beta):
    """DPO in another style: two log-weights, normalised."""
    return -torch.stack((beta * gaps, 0 * gaps)).log_softmax(0)[0]


def squared(gaps, tau):
    return gaps.square() - gaps / tau + 1 / (4 * tau**2)


def kto_with(
    sign=1.0, log=False, swapped=False, detached=True, weight=True, price=True
):
    """`kto_loss` answer by answer, with one thing changed."""

    def f(logprobs, ref, desirable, point, beta, good=1.0, bad=1.0, reduction="mean"):
        if detached:
            ref, point = ref.detach(), point.detach()
        losses = []
        for i, is_good in enumerate(desirable.tolist()):
            gain = (beta if price else 1.0) * (logprobs[i] - ref[i] - point)
            value = torch.sigmoid(sign * (gain if is_good else -gain))
            heavy = good if is_good is not swapped else bad
            loss = -value.log() if log else 1 - value
            losses.append(loss * (heavy if weight else 1.0))
        losses = torch.stack(losses)
        return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[
            reduction
        ]()

    return f


def kto_by_masks(
    logprobs, ref, desirable, point, beta, good=1.0, bad=1.0, reduction="mean"
):
    """KTO in another style: both kinds at once, with signs."""
    signs = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, good, bad)
    gain = beta * (logprobs - ref.detach() - point.detach())
    losses = weights * (0.5 - 0.5 * torch.tanh(signs * gain / 2))
    return losses if reduction == "none" else getattr(losses, reduction)()


def four_of(start=0, mean=False, frozen=True, once=True, order=(0, 1, 2, 3)):
    """`pair_logprobs` with a loop over models and sides, one thing changed."""

    def sums(model, texts):
        kept = list(dict.fromkeys(texts)) if once else texts
        ids, mask, counted = data.pad_examples(
            [data.Example(list(x), max(1, at + start)) for x, at in kept]
        )
        each = lm.token_logprobs(model(ids, mask), ids)
        each = torch.where(counted, each, 0.0)
        total = each.sum(1) / (counted.sum(1) if mean else 1)
        return torch.stack([total[kept.index(x)] for x in texts])

    def f(policy, ref_policy, pairs):
        texts = [(tuple(x.chosen), x.response_start) for x in pairs]
        texts += [(tuple(x.rejected), x.response_start) for x in pairs]
        ours, theirs = sums(policy, texts), sums(ref_policy, texts)
        theirs = theirs.detach() if frozen else theirs
        four = (*ours.chunk(2), *theirs.chunk(2))
        return tuple(four[i] for i in order)

    return f


def in_four_forwards(policy, ref_policy, pairs):
    four = [dpo.pair_logprobs(policy, ref_policy, [pair]) for pair in pairs]
    return tuple(torch.cat(side) for side in zip(*four, strict=True))


WRONG = [
    ("implicit_reward", lambda x, ref, beta: beta * (ref.detach() - x)),
    ("implicit_reward", lambda x, ref, beta: (x - ref.detach()) / beta),
    ("implicit_reward", lambda x, ref, beta: beta * (x - ref)),
    ("implicit_reward", lambda x, ref, beta: beta * (x.detach() - ref)),
    ("implicit_reward", lambda x, ref, beta: beta * (x.exp() - ref.detach().exp())),
    ("implicit_reward", lambda x, ref, beta: beta * (x - ref.detach())),  # no refusal
    ("dpo_loss", of_gaps(log_of_chance, turned=True)),
    ("dpo_loss", of_gaps(log_of_chance, reference=False)),
    ("dpo_loss", of_gaps(log_of_chance, detached=False)),
    ("dpo_loss", of_gaps(log_of_chance, own=False)),
    ("dpo_loss", of_gaps(lambda x, beta: log_of_chance(x / beta, 1.0))),
    ("dpo_loss", of_gaps(lambda x, beta: beta * log_of_chance(x, 1.0))),
    ("dpo_loss", of_gaps(lambda x, beta: -torch.sigmoid(beta * x).log())),
    ("dpo_loss", of_gaps(lambda x, beta: torch.relu(1 - beta * x))),
    (
        "dpo_loss",
        lambda *a, reduction="sum": dpo.dpo_loss(*a[:5], *a[5:] or [reduction]),
    ),
    ("ipo_loss", of_gaps(squared, turned=True)),
    ("ipo_loss", of_gaps(squared, reference=False)),
    ("ipo_loss", of_gaps(squared, detached=False)),
    ("ipo_loss", of_gaps(lambda x, tau: (x - 1 / tau).square())),
    ("ipo_loss", of_gaps(lambda x, tau: (x - tau / 2).square())),
    ("ipo_loss", of_gaps(lambda x, tau: torch.relu(1 / (2 * tau) - x).square())),
    ("ipo_loss", of_gaps(lambda x, tau: (tau * x - 0.5).square())),
    ("kto_loss", kto_with(sign=-1.0)),
    ("kto_loss", kto_with(log=True)),
    ("kto_loss", kto_with(swapped=True)),
    ("kto_loss", kto_with(detached=False)),
    ("kto_loss", kto_with(weight=False)),
    ("kto_loss", kto_with(price=False)),
    ("mismatched_kl", lambda x, ref: (ref - x).detach().mean().clamp(min=0)),
    ("mismatched_kl", lambda x, ref: (x - ref).mean().clamp(min=0)),
    ("mismatched_kl", lambda x, ref: (x - ref).detach().mean()),
    ("mismatched_kl", lambda x, ref: (x - ref).detach().clamp(min=0).mean()),
    ("mismatched_kl", lambda x, ref: (x - ref).detach().sum().clamp(min=0)),
    ("pair_logprobs", four_of(start=-1)),
    ("pair_logprobs", four_of(start=1)),
    ("pair_logprobs", four_of(mean=True)),
    ("pair_logprobs", four_of(frozen=False)),
    ("pair_logprobs", four_of(once=False)),
    ("pair_logprobs", four_of(order=(0, 2, 1, 3))),
    ("pair_logprobs", four_of(order=(1, 0, 3, 2))),
    ("pair_logprobs", in_four_forwards),
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
    ("ppo_step", step_in_chunks),
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
    ("importance_weights", weights_of(turned=True)),
    ("importance_weights", weights_of(product=torch.mean)),  # a geometric mean
    ("importance_weights", weights_of(capped="token first")),
    ("importance_weights", weights_of(capped="never dropped")),
    ("importance_weights", weights_of(capped="times 0")),  # inf * 0
    ("importance_weights", weights_of(detached=False)),
    ("importance_weights", weights_of(masked=False)),
    ("effective_sample_size", lambda w: w.sum() / w.max()),
    ("effective_sample_size", lambda w: w.square().sum() / w.sum().square()),
    ("effective_sample_size", lambda w: w.sum().square() / w.square().sum()),
    ("effective_sample_size", lambda w: 1 / off_policy.effective_sample_size(w)),
    ("effective_sample_size", lambda w: (w.sum() ** 2 / (w**2).sum()) / len(w)),
    ("effective_sample_size", lambda w: len(w) / w.square().mean()),
    ("sampling_logprobs", altered(off_policy.sampling_logprobs, torch.exp)),
    ("sampling_logprobs", law_by_hand(renormalised=False)),
    ("sampling_logprobs", law_by_hand(cut_first=True)),
    ("sampling_logprobs", law_by_hand(cold=True)),
    ("sampling_logprobs", law_by_hand(detached=False)),
    (
        "sampling_logprobs",
        lambda x, temperature=1.0, top_p=1.0: off_policy.sampling_logprobs(
            x, temperature
        ),
    ),
    ("squared_error", lambda g, p, t, n: error_by_distance(g, p, t, 1) / n),
    ("squared_error", lambda g, p, t, n: error_by_distance(g, p, t, n).sqrt()),
    ("squared_error", lambda g, p, t, n: error_by_distance(g, p, p @ g, n)),
    ("squared_error", lambda g, p, t, n: (p @ g - t).square().sum()),
    (
        "squared_error",
        lambda g, p, t, n: error_by_distance(g, torch.full_like(p, 1 / len(p)), t, n),
    ),
    ("squared_error", lambda g, p, t, n: p @ (g - t).square().sum(1) / n),
    ("group_advantages", group_advantages_with(correction=0)),
    ("group_advantages", group_advantages_with(of_batch=True)),
    ("group_advantages", group_advantages_with(dims=False)),
    ("group_advantages", group_advantages_with(eps=0.0)),
    ("group_advantages", group_advantages_with(detached=False)),
    ("group_advantages", group_advantages_with(whole=True)),
    ("group_advantages", altered(grpo.group_advantages, torch.neg)),
    (
        "group_advantages",
        lambda x, size, baseline="group", scale="std": grpo.group_advantages(
            x, size, "group", scale
        ),
    ),
    ("token_weights", weights_by_hand(lambda x: "batch")),
    ("token_weights", weights_by_hand(lambda x: "answer" if x == "batch" else x)),
    ("token_weights", weights_by_hand(constant=False)),
    ("token_weights", weights_by_hand(answers=False)),
    (
        "token_weights",
        lambda mask, average="answer", length=None: grpo.token_weights(
            torch.ones_like(mask), average, length
        ),
    ),
    (
        "token_weights",
        lambda mask, average="answer", length=9: weights_by_hand()(
            mask, average, length if average == "constant" else None
        ),
    ),
    ("grpo_loss", grpo_by_rows(sign=1.0)),
    ("grpo_loss", grpo_by_rows(minimum=torch.maximum)),
    ("grpo_loss", grpo_by_rows(root=False)),
    ("grpo_loss", grpo_by_rows(width=0.2)),
    ("grpo_loss", grpo_by_rows(detached=False)),
    ("grpo_loss", grpo_by_rows(filled=False)),
    (
        "grpo_loss",
        lambda new, old, A, mask, eps=0.2, ratio="token", average="", length=None: (
            grpo.grpo_loss(new, old, A, mask, eps, ratio, "batch")
        ),
    ),
    ("kl_loss", kl_by_rows("k1")),
    ("kl_loss", kl_by_rows("k2")),
    ("kl_loss", kl_by_rows(turned=True)),
    ("kl_loss", kl_by_rows(average="batch")),
    ("kl_loss", kl_by_rows(detached=False)),
    ("kl_loss", kl_by_rows(filled=False)),
]


def labels_with(
    due=lambda said: next((i for i in range(4) if i not in said), None),
    noted=lambda right: True,
    polite=("opener", "closer"),
    any_task=False,
    end=lambda said, labels: len(said) == 4,
):
    def f(prompt, text, ended=True):
        process_reward.step_labels(prompt, text, ended)  # its refusals
        said, labels = set(), []
        for kind, task, index in world.parse(text):
            ours = kind == "step" and (any_task or task == prompt.request)
            labels.append(kind in polite or (ours and index == due(said)))
            if ours and noted(labels[-1]):
                said.add(index)
        return labels + [end(said, labels)] if ended else labels

    return f


def labels_of_gold(prompt, text, ended=True):
    """A step is right if gold rises by at least one, or it is polite."""
    process_reward.step_labels(prompt, text, ended)
    sentences, labels = [], []
    for sentence, (kind, *_) in zip(text.split(". "), world.parse(text), strict=False):
        before = world.helpfulness(prompt, ". ".join(sentences))
        sentences.append(sentence)
        after = world.helpfulness(prompt, ". ".join(sentences))
        labels.append(kind in ("opener", "closer") or after >= before + 1)
    return labels + [len(labels) >= 4] if ended else labels


def targets_with(process, outcome=all):
    def f(labels, kind):
        if kind == "outcome":
            return torch.full((len(labels),), float(outcome(labels)))
        return torch.tensor(process(labels))

    return f


def until_the_first_fault(labels, behind=math.nan, fault=0.0):
    values, over = [], False
    for label in labels:
        values.append(behind if over else 1.0 if label else fault)
        over = over or not label
    return values


def yes_no_with(read):
    def f(llama, ids, mask, at, yes_id, no_id):
        return read(llama(ids, mask), at, yes_id, no_id)

    return f


def loss_with(losses, mean=lambda x, n: x.mean()):
    def f(scores, targets):
        process_reward.step_loss(scores, targets)
        known = ~targets.isnan()
        return mean(losses(scores[known], targets[known]), len(scores))

    return f


def entropy(x, y):
    return y * F.softplus(-x) + (1 - y) * F.softplus(x)


def scores_with(product, worst=min, last=lambda x: x[-1]):
    def f(scores, how):
        each = {"product": product, "min": worst, "last": last}[how]
        lists = [x.tolist() for x in scores]
        return torch.tensor([float(each(x)) if x else -math.inf for x in lists])

    return f


def log_sigmoid(x):
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def sigmoid_of(x):
    return 1 / (1 + math.exp(-x))


WRONG += [
    ("step_labels", labels_with(end=lambda said, labels: True)),
    ("step_labels", labels_with(end=lambda said, labels: all(labels))),
    ("step_labels", labels_with(due=len)),
    ("step_labels", labels_with(noted=lambda right: right)),
    ("step_labels", labels_with(polite=("opener", "closer", "risky"))),
    ("step_labels", labels_with(polite=())),
    ("step_labels", labels_with(any_task=True)),
    ("step_labels", labels_of_gold),
    ("step_targets", targets_with(lambda x: [float(each) for each in x])),
    ("step_targets", targets_with(lambda x: until_the_first_fault(x, 0.0))),
    ("step_targets", targets_with(lambda x: until_the_first_fault(x, fault=math.nan))),
    ("step_targets", targets_with(until_the_first_fault, any)),
    ("step_targets", targets_with(until_the_first_fault, lambda x: x[-1])),
    (
        "step_targets",
        lambda labels, kind: process_reward.step_targets(
            labels, {"process": "outcome", "outcome": "process"}[kind]
        ),
    ),
    ("yes_no_scores", yes_no_with(lambda x, at, y, n: x[at][:, y])),
    ("yes_no_scores", yes_no_with(lambda x, at, y, n: x[at][:, n] - x[at][:, y])),
    (
        "yes_no_scores",
        yes_no_with(lambda x, at, y, n: x[at].softmax(-1)[:, [y, n]].diff()[:, 0]),
    ),
    (
        "yes_no_scores",
        yes_no_with(lambda x, at, y, n: (x[..., y] - x[..., n]).roll(1, 1)[at]),
    ),
    (
        "yes_no_scores",
        lambda llama, ids, mask, at, y, n: process_reward.yes_no_scores(
            llama, ids, torch.ones_like(mask), at, y, n
        ),
    ),
    ("yes_no_scores", yes_no_with(lambda x, at, y, n: x[at].log_softmax(-1)[:, y])),
    ("step_loss", loss_with(lambda x, y: entropy(x, 1 - y))),
    ("step_loss", loss_with(entropy, lambda x, n: x.sum())),
    ("step_loss", loss_with(entropy, lambda x, n: x.sum() / n)),
    ("step_loss", loss_with(lambda x, y: (torch.sigmoid(x) - y).square())),
    (
        "step_loss",
        loss_with(
            lambda x, y: -(y * x.sigmoid().log() + (1 - y) * (-x).sigmoid().log())
        ),
    ),
    ("step_loss", loss_with(lambda x, y: F.softplus(-x) * y)),
    (
        "step_loss",
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.nan_to_num(0)),
    ),
    ("answer_scores", scores_with(lambda x: math.prod(map(sigmoid_of, x)))),
    ("answer_scores", scores_with(lambda x: sum(map(log_sigmoid, x)) / len(x))),
    ("answer_scores", scores_with(sum)),
    (
        "answer_scores",
        scores_with(lambda x: math.log(math.prod(map(sigmoid_of, x)) + 1e-12)),
    ),
    (
        "answer_scores",
        scores_with(lambda x: sum(map(log_sigmoid, x)), lambda x: log_sigmoid(min(x))),
    ),
    (
        "answer_scores",
        scores_with(lambda x: sum(map(log_sigmoid, x)), last=lambda x: x[0]),
    ),
    (
        "answer_scores",
        scores_with(lambda x: sum(map(log_sigmoid, x)), max),
    ),
]


def ppo_step_with(**functions):
    """`ppo_step` in which functions of its module are others."""

    def f(*arguments):
        with mock.patch.multiple(ppo, **functions):
            return ppo.ppo_step(*arguments)

    return f


# What a check misses that looks at two rows of friendly numbers: arguments and random
# numbers that are not the function's own, slopes, dtypes, modes, magnitudes, defaults,
# and a policy that has not moved.
WRONG += [
    ("reinforce_loss", overwriting(policy_gradient.reinforce_loss, 1)),
    ("reinforce_loss", in_float32(policy_gradient.reinforce_loss)),
    ("leave_one_out", in_float32(policy_gradient.leave_one_out)),
    ("rewards_to_go", limited(policy_gradient.rewards_to_go, -100, 100)),
    ("rewards_to_go", of_the_first_row(policy_gradient.rewards_to_go, 2)),
    ("gradient_variance", seeding(policy_gradient.gradient_variance)),
    ("gradient_variance", rounded(policy_gradient.gradient_variance)),
    ("masked_mean", limited(whiten.masked_mean, -100, 100)),
    ("logit", lambda p, eps=1e-6: whiten.logit(p * (1 - 2 * eps) + eps, eps)),
    ("logit", overwriting(whiten.logit)),
    ("whiten", limited(whiten.whiten, -3, 3)),
    ("whiten", lambda x, mask=None, shift_mean=True: whiten.whiten(x, mask)),
    ("exact_kl", altered(kl.exact_kl, lambda x: x.nan_to_num(posinf=0.0))),
    ("exact_kl", limited(kl.exact_kl, 0, 5)),
    ("kl_estimate", lambda a, b, kind="k1": kl.kl_estimate(a, b.detach(), kind)),
    ("kl_estimate", limited(kl.kl_estimate, -10, 10)),
    ("kl_penalised_rewards", rounded(kl.kl_penalised_rewards)),
    ("gae", by_default(gae_module.gae, "lam", 4)),
    ("gae", altered(gae_module.gae, lambda x: [y.clamp(-5, 5) for y in x])),
    ("exact_values", altered(exact.exact_values, lambda x: [y.float() for y in x])),
    ("policy_loss", by_default(ppo.policy_loss, "clip_eps", 4)),
    ("policy_loss", limited(ppo.policy_loss, -10, 10)),
    ("value_loss", by_default(ppo.value_loss, "clip_eps", 4)),
    ("value_loss", of_the_first_row(ppo.value_loss, 4)),
    ("objective", detached(exact.objective)),
    ("optimal_policy", altered(exact.optimal_policy, lambda x: (x[0].float(), x[1]))),
    ("response_logprobs", detached(lm.response_logprobs)),
    ("response_logprobs", limited(lm.response_logprobs, -5, 0)),
    ("response_logprobs", switching(lm.response_logprobs)),
    ("ppo_step", seeding(ppo.ppo_step)),
    ("ppo_step", ppo_step_with(policy_loss=by_default(ppo.policy_loss, "", 4))),
    ("ppo_step", ppo_step_with(value_loss=by_default(ppo.value_loss, "", 4))),
    ("ppo_step", ppo_step_with(clip_fraction=by_default(ppo.clip_fraction, "", 3))),
    ("ppo_step", ppo_step_with(response_values=detached(ppo.response_values))),
    ("best_of_n_mean", of_the_first_row(best_of_n.best_of_n_mean)),
    (
        "best_of_n_mean",
        lambda x, y, n: best_of_n.best_of_n_mean(x.flip(1), y.flip(1), n),
    ),
    ("best_of_n_policy", lambda p, x, n: best_of_n.best_of_n_policy(p, x.round(), n)),
    ("implicit_reward", limited(dpo.implicit_reward, -10, 10)),
    ("dpo_loss", by_default(dpo.dpo_loss, "reduction", 5)),
    ("ipo_loss", limited(dpo.ipo_loss, 0, 100)),
    ("kto_loss", overwriting(dpo.kto_loss)),
    ("mismatched_kl", limited(dpo.mismatched_kl, 0, 10)),
    ("pair_logprobs", switching(dpo.pair_logprobs, 1)),
    ("importance_weights", limited(off_policy.importance_weights, 0, 1000)),
    ("effective_sample_size", overwriting(off_policy.effective_sample_size)),
    ("sampling_logprobs", limited(off_policy.sampling_logprobs, -20, 0)),
    ("squared_error", rounded(off_policy.squared_error)),
    ("group_advantages", in_float32(grpo.group_advantages)),
    ("group_advantages", of_the_first_row(grpo.group_advantages)),
    ("token_weights", lambda *x, **y: grpo.token_weights(*x, **y) * (len(x[0]) / 2)),
    ("grpo_loss", by_default(grpo.grpo_loss, "ratio", 5)),
    ("grpo_loss", limited(grpo.grpo_loss, -100, 100)),
    ("kl_loss", detached(grpo.kl_loss)),
    ("step_labels", lambda *x, ended=False: process_reward.step_labels(*x[:2], ended)),
    ("yes_no_scores", switching(process_reward.yes_no_scores)),
    ("yes_no_scores", detached(process_reward.yes_no_scores)),
    ("step_loss", rounded(process_reward.step_loss)),
    ("answer_scores", limited(process_reward.answer_scores, -math.inf, 50)),
]


test_the_package_passes, test_mistakes_are_caught = both_tests(RIGHT, WRONG)


# Right answers in another style than the package's, of lesson 14.
ANOTHER_STYLE = {
    "reinforce_loss": reinforce(),
    "leave_one_out": others_by_mask,
    "rewards_to_go": to_go_loop,
    "gradient_variance": centred,
}


@pytest.mark.parametrize("name", ANOTHER_STYLE)
def test_another_style_passes(name):
    getattr(checks, name)(ANOTHER_STYLE[name])


# Right answers in two other styles, of lesson 23.
OFF_POLICY_STYLES = [
    ("importance_weights", weights_of()),
    ("importance_weights", weights_row_by_row),
    (
        "effective_sample_size",
        lambda w: (
            w.sum()
            / (w * off_policy.effective_sample_size(w).sign() * w).sum()
            * w.sum()
        ),
    ),
    (
        "effective_sample_size",
        lambda w: (
            1
            / (w / w.sum() * off_policy.effective_sample_size(w).sign()).square().sum()
        ),
    ),
    ("sampling_logprobs", law_by_hand()),
    (
        "sampling_logprobs",
        lambda x, temperature=1.0, top_p=1.0: (
            generate.top_p_filter((x.detach() / temperature).softmax(-1), top_p)
            .log()
            .log_softmax(-1)
        ),
    ),
    ("squared_error", error_by_distance),
    (
        "squared_error",
        lambda g, p, t, n: (
            off_policy.squared_error(g, p, t, n).sign()
            * (p @ (g - t).square().sum(1) + (n - 1) * (p @ g - t).square().sum())
            / n
        ),
    ),
]


@pytest.mark.parametrize("name, right", OFF_POLICY_STYLES)
def test_other_styles_of_lesson_23_pass(name, right):
    getattr(checks, name)(right)


def weights_by_division(mask, average="answer", length=None):
    grpo.token_weights(mask, average, length)  # its refusals
    shares = {
        "answer": mask / mask.sum(1, keepdim=True) / len(mask),
        "batch": mask / mask.sum(),
        "constant": mask.float() / len(mask) / (length or 1),
    }[average]
    return shares.amax(1, keepdim=True)


def group_by_group(scores, group_size, baseline="group", scale="std"):
    grpo.grouped(scores, group_size)  # its refusals
    result = []
    for group in scores.detach().double().split(group_size):
        for i in range(group_size):
            rest = torch.cat([group[:i], group[i + 1 :]])
            mean = group.mean() if baseline == "group" else rest.mean()
            spread = group.std() + 1e-4 if scale == "std" else 1.0
            result.append((group[i] - mean) / spread)
    return torch.stack(result).to(scores.dtype)


def loss_of_ppo(
    new, old, A, mask, eps=0.2, ratio="token", average="answer", length=None
):
    apart = torch.where(mask, new - old.detach(), 0.0)
    if ratio == "sequence":
        apart = (apart.sum(1) / mask.sum(1))[:, None].expand(mask.shape)
    praise = A[:, None] * grpo.token_weights(mask, average, length) * mask.sum()
    praise = praise.expand(mask.shape)
    return ppo.policy_loss(apart, torch.zeros_like(apart), praise, mask, eps)


def kl_by_indexing(new, ref, mask, average="answer", length=None):
    weights = grpo.token_weights(mask, average, length).expand(mask.shape)[mask]
    x = (new - ref.detach())[mask]
    return (weights * (torch.expm1(-x) + x)).sum()


GRPO_STYLES = [
    ("group_advantages", group_advantages_with()),
    ("group_advantages", group_by_group),
    ("token_weights", weights_by_hand()),
    ("token_weights", weights_by_division),
    ("grpo_loss", grpo_by_rows()),
    ("grpo_loss", loss_of_ppo),
    ("kl_loss", kl_by_rows()),
    ("kl_loss", kl_by_indexing),
]


@pytest.mark.parametrize("name, right", GRPO_STYLES)
def test_another_style_of_grpo_passes(name, right):
    getattr(checks, name)(right)


def kto_of_ratios(
    logprobs, ref, desirable, point, beta, good=1.0, bad=1.0, reduction="mean"
):
    """KTO from powers of ratios: the odds."""
    odds = ((logprobs - ref.detach() - point.detach()).exp()) ** beta
    losses = torch.where(desirable, good / (1 + odds), bad * odds / (1 + odds))
    return losses if reduction == "none" else getattr(losses, reduction)()


def refused_then(reward):
    def f(logprobs, ref, beta):
        dpo.implicit_reward(logprobs, ref, beta)
        return reward(logprobs, ref.detach(), beta)

    return f


DIRECT_STYLES = [
    ("implicit_reward", refused_then(lambda x, ref, beta: beta * x - beta * ref)),
    (
        "implicit_reward",
        refused_then(lambda x, ref, b: b * torch.stack((x, -ref)).sum(0)),
    ),
    ("dpo_loss", of_gaps(log_of_chance)),
    ("dpo_loss", of_gaps(lambda x, beta: F.softplus(-beta * x))),
    ("ipo_loss", of_gaps(squared)),
    ("ipo_loss", of_gaps(lambda x, tau: (0.5 - tau * x).square() / tau**2)),
    ("kto_loss", kto_with()),
    ("kto_loss", kto_by_masks),
    ("kto_loss", kto_of_ratios),
    ("mismatched_kl", lambda x, ref: F.relu(x.detach().mean() - ref.mean())),
    ("mismatched_kl", lambda x, ref: (x - ref).detach().mean().maximum(0 * ref[0])),
    ("pair_logprobs", four_of()),
    ("pair_logprobs", lambda *models_and_pairs: list(four_of()(*models_and_pairs))),
]


@pytest.mark.parametrize("name, right", DIRECT_STYLES)
def test_other_styles_of_lesson_21_pass(name, right):
    getattr(checks, name)(right)


def labels_by_recursion(prompt, text, ended=True, said=()):
    """The label of the first sentence, and those of the rest."""
    if not said:
        process_reward.step_labels(prompt, text, ended)
    sentences = [x for x in text.split(".") if x.strip()]
    if not sentences:
        return [set(said) >= {0, 1, 2, 3}] if ended else []
    ((kind, task, index),) = world.parse(sentences[0])
    before = [i for i in range(4) if i not in said]
    right = task == prompt.request and kind == "step" and before[:1] == [index]
    if task == prompt.request:
        said = (*said, index)
    rest = ".".join(sentences[1:])
    tail = labels_by_recursion(prompt, rest, ended, said or (9,))
    return [right or kind in ("opener", "closer"), *tail]


PROCESS_STYLES = [
    ("step_labels", labels_with()),
    ("step_labels", labels_by_recursion),
    ("step_targets", targets_with(until_the_first_fault)),
    (
        "step_targets",
        targets_with(
            lambda x: [
                float(each) if all(x[:i]) else math.nan for i, each in enumerate(x)
            ],
            lambda x: not any(not each for each in x),
        ),
    ),
    ("yes_no_scores", yes_no_with(lambda x, at, y, n: (x[..., y] - x[..., n])[at])),
    (
        "yes_no_scores",
        yes_no_with(lambda x, at, y, n: x[at][:, [y, n]].softmax(-1)[:, 0].logit()),
    ),
    ("step_loss", loss_with(entropy)),
    (
        "step_loss",
        loss_with(lambda x, y: -y * F.logsigmoid(x) - (1 - y) * F.logsigmoid(-x)),
    ),
    ("answer_scores", scores_with(lambda x: sum(map(log_sigmoid, x)))),
    (
        "answer_scores",
        scores_with(
            lambda x: -F.softplus(-torch.tensor(x)).sum(),
            lambda x: sorted(x)[0],
            lambda x: x[::-1][0],
        ),
    ),
]


@pytest.mark.parametrize("name, right", PROCESS_STYLES)
def test_other_styles_of_lesson_24_pass(name, right):
    getattr(checks, name)(right)
