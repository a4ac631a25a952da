"""Every check passes the package and fails at least three plausible mistakes."""

import contextlib
import copy
import dataclasses
import math
from unittest import mock

import pytest
import sentencepiece
import torch
import torch.nn.functional as F

from minillama import (
    audit,
    best_of_n,
    data,
    exact,
    kl,
    lm,
    model,
    optim,
    ppo,
    preference_loss,
    reward_model,
    reward_selection,
    tokenizer,
    whiten,
    world,
)
from minillama import gae as gae_module
from minillama import generate as generation
from minillama.course import checks
from minillama.data import pad

RIGHT = {
    "train_tokenizer": tokenizer.train_tokenizer,
    "encode_prompt": tokenizer.encode_prompt,
    "encode_response": tokenizer.encode_response,
    "decode_response": tokenizer.decode_response,
    "rms_norm": model.RMSNorm,
    "rope_cos_sin": model.rope_cos_sin,
    "rotate": model.rotate,
    "feed_forward": model.FeedForward,
    "token_positions": model.token_positions,
    "attention_bias": model.attention_bias,
    "attend": model.attend,
    "kv_cache": model.KVCache,
    "attention": model.Attention,
    "block": model.Block,
    "llama": model.Llama,
    "sample": generation.sample,
    "top_p_filter": generation.top_p_filter,
    "pick": generation.pick,
    "generate": generation.generate,
    "token_logprobs": lm.token_logprobs,
    "lm_loss": lm.lm_loss,
    "warmup_cosine": optim.warmup_cosine,
    "stepper": optim.Stepper,
    "dialogue_example": data.dialogue_example,
    "pad_examples": data.pad_examples,
    "sigmoid": world.sigmoid,
    "annotator": world.Annotator,
    "bayes_ceiling": world.bayes_ceiling,
    "expected_accuracy": world.expected_accuracy,
    "pair_example": data.pair_example,
    "outcome_chances": exact.outcome_chances,
    "margin_slope": exact.margin_slope,
    "margin_minimiser": exact.margin_minimiser,
    "objective": exact.objective,
    "optimal_policy": exact.optimal_policy,
    "response_logprobs": lm.response_logprobs,
    "ppo_step": ppo.ppo_step,
    "best_of_n_policy": best_of_n.best_of_n_policy,
    "best_of_n_mean": best_of_n.best_of_n_mean,
    "masked_mean": whiten.masked_mean,
    "logit": whiten.logit,
    "whiten": whiten.whiten,
    "select_reward": reward_selection.select_reward,
    "exact_kl": kl.exact_kl,
    "kl_estimate": kl.kl_estimate,
    "kl_penalised_rewards": kl.kl_penalised_rewards,
    "gae": gae_module.gae,
    "value_model": reward_model.ValueModel,
    "exact_values": exact.exact_values,
    "policy_loss": ppo.policy_loss,
    "value_loss": ppo.value_loss,
    "bradley_terry_loss": preference_loss.bradley_terry_loss,
    "safety_label_loss": preference_loss.safety_label_loss,
    "length_only_accuracy": audit.length_only_accuracy,
    "brier_score": audit.brier_score,
    "brier_floor": audit.brier_floor,
    "length_balanced": audit.length_balanced,
    "last_token": reward_model.last_token,
    "pool_mean": reward_model.pool_mean,
    "reward_model": reward_model.RewardModel,
    "pair_scores": preference_loss.pair_scores,
    "centring_loss": preference_loss.centring_loss,
    "chosen_lm_loss": preference_loss.chosen_lm_loss,
    "score_normalisation": reward_model.score_normalisation,
}


def altered(function, change):
    """The function with its result changed."""
    return lambda *arguments, **named: change(function(*arguments, **named))


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


def reduced(losses, reduction):
    return losses if reduction == "none" else getattr(losses, reduction)()


def row_means(x, mask):
    return ((x * mask).sum(1) / mask.sum(1)).mean()


def biased_whiten(v, mask=None, shift_mean=True):
    mask = torch.ones_like(v, dtype=torch.bool) if mask is None else mask
    return whiten.whiten(v, mask, shift_mean) * (mask.sum() / (mask.sum() - 1)) ** 0.5


def naive_bt(chosen, rejected, margin=None, reduction="mean"):
    preference_loss.bradley_terry_loss(chosen, rejected, margin, reduction)
    losses = -torch.log(
        torch.sigmoid(chosen - rejected - (0.0 if margin is None else margin))
    )
    return reduced(losses, reduction)


def broadcasting_bt(chosen, rejected, margin=None, reduction="mean"):
    losses = -F.logsigmoid(chosen - rejected - (0.0 if margin is None else margin))
    return reduced(losses, reduction)


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
            pooled = (
                hidden[reward_model.last_token(mask)]
                if self.pooling == "last"
                else hidden.mean(1)
            )
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


def mean_of_everything(x, mask):
    whiten.masked_mean(x, mask)
    return x.mean()


