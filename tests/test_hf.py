"""Checkpoints: what transformers wrote is read, what is written transformers reads, and nothing is guessed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from minillama.hf import load_llama, save_llama
from minillama.model import Llama, LlamaConfig

IDS = torch.tensor([[5, 9, 2, 30], [7, 7, 1, 0]])


@pytest.fixture
def theirs(tmp_path):
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        rope_theta=500.0,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_what_transformers_wrote(theirs):
    model, folder = theirs
    torch.testing.assert_close(
        load_llama(folder)(IDS), model(IDS).logits, atol=1e-5, rtol=0
    )
    assert load_llama(folder).config.rope_theta == 500.0
    assert load_llama(folder, dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_what_was_written(tmp_path, tied):
    ours = Llama(
        LlamaConfig(40, 32, 2, 4, 1, 48, 64, rope_theta=300.0, tie_embeddings=tied)
    ).eval()
    save_llama(ours, tmp_path)
    torch.testing.assert_close(
        LlamaForCausalLM.from_pretrained(tmp_path)(IDS).logits,
        ours(IDS),
        atol=1e-5,
        rtol=0,
    )
    again = load_llama(tmp_path)
    assert torch.equal(again(IDS), ours(IDS)) and again.config == ours.config
    assert (again.lm_head.weight is again.embed_tokens.weight) is tied


def test_rope_theta_may_stand_at_the_top(theirs):
    _, folder = theirs
    edit_config(folder, rope_parameters=None, rope_theta=77.0)
    assert load_llama(folder).config.rope_theta == 77.0


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope type"),
        ({"head_dim": 16}, "head_dim"),
    ],
)
def test_what_is_not_supported_is_refused(theirs, changes, named):
    _, folder = theirs
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=named):
        load_llama(folder)


def test_every_wrong_tensor_is_named(theirs):
    _, folder = theirs
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors |= {"model.extra": torch.zeros(1), "lm_head.weight": torch.zeros(3, 3)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"missing norm.weight.*unexpected extra.*lm_head.weight is \(3, 3\)",
    ):
        load_llama(folder)


def test_several_files_are_refused(theirs):
    _, folder = theirs
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="several files"):
        load_llama(folder)
