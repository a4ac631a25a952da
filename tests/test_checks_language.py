"""Checks of lessons 01 to 06 pass the package and fail plausible mistakes."""

import bisect
import contextlib
import dataclasses
import inspect
import itertools
import math
from collections import Counter
from itertools import pairwise

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from mistakes import altered, both_tests, mean_of_everything, row_means

from minillama import (
    data,
    ladder,
    lm,
    model,
    optim,
    tokenizer,
)
from minillama import generate as generation
from minillama.course import bpe, checks
from minillama.course.tiny_cache import TinyCache

RIGHT = {
    "count_pairs": bpe.count_pairs,
    "merge": bpe.merge,
    "train_tokenizer": tokenizer.train_tokenizer,
    "encode_prompt": tokenizer.encode_prompt,
    "encode_response": tokenizer.encode_response,
    "decode_response": tokenizer.decode_response,
    "count_bigrams": ladder.count_bigrams,
    "unigram_logprobs": ladder.unigram_logprobs,
    "bigram_logprobs": ladder.bigram_logprobs,
    "table_nats": ladder.table_nats,
    "one_token_floor": ladder.one_token_floor,
    "one_token": ladder.OneToken,
    "rms_norm": model.RMSNorm,
    "rope_cos_sin": model.rope_cos_sin,
    "rotate": model.rotate,
    "feed_forward": model.FeedForward,
    "token_positions": model.token_positions,
    "attention_bias": model.attention_bias,
    "attend": model.attend,
    "tiny_cache": TinyCache,
    "kv_cache": model.KVCache,
    "attention": model.Attention,
    "attention_only": ladder.AttentionOnly,
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


def pairs_side_by_side(words):
    """`count_pairs` that uses each piece in one pair only."""
    counts = Counter()
    for pieces, count in words.items():
        for pair in zip(pieces[::2], pieces[1::2], strict=False):
            counts[pair] += count
    return counts


def glued(pieces, pair, step=2, at_most=99):
    """`merge` with a window: step 1 uses up one piece of a pair only."""
    out, i = [], 0
    while i < len(pieces):
        fits = tuple(pieces[i : i + 2]) == pair and at_most > 0
        out.append(pieces[i] + pieces[i + 1] if fits else pieces[i])
        i, at_most = i + (step if fits else 1), at_most - fits
    return tuple(out)


def glued_text(pieces, pair):
    """`merge` that looks for letters instead of pieces."""
    text, wanted = " ".join(pieces), "".join(pair)
    return tuple(text.replace(" ".join(wanted), wanted).split())


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


def counts_by_loop(pairs, dtype=torch.float64):
    """`count_bigrams` in a loop over pairs(example) -> (a, b), …"""

    def f(examples, vocab_size):
        counts = torch.zeros(vocab_size, vocab_size, dtype=dtype)
        for example in examples:
            for a, b in pairs(example):
                counts[a, b] += 1
        return counts

    return f


def counted_pairs(example):
    return [
        (example.ids[t - 1], example.ids[t])
        for t in range(example.loss_start, len(example.ids))
    ]


def counts_as_one_text(examples, vocab_size):
    ids = [i for example in examples for i in example.ids]
    return counts_by_loop(counted_pairs)([data.Example(ids, 1)], vocab_size)


def counts_only_what_came(examples, vocab_size):
    counts = ladder.count_bigrams(examples, vocab_size)
    came = counts.sum(0) + counts.sum(1) > 0
    return counts[came][:, came]


def smoothed_rows(extra, axis=1, log=torch.log):
    """`bigram_logprobs` with extra(counts, strength) added to the counts."""

    def f(counts, strength=1.0):
        smoothed = counts + extra(counts, strength)
        return log(smoothed / smoothed.sum(axis, keepdim=True))

    return f


def unigram(counts):
    return (counts.sum(0) + 1) / (counts.sum() + len(counts))


def adds_in_place(counts, strength=1.0):
    counts += strength * unigram(counts)
    return (counts / counts.sum(1, keepdim=True)).log()


def entropies(counts, weights=None, log=torch.log, smooth=0.0, axis=1):
    """The mean entropy of the rows of counts under weights (V,)."""
    total = counts.sum(axis, keepdim=True)
    p = (counts + smooth) / total.masked_fill(total == 0, 1)
    rows = -(p * log(p.masked_fill(p == 0, 1))).sum(axis)
    weights = counts.sum(axis) / counts.sum() if weights is None else weights(counts)
    return (weights * rows).sum().item()


def one_token_class(forward):
    """`OneToken` with another forward(self, x), x being the embedded tokens."""

    def call(self, ids, mask=None):
        return self.lm_head(forward(self, self.embed_tokens(ids)))

    return type("Wrong", (ladder.OneToken,), {"forward": call})


class OneTokenWithoutInit(torch.nn.Module):
    forward = ladder.OneToken.forward

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.dim)
        self.mlp_norm = model.RMSNorm(config.dim, config.norm_eps)
        self.mlp = model.FeedForward(config)
        self.norm = model.RMSNorm(config.dim, config.norm_eps)
        self.lm_head = torch.nn.Linear(config.dim, config.vocab_size, bias=False)


class OneTokenOfItsOwnDraw(ladder.OneToken):
    def __init__(self, config, generator=None):
        super().__init__(config)


class HidesPadding(ladder.OneToken):
    def forward(self, ids, mask=None):
        logits = super().forward(ids)
        return logits if mask is None else logits * mask[..., None]


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