WRONG = [
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
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: reward_selection.select_reward(
            h, s, flag, threshold
        ),
    ),
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: torch.where(s < threshold, s, h),
    ),
    (
        "select_reward",
        lambda s, h, flag, threshold=0.15: torch.where(flag | (s <= threshold), s, h),
    ),
    ("select_reward", lambda s, h, flag, threshold=0.15: torch.where(flag, s, h)),
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
    ("policy_loss", clipped(minimum=torch.maximum)),
    ("policy_loss", clipped(mean=row_means)),
    ("policy_loss", clipped(sign=1.0)),
    ("policy_loss", clipped(both=False)),
    ("value_loss", values(half=1.0)),
    ("value_loss", values(pick=torch.minimum)),
    ("value_loss", values(mean=row_means)),
    ("bradley_terry_loss", naive_bt),
    ("bradley_terry_loss", broadcasting_bt),
    (
        "bradley_terry_loss",
        lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(
            r, c, m, reduction
        ),
    ),
    (
        "bradley_terry_loss",
        lambda c, r, m=None, reduction="mean": preference_loss.bradley_terry_loss(
            c, r, None, reduction
        ),
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(
            -s, y, reduction
        ),
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(s, y, "none"),
    ),
    (
        "safety_label_loss",
        lambda s, y, reduction="mean": preference_loss.safety_label_loss(
            torch.sigmoid(s), y, reduction
        ),
    ),
    ("reward_model", LastColumn),
    ("reward_model", CountsFromTheLeft),
    ("reward_model", MeanOverPadding),
    ("reward_model", HeadTooSmall),
    ("reward_model", NormalisesInTraining),
]


def pair_scores_of(texts_of, masked=True, forwards=1):
    """`pair_scores` with faults: texts read twice, no mask, two forwards."""

    def f(model, pairs):
        texts = texts_of(pairs)
        ids, mask = pad(texts)
        call = (ids, mask) if masked else (ids,)
        scores = [model(*call) for _ in range(forwards)][0]
        place = [
            texts.index(text) for pair in pairs for text in (pair.chosen, pair.rejected)
        ]
        return scores[place[0::2]], scores[place[1::2]]

    return f


def all_texts(pairs):
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def distinct_texts(pairs):
    return [list(text) for text in dict.fromkeys(map(tuple, all_texts(pairs)))]


WRONG += [
    ("pair_scores", pair_scores_of(all_texts)),
    ("pair_scores", pair_scores_of(distinct_texts, masked=False)),
    ("pair_scores", pair_scores_of(distinct_texts, forwards=2)),
    ("pair_scores", altered(preference_loss.pair_scores, lambda result: result[::-1])),
    (
        "pair_scores",
        altered(
            preference_loss.pair_scores,
            lambda result: [x.detach() + 0 * x for x in result],
        ),
    ),
]


# ------------------------------------------ mistakes of Part I: tokens, model, language


def piece_tokenizer(**changes):
    """`train_tokenizer` with other settings of SentencePiece."""

    def f(texts, vocab_size=1024):
        tokenizer.train_tokenizer(["ab"], vocab_size)  # its refusals
        train = sentencepiece.SentencePieceTrainer.train
        sentencepiece.SentencePieceTrainer.train = lambda **arguments: train(
            **{**arguments, **changes}
        )
        try:
            return tokenizer.train_tokenizer(texts, vocab_size)
        finally:
            sentencepiece.SentencePieceTrainer.train = train

    return f


def norm_class(forward):
    """`RMSNorm` with another forward(self, x)."""
    return type("Norm", (model.RMSNorm,), {"forward": forward})


def rms(x, eps=0.0, dim=-1):
    return (x.square().mean(dim, keepdim=True) + eps).sqrt()


def interleaved(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def overwriting(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    a = a * cos - b * sin
    return torch.cat((a, b * cos + a * sin), dim=-1)


class ReLU(model.FeedForward):
    def forward(self, x):
        return self.down_proj(F.relu(self.gate_proj(x)) * self.up_proj(x))


class GateOnTheOther(model.FeedForward):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))


class WithBias(model.FeedForward):
    def __init__(self, config):
        super().__init__(config)
        self.up_proj = torch.nn.Linear(config.dim, config.ffn_dim)


def bias_where(allow):
    """`attention_bias` by allow(key_mask (B, 1, S), query (T, 1), key (S,))."""

    def f(key_mask, n_queries):
        query = torch.arange(key_mask.shape[1] - n_queries, key_mask.shape[1])[:, None]
        allowed = allow(key_mask[:, None], query, torch.arange(key_mask.shape[1]))
        return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)[
            :, None, None
        ]

    return f


