"""Hugging Face LLaMA checkpoints: a folder's weights in and out, never a pickle.

`Llama` has Hugging Face's layout already (half-split rotary pairs, separate
projections, no biases), so the mapping of names is a prefix: all but lm_head.weight and
score.weight stand below "model.". hf_config.py has the settings and hf_files.py the
files. Reading is strict: a tensor that is missing, unexpected or of another shape is an
error that names it, and so is a setting that `Llama` does not have. Nothing is guessed.

A loaded model may use its file's own pages, so a file must not be changed in place
meanwhile. `save_llama` and `save_reward_model` put a new one in its place.

Left out: writing several files, biases, quantised weights, tokenizers.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from minillama.contracts import expects
from minillama.hf_config import (
    COURSE_IDS,
    read_config,
    read_special_ids,
    write_config,
)
from minillama.hf_files import (
    INDEX,
    SINGLE,
    check_tensors,
    headers,
    mapped,
    one_dtype,
    read_json,
    read_tensors,
)
from minillama.model import Llama
from minillama.reward_model import RewardModel

LM, JUDGE = "LlamaForCausalLM", "LlamaForSequenceClassification"
HEAD, TABLE, SCORE = "lm_head.weight", "model.embed_tokens.weight", "score.weight"


def _theirs(name):
    """Hugging Face's name of a tensor of a `Llama` or a `RewardModel`."""
    name = name.removeprefix("llama.")
    return name if name in (HEAD, SCORE) else f"model.{name}"


# --------------------------------------------------------------------------------------
# Reading


def _drop_tied(found, caller):
    """Drop an lm_head beside the table that it is tied to; refuse another one."""
    head, table = (mapped(found[x][0], [x], caller)[x] for x in (HEAD, TABLE))
    if head.dtype != table.dtype or not torch.equal(head, table):
        raise ValueError(
            f"{caller}: {HEAD} must equal {TABLE}, as tie_word_embeddings says, "
            "got another"
        )
    return {name: where for name, where in found.items() if name != HEAD}


def _read_state(model, folder, tied, dtype, device, caller):
    """A checkpoint's tensors by our names, held against a model on the meta device."""
    ours = {_theirs(name): name for name, _ in model.named_parameters()}
    shapes = {_theirs(name): tuple(x.shape) for name, x in model.named_parameters()}
    found = headers(folder, caller)
    if tied and HEAD in found:
        shapes[HEAD] = shapes[TABLE]
    check_tensors(shapes, found, caller)
    if tied and HEAD in found:
        found = _drop_tied(found, caller)
    body = {name: where for name, where in found.items() if name != SCORE}
    dtypes = dict.fromkeys(body, one_dtype(body, dtype, caller))
    dtypes[SCORE] = torch.float32  # as every reward model's head
    tensors = read_tensors(found, dtypes, device, caller)
    return {ours[name]: tensor for name, tensor in tensors.items()}


@expects(
    "folder: text or Path",
    "dtype: dtype or None",
    "device: text or device or int or None",
)
def load_llama(folder, dtype=None, device=None):
    """Read a LlamaForCausalLM checkpoint: a `Llama` in eval mode.

    With dtype None the tensors keep the files', which must be one for all. Raises
    FileNotFoundError without config.json or safetensors files, and ValueError for a
    setting that `Llama` does not have or tensors that do not fit.
    """
    folder, caller = Path(folder), "load_llama"
    config = read_config(read_json(folder / "config.json", caller), LM, caller)
    with torch.device("meta"):
        model = Llama(config)
    tied = config.tie_embeddings
    state = _read_state(model, folder, tied, dtype, device, caller)
    if tied:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    return model.eval()


