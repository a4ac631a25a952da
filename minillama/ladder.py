"""The ladder of Part I: what each piece of a LLaMA is worth, in nats a token.

Language models that lack a piece, from counting tables up to one block, measured on the
same held-out dialogues. The entropy of the world is the floor under all of them, so the
ladder shows how much of the way to it each piece goes.

Two rungs are counted: `unigram_logprobs` and `bigram_logprobs`, tables of log p(next |
previous). Two are networks: `OneToken`, which sees one token, and `AttentionOnly`,
which also looks back. The others are `Llama`s of few blocks. All rungs learn from the
same texts, as often. Left out: counts of longer contexts (Shannon 1948 has them).
"""

from itertools import pairwise

import torch
from torch import nn
from tqdm import tqdm

from minillama.contracts import expects
from minillama.data import endless_batches, pad_examples, require_ids
from minillama.lm import lm_loss
from minillama.model import (
    Attention,
    FeedForward,
    RMSNorm,
    attention_bias,
    draw_weights,
    rope_cos_sin,
    token_positions,
)
from minillama.optim import Stepper, warmup_cosine

# --------------------------------------------------------------------------------------
# Counting


@expects("examples: list of Example (N,)", "vocab_size: int >= 1")
def count_bigrams(examples, vocab_size):
    """Return how often token b follows token a where the loss counts: (V, V) float64.

    Row a, column b.
    """
    require_ids("count_bigrams", examples, vocab_size)
    pairs = [
        a * vocab_size + b
        for example in examples
        for a, b in pairwise(example.ids[example.loss_start - 1 :])
    ]
    counts = torch.bincount(torch.tensor(pairs).long(), minlength=vocab_size**2)
    return counts.view(vocab_size, vocab_size).double()


@expects("counts: finite float (V, V), >= 0")
def unigram_logprobs(counts):
    """Return log p(b) for every token from counts of pairs: (V,), in nats.

    p(b) = (how often b came + 1) / (how many tokens + V). The 1 keeps a token that was
    never seen possible (Laplace's rule of succession).
    """
    frequency = counts.sum(0) + 1
    return (frequency / frequency.sum()).log()


@expects("counts: finite float (V, V), >= 0", "strength: finite number > 0")
def bigram_logprobs(counts, strength=1.0):
    """Return log p(b | a) for every pair of tokens from their counts: (V, V), in nats.

    p(b | a) = (how often b followed a + strength * p(b)) / (how often a + strength),
    where p(b) is the unigram's: after a token that was seen a thousand times the counts
    speak, after one that was never seen the unigram does. Source: Jelinek and Mercer
    1980; MacKay and Peto 1995 derive this form.
    """
    prior = unigram_logprobs(counts).exp()  # (V,)
    smoothed = counts + strength * prior  # (V, V)
    return (smoothed / smoothed.sum(1, keepdim=True)).log()


def require_pairs(caller, counts):
    """Refuse, in the name of a caller, counts of no pair at all."""
    if not counts.any():
        raise ValueError(f"{caller}: counts must be > 0 somewhere, got zeros")


@expects("logprobs: float (V, V), no NaN", "counts: finite float (V, V), >= 0")
def table_nats(logprobs, counts):
    """Return the cross-entropy of a table of log p(b | a) on counted pairs, in nats.

    -sum of count(a, b) * log p(b | a), divided by the sum of the counts; inf where a
    pair was counted that the table holds for impossible.
    """
    require_pairs("table_nats", counts)
    seen = counts > 0  # elsewhere 0 times -inf would be NaN
    return -(counts[seen] * logprobs[seen]).sum().item() / counts.sum().item()


@expects("counts: finite float (V, V), >= 0")
def one_token_floor(counts):
    """Return the least loss on these pairs of any model that sees one token, in nats.

    It is the entropy of b given a under the counts themselves: no table, counted or
    learned, fits them better than they fit themselves.
    """
    require_pairs("one_token_floor", counts)
    total = counts.sum(1, keepdim=True)  # (V, 1), 0 for a token that never came
    own = counts / total.masked_fill(total == 0, 1)
    return table_nats(own.log(), counts)


# --------------------------------------------------------------------------------------
# Networks that lack a piece


@expects("config: LlamaConfig", "generator: Generator or None")
class OneToken(nn.Module):
    """A language model that sees one token: embedding, feed-forward, output.

    Weights are drawn as those of `Llama`.
    """

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        draw_weights(self, config.n_layers, generator)

    @expects(
        "ids: int64 (B, T) below self.config.vocab_size", "mask: bool (B, T) or None"
    )
    def forward(self, ids, mask=None):
        """Return logits (B, T, V) of the token after each one of ids (B, T)."""
        x = self.embed_tokens(ids)  # (B, T, D)
        x = x + self.mlp(self.mlp_norm(x))
        return self.lm_head(self.norm(x))


@expects("config: LlamaConfig", "positions: flag", "generator: Generator or None")
class AttentionOnly(nn.Module):
    """A language model that looks back, once: embedding, attention, output.

    Without `positions` every token stands at position 0, so that RoPE turns nothing.
    """

    def __init__(self, config, positions=True, generator=None):
        super().__init__()
        self.config, self.positions = config, positions
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        draw_weights(self, config.n_layers, generator)

    @expects(
        "ids: int64 (B, T) below self.config.vocab_size", "mask: bool (B, T) or None"
    )
    def forward(self, ids, mask=None):
        """Return logits (B, T, V) of the token after each one of ids (B, T)."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        positions = token_positions(mask) * self.positions  # (B, T)
        cos, sin = rope_cos_sin(positions, self.config.head_dim, self.config.rope_theta)
        bias = attention_bias(mask, ids.shape[1])
        x = self.embed_tokens(ids)  # (B, T, D)
        x = x + self.attention(self.attention_norm(x), cos, sin, bias)
        return self.lm_head(self.norm(x))


# --------------------------------------------------------------------------------------
# Training and measuring


@expects(
    "model: Module",
    "examples: list of Example (N,)",
    "generator: Generator",
    "steps: int >= 1",
    "batch_size: int >= 1, at most len(examples)",
    "desc: text or None",
)
def train_rung(model, examples, generator, steps=200, batch_size=32, desc=None):
    """Train any network from ids and mask to logits; return each step's loss, nats.

    This is `lm.train_lm` in its plainest form, with a rate of 6e-3: a run as short as
    this one loses by the course's 2e-3. The model trains in train mode and is left in
    eval mode.
    """
    device = next(model.parameters()).device
    batches = endless_batches(len(examples), batch_size, generator)
    stepper = Stepper(model, 6e-3, lambda step: warmup_cosine(step, steps, 10))
    model.train()
    losses = []
    for _ in tqdm(range(steps), desc=desc, disable=desc is None):
        batch = next(batches)
        padded = pad_examples([examples[i] for i in batch])
        ids, mask, loss_mask = (x.to(device) for x in padded)  # (B, T) each
        loss = lm_loss(model(ids, mask), ids, loss_mask)
        stepper.step(loss, batch)
        losses.append(loss.item())
    model.eval()
    return losses


@expects("model: Module", "examples: list of Example (N,)", "batch_size: int >= 1")
@torch.no_grad()
def held_out_nats(model, examples, batch_size=64):
    """Return the mean loss of a network over all counted tokens, in nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), batch_size):
        padded = pad_examples(ordered[start : start + batch_size])
        ids, mask, loss_mask = (x.to(device) for x in padded)  # (B, T) each
        tokens = int(loss_mask.sum())
        total += lm_loss(model(ids, mask), ids, loss_mask).item() * tokens
        count += tokens
    return total / count