def attends(scale=True, interleave=False, bias_after=False):
    """`attend`, written with repeated keys, with faults."""

    def f(queries, keys, values, bias):
        B, T, H, E = queries.shape
        G = H // keys.shape[1]
        keys, values = (
            (x.repeat(1, G, 1, 1) if interleave else x.repeat_interleave(G, 1))
            for x in (keys, values)
        )
        scores = (
            queries.transpose(1, 2)
            @ keys.transpose(-1, -2)
            * (E**-0.5 if scale else 1.0)
        )
        weights = (
            scores.softmax(-1) * (bias[:, 0] == 0)
            if bias_after
            else (scores + bias[:, 0]).softmax(-1)
        )
        return (weights @ values).transpose(1, 2).reshape(B, T, H * E)

    return f


class CountsPadding(model.KVCache):
    def extend(self, mask):
        return super().extend(torch.ones_like(mask))


class OneLayerForAll(model.KVCache):
    def store(self, layer, keys, values):
        return super().store(0, keys, values)


class WritesAtTheStart(model.KVCache):
    def store(self, layer, keys, values):
        super().store(layer, keys, values)
        self.keys[layer, :, :, : keys.shape[2]] = keys
        return self.keys[layer, :, :, : self.length], self.values[
            layer, :, :, : self.length
        ]


class SeesTheFuture(model.Attention):
    def forward(self, x, cos, sin, bias, cache=None):
        return super().forward(x, cos, sin, 0 * bias.nan_to_num(), cache)


class TurnsOnlyQueries(model.Attention):
    def forward(self, x, cos, sin, bias, cache=None):
        B, T, _ = x.shape
        queries = model.rotate(self.q_proj(x).view(B, T, self.n_heads, -1), cos, sin)
        keys, values = (
            p(x).view(B, T, self.n_kv_heads, -1).transpose(1, 2)
            for p in (self.k_proj, self.v_proj)
        )
        return self.o_proj(model.attend(queries, keys, values, bias))


class TurnsNothing(model.Attention):
    def forward(self, x, cos, sin, bias, cache=None):
        return super().forward(
            x, torch.ones_like(cos), torch.zeros_like(sin), bias, cache
        )


class NoOutputProjection(TurnsOnlyQueries):
    def forward(self, x, cos, sin, bias, cache=None):
        return super().forward(x, cos, sin, bias) + x


def block_class(forward):
    """`Block` with another forward(self, x, attend), attend(x) being its attention."""

    def call(self, x, cos, sin, bias, cache=None):
        return forward(self, x, lambda y: self.self_attn(y, cos, sin, bias, cache))

    return type("Wrong", (model.Block,), {"forward": call})


class BigWeights(model.Llama):
    def init_weights(self, generator=None):
        super().init_weights(generator)
        self.lm_head.weight.data *= 50


class IgnoresTheMask(model.Llama):
    def hidden(self, ids, mask=None, cache=None):
        return super().hidden(ids, None, cache)


class OneInitialStd(model.Llama):
    def init_weights(self, generator=None):
        super().init_weights(generator)
        for layer in self.layers:
            layer.mlp.down_proj.weight.data *= math.sqrt(2 * self.config.n_layers)


class DefaultGenerator(model.Llama):
    def __init__(self, config, generator=None):
        super().__init__(config)


def sample_reaching(probs, uniforms):
    return (probs.cumsum(-1) >= uniforms[:, None]).float().argmax(-1)


def kept_top_p(before_rule):
    """`top_p_filter` with another rule on probabilities in falling order."""

    def f(probs, top_p):
        ordered, order = probs.sort(dim=-1, descending=True)
        return torch.zeros_like(probs).scatter(
            -1, order, ordered.where(before_rule(ordered, top_p), 0.0)
        )

    return f


def restricted_logprobs(logits, uniforms, temperature, top_p):
    probs = torch.softmax(logits / (temperature or 1.0), -1)
    kept = generation.top_p_filter(probs, top_p)
    tokens = kept.argmax(-1) if temperature == 0 else generation.sample(kept, uniforms)
    return tokens, (kept / kept.sum(-1, keepdim=True)).gather(-1, tokens[:, None])[
        :, 0
    ].log()


def generate_with(change):
    """`generate` whose rollout is changed in place."""

    def f(*arguments, **named):
        rollout = generation.generate(*arguments, **named)
        change(rollout)
        return rollout

    return f


def shift_logprobs(rollout):
    rollout.logprobs = rollout.logprobs.roll(1, 1)


def without_end(rollout):
    rollout.response_mask = rollout.response_mask & (
        rollout.response_mask.cumsum(1) < rollout.response_mask.sum(1)[:, None]
    )


def loss_rule(mean):
    def f(logits, ids, mask):
        lm.lm_loss(logits, ids, mask)
        return -mean(lm.token_logprobs(logits, ids), mask)

    return f


class NeverRestores(optim.Stepper):
    def require_finite(self, name, tensor, batch_ids):
        if not torch.isfinite(tensor).all():
            raise optim.TrainingDiverged(
                f"step {self.steps}: {list(batch_ids)}", self.model
            )


class NoSchedule(optim.Stepper):
    def __init__(self, model, lr, schedule, **others):
        super().__init__(model, lr, lambda step: 1.0, **others)


