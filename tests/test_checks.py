"""Every check passes the package and fails plausible mistakes: at least three a check."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from minillama import gae as gae_module
from minillama import kl, ppo, preference_loss, reward_model, reward_selection, whiten
from minillama.course import checks
from minillama.data import pad

RIGHT = {
    "masked_mean": whiten.masked_mean, "logit": whiten.logit, "whiten": whiten.whiten,
    "select_reward": reward_selection.select_reward, "exact_kl": kl.exact_kl, "kl_estimate": kl.kl_estimate,
    "kl_penalised_rewards": kl.kl_penalised_rewards, "gae": gae_module.gae, "value_model": gae_module.ValueModel,
    "policy_loss": ppo.policy_loss, "value_loss": ppo.value_loss,
    "bradley_terry_loss": preference_loss.bradley_terry_loss, "safety_label_loss": preference_loss.safety_label_loss,
    "reward_model": reward_model.RewardModel, "pair_scores": preference_loss.pair_scores,
}


def altered(function, change):
    """The function with its result changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


def with_arguments(function, change):
    """The function with its positional arguments changed."""
    return lambda *arguments, **named: function(*change(*arguments), **named)


def kl_rewards(sign=-1.0, everywhere=False, last_column=False, per_token_score=False):
    def f(scores, logprobs, ref_logprobs, mask, beta):
        kl.kl_penalised_rewards(scores, logprobs, ref_logprobs, mask, beta)  # its refusals
        rewards = sign * beta * (logprobs - ref_logprobs)
        rewards = rewards if everywhere else rewards * mask
        at = torch.arange(mask.shape[1])
        last = (mask * at).argmax(1) if not last_column else torch.full((len(mask),), mask.shape[1] - 1)
        return rewards + scores[:, None] * (mask if per_token_score else at == last[:, None])
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


def row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def biased_whiten(v, mask=None, shift_mean=True):
    mask = torch.ones_like(v, dtype=torch.bool) if mask is None else mask
    return whiten.whiten(v, mask, shift_mean) * (mask.sum() / (mask.sum() - 1)) ** 0.5


def naive_bt(chosen, rejected, margin=None, reduction="mean"):
    preference_loss.bradley_terry_loss(chosen, rejected, margin, reduction)
    losses = -torch.log(torch.sigmoid(chosen - rejected - (0.0 if margin is None else margin)))
    return losses if reduction == "none" else getattr(losses, reduction)()


def broadcasting_bt(chosen, rejected, margin=None, reduction="mean"):
    losses = -F.logsigmoid(chosen - rejected - (0.0 if margin is None else margin))
    return losses if reduction == "none" else getattr(losses, reduction)()


class Swapped(reward_model.RewardModel):
    fault = ""

    def raw_scores(self, ids, mask=None):
        hidden = self.llama.hidden(ids, mask)
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.fault == "last column":
            pooled = hidden[:, -1]
        elif self.fault == "count":
            pooled = hidden[torch.arange(len(ids)), mask.sum(1) - 1]
        else:
            pooled = reward_model.pool_last(hidden, mask) if self.pooling == "last" else hidden.mean(1)
        return self.score(pooled).squeeze(-1)


class LastColumn(Swapped):
    fault = "last column"


class CountsFromTheLeft(Swapped):
    fault = "count"


class MeanOverPadding(Swapped):
    pass


class HeadTooSmall(reward_model.RewardModel):
    def __init__(self, llama, pooling="last", keep_lm_head=False, generator=None):
        super().__init__(llama, pooling, keep_lm_head, generator)
        self.score.weight.data /= math.sqrt(llama.config.dim + 1)


class NormalisesInTraining(reward_model.RewardModel):
    def forward(self, ids, mask=None):
        return (self.raw_scores(ids, mask) - self.score_mean) / self.score_std


class NotShifted(gae_module.ValueModel):
    def forward(self, ids, mask=None):
        return self.value(self.llama.hidden(ids, mask)).squeeze(-1)


class ValuesOnPadding(gae_module.ValueModel):
    def forward(self, ids, mask=None):
        return F.pad(self.value(self.llama.hidden(ids, mask)).squeeze(-1)[:, :-1], (1, 0))


class SharesTheBody(gae_module.ValueModel):
    def __init__(self, model):
        super().__init__(model)
        self.llama = model.llama


class StartsFromTheScore(gae_module.ValueModel):
    def __init__(self, model):
        super().__init__(model)
        self.value = copy.deepcopy(model.score)


def no_shift(v, mask=None, shift_mean=True):
    return whiten.whiten(v, mask, not shift_mean)


def unmasked(v, mask=None, shift_mean=True):
    return whiten.whiten(v, None, shift_mean) if mask is None else whiten.whiten(v.nan_to_num(), None, shift_mean)


def gae_backwards(rewards, v, mask, gamma=1.0, lam=0.95):
    advantages, returns = gae_module.gae(rewards.flip(1), v.flip(1), mask.flip(1), gamma, lam)
    return advantages.flip(1), returns.flip(1)


def mean_of_everything(x, mask):
    whiten.masked_mean(x, mask)
    return x.mean()


