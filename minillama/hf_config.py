"""The config.json of a Hugging Face LLaMA: read into a `LlamaConfig`, and written.

Reading guesses nothing. A setting that `Llama` does not have is refused with its name
and value, so is a rule of RoPE scaling that rope_scaling.py does not have, and so are
settings that contradict each other. What a file leaves out has transformers' default.
Settings that change no number of a forward pass are passed over.
"""

from dataclasses import dataclass, replace

from minillama.contracts import expects
from minillama.model import LlamaConfig
from minillama.rope_scaling import LinearScaling, Llama3Scaling
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
ONLY = {  # a setting that decides what is computed -> the one value that `Llama` has
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
SCALINGS = {  # a rope type -> our class, and its fields -> Hugging Face's
    "linear": (LinearScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_seq_len": "original_max_position_embeddings",
        },
    ),
}


@expects("bos, pad: int >= 0 or None", "eos: int >= 0 or list of ids or None")
@dataclass(frozen=True)
class SpecialIds:
    """The ids that a config.json gives to symbols; by default the course's."""

    bos: int | None = BOS_ID  # Opens a text.
    eos: int | list | None = EOS_ID  # Ends it; several ids where any of them does.
    pad: int | None = PAD_ID  # Stands where a row of a batch has no text.


COURSE_IDS = SpecialIds()


def read_special_ids(settings):
    """The `SpecialIds` of a config.json's dict; transformers' where it leaves one out.

    Those of `LlamaConfig` there: 1 opens, 2 ends, nothing pads.
    """
    return SpecialIds(
        settings.get("bos_token_id", 1),
        settings.get("eos_token_id", 2),
        settings.get("pad_token_id"),
    )


def refuse(caller, faults):
    """Refuse, in the name of a caller, a config.json for faults, if there are any."""
    if faults:
        raise ValueError(
            f"{caller}: config.json must describe a plain LLaMA, got "
            + "; ".join(faults)
        )


def _rope_of(settings, caller):
    """The type of RoPE scaling of a config.json and its dict, of whichever edition."""
    old, new = (settings.get(x) or {} for x in ("rope_scaling", "rope_parameters"))
    if old and new and old != new:
        refuse(caller, ["rope_scaling and rope_parameters that differ"])
    rope = dict(old or new)
    kinds = {rope.pop(name, None) for name in ("type", "rope_type")} - {None}
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    return " and ".join(sorted(map(str, kinds))) or "default", rope


def _read_rope(settings, caller):
    """The base of the rotary wavelengths and the scaling of a config.json, or None."""
    kind, rope = _rope_of(settings, caller)
    theta = rope.pop("rope_theta", settings.get("rope_theta", 10000.0))
    if kind != "default" and kind not in SCALINGS:
        refuse(caller, [f"an unsupported rope type {kind}"])
    scaling, fields = SCALINGS.get(kind, (None, {}))
    wanted = fields.values()
    faults = [f"no {name} for rope type {kind}" for name in wanted if name not in rope]
    faults += [f"rope setting {x} {rope[x]!r}" for x in rope if x not in wanted]
    length = "original_max_position_embeddings"  # some files have it outside, too
    if length in rope and settings.get(length, rope[length]) != rope[length]:
        faults += [f"{length} {settings[length]} beside the rope's {rope[length]}"]
    refuse(caller, faults)
    if scaling is None:
        return theta, None
    return theta, scaling(**{ours: rope[theirs] for ours, theirs in fields.items()})


def read_config(settings, architecture, caller):
    """Return the `LlamaConfig` that the dict of a config.json describes.

    `architecture` is the class of transformers that it must be of, such as
    "LlamaForCausalLM". Raises ValueError, in the name of a caller, for a setting that
    is missing or that `Llama` does not have.
    """
    optional = {
        "num_key_value_heads": settings.get("num_attention_heads"),
        "tie_word_embeddings": False,
    }
    settings = optional | {k: v for k, v in settings.items() if v is not None}
    missing = [theirs for theirs in FIELDS.values() if settings.get(theirs) is None]
    if missing:
        raise ValueError(
            f"{caller}: config.json must have {', '.join(missing)}, got none of them"
        )
    faults = [
        f"an unsupported {name} {settings[name]!r}"
        for name, plain in ONLY.items()
        if settings.get(name, plain) != plain
    ]
    if settings.get("architectures", [architecture]) != [architecture]:
        faults += [f"architectures {settings['architectures']}, not {architecture}"]
    refuse(caller, faults)
    theta, scaling = _read_rope(settings, caller)
    config = LlamaConfig(
        **{ours: settings[theirs] for ours, theirs in FIELDS.items()},
        rope_theta=theta,
        rope_scaling=scaling,
    )
    head_dim = settings.get("head_dim", config.head_dim)
    # So that equal models have equal configs, whether the file says a head_dim or not.
    return (
        config if head_dim == config.head_dim else replace(config, head_size=head_dim)
    )


def write_config(config, architecture, dtype, special_ids):
    """Return the dict of a config.json, of a `LlamaConfig`, a dtype and `SpecialIds`.

    RoPE stands under transformers 4's names, which 5 reads as well.
    """
    settings = {
        "architectures": [architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "bos_token_id": special_ids.bos,
        "eos_token_id": special_ids.eos,
        "pad_token_id": special_ids.pad,
        "dtype": str(dtype).removeprefix("torch."),
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }
    for kind, (scaling, fields) in SCALINGS.items():
        if isinstance(config.rope_scaling, scaling):
            values = {
                theirs: getattr(config.rope_scaling, ours)
                for ours, theirs in fields.items()
            }
            settings["rope_scaling"] = {"rope_type": kind, **values}
    return settings
