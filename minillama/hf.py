"""Hugging Face LLaMA checkpoints: a folder with config.json and one model.safetensors.

`Llama` has Hugging Face's layout already (half-split rotary pairs, separate
projections, no biases), so the mapping of names is a prefix: all but lm_head.weight
stand below "model.". Loading is strict: a tensor that is missing, unexpected or of
another shape is an error that names it, and so is a setting that this model does not
have. Nothing is guessed. Left out: checkpoints in several files, rope scaling, biases,
tokenizers.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minillama.contracts import expects
from minillama.model import Llama, LlamaConfig
from minillama.tokenizer import BOS_ID, EOS_ID, PAD_ID

FIELDS = {  # LlamaConfig's name -> Hugging Face's
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


def _ours_to_hf(name):
    return name if name.startswith("lm_head.") else f"model.{name}"


def _hf_to_ours(name):
    return name.removeprefix("model.")


def _read_config(config):
    """A `LlamaConfig` from the dict of a config.json."""
    optional = {
        "num_key_value_heads": config.get("num_attention_heads"),
        "tie_word_embeddings": False,
    }
    config = {**optional, **config}
    missing = [theirs for theirs in FIELDS.values() if config.get(theirs) is None]
    if missing:
        raise ValueError(
            f"load_llama: config.json must have {', '.join(missing)}, got none of them"
        )
    ropes = [config.get(name) or {} for name in ("rope_parameters", "rope_scaling")]
    rope_types = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
    unsupported = {
        "model_type": config.get("model_type", "llama") != "llama",
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope type": rope_types != {"default"},
        "head_dim": (config.get("head_dim") or 0) * config["num_attention_heads"]
        not in (0, config["hidden_size"]),
    }
    wrong = [name for name, is_wrong in unsupported.items() if is_wrong]
    if wrong:
        raise ValueError(
            "load_llama: config.json must describe a plain LLaMA, got an unsupported "
            f"{', '.join(wrong)}"
        )
    return LlamaConfig(
        **{ours: config[theirs] for ours, theirs in FIELDS.items()},
        rope_theta=ropes[0].get("rope_theta", config.get("rope_theta", 10000.0)),
    )


def _hf_config(config, dtype):
    """The dict of a config.json from a `LlamaConfig` and the dtype of the weights."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }


def _check_tensors(expected, found):
    """Hold the names, shapes and types of tensors against those of a model."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    faults += [
        f"{name} is {tensor.dtype}"
        for name, tensor in found.items()
        if not tensor.is_floating_point()
    ]
    if faults:
        raise ValueError(
            "load_llama: the tensors must be those of the config, got "
            + "; ".join(faults)
        )


def _read_tensors(path, config, expected):
    """The tensors of a file by our names, held against those of the model."""
    tensors = {
        _hf_to_ours(name): tensor
        for name, tensor in load_file(path).items()
        # Old checkpoints hold the rotary tables, which follow from the config.
        if not name.endswith("rotary_emb.inv_freq")
    }
    tied = config.tie_embeddings
    if tied and "embed_tokens.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["embed_tokens.weight"])
    _check_tensors(expected, tensors)
    table, head = tensors["embed_tokens.weight"], tensors["lm_head.weight"]
    if tied and not torch.equal(head.float(), table.float()):
        raise ValueError(
            "load_llama: lm_head.weight must equal embed_tokens.weight, as "
            "tie_word_embeddings says, got another"
        )
    return tensors


@expects(
    "folder: text or Path",
    "dtype: dtype or None",
    "device: text or device or int or None",
)
def load_llama(folder, dtype=None, device=None):
    """Read a LlamaForCausalLM checkpoint: a `Llama` in eval mode.

    With dtype None the tensors keep the file's, which must be one for all. Raises
    FileNotFoundError without config.json or model.safetensors, and ValueError for a
    checkpoint in several files, a setting that `Llama` does not have, or tensors that
    do not fit.
    """
    folder = Path(folder)
    if (folder / "model.safetensors.index.json").exists():
        raise ValueError(
            "load_llama: folder must hold one model.safetensors, got several files: "
            f"{folder}"
        )
    config = _read_config(
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    )
    with torch.device("meta"):
        model = Llama(config)
    tensors = _read_tensors(folder / "model.safetensors", config, model.state_dict())
    dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if dtype is None and len(dtypes) > 1:
        raise ValueError(
            "load_llama: dtype must be given where a checkpoint mixes several, got "
            f"None for {', '.join(dtypes)}"
        )
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device=device, dtype=dtype).eval()


@expects("model: Llama", "folder: text or Path")
def save_llama(model, folder):
    """Write config.json and model.safetensors, for transformers' LlamaForCausalLM."""
    if model.lm_head is None:
        raise ValueError("save_llama: model must have an lm_head, got a body without")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _ours_to_hf(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]  # one tensor, stored once
    config = _hf_config(model.config, model.norm.weight.dtype)
    (folder / "config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
