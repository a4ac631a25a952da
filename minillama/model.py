"""LLaMA in one file: RMSNorm, rotary positions, attention with a cache, SwiGLU.

The architecture is that of LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.2)
with the grouped-query attention of Llama 2 (arXiv 2307.09288, section 2.2). Parameters
are named and laid out as in Hugging Face's LlamaForCausalLM, so that a checkpoint maps
one to one (see hf.py).

Left out: dropout, biases, sliding windows, fused attention kernels. RoPE with slower
frequencies, as Llama 3.1 has it, stands in rope_scaling.py.

Shapes in the comments: B batch, T new tokens, S tokens attended to (cached ones
included), D width, H heads, K key/value heads, G = H/K query heads per key/value head,
E head size, F feed-forward width, V vocabulary. Masks are boolean, True = real token.
Positions count real tokens only: padding, wherever it stands, shifts nothing.

Contracts stand at the doors: constructors, what is called once a forward pass, `hidden`
and `forward`. What runs in every layer (`rotate`, `attend`, the modules) has none.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minillama.contracts import expects
from minillama.rope_scaling import scaled_cos_sin


@expects(
    "vocab_size, n_layers, n_kv_heads, ffn_dim, max_seq_len: int >= 1",
    "dim: int >= 1, a multiple of 2 n_heads",
    "n_heads: int >= 1, a multiple of n_kv_heads",
    "rope_theta, norm_eps: finite number > 0",
    "tie_embeddings: flag",
    "head_size: int >= 2 or None",
    "rope_scaling: LinearScaling or Llama3Scaling or None",
)
@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a model."""

    vocab_size: int  # Token ids run from 0 to vocab_size - 1.
    dim: int  # The residual stream has this width, an even number for each head.
    n_layers: int  # So many blocks follow one another.
    n_heads: int  # So many query heads share the width.
    n_kv_heads: int  # Each key/value head serves n_heads / n_kv_heads query heads.
    ffn_dim: int  # The feed-forward network is this wide inside.
    max_seq_len: int  # No sequence is longer, padding and cache included.
    rope_theta: float = 10000.0  # Rotary wavelengths grow towards 2 pi rope_theta.
    norm_eps: float = 1e-5  # RMSNorm adds this to the mean square.
    tie_embeddings: bool = False  # If True, lm_head is the embedding table itself.
    head_size: int | None = None  # An even head_dim; None: dim / n_heads.
    rope_scaling: object = None  # For texts longer than in pretraining; None: as is.

    def __post_init__(self):
        if self.head_dim % 2:
            raise ValueError(
                f"LlamaConfig: head_size must be even or None, got {self.head_size}"
            )

    @property
    def head_dim(self):
        """The size of one attention head."""
        return self.head_size or self.dim // self.n_heads


@expects("dim: int >= 1", "eps: finite number > 0")
class RMSNorm(nn.Module):
    """Division by the root mean square of the last dimension, then a learned scale.

        y = x / sqrt(mean(x^2) + eps) * weight

    No mean is subtracted. The mean square is taken in float32 at least, and the result
    has the dtype of x. Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        """Map x (..., D) to (..., D)."""
        half = x.dtype in (torch.bfloat16, torch.float16)
        wide = x.float() if half else x
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


@expects("mask: bool (B, T)")
def token_positions(mask):
    """Return each token's position (B, T) among the real ones of its row, from 0.

    Padding gets a neighbour's position:
    (F, F, T, T, T) -> (0, 0, 0, 1, 2) and (T, T, T, F, F) -> (0, 1, 2, 2, 2).
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


@expects("positions: int64 (..., T)", "head_dim: int >= 2", "theta: finite number > 0")
def rope_cos_sin(positions, head_dim, theta=10000.0):
    """Return cosine and sine of the angle by which each pair of features turns.

        angle(m, i) = m * theta^(-2i/E)    at position m, for the pair i = 0 .. E/2 - 1

    Two float32 tensors (..., T, 1, E/2), ready to broadcast over heads. Source: Su et
    al. 2021 (arXiv 2104.09864), equation 15, which counts pairs from 1.
    """
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = theta ** (-pair / head_dim)  # (E/2,) radians per position
    angle = positions[..., None, None].float() * frequency  # (..., T, 1, E/2)
    return angle.cos(), angle.sin()


