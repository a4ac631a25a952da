"""Checkpoints: we read what transformers wrote, it reads what we wrote; no guesses."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from minillama.hf import load_llama, save_llama
from minillama.model import Llama, LlamaConfig
from minillama.reward_model import copy_body

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
        ({"model_type": "mistral"}, "model_type"),
        ({"hidden_act": "gelu", "mlp_bias": True}, "hidden_act, mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rope type"),
        ({"head_dim": 16}, "head_dim"),
    ],
)
def test_what_is_not_supported_is_refused(theirs, changes, named):
    _, folder = theirs
    edit_config(folder, **changes)
    with pytest.raises(
        ValueError,
        match="^load_llama: config.json must describe a plain LLaMA, "
        f"got an unsupported {named}$",
    ):
        load_llama(folder)


def test_every_wrong_tensor_is_named(theirs):
    _, folder = theirs
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors |= {"model.extra": torch.zeros(1), "lm_head.weight": torch.zeros(3, 3)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"^load_llama: the tensors must be those of the config, got missing "
        r"norm.weight; unexpected extra; lm_head.weight is \(3, 3\), "
        r"expected \(40, 32\)",
    ):
        load_llama(folder)


def test_several_files_are_refused(theirs):
    _, folder = theirs
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="^load_llama: folder .* several files"):
        load_llama(folder)


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def drop_config(folder, name):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[name]
    path.write_text(json.dumps(config))


def test_a_model_arrives_in_eval_mode_on_its_device_with_its_dtype(theirs):
    _, folder = theirs
    model = load_llama(folder)
    assert not model.training and next(model.parameters()).device.type == "cpu"
    assert next(model.parameters()).dtype == torch.float32
    there = load_llama(str(folder), dtype=torch.float16, device="meta")
    assert {(p.device.type, p.dtype) for p in there.parameters()} == {
        ("meta", torch.float16)
    }


def test_a_file_of_several_dtypes_needs_one_named(theirs):
    _, folder = theirs
    edit_tensors(
        folder, lambda x: x.update({"model.norm.weight": x["model.norm.weight"].half()})
    )
    with pytest.raises(
        ValueError, match="^load_llama: dtype must be given .*float16, "
    ):
        load_llama(folder)
    dtypes = {p.dtype for p in load_llama(folder, torch.bfloat16).parameters()}
    assert dtypes == {torch.bfloat16}


def test_rotary_tables_of_old_checkpoints_are_passed_over(theirs):
    model, folder = theirs
    edit_tensors(
        folder,
        lambda x: x.update({"model.layers.0.self_attn.rotary_emb.inv_freq": IDS * 1.0}),
    )
    torch.testing.assert_close(
        load_llama(folder)(IDS), model(IDS).logits, atol=1e-5, rtol=0
    )


def test_rope_scaling_counts_beside_rope_parameters(theirs):
    _, folder = theirs
    edit_config(
        folder,
        rope_parameters={"rope_theta": 1.0, "rope_type": "default"},
        rope_scaling={"type": "linear", "factor": 2.0},
    )
    with pytest.raises(ValueError, match="load_llama: .* rope type"):
        load_llama(folder)
    edit_config(folder, rope_scaling={"rope_type": "default"})
    assert load_llama(folder).config.rope_theta == 1.0


def test_settings_that_are_missing_are_named(theirs):
    _, folder = theirs
    drop_config(folder, "rms_norm_eps")
    edit_config(folder, hidden_size=None)
    with pytest.raises(
        ValueError, match="load_llama: .* must have hidden_size, rms_norm_eps, got"
    ):
        load_llama(folder)


def test_optional_settings_have_the_values_of_transformers(theirs):
    _, folder = theirs
    for name in (
        "num_key_value_heads",
        "tie_word_embeddings",
        "model_type",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
        "head_dim",
    ):
        drop_config(folder, name)
    edit_config(folder, rope_parameters=None)
    edit_tensors(folder, lambda x: None)
    with pytest.raises(ValueError, match=r"k_proj.weight is \(16, 32\), expected \(32"):
        load_llama(folder)  # as many key heads as heads
    edit_config(folder, num_key_value_heads=2)
    config = load_llama(folder).config
    assert config.rope_theta == 10000.0 and config.tie_embeddings is False


def test_integers_are_no_weights(theirs):
    _, folder = theirs
    edit_tensors(
        folder, lambda x: x.update({"model.norm.weight": torch.ones(32, dtype=int)})
    )
    with pytest.raises(ValueError, match="load_llama: .*norm.weight is torch.int64"):
        load_llama(folder)


def test_tied_tables_must_be_there_and_equal(tmp_path):
    save_llama(
        Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64, tie_embeddings=True)), tmp_path
    )
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(tmp_path, lambda x: x.update({"lm_head.weight": table.clone()}))
    assert load_llama(tmp_path).lm_head.weight.equal(table)
    edit_tensors(tmp_path, lambda x: x.update({"lm_head.weight": table + 1}))
    with pytest.raises(
        ValueError, match="^load_llama: lm_head.weight must equal .*says, got another$"
    ):
        load_llama(tmp_path)
    edit_tensors(tmp_path, lambda x: x.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match="load_llama: .* missing embed_tokens.weight"):
        load_llama(tmp_path)


def test_what_is_written(tmp_path):
    save_llama(Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)).half(), tmp_path / "a" / "b")
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": 4,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": "float16",
        "vocab_size": 40,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    text = (tmp_path / "a" / "b" / "config.json").read_text()
    assert text.startswith('{\n  "architectures"') and text.endswith("}\n")
    with safe_open(tmp_path / "a" / "b" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # or transformers refuses it
    save_llama(
        Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)), tmp_path / "a" / "b"
    )  # again


def test_a_body_without_a_head_is_no_checkpoint(tmp_path):
    body = copy_body(Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)))
    with pytest.raises(ValueError, match="^save_llama: model must have an lm_head"):
        save_llama(body, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda folder: load_llama(3), TypeError, "load_llama: folder"),
        (lambda folder: load_llama(folder, "float32"), TypeError, "load_llama: dtype"),
        (
            lambda folder: load_llama(folder, device=1.5),
            TypeError,
            "load_llama: device",
        ),
        (lambda folder: save_llama({}, folder), TypeError, "save_llama: model"),
        (lambda folder: load_llama(folder), FileNotFoundError, ".*config.json"),
    ],
)
def test_bad_input_is_refused(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path)
