"""Settings of real checkpoints, read strictly, and what may stand in for what."""

import pytest

from minillama.hf_config import (
    COURSE_IDS,
    SpecialIds,
    read_config,
    read_special_ids,
    write_config,
)
from minillama.model import LlamaConfig
from minillama.rope_scaling import LinearScaling, Llama3Scaling

PLAIN = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
OURS = Llama3Scaling(8.0, 1.0, 4.0, 8192)


def read(**settings):
    return read_config(PLAIN | settings, "LlamaForCausalLM", "load_llama")


@pytest.mark.parametrize(
    "settings, theta, scaling",
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5.0, "rope_scaling": None}, 5.0, None),
        ({"rope_parameters": {"rope_theta": 5.0}}, 5.0, None),
        # transformers 5
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, 5e5, OURS),
        # transformers 4
        ({"rope_scaling": LLAMA3, "rope_theta": 5e5}, 5e5, OURS),
        # older still
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 1e4, LinearScaling(2.0)),
        # both names of the type, both places
        (
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4}},
            1e4,
            LinearScaling(4),
        ),
        ({"rope_scaling": LLAMA3, "rope_parameters": LLAMA3}, 1e4, OURS),
        ({"partial_rotary_factor": 1.0}, 1e4, None),
        ({"rope_scaling": LLAMA3 | {"partial_rotary_factor": 1.0}}, 1e4, OURS),
    ],
)
def test_rope_of_every_edition(settings, theta, scaling):
    config = read(**settings)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"rope_scaling": LLAMA3 | {"rope_type": "yarn"}},
            "an unsupported rope type y",
        ),
        ({"rope_scaling": {"type": "dynamic"}}, "an unsupported rope type dynamic$"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            "an unsupported rope type linear and yarn",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "no low_freq_factor for rope type llama3; no high_freq_factor for",
        ),
        ({"rope_scaling": {"type": "linear"}}, "no factor for rope type linear"),
        (
            {"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}},
            "rope setting partial_rotary_factor 0.5",
        ),
        ({"rope_parameters": {"factor": 2.0}}, "rope setting factor 2.0"),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1.0}},
            "rope_scaling and rope_parameters that differ",
        ),
        (
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings 4096 beside the rope's 8192",
        ),
        ({"partial_rotary_factor": 0.5}, "an unsupported partial_rotary_factor 0.5"),
        ({"attention_dropout": 0.1}, "an unsupported attention_dropout 0.1"),
        (
            {"quantization_config": {"bits": 4}},
            "an unsupported quantization_config {'bits': 4}",
        ),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            r"architectures \['LlamaForTokenClassification'\], not LlamaForCausalLM",
        ),
    ],
)
def test_what_llama_does_not_have_is_named(settings, words):
    with pytest.raises(
        ValueError,
        match=f"^load_llama: config.json must describe a plain LLaMA, got {words}",
    ):
        read(**settings)


@pytest.mark.parametrize(
    "settings, error, words",
    [
        (
            {"hidden_size": "32"},
            TypeError,
            "LlamaConfig: dim must be an int .*got '32'",
        ),
        ({"num_key_value_heads": 3}, ValueError, "LlamaConfig: n_heads must be .*"),
        ({"head_dim": 7}, ValueError, "LlamaConfig: head_size must be even .* got 7"),
        (
            {"rope_scaling": LLAMA3 | {"factor": 0.5}},
            ValueError,
            "Llama3Scaling: factor must be a finite number >= 1, got 0.5",
        ),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            ValueError,
            "Llama3Scaling: high_freq_factor must be above low_freq_factor, got 1.0",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, error, words):
    with pytest.raises(error, match=f"^{words}"):
        read(**settings)


def test_a_head_dim_is_kept_only_where_it_differs():
    assert read(head_dim=8) == read(head_dim=None) == read()
    assert (read(head_dim=16).head_size, read(head_dim=16).head_dim) == (16, 16)


@pytest.mark.parametrize("scaling", [None, LinearScaling(2.0), OURS])
@pytest.mark.parametrize("head_size", [None, 12])
def test_what_is_written_is_read_back(scaling, head_size):
    config = LlamaConfig(50, 32, 2, 4, 2, 48, 64, 5e5, 1e-6, True, head_size, scaling)
    settings = write_config(config, "LlamaForCausalLM", "torch.float16", COURSE_IDS)
    assert read_config(settings, "LlamaForCausalLM", "load_llama") == config
    assert settings["dtype"] == "float16"


def test_special_ids_are_those_of_the_file():
    llama3 = {"bos_token_id": 128000, "eos_token_id": [128001, 128009]}
    assert read_special_ids(llama3) == SpecialIds(128000, [128001, 128009], None)
    assert read_special_ids({}) == SpecialIds(1, 2, None)
    written = write_config(
        read(), "LlamaForCausalLM", "torch.float32", read_special_ids(llama3)
    )
    assert read_special_ids(written) == read_special_ids(llama3)
    assert written["pad_token_id"] is None
    assert (COURSE_IDS.bos, COURSE_IDS.eos, COURSE_IDS.pad) == (1, 2, 3)