def rotary_table(positions, config):
    """Return `rope_cos_sin` of positions (..., T) as a config says, scaled or not."""
    if config.rope_scaling is None:
        return rope_cos_sin(positions, config.head_dim, config.rope_theta)
    return scaled_cos_sin(
        positions, config.head_dim, config.rope_theta, config.rope_scaling
    )


def rotate(x, cos, sin):
    """Turn the pair (x[i], x[i + E/2]) by its angle, for every i < E/2.

    x (B, T, heads, E); cos and sin (B or 1, T, 1, E/2). This is the half-split layout
    of Hugging Face. The original checkpoints pair neighbours (2i, 2i + 1) instead;
    converted ones have their q and k rows permuted, so that both give the same scores.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


@expects("key_mask: bool (B, S)", "n_queries: int >= 1")
def attention_bias(key_mask, n_queries):
    """Return what is added to the scores: 0 where a query may look, -inf where not.

    The queries are the last T = n_queries of the S tokens. A query sees the real tokens
    up to itself (causal) and always itself, so that padding has something to attend to
    and no row of the softmax is empty. Float32 (B, 1, 1, T, S).
    """
    n_keys = key_mask.shape[-1]
    if n_queries > n_keys:
        raise ValueError(
            f"attention_bias: n_queries must be at most {n_keys} keys, got {n_queries}"
        )
    key = torch.arange(n_keys, device=key_mask.device)  # (S,)
    query = key[n_keys - n_queries :, None]  # (T, 1)
    allowed = (key_mask[:, None, :] & (key <= query)) | (key == query)  # (B, T, S)
    bias = torch.zeros(allowed.shape, device=key_mask.device)
    return bias.masked_fill_(~allowed, -math.inf)[:, None, None]


def attend(queries, keys, values, bias):
    """Return the values mixed by how well keys answer queries, (B, T, H E).

        softmax(q k^T / sqrt(E) + bias) v    with the softmax in float32 at least

    queries (B, T, H, E); keys and values (B, K, S, E); bias as from `attention_bias`.
    Query heads g G .. (g + 1) G - 1 share key/value head g. Their T queries are stacked
    into one matrix of G T rows, so that keys and values are never repeated. Source:
    scaled dot-product attention, Vaswani et al. 2017 (arXiv 1706.03762), equation 1.
    """
    B, T, H, E = queries.shape
    K, S = keys.shape[1:3]
    grouped = queries.view(B, T, K, H // K, E).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(B, K, -1, E)  # (B, K, G T, E)
    scores = (grouped * E**-0.5) @ keys.transpose(-1, -2)  # (B, K, G T, S)
    scores = scores.view(B, K, H // K, T, S) + bias  # (B, K, G, T, S)
    weights = torch.softmax(scores, dim=-1).view(B, K, -1, S)  # (B, K, G T, S)
    mixed = weights.to(values.dtype) @ values  # (B, K, G T, E)
    return mixed.view(B, H, T, E).transpose(1, 2).reshape(B, T, H * E)


def require_slots(cache, mask):
    """Refuse, in the name of `KVCache.extend`, other rows or too many columns."""
    B, T = mask.shape
    if B != cache.batch_size or T > cache.capacity - cache.length:
        raise ValueError(
            f"KVCache.extend: mask must have {cache.batch_size} rows and at most "
            f"{cache.capacity - cache.length} columns, got {B} and {T}"
        )


def require_constants(keys, values):
    """Refuse, in the name of `KVCache.store`, what autograd would follow."""
    if keys.requires_grad or values.requires_grad:
        raise RuntimeError(
            "KVCache.store: keys and values must not require grad, got grad; "
            "a cached forward runs under torch.no_grad()"
        )


@expects("config: LlamaConfig", "batch_size, capacity: int >= 1")
class KVCache:
    """Keys and values of the tokens seen so far, for every layer; for inference only.

    Room for `capacity` tokens is taken at once. `length` slots are filled, the same
    number in every row; `mask` says which of them hold a real token, and `count` (B,)
    how many do, which is the next token's position.
    """

    def __init__(self, config, batch_size, capacity, device=None, dtype=torch.float32):
        self.config, self.length = config, 0
        slots = (config.n_kv_heads, capacity, config.head_dim)
        shape = (config.n_layers, batch_size, *slots)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.mask = torch.zeros(batch_size, capacity, dtype=torch.bool, device=device)
        self.count = torch.zeros(batch_size, dtype=torch.int64, device=device)

    @property
    def batch_size(self):
        """The number of rows."""
        return self.mask.shape[0]

    @property
    def capacity(self):
        """The number of slots in a row."""
        return self.mask.shape[1]

    @expects("mask: bool (B, T)")
    def extend(self, mask):
        """Make room for new tokens; return their positions (B, T) and all masks (B, S).

        A row of the mask may be empty: all of its new tokens are padding.
        """
        require_slots(self, mask)
        start, self.length = self.length, self.length + mask.shape[1]
        self.mask[:, start : self.length] = mask
        positions = (self.count[:, None] + mask.cumsum(-1) - 1).clamp(min=0)
        self.count = self.count + mask.sum(-1)
        return positions, self.mask[:, : self.length]

    def store(self, layer, keys, values):
        """Write a layer's new keys and values (B, K, T, E); return all (B, K, S, E)."""
        require_constants(keys, values)
        new = slice(self.length - keys.shape[2], self.length)
        self.keys[layer, :, :, new] = keys
        self.values[layer, :, :, new] = values
        seen = (layer, slice(None), slice(None), slice(self.length))
        return self.keys[seen], self.values[seen]


