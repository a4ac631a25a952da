"""Checks of lessons 01 to 06 pass the package and fail plausible mistakes."""

import contextlib
import math

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from mistakes import altered, both_tests, mean_of_everything, row_means

from minillama import (
    data,
    lm,
    model,
    optim,
    tokenizer,
)
from minillama import generate as generation
from minillama.course.checks import language

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
}


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


class DefaultBetas(optim.Stepper):
    def __init__(self, model, lr, schedule, betas=None, max_norm=1.0):
        super().__init__(model, lr, schedule, max_norm=max_norm)


class NeverClips(optim.Stepper):
    def __init__(self, model, lr, schedule, betas=(0.9, 0.95), max_norm=1.0):
        super().__init__(model, lr, schedule, betas, max_norm=1e9)


class ClipsToOne(optim.Stepper):
    def __init__(self, model, lr, schedule, betas=(0.9, 0.95), max_norm=1.0):
        super().__init__(model, lr, schedule, betas, max_norm=1.0)


class DecaysTheWeights(optim.Stepper):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.optimizer.param_groups[0]["weight_decay"] = 0.1


class KeepsTheFirstWeights(optim.Stepper):
    def step(self, loss, batch_ids):
        kept = [x.clone() for x in self.last_good]
        norm = super().step(loss, batch_ids)
        self.last_good = kept
        return norm


class LooksAtTheLossOnly(optim.Stepper):
    def require_finite(self, name, tensor, batch_ids):
        if name == "loss":
            super().require_finite(name, tensor, batch_ids)

    def step(self, loss, batch_ids):
        self.require_finite("loss", loss, batch_ids)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        optim._copy(self.parameters, self.last_good)
        self.optimizer.param_groups[0]["lr"] = self.lr * self.schedule(self.steps)
        self.optimizer.step()
        self.steps += 1
        return norm


class AddsUpGradients(LooksAtTheLossOnly):
    def step(self, loss, batch_ids):
        self.optimizer.zero_grad = lambda: None
        return super().step(loss, batch_ids)


class PlainStepper:
    """A right stepper in another style: AdamW written out, weights kept in a list."""

    def __init__(self, model, lr, schedule, betas=(0.9, 0.95), max_norm=1.0):
        self.model, self.lr, self.schedule, self.t = model, lr, schedule, 0
        self.betas, self.max_norm = betas, max_norm
        self.weights = list(model.parameters())
        self.means = [(0.0, 0.0) for _ in self.weights]
        self.before = [w.detach().clone() for w in self.weights]

    def stop(self, batch_ids):
        for w, kept in zip(self.weights, self.before, strict=True):
            w.data = kept.clone()
        raise FloatingPointError(f"step {self.t}, examples {list(batch_ids)}")

    def step(self, loss, batch_ids):
        if not loss.isfinite():
            self.stop(batch_ids)
        slopes = torch.autograd.grad(loss, self.weights)
        norm = torch.cat([x.flatten() for x in slopes]).norm()
        if not norm.isfinite():
            self.stop(batch_ids)
        self.before = [w.detach().clone() for w in self.weights]
        lr, (b1, b2) = self.lr * self.schedule(self.t), self.betas
        self.t += 1
        for i, (w, g) in enumerate(zip(self.weights, slopes, strict=True)):
            g = g * min(1.0, self.max_norm / norm.item())
            m, s = self.means[i]
            m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
            self.means[i] = m, s
            step = m / (1 - b1**self.t) / ((s / (1 - b2**self.t)).sqrt() + 1e-8)
            w.data = w.data - lr * step
        return norm


def logprobs_by_loop(logits, ids):
    shares = logits.log_softmax(-1)
    rows = [
        torch.stack(
            [0.0 * shares[b, 0, 0]]
            + [shares[b, t - 1, ids[b, t]] for t in range(1, ids.shape[1])]
        )
        for b in range(len(ids))
    ]
    return torch.stack(rows)


def loss_by_sums(logits, ids, mask):
    if mask[:, 0].any():
        raise ValueError("column 0")
    if mask.dtype != torch.bool:
        raise TypeError("a boolean mask")
    return (-logprobs_by_loop(logits, ids) * mask).sum() / mask.sum()


def guarded_loss(loss):
    """A loss with the refusals of `lm_loss`."""

    def f(logits, ids, mask):
        lm.lm_loss(logits, ids, mask)
        return loss(logits, ids, mask)

    return f


def in_place(logits, ids):
    with torch.no_grad():
        logits -= logits.logsumexp(-1, keepdim=True)
    return F.pad(logits[:, :-1].gather(-1, ids[:, 1:, None])[..., 0], (1, 0))


def padded_by_loop(examples):
    width = max(len(example.ids) for example in examples)
    ids = [e.ids + [3] * (width - len(e.ids)) for e in examples]
    mask = [[t < len(e.ids) for t in range(width)] for e in examples]
    counts = [[e.loss_start <= t < len(e.ids) for t in range(width)] for e in examples]
    return torch.tensor(ids), torch.tensor(mask), torch.tensor(counts)


def counted(rule):
    """`pad_examples` with another rule(columns (T,), starts (N, 1), mask (N, T))."""

    def f(examples):
        ids, mask, _ = data.pad_examples(examples)
        starts = torch.tensor([[example.loss_start] for example in examples])
        return ids, mask, rule(torch.arange(ids.shape[1]), starts, mask)

    return f


