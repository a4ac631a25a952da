"""The same numbers sooner: no work for padding, unread states or ended answers.

The lessons show the plain definitions. Each function here says which expression it
equals, up to float rounding, and a test holds it to that. Left out: whatever would
change a number, such as lower precision or dropped tokens.
"""

import torch
import torch.nn.functional as F

from minillama.contracts import expects
from minillama.model import attend, require_lm_head


@expects(
    "llama: Llama",
    "ids: int64 (B, T) below llama.config.vocab_size",
    "mask: bool (B, T) or None",
    "at: bool (B, T)",
)
def hidden_at(llama, ids, mask, at):
    """Return `llama.hidden(ids, mask)[at]`, (N, D), row after row.

    The last feed-forward network sees only the states asked for.
    """
    x, cos, sin, bias = llama.embed(ids, mask)
    for block in llama.layers[:-1]:
        x = block(x, cos, sin, bias)
    last = llama.layers[-1]
    x = (x + last.self_attn(last.input_layernorm(x), cos, sin, bias))[at]  # (N, D)
    return llama.norm(x + last.mlp(last.post_attention_layernorm(x)))


@expects(
    "llama: Llama",
    "ids: int64 (B, T) below llama.config.vocab_size",
    "mask: bool (B, T) or None",
    "at: bool (B, T) True in every row",
)
def hidden_once(llama, ids, mask, at):
    """Return `llama.hidden(ids, mask)[at]`, (B, D), for one True in each row of `at`.

    In the last block nobody else asks, so that scores have one row instead of T.
    """
    x, cos, sin, bias = llama.embed(ids, mask)
    for block in llama.layers[:-1]:
        x = block(x, cos, sin, bias)
    last, attention = llama.layers[-1], llama.layers[-1].self_attn
    y = last.input_layernorm(x)
    keys, values = attention.keys_and_values(y, cos, sin)  # (B, K, T, E)
    column = at.int().argmax(1)  # (B,)
    row = torch.arange(len(ids), device=ids.device)
    cos, sin = (x.expand(*ids.shape, 1, -1)[row, column][:, None] for x in (cos, sin))
    queries = attention.queries(y[row, column][:, None], cos, sin)  # (B, 1, H, E)
    allowed = bias.expand(len(ids), 1, 1, -1, -1)[row, :, :, column]  # (B, 1, 1, S)
    mixed = attend(queries, keys, values, allowed[:, :, :, None])  # (B, 1, H E)
    x = x[row, column] + attention.o_proj(mixed[:, 0])  # (B, D)
    return llama.norm(x + last.mlp(last.post_attention_layernorm(x)))


def require_past(caller, counted, mask):
    """Refuse, in the name of a caller's argument, tokens that follow no real one.

    What counts must be real, and so must the token before it, whose state predicts it.
    """
    known = mask & F.pad(mask[:, :-1], (1, 0))  # (B, T): tokens t and t - 1 are real
    if (counted & ~known).any():
        at = (counted & ~known).nonzero()[0].tolist()
        raise ValueError(
            f"{caller} must be True only at real tokens that follow real ones, "
            f"got True at {at}"
        )


@expects(
    "model: Llama",
    "ids: int64 (B, T) below model.config.vocab_size",
    "mask: bool (B, T)",
    "loss_mask: bool (B, T), True somewhere",
)
def lm_loss_of(model, ids, mask, loss_mask):
    """Return `lm_loss(model(ids, mask), ids, loss_mask)`, nats per counted token.

    Logits are computed only where a loss counts.
    """
    require_lm_head(model, "lm_loss_of")
    require_past("lm_loss_of: loss_mask", loss_mask, mask)
    at = F.pad(loss_mask[:, 1:], (0, 1))  # (B, T): positions whose next token counts
    logits = model.lm_head(hidden_at(model, ids, mask, at)).float()  # (N, V)
    return F.cross_entropy(logits, ids[loss_mask])


