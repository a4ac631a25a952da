"""Checkpoints: we read what transformers wrote, it reads what we wrote; no guesses."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from minillama.hf import (
    _theirs,
    load_llama,
    load_reward_model,
    load_special_ids,
    save_llama,
    save_reward_model,
)
from minillama.hf_config import COURSE_IDS, write_config
from minillama.hf_files import INDEX
from minillama.model import Llama, LlamaConfig
from minillama.reward_model import RewardModel, copy_body
from minillama.rope_scaling import LinearScaling, Llama3Scaling

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
        ({"model_type": "mistral"}, "an unsupported model_type 'mistral'"),
        (
            {"architectures": ["LlamaModel"]},
            r"architectures \['LlamaModel'\], not LlamaForCausalLM",
        ),
        (
            {"hidden_act": "gelu", "mlp_bias": True},
            "an unsupported hidden_act 'gelu'; an unsupported mlp_bias True",
        ),
        ({"attention_bias": True}, "an unsupported attention_bias True"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "an unsupported rope type yarn",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2}},
            "an unsupported rope type dynamic",
        ),
    ],
)
def test_what_is_not_supported_is_refused(theirs, changes, named):
    _, folder = theirs
    edit_config(folder, **changes)
    with pytest.raises(
        ValueError,
        match=f"^load_llama: config.json must describe a plain LLaMA, got {named}$",
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
        r"model.norm.weight; unexpected model.extra; lm_head.weight is \(3, 3\), "
        r"expected \(40, 32\)",
    ):
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
    with pytest.raises(
        ValueError, match="load_llama: .*norm.weight is I64, expected F"
    ):
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
    with pytest.raises(
        ValueError, match="load_llama: .* missing model.embed_tokens.weight"
    ):
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


def saved(folder):
    save_llama(Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)), folder)
    return folder


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
        (
            lambda folder: load_llama(saved(folder), torch.int8),
            ValueError,
            "load_llama: dtype must be of weights or None, got torch.int8",
        ),
        (lambda folder: save_llama({}, folder), TypeError, "save_llama: model"),
        (lambda folder: load_llama(folder), FileNotFoundError, ".*config.json"),
    ],
)
def test_bad_input_is_refused(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path)


# --------------------------------------------------------------------------------------
# The shapes of real models, scaled down in depth and width; and several files

REAL = {  # Hugging Face's settings
    "TinyLlama": dict(
        num_attention_heads=8, num_key_value_heads=1, intermediate_size=88
    ),
    "Llama 2 7B": dict(
        num_attention_heads=8, num_key_value_heads=8, intermediate_size=86
    ),
    "Llama 3 8B": dict(
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=112,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "Llama 3.2 1B": dict(
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=128,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "a head_dim of its own": dict(
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        head_dim=32,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ),
}
LONG = torch.randint(0, 100, (2, 100), generator=torch.Generator().manual_seed(0))


def real(name, folder, dtype=torch.float32, **arguments):
    """A model of transformers of a real shape with weights that matter, and saved."""
    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=3,
        max_position_embeddings=256,
        initializer_range=0.1,
        **REAL[name],
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    model.save_pretrained(folder, **arguments)
    return model


@pytest.mark.parametrize("shards", ["one file", "several"])
@pytest.mark.parametrize("name", REAL)
def test_real_shapes_give_the_numbers_of_transformers(tmp_path, name, shards):
    size = "60KB" if shards == "several" else "1GB"
    theirs = real(name, tmp_path, max_shard_size=size)
    assert (tmp_path / INDEX).exists() is (shards == "several")
    assert len(list(tmp_path.glob("*.safetensors"))) >= (4 if size == "60KB" else 1)
    ours = load_llama(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(LONG), theirs(LONG).logits, atol=5e-5, rtol=0)


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_go_back_to_transformers(tmp_path, name):
    theirs = real(name, tmp_path / "in")
    ours = load_llama(tmp_path / "in")
    save_llama(ours, tmp_path / "out", load_special_ids(tmp_path / "in"))
    back, info = LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(back.eval()(LONG).logits, theirs(LONG).logits)
    wanted, got = theirs.config.to_dict(), back.config.to_dict()
    passing = ("_name_or_path", "initializer_range")
    assert [x for x in wanted if wanted[x] != got[x] and x not in passing] == []
    assert load_llama(tmp_path / "out").config == ours.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_bit_for_bit(tmp_path, dtype):
    theirs = real("Llama 3 8B", tmp_path, dtype, max_shard_size="60KB").state_dict()
    half, wide = load_llama(tmp_path), load_llama(tmp_path, torch.float32)
    for name, tensor in half.state_dict().items():
        other = theirs[name if name.startswith("lm_head") else f"model.{name}"]
        assert tensor.dtype == dtype and torch.equal(tensor, other)
        assert torch.equal(wide.state_dict()[name], other.float())
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        torch.testing.assert_close(wide(LONG), expected(LONG).logits, atol=5e-5, rtol=0)
        near = half(LONG).float() - wide(LONG)  # logits of about 1
        assert near.abs().mean() < (0.02 if dtype == torch.bfloat16 else 0.003)


@pytest.fixture
def sharded(tmp_path):
    real("TinyLlama", tmp_path, max_shard_size="60KB")
    return tmp_path


def edit_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            lambda x: x.pop("model.norm.weight"),
            ValueError,
            "the files must hold what model.safetensors.index.json says, got "
            r"model.norm.weight in model-0000\d-of-0000\d.safetensors, too$",
        ),
        (
            lambda x: x.update({"model.more": x["model.norm.weight"]}),
            ValueError,
            "the files must hold .* got no model.more in model-",
        ),
        (
            lambda x: x.update({"model.norm.weight": "../other.safetensors"}),
            ValueError,
            ".* must name files of its own folder, got '../other.safetensors'",
        ),
        (
            lambda x: x.update({"model.norm.weight": 3}),
            ValueError,
            ".* must name files of its own folder, got 3",
        ),
        (lambda x: x.clear(), ValueError, ".* must have a weight_map, got {}"),
    ],
)
def test_an_index_and_its_files_must_agree(sharded, change, error, words):
    edit_index(sharded, change)
    with pytest.raises(error, match=f"^load_llama: {words}"):
        load_llama(sharded)


def test_rotary_tables_of_old_shards_are_passed_over(sharded):
    name, before = "model.layers.0.self_attn.rotary_emb.inv_freq", load_llama(sharded)
    [*_, last] = sorted(sharded.glob("*.safetensors"))
    save_file(load_file(last) | {name: torch.ones(4)}, last)
    for change in ({}, {name: last.name}):  # not in the index, and in it
        edit_index(sharded, lambda index, more=change: index.update(more))
        assert torch.equal(load_llama(sharded)(LONG), before(LONG))


def test_a_shard_that_is_missing_or_torn_is_named(sharded):
    first, *_, last = sorted(sharded.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=f"^load_llama: .*{last.name} must be a whole safetensors"
    ):
        load_llama(sharded)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=first.name):
        load_llama(sharded)


def test_one_file_or_several_but_not_both(sharded):
    with pytest.raises(ValueError, match="^save_llama: folder must hold no checkpoint"):
        save_llama(Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)), sharded)
    assert not (sharded / "model.safetensors").exists()
    save_file({"model.norm.weight": torch.ones(64)}, sharded / "model.safetensors")
    with pytest.raises(ValueError, match="^load_llama: .* got both"):
        load_llama(sharded)


def test_pickled_weights_are_not_read(tmp_path, theirs):
    _, folder = theirs
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match="^load_llama: .*pickled weights, .* are not read"
    ):
        load_llama(folder)


def test_many_faults_are_said_in_short(theirs):
    _, folder = theirs
    edit_config(folder, num_hidden_layers=9)
    with pytest.raises(ValueError, match=r"missing .*; and 55 more$"):
        load_llama(folder)  # 7 layers of 9 tensors: 8 by name


# --------------------------------------------------------------------------------------
# Memory


def test_a_loaded_model_lies_in_its_file_and_leaves_it_alone(theirs):
    """Training writes to pages of its own, and saving over the file is safe."""
    _, folder = theirs
    path = folder / "model.safetensors"
    before, model = path.read_bytes(), load_llama(folder)
    twin = load_llama(folder)
    model(IDS).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    assert path.read_bytes() == before
    logits, others = model(IDS), twin(IDS)
    assert not torch.equal(logits, others)
    save_llama(model, folder)
    assert torch.equal(load_llama(folder)(IDS), logits)
    assert torch.equal(twin(IDS), others)  # the old file lives on as long as it is used
    assert sorted(p.name for p in folder.iterdir() if "safetensors" in p.name) == [
        "model.safetensors"
    ]


# Peak of the process while a model is loaded and each of its pages read, above what
# the process held before, over the size of the model.
MEASURE = """
import sys, torch
from minillama.hf import load_llama
def kilobytes(name):
    lines = open("/proc/self/status")
    return int(next(x for x in lines if x.startswith(name)).split()[1])