WRONG = [
    ("masked_mean", mean_of_everything), ("masked_mean", lambda x, m: (x * m).sum() / m.numel()),
    ("masked_mean", lambda x, m: row_means(x.nan_to_num(), m)),
    ("logit", lambda p, eps=1e-6: torch.log(p / (1 - p))), ("logit", altered(whiten.logit, torch.neg)),
    ("logit", lambda p, eps=1e-6: whiten.logit(p, eps) / math.log(10)),
    ("whiten", biased_whiten), ("whiten", no_shift), ("whiten", unmasked),
    ("whiten", lambda v, mask=None, shift_mean=True: (v - v.mean()) / v.std()),
    ("select_reward", lambda s, h, flag, threshold=0.15: reward_selection.select_reward(h, s, flag, threshold)),
    ("select_reward", lambda s, h, flag, threshold=0.15: torch.where(s < threshold, s, h)),
    ("select_reward", lambda s, h, flag, threshold=0.15: torch.where(flag | (s <= threshold), s, h)),
    ("select_reward", lambda s, h, flag, threshold=0.15: torch.where(flag, s, h)),
    ("exact_kl", with_arguments(kl.exact_kl, lambda a, b: (b, a))), ("exact_kl", altered(kl.exact_kl, torch.neg)),
    ("exact_kl", lambda a, b: (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).mean(-1)),
    ("kl_estimate", lambda a, b, kind="k1": kl.kl_estimate(b, a, kind)),
    ("kl_estimate", lambda a, b, kind="k1": kl.kl_estimate(a, b, "k1")),
    ("kl_estimate", lambda a, b, kind="k1": 2 * kl.kl_estimate(a, b, kind) if kind == "k2" else kl.kl_estimate(a, b, kind)),
    ("kl_penalised_rewards", kl_rewards(sign=1.0)), ("kl_penalised_rewards", kl_rewards(everywhere=True)),
    ("kl_penalised_rewards", kl_rewards(last_column=True)), ("kl_penalised_rewards", kl_rewards(per_token_score=True)),
    ("gae", gae_backwards), ("gae", lambda r, v, m, gamma=1.0, lam=0.95: gae_module.gae(r, v, m, lam, gamma)),
    ("gae", lambda *a, **k: gae_module.gae(*a, **k)[::-1]),
    ("gae", lambda r, v, m, gamma=1.0, lam=0.95: gae_module.gae(r, v, m, gamma, 1.0)),
    ("value_model", NotShifted), ("value_model", ValuesOnPadding), ("value_model", SharesTheBody),
    ("value_model", StartsFromTheScore),
    ("policy_loss", clipped(minimum=torch.maximum)), ("policy_loss", clipped(mean=row_means)),
    ("policy_loss", clipped(sign=1.0)), ("policy_loss", clipped(both=False)),
    ("value_loss", values(half=1.0)), ("value_loss", values(pick=torch.minimum)), ("value_loss", values(mean=row_means)),
    ("bradley_terry_loss", naive_bt), ("bradley_terry_loss", broadcasting_bt),
    ("bradley_terry_loss", lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(r, c, m, reduction)),
    ("bradley_terry_loss", lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(c, r, None, reduction)),
    ("safety_label_loss", lambda s, y, reduction="mean": preference_loss.safety_label_loss(-s, y, reduction)),
    ("safety_label_loss", lambda s, y, reduction="mean": preference_loss.safety_label_loss(s, y, "none")),
    ("safety_label_loss", lambda s, y, reduction="mean": preference_loss.safety_label_loss(torch.sigmoid(s), y, reduction)),
    ("reward_model", LastColumn), ("reward_model", CountsFromTheLeft), ("reward_model", MeanOverPadding),
    ("reward_model", HeadTooSmall), ("reward_model", NormalisesInTraining),
]


def pair_scores_of(texts_of, masked=True, forwards=1):
    """An implementation of `pair_scores` with faults: texts read twice, without mask, or in two forwards."""
    def f(model, pairs):
        texts = texts_of(pairs)
        ids, mask = pad(texts)
        call = (ids, mask) if masked else (ids,)
        scores = [model(*call) for _ in range(forwards)][0]
        place = [texts.index(text) for pair in pairs for text in (pair.chosen, pair.rejected)]
        return scores[place[0::2]], scores[place[1::2]]
    return f


def all_texts(pairs):
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def distinct_texts(pairs):
    return [list(text) for text in dict.fromkeys(map(tuple, all_texts(pairs)))]


WRONG += [("pair_scores", pair_scores_of(all_texts)), ("pair_scores", pair_scores_of(distinct_texts, masked=False)),
          ("pair_scores", pair_scores_of(distinct_texts, forwards=2)),
          ("pair_scores", altered(preference_loss.pair_scores, lambda result: result[::-1])),
          ("pair_scores", altered(preference_loss.pair_scores, lambda result: [x.detach() + 0 * x for x in result]))]


def test_there_is_a_case_for_every_check():
    public = {name for name, value in vars(checks).items() if hasattr(value, "__wrapped__") and not name.startswith("_")}
    assert public == set(RIGHT)
    assert all(sum(name == of for of, _ in WRONG) >= 3 for name in RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_the_package_passes(name, capsys):
    getattr(checks, name)(RIGHT[name])
    line = capsys.readouterr().out
    assert line.startswith(f"{name}: ") and line.endswith(" checks passed\n") and line.count("\n") == 1


@pytest.mark.parametrize("name, wrong", WRONG, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG)])
def test_mistakes_are_caught(name, wrong):
    with pytest.raises(AssertionError, match=f"{name}: .*expected .*got .*Hint: "):
        getattr(checks, name)(wrong)
