"""Any reward model as a judge of comparisons: our own export, or transformers' models.

A folder whose config.json has a score_mean was written by `save_reward_model` and is
read without transformers. Every other folder goes through transformers'
AutoModelForSequenceClassification and AutoTokenizer, with one label. Its dialogues are
laid out by the tokenizer's own chat template; where it has none, as plain text,

    \\n\\nHuman: question\\n\\nAssistant: answer

Texts of the same length share a batch, so that nothing is padded: where a model looks
for the end of a text beside padding then makes no difference.

Left out: code that a folder brings along, pickled weights, models on the network,
reward models of several heads.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from minillama.chat_format import load_chat_format, with_pairs
from minillama.contracts import expects
from minillama.hf import load_reward_model
from minillama.hf_files import few, read_json
from minillama.preference_audit import accuracy_of, audit_comparisons
from minillama.preference_file import Tally
from minillama.reward_model import score_texts

SPEAKER = {"system": "System", "user": "Human", "assistant": "Assistant"}


@dataclass(frozen=True)
class Judge:
    """A reward model and what it needs to read a comparison."""

    about: str  # What it is and how it lays a dialogue out, in words.
    max_tokens: int  # The longest text that it reads.
    view: object  # Maps a `Comparison` to the one that the next two encode.
    encode_prompt: object  # Maps its prompt to ids.
    encode_response: object  # Maps a response of it to ids.
    score: object  # Maps lists of ids to scores (N,), on the CPU.


# --------------------------------------------------------------------------------------
# Our own export


def _own_judge(folder, device):
    """The `Judge` of a folder that `save_reward_model` and a tokenizer were written to.

    Scores are raw, as transformers gives them.
    """
    chat, model = load_chat_format(folder), load_reward_model(folder, device=device)
    config = model.llama.config
    if chat.tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"load_judge: {folder} must have a tokenizer of at most vocab_size = "
            f"{config.vocab_size} pieces, got {chat.tokenizer.vocab_size}"
        )
    model.set_normalisation(0.0)
    return Judge(
        "a reward model of ours",
        config.max_seq_len,
        lambda comparison: comparison,
        chat.encode_prompt,
        chat.encode_response,
        lambda texts: score_texts(model, texts, 32),
    )


# --------------------------------------------------------------------------------------
# transformers


def as_plain_text(turns):
    """Lay turns out as Bai et al. 2022 published theirs (see preference_file.py)."""
    return "".join(f"\n\n{SPEAKER[role]}: {text}" for role, text in turns)


def as_dialogues(comparison):
    """Turn both responses of a `Comparison` into whole dialogues, the prompt into ().

    A chat template may change what precedes an answer once there is one.
    """
    chosen, rejected = (
        (*comparison.prompt, ("assistant", text))
        for text in (comparison.chosen, comparison.rejected)
    )
    return replace(comparison, prompt=(), chosen=chosen, rejected=rejected)


def _template_encoder(tokenizer):
    """A function from turns to ids, by the chat template of a tokenizer."""
    from jinja2 import TemplateError  # transformers asks for it where templates are

    def encode(turns):
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:  # such as: this one has no system message
            raise ValueError(f"the chat template refuses: {error}") from error
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return encode


@torch.no_grad()
def _score_alike(model, device, texts, batch_size=32):
    """Scores (N,) of lists of ids; only texts of one length share a batch."""
    by_length = {}
    for i, ids in enumerate(texts):
        by_length.setdefault(len(ids), []).append(i)
    size = 1 if model.config.pad_token_id is None else batch_size
    scores = torch.zeros(len(texts))
    for rows in by_length.values():
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            ids = torch.tensor([texts[i] for i in batch], device=device)  # (B, T)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            scores[batch] = logits.squeeze(-1).float().cpu()  # (B,)
    return scores


def _foreign_judge(folder, device):
    """The `Judge` of a folder that transformers reads."""
    if find_spec("transformers") is None:
        raise ModuleNotFoundError(
            f"load_judge: transformers must be installed to read {folder}, which is "
            "no export of ours; try: pip install 'transformers>=5'"
        )
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if model.config.num_labels != 1:
        raise ValueError(
            f"load_judge: {folder} must hold a reward model, of 1 label, got "
            f"{model.config.num_labels} labels"
        )
    if loaded["missing_keys"]:  # transformers draws them at random, such as a head
        raise ValueError(
            f"load_judge: {folder} must hold a reward model with all of its weights, "
            f"got none for {few(sorted(loaded['missing_keys']))}"
        )
    model = model.to(device).eval()
    if tokenizer.chat_template is None:
        layout = "\\n\\nHuman: … \\n\\nAssistant: …"

        def encode(turns):
            return tokenizer(as_plain_text(turns))["input_ids"]
    else:
        layout, encode = "its own chat template", _template_encoder(tokenizer)
    longest = getattr(model.config, "max_position_embeddings", None)
    return Judge(
        f"{type(model).__name__} of transformers, dialogues as {layout}",
        min(longest or tokenizer.model_max_length, tokenizer.model_max_length),
        as_dialogues,
        lambda nothing: [],
        encode,
        lambda texts: _score_alike(model, device, texts),
    )


# --------------------------------------------------------------------------------------
# Both


@expects("folder: text or Path", "device: text")
def load_judge(folder, device="cpu"):
    """Read a reward model's folder: a `Judge`.

    Raises FileNotFoundError without a config.json, ModuleNotFoundError for a folder
    that needs transformers where it is not installed, ValueError for a model of
    several labels or without a head, and what the readers raise.
    """
    settings = read_json(Path(folder) / "config.json", "load_judge")
    read = _own_judge if "score_mean" in settings else _foreign_judge
    return read(folder, device)


@expects("comparisons: list of Comparison (N,)")
def with_other_prompts(comparisons):
    """Return comparisons, each under the prompt of the one before that differs.

    Those whose neighbour has the same prompt are left out.
    """
    before = [comparisons[-1], *comparisons[:-1]]
    return [
        replace(comparison, prompt=other.prompt)
        for comparison, other in zip(comparisons, before, strict=True)
        if comparison.prompt != other.prompt
    ]


@expects(
    "judge: Judge",
    "comparisons: generator or islice or list of Comparison",
    "tally: Tally or None",
)
def read_pairs(judge, comparisons, tally=None):
    """Return the list of (comparison, `PairExample`) that a judge reads.

    tally: as for `encode_pairs`. All of them are then in memory.
    """
    encoders = judge.encode_prompt, judge.encode_response
    return list(
        with_pairs(comparisons, *encoders, judge.max_tokens, tally, view=judge.view)
    )


def _scores(judge, pairs):
    """A judge's scores of the chosen and the rejected sides of pairs, (2, N)."""
    sides = [pair.chosen for _, pair in pairs] + [pair.rejected for _, pair in pairs]
    return judge.score(sides).view(2, -1)


@expects("judge: Judge", "pairs: list")
def judge_pairs(judge, pairs):
    """Return `audit_comparisons` of a judge, a dict; {"pairs": 0} without pairs.

    pairs: as from `read_pairs`. Beside it stands `other_prompt`: `accuracy_of` the same
    answers under prompts that they do not belong to, with their number as `pairs`. A
    model that reads the question gets worse by that; one that looks at the answers
    alone does not.
    """
    if not pairs:
        return {"pairs": 0}
    comparisons = [comparison for comparison, _ in pairs]
    audited = audit_comparisons(comparisons, *_scores(judge, pairs))
    moved = read_pairs(judge, with_other_prompts(comparisons), Tally())
    audited["other_prompt"] = {"pairs": len(moved)}
    if moved:
        chosen, rejected = _scores(judge, moved)
        prompts = [comparison.prompt for comparison, _ in moved]
        audited["other_prompt"] |= accuracy_of(chosen - rejected, prompts)
    return audited