class ClipsFirst(optim.Stepper):
    def step(self, loss, batch_ids):
        return super().step(loss, batch_ids).clamp(max=self.max_norm)


class LetsNaNPass(optim.Stepper):
    def step(self, loss, batch_ids):
        with contextlib.suppress(optim.TrainingDiverged):
            return super().step(loss, batch_ids)


WRONG += [
    ("train_tokenizer", piece_tokenizer(normalization_rule_name="nmt_nfkc")),
    (
        "train_tokenizer",
        piece_tokenizer(add_dummy_prefix=True, remove_extra_whitespaces=True),
    ),
    ("train_tokenizer", piece_tokenizer(byte_fallback=False)),
    ("train_tokenizer", piece_tokenizer(pad_id=-1)),
    ("encode_prompt", lambda t, x: [*tokenizer.encode_prompt(t, x), 2]),
    ("encode_prompt", lambda t, x: tokenizer.encode_prompt(t, x)[1:]),
    ("encode_prompt", lambda t, x: [1, 4, *t.encode(x), 5]),
    (
        "encode_prompt",
        lambda t, x: [
            1,
            4,
            *t.encode(" " + x.replace(" [/INST]", "")),
            *[5] * (1 + x.count("[/INST]")),
        ],
    ),
    ("encode_response", lambda t, x: t.encode(" " + x)),
    ("encode_response", lambda t, x: [*t.encode(x), 2]),
    ("encode_response", lambda t, x: [1, *t.encode(" " + x), 2]),
    ("decode_response", lambda t, ids: t.decode(ids)),
    ("decode_response", lambda t, ids: t.decode(ids).strip()),
    ("decode_response", lambda t, ids: t.decode(list(ids)[:-1]).removeprefix(" ")),
    (
        "rms_norm",
        norm_class(
            lambda self, x: (
                (x - x.mean(-1, keepdim=True)) / rms(x, self.eps) * self.weight
            )
        ),
    ),
    ("rms_norm", norm_class(lambda self, x: x / (rms(x) + self.eps) * self.weight)),
    ("rms_norm", norm_class(lambda self, x: x / rms(x, self.eps) * self.weight)),
    ("rms_norm", norm_class(lambda self, x: x / rms(x, self.eps, dim=0) * self.weight)),
    (
        "rms_norm",
        norm_class(lambda self, x: (x.float() / rms(x.float(), self.eps)).to(x.dtype)),
    ),
    ("rope_cos_sin", lambda p, e, theta=1e4: model.rope_cos_sin(p + 1, e, theta)),
    ("rope_cos_sin", lambda p, e, theta=1e4: model.rope_cos_sin(p, e)),
    ("rope_cos_sin", lambda p, e, theta=1e4: model.rope_cos_sin(p, e, theta)[::-1]),
    (
        "rope_cos_sin",
        lambda p, e, theta=1e4: model.rope_cos_sin(p, e, math.sqrt(theta)),
    ),
    ("rotate", interleaved),
    ("rotate", overwriting),
    ("rotate", lambda x, cos, sin: model.rotate(x, cos, -sin)),
    ("feed_forward", ReLU),
    ("feed_forward", GateOnTheOther),
    ("feed_forward", WithBias),
    ("token_positions", lambda m: m.cumsum(-1)),
    ("token_positions", lambda m: m.cumsum(-1) - 1),
    ("token_positions", lambda m: torch.arange(m.shape[1]).expand(m.shape)),
    ("attention_bias", bias_where(lambda mask, query, key: mask & (key <= query))),
    (
        "attention_bias",
        bias_where(
            lambda mask, query, key: (mask & (key < query)) | (key == query) & mask
        ),
    ),
    ("attention_bias", bias_where(lambda mask, query, key: mask | (key == query))),
    (
        "attention_bias",
        bias_where(lambda mask, query, key: (key <= query) | (mask & False)),
    ),
    (
        "attention_bias",
        altered(model.attention_bias, lambda bias: bias.clamp(min=-1.0)),
    ),
    ("attend", attends(scale=False)),
    ("attend", attends(interleave=True)),
    ("attend", attends(bias_after=True)),
    ("attend", lambda q, k, v, bias: model.attend(q, v, k, bias)),
    ("kv_cache", CountsPadding),
    ("kv_cache", OneLayerForAll),
    ("kv_cache", WritesAtTheStart),
    ("attention", SeesTheFuture),
    ("attention", TurnsOnlyQueries),
    ("attention", TurnsNothing),
    ("attention", NoOutputProjection),
    ("block", block_class(lambda self, x, at: (y := x + at(x)) + self.mlp(y))),
    (
        "block",
        block_class(
            lambda self, x, at: (
                (y := at(self.input_layernorm(x)))
                + self.mlp(self.post_attention_layernorm(y))
            )
        ),
    ),
    (
        "block",
        block_class(
            lambda self, x, at: (
                x
                + at(self.input_layernorm(x))
                + self.mlp(self.post_attention_layernorm(x))
            )
        ),
    ),
    (
        "block",
        block_class(
            lambda self, x, at: self.post_attention_layernorm(
                x + at(self.input_layernorm(x))
            )
        ),
    ),
    ("llama", BigWeights),
    ("llama", IgnoresTheMask),
    ("llama", OneInitialStd),
    ("llama", DefaultGenerator),
    ("sample", sample_reaching),
    ("sample", lambda p, u: p.argmax(-1)),
    ("sample", lambda p, u: generation.sample(p, (u + 0.5) % 1)),
    ("sample", lambda p, u: generation.sample(p, u / 2)),
    ("top_p_filter", kept_top_p(lambda ordered, top_p: ordered.cumsum(-1) <= top_p)),
    ("top_p_filter", lambda p, top_p: torch.where(p >= 1 - top_p, p, 0.0)),
    (
        "top_p_filter",
        altered(generation.top_p_filter, lambda p: p / p.sum(-1, keepdim=True)),
    ),
    ("top_p_filter", lambda p, top_p: p.sort(descending=True)[0]),
    ("pick", restricted_logprobs),
    ("pick", lambda x, u, t, p: generation.pick(x, u, 1.0, p)),
    ("pick", lambda x, u, t, p: generation.pick(x * t if t else x, u, float(t > 0), p)),
    ("generate", generate_with(shift_logprobs)),
    ("generate", generate_with(without_end)),
    (
        "generate",
        lambda m, p, n, temperature=1.0, generator=None, eos_id=2: generation.generate(
            m, p, n, temperature, eos_id=eos_id
        ),
    ),
    (
        "generate",
        lambda m, p, n, temperature=1.0, generator=None, eos_id=2: generation.generate(
            m,
            [[3] * (max(map(len, p)) - len(x)) + x for x in p],
            n,
            temperature,
            generator=generator,
            eos_id=eos_id,
        ),
    ),
    (
        "token_logprobs",
        lambda logits, ids: logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0],
    ),
    (
        "token_logprobs",
        lambda logits, ids: F.pad(
            logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0], (1, 0)
        ),
    ),
    ("token_logprobs", altered(lm.token_logprobs, torch.neg)),
    ("token_logprobs", altered(lm.token_logprobs, lambda x: x.roll(-1, 1))),
    ("lm_loss", loss_rule(row_means)),
    ("lm_loss", loss_rule(mean_of_everything)),
    ("lm_loss", loss_rule(lambda x, mask: (x * mask).sum())),
    ("lm_loss", lambda *a: -lm.lm_loss(*a)),
    (
        "warmup_cosine",
        lambda step, total, warmup: optim.warmup_cosine(step + 1, total, warmup),
    ),
    (
        "warmup_cosine",
        lambda step, total, warmup: (
            0.1 + 0.9 * optim.warmup_cosine(step, total, warmup)
        ),
    ),
    (
        "warmup_cosine",
        lambda step, total, warmup: (
            optim.warmup_cosine(step, total, warmup)
            if step < warmup
            else max(0.0, 1 - (step - warmup) / (total - warmup))
        ),
    ),
    ("warmup_cosine", lambda step, total, warmup: optim.warmup_cosine(step, total, 0)),
    ("stepper", NeverRestores),
    ("stepper", NoSchedule),
    ("stepper", ClipsFirst),
    ("stepper", LetsNaNPass),
    (
        "dialogue_example",
        lambda t, p, r, only: data.dialogue_example(t, p, r, not only),
    ),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            (ids := tokenizer.encode_prompt(t, p)) + t.encode(" " + r),
            len(ids) if only else 1,
        ),
    ),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            (ids := tokenizer.encode_prompt(t, p)) + tokenizer.encode_response(t, r),
            len(ids) - 1 if only else 1,
        ),
    ),
    (
        "pad_examples",
        lambda examples: (
            data.pad_examples(examples)[0],
            *data.pad_examples(examples)[:0:-1],
        ),
    ),
    ("pad_examples", altered(data.pad_examples, lambda x: (x[0], x[1], x[1]))),
    (
        "pad_examples",
        altered(data.pad_examples, lambda x: (x[0], x[1], x[2].roll(1, 1))),
    ),
]


