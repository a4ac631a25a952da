"""Slower frequencies: by hand, against transformers, and in a whole model."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minillama.fast import hidden_at
from minillama.model import KVCache, Llama, LlamaConfig, rope_cos_sin, rotary_table
from minillama.rope_scaling import LinearScaling, Llama3Scaling, scaled_cos_sin

LLAMA3 = Llama3Scaling(8.0, 1.0, 4.0, 64)
THEIRS = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
CONFIG = LlamaConfig(50, 32, 2, 4, 2, 48, 256, rope_scaling=LLAMA3)


def test_llama3_by_hand():
    # In L = 8 tokens these pairs make 4, 2.5, 1 and 0.5 turns. At least high = 4: kept;
    # at most low = 1: a half; 2.5 is half-way: s = 1/2, f (1/2 + 1/2 / 2) = 3/4 f.
    turns = torch.tensor([4.0, 2.5, 1.0, 0.5])
    frequency = turns * 2 * math.pi / 8
    expected = frequency * torch.tensor([1.0, 0.75, 0.5, 0.5])
    torch.testing.assert_close(
        Llama3Scaling(2.0, 1.0, 4.0, 8).scale(frequency), expected
    )


def test_linear_moves_positions_together():
    # Twice as slow: position 6 turns as position 3 did.
    slow = scaled_cos_sin(torch.tensor([0, 6, 50]), 8, 100.0, LinearScaling(2.0))
    plain = rope_cos_sin(torch.tensor([0, 3, 25]), 8, 100.0)
    for ours, expected in zip(slow, plain, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("sizes", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)])
def test_frequencies_of_the_real_checkpoints(sizes):
    """Llama 3.1's and 3.2's settings: 128 features a head, theta 500,000."""
    theirs = TheirConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters={
            **THEIRS,
            "rope_theta": 500000.0,
            "factor": sizes[0],
            "original_max_position_embeddings": sizes[3],
        },
    )
    expected, factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2) / 128)
    ours = Llama3Scaling(*sizes).scale(plain)
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=0)
    assert factor == 1.0 and (ours < plain * 0.99).sum() > 20


@pytest.mark.parametrize(
    "scaling, parameters",
    [
        (LLAMA3, THEIRS),
        (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ],
)
def test_logits_equal_transformers_beyond_the_first_length(scaling, parameters):
    ours = Llama(
        replace(CONFIG, rope_scaling=scaling), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1.1)
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_parameters=parameters,
        )
    ).eval()
    theirs.load_state_dict(
        {n if "lm_head" in n else f"model.{n}": p for n, p in ours.state_dict().items()}
    )
    ids = torch.randint(0, 50, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, expected = ours.eval()(ids), theirs(ids).logits
        plain = Llama(replace(CONFIG, rope_scaling=None))
        plain.load_state_dict(ours.state_dict())
        assert (plain(ids) - logits).abs().max() > 0.1  # or it would show nothing
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_cache_and_shortcuts_turn_alike():
    model = Llama(CONFIG, torch.Generator().manual_seed(0)).eval()
    ids = torch.randint(0, 50, (2, 90), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, cache = model(ids), KVCache(CONFIG, 2, 90)
        parts = [model(ids[:, t : t + 30], cache=cache) for t in (0, 30, 60)]
        at = torch.arange(90).expand(2, 90) % 7 == 0
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        torch.testing.assert_close(
            hidden_at(model, ids, None, at), model.hidden(ids)[at]
        )


def test_without_scaling_the_table_is_the_plain_one():
    config, positions = replace(CONFIG, rope_scaling=None), torch.arange(300)
    plain = rope_cos_sin(positions, config.head_dim, config.rope_theta)
    for ours, expected in zip(rotary_table(positions, config), plain, strict=True):
        assert torch.equal(ours, expected)


def test_a_head_may_have_a_size_of_its_own():
    config = replace(CONFIG, head_size=14)
    model = Llama(config)
    layer = model.layers[0].self_attn
    assert (config.head_dim, layer.q_proj.weight.shape) == (14, (56, 32))
    assert layer.k_proj.weight.shape == (28, 32)
    assert layer.o_proj.weight.shape == (32, 56)
    assert KVCache(config, 1, 3).keys.shape == (2, 1, 2, 3, 14)
    assert model(torch.zeros(1, 9).long()).shape == (1, 9, 50)
    with pytest.raises(
        ValueError, match="^LlamaConfig: head_size must be even .* got 7"
    ):
        replace(CONFIG, head_size=7)
    with pytest.raises(ValueError, match="^LlamaConfig: head_size must be an int >= 2"):
        replace(CONFIG, head_size=0)