def tiny_class(join, shared=False):
    """`TinyCache` whose join(old, new) makes what it keeps and what it returns."""
    everybodys = {}

    def start(self):
        self.kept = everybodys if shared else {}

    def store(self, layer, *new):
        old = self.kept.get(layer)
        kept, returned = join(old, new) if old else (new, new)
        self.kept[layer] = kept
        return returned

    return type("Wrong", (), {"__init__": start, "store": store})


def joined(old, new, dim=2):
    return tuple(torch.cat(pair, dim) for pair in zip(old, new, strict=True))


class TinyOneLayer(TinyCache):
    def store(self, layer, keys, values):
        return super().store(0, keys, values)


class TinyOfPieces:
    """A right cache that keeps its pieces apart."""

    def __init__(self):
        self.pieces = []

    def store(self, layer, keys, values):
        self.pieces.append((layer, keys, values))
        own = [piece for at, *piece in self.pieces if at == layer]
        return [torch.cat(parts, 2) for parts in zip(*own, strict=True)]


class TinyStacked:
    """A right cache of one tensor a layer, (2, B, K, S, E)."""

    def __init__(self):
        self.kept = {}

    def store(self, layer, keys, values):
        new = torch.stack((keys, values))
        old = self.kept.get(layer, new[..., :0, :])
        self.kept[layer] = torch.cat((old, new), dim=3)
        return self.kept[layer]


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


class FirstTextOnly(model.Attention):
    def forward(self, x, cos, sin, bias, cache=None):
        first = super().forward(x[:1], cos[:1], sin[:1], bias[:1], cache)
        return first.expand(len(x), -1, -1)


class ValuesAreKeys(model.Attention):
    def __init__(self, config, layer=0):
        super().__init__(config, layer)
        self.v_proj.forward = lambda x: self.k_proj(x)


class ByRepeatedKeys(model.Attention):
    """Right: one head of keys for each head of queries, turned by complex numbers."""

    def forward(self, x, cos, sin, bias, cache=None):
        B, T, _ = x.shape
        q, k, v = (
            p(x).view(B, T, heads, -1)
            for p, heads in (
                (self.q_proj, self.n_heads),
                (self.k_proj, self.n_kv_heads),
                (self.v_proj, self.n_kv_heads),
            )
        )
        q, k = (by_complex_numbers(y, cos, sin) for y in (q, k))
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if cache:
            k, v = cache.store(self.layer, k, v)
        return self.o_proj(attends()(q, k, v, bias))


def by_complex_numbers(x, cos, sin):
    turned = torch.complex(*x.chunk(2, -1)) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), -1)


