"""The model against transformers' LlamaForCausalLM, against itself with a cache, and at its door."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from minillama.fast import hidden_at
from minillama.model import KVCache, Llama, LlamaConfig, RMSNorm, rope_cos_sin, rotate

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
    """Random ids (B, T) and a mask with 0 to T - 1 padding tokens a row on the given side."""
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
    config = LlamaConfig(
        50, dim, 1 + seed % 3, heads, heads // ratio, 40, 64, theta, tie_embeddings=tied
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


def test_hidden_at_chosen_places_equals_those_of_all_and_sends_the_same_gradient():
    model = small()
    ids, mask = padded(3, 9, "left", torch.Generator().manual_seed(2))
    at = mask & (torch.rand(3, 9, generator=torch.Generator().manual_seed(3)) < 0.5)
    gradients = []
    for states in (hidden_at(model, ids, mask, at), model.hidden(ids, mask)[at]):
        model.zero_grad()
        states.square().sum().backward()
        gradients.append(
            torch.cat(
                [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            )
        )
    torch.testing.assert_close(
        hidden_at(model, ids, mask, at), model.hidden(ids, mask)[at], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


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


ONES = torch.ones(2, 3, dtype=torch.bool)
IDS = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    "ids, mask, error, named",
    [
        (IDS[:0], None, ValueError, "ids"),
        (IDS[:, :0], None, ValueError, "ids"),
        (IDS[0], None, ValueError, "ids"),
        (IDS.float(), None, TypeError, "ids"),
        (IDS * 50, None, IndexError, "ids"),
        (-IDS, None, IndexError, "ids"),
        (IDS.repeat(1, 11), None, ValueError, "max_seq_len"),
        (IDS, ONES.long(), TypeError, "mask"),
        (IDS, ONES[:, :2], ValueError, "mask"),
        (IDS, ONES & torch.tensor([[True], [False]]), ValueError, "mask"),
    ],
)
def test_bad_input_is_refused(ids, mask, error, named):
    with pytest.raises(error, match=named):
        small()(ids, mask)


def test_a_full_cache_is_refused():
    with torch.no_grad(), pytest.raises(ValueError, match="cache"):
        model, cache = small(), KVCache(SMALL, 2, 4)
        model(IDS, cache=cache)
        model(IDS, cache=cache)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"dim": 30}, ValueError),
        ({"n_kv_heads": 3}, ValueError),
        ({"n_layers": 0}, ValueError),
        ({"dim": 12, "n_heads": 4}, ValueError),
        ({"ffn_dim": 1.5}, TypeError),
        ({"rope_theta": -1.0}, ValueError),
    ],
)
def test_bad_sizes_are_refused(changes, error):
    with pytest.raises(error, match=next(iter(changes))):
        LlamaConfig(**{**vars(SMALL), **changes})
