"""LLaMA in one file: RMSNorm, rotary positions, grouped-query attention with a key/value cache, SwiGLU.

The architecture is that of LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.2) with the grouped-query
attention of Llama 2 (arXiv 2307.09288, section 2.2). Parameters are named and laid out as in Hugging Face's
LlamaForCausalLM, so that a checkpoint maps one to one (see hf.py).

Left out: dropout, biases, rope scaling, sliding windows, fused attention kernels.

Shapes in the comments: B batch, T new tokens, S tokens attended to (cached ones included), D width, H heads,
K key/value heads, G = H/K query heads per key/value head, E head size, F feed-forward width, V vocabulary.
Masks are boolean, True = real token. Positions count real tokens only: padding, on either side, shifts nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a model. Raises ValueError (TypeError for a non-integer size) naming the field at fault."""

    vocab_size: int  # number of token ids
    dim: int  # width of the residual stream
    n_layers: int  # number of blocks
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads, each shared by n_heads / n_kv_heads query heads
    ffn_dim: int  # inner width of the feed-forward network
    max_seq_len: int  # longest sequence accepted, padding and cache included
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # the output projection is the embedding table itself

    def __post_init__(self):
        for name in (
            "vocab_size",
            "dim",
            "n_layers",
            "n_heads",
            "n_kv_heads",
            "ffn_dim",
            "max_seq_len",
        ):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"LlamaConfig: {name} must be an int, got {size!r}")
            if size < 1:
                raise ValueError(f"LlamaConfig: {name} must be at least 1, got {size}")
        for name in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"LlamaConfig: {name} must be positive and finite, got {getattr(self, name)}"
                )
        if self.dim % self.n_heads:
            raise ValueError(
                f"LlamaConfig: dim must be a multiple of n_heads = {self.n_heads}, got {self.dim}"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"LlamaConfig: n_heads must be a multiple of n_kv_heads = {self.n_kv_heads}, got {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"LlamaConfig: the head size dim / n_heads must be even, got {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.dim // self.n_heads


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last dimension, then scales each feature by a learned weight.

    y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4); no mean is
    subtracted. The mean square is taken in float32 at least, whatever the dtype of x.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x `(..., D)` -> `(..., D)`, same dtype."""
        wide = at_least_float32(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 if it has fewer bits, unchanged otherwise."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def token_positions(mask: Tensor) -> Tensor:
    """Position of each token of mask `(B, T)` among the real ones of its row, from 0; padding gets a neighbour's.

    (F, F, T, T, T) -> (0, 0, 0, 1, 2) and (T, T, T, F, F) -> (0, 1, 2, 2, 2).
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def rope_cos_sin(
    positions: Tensor, head_dim: int, theta: float = 10000.0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle by which each pair of features turns at each position, in float32.

    angle(m, i) = m * theta^(-2i/E) for position m and pair i = 0 .. E/2 - 1 (Su et al. 2021, arXiv 2104.09864,
    equation 15). positions `(..., T)` -> two tensors `(..., T, 1, E/2)`, ready to broadcast over heads.
    """
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = theta ** (-pair / head_dim)  # (E/2,) radians per position
    angle = positions[..., None, None].float() * frequency  # (..., T, 1, E/2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pair (x[i], x[i + E/2]) by its angle, for every i < E/2: the half-split layout of Hugging Face.

    x `(B, T, heads, E)`; cos and sin `(B or 1, T, 1, E/2)`. The original checkpoints pair neighbours (2i, 2i + 1)
    instead; converted checkpoints have their q and k rows permuted, so that both give the same scores.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attention_bias(key_mask: Tensor, n_queries: int) -> Tensor:
    """What is added to the attention scores: 0 where a query may look, -inf where it may not.

    key_mask `(B or 1, S)`, True = real token; the queries are the last T = n_queries of the S tokens. A query sees
    the real tokens up to itself (causal) and always itself, so that padding has something to attend to and no row
    of the softmax is empty. Returns float32 `(B or 1, 1, 1, T, S)`.
    """
    n_keys = key_mask.shape[-1]
    query = torch.arange(n_keys - n_queries, n_keys, device=key_mask.device)[
        :, None
    ]  # (T, 1)
    key = torch.arange(n_keys, device=key_mask.device)  # (S,)
    allowed = (key_mask[:, None, :] & (key <= query)) | (key == query)  # (B, T, S)
    bias = torch.zeros(allowed.shape, device=key_mask.device).masked_fill_(
        ~allowed, -math.inf
    )
    return bias[:, None, None]


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E) + bias) v, the softmax in float32 at least.

    Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, equation 1), grouped: query heads
    g G .. (g + 1) G - 1 share key/value head g. Their T queries are stacked into one matrix of G T rows, so that
    keys and values are never repeated.

    queries `(B, T, H, E)`; keys and values `(B, K, S, E)`; bias as from `attention_bias`. Returns `(B, T, H E)`.
    """
    B, T, H, E = queries.shape
    K, S = keys.shape[1:3]
    grouped = (
        queries.view(B, T, K, H // K, E).permute(0, 2, 3, 1, 4).reshape(B, K, -1, E)
    )  # (B, K, G T, E)
    scores = (grouped * E**-0.5) @ keys.transpose(-1, -2)  # (B, K, G T, S)
    weights = torch.softmax(
        scores.view(B, K, H // K, T, S) + bias, dim=-1
    )  # (B, K, G, T, S)
    mixed = weights.view(B, K, -1, S).to(values.dtype) @ values  # (B, K, G T, E)
    return mixed.view(B, H, T, E).transpose(1, 2).reshape(B, T, H * E)


class KVCache:
    """Keys and values of the tokens seen so far, for every layer; for inference only.

    Room for `capacity` tokens is taken at once. `length` slots are filled, the same number in every row; `mask`
    says which of them hold a real token, and `count` `(B,)` how many do, which is the next token's position.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int,
        capacity: int,
        device=None,
        dtype=torch.float32,
    ):
        shape = (
            config.n_layers,
            batch_size,
            config.n_kv_heads,
            capacity,
            config.head_dim,
        )
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.mask = torch.zeros(batch_size, capacity, dtype=torch.bool, device=device)
        self.count = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.length = 0

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return self.mask.shape[0]

    @property
    def capacity(self) -> int:
        """Number of slots a row has."""
        return self.mask.shape[1]

    def extend(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Makes room for new tokens of mask `(B, T)`; returns their positions `(B, T)` and the whole mask `(B, S)`."""
        start, self.length = self.length, self.length + mask.shape[1]
        self.mask[:, start : self.length] = mask
        positions = (self.count[:, None] + mask.cumsum(-1) - 1).clamp(min=0)
        self.count = self.count + mask.sum(-1)
        return positions, self.mask[:, : self.length]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one layer's new keys and values `(B, K, T, E)`; returns all of that layer's, `(B, K, S, E)`."""
        if keys.requires_grad:
            raise RuntimeError(
                "KVCache: keys must not require grad; a cached forward runs under torch.no_grad()"
            )
        new = slice(self.length - keys.shape[2], self.length)
        self.keys[layer, :, :, new] = keys
        self.values[layer, :, :, new] = values
        return self.keys[layer, :, :, : self.length], self.values[
            layer, :, :, : self.length
        ]


class Attention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads; `layer` is its place in a cache."""

    def __init__(self, config: LlamaConfig, layer: int = 0):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.layer = (
            config.n_heads,
            config.n_kv_heads,
            layer,
        )
        self.q_proj = nn.Linear(
            config.dim, config.n_heads * config.head_dim, bias=False
        )
        self.k_proj = nn.Linear(
            config.dim, config.n_kv_heads * config.head_dim, bias=False
        )
        self.v_proj = nn.Linear(
            config.dim, config.n_kv_heads * config.head_dim, bias=False
        )
        self.o_proj = nn.Linear(
            config.n_heads * config.head_dim, config.dim, bias=False
        )

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x `(B, T, D)` -> `(B, T, D)`; cos and sin from `rope_cos_sin`, bias from `attention_bias`."""
        B, T, _ = x.shape
        queries = rotate(
            self.q_proj(x).view(B, T, self.n_heads, -1), cos, sin
        )  # (B, T, H, E)
        keys = rotate(
            self.k_proj(x).view(B, T, self.n_kv_heads, -1), cos, sin
        ).transpose(1, 2)  # (B, K, T, E)
        values = (
            self.v_proj(x).view(B, T, self.n_kv_heads, -1).transpose(1, 2)
        )  # (B, K, T, E)
        if cache is not None:
            keys, values = cache.store(self.layer, keys, values)  # (B, K, S, E)
        return self.o_proj(attend(queries, keys, values, bias))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202, equation 6)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x `(..., D)` -> `(..., D)`, by way of `(..., F)`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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


class Llama(nn.Module):
    """The language model: embedding, blocks, final norm, output projection.

    Weights are normal with standard deviation 0.02, those of the projections back into the residual stream (o_proj
    and down_proj) 0.02 / sqrt(2 n_layers) (GPT-2, Radford et al. 2019, section 2.3); norms start at 1. They are
    drawn from `generator`, a CPU generator (None: torch's default), so that they are equal on every device.
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None):
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
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws every matrix anew, in the order of `named_parameters`; does nothing on the meta device."""
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or parameter.is_meta:
                continue
            back_to_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = (
                0.02 / math.sqrt(2 * self.config.n_layers) if back_to_residual else 0.02
            )
            parameter.copy_(
                std * torch.randn(parameter.shape, generator=generator, device="cpu")
            )

    def embed(self, ids, mask=None, cache=None):
        """What the first block gets: states (B, T, D), cosines, sines and the attention bias.

        A cache is extended by the new tokens. Arguments and errors as for `hidden`.
        """
        check_inputs(self.config, ids, mask, cache)
        if cache is None:
            key_mask = (
                torch.ones_like(ids[:1], dtype=torch.bool) if mask is None else mask
            )
            positions = token_positions(key_mask)  # (1, T) or (B, T)
        else:
            new = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            positions, key_mask = cache.extend(new)  # (B, T), (B, S)
        x = self.embed_tokens(ids)  # (B, T, D)
        cos, sin = rope_cos_sin(positions, self.config.head_dim, self.config.rope_theta)
        bias = attention_bias(key_mask, ids.shape[1])  # (B or 1, 1, 1, T, S)
        return x, cos.to(x.dtype), sin.to(x.dtype), bias

    def hidden(self, ids, mask=None, cache=None):
        """States after the final norm, (B, T, D).

        ids: int64 (B, T). mask: bool (B, T), True = real token, padding on either side,
        None = all real. With a cache, ids and mask are those of the new tokens only, and
        the cache is extended by them. What stands at padding is finite and has no meaning.
        Raises TypeError for a wrong dtype, ValueError for a wrong shape, an empty batch, a
        row of nothing but padding (without a cache) or more than max_seq_len tokens,
        IndexError for an id outside the vocabulary.
        """
        x, cos, sin, bias = self.embed(ids, mask, cache)
        for block in self.layers:
            x = block(x, cos, sin, bias, cache)
        return self.norm(x)

    def forward(self, ids, mask=None, cache=None):
        """Logits (B, T, V) of the token after each one; arguments and errors as for `hidden`."""
        return self.lm_head(self.hidden(ids, mask, cache))


def check_inputs(
    config: LlamaConfig,
    ids: Tensor,
    mask: Tensor | None,
    cache: KVCache | None,
) -> None:
    """Raises what `Llama.hidden` says; the values are looked at once, so a GPU waits once per call."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(
            f"Llama: ids must be an int64 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}"
        )
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(
            f"Llama: ids must be (B, T) with at least one row and one token, got {tuple(ids.shape)}"
        )
    for name, flags in (("mask", mask),):
        if flags is not None and (
            not isinstance(flags, Tensor) or flags.dtype != torch.bool
        ):
            raise TypeError(
                f"Llama: {name} must be a bool tensor, got {getattr(flags, 'dtype', type(flags).__name__)}"
            )
        if flags is not None and flags.shape != ids.shape:
            raise ValueError(
                f"Llama: {name} must have the shape of ids {tuple(ids.shape)}, got {tuple(flags.shape)}"
            )
    length = ids.shape[1] + (0 if cache is None else cache.length)
    if length > config.max_seq_len:
        raise ValueError(
            f"Llama: ids must fit in max_seq_len = {config.max_seq_len} with the cache, got {length}"
        )
    if cache is not None and (
        cache.batch_size != ids.shape[0] or cache.capacity < length
    ):
        raise ValueError(
            f"Llama: cache must have {ids.shape[0]} rows and room for {length} tokens, "
            f"got {cache.batch_size} rows and {cache.capacity}"
        )
    lowest, highest = ids.aminmax()
    good = (lowest >= 0) & (highest < config.vocab_size)
    if mask is not None and cache is None:
        good = good & mask.any(1).all()
    if good:
        return
    if lowest < 0 or highest >= config.vocab_size:
        raise IndexError(
            f"Llama: ids must be in 0 .. {config.vocab_size - 1}, got {int(lowest)} .. {int(highest)}"
        )
    raise ValueError(
        f"Llama: mask must keep a token in every row, got row {int(mask.any(1).int().argmin())} empty"
    )