@expects(
    "folder: text or Path",
    "dtype: dtype or None",
    "device: text or device or int or None",
)
def load_reward_model(folder, dtype=None, device=None):
    """Read a LlamaForSequenceClassification checkpoint of one label, in eval mode.

    A `RewardModel` that pools the last token. dtype is that of the body, as for
    `load_llama`; the head is float32. Scores are normalised if `save_reward_model`
    wrote a normalisation, raw if not. Raises as `load_llama` does.
    """
    folder, caller = Path(folder), "load_reward_model"
    settings = read_json(folder / "config.json", caller)
    config = read_config(settings, JUDGE, caller)
    with torch.device("meta"):
        model = RewardModel(Llama(config))
    state = _read_state(model, folder, False, dtype, device, caller)
    for name in ("score_mean", "score_std"):
        state[name] = torch.zeros((), device=device)
    model.load_state_dict(state, assign=True)
    model.set_normalisation(
        settings.get("score_mean", 0.0), settings.get("score_std", 1.0)
    )
    return model.eval()


@expects("folder: text or Path")
def load_special_ids(folder):
    """Read the `SpecialIds` of a checkpoint, to be written again when it is saved."""
    path = Path(folder) / "config.json"
    return read_special_ids(read_json(path, "load_special_ids"))


# --------------------------------------------------------------------------------------
# Writing


def _write(folder, settings, tensors, caller):
    """Write config.json and model.safetensors; what was mapped of an old one stays."""
    if (folder / INDEX).exists():
        raise ValueError(
            f"{caller}: folder must hold no checkpoint in several files, got {INDEX} "
            f"in {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    unfinished = folder / f"{SINGLE}.unfinished"
    try:
        save_file(tensors, unfinished, metadata={"format": "pt"})
        os.replace(unfinished, folder / SINGLE)
    finally:
        unfinished.unlink(missing_ok=True)
    (folder / "config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


@expects("model: Llama", "folder: text or Path", "special_ids: SpecialIds")
def save_llama(model, folder, special_ids=COURSE_IDS):
    """Write config.json and model.safetensors, for transformers' LlamaForCausalLM.

    `special_ids`: those of the model's tokenizer, the course's unless said otherwise;
    of a model that was loaded, `load_special_ids` of its folder.
    """
    if model.lm_head is None:
        raise ValueError("save_llama: model must have an lm_head, got a body without")
    tensors = {_theirs(name): x for name, x in model.named_parameters()}
    dtype = model.norm.weight.dtype
    settings = write_config(model.config, LM, dtype, special_ids)
    _write(Path(folder), settings, tensors, "save_llama")


@expects("reward_model: RewardModel", "folder: text or Path", "special_ids: SpecialIds")
def save_reward_model(reward_model, folder, special_ids=COURSE_IDS):
    """Write a checkpoint for transformers' LlamaForSequenceClassification, one label.

    Its numbers are `raw_scores`: a head without bias cannot hold a mean. The
    normalisation stands in config.json, as score_mean and score_std, for
    `load_reward_model`. An lm_head is left out. transformers finds the last token by
    its id: the first from the right that is not `special_ids.pad`, which therefore
    must be an id that ends no text. Raises ValueError for pooling by the mean, which
    transformers does not have, and for such a pad id.
    """
    caller, config = "save_reward_model", reward_model.llama.config
    if reward_model.pooling != "last":
        raise ValueError(
            f"{caller}: reward_model must pool the last token, got "
            f"{reward_model.pooling!r}"
        )
    pad, eos = special_ids.pad, special_ids.eos
    ends = eos if isinstance(eos, list | tuple) else [eos]
    if pad is None or pad in ends or pad >= config.vocab_size:
        raise ValueError(
            f"{caller}: special_ids.pad must be an id below {config.vocab_size} other "
            f"than eos, got {pad} beside {eos}"
        )
    tensors = {
        _theirs(name): x
        for name, x in reward_model.named_parameters()
        if name != "llama.lm_head.weight"
    }
    dtype = reward_model.llama.norm.weight.dtype
    settings = write_config(config, JUDGE, dtype, special_ids) | {
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "score_mean": reward_model.score_mean.item(),
        "score_std": reward_model.score_std.item(),
    }
    _write(Path(folder), settings, tensors, caller)