@expects("config: LlamaConfig", "layer: int >= 0")
class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads.

    `layer` is its place in a cache.
    """

    def __init__(self, config, layer=0):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.layer = layer
        wide = config.n_heads * config.head_dim  # dim, but for an explicit head_size
        narrow = config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, wide, bias=False)
        self.k_proj = nn.Linear(config.dim, narrow, bias=False)
        self.v_proj = nn.Linear(config.dim, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.dim, bias=False)

    def queries(self, x, cos, sin):
        """Return what each token of x (B, T, D) asks for, turned: (B, T, H, E)."""
        queries = self.q_proj(x).unflatten(-1, (self.n_heads, -1))
        return rotate(queries, cos, sin)

    def keys_and_values(self, x, cos, sin):
        """Return what each token of x (B, T, D) offers: two of (B, K, T, E)."""
        keys = self.k_proj(x).unflatten(-1, (self.n_kv_heads, -1))  # (B, T, K, E)
        values = self.v_proj(x).unflatten(-1, (self.n_kv_heads, -1))  # (B, T, K, E)
        return rotate(keys, cos, sin).transpose(1, 2), values.transpose(1, 2)

    def forward(self, x, cos, sin, bias, cache=None):
        """Map x (B, T, D) to (B, T, D); see `rope_cos_sin` and `attention_bias`."""
        queries = self.queries(x, cos, sin)
        keys, values = self.keys_and_values(x, cos, sin)
        if cache is not None:
            keys, values = cache.store(self.layer, keys, values)  # (B, K, S, E)
        return self.o_proj(attend(queries, keys, values, bias))


@expects("config: LlamaConfig")
class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate(x)) * up(x)).

    Source: Shazeer 2020 (arXiv 2002.05202), equation 6.
    """

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x):
        """Map x (..., D) to (..., D) by way of (..., F)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@expects("config: LlamaConfig", "layer: int >= 0")
class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config, layer=0):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x, cos, sin, bias, cache=None):
        """Map x (B, T, D) to (B, T, D); the other arguments are as for `Attention`."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def require_lm_head(model, caller):
    """Refuse, in the name of the caller, a body without output projection."""
    if model.lm_head is None:
        raise ValueError(
            f"{caller}: the model must have an lm_head, got a body without one, "
            "as copy_body makes it unless keep_lm_head=True"
        )