def rope_by_complex_numbers(positions, head_dim, theta=10000.0):
    speeds = torch.exp(-math.log(theta) * torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.einsum("...t,i->...ti", positions.float(), speeds).unsqueeze(-2)
    turns = torch.polar(torch.ones_like(angles), angles)
    return turns.real, turns.imag


def by_loop_over_tokens(mask):
    rows = []
    for row in mask.tolist():
        count, positions = 0, []
        for real in row:
            count += real
            positions.append(max(count - 1, 0))
        rows.append(positions)
    return torch.tensor(rows)


def bias_by_loops(key_mask, n_queries):
    B, S = key_mask.shape
    bias = torch.full((B, 1, 1, n_queries, S), -math.inf)
    for b in range(B):
        for i in range(n_queries):
            at = S - n_queries + i
            for key in range(at + 1):
                if key_mask[b, key] or key == at:
                    bias[b, 0, 0, i, key] = 0.0
    return bias


def attend_one_by_one(queries, keys, values, bias):
    B, T, H, E = queries.shape
    rows = torch.empty(B, T, H * E)
    for b in range(B):
        for h in range(H):
            k, v = (x[b, h // (H // keys.shape[1])] for x in (keys, values))
            weights = (queries[b, :, h] @ k.T / math.sqrt(E) + bias[b, 0, 0]).exp()
            rows[b, :, h * E : (h + 1) * E] = (
                weights @ v / weights.sum(-1, keepdim=True)
            )
    return rows


def only_class(see=None, mix=None, **parts):
    """`AttentionOnly` with another forward.

    see(self, mask) gives positions and the key mask; mix(self, x, attention) the states
    before the output, attention(x) being the layer with its angles and bias.
    """
    see = see or (lambda self, mask: (model.token_positions(mask), mask))
    mix = mix or (
        lambda self, x, attention: self.norm(x + attention(self.attention_norm(x)))
    )

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        positions, key_mask = see(self, mask)
        angles = model.rope_cos_sin(positions * self.positions, self.config.head_dim)
        bias = model.attention_bias(key_mask, ids.shape[1])
        return self.lm_head(
            mix(
                self, self.embed_tokens(ids), lambda x: self.attention(x, *angles, bias)
            )
        )

    return type("Only", (ladder.AttentionOnly,), {"forward": forward, **parts})


class NoTurnWithoutPositions(ladder.AttentionOnly):
    """Right: cosines of 1 and sines of 0 where there are no positions."""

    def forward(self, ids, mask=None):
        mask = ids == ids if mask is None else mask
        cos, sin = model.rope_cos_sin(
            model.token_positions(mask), self.config.head_dim, self.config.rope_theta
        )
        if not self.positions:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        x = self.embed_tokens(ids)
        seen = self.attention_norm(x), cos, sin, model.attention_bias(mask, len(ids[0]))
        return self.lm_head(self.norm(self.attention(*seen) + x))


class RowByRow(ladder.AttentionOnly):
    """Right: each text alone, without its padding."""

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        rows = []
        for row, keep in zip(ids, mask, strict=True):
            at = torch.zeros(len(row), int(keep.sum()))
            at[keep, range(at.shape[1])] = 1.0  # back to their places
            rows.append(at @ super().forward(row[keep][None])[0])
        return torch.stack(rows)


class AlwaysTurns(ladder.AttentionOnly):
    def __init__(self, config, positions=True, generator=None):
        super().__init__(config, True, generator)


class UnseededOnly(ladder.AttentionOnly):
    def __init__(self, config, positions=True, generator=None):
        super().__init__(config, positions)


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
    def __init__(self, config, generator=None):
        super().__init__(config, generator)
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
    def __init__(self, config, generator=None):
        super().__init__(config)
        for name, module in reversed(list(self.named_modules())):
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                back = name.endswith(("o_proj", "down_proj"))
                std = 0.02 / math.sqrt(2 * self.config.n_layers) if back else 0.02
                module.weight.normal_(0.0, std, generator=generator)


class BigWeights(model.Llama):
    def __init__(self, config, generator=None):
        super().__init__(config, generator)
        self.lm_head.weight.data *= 50


class IgnoresTheMask(model.Llama):
    def hidden(self, ids, mask=None, cache=None):
        return super().hidden(ids, None, cache)


class OneInitialStd(model.Llama):
    def __init__(self, config, generator=None):
        super().__init__(config, generator)
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

    def f(network, *arguments, **named):
        mode = network.training
        try:
            return write(network.eval(), *arguments, **named)
        finally:
            network.train(mode)

    @torch.no_grad()
    def write(
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
                if not logits.isfinite().all():
                    raise FloatingPointError("logits")
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
            if not w.isfinite().all():
                self.t -= 1
                self.stop(batch_ids)
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
    ("count_pairs", lambda words: Counter(x for w in words for x in pairwise(w))),
    ("count_pairs", lambda words: dict(bpe.count_pairs(words))),
    ("count_pairs", pairs_side_by_side),
    (
        "count_pairs",
        lambda words: bpe.count_pairs({tuple("".join(w)): n for w, n in words.items()}),
    ),
    (
        "count_pairs",
        lambda words: bpe.count_pairs({w[::-1]: n for w, n in words.items()}),
    ),
    (
        "count_pairs",
        lambda words: Counter(pairwise(x for w, n in words.items() for x in w * n)),
    ),
    ("merge", lambda pieces, pair: list(bpe.merge(pieces, pair))),
    ("merge", lambda pieces, pair: glued(pieces, pair, step=1)),
    ("merge", lambda pieces, pair: glued(pieces, pair, at_most=1)),
    ("merge", glued_text),
    ("merge", lambda pieces, pair: bpe.merge(bpe.merge(pieces, pair), pair[::-1])),
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
    ("count_bigrams", altered(ladder.count_bigrams, torch.t)),
    ("count_bigrams", altered(ladder.count_bigrams, torch.Tensor.long)),
    ("count_bigrams", counts_as_one_text),
    ("count_bigrams", counts_only_what_came),
    ("count_bigrams", counts_by_loop(lambda x: pairwise(x.ids))),
    ("count_bigrams", counts_by_loop(lambda x: pairwise(x.ids[x.loss_start :]))),
    ("count_bigrams", counts_by_loop(lambda x: set(counted_pairs(x)))),
    ("unigram_logprobs", altered(ladder.unigram_logprobs, torch.exp)),
    ("unigram_logprobs", lambda c: ladder.unigram_logprobs(c.T)),
    ("unigram_logprobs", lambda c: (c.sum(0) / c.sum()).log()),
    ("unigram_logprobs", lambda c: ((c + 1).sum(0) / (c + 1).sum()).log()),
    ("unigram_logprobs", lambda c: ((c.sum(0) + 1) / c.sum()).log()),
    ("unigram_logprobs", lambda c: unigram(c).log2()),
    ("unigram_logprobs", lambda c: unigram(c.add_(1)).log()),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s)),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s / len(c))),
    ("bigram_logprobs", smoothed_rows(lambda c, s: unigram(c))),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s * unigram(c) * c.sum())),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s * unigram(c)[:, None])),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s * unigram(c), axis=0)),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s * unigram(c), log=torch.log2)),
    ("bigram_logprobs", adds_in_place),
    ("table_nats", lambda t, c: -ladder.table_nats(t, c)),
    ("table_nats", lambda t, c: -(c * t).mean().item()),
    ("table_nats", lambda t, c: -(c * t).sum().item()),
    ("table_nats", lambda t, c: -(c * t).sum().item() / c.sum().item()),
    ("table_nats", lambda t, c: -(c * t.clamp(min=-20)).sum().item() / c.sum().item()),
    ("table_nats", lambda t, c: -(c * t).nansum().item() / (c > 0).sum().item()),
    ("table_nats", lambda t, c: -(c * t).nansum() / c.sum()),
    ("one_token_floor", lambda c: entropies(c, lambda c: 1 / len(c))),
    ("one_token_floor", lambda c: entropies(c, log=torch.log2)),
    ("one_token_floor", lambda c: entropies(c, smooth=1.0)),
    ("one_token_floor", lambda c: entropies(c, axis=0)),
    ("one_token_floor", lambda c: entropies(c.sum(0, keepdim=True))),
    ("one_token_floor", lambda c: ladder.table_nats(ladder.bigram_logprobs(c), c)),
    ("one_token_floor", lambda c: torch.tensor(entropies(c))),
    ("one_token_floor", lambda c: -ladder.one_token_floor(c)),
    (
        "one_token",
        one_token_class(lambda self, x: self.norm(self.mlp(self.mlp_norm(x)))),
    ),
    ("one_token", one_token_class(lambda self, x: self.norm(x + self.mlp(x)))),
    ("one_token", one_token_class(lambda self, x: x + self.mlp(self.mlp_norm(x)))),
    (
        "one_token",
        one_token_class(
            lambda self, x: self.norm((y := self.mlp_norm(x)) + self.mlp(y))
        ),
    ),
    (
        "one_token",
        one_token_class(
            lambda self, x: self.norm(
                (y := x + x.roll(1, 1)) + self.mlp(self.mlp_norm(y))
            )
        ),
    ),
    (
        "one_token",
        one_token_class(lambda self, x: self.mlp_norm(x + self.mlp(self.norm(x)))),
    ),
    ("one_token", OneTokenWithoutInit),
    ("one_token", OneTokenOfItsOwnDraw),
    ("one_token", HidesPadding),
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
    (
        "rope_cos_sin",
        lambda p, e, theta=1e4: model.rope_cos_sin(p[:1].expand_as(p), e, theta),
    ),
    (
        "rope_cos_sin",
        lambda p, e, theta=1e4: tuple(
            x.double() for x in model.rope_cos_sin(p, e, theta)
        ),
    ),
    ("rotate", interleaved),
    ("rotate", overwriting),
    ("rotate", lambda x, cos, sin: model.rotate(x, cos, -sin)),
    ("rotate", lambda x, cos, sin: model.rotate(x, cos[:1], sin[:1])),
    ("rotate", lambda x, cos, sin: model.rotate(x, cos[:, :1], sin[:, :1])),
    ("feed_forward", ReLU),
    ("feed_forward", GateOnTheOther),
    ("feed_forward", WithBias),
    ("token_positions", lambda m: m.cumsum(-1)),
    ("token_positions", lambda m: m.cumsum(-1) - 1),
    ("token_positions", lambda m: torch.arange(m.shape[1]).expand(m.shape)),
    ("token_positions", lambda m: model.token_positions(m).float()),
    (
        "token_positions",
        lambda m: (
            (torch.arange(m.shape[1]) - m.int().argmax(1, keepdim=True))
            .clamp(min=0)
            .minimum(m.sum(1, keepdim=True) - 1)
        ),
    ),
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
    ("attend", lambda q, k, v, bias: model.attend(q, k, v, torch.zeros_like(bias))),
    ("tiny_cache", TinyOneLayer),
    ("tiny_cache", tiny_class(lambda old, new: (new, joined(old, new)))),
    ("tiny_cache", tiny_class(lambda old, new: (joined(old, new), new))),
    ("tiny_cache", tiny_class(lambda old, new: (joined(old, new),) * 2, True)),
    ("tiny_cache", tiny_class(lambda old, new: (joined(new, old),) * 2)),
    ("tiny_cache", tiny_class(lambda old, new: (joined(old, new[::-1]),) * 2)),
    ("tiny_cache", tiny_class(lambda old, new: (joined(old, (new[0],) * 2),) * 2)),
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
    ("attention", FirstTextOnly),
    ("attention", ValuesAreKeys),
    ("attention_only", AlwaysTurns),
    ("attention_only", UnseededOnly),
    ("attention_only", only_class(lambda self, m: (m.cumsum(1) - 1, m | True))),
    (
        "attention_only",
        only_class(lambda self, m: (torch.arange(m.shape[1]).expand_as(m), m)),
    ),
    (
        "attention_only",
        only_class(mix=lambda self, x, at: self.norm(at(self.attention_norm(x)))),
    ),
    (
        "attention_only",
        only_class(mix=lambda self, x, at: x + at(self.attention_norm(x))),
    ),
    ("attention_only", only_class(mix=lambda self, x, at: self.norm(x + at(x)))),
    (
        "attention_only",
        only_class(mix=lambda self, x, at: self.norm(x + at(self.norm(x)))),
    ),
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


