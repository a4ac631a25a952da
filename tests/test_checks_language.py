"""Checks of lessons 01 to 06 pass the package and fail plausible mistakes."""

import bisect
import contextlib
import dataclasses
import itertools
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


class ForgetsValues(model.KVCache):
    def store(self, layer, keys, values):
        return super().store(layer, keys, torch.zeros_like(values))


class OneDtype(model.KVCache):
    def __init__(self, config, batch_size, capacity, device=None, dtype=None):
        super().__init__(config, batch_size, capacity, device)


class ForgetsMasks(model.KVCache):
    def extend(self, mask):
        positions, seen = super().extend(mask)
        return positions, torch.ones_like(seen)


class CountsTheFirstRow(model.KVCache):
    def extend(self, mask):
        positions, seen = super().extend(mask)
        return positions[:1].expand_as(positions), seen


class GrowsInPlace(torch.nn.Module):
    """A right cache that joins tensors instead of taking room at once."""

    def __init__(self, config, batch_size, capacity, device=None, dtype=torch.float32):
        super().__init__()
        self.config, self.capacity = config, capacity
        self.pieces = [([], []) for _ in range(config.n_layers)]
        self.masks = torch.zeros(batch_size, 0, dtype=torch.bool, device=device)

    def extend(self, mask):
        if self.masks.shape[1] + mask.shape[1] > self.capacity:
            raise ValueError("full")
        self.masks = torch.cat((self.masks, mask), 1)
        return model.token_positions(self.masks)[:, -mask.shape[1] :], self.masks

    def store(self, layer, keys, values):
        if keys.requires_grad or values.requires_grad:
            raise RuntimeError("no gradients")
        for held, new in zip(self.pieces[layer], (keys, values), strict=True):
            held.append(new)
        return tuple(torch.cat(held, 2) for held in self.pieces[layer])


class PutsByIndex(model.KVCache):
    """A right cache that writes slot by slot."""

    def store(self, layer, keys, values):
        if keys.requires_grad or values.requires_grad:
            raise RuntimeError("no gradients")
        for t in range(keys.shape[2]):
            slot = self.length - keys.shape[2] + t
            self.keys[layer][:, :, slot] = keys[:, :, t]
            self.values[layer][:, :, slot] = values[:, :, t]
        return tuple(
            x[layer].narrow(2, 0, self.length) for x in (self.keys, self.values)
        )


def block_class(forward):
    """`Block` with another forward(self, x, attend), attend(x) being its attention."""

    def call(self, x, cos, sin, bias, cache=None):
        return forward(self, x, lambda y: self.self_attn(y, cos, sin, bias, cache))

    return type("Wrong", (model.Block,), {"forward": call})


def pass_cache(change):
    """`Block` whose forward gets a changed cache."""

    class Wrong(model.Block):
        def forward(self, x, cos, sin, bias, cache=None):
            return super().forward(x, cos, sin, bias, change(cache))

    return Wrong


class LayerZero(model.Block):
    def __init__(self, config, layer=0):
        super().__init__(config)


class OneNorm(model.Block):
    def forward(self, x, cos, sin, bias, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias, cache)
        return x + self.mlp(self.input_layernorm(x))


class UsualEps(model.Block):
    def __init__(self, config, layer=0):
        super().__init__(dataclasses.replace(config, norm_eps=1e-5), layer)


