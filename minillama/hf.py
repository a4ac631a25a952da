"""Hugging Face LLaMA checkpoints in and out: a folder with config.json and one model.safetensors.

`Llama` has Hugging Face's layout already (half-split rotary pairs, separate projections, no biases), so the mapping
of names is a prefix: all but lm_head.weight stand below "model.". Loading is strict: a tensor that is missing,
unexpected or of another shape is an error that names it, and so is a setting that this model does not have.
Left out: checkpoints in several files, rope scaling, biases, tokenizers.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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


def load_llama(folder, dtype=None, device=None):
    """Read a LlamaForCausalLM checkpoint: a `Llama` in eval mode.

    ``dtype``: None keeps the file's. Raises FileNotFoundError without config.json or model.safetensors, ValueError for
    a checkpoint in several files, a setting that `Llama` does not support, or tensors that do not fit.
    """
    folder = Path(folder)
    if (folder / "model.safetensors.index.json").exists():
        raise ValueError(
            f"load_llama: folder must hold one model.safetensors, got several files: {folder}"
        )
    config = read_config(
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    )
    tensors = {
        hf_to_ours(name): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    if config.tie_embeddings:
        tensors.setdefault("lm_head.weight", tensors.get("embed_tokens.weight"))
        if not torch.equal(tensors["lm_head.weight"], tensors["embed_tokens.weight"]):
            raise ValueError(
                "load_llama: lm_head.weight must equal embed_tokens.weight, as tie_word_embeddings says"
            )
    with torch.device("meta"):
        model = Llama(config)
    check_tensors(
        {name: tensor.shape for name, tensor in model.state_dict().items()},
        {name: tensor.shape for name, tensor in tensors.items()},
    )
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model.to(device=device, dtype=dtype).eval()


def save_llama(model, folder):
    """Write ``config.json`` and ``model.safetensors``, as transformers' LlamaForCausalLM reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        ours_to_hf(name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_embeddings:
        del tensors["lm_head.weight"]  # one tensor, stored once
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": model.config.head_dim,
        "rope_theta": model.config.rope_theta,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        "dtype": str(model.norm.weight.dtype).removeprefix("torch."),
        **{theirs: getattr(model.config, ours) for ours, theirs in FIELDS.items()},
    }
    (folder / "config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def ours_to_hf(name):
    return name if name.startswith("lm_head.") else f"model.{name}"


def hf_to_ours(name):
    return name.removeprefix("model.")


def read_config(config):
    """A `LlamaConfig` from the dict of a config.json; ValueError for what `Llama` does not support."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    unsupported = {
        "model_type": config.get("model_type", "llama") != "llama",
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope type": rope.get("rope_type", rope.get("type", "default")) != "default",
        "head_dim": (config.get("head_dim") or 0) * config["num_attention_heads"]
        not in (0, config["hidden_size"]),
    }
    wrong = [name for name, is_wrong in unsupported.items() if is_wrong]
    if wrong:
        raise ValueError(
            f"load_llama: config.json must describe a plain LLaMA, got an unsupported {', '.join(wrong)}"
        )
    config = {
        "num_key_value_heads": config["num_attention_heads"],
        "tie_word_embeddings": False,
        **config,
    }
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return LlamaConfig(
        **{ours: config[theirs] for ours, theirs in FIELDS.items()}, rope_theta=theta
    )


def check_tensors(expected, found):
    """ValueError naming every tensor that is missing, unexpected or of another shape; both dicts name -> shape."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        raise ValueError(
            "load_llama: the tensors must be those of the config, got "
            + "; ".join(faults)
        )