def rewritten(target, *pairs, **names):
    """A definition of the package with pieces of its text replaced, old by new."""
    source = inspect.getsource(target)
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in source, f"{target.__name__} has no {old!r}"
        source = source.replace(old, new)
    names = (
        vars(inspect.getmodule(target))
        | {"F": F, "replace": dataclasses.replace}
        | names
    )
    exec(source, names)  # noqa: S102
    return names[target.__name__]


# Slips that the checks once let pass: one text or row, defaults, a cache, gradients,
# arguments changed in place, edges of texts.
SLIPS = [
    ("count_pairs", "return pairs", "pairs"),
    ("merge", "(merged[-1], piece) == pair", "merged[-1] + piece == ''.join(pair)"),
    ("merge", "(merged[-1], piece) == pair", "merged[-1] == pair[0]"),
    (
        "merge",
        "(merged[-1], piece) == pair",
        "merged[-1][-1:] == pair[0] and piece == pair[1]",
    ),
    ("train_tokenizer", "control_symbols", "user_defined_symbols"),
    ("train_tokenizer", "add_dummy_prefix=False", "add_dummy_prefix=True"),
    ("train_tokenizer", "character_coverage=1.0", "character_coverage=0.98"),
    ("train_tokenizer", "iter(texts)", "iter(sorted(set(texts)))"),
    ("train_tokenizer", "iter(texts)", "(text.strip() for text in texts)"),
    ("train_tokenizer", "iter(texts)", "iter([''.join(texts)])"),
    ("train_tokenizer", "texts = list(texts)", "texts", "len(texts)", "0"),
    ("encode_prompt", "+ prompt", "+ prompt.strip()"),
    ("encode_prompt", '" " + prompt', "(' ' + prompt)[:256]"),
    ("encode_prompt", "+ prompt", "+ ' '.join(prompt.split())"),
    ("encode_prompt", '" " + prompt', "' ' * (prompt[:1] != ' ') + prompt"),
    ("encode_response", "+ response", "+ response.rstrip()"),
    ("encode_response", "+ response", "+ response.replace('</s>', '')"),
    ("encode_response", "+ response", "+ response.splitlines()[0]"),
    ("decode_response", '.removeprefix(" ")', ".removeprefix(' ').rstrip()"),
    ("decode_response", '.removeprefix(" ")', "[1:]"),
    ("decode_response", '.removeprefix(" ")', ".replace(' ', '', 1)"),
    ("decode_response", "if EOS_ID in ids:", "if EOS_ID in ids[1:]:"),
    ("decode_response", "decode(ids)", "decode(ids).split('</s>')[0]"),
    ("count_bigrams", "in examples", "in {tuple(e.ids): e for e in examples}.values()"),
    ("unigram_logprobs", "counts.sum(0)", "counts[:-1].sum(0)"),
    ("unigram_logprobs", "counts.sum(0) + 1", "counts.add_(1 / len(counts)).sum(0)"),
    ("bigram_logprobs", "strength * prior", "max(strength, 1.0) * prior"),
    ("table_nats", "seen =", "counts /= counts.sum(); seen ="),
    ("one_token_floor", "own = counts / total", "own = counts.div_(total", "1)", "1))"),
    ("one_token", "config.dim, config.norm_eps", "config.dim"),
    ("one_token", "self.mlp_norm(x))", "self.mlp_norm(x.detach()))"),
    ("rms_norm", "eps=1e-5", "eps=1e-6"),
    ("rms_norm", "rsqrt(wide", "rsqrt(wide.detach()"),
    ("rms_norm", "nn.Parameter(torch.ones(dim))", "torch.ones(dim)"),
    ("rms_norm", "(torch.bfloat16, torch.float16)", "(torch.float16,)"),
    ("rope_cos_sin", "theta=10000.0", "theta=500000.0"),
    ("rope_cos_sin", "-pair / head_dim", "-pair / 4"),
    ("rope_cos_sin", "positions[", "positions.clamp(max=2047)["),
    ("rotate", "a, b = x", "a, b = x.detach()"),
    (
        "rotate",
        "    a, b",
        "    cos = cos.view(len(x), -1, 1, cos.shape[-1])\n    a, b",
    ),
    ("feed_forward", "F.silu(self.gate_proj(x))", "F.silu(self.gate_proj(x).detach())"),
    ("feed_forward", "gate_proj(x)", "gate_proj(x).clamp(-1.5, 1.5)"),
    ("feed_forward", "return", "x = x[:1]; return"),
    ("token_positions", "cumsum(-1)", "cumsum(-1, dtype=torch.uint8).long()"),
    (
        "attention_bias",
        "key_mask[:, None, :]",
        "(key_mask | ~key_mask[:, -1:])[:, None]",
    ),
    ("attention_bias", "key <= query", "(key <= query) | (n_keys > n_queries > 1)"),
    ("attend", "@ values", "@ values.detach()"),
    ("attend", "+ bias", "+ bias.masked_fill(bias > -math.inf, 0.0)"),
    ("attend", "(grouped * E**-0.5)", "grouped", "K, S", "queries.mul_(E**-0.5); K, S"),
    ("tiny_cache", "if layer in", "layer %= 2\n        if layer in"),
    (
        "tiny_cache",
        "layer] = keys, values",
        "layer] = keys[:, :, -8:], values[:, :, -8:]",
    ),
    ("kv_cache", "new] = values", "new] = values[:, :1]"),
    ("kv_cache", "self.mask[:, : self.length]", "self.mask[:1, : self.length]"),
    ("kv_cache", "require_constants(keys, values)", "require_constants(keys, keys)"),
    ("kv_cache", "require_slots(self, mask)", "require_slots(self, self.mask[:, :1])"),
    ("attention", "if cache is not None:", "if False:"),
    ("attention", "self.layer = layer", "self.layer = 0"),
    ("attention", "if cache is not None:", "if cache is not None and x.shape[1] > 1:"),
    ("attention", "keys, values = cache.store", "_, values = cache.store"),
    ("attention", "values, bias)", "values, bias[:1])"),
    ("attention", "(queries, keys", "(queries, keys.detach()"),
    (
        "attention",
        "n_heads * config.head_dim",
        "n_heads * (config.dim // config.n_heads)",
    ),
    ("attention_only", ", self.config.rope_theta", ""),
    ("attention_only", "config.dim, config.norm_eps", "config.dim"),
    ("attention_only", "config.n_layers", "1"),
    ("attention_only", "self.norm(x)", "self.norm(x.detach())"),
    ("block", "x = x + self", "x += self"),
    ("block", "FeedForward(config)", "FeedForward(config).requires_grad_(False)"),
    ("llama", "self.norm(x)", "self.norm(x.detach())"),
    ("llama", "x = block(x", "x = block(x.detach()"),
    ("llama", "require_fit(self, ids, mask, cache)", "pass"),
    (
        "llama",
        "self.embed(ids, mask, cache)",
        "self.embed(ids, ids != 3 if cache is mask else mask, cache)",
    ),
    ("sample", "right=True", "right=False"),
    ("sample", "cumulative[:, -1:]", "cumulative[:1, -1:]"),
    ("top_p_filter", "before < top_p", "before < min(top_p, 0.8)"),
    ("pick", "if temperature == 0:", "if temperature == 0 and top_p == 1:"),
    ("pick", "top_p < 1 else", "top_p < 1 <= temperature else"),
    ("generate", "temperature=1.0", "temperature=0.7"),
    ("generate", "eos_id=EOS_ID", "eos_id=None"),
    ("generate", '"left", pad_id', '"left"'),
    ("generate", "model.eval()", "pass"),
    ("generate", "model.train(was_training)", "model.train()"),
    ("generate", "    device =", "    prompts.sort(key=len)\n    device ="),
    ("token_logprobs", "-losses", "-losses.clamp(max=20.0)"),
    ("token_logprobs", "-losses", "-losses * (ids[:, 1:] != 3)"),
    ("lm_loss", "loss_mask[:, 0].any()", "loss_mask[0, 0]"),
    ("lm_loss", "[loss_mask]", "[loss_mask & (ids != 3)]"),
    ("stepper", "lr=lr", "lr=0.1", "self.lr *", "0.1 *"),
    ("stepper", 'self.require_finite("loss", loss, batch_ids)', "pass"),
    ("stepper", "if not _all_finite(self.parameters):", "if False:"),
    (
        "stepper",
        "self.last_good, self.parameters",
        "self.last_good[:1], self.parameters[:1]",
    ),
    (
        "stepper",
        "norm = clip_grad_norm_(self.parameters, self.max_norm)",
        "norm = clip_grad_norm_(self.parameters, 1e9)\n"
        "        for p in self.parameters: clip_grad_norm_([p], self.max_norm)",
    ),
    ("stepper", "betas=(0.9, 0.95)", "betas=(0.9, 0.999)"),
    ("dialogue_example", "tokenizer, response)", "tokenizer, response.strip())"),
    ("pad_examples", "    starts =", "    mask = ids != 3\n    starts ="),
    (
        "pad_examples",
        "    starts =",
        "    ids, mask = (F.pad(x, (0, -x.shape[1] % 4)) for x in (ids, mask))\n"
        "    starts =",
    ),
]
WRONG += [(name, rewritten(RIGHT[name], *pairs)) for name, *pairs in SLIPS]
# `generate` by way of what it calls
WRONG += [
    (
        "generate",
        rewritten(
            generation.generate,
            sample_responses=rewritten(generation.sample_responses, old, new),
        ),
    )
    for old, new in (
        (
            "temperature, top_p)\n",
            "max(temperature, 1.0) if temperature else 0, top_p)\n",
        ),
        ("uniforms[step][rows]", "uniforms[step][: len(rows)]"),
        ("uniforms[step][rows]", "uniforms[0][rows]"),
        ("pad_id, dtype", "3, dtype"),
        ("logprobs = torch.zeros_like", "logprobs = torch.ones_like"),
        ("[: step + 1]", ""),
        ("        require_finite(logits)\n", ""),
    )
]