@expects("mask: bool (B, T)", "size: int >= 1")
def length_groups(mask, size=16):
    """Cut a padded batch into groups of at most `size` rows of similar length.

    Yields (rows (n,), columns (n, T')): the rows of a group, and for each row the
    columns of its real tokens in order, then of padding. So
    `ids[rows].gather(1, columns)` is the group padded on the right, as short as can be.
    """
    for rows in mask.sum(1).argsort(stable=True).split(size):
        width = int(mask[rows].sum(1).max())
        yield rows, (~mask[rows]).int().argsort(dim=1, stable=True)[:, :width]


@expects("function: function", "mask: bool (B, T) True in every row")
def by_length(function, mask, *tensors):
    """Return `function(*tensors)`, computed in groups of rows of similar length.

    function: tensors (n, T') -> (n,) or (n, T'), row by row independent, whatever the
    padding. Returns (B,) or (B, T), float32; what stands at padding has no meaning.
    """
    size = max(16, 1024 // mask.shape[1])  # smaller groups cost more than they save
    result = None
    for rows, columns in length_groups(mask, size):
        part = function(*(x[rows].gather(1, columns) for x in tensors)).float()
        if result is None:
            result = part.new_zeros(mask.shape if part.ndim == 2 else len(mask))
        place = (rows[:, None], columns) if part.ndim == 2 else (rows,)
        result = result.index_put(place, part)
    return result


@expects(
    "model: Llama",
    "ids: int64 (B, T) below model.config.vocab_size",
    "mask, response_mask: bool (B, T)",
)
def response_logprobs(model, ids, mask, response_mask):
    """Return `lm.response_logprobs` of the same arguments, (B, T)."""
    require_lm_head(model, "response_logprobs")
    require_past("response_logprobs: response_mask", response_mask, mask)

    def of_group(ids, mask, counted):  # (n, T') each
        hidden = hidden_at(model, ids, mask, F.pad(counted[:, 1:], (0, 1)))  # (N, D)
        logits = model.lm_head(hidden).float()  # (N, V)
        picked = -F.cross_entropy(logits, ids[counted], reduction="none")  # (N,)
        return torch.zeros(ids.shape, device=ids.device).index_put((counted,), picked)

    logprobs = by_length(of_group, mask, ids, mask, response_mask)
    return logprobs.masked_fill(~response_mask, 0.0)


@expects(
    "value_model: ValueModel", "ids: int64 (B, T)", "mask, response_mask: bool (B, T)"
)
def response_values(value_model, ids, mask, response_mask):
    """Return `reward_model.response_values` of the same arguments, (B, T)."""
    values = by_length(value_model, mask, ids, mask)
    return values.masked_fill(~response_mask, 0.0)


@expects("cache: KVCache", "going: bool (B,)")
def keep_rows(cache, going, *tensors):
    """Drop the rows that do not go on from a cache and from tensors of as many rows.

    What the rows left hold, and so what they will say, does not change. Their order
    may: rows from the end fill the gaps, so that few are copied. Returns the tensors.
    """
    n = int(going.sum())
    if n == 0 or len(going) != cache.batch_size:
        raise ValueError(
            "keep_rows: going must have a True among as many entries as the cache has "
            f"rows, {cache.batch_size}, got {n} among {len(going)}"
        )
    if n == len(going):
        return tensors
    gaps = (~going[:n]).nonzero().squeeze(1)
    movers = n + going[n:].nonzero().squeeze(1)
    for held in (cache.keys, cache.values):
        held[:, gaps, :, : cache.length] = held[:, movers, :, : cache.length]
    cache.keys, cache.values = cache.keys[:, :n], cache.values[:, :n]
    order = torch.arange(n, device=going.device).index_copy(0, gaps, movers)
    cache.mask, cache.count = cache.mask[order], cache.count[order]
    return tuple(x[order] for x in tensors)
