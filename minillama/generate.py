"""Sampling responses for a batch of prompts with a key/value cache.

Top-p (nucleus) sampling is that of Holtzman et al. 2020 (arXiv 1904.09751, section
3.1). Every random number is drawn beforehand on the CPU, one for each row and step, row
after row, and made a token by inverting the cumulative distribution: the same seed
gives the same text on every device, and what other rows say, when they end or how many
follow does not change a row's text (up to float rounding).

Left out: top-k, beam search, repetition penalties, stop strings, speculative decoding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minillama.contracts import expects
from minillama.data import pad
from minillama.fast import keep_rows
from minillama.model import KVCache, require_lm_head
from minillama.tokenizer import EOS_ID, PAD_ID


@expects(
    "ids: int64 (B, T)",
    "mask, response_mask: bool (B, T)",
    "logprobs: float (B, T)",
)
@dataclass
class Rollout:
    """Prompts and the responses to them, on the model's device, constants to autograd.

    Prompts are padded on the left to one length, so that all responses start in the
    same column.
    """

    ids: Tensor  # A row holds padding, prompt, response and padding.
    mask: Tensor  # It is True at real tokens.
    response_mask: Tensor  # It is True at generated tokens, EOS included.
    logprobs: Tensor  # log p(ids[:, t] | what precedes it); 0 outside the response.


@expects("probs: float (B, V) in [0, 1]", "top_p: number in (0, 1]")
def top_p_filter(probs, top_p):
    """Return probs with 0 outside the smallest set of top tokens that reach `top_p`.

    A token stays if those before it, in order of falling probability, sum to less than
    top_p; of equally probable tokens the lower id comes first. The result is not
    renormalised.
    """
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where(before < top_p, 0.0)
    return torch.zeros_like(probs).scatter(-1, order, kept)


def require_possible(probs, tokens):
    """Return tokens (B, 1), the likeliest where rounding alone left an impossible one.

    Refuses, in the name of `sample`, a row without a possible token.
    """
    tokens = tokens.clamp(max=probs.shape[1] - 1)
    impossible = probs.gather(-1, tokens) == 0  # (B, 1), by rounding alone
    if impossible.any():
        best, likeliest = probs.max(-1, keepdim=True)
        if not best.all():
            raise ValueError("sample: probs must be > 0 somewhere, got a row of zeros")
        tokens = torch.where(impossible, likeliest, tokens)
    return tokens


@expects("probs: float (B, V) in [0, inf)", "uniforms: float (B,) in [0, 1]")
def sample(probs, uniforms):
    """Return the first token whose cumulative probability exceeds a uniform number.

    With numbers uniform in [0, 1) these are exact draws (B,). The probabilities of a
    row need not sum to 1, but one must be positive. A token of probability 0 is never
    drawn: if rounding leaves no other candidate, the most probable token is.
    """
    cumulative = probs.cumsum(-1)  # (B, V)
    target = uniforms[:, None] * cumulative[:, -1:]  # (B, 1)
    tokens = torch.searchsorted(cumulative, target, right=True)
    return require_possible(probs, tokens).squeeze(-1)


@expects(
    "logits: float (B, V)",
    "uniforms: float (B,)",
    "temperature: finite number >= 0",
    "top_p: number in (0, 1]",
)
def pick(logits, uniforms, temperature, top_p):
    """Return a token for each row and its log-probability, both (B,), as `generate`."""
    probs = torch.softmax(logits.float() / (temperature or 1.0), dim=-1)  # (B, V)
    if temperature == 0:
        tokens = probs.argmax(-1)
    else:
        tokens = sample(top_p_filter(probs, top_p) if top_p < 1 else probs, uniforms)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()


def require_finite(logits):
    """Refuse, in the name of `generate`, a row that gives no probabilities."""
    if not math.isfinite(logits.amax(-1).sum()):
        raise FloatingPointError("generate: model gave logits that are not finite")


@expects(
    "prompt_ids: int64 (B, P)", "prompt_mask: bool (B, P)", "uniforms: float (R, B)"
)
def sample_responses(
    model, prompt_ids, prompt_mask, uniforms, temperature, top_p, eos_id, pad_id
):
    """Return ids, mask and logprobs of the responses, (B, R) for the longest of R.

    Prompts are padded on the left. A row that has ended leaves the batch and the cache
    at once, so that no work goes into it.
    """
    ids = torch.full_like(uniforms, pad_id, dtype=torch.int64)  # (steps, B)
    mask = torch.zeros_like(uniforms, dtype=torch.bool)
    logprobs = torch.zeros_like(uniforms)
    like, room = model.embed_tokens.weight, prompt_ids.shape[1] + len(uniforms)
    cache = KVCache(model.config, len(prompt_ids), room, like.device, like.dtype)
    rows = torch.arange(len(prompt_ids), device=ids.device)  # whose the cache's are
    hidden = model.hidden(prompt_ids, prompt_mask, cache)  # (B, P, D)
    for step in range(len(uniforms)):
        logits = model.lm_head(hidden[:, -1])  # (rows, V)
        require_finite(logits)
        tokens, picked = pick(logits, uniforms[step][rows], temperature, top_p)
        ids[step].index_copy_(0, rows, tokens)
        mask[step].index_fill_(0, rows, True)
        logprobs[step].index_copy_(0, rows, picked)
        going = tokens != eos_id
        if step + 1 == len(uniforms) or not going.any():
            break
        rows, tokens = keep_rows(cache, going, rows, tokens)
        hidden = model.hidden(tokens[:, None], cache=cache)  # (rows, 1, D)
    return ids[: step + 1].T, mask[: step + 1].T, logprobs[: step + 1].T


def require_room(config, prompts, max_new_tokens, temperature):
    """Refuse, in the name of `generate`, what contracts have no word for."""
    longest = max(map(len, prompts))
    if longest + max_new_tokens > config.max_seq_len:
        raise ValueError(
            "generate: prompts and max_new_tokens must fit in max_seq_len = "
            f"{config.max_seq_len}, got {longest} + {max_new_tokens}"
        )
    if 0 < temperature < 1e-4:  # logits / temperature would overflow
        raise ValueError(
            f"generate: temperature must be 0 or at least 1e-4, got {temperature}"
        )


@expects(
    "model: Llama",
    "prompts: lists of ids, none empty, below model.config.vocab_size",
    "max_new_tokens: int >= 1",
    "temperature: finite number >= 0",
    "top_p: number in (0, 1]",
    "generator: Generator or None",
    "eos_id: int below model.config.vocab_size or None",
    "pad_id: int below model.config.vocab_size",
)
def generate(
    model,
    prompts,
    max_new_tokens,
    temperature=1.0,
    top_p=1.0,
    generator=None,
    eos_id=EOS_ID,
    pad_id=PAD_ID,
):
    """Continue every prompt until `eos_id` is emitted or `max_new_tokens` tokens are.

    Tokens are drawn from softmax(logits / temperature), restricted to its top-p set if
    top_p < 1; temperature 0 takes the most probable one. The `Rollout` has the
    logprobs of softmax(logits / temperature) before that restriction, and of
    softmax(logits) for temperature 0. `generator` is a CPU generator (None: torch's
    default); with eos_id None no token ends a response. The model runs in eval mode and
    gets its own mode back.

    Raises FloatingPointError if the model's logits are not finite.
    """
    require_lm_head(model, "generate")
    require_room(model.config, prompts, max_new_tokens, temperature)
    device = model.embed_tokens.weight.device
    ids, mask = (x.to(device) for x in pad(prompts, "left", pad_id))  # (B, P)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator)
    uniforms = uniforms.T.to(device)  # (steps, B), drawn row by row
    eos_id = -1 if eos_id is None else eos_id  # no token is -1
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():  # faster than no_grad: it keeps track of less
            new_ids, new_mask, logprobs = sample_responses(
                model, ids, mask, uniforms, temperature, top_p, eos_id, pad_id
            )
    finally:
        model.train(was_training)
    return Rollout(
        ids=torch.cat((ids, new_ids), dim=1),  # (B, T), T = P + R
        mask=torch.cat((mask, new_mask), dim=1),
        response_mask=torch.cat((torch.zeros_like(mask), new_mask), dim=1),
        logprobs=torch.cat((logprobs.new_zeros(ids.shape), logprobs), dim=1),
    )