class DetachedStream(model.Block):
    def forward(self, x, cos, sin, bias, cache=None):
        x = x + self.self_attn(self.input_layernorm(x).detach(), cos, sin, bias, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class InOneExpression(model.Block):
    """A right block."""

    def forward(self, x, cos, sin, bias, cache=None):
        looked = self.self_attn(self.input_layernorm(x), cos, sin, bias, cache)
        normed = self.post_attention_layernorm(looked + x)
        return torch.stack((x, looked, self.mlp(normed))).sum(0)


class OtherOrder(torch.nn.Module):
    """A right block, its parts made in another order."""

    def __init__(self, config, layer=0):
        super().__init__()
        self.mlp, self.self_attn = (
            model.FeedForward(config),
            model.Attention(config, layer),
        )
        for name in ("post_attention_layernorm", "input_layernorm"):
            setattr(self, name, model.RMSNorm(config.dim, config.norm_eps))

    def forward(self, x, *others):
        x = self.self_attn(self.input_layernorm(x), *others).add(x)
        return self.mlp(self.post_attention_layernorm(x)).add_(x)


def llama_class(hidden):
    """`Llama` with another hidden(self, x, cos, sin, bias, cache) after `embed`."""

    class Other(model.Llama):
        def hidden(self, ids, mask=None, cache=None):
            return hidden(self, *self.embed(ids, mask, cache), cache)

    return Other


def through(layers, x, *others):
    for layer in layers:
        x = layer(x, *others)
    return x


class SharedBlocks(model.Llama):
    def __init__(self, config, generator=None):
        super().__init__(config, generator)
        self.layers = torch.nn.ModuleList([self.layers[0]] * config.n_layers)


class UsualTheta(model.Llama):
    def embed(self, ids, mask=None, cache=None):
        x, cos, sin, bias = super().embed(ids, mask, cache)
        if cache is None:
            where = torch.ones_like(ids) > 0 if mask is None else mask
            cos, sin = model.rope_cos_sin(
                model.token_positions(where), self.config.head_dim
            )
        return x, cos, sin, bias


class EveryColumnAPosition(model.Llama):
    def embed(self, ids, mask=None, cache=None):
        x, _, _, bias = super().embed(ids, mask, cache)
        columns = torch.arange(ids.shape[1])[None]
        return x, *model.rope_cos_sin(columns, self.config.head_dim, 100.0), bias


class ScaledByDepth(model.Llama):
    def init_weights(self, generator=None):
        super().init_weights(generator)
        for layer in self.layers:
            for x in (layer.mlp.down_proj, layer.self_attn.o_proj):
                x.weight.data *= math.sqrt(2)


class FromStates(model.Llama):
    """A right model that multiplies by the output matrix itself."""

    def forward(self, ids, mask=None, cache=None):
        return self.hidden(ids, mask, cache) @ self.lm_head.weight.T


class DrawsOtherwise(model.Llama):
    """A right model that draws its matrices module by module, in another order."""

    @torch.no_grad()
    def init_weights(self, generator=None):
        for name, module in reversed(list(self.named_modules())):
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                back = name.endswith(("o_proj", "down_proj"))
                std = 0.02 / math.sqrt(2 * self.config.n_layers) if back else 0.02
                module.weight.normal_(0.0, std, generator=generator)


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


def sample_by_counting(probs, uniforms):
    """A right `sample`."""
    cumulative = probs.cumsum(-1)
    return (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(-1)


def sample_by_bisection(probs, uniforms):
    """A right `sample`, row by row."""
    tokens = []
    for row, number in zip(probs.tolist(), uniforms.tolist(), strict=True):
        ends = list(itertools.accumulate(row))
        tokens.append(bisect.bisect_right(ends, number * ends[-1]))
    return torch.tensor(tokens)


def top_p_by_loop(probs, top_p):
    """A right `top_p_filter`, token by token."""
    kept = torch.zeros_like(probs)
    for row, result in zip(probs, kept, strict=True):
        total = 0.0
        for token in sorted(range(len(row)), key=lambda i: (-row[i].item(), i)):
            if total < top_p:
                result[token] = row[token]
            total += row[token].item()
    return kept


def top_p_by_pairs(probs, top_p):
    """A right `top_p_filter`, without sorting."""
    a, b = probs[:, :, None], probs[:, None, :]  # is b before a?
    ids = torch.arange(probs.shape[1])
    earlier = (b > a) | ((b == a) & (ids < ids[:, None]))
    before = (earlier * b).sum(-1)
    return torch.where(before < top_p - 1e-6, probs, 0.0)


def pick_from_logprobs(logits, uniforms, temperature, top_p):
    """A right `pick`."""
    scores = torch.log_softmax(logits.float() / (temperature if temperature else 1), -1)
    tokens = (
        scores.argmax(-1)
        if temperature == 0
        else generation.sample(generation.top_p_filter(scores.exp(), top_p), uniforms)
    )
    return tokens, scores[torch.arange(len(tokens)), tokens]


def pick_row_by_row(logits, uniforms, temperature, top_p):
    """A right `pick`."""
    rows = [
        pick_from_logprobs(a, b, temperature, top_p)
        for a, b in zip(logits.split(1), uniforms.split(1), strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))


def generates(pick=pick_from_logprobs, columns=False):
    """A right `generate`, one text at a time and without a cache."""

    @torch.no_grad()
    def f(
        network,
        prompts,
        max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        generator=None,
        eos_id=2,
        pad_id=3,
    ):
        width = max(map(len, prompts))
        if width + max_new_tokens > network.config.max_seq_len:
            raise ValueError("too long")
        shape = (len(prompts), max_new_tokens)
        numbers = (
            torch.rand(shape[::-1], generator=generator).T
            if columns
            else torch.rand(shape, generator=generator)
        )
        texts = []
        for prompt, row in zip(prompts, numbers, strict=True):
            ids, scores = list(prompt), []
            for number in row:
                logits = network(torch.tensor([ids]))[:, -1]
                token, score = pick(logits, number[None], temperature, top_p)
                ids, scores = ids + token.tolist(), scores + score.tolist()
                if ids[-1] == eos_id:
                    break
            texts.append((len(prompt), ids, scores))
        length = width + max(len(scores) for _, _, scores in texts)
        ids = torch.full((len(prompts), length), pad_id)
        mask, response = torch.zeros(2, *ids.shape, dtype=torch.bool)
        logprobs = torch.zeros(ids.shape)
        for i, (start, text, scores) in enumerate(texts):
            first = width - start
            ids[i, first : first + len(text)] = torch.tensor(text)
            mask[i, first : first + len(text)] = True
            response[i, width : width + len(scores)] = True
            logprobs[i, width : width + len(scores)] = torch.tensor(scores)
        return generation.Rollout(ids, mask, response, logprobs)

    return f


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


def top_p_by_value(probs, top_p):
    kept = generation.top_p_filter(probs, top_p)
    least = kept.where(kept > 0, 2.0).amin(-1, keepdim=True)
    return probs.where(probs >= least, 0.0)


def restricted_logprobs(logits, uniforms, temperature, top_p):
    probs = torch.softmax(logits / (temperature or 1.0), -1)
    kept = generation.top_p_filter(probs, top_p)
    tokens = kept.argmax(-1) if temperature == 0 else generation.sample(kept, uniforms)
    return tokens, (kept / kept.sum(-1, keepdim=True)).gather(-1, tokens[:, None])[
        :, 0
    ].log()


def unscaled_logprobs(logits, uniforms, temperature, top_p):
    tokens, _ = generation.pick(logits, uniforms, temperature, top_p)
    return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def staying_in_eval(network, *arguments, **named):
    return generation.generate(network.eval(), *arguments, **named)


def ends_all(rollout):
    """Every row ends with the first that ends."""
    shortest = rollout.response_mask.sum(1).min()
    over = rollout.response_mask.cumsum(1) > shortest
    rollout.response_mask, rollout.mask = (
        x & ~over for x in (rollout.response_mask, rollout.mask)
    )


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
    ("kv_cache", ForgetsValues),
    ("kv_cache", OneDtype),
    ("kv_cache", ForgetsMasks),
    ("kv_cache", CountsTheFirstRow),
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
    ("block", pass_cache(lambda cache: None)),
    ("block", LayerZero),
    ("block", OneNorm),
    ("block", UsualEps),
    ("block", DetachedStream),
    ("llama", BigWeights),
    ("llama", llama_class(lambda self, x, *others: through(self.layers, x, *others))),
    (
        "llama",
        llama_class(
            lambda self, x, *others: self.norm(through(self.layers[1:], x, *others))
        ),
    ),
    (
        "llama",
        llama_class(
            lambda self, x, *others: self.norm(
                through([*self.layers, self.layers[0]], x, *others)
            )
        ),
    ),
    (
        "llama",
        llama_class(
            lambda self, x, *others: self.norm(through(self.layers[::-1], x, *others))
        ),
    ),
    (
        "llama",
        llama_class(
            lambda self, x, *others: self.norm(
                through(self.layers, x, *others[:-1], None)
            )
        ),
    ),
    ("llama", SharedBlocks),
    ("llama", UsualTheta),
    ("llama", EveryColumnAPosition),
    ("llama", ScaledByDepth),
    ("llama", IgnoresTheMask),
    ("llama", OneInitialStd),
    ("llama", DefaultGenerator),
    ("sample", sample_reaching),
    ("sample", lambda p, u: p.argmax(-1)),
    ("sample", lambda p, u: generation.sample(p, (u + 0.5) % 1)),
    ("sample", lambda p, u: generation.sample(p, u / 2)),
    ("sample", lambda p, u: generation.sample(p[:1].expand(p.shape), u)),
    ("sample", lambda p, u: generation.sample(p, u).float()),
    ("top_p_filter", kept_top_p(lambda ordered, top_p: ordered.cumsum(-1) <= top_p)),
    ("top_p_filter", lambda p, top_p: torch.where(p >= 1 - top_p, p, 0.0)),
    (
        "top_p_filter",
        altered(generation.top_p_filter, lambda p: p / p.sum(-1, keepdim=True)),
    ),
    ("top_p_filter", lambda p, top_p: p.sort(descending=True)[0]),
    ("top_p_filter", lambda p, top_p: p.mul_(generation.top_p_filter(p, top_p) > 0)),
    ("top_p_filter", top_p_by_value),
    (
        "top_p_filter",
        lambda p, top_p: p * (generation.top_p_filter(p[:1], top_p) > 0),
    ),
    ("pick", restricted_logprobs),
    ("pick", lambda x, u, t, p: generation.pick(x, u, 1.0, p)),
    ("pick", lambda x, u, t, p: generation.pick(x * t if t else x, u, float(t > 0), p)),
    (
        "pick",
        lambda x, u, t, p: generation.pick(x[:1].expand(x.shape), u, t, p),
    ),
    ("pick", lambda x, u, t, p: generation.pick(x, u[:1].expand(u.shape), t, p)),
    ("pick", lambda x, u, t, p: generation.pick(x, u, max(t, 1.0) if t else t, p)),
    ("pick", lambda x, u, t, p: generation.pick(x, u, t, 1.0)),
    ("pick", unscaled_logprobs),
    ("generate", generates(columns=True)),
    ("generate", generates(lambda x, u, t, p: pick_from_logprobs(x, u, 1.0, p))),
    ("generate", generates(lambda x, u, t, p: pick_from_logprobs(x, u, t, 1.0))),
    ("generate", generates(unscaled_logprobs)),
    ("generate", staying_in_eval),
    ("generate", generate_with(ends_all)),
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


# Right answers in another style than the package's.
ALSO_RIGHT = [
    ("block", InOneExpression),
    ("block", OtherOrder),
    ("llama", FromStates),
    ("llama", DrawsOtherwise),
    ("sample", sample_by_counting),
    ("sample", sample_by_bisection),
    ("top_p_filter", top_p_by_loop),
    ("top_p_filter", top_p_by_pairs),
    ("kv_cache", GrowsInPlace),
    ("kv_cache", PutsByIndex),
    ("pick", pick_from_logprobs),
    ("pick", pick_row_by_row),
    ("generate", generates()),
    ("generate", generates(generation.pick)),
]

test_the_package_passes, test_mistakes_are_caught = both_tests(language, RIGHT, WRONG)


@pytest.mark.parametrize("name, answer", ALSO_RIGHT)
def test_another_style_passes(name, answer, capsys):
    getattr(language, name)(answer)
    assert capsys.readouterr().out.endswith(" checks passed\n")