def require_fit(model, ids, mask, cache):
    """Refuse, in the name of `Llama`, what is too long, empty or of another model."""
    config, dtype = model.config, model.embed_tokens.weight.dtype
    length = ids.shape[1] + (0 if cache is None else cache.length)
    if length > config.max_seq_len:
        raise ValueError(
            "Llama: ids must fit in max_seq_len = "
            f"{config.max_seq_len} with what the cache holds, got {length} tokens"
        )
    if cache is None:
        if mask is not None and not mask.any(1).all():
            row = int(mask.any(1).int().argmin())
            raise ValueError(
                "Llama: mask must be True somewhere in every row without a cache, "
                f"got no True in row {row}"
            )
        return
    if cache.config != config or cache.keys.dtype != dtype:
        raise ValueError(
            f"Llama: cache must be of this model's config and of {dtype}, "
            f"got {cache.config} and {cache.keys.dtype}"
        )
    if cache.batch_size != len(ids) or cache.capacity < length:
        raise ValueError(
            f"Llama: cache must have {len(ids)} rows and room for {length} tokens, "
            f"got {cache.batch_size} rows and {cache.capacity}"
        )


@expects("module: Module", "n_layers: int >= 1", "generator: Generator or None")
@torch.no_grad()
def draw_weights(module, n_layers, generator=None):
    """Draw every matrix of a model of `n_layers` blocks anew, as `Llama` says.

    In the order of `named_parameters`; nothing is drawn on the meta device.
    """
    back_to_residual = 0.02 / math.sqrt(2 * n_layers)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2 or parameter.is_meta:
            continue
        is_back = name.endswith(("o_proj.weight", "down_proj.weight"))
        noise = torch.randn(parameter.shape, generator=generator, device="cpu")
        parameter.copy_((back_to_residual if is_back else 0.02) * noise)


def positions_and_keys(ids, mask=None, cache=None):
    """Return positions (B or 1, T) and which of all keys are real, (B or 1, S).

    A cache is extended by the new tokens; what it holds is among the keys.
    """
    if cache is None:
        key_mask = torch.ones_like(ids[:1], dtype=torch.bool) if mask is None else mask
        return token_positions(key_mask), key_mask
    new = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return cache.extend(new)


@expects("config: LlamaConfig", "generator: Generator or None")
class Llama(nn.Module):
    """The language model: embedding, blocks, final norm, output projection.

    Weights are normal with standard deviation 0.02, those of the projections back into
    the residual stream (o_proj and down_proj) 0.02 / sqrt(2 n_layers) (GPT-2, Radford
    et al. 2019, section 2.3); norms start at 1. They are drawn from `generator`, a CPU
    generator (None: torch's default), so that they are equal on every device.
    """

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        draw_weights(self, config.n_layers, generator)

    def embed(self, ids, mask=None, cache=None):
        """Return what the first block gets: states (B, T, D), cosines, sines and bias.

        A cache is extended by the new tokens. Conventions as for `hidden`.
        """
        require_fit(self, ids, mask, cache)
        positions, key_mask = positions_and_keys(ids, mask, cache)
        x = self.embed_tokens(ids)  # (B, T, D)
        cos, sin = rotary_table(positions, self.config)
        bias = attention_bias(key_mask, ids.shape[1])  # (B or 1, 1, 1, T, S)
        return x, cos.to(x.dtype), sin.to(x.dtype), bias

    @expects(
        "ids: int64 (B, T) below self.config.vocab_size",
        "mask: bool (B, T) or None",
        "cache: KVCache or None",
    )
    def hidden(self, ids, mask=None, cache=None):
        """Return the states after the final norm, (B, T, D).

        The mask is True at real tokens, None if all are real; it keeps at least one in
        every row. What it leaves out, on either side or in between, is to the real
        tokens as if it were not there; the states at padding are finite and have no
        meaning. With a cache, ids and mask are those of the new tokens alone, the cache
        is extended by them, and a row may be all padding.
        """
        x, cos, sin, bias = self.embed(ids, mask, cache)
        for block in self.layers:
            x = block(x, cos, sin, bias, cache)
        return self.norm(x)

    @expects(
        "ids: int64 (B, T) below self.config.vocab_size",
        "mask: bool (B, T) or None",
        "cache: KVCache or None",
    )
    def forward(self, ids, mask=None, cache=None):
        """Return logits (B, T, V) of the token after each one; see `hidden`."""
        require_lm_head(self, "Llama")
        return self.lm_head(self.hidden(ids, mask, cache))
