"""Sampling responses for a batch of prompts, with a key/value cache: temperature, top-p, greedy.

Top-p (nucleus) sampling is that of Holtzman et al. 2020 (arXiv 1904.09751, section 3.1). Every random number is
drawn beforehand on the CPU, one for each row and step, row after row, and made a token by inverting the cumulative
distribution: the same seed gives the same text on every device, and what other rows say, when they end or how many
follow does not change a row's text (up to float rounding).

Left out: top-k, beam search, repetition penalties, stop strings, speculative decoding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillama.data import pad
from minillama.fast import keep_rows
from minillama.model import KVCache, Llama
from minillama.tokenizer import EOS_ID, PAD_ID


@dataclass
class Rollout:
    """Prompts and the responses to them. All tensors `(B, T)`, on the model's device, constants to autograd.

    Prompts are padded on the left to one length, so that all responses start in the same column.
    """

    ids: Tensor  # int64: padding, prompt, response, padding
    mask: Tensor  # bool: True = real token
    response_mask: Tensor  # bool: True = generated token, the EOS included
    logprobs: Tensor  # float32: log-probability of ids[:, t] given what precedes it; 0 outside the response


def generate(
    model: Llama,
    prompts: list[list[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    eos_id: int | None = EOS_ID,
    pad_id: int = PAD_ID,
) -> Rollout:
    """Continues every prompt until `eos_id` is emitted or `max_new_tokens` tokens are.

    Tokens are drawn from softmax(logits / temperature), restricted to its top-p set if top_p < 1; temperature 0
    takes the most probable one. `logprobs` are those of softmax(logits / temperature) before that restriction,
    and of softmax(logits) for temperature 0. `generator` is a CPU generator (None: torch's default); with eos_id
    None no token ends a response. The model runs in eval mode and gets its own mode back.

    Raises ValueError for an empty batch or prompt, a prompt that with max_new_tokens exceeds the model's
    max_seq_len, a temperature or top_p out of range; IndexError for an id outside the vocabulary;
    FloatingPointError if the model's logits are not finite.
    """
    check_arguments(
        model.config, prompts, max_new_tokens, temperature, top_p, eos_id, pad_id
    )
    device = model.embed_tokens.weight.device
    ids, mask = (x.to(device) for x in pad(prompts, "left", pad_id))  # (B, P)
    uniforms = torch.rand(len(prompts), max_new_tokens, generator=generator).T.to(
        device
    )  # (steps, B), drawn row by row
    was_training = model.training
    model.eval()
    try:
        with (
            torch.inference_mode()
        ):  # less to keep track of than under no_grad, so faster
            new_ids, new_mask, logprobs = sample_responses(
                model, ids, mask, uniforms, temperature, top_p, eos_id, pad_id
            )
    finally:
        model.train(was_training)
    if not logprobs.isfinite().all():
        raise FloatingPointError("generate: model gave logits that are not finite")
    return Rollout(
        ids=torch.cat((ids, new_ids), dim=1),  # (B, T), T = P + R
        mask=torch.cat((mask, new_mask), dim=1),
        response_mask=torch.cat((torch.zeros_like(mask), new_mask), dim=1),
        logprobs=torch.cat(
            (torch.zeros_like(ids, dtype=logprobs.dtype), logprobs), dim=1
        ),
    )


def sample_responses(
    model: Llama,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_p: float,
    eos_id: int | None,
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loop over steps: ids, mask and logprobs `(B, R)` of the responses, R the length of the longest.

    prompt_ids and prompt_mask `(B, P)`, padded on the left; uniforms `(max_new_tokens, B)`. A row that has ended
    leaves the batch and the cache at once, so that no work goes into it.
    """
    steps, B = uniforms.shape
    ids = prompt_ids.new_full((B, steps), pad_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    logprobs = torch.zeros_like(ids, dtype=torch.float32)
    weight = model.embed_tokens.weight
    cache = KVCache(
        model.config, B, prompt_ids.shape[1] + steps, weight.device, weight.dtype
    )
    rows = torch.arange(
        B, device=ids.device
    )  # the row of the batch that each row of the cache is
    hidden = model.hidden(prompt_ids, prompt_mask, cache)  # (B, P, D)
    for step in range(steps):
        tokens, token_logprobs = pick(
            model.lm_head(hidden[:, -1]), uniforms[step, rows], temperature, top_p
        )
        ids[rows, step], mask[rows, step], logprobs[rows, step] = (
            tokens,
            True,
            token_logprobs,
        )
        going = (
            tokens != eos_id
            if eos_id is not None
            else torch.ones_like(tokens, dtype=torch.bool)
        )
        if step + 1 == steps or not going.any():
            break
        if not going.all():
            kept = keep_rows(cache, going)
            rows, tokens = rows[kept], tokens[kept]
        hidden = model.hidden(tokens[:, None], cache=cache)  # (rows, 1, D)
    return ids[:, : step + 1], mask[:, : step + 1], logprobs[:, : step + 1]


def pick(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """One token per row of logits `(B, V)` and its log-probability, both `(B,)`; conventions as for `generate`."""
    probs = torch.softmax(logits.float() / (temperature or 1.0), dim=-1)  # (B, V)
    if temperature == 0:
        tokens = probs.argmax(-1)
    else:
        tokens = sample(top_p_filter(probs, top_p) if top_p < 1 else probs, uniforms)
    return tokens, probs.gather(-1, tokens[:, None]).squeeze(-1).log()


def sample(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds a uniform number: an exact draw from probs.

    probs `(B, V)`, not negative, need not sum to 1; uniforms `(B,)` in [0, 1). Returns `(B,)`. A token of
    probability 0 is never drawn: if rounding leaves no other candidate, the most probable token is.
    """
    cumulative = probs.cumsum(-1)  # (B, V)
    target = uniforms[:, None] * cumulative[:, -1:]  # (B, 1)
    tokens = torch.searchsorted(cumulative, target, right=True).clamp(
        max=probs.shape[1] - 1
    )
    impossible = probs.gather(-1, tokens) == 0  # (B, 1), by rounding alone
    if impossible.any():
        tokens = torch.where(impossible, probs.argmax(-1, keepdim=True), tokens)
    return tokens.squeeze(-1)


def top_p_filter(probs: Tensor, top_p: float) -> Tensor:
    """probs `(B, V)` with 0 outside the smallest set of most probable tokens that together reach `top_p`.

    A token stays if those before it, in order of falling probability, sum to less than top_p; of equally probable
    tokens the lower id comes first. The result is not renormalised.
    """
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs).scatter(
        -1, order, ordered.where(before < top_p, 0.0)
    )


def check_arguments(
    config, prompts, max_new_tokens, temperature, top_p, eos_id, pad_id
) -> None:
    """Raises what `generate` says, naming the argument, what was expected and what came."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(
            "generate: prompts must be a non-empty list of non-empty lists of ids"
        )
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(
            f"generate: max_new_tokens must be an int of at least 1, got {max_new_tokens!r}"
        )
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new_tokens > config.max_seq_len:
        raise ValueError(
            f"generate: prompts and max_new_tokens must fit in max_seq_len = {config.max_seq_len}, "
            f"got {longest} + {max_new_tokens}"
        )
    if temperature != 0 and not 1e-4 <= temperature < float("inf"):
        raise ValueError(
            f"generate: temperature must be 0 (greedy) or finite and at least 1e-4, got {temperature}"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must be in (0, 1], got {top_p}")
    for name, token in (("eos_id", eos_id), ("pad_id", pad_id)):
        if token is not None and not 0 <= token < config.vocab_size:
            raise IndexError(
                f"generate: {name} must be in 0 .. {config.vocab_size - 1}, got {token}"
            )