# ---------------------------------------------------- mistakes of lesson 07: annotators


def annotator_class(**methods):
    """`world.Annotator` with other methods."""
    return type("Other", (world.Annotator,), methods)


def without_noise(self, rng, prompt, a, b):
    certain = annotator_class()(self.gold, 1e-3, thresholds=self.thresholds)
    return certain.compare(rng, prompt, a, b)


def strength_of_utilities(self, rng, prompt, a, b):
    preference = world.Annotator.compare(self, rng, prompt, a, b)
    size = abs(self.utility(prompt, a) - self.utility(prompt, b)) / self.temperature
    return dataclasses.replace(
        preference, strength=sum(size >= threshold for threshold in self.thresholds)
    )


def ceiling_by(share):
    """`bayes_ceiling` with another accuracy share(p) of a pair."""

    def f(annotator, preferences):
        p = [annotator.prefers(x.prompt, x.chosen, x.rejected) for x in preferences]
        return sum(map(share, p)) / len(p), world.bayes_ceiling(annotator, preferences)[
            1
        ]

    return f


def unbalanced(keep):
    """`length_balanced` with another rule keep(longer_by)."""

    def f(groups, length, rng):
        left = [
            [x for x in group if keep(length(x.chosen) - length(x.rejected))]
            for group in groups
        ]
        return [group for group in left if group]

    return f