WRONG = [
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
    ("token_logprobs", altered(lm.token_logprobs, torch.detach)),
    ("token_logprobs", altered(lm.token_logprobs, torch.exp)),
    ("token_logprobs", lambda x, ids: lm.token_logprobs(x, ids[:1].expand_as(ids))),
    ("token_logprobs", lambda x, ids: lm.token_logprobs(x[:1].expand_as(x), ids)),
    ("token_logprobs", in_place),
    ("token_logprobs", altered(lm.token_logprobs, lambda x: x.roll(-1, 1))),
    ("lm_loss", loss_rule(row_means)),
    ("lm_loss", loss_rule(mean_of_everything)),
    ("lm_loss", loss_rule(lambda x, mask: (x * mask).sum())),
    ("lm_loss", lambda *a: -lm.lm_loss(*a)),
    ("lm_loss", altered(lm.lm_loss, torch.detach)),
    (
        "lm_loss",
        guarded_loss(lambda x, ids, m: F.cross_entropy(x[m], ids[m])),
    ),
    (
        "lm_loss",
        guarded_loss(
            lambda x, ids, m: -lm.token_logprobs(x, ids)[:, 1:][m[:, :-1]].mean()
        ),
    ),
    ("lm_loss", lambda x, ids, m: loss_by_sums(x, ids, m & ~m[:, :1])),
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
    ("warmup_cosine", lambda step, total, warmup: optim.warmup_cosine(step, total, 10)),
    (
        "warmup_cosine",
        lambda step, total, warmup: (
            step / warmup if step < warmup else optim.warmup_cosine(step, total, warmup)
        ),
    ),
    (
        "warmup_cosine",
        lambda step, total, warmup: (
            optim.warmup_cosine(step, total, warmup)
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        ),
    ),
    ("stepper", NeverRestores),
    ("stepper", NoSchedule),
    ("stepper", ClipsFirst),
    ("stepper", LetsNaNPass),
    ("stepper", DefaultBetas),
    ("stepper", NeverClips),
    ("stepper", ClipsToOne),
    ("stepper", DecaysTheWeights),
    ("stepper", KeepsTheFirstWeights),
    ("stepper", LooksAtTheLossOnly),
    ("stepper", AddsUpGradients),
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
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            (ids := tokenizer.encode_prompt(t, p)) + tokenizer.encode_response(t, r),
            len(ids) + 1 if only else 1,
        ),
    ),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            tokenizer.encode_prompt(t, p) + tokenizer.encode_response(t, r),
            len(tokenizer.encode_prompt(t, "ab")) if only else 1,
        ),
    ),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            t.encode(p) + tokenizer.encode_response(t, r), len(t.encode(p))
        ),
    ),
    (
        "pad_examples",
        altered(data.pad_examples, lambda x: (x[0], x[1], x[2].roll(1, 1))),
    ),
    ("pad_examples", altered(data.pad_examples, lambda x: (*x[:2], x[2].float()))),
    ("pad_examples", counted(lambda at, starts, mask: at.expand(mask.shape) >= starts)),
    ("pad_examples", counted(lambda at, starts, mask: mask & (at > starts))),
    ("pad_examples", counted(lambda at, starts, mask: mask & (at >= starts[:1]))),
    (
        "pad_examples",
        altered(data.pad_examples, lambda x: (x[0] * x[1], *x[1:])),
    ),
]


test_the_package_passes, test_mistakes_are_caught = both_tests(language, RIGHT, WRONG)


# Right answers in another style than the package's, of lessons 05 and 06.
ALSO_RIGHT_IN_TRAINING = [
    ("token_logprobs", logprobs_by_loop),
    (
        "token_logprobs",
        lambda x, ids: F.pad(
            x.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0], (1, 0)
        ),
    ),
    ("lm_loss", loss_by_sums),
    (
        "lm_loss",
        guarded_loss(
            lambda x, ids, m: F.cross_entropy(x[:, :-1][m[:, 1:]], ids[:, 1:][m[:, 1:]])
        ),
    ),
    (
        "warmup_cosine",
        lambda step, total, warmup: (
            (1 + step) / warmup
            if warmup > step
            else math.cos(
                math.pi / 2 * min(step - warmup, total - warmup) / (total - warmup)
            )
            ** 2
        ),
    ),
    (
        "warmup_cosine",
        lambda step, total, warmup: min(
            (step + 1) / max(1, warmup),
            (
                1
                + math.cos(
                    math.pi * min(1, max(0, step - warmup) / max(1, total - warmup))
                )
            )
            / 2,
        ),
    ),
    ("stepper", PlainStepper),
    ("stepper", type("Renamed", (optim.Stepper,), {})),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            ids=[*tokenizer.encode_prompt(t, p), *t.encode(f" {r}"), 2],
            loss_start=[1, len(tokenizer.encode_prompt(t, p))][bool(only)],
        ),
    ),
    (
        "dialogue_example",
        lambda t, p, r, only: data.Example(
            ids := [1, 4, *t.encode(" " + p), 5, *t.encode(" " + r), 2],
            ids.index(5) + 1 if only else 1,
        ),
    ),
    ("pad_examples", padded_by_loop),
    (
        "pad_examples",
        counted(lambda at, starts, mask: (at >= starts).logical_and(mask)),
    ),
]


@pytest.mark.parametrize("name, answer", ALSO_RIGHT_IN_TRAINING)
def test_another_style_of_training_passes(name, answer):
    getattr(language, name)(answer)