with torch.device("meta"):
    torch.nn.Linear(1, 1)  # what PyTorch imports for it, 75 MB, is not the model's
resident = kilobytes("VmRSS")
model = load_llama(sys.argv[1], getattr(torch, sys.argv[2]))
pages = [x.detach().flatten()[::1024].sum() for x in model.parameters()]
peak = kilobytes("VmHWM") - resident  # ru_maxrss would start at the parent's size
size = sum(x.numel() * x.element_size() for x in model.parameters()) / 1024
assert size > 1e6
print(peak / size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_no_second_copy(tmp_path, dtype):
    """1 GB as its file has it, mapped, and converted from a file of half the size."""
    layers = 9 if dtype == "bfloat16" else 3
    config = LlamaConfig(32000, 2048, layers, 32, 4, 5632, 2048)
    with torch.device("meta"):
        model = Llama(config).bfloat16()
    names = [_theirs(name) for name, _ in model.named_parameters()]
    tensors = [torch.zeros_like(x, device="cpu") for x in model.parameters()]
    half = len(names) // 2
    files = {"a.safetensors": slice(half), "b.safetensors": slice(half, None)}
    for file, part in files.items():
        save_file(dict(zip(names[part], tensors[part], strict=True)), tmp_path / file)
    index = {name: file for file, part in files.items() for name in names[part]}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    settings = write_config(config, "LlamaForCausalLM", torch.bfloat16, COURSE_IDS)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    del tensors
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype],
        capture_output=True,
        text=True,
    )
    assert measured.returncode == 0, measured.stderr
    assert 0.8 < float(measured.stdout) <= 1.2


