"""Checks of lesson 27 pass the package and fail plausible mistakes."""

import pytest
from mistakes import altered, both_tests

from minillama import scaling as s
from minillama.course import checks

RIGHT = {
    "flops_per_token": s.flops_per_token,
    "attainable": s.attainable,
    "saved_bytes": s.saved_bytes,
    "state_bytes": s.state_bytes,
}


def flops(weights=2, attention=4, backward=2, heads="n_heads", size=None):
    """`flops_per_token` with other factors."""

    def f(config, length, training=True):
        wide = (
            getattr(config, heads) * config.head_dim if size is None else size(config)
        )
        seen = attention * config.n_layers * wide * length
        forward = weights * s.matmul_weights(config) + seen
        return forward * (1 + backward) if training else forward

    return f


def flops_of(count):
    """`flops_per_token` with another N."""

    def f(config, length, training=True):
        wide = config.n_heads * config.head_dim
        forward = 2 * count(config) + 4 * config.n_layers * wide * length
        return 3 * forward if training else forward

    return f


def with_the_table(config):
    return s.matmul_weights(config) + config.vocab_size * config.dim


def without_a_tied_head(config):
    head = config.vocab_size * config.dim
    return s.matmul_weights(config) - head * config.tie_embeddings


def with_full_keys(config):
    more = 2 * config.dim * (config.n_heads - config.n_kv_heads) * config.head_dim
    return s.matmul_weights(config) + config.n_layers * more


def attention_once(config, length, training=True):
    """The backward pass of attention forgotten."""
    seen = 4 * config.n_layers * config.n_heads * config.head_dim * length
    return (6 if training else 2) * s.matmul_weights(config) + seen


def by_products(config, length, training=True):
    """Product by product, forward and backward, for a text."""
    D, H, E, T = config.dim, config.n_heads, config.head_dim, length
    K, F, V = config.n_kv_heads, config.ffn_dim, config.vocab_size
    shapes = [(T, D, H * E), (T, D, K * E), (T, D, K * E), (T, H * E, D)]
    shapes += [(T, E, T)] * H + [(T, T, E)] * H
    shapes += [(T, D, F), (T, D, F), (T, F, D)]
    shapes = shapes * config.n_layers + [(T, D, V)]
    total = sum(2 * m * k * n for m, k, n in shapes) // T
    return total * 3 if training else total


def saved(
    D=6,
    wide=2,
    narrow=2,
    F=4,
    scores=1,
    factors=2,
    end=3,
    angles=1,
    size=4,
    layers=True,
):
    """`saved_bytes` with other counts."""

    def f(config, batch, length):
        block = D * config.dim + wide * config.n_heads * config.head_dim
        block += narrow * config.n_kv_heads * config.head_dim + F * config.ffn_dim
        block += scores * config.n_heads * length + factors
        block *= config.n_layers if layers else 1
        numbers = batch * length * (block + end * config.dim + bool(end))
        return size * (numbers + angles * length * config.head_dim)

    return f


def saved_with_logits(config, batch, length):
    return s.saved_bytes(config, batch, length) + 4 * batch * length * config.vocab_size


def saved_with_weights(config, batch, length):
    return s.saved_bytes(config, batch, length) + 4 * s.matmul_weights(config)


def saved_one_by_one(config, batch, length):
    """Tensor by tensor."""
    B, T, D = batch, length, config.dim
    wide = B * T * config.n_heads * config.head_dim
    narrow = B * T * config.n_kv_heads * config.head_dim
    norm = 3 * B * T * D + B * T
    tensors = [norm, norm, wide, narrow, narrow, B * config.n_heads * T * T, wide]
    tensors += [B * T * config.ffn_dim] * 4
    return 4 * (sum(tensors) * config.n_layers + norm + T * config.head_dim)


def state(weights=2, gradients=2, moments=12, order=(3, 2, 1), is_whole=False):
    """`state_bytes` with other sizes, or shared out in another order."""

    def f(parameters, processes=1, stage=0):
        if not 0 <= stage <= 3:
            raise ValueError
        total = 0
        for size, first in zip((weights, gradients, moments), order, strict=True):
            share = processes if stage >= first else 1
            part = size * parameters
            total += part // share if is_whole else part / share
        return total

    return f


def unguarded(parameters, processes=1, stage=0):
    kinds = [12, 2, 2]
    shared = sum(kinds[:stage]) / processes
    return parameters * (shared + sum(kinds[stage:]))


WRONG = [
    ("flops_per_token", flops(weights=1)),
    ("flops_per_token", flops(attention=2)),
    ("flops_per_token", flops(attention=0)),
    ("flops_per_token", flops(backward=1)),
    ("flops_per_token", flops(heads="n_kv_heads")),
    ("flops_per_token", flops(size=lambda config: config.dim)),
    ("flops_per_token", flops_of(with_the_table)),
    ("flops_per_token", flops_of(without_a_tied_head)),
    ("flops_per_token", flops_of(with_full_keys)),
    ("flops_per_token", attention_once),
    ("flops_per_token", altered(s.flops_per_token, lambda x: x * 2)),
    ("attainable", lambda intensity, peak, bandwidth: max(peak, intensity * bandwidth)),
    ("attainable", lambda intensity, peak, bandwidth: intensity * bandwidth),
    ("attainable", lambda intensity, peak, bandwidth: peak),
    ("attainable", lambda intensity, peak, bandwidth: min(peak, bandwidth / intensity)),
    ("attainable", lambda intensity, peak, bandwidth: min(peak, bandwidth) * intensity),
    (
        "attainable",
        lambda intensity, peak, bandwidth: 1 / (1 / peak + 1 / intensity / bandwidth),
    ),
    ("saved_bytes", saved(D=4)),
    ("saved_bytes", saved(D=8, wide=0)),
    ("saved_bytes", saved(narrow=0, wide=4)),
    ("saved_bytes", saved(F=3)),
    ("saved_bytes", saved(F=2)),
    ("saved_bytes", saved(scores=2)),
    ("saved_bytes", saved(scores=0)),
    ("saved_bytes", saved(factors=0)),
    ("saved_bytes", saved(end=0)),
    ("saved_bytes", saved(angles=0)),
    ("saved_bytes", saved(size=2)),
    ("saved_bytes", saved(layers=False)),
    ("saved_bytes", saved_with_logits),
    ("saved_bytes", saved_with_weights),
    ("state_bytes", state(moments=8)),
    ("state_bytes", state(moments=16)),
    ("state_bytes", state(weights=4)),
    ("state_bytes", state(order=(1, 2, 3))),
    ("state_bytes", state(order=(3, 1, 1))),
    ("state_bytes", state(order=(0, 0, 0))),
    ("state_bytes", state(order=(4, 4, 4))),
    ("state_bytes", state(is_whole=True)),
    ("state_bytes", unguarded),
]

STYLES = [
    ("flops_per_token", by_products),
    ("flops_per_token", flops()),
    (
        "attainable",
        lambda intensity, peak, bandwidth: (
            peak if intensity > peak / bandwidth else bandwidth * intensity
        ),
    ),
    ("saved_bytes", saved_one_by_one),
    ("saved_bytes", saved()),
    ("state_bytes", state()),
]

test_the_package_passes, test_mistakes_are_caught = both_tests(RIGHT, WRONG)


@pytest.mark.parametrize("name, right", STYLES)
def test_other_styles_pass(name, right):
    getattr(checks, name)(right)
