"""The model against transformers', against itself with a cache, and at its door."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from minillama.model import (
    Attention,
    Block,
    FeedForward,
    KVCache,
    Llama,
    LlamaConfig,
    RMSNorm,
    attend,
    attention_bias,
    draw_weights,
    rope_cos_sin,
    rotate,
    token_positions,
)
from minillama.reward_model import copy_body

SMALL = LlamaConfig(
    vocab_size=50,
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    ffn_dim=48,
    max_seq_len=32,
)


def small(seed=0):
    """A small model with weights large enough that every part matters."""
    model = Llama(SMALL, torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1.1)
    return model


def transplant(ours):
    """transformers' model with the weights of ours."""
    c = ours.config
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            intermediate_size=c.ffn_dim,
            max_position_embeddings=c.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tie_embeddings,
        )
    ).eval()
    theirs.load_state_dict(
        {
            (n if n.startswith("lm_head") else f"model.{n}"): p
            for n, p in ours.state_dict().items()
        }
    )
    return theirs


def padded(batch, length, side, generator):
    """Random ids (B, T) and a mask: 0 to T - 1 padding tokens a row on a side."""
    ids = torch.randint(0, 50, (batch, length), generator=generator)
    pads = torch.randint(0, length, (batch, 1), generator=generator)
    mask = torch.arange(length) >= pads
    return ids, {"left": mask, "right": mask.flip(1), "none": torch.ones_like(mask)}[
        side
    ]


CONFIGS = list(
    itertools.product(
        (1, 2, 4), (False, True), ((32, 4), (48, 4)), ("none", "left", "right")
    )
)


@pytest.mark.parametrize("ratio, tied, sizes, side", CONFIGS)
def test_logits_equal_transformers(ratio, tied, sizes, side):
    dim, heads = sizes
    seed = CONFIGS.index((ratio, tied, sizes, side))
    generator = torch.Generator().manual_seed(seed)
    theta = (100.0, 10000.0, 500000.0)[seed % 3]
    eps = (1e-5, 0.03)[seed % 2]
    config = LlamaConfig(
        50, dim, 1 + seed % 3, heads, heads // ratio, 40, 64, theta, eps, tied
    )
    ours = Llama(config, generator)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    ids, mask = padded(1 + seed % 4, 3 + seed % 7, side, generator)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = transplant(ours)(
        ids, attention_mask=mask.long(), position_ids=positions
    ).logits
    torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], atol=1e-4, rtol=0)


def test_no_gradient_comes_from_the_future():
    model, ids = small(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    embedded = []
    model.embed_tokens.register_forward_hook(lambda *call: embedded.append(call[2]))
    logits = model(ids)
    gradient = (
        torch.autograd.grad(logits[0, 2].sum(), embedded[0])[0][0].abs().sum(-1)
    )  # (T,)
    assert (gradient[:3] > 0).all() and (gradient[3:] == 0).all()


def test_padding_on_either_side_changes_nothing():
    model, real = small(), torch.tensor([[7, 8, 9, 10]])
    alone = model(real)
    junk = torch.tensor([[1, 2, 3]])
    no, yes = torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    left = model(torch.cat((junk, real), 1), torch.cat((no, yes), 1))[:, 3:]
    right = model(torch.cat((real, junk), 1), torch.cat((yes, no), 1))[:, :4]
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [4, 5], [3, 1, 2, 3]])
@torch.no_grad()
def test_cached_equals_uncached(chunks):
    model = small()
    ids, mask = padded(3, 9, "left", torch.Generator().manual_seed(1))
    mask[:, 0] |= True if chunks[0] == 1 else mask[:, 0]
    whole, cache, parts = model(ids, mask), KVCache(SMALL, 3, 9), []
    for start, size in zip(itertools.accumulate([0, *chunks]), chunks, strict=False):
        parts.append(
            model(ids[:, start : start + size], mask[:, start : start + size], cache)
        )
    torch.testing.assert_close(
        torch.cat(parts, 1)[mask], whole[mask], atol=1e-5, rtol=0
    )