WRONG += [  # lesson 12
    ("length_only_accuracy", lambda by, exact: audit.agreement(by, exact)),
    (
        "length_only_accuracy",
        lambda by, exact: exact[by > 0].mean().item() if (by > 0).any() else 0.0,
    ),
    (
        "length_only_accuracy",
        lambda by, exact: audit.length_only_accuracy(by + 0.1, exact),
    ),
    ("brier_score", lambda q, p: (q - p).square().mean().item()),
    ("brier_score", lambda q, p: (1 - q).square().mean().item()),
    ("brier_score", lambda q, p: (q - (p > 0.5).float()).square().mean().item()),
    ("brier_floor", lambda p: torch.minimum(p * p, (1 - p) ** 2).mean().item()),
    ("brier_floor", lambda p: torch.minimum(p, 1 - p).mean().item()),
    ("brier_floor", lambda p: (p * (1 - p)).sum().item()),
    ("length_balanced", unbalanced(lambda by: True)),
    ("length_balanced", unbalanced(lambda by: abs(by) < 2)),
    ("length_balanced", unbalanced(lambda by: by == 0)),
    (
        "length_balanced",
        lambda groups, length, rng: [
            audit.length_balanced([group], length, rng)[0]
            if audit.length_balanced([group], length, rng)
            else []
            for group in groups
        ],
    ),
]

WRONG += [  # lesson 08
    (
        "last_token",
        lambda mask: torch.arange(mask.shape[1]).expand_as(mask) == mask.shape[1] - 1,
    ),
    (
        "last_token",
        lambda mask: torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1,
    ),
    ("last_token", lambda mask: mask),
    ("last_token", lambda mask: reward_model.last_token(mask).float()),
    ("pool_mean", lambda x, mask: x.mean(1)),
    (
        "pool_mean",
        lambda x, mask: (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True),
    ),
    (
        "pool_mean",
        lambda x, mask: reward_model.pool_mean(x, mask) * mask.sum(1, keepdim=True),
    ),
    ("pool_mean", lambda x, mask: x.masked_fill(~mask[:, :, None], 0.0).mean(1)),
]

WRONG += [
    ("sigmoid", lambda x: 1 - world.sigmoid(-x)),
    ("sigmoid", lambda x: world.sigmoid(-x)),
    ("sigmoid", lambda x: 0.5 + 0.5 * math.tanh(x)),
    (
        "annotator",
        annotator_class(
            prefers=lambda self, prompt, a, b: world.Annotator.prefers(
                self, prompt, b, a
            )
        ),
    ),
    (
        "annotator",
        annotator_class(
            prefers=lambda self, prompt, a, b: world.sigmoid(
                (self.utility(prompt, a) - self.utility(prompt, b)) * self.temperature
            )
        ),
    ),
    (
        "annotator",
        annotator_class(
            utility=lambda self, prompt, text: (
                self.gold(prompt, text) + self.length_bias * len(text)
            )
        ),
    ),
    ("annotator", annotator_class(compare=without_noise)),
    ("annotator", annotator_class(compare=strength_of_utilities)),
    ("bayes_ceiling", ceiling_by(lambda p: p)),
    ("bayes_ceiling", ceiling_by(lambda p: p * p + (1 - p) * (1 - p))),
    (
        "bayes_ceiling",
        altered(world.bayes_ceiling, lambda x: (x[0], x[1] / math.log(2))),
    ),
    ("bayes_ceiling", altered(world.bayes_ceiling, lambda x: (x[0], -math.log(x[0])))),
    (
        "expected_accuracy",
        lambda annotator, pairs, shares: sum(map(float, shares)) / len(pairs),
    ),
    (
        "expected_accuracy",
        lambda annotator, pairs, shares: world.expected_accuracy(
            annotator, pairs, [not x for x in shares]
        ),
    ),
    (
        "expected_accuracy",
        lambda a, pairs, shares: world.expected_accuracy(
            a, pairs, [x > 0.5 for x in shares]
        ),
    ),
]


# ------------------------------------------------------- mistakes of lesson 10: margins


def replaced(**fields):
    """`pair_example` with some fields of its result computed from it."""
    return altered(
        data.pair_example,
        lambda pair: dataclasses.replace(
            pair, **{k: f(pair) for k, f in fields.items()}
        ),
    )