# Right answers in another style than the package's.
ALSO_RIGHT = [
    (
        "rope_cos_sin",
        lambda p, e, theta=1e4: tuple(
            g(p[:, :, None, None] * theta ** (-2 * torch.arange(e // 2) / e))
            for g in (torch.cos, torch.sin)
        ),
    ),
    ("rope_cos_sin", rope_by_complex_numbers),
    ("rotate", by_complex_numbers),
    (
        "rotate",
        lambda x, cos, sin: (
            x * torch.cat((cos, cos), -1)
            + torch.cat(tuple(-y for y in x.chunk(2, -1)[1:]) + x.chunk(2, -1)[:1], -1)
            * torch.cat((sin, sin), -1)
        ),
    ),
    ("token_positions", by_loop_over_tokens),
    ("token_positions", lambda m: torch.relu(m.long().cumsum(1) - 1)),
    ("attention_bias", bias_by_loops),
    (
        "attention_bias",
        bias_where(lambda m, query, key: (key <= query) & (m | (key == query))),
    ),
    ("attend", attends()),
    ("attend", attend_one_by_one),
    ("attention", ByRepeatedKeys),
    ("attention", type("Same", (model.Attention,), {})),
    ("attention_only", NoTurnWithoutPositions),
    ("attention_only", RowByRow),
]


@pytest.mark.parametrize("name, other", ALSO_RIGHT, ids=[x for x, _ in ALSO_RIGHT])
def test_another_style_passes(name, other):
    getattr(checks, name)(other)


test_the_package_passes, test_mistakes_are_caught = both_tests(RIGHT, WRONG)


# The same things in another style: a check must not ask for the package's words.
ALSO_RIGHT_IN_COUNTING = [
    ("count_bigrams", counts_by_loop(counted_pairs)),
    (
        "count_bigrams",
        lambda examples, size: (
            sum(
                (
                    F.one_hot(torch.tensor(a).long() * size + b, size * size)
                    for x in examples
                    for a, b in counted_pairs(x)
                ),
                start=torch.zeros(size * size),
            )
            .view(size, size)
            .double()
        ),
    ),
    ("unigram_logprobs", lambda c: unigram(c).log()),
    (
        "unigram_logprobs",
        lambda c: (c.sum(0) + 1).log().log_softmax(0),
    ),
    ("bigram_logprobs", smoothed_rows(lambda c, s: s * unigram(c))),
    (
        "bigram_logprobs",
        lambda c, strength=1.0: torch.stack(
            [((r + strength * unigram(c)) / (r.sum() + strength)).log() for r in c]
        ),
    ),
    (
        "table_nats",
        lambda t, c: (
            -sum(c[a, b].item() * t[a, b].item() for a, b in c.nonzero().tolist())
            / c.sum().item()
        ),
    ),
    (
        "table_nats",
        lambda t, c: -torch.where(c > 0, c * t, 0.0).sum().item() / c.sum().item(),
    ),
    ("one_token_floor", entropies),
    (
        "one_token_floor",
        lambda c: (
            (torch.xlogy(c.sum(1), c.sum(1)).sum() - torch.xlogy(c, c).sum()) / c.sum()
        ).item(),
    ),
    (
        "one_token",
        one_token_class(lambda self, x: self.norm(self.mlp(self.mlp_norm(x)).add_(x))),
    ),
    (
        "one_token",
        type(
            "ByTable",
            (ladder.OneToken,),
            {
                "forward": lambda self, ids, mask=None: ladder.OneToken.forward(
                    self, torch.arange(self.config.vocab_size)[None]
                )[0][ids]
            },
        ),
    ),
]


@pytest.mark.parametrize("name, other", ALSO_RIGHT_IN_COUNTING)
def test_another_style_of_counting_passes(name, other, capsys):
    getattr(checks, name)(other)
    assert capsys.readouterr().out.endswith(" checks passed\n")


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
    getattr(checks, name)(answer)


# Right answers in another style than the package's, of lesson 04.
ALSO_RIGHT_IN_WRITING = [
    ("block", InOneExpression),
    ("block", OtherOrder),
    ("llama", FromStates),
    ("llama", DrawsOtherwise),
    ("sample", sample_by_counting),
    ("sample", sample_by_bisection),
    ("top_p_filter", top_p_by_loop),
    ("top_p_filter", top_p_by_pairs),
    ("tiny_cache", TinyOfPieces),
    ("tiny_cache", TinyStacked),
    ("kv_cache", GrowsInPlace),
    ("kv_cache", PutsByIndex),
    ("pick", pick_from_logprobs),
    ("pick", pick_row_by_row),
    ("generate", generates()),
    ("generate", generates(generation.pick)),
]


@pytest.mark.parametrize("name, answer", ALSO_RIGHT_IN_WRITING)
def test_another_style_of_writing_passes(name, answer, capsys):
    getattr(checks, name)(answer)
    assert capsys.readouterr().out.endswith(" checks passed\n")


def norm_as_in_hugging_face(self, x):
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
    return self.weight * wide.to(x.dtype)


def rope_in_float64(positions, head_dim, theta=1e4):
    speeds = 1.0 / theta ** (torch.arange(0, head_dim, 2).double() / head_dim)
    angles = (positions.double().unsqueeze(-1) * speeds).unsqueeze(-2)
    return angles.cos().float(), angles.sin().float()


def rotate_as_in_hugging_face(x, cos, sin):
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * torch.cat((cos, cos), -1) + other * torch.cat((sin, sin), -1)


def attend_by_pytorch(queries, keys, values, bias):
    shared = queries.shape[2] // keys.shape[1]
    keys, values = (x.repeat_interleave(shared, 1) for x in (keys, values))
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=bias[:, 0]
    )
    return mixed.transpose(1, 2).flatten(2)


def attend_by_einsum(queries, keys, values, bias):
    B, T, H, E = queries.shape
    queries = queries.reshape(B, T, keys.shape[1], -1, E)
    scores = torch.einsum("btkge,bkse->bkgts", queries, keys) / math.sqrt(E) + bias
    return torch.einsum("bkgts,bkse->btkge", scores.softmax(-1), values).flatten(2)


def top_p_by_ranks(probs, top_p):
    order = probs.argsort(dim=-1, descending=True, stable=True)
    ordered = probs.gather(-1, order)
    kept = ((ordered.cumsum(-1) - ordered) < top_p).sum(-1, keepdim=True)
    return probs * (order.argsort(-1) < kept)


@torch.no_grad()
def reread(
    network, prompts, n, temperature=1.0, top_p=1.0, generator=None, eos_id=2, pad_id=3
):
    """A right `generate` that reads the whole batch anew for each token."""
    generation.require_room(network.config, prompts, n, temperature)
    was = network.training
    network.eval()
    ids, mask = data.pad(prompts, "left", pad_id)
    response, scores = torch.zeros_like(mask), torch.zeros(ids.shape)
    going, numbers = (
        torch.ones(len(ids)).bool(),
        torch.rand(len(ids), n, generator=generator),
    )
    try:
        for number in numbers.T:
            logits = network(ids, mask)[:, -1]
            generation.require_finite(logits)
            tokens, score = pick_from_logprobs(logits, number, temperature, top_p)
            columns = tokens.where(going, pad_id), going, going, score.where(going, 0.0)
            ids, mask, response, scores = (
                torch.cat((x, column[:, None]), 1)
                for x, column in zip(
                    (ids, mask, response, scores), columns, strict=True
                )
            )
            going = going & (tokens != (-1 if eos_id is None else eos_id))
            if not going.any():
                break
    finally:
        network.train(was)
    return generation.Rollout(ids, mask, response, scores)


class Full(ValueError):
    """Another error, of the right kind."""


class SubclassOfError(model.KVCache):
    def extend(self, mask):
        try:
            return super().extend(mask)
        except ValueError as error:
            raise Full("no room") from error


# Right answers in another style: as others publish them, and by rewritten lines.
ALSO_RIGHT_ELSEWHERE = [
    ("rms_norm", norm_class(norm_as_in_hugging_face)),
    ("rope_cos_sin", rope_in_float64),
    ("rotate", rotate_as_in_hugging_face),
    ("attend", attend_by_pytorch),
    ("attend", attend_by_einsum),
    ("attention", rewritten(model.Attention, attend=attend_by_pytorch)),
    ("attention", rewritten(model.Attention, rotate=rotate_as_in_hugging_face)),
    ("top_p_filter", top_p_by_ranks),
    ("generate", reread),
    ("kv_cache", SubclassOfError),
    (
        "llama",
        rewritten(
            model.Llama,
            "for block in self.layers:\n"
            "            x = block(x, cos, sin, bias, cache)",
            "for i in range(len(self.layers)):\n"
            "            x = self.layers[i](x, cos, sin, bias, cache=cache)",
        ),
    ),
    ("stepper", rewritten(optim.Stepper, ", fused=True", "", "AdamW", "Adam")),
    (
        "train_tokenizer",
        rewritten(tokenizer.train_tokenizer, "ValueError", "UnicodeError"),
    ),
    (
        "sample",
        lambda probs, numbers: (
            (probs.cumsum(-1) > (numbers * probs.sum(-1))[:, None]).int().argmax(-1)
        ),
    ),
    (
        "lm_loss",
        guarded_loss(
            lambda x, ids, m: F.cross_entropy(
                x[:, :-1].flatten(0, 1), ids[:, 1:].where(m[:, 1:], -100).flatten()
            )
        ),
    ),
    (
        "token_logprobs",
        lambda x, ids: F.pad(
            x[:, :-1].double().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0],
            (1, 0),
        ),
    ),
]


@pytest.mark.parametrize("name, answer", ALSO_RIGHT_ELSEWHERE)
def test_another_style_from_elsewhere_passes(name, answer):
    getattr(checks, name)(answer)


# ---------------------------------------------------------------------------- messages


def message_of(name, answer):
    with pytest.raises(AssertionError) as caught:
        getattr(checks, name)(answer)
    return str(caught.value)


def returns_nothing(right):
    """A definition that computes and forgets `return`, in the method that counts."""
    if not isinstance(right, type):
        return lambda *arguments, **named: None

    def nothing(self, *arguments, **named):
        pass

    methods = {"store", "step", "hidden", "forward"} & set(vars(right))
    return type(
        "Forgets",
        (right,),
        dict.fromkeys(methods - {"forward"}, nothing) or {"forward": nothing},
    )


@pytest.mark.parametrize("name", RIGHT)
def test_a_forgotten_return_gets_a_hint(name):
    message = message_of(name, returns_nothing(RIGHT[name]))
    assert "return" in message or "None" in message
    assert "Hint: " in message and len(message) <= 480


@pytest.mark.parametrize(
    "name, mistake",
    [
        ("llama", IgnoresTheMask),
        ("attention_only", UnseededOnly),
        ("one_token", HidesPadding),
        ("attend", attends(scale=False)),
        ("kv_cache", CountsPadding),
        ("tiny_cache", TinyOneLayer),
        ("pad_examples", altered(data.pad_examples, lambda x: x[:2])),
        ("dialogue_example", altered(data.dialogue_example, dataclasses.astuple)),
        ("feed_forward", WithBias),
    ],
)
def test_a_message_can_be_read(name, mistake):
    assert len(message_of(name, mistake)) <= 480


def test_a_number_for_a_tensor_is_called_one():
    message = message_of("lm_loss", altered(lm.lm_loss, torch.Tensor.item))
    assert "expected 0.837, got 0.8369" in message and "a float" in message


def test_texts_are_quoted():
    message = message_of("decode_response", lambda t, ids: t.decode(ids))
    assert "expected 'ab b', got ' ab b'" in message


def test_a_mistake_spoils_no_later_check():
    for name in (
        "unigram_logprobs",
        "bigram_logprobs",
        "table_nats",
        "one_token_floor",
    ):
        message_of(name, lambda *counts: counts[-1].add_(1).sum())
        getattr(checks, name)(RIGHT[name])


def test_what_an_implementation_raises_passes():
    def not_yet(*arguments, **named):
        raise NotImplementedError("an exercise")

    def broken(*arguments, **named):
        raise KeyError("mine")

    for name in ("count_pairs", "rotate", "lm_loss", "sample"):
        with pytest.raises(NotImplementedError):
            getattr(checks, name)(not_yet)
        with pytest.raises(KeyError, match="mine"):
            getattr(checks, name)(broken)