# --------------------------------------------------------------------------------------
# Reward models


def judge(dtype=torch.float32, **changes):
    """A reward model with weights that matter, in eval mode."""
    sizes = dict(rope_theta=300.0) | changes
    body = Llama(LlamaConfig(40, 32, 2, 4, 2, 48, 64, **sizes))
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(5 if parameter.ndim > 1 else 1.1)
    return RewardModel(body.to(dtype)).eval()


TEXTS = torch.tensor([[1, 4, 9, 2, 30, 2], [1, 4, 7, 2, 3, 3]])
REAL_TOKENS = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(tie_embeddings=True),
        dict(head_size=16, rope_scaling=LinearScaling(2.0)),
    ],
)
def test_transformers_reads_a_reward_model(tmp_path, changes):
    ours = judge(**changes)
    save_reward_model(ours, tmp_path)
    theirs, info = LlamaForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()) and theirs.config.num_labels == 1
    with torch.no_grad():
        scores = theirs.eval()(TEXTS, attention_mask=REAL_TOKENS.long()).logits[:, 0]
        torch.testing.assert_close(scores, ours(TEXTS, REAL_TOKENS), atol=2e-5, rtol=0)
        again = load_reward_model(tmp_path)
        assert torch.equal(again(TEXTS, REAL_TOKENS), ours(TEXTS, REAL_TOKENS))
    assert again.llama.config == ours.llama.config and not again.training
    # what transformers writes, we read
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(
        load_reward_model(tmp_path / "theirs")(TEXTS, REAL_TOKENS),
        ours(TEXTS, REAL_TOKENS),
    )