def unrefused_minimiser(start):
    """A search from a fixed interval, which refuses what has no minimum."""

    def f(wins, losses, margins):
        exact.margin_minimiser(wins, losses, margins)
        low, high = torch.full(
            (2, len(wins)), start, dtype=torch.float64
        ) * torch.tensor([[-1.0], [1.0]])
        for _ in range(60):
            falls = exact.margin_slope((low + high) / 2, wins, losses, margins) < 0
            low, high = (
                torch.where(falls, (low + high) / 2, low),
                torch.where(falls, high, (low + high) / 2),
            )
        return low

    return f


def log_odds(wins, losses, margins):
    exact.margin_minimiser(wins, losses, margins)
    return (wins.sum(1) / losses.sum(1)).log()


WRONG += [
    (
        "pair_example",
        lambda t, x, margins=(0.0,) * 4: data.pair_example(t, x, margins[::-1]),
    ),
    ("pair_example", lambda t, x, margins=(0.0,) * 4: data.pair_example(t, x)),
    (
        "pair_example",
        lambda t, x, margins=(0.0, 1.0, 2.0, 3.0): data.pair_example(t, x, margins),
    ),
    (
        "pair_example",
        replaced(chosen=lambda x: x.rejected, rejected=lambda x: x.chosen),
    ),
    ("pair_example", replaced(response_start=lambda x: 1)),
    ("pair_example", replaced(rejected_is_safe=lambda x: x.chosen_is_safe)),
    (
        "pair_example",
        replaced(
            chosen=lambda x: x.chosen[x.response_start :],
            rejected=lambda x: x.rejected[x.response_start :],
        ),
    ),
    ("outcome_chances", lambda d, thresholds: exact.outcome_chances(-d, thresholds)),
    ("outcome_chances", altered(exact.outcome_chances, lambda x: (x[0] + x[1], x[1]))),
    (
        "outcome_chances",
        altered(
            exact.outcome_chances,
            lambda x: (x[0] / x[0].sum(1, True), x[1] / x[1].sum(1, True)),
        ),
    ),
    (
        "outcome_chances",
        lambda d, thresholds: [
            torch.nn.functional.one_hot(
                (s * d[:, None] >= torch.tensor(thresholds)).sum(1), len(thresholds) + 1
            )
            * (s * d > 0)[:, None]
            for s in (1, -1)
        ],
    ),
    ("margin_slope", altered(exact.margin_slope, torch.neg)),
    ("margin_slope", altered(exact.margin_slope, lambda x: x.sum())),
    (
        "margin_slope",
        lambda d, wins, losses, m: exact.margin_slope(d, wins, losses, -m),
    ),
    (
        "margin_slope",
        lambda d, wins, losses, m: (
            exact.margin_slope(d, wins, 0 * losses, m)
            + exact.margin_slope(d, 0 * wins, losses, 0 * m)
        ),
    ),
    (
        "margin_slope",
        lambda d, wins, losses, m: (
            exact.margin_slope(d, wins, losses, m) / wins.shape[1]
        ),
    ),
    ("margin_minimiser", unrefused_minimiser(10.0)),
    ("margin_minimiser", log_odds),
    ("margin_minimiser", altered(exact.margin_minimiser, torch.neg)),
    (
        "margin_minimiser",
        lambda wins, losses, m: (
            log_odds(wins, losses, m) + log_odds(wins, losses, m).sign() * m.mean()
        ),
    ),
    (
        "margin_minimiser",
        lambda wins, losses, m: exact.margin_minimiser(wins + 1e-9, losses + 1e-9, m),
    ),
]


# ----------------------------------------------- mistakes of lesson 19: one step of PPO


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


WRONG += [
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
]


# ---------------------------- mistakes of lessons 18 and 20: the optimum, the best of n


def best_of_n_mean_with(choose):
    """choose(scores, gold, n), which refuses what `best_of_n_mean` refuses."""

    def f(scores, gold, n):
        best_of_n.best_of_n_mean(scores, gold, n)
        return choose(scores, gold, n)

    return f