def test_rms_norm_equals_pytorch_and_ignores_scale():
    norm, x = (
        RMSNorm(16),
        torch.randn(3, 16, generator=torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), eps=1e-5))
    torch.testing.assert_close(norm(1000 * x), norm(x), atol=1e-4, rtol=0)


def test_rope_sees_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(m, n):
        at = [
            rotate(x, *rope_cos_sin(torch.tensor([p]), 8)) for x, p in ((q, m), (k, n))
        ]
        return (at[0] * at[1]).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), atol=1e-4, rtol=0)
    assert (score(5, 2) - score(5, 3)).abs() > 1e-3


def test_equal_weights_from_equal_seeds():
    first, second, other = (
        Llama(SMALL, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_initial_weights_have_the_spread_of_gpt_2():
    """0.02, and 0.02 / sqrt(2 n_layers) = 0.01 on the way back for two layers."""
    config = LlamaConfig(400, 64, 2, 4, 2, 200, 8)
    model = Llama(config, torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all(), name
            continue
        back = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = 0.01 if back else 0.02
        assert parameter.std().item() == pytest.approx(std, rel=0.06), name
        assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5, name


def test_weights_are_drawn_in_the_order_of_the_parameters():
    generator = torch.Generator().manual_seed(4)
    model = Llama(SMALL, torch.Generator().manual_seed(4))
    first = 0.02 * torch.randn(50, 32, generator=generator)
    second = 0.02 * torch.randn(32, 32, generator=generator)
    assert torch.equal(model.embed_tokens.weight, first)
    assert torch.equal(model.layers[0].self_attn.q_proj.weight, second)
    with torch.device("meta"):
        on_meta = Llama(SMALL, generator)
    third = 0.02 * torch.randn(16, 32, generator=generator)  # on meta nothing is drawn
    assert torch.equal(model.layers[0].self_attn.k_proj.weight, third)
    assert on_meta.lm_head.weight.is_meta
    draw_weights(model, 2, torch.Generator().manual_seed(4))
    assert torch.equal(model.embed_tokens.weight, first)


def test_tied_embeddings_are_one_tensor():
    for tied in (True, False):
        model = Llama(LlamaConfig(**{**vars(SMALL), "tie_embeddings": tied}))
        assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def test_no_part_has_a_bias_and_the_sizes_are_those_of_the_config():
    shapes = {n: tuple(p.shape) for n, p in small().named_parameters()}
    layer = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    expected = {
        "embed_tokens.weight": (50, 32),
        "norm.weight": (32,),
        "lm_head.weight": (50, 32),
        **{
            f"layers.{i}.{name}.weight": shape
            for i in (0, 1)
            for name, shape in layer.items()
        },
    }
    assert shapes == expected


def test_positions_by_hand():
    F_, T_ = False, True
    mask = torch.tensor([[F_, F_, T_, T_], [T_, T_, F_, F_], [T_, F_, T_, T_]])
    assert token_positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2]]


def test_angles_by_hand():
    """Head size 4, theta 100: pair 0 turns by 1 radian a position, pair 1 by 1/10."""
    cos, sin = rope_cos_sin(torch.tensor([[0, 3]]), 4, 100.0)
    angles = torch.tensor([[[[0.0, 0.0]], [[3.0, 0.3]]]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
    assert cos.shape == (1, 2, 1, 2) and cos.dtype == torch.float32
    default, _ = rope_cos_sin(torch.tensor([1]), 4)
    assert default.flatten().tolist() == pytest.approx([math.cos(1), math.cos(0.01)])


def test_angles_are_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        cos, sin = rope_cos_sin(torch.tensor([[0, 3]]), 4, 100.0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert cos.dtype == sin.dtype == torch.float32


def test_a_layer_alone_is_the_first_of_a_cache():
    assert Attention(SMALL).layer == Block(SMALL).self_attn.layer == 0
    assert [block.self_attn.layer for block in small().layers] == [0, 1]


def test_a_quarter_turn_by_hand():
    """(x0, x2) = (1, 3) and (x1, x3) = (2, 4): the second pair turns by 90 degrees."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cos, sin = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert rotate(x, cos, sin).flatten().tolist() == [1.0, -4.0, 3.0, 2.0]


def test_bias_by_hand():
    """Three tokens, the first padding; queries are the last two, then all three."""
    bias = attention_bias(torch.tensor([[False, True, True]]), 2)
    no = -math.inf
    assert bias.tolist() == [[[[[no, 0.0, no], [no, 0.0, 0.0]]]]]
    assert bias.dtype == torch.float32
    all_three = attention_bias(torch.tensor([[False, True, True]]), 3)
    assert all_three[0, 0, 0, 0].tolist() == [0.0, no, no]  # padding sees itself


def test_attention_by_hand():
    """One query head on keys 0 and ln 3: weights 1/4 and 3/4 on the values 4 and 8."""
    key = math.log(3)
    queries = torch.ones(1, 1, 1, 1)
    keys = torch.tensor([0.0, key]).view(1, 1, 2, 1)
    values = torch.tensor([4.0, 8.0]).view(1, 1, 2, 1)
    mixed = attend(queries, keys, values, torch.zeros(1, 1, 1, 1, 2))
    assert mixed.item() == pytest.approx(7.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_sums_in_float32(dtype):
    """A mean of squares of 1000 overflows in float16, a softmax is coarse in either."""
    norm = RMSNorm(16).to(dtype)
    x = torch.full((1, 16), 1000.0, dtype=dtype)
    assert norm(x).dtype == dtype and (norm(x) == 1).all()
    with torch.no_grad():
        norm.weight.fill_(2)
    assert (norm(x) == 2).all()
    # 300 keys of equal score: in half precision the weights 1/300 and the bias of one
    # key, -0.01, would be lost
    queries, keys = (torch.zeros(1, n, 1, 2, dtype=dtype) for n in (1, 300))
    keys = keys.view(1, 1, 300, 2)
    values = torch.zeros(1, 1, 300, 2, dtype=dtype)
    values[..., 0, :] = 300
    bias = torch.zeros(1, 1, 1, 1, 300)
    bias[..., 0] = 0.01
    mixed = attend(queries, keys, values, bias)
    assert mixed.dtype == dtype
    exact = 300 * math.exp(0.01) / (299 + math.exp(0.01))
    assert mixed[0, 0, 0].item() == torch.tensor(exact).to(dtype).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_in_half_precision_stays_near_the_full_one(dtype):
    full, half = small(), small().to(dtype)
    ids, mask = padded(3, 9, "left", torch.Generator().manual_seed(1))
    expected = full(ids, mask)
    logits = half(ids, mask)
    assert logits.dtype == dtype
    error = (logits.float() - expected)[mask].abs().max()
    assert error < 0.1 * expected[mask].std()
    cache = KVCache(SMALL, 3, 9, dtype=dtype)
    cached = torch.cat(
        [
            half(i, m, cache)
            for i, m in zip(ids.split(3, 1), mask.split(3, 1), strict=True)
        ],
        1,
    )
    assert (cached - logits).float()[mask].abs().max() < 0.1 * expected[mask].std()


@torch.no_grad()
def test_tensors_are_made_where_the_model_is():
    """The default device is one without data: what forgets the model's device fails."""
    model = small()
    ids, mask = padded(3, 6, "left", torch.Generator().manual_seed(1))
    expected = model(ids, mask), model(ids)
    with torch.device("meta"):
        found = model(ids, mask), model(ids)
        cache = KVCache(SMALL, 3, 6, device="cpu")
        cached = model(ids, mask, cache)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(cached[mask], expected[0][mask], atol=1e-5, rtol=0)


def test_a_hole_is_as_if_it_were_not_there():
    model, ids = small(), torch.tensor([[3, 1, 4, 1, 5, 9]])
    mask = torch.tensor([[True, False, True, True, False, True]])
    together = model(ids, mask)[mask]
    torch.testing.assert_close(together, model(ids[mask][None])[0], atol=1e-5, rtol=0)
    assert model(ids, mask).isfinite().all()  # padding included


@torch.no_grad()
def test_with_a_cache_a_row_may_be_all_padding():
    model, cache = small(), KVCache(SMALL, 2, 4)
    ids = torch.tensor([[7, 8, 9, 10], [1, 1, 9, 10]])
    mask = torch.tensor([[True] * 4, [False, False, True, True]])
    model(ids[:, :2], mask[:, :2], cache)
    assert cache.count.tolist() == [2, 0] and cache.length == 2
    last = model(ids[:, 2:], mask[:, 2:], cache)
    alone = model(ids[1:, 2:])
    torch.testing.assert_close(last[1:], alone, atol=1e-5, rtol=0)


def test_a_cache_by_hand():
    cache = KVCache(SMALL, 2, 5)
    assert (cache.batch_size, cache.capacity, cache.length) == (2, 5, 0)
    assert cache.keys.shape == cache.values.shape == (2, 2, 2, 5, 8)
    assert cache.keys.dtype == torch.float32 and cache.config is SMALL
    positions, seen = cache.extend(torch.tensor([[True] * 3, [False, True, True]]))
    assert positions.tolist() == [[0, 1, 2], [0, 0, 1]] and cache.length == 3
    assert seen.tolist() == [[True] * 3, [False, True, True]]
    keys = torch.arange(2 * 2 * 3 * 8.0).view(2, 2, 3, 8)
    for layer in (0, 1):
        kept = cache.store(layer, keys + layer, -keys)
        assert torch.equal(kept[0], keys + layer) and torch.equal(kept[1], -keys)
    positions, seen = cache.extend(torch.ones(2, 2, dtype=torch.bool))
    assert positions.tolist() == [[3, 4], [2, 3]] and seen.shape == (2, 5)
    keys_seen, values_seen = cache.store(1, 2 * keys[:, :, :2], keys[:, :, :2])
    assert torch.equal(keys_seen, torch.cat((keys + 1, 2 * keys[:, :, :2]), 2))
    assert torch.equal(values_seen, torch.cat((-keys, keys[:, :, :2]), 2))
    assert cache.count.tolist() == [5, 4]
    with pytest.raises(ValueError, match="at most 0 columns, got 2 and 1"):
        cache.extend(torch.ones(2, 1, dtype=torch.bool))
    assert cache.length == 5  # a refusal changes nothing


ONES = torch.ones(2, 3, dtype=torch.bool)
IDS = torch.ones(2, 3, dtype=torch.int64)

BAD_INPUT = [
    ((IDS[:0],), ValueError, r"ids must be an int64 tensor .* got shape \(0, 3\)"),
    ((IDS[:, :0],), ValueError, r"ids must be an int64 .* got shape \(2, 0\)"),
    ((IDS[0],), ValueError, r"ids must be an int64 tensor .* got shape \(3,\)"),
    ((IDS.float(),), TypeError, "ids must be .* got a tensor of float32"),
    (([[1, 2]],), TypeError, "ids must be an int64 tensor .* got a list"),
    (
        (IDS * 50,),
        IndexError,
        "ids must be .* got 50, where self.config.vocab_size is 50",
    ),
    ((-IDS,), IndexError, "ids must be .* got -1, where self.config.vocab_size is 50"),
    ((IDS, ONES.long()), TypeError, "mask must be .* got a tensor of int64"),
    ((IDS, ONES[:, :2]), ValueError, r"mask must be .* got shape \(2, 2\), with T = 3"),
    ((IDS, None, "cache"), TypeError, "cache must be a KVCache or None, got 'cache'"),
]


@pytest.mark.parametrize("arguments, error, words", BAD_INPUT)
def test_bad_input_is_refused_in_the_name_of_what_was_called(arguments, error, words):
    with pytest.raises(error, match=f"^Llama: {words}"):
        small()(*arguments)
    with pytest.raises(error, match=f"^Llama.hidden: {words}"):
        small().hidden(*arguments)


def test_more_tokens_than_a_model_takes_are_refused():
    words = "^Llama: ids must fit in max_seq_len = 32 with what the cache holds, got 33"
    small()(IDS.repeat(1, 11)[:, :32])
    for call in (small(), small().hidden):
        with pytest.raises(ValueError, match=words):
            call(IDS.repeat(1, 11))
    with torch.no_grad():
        model, cache = small(), KVCache(SMALL, 2, 40)
        model(IDS.repeat(1, 10), cache=cache)
        model(IDS[:, :2], cache=cache)
        with pytest.raises(ValueError, match=words):
            model(IDS[:, :1], cache=cache)


def test_an_empty_row_is_refused_without_a_cache():
    words = "^Llama: mask must be True somewhere in every row .* got no True in row 1"
    with pytest.raises(ValueError, match=words):
        small()(IDS, ONES & torch.tensor([[True], [False]]))


def other(**changes):
    return LlamaConfig(**{**vars(SMALL), **changes})


@pytest.mark.parametrize(
    "made_by, words",
    [
        ((SMALL, 2, 5), "must have 2 rows and room for 6 tokens, got 2 .* and 5"),
        ((SMALL, 3, 8), "must have 2 rows and room for 6 tokens, got 3 .* and 8"),
        ((other(n_layers=1), 2, 8), "must be of this model's config"),
        ((other(n_kv_heads=4), 2, 8), "must be of this model's config"),
        ((SMALL, 2, 8, None, torch.bfloat16), "must be .* of torch.float32"),
    ],
)
@torch.no_grad()
def test_a_cache_that_does_not_fit_is_refused(made_by, words):
    cache = KVCache(*made_by)
    cache.extend(torch.ones(cache.batch_size, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"^Llama: cache {words}"):
        small()(IDS, cache=cache)
    assert cache.length == 3


def test_a_cache_is_for_inference_only():
    words = "^KVCache.store: keys and values must not require grad"
    with pytest.raises(RuntimeError, match=words):
        small()(IDS, cache=KVCache(SMALL, 2, 8))
    frozen, cache = small().requires_grad_(False), KVCache(SMALL, 2, 8)
    frozen(IDS, cache=cache)
    frozen.layers[0].self_attn.v_proj.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=words):
        frozen(IDS, cache=cache)


def test_a_body_without_lm_head_has_states_and_no_logits():
    body = copy_body(small())
    assert body.hidden(IDS).shape == (2, 3, 32)
    with pytest.raises(
        ValueError, match="^Llama: the model must have an lm_head, got a"
    ):
        body(IDS)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (
            lambda: KVCache(None, 1, 1),
            TypeError,
            "KVCache: config must be a LlamaConfig",
        ),
        (lambda: KVCache(SMALL, 0, 1), ValueError, "KVCache: batch_size must .* got 0"),
        (lambda: KVCache(SMALL, 1, -1), ValueError, "KVCache: capacity must .* got -1"),
        (
            lambda: KVCache(SMALL, 2, 2).extend(ONES[:1]),
            ValueError,
            "KVCache.extend: mask",
        ),
        (
            lambda: KVCache(SMALL, 2, 2).extend(IDS),
            TypeError,
            "KVCache.extend: mask must",
        ),
        (
            lambda: Llama(vars(SMALL)),
            TypeError,
            "Llama: config must be a LlamaConfig, got",
        ),
        (lambda: Llama(SMALL, 7), TypeError, "Llama: generator must be a Generator or"),
        (
            lambda: draw_weights(small(), 2, 7),
            TypeError,
            "draw_weights: generator must",
        ),
        (
            lambda: Block(SMALL, -1),
            ValueError,
            "Block: layer must be an int >= 0, got -1",
        ),
        (lambda: Attention(32), TypeError, "Attention: config must be a LlamaConfig"),
        (
            lambda: FeedForward(32),
            TypeError,
            "FeedForward: config must be a LlamaConfig",
        ),
        (lambda: RMSNorm(0), ValueError, "RMSNorm: dim must be an int >= 1, got 0"),
        (lambda: RMSNorm(4, math.nan), ValueError, "RMSNorm: eps must .* got nan"),
        (
            lambda: token_positions(IDS),
            TypeError,
            "token_positions: mask must be a bool",
        ),
        (
            lambda: rope_cos_sin(IDS * 0.5, 4),
            TypeError,
            "rope_cos_sin: positions must be",
        ),
        (
            lambda: rope_cos_sin(IDS, 0),
            ValueError,
            "rope_cos_sin: head_dim must .* got 0",
        ),
        (
            lambda: rope_cos_sin(IDS, 4, 0),
            ValueError,
            "rope_cos_sin: theta must .* got 0",
        ),
        (
            lambda: attention_bias(IDS, 1),
            TypeError,
            "attention_bias: key_mask must be a",
        ),
        (lambda: attention_bias(ONES, 0), ValueError, "attention_bias: n_queries must"),
        (
            lambda: attention_bias(ONES, 4),
            ValueError,
            "attention_bias: n_queries must be at most 3 keys, got 4",
        ),
    ],
)
def test_bad_parts_are_refused(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call()


@pytest.mark.parametrize(
    "changes, error, words",
    [
        (
            {"dim": 30},
            ValueError,
            "a multiple of 2 n_heads, got 30, where n_heads is 4",
        ),
        (
            {"dim": 12},
            ValueError,
            "a multiple of 2 n_heads, got 12, where n_heads is 4",
        ),
        ({"dim": 0}, ValueError, "got 0"),
        ({"n_heads": 0}, ValueError, "got 0"),
        ({"n_heads": 4, "n_kv_heads": 3}, ValueError, "where n_kv_heads is 3"),
        ({"n_kv_heads": 0}, ValueError, "got 0"),
        ({"n_layers": 0}, ValueError, "got 0"),
        ({"vocab_size": 0}, ValueError, "got 0"),
        ({"ffn_dim": 0}, ValueError, "got 0"),
        ({"max_seq_len": 0}, ValueError, "got 0"),
        ({"ffn_dim": 1.5}, TypeError, "an int >= 1, got 1.5"),
        ({"n_layers": True}, TypeError, "an int >= 1, got True"),
        ({"vocab_size": "50"}, TypeError, "an int >= 1, got '50'"),
        ({"rope_theta": -1.0}, ValueError, "a finite number > 0, got -1.0"),
        ({"rope_theta": math.inf}, ValueError, "a finite number > 0, got inf"),
        ({"norm_eps": 0}, ValueError, "a finite number > 0, got 0"),
        ({"norm_eps": math.nan}, ValueError, "a finite number > 0, got nan"),
        ({"tie_embeddings": "no"}, TypeError, "True or False, got 'no'"),
    ],
    ids=str,
)
def test_bad_sizes_are_refused(changes, error, words):
    name = next(iter(changes))
    with pytest.raises(error, match=f"^LlamaConfig: {name} must be .*{words}"):
        other(**changes)


def test_the_smallest_sizes_and_the_defaults():
    config = LlamaConfig(1, 2, 1, 1, 1, 1, 1)
    assert config.head_dim == 2 and Llama(config)(torch.zeros(1, 1).long()).shape == (
        1,
        1,
        1,
    )
    assert (config.rope_theta, config.norm_eps) == (10000.0, 1e-5)
    assert config.tie_embeddings is False and RMSNorm(4).eps == 1e-5