def test_a_normalisation_travels_beside_the_raw_scores(tmp_path):
    ours = judge()
    ours.set_normalisation(0.3, 2.0)
    save_reward_model(ours, tmp_path)
    again = load_reward_model(tmp_path)
    assert torch.equal(again(TEXTS, REAL_TOKENS), ours(TEXTS, REAL_TOKENS))
    theirs = LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    scores = theirs(TEXTS, attention_mask=REAL_TOKENS.long()).logits[:, 0]
    torch.testing.assert_close(
        scores, ours.raw_scores(TEXTS, REAL_TOKENS), atol=2e-5, rtol=0
    )


def test_a_head_stays_float32_above_a_half_precision_body(tmp_path):
    ours = judge(dtype=torch.bfloat16)
    save_reward_model(ours, tmp_path)
    again = load_reward_model(tmp_path)
    assert again.score.weight.dtype == torch.float32
    assert again.llama.norm.weight.dtype == torch.bfloat16
    assert torch.equal(again(TEXTS, REAL_TOKENS), ours(TEXTS, REAL_TOKENS))
    wide = load_reward_model(tmp_path, torch.float32)
    theirs = LlamaForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    )
    scores = theirs.eval()(TEXTS, attention_mask=REAL_TOKENS.long()).logits[:, 0]
    torch.testing.assert_close(scores, wide(TEXTS, REAL_TOKENS), atol=2e-5, rtol=0)


def test_a_reward_model_of_several_labels_or_another_kind_is_refused(tmp_path):
    ours = judge()
    save_reward_model(ours, tmp_path)
    with pytest.raises(ValueError, match="^load_llama: .*SequenceClassification'"):
        load_llama(tmp_path)
    edit_tensors(tmp_path, lambda x: x.update({"score.weight": torch.ones(2, 32)}))
    with pytest.raises(ValueError, match=r"^load_reward_model: .*score.weight is \(2,"):
        load_reward_model(tmp_path)
    save_llama(Llama(ours.llama.config), tmp_path)
    with pytest.raises(ValueError, match=r"^load_reward_model: .*architectures \['Ll"):
        load_reward_model(tmp_path)


def test_an_lm_head_is_left_out_of_a_reward_model(tmp_path):
    ours = RewardModel(Llama(LlamaConfig(40, 8, 1, 2, 1, 16, 64)), keep_lm_head=True)
    save_reward_model(ours, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_reward_model(tmp_path).llama.lm_head is None


# Loads a reward model, a language model, and a reward model whose head is missing.
LOAD = """
import sys
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
LlamaForSequenceClassification.from_pretrained(sys.argv[1] + "/judge")
LlamaForCausalLM.from_pretrained(sys.argv[1] + "/lm")
print("so far", file=sys.stderr)
LlamaForSequenceClassification.from_pretrained(sys.argv[1] + "/headless")
"""


def test_transformers_has_nothing_to_warn_of(tmp_path):
    """In a process of its own; its report of missing weights would stand here, too."""
    ours = judge(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16), tie_embeddings=True)
    save_reward_model(ours, tmp_path / "judge")
    save_reward_model(ours, tmp_path / "headless")
    edit_tensors(tmp_path / "headless", lambda x: x.pop("score.weight"))
    save_llama(Llama(ours.llama.config), tmp_path / "lm")
    told = subprocess.run(
        [sys.executable, "-W", "always", "-c", LOAD, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert told.returncode == 0, told.stderr
    quiet, loud = told.stderr.split("so far\n")
    assert (told.stdout, quiet) == ("", "") and "score.weight" in loud