WRONG += [
    (
        "objective",
        lambda logp, ref, r, beta: (
            2 * exact.objective(logp, ref, r, 0.0) - exact.objective(logp, ref, r, beta)
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


# ----------------- mistakes of lesson 11: a model that still writes, scores with a zero


def centring_by(square):
    """`centring_loss` with another loss square(chosen, rejected) of a pair."""

    def f(chosen, rejected, reduction="mean"):
        preference_loss.centring_loss(chosen, rejected)  # its refusals
        losses = square(chosen, rejected)
        return reduced(losses, reduction)

    return f


def squared_mean(chosen, rejected, reduction="mean"):
    if reduction == "mean":
        return (chosen + rejected).mean().square()
    return preference_loss.centring_loss(chosen, rejected, reduction)


def speaking(texts_of, shift=1, mean=None, start=None):
    """`chosen_lm_loss` with other texts, another shift, mean or start of the loss."""

    def f(reward_model, pairs):
        preference_loss.chosen_lm_loss(reward_model, pairs)  # its refusals
        examples = [
            data.Example(text, begin if start is None else start)
            for text, begin in texts_of(pairs)
        ]
        ids, mask, loss_mask = data.pad_examples(examples)
        logits = reward_model.llama(ids, mask)
        if shift == 0:
            return F.cross_entropy(logits[loss_mask], ids[loss_mask])
        if shift == 2:  # shifted by hand, and once more inside
            return lm.lm_loss(
                logits[:, :-1],
                ids[:, 1:],
                loss_mask[:, 1:] & (torch.arange(1, ids.shape[1]) > 1),
            )
        return -(mean or whiten.masked_mean)(lm.token_logprobs(logits, ids), loss_mask)

    return f


def all_chosen(pairs):
    return [(pair.chosen, pair.response_start) for pair in pairs]


def distinct_chosen(pairs):
    return [
        (list(text), start)
        for text, start in dict.fromkeys(
            (tuple(p.chosen), p.response_start) for p in pairs
        )
    ]


def distinct_rejected(pairs):
    return [
        (list(text), start)
        for text, start in dict.fromkeys(
            (tuple(p.rejected), p.response_start) for p in pairs
        )
    ]


def without_gradient(model, pairs):
    return preference_loss.chosen_lm_loss(model, pairs).detach().requires_grad_()


def normalising(std=lambda x: x.std(), mean=lambda x: x.mean(), checked=True):
    """`score_normalisation` with another std or mean, or without its refusals."""

    def f(scores, centre_only=False):
        if checked:
            reward_model.score_normalisation(scores, centre_only)
        scores = scores.double()
        return mean(scores).item(), 1.0 if centre_only else std(scores).item()

    return f


WRONG += [
    ("centring_loss", centring_by(lambda c, r: (c - r).square())),
    ("centring_loss", centring_by(lambda c, r: (c + r).abs())),
    ("centring_loss", centring_by(lambda c, r: c.square() + r.square())),
    ("centring_loss", centring_by(lambda c, r: ((c + r) / 2).square())),
    ("centring_loss", centring_by(lambda c, r: (c.detach() + r).square())),
    ("centring_loss", squared_mean),
    (
        "centring_loss",
        lambda c, r, reduction="mean": reduced((c + r) ** 2, reduction),
    ),
    ("chosen_lm_loss", speaking(distinct_chosen, shift=0)),
    ("chosen_lm_loss", speaking(distinct_chosen, shift=2)),
    ("chosen_lm_loss", speaking(distinct_chosen, start=1)),
    ("chosen_lm_loss", speaking(distinct_rejected)),
    ("chosen_lm_loss", speaking(all_chosen)),
    ("chosen_lm_loss", speaking(distinct_chosen, mean=row_means)),
    (
        "chosen_lm_loss",
        speaking(lambda pairs: distinct_chosen(pairs) + distinct_rejected(pairs)),
    ),
    ("chosen_lm_loss", without_gradient),
    ("score_normalisation", normalising(std=lambda x: x.std(correction=0))),
    ("score_normalisation", normalising(std=torch.var)),
    ("score_normalisation", normalising(mean=torch.median)),
    ("score_normalisation", normalising(mean=lambda x: x.mean().abs())),
    ("score_normalisation", normalising(checked=False)),
    (
        "score_normalisation",
        lambda scores, centre_only=False: reward_model.score_normalisation(scores),
    ),
    (
        "score_normalisation",
        lambda scores, centre_only=False: tuple(
            torch.tensor(x)
            for x in reward_model.score_normalisation(scores, centre_only)
        ),
    ),
    (
        "score_normalisation",
        altered(
            reward_model.score_normalisation,
            lambda x: (x[0], 0.0 if x[1] == 1.0 else x[1]),
        ),
    ),
]


# ---------------------------------------------- mistakes of lesson 17: values of states


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


WRONG += [
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
]


def test_there_is_a_case_for_every_check():
    public = {
        name
        for name, value in vars(checks).items()
        if hasattr(value, "__wrapped__") and not name.startswith("_")
    }
    assert public == set(RIGHT)
    assert all(sum(name == of for of, _ in WRONG) >= 3 for name in RIGHT)


@pytest.mark.parametrize("name", RIGHT)
def test_the_package_passes(name, capsys):
    getattr(checks, name)(RIGHT[name])
    line = capsys.readouterr().out
    assert (
        line.startswith(f"{name}: ")
        and line.endswith(" checks passed\n")
        and line.count("\n") == 1
    )


@pytest.mark.parametrize(
    "name, wrong", WRONG, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG)]
)
def test_mistakes_are_caught(name, wrong):
    with pytest.raises(AssertionError, match=f"(?s){name}: .*expected .*got .*Hint: "):
        getattr(checks, name)(wrong)
