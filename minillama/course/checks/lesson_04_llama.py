"""Checks of 04_llama."""

import bisect
import dataclasses
import functools
import itertools
import math

import torch

from minillama import model
from minillama.course.checks.case import check, error_of, tiny_config, tiny_llama
from minillama.course.checks.shared import (
    NOTHING,
    gap,
    in_pieces,
    randomised,
    wrong_gradients,
)


@check
def block(f):
    """Check `Block(config, layer)`, the class."""
    config = tiny_config(dim=8, n_layers=2, ffn_dim=4, norm_eps=0.1)
    torch.manual_seed(0)
    layer, x = randomised(f(config, 1)), torch.randn(2, 4, 8)
    given = x.clone()
    mask = torch.tensor([[False, True, True, True], [True, True, True, True]])
    cos, sin = model.rope_cos_sin(model.token_positions(mask), 4)
    bias = model.attention_bias(mask, 4)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight

    def by_hand(x):
        read = norm(x, layer.input_layernorm.weight)
        middle = x + layer.self_attn(read, cos, sin, bias)
        read = norm(middle, layer.post_attention_layernorm.weight)
        return middle + layer.mlp(read)

    def with_cache(x, mask, cache):
        positions, seen = cache.extend(mask)
        angles = model.rope_cos_sin(positions, 4)
        return layer(x, *angles, model.attention_bias(seen, x.shape[1]), cache)

    yield (
        "its parts",
        sorted(name for name, _ in layer.named_children()),
        ["input_layernorm", "mlp", "post_attention_layernorm", "self_attn"],
        "Hugging Face's names, so that its weights fit",
    )
    with torch.no_grad():
        got = layer(x, cos, sin, bias)
    yield (
        "how far it is from two residual steps, each normed first",
        gap(got, by_hand(given)),
        NOTHING,
        "x + attention(norm(x)), then x + mlp(norm(x)) on the new x; two norms, each "
        "with norm_eps",
    )
    yield ("how far x itself moved", gap(x, given), NOTHING, "x = x + …, not x += …")
    x.requires_grad_()
    yield (
        "what gets a wrong gradient",
        wrong_gradients(layer, layer(x, cos, sin, bias), by_hand(x), x=x),
        [],
        "detach nothing, freeze nothing",
    )
    cache = model.KVCache(config, 2, 4)
    yield (
        "how far a text read in pieces, with a cache, is from one read at once",
        gap(in_pieces(with_cache, cache, x.detach(), mask), by_hand(x)),
        NOTHING,
        "pass the cache to attention",
    )
    yield (
        "which layers of the cache it filled",
        [i for i in range(2) if cache.keys[i].abs().sum() > 0],
        [1],
        "give attention the layer's number",
    )
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    yield (
        "how far x moves with both outputs at 0",
        gap(layer(x, cos, sin, bias), x),
        NOTHING,
        "the residual stream itself is not normed",
    )
    yield (
        "parameters of a block",
        sum(p.numel() for p in layer.parameters()),
        64 + 32 + 32 + 64 + 3 * 32 + 16,
        "four projections, three of the feed-forward network, two norms",
    )


@check
def llama(f):
    """Check `Llama(config, generator)`, the class."""
    config = tiny_config(
        vocab_size=50,
        dim=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        rope_theta=100.0,
        norm_eps=0.1,
    )
    network = f(config, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    hidden = network.hidden(ids)
    yield (
        "what hidden returns, and its shape",
        (type(hidden).__name__, tuple(getattr(hidden, "shape", ()))),
        ("Tensor", (1, 5, 64)),
        "the states of all tokens after the last norm, (B, T, D)",
    )
    logits = network(ids)
    yield ("logits for each position", tuple(logits.shape), (1, 5, 50), "(B, T, V)")
    yield (
        "the first loss, in units of ln 50",
        round(-logits.log_softmax(-1).mean().item() / math.log(50), 1),
        1.0,
        "weights of std 0.02 give logits near 0, so every token is about as likely",
    )
    last = network.layers[2]
    usual = (network.embed_tokens, network.lm_head, last.self_attn.q_proj)
    back = (last.self_attn.o_proj, last.mlp.down_proj)
    yield (
        "std of embedding, head and queries, in units of 0.02",
        [round(x.weight.std().item() / 0.02, 1) for x in usual],
        [1.0, 1.0, 1.0],
        "draw every matrix with std 0.02",
    )
    yield (
        "std of o_proj and down_proj, in units of 0.02 / sqrt(6)",
        [round(x.weight.std().item() / 0.02 * math.sqrt(6), 1) for x in back],
        [1.0, 1.0],
        "what writes into the stream starts at 0.02 / sqrt(2 n_layers)",
    )
    yield (
        "the norms' weights, smallest and largest",
        [
            round(end(p.min().item() for p in network.parameters() if p.ndim == 1), 4)
            for end in (min, max)
        ],
        [1.0, 1.0],
        "norms start at 1",
    )
    yield (
        "the same generator gives weights that differ by",
        gap(
            f(config, generator=torch.Generator().manual_seed(0)).lm_head.weight,
            network.lm_head.weight,
        ),
        NOTHING,
        "use the generator",
    )
    yield (
        "its parameters",
        sum(p.numel() for p in network.parameters()),
        2 * 50 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 48 + 2 * 64) + 64,
        "two tables, three blocks of their own, a last norm",
    )
    randomised(network)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 1]])
    mask, ids = mask.bool(), (torch.arange(18).view(3, 6) * 23 + 3) % 50
    given = ids.clone(), mask.clone()

    def by_hand():
        cos, sin = model.rope_cos_sin(model.token_positions(mask), 16, 100.0)
        x = network.embed_tokens.weight[ids]
        for layer in network.layers:
            x = layer(x, cos, sin, model.attention_bias(mask, 6))
        x = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return (x * network.norm.weight) @ network.lm_head.weight.T

    exact = by_hand()
    expected = exact.detach()
    scale = expected.abs().max()
    yield (
        "how far it is from table, blocks, norm and matrix by hand, at real tokens",
        gap(network(*given)[mask] / scale, expected[mask] / scale),
        NOTHING,
        "each block once and in order, the last norm, positions and bias from the "
        "mask, rope_theta and norm_eps from config",
    )
    yield (
        "ids and mask stay as they were",
        torch.stack(given),
        torch.stack((ids, mask.long())),
        "change no argument",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, network(ids, mask)[mask], exact[mask]),
        [],
        "detach nothing, freeze nothing, compute nothing under no_grad",
    )
    yield (
        "how far no mask is from a mask of ones",
        gap(network(ids) / scale, network(ids, torch.ones_like(mask)) / scale),
        NOTHING,
        "without a mask all tokens are real",
    )

    def at_real_tokens(ids, mask, cache):
        return network(ids, mask, cache) * mask[..., None] / scale

    cache = model.KVCache(config, 3, 6)
    yield (
        "how far a batch read in pieces, with a cache, is from one read at once",
        gap(
            in_pieces(at_real_tokens, cache, ids, mask),
            expected * mask[..., None] / scale,
        ),
        NOTHING,
        "extend the cache once and pass it and the mask to every block",
    )
    yield (
        "how far hidden is from what the output matrix reads",
        gap(network.lm_head(network.hidden(ids, mask)), network(ids, mask)),
        NOTHING,
        "hidden ends after the last norm",
    )
    tied = f(dataclasses.replace(config, tie_embeddings=True))
    yield (
        "tied embeddings are one table",
        tied.lm_head.weight is tied.embed_tokens.weight,
        True,
        "assign the parameter",
    )
    yield (
        "an id outside the vocabulary is refused",
        error_of(lambda: network(ids + 50)),
        IndexError,
        "look at ids before the embedding does",
    )
    for length, expected in ((17, ValueError), (16, "no error")):
        many = ids[:1, :1].expand(1, length)
        yield (
            f"a text of {length} tokens",
            error_of(lambda many=many: network(many)),
            expected,
            "max_seq_len is 16: refuse more",
        )


@check
def sample(f):
    """Check `sample(probs, uniforms)`."""
    probs = torch.tensor([[0.1, 0.2, 0.7]]).expand(5, 3)
    yield (
        "by hand",
        f(probs, torch.tensor([0.0, 0.05, 0.11, 0.299, 0.31])),
        torch.tensor([0, 0, 1, 1, 2]),
        "the cumulative sums are .1, .3, 1: the first that exceeds the number",
    )
    yield (
        "numbers that a cumulative sum just reaches",
        f(
            torch.tensor([[0.25, 0.25, 0.125, 0.125, 0.25]]).expand(4, 5),
            torch.tensor([0.25, 0.5, 0.625, 0.75]),
        ),
        torch.tensor([1, 2, 3, 4]),
        "exceed, not reach",
    )
    yield (
        "each row by its own probabilities",
        f(torch.tensor([[0.1, 0.9], [0.9, 0.1]]), torch.tensor([0.5, 0.5])),
        torch.tensor([1, 0]),
        "sum along the last dimension",
    )
    yield (
        "ids are of type",
        str(f(probs, torch.full((5,), 0.5)).dtype),
        "torch.int64",
        "a token id is an int64",
    )
    given = torch.tensor([[1.0, 3.0], [12.0, 4.0]])
    yield (
        "probabilities need not sum to 1",
        torch.stack([f(given, torch.full((2,), u)) for u in (0.2, 0.3, 0.7, 0.8)]),
        torch.tensor([[0, 0], [1, 0], [1, 0], [1, 1]]),
        "scale the number by the total of its row",
    )
    yield (
        "the probabilities stay as they were",
        given,
        torch.tensor([[1.0, 3.0], [12.0, 4.0]]),
        "change no argument",
    )
    yield (
        "what has probability 0 is never drawn",
        f(
            torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3),
            torch.tensor([0.0, 1 - 2**-24]),
        ),
        torch.tensor([1, 1]),
        "exceed, not reach; and look at probs > 0",
    )
    even = (torch.arange(1000) + 0.5) / 1000
    counts = torch.bincount(
        f(torch.tensor([[0.1, 0.2, 0.7]]).expand(1000, 3), even), minlength=3
    )
    yield (
        "1000 even numbers give the probabilities",
        counts.float() / 1000,
        torch.tensor([0.1, 0.2, 0.7]),
        "an exact draw",
    )


@check
def top_p_filter(f):
    """Check `top_p_filter(probs, top_p)`."""
    probs = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    given = probs.clone()
    yield (
        "0.7 needs two tokens",
        f(given, 0.7),
        torch.tensor([[0.0, 0.5, 0.0, 0.3]]),
        (
            "keep a token if those before it sum to less than top_p: the one that "
            "crosses it stays"
        ),
    )
    yield ("the argument stays as it was", given, probs, "write into a new tensor")
    yield (
        "0.9 needs three",
        f(probs, 0.9),
        torch.tensor([[0.15, 0.5, 0.0, 0.3]]),
        "put them back in their places",
    )
    yield (
        "one token is always left",
        f(probs, 0.01),
        torch.tensor([[0.0, 0.5, 0.0, 0.0]]),
        "before the first stands 0",
    )
    yield ("1 keeps all", f(probs, 1.0), probs, "nothing is cut")
    yield (
        "ids that stay of 4 equal ones at 0.5, and of 64 at 0.125",
        [
            f(torch.full((1, n), 1 / n), top_p)[0].nonzero()[:, 0].tolist()
            for n, top_p in ((4, 0.5), (64, 0.125))
        ],
        [[0, 1], list(range(8))],
        "the lower ids: sort stably, and cut by place in the order, not by value",
    )
    yield (
        "rows by themselves",
        f(torch.cat((probs, probs.flip(1))), 0.6),
        torch.tensor([[0.0, 0.5, 0.0, 0.3], [0.3, 0.0, 0.5, 0.0]]),
        "sort along the last dimension",
    )


@check
def tiny_cache(f):
    """Check `TinyCache()`, the class."""
    cache, first = f(), torch.arange(24.0).view(2, 2, 3, 2)  # (B, K, T, E)
    keys, values = cache.store(0, first, -first)
    yield (
        "the first tokens come back",
        torch.stack((keys, values)),
        torch.stack((first, -first)),
        "start a layer with what comes, and return it",
    )
    cache.store(1, first + 50, first)
    new = torch.arange(90.0, 98.0).view(2, 2, 1, 2)
    keys, values = cache.store(0, new, 2 * new)
    yield (
        "new keys follow the old ones, in their own layer",
        keys,
        torch.cat((first, new), 2),
        "one entry for each layer; join along the tokens, dimension 2",
    )
    yield (
        "and so do values",
        values,
        torch.cat((-first, 2 * new), 2),
        "join the values as the keys are joined",
    )
    yield (
        "the other layer is as it was",
        cache.store(1, new, new)[0],
        torch.cat((first + 50, new), 2),
        "write into one layer only",
    )
    yield (
        "a third piece follows both",
        torch.stack(tuple(cache.store(0, 3 * new, 4 * new))),
        torch.stack(
            (
                torch.cat((first, new, 3 * new), 2),
                torch.cat((-first, 2 * new, 4 * new), 2),
            )
        ),
        "keep what was joined, keys and values",
    )
    yield (
        "another cache starts empty",
        f().store(0, new, new)[0],
        new,
        "what is kept belongs to one cache, so make it in __init__",
    )
    cache = f()
    for layer in range(6):
        cache.store(layer, new + layer, new - layer)
    again = [cache.store(layer, new, new) for layer in range(6)]
    yield (
        "the first key and the first value of six layers",
        [[x[0, 0, 0, 0].item() for x in both] for both in again],
        [[90.0 + layer, 90.0 - layer] for layer in range(6)],
        "a model may have any number of layers, each with keys and values of its own",
    )
    cache, many = f(), torch.arange(1200.0).view(1, 1, 600, 2)
    for piece in many.split(200, 2):
        keys, values = cache.store(3, piece, -piece)
    yield (
        "how far 600 tokens, stored 200 at a time, are from themselves",
        (gap(keys, many), gap(values, -many)),
        (NOTHING, NOTHING),
        "forget nothing",
    )
    half = new.bfloat16()
    yield (
        "the dtype of what was stored",
        [x.dtype for x in f().store(0, half, half)],
        [torch.bfloat16] * 2,
        "change no dtype",
    )
    layer = randomised(model.Attention(tiny_config(dim=8), 1))
    x, cache = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), f()
    cos, sin = model.rope_cos_sin(torch.arange(5)[None], 4)

    def read(start, stop, cache=None):
        bias = model.attention_bias(torch.ones(2, stop).bool(), stop - start)
        new = slice(start, stop)
        return layer(x[:, new], cos[:, new], sin[:, new], bias, cache)

    yield (
        "how far attention in three pieces is from attention at once",
        gap(
            torch.cat([read(a, b, cache) for a, b in ((0, 3), (3, 4), (4, 5))], 1),
            read(0, 5),
        ),
        NOTHING,
        "return all keys and values of the layer, old ones first",
    )


@check
def kv_cache(f):
    """Check `KVCache(config, batch_size, capacity)`, the class."""
    # three layers; four heads of size 6 share two heads of keys and values
    config = tiny_config(dim=8, n_layers=3, n_heads=4, n_kv_heads=2, head_size=6)
    cache = f(config, 2, 5)
    given = torch.tensor([[True] * 3, [False, True, True]])
    positions, mask = cache.extend(given)
    yield (
        "positions count real tokens",
        positions,
        torch.tensor([[0, 1, 2], [0, 0, 1]]),
        "padding shifts nothing",
    )
    yield (
        "positions are of type",
        positions.dtype,
        torch.int64,
        "whole numbers, as token_positions gives them",
    )
    first = torch.arange(72.0).view(2, 2, 3, 6)
    keys, values = cache.store(0, first, -first)
    yield (
        "the first tokens come back",
        torch.stack((keys, values)),
        torch.stack((first, -first)),
        "slots 0 .. length - 1",
    )
    yield (
        "their dtype",
        [keys.dtype, values.dtype],
        [torch.float32] * 2,
        "float32 unless another is asked for",
    )
    cache.store(1, first + 50, first)
    cache.store(2, first + 70, first + 80)
    positions, mask = cache.extend(torch.tensor([[True], [False]]))
    yield (
        "the next token follows on in each row",
        positions,
        torch.tensor([[3], [1]]),
        "add what was counted before",
    )
    yield (
        "the mask remembers padding",
        mask,
        torch.tensor([[True] * 4, [False, True, True, False]]),
        "keep every mask",
    )
    yield (
        "the mask that was given stays as it was",
        given,
        torch.tensor([[True] * 3, [False, True, True]]),
        "change no argument",
    )
    new = torch.arange(24.0).view(2, 2, 1, 6)
    keys, values = cache.store(0, new, 2 * new)
    yield (
        "new keys follow the old ones, in their own layer",
        keys,
        torch.cat((first, new), 2),
        "one row of slots per layer; write at the end",
    )
    yield (
        "and so do values",
        values,
        torch.cat((-first, 2 * new), 2),
        "write the values where the keys are written",
    )
    yield (
        "the other layers are as they were",
        torch.stack((cache.store(1, new, new)[0], *cache.store(2, new, new))),
        torch.stack([torch.cat((first + i, new), 2) for i in (50, 70, 80)]),
        "write into one layer only",
    )
    yield (
        "after padding a row's count goes on",
        cache.extend(torch.ones(2, 1, dtype=torch.bool))[0],
        torch.tensor([[4], [2]]),
        "count real tokens only",
    )
    yield (
        "a sixth token has no room",
        error_of(lambda: cache.extend(torch.ones(2, 1, dtype=torch.bool))),
        ValueError,
        "capacity is 5",
    )
    pair = f(config, 2, 40)
    pieces = [
        pair.extend(torch.tensor(rows).bool())
        for rows in ([[0, 0], [1, 1]], [[1, 1], [0, 1]])
    ]
    yield (
        "positions if one of two rows is all padding at first",
        [positions.tolist() for positions, _ in pieces],
        [[[0, 0], [0, 1]], [[0, 1], [1, 2]]],
        "each row has a count of its own, and no position is below 0",
    )
    yield (
        "and the mask",
        pieces[1][1].int(),
        torch.tensor([[0, 0, 1, 1], [1, 1, 0, 1]]),
        "each row has a mask of its own",
    )
    pair = f(config, 2, 4)
    refusal = error_of(lambda: pair.extend(torch.ones(1, 2, dtype=torch.bool)))
    yield (
        "a mask of one row for a cache of two is",
        "taken" if refusal == "no error" else "refused",
        "refused",
        "each row of the cache needs a row of the mask",
    )
    half = f(config, 1, 2, dtype=torch.float16)
    half.extend(torch.ones(1, 1, dtype=torch.bool))
    new = torch.ones(1, 2, 1, 6, dtype=torch.float16)
    yield (
        "the dtype that was asked for",
        [x.dtype for x in half.store(0, new, new)],
        [torch.float16] * 2,
        "pass dtype on, for keys and for values",
    )
    feeling = new.clone().requires_grad_()
    for name, pieces in (("keys", (feeling, new)), ("values", (new, feeling))):
        yield (
            f"{name} that need gradients are refused",
            error_of(lambda pieces=pieces: half.store(1, *pieces)),
            RuntimeError,
            "writing in place would break backward",
        )


@check
def pick(f):
    """Check `pick(logits, uniforms, temperature, top_p)`."""
    # probabilities .01, .09, .9, and in the second row .5, .3, .2
    logits = torch.log(torch.tensor([[1.0, 9.0, 90.0], [5.0, 3.0, 2.0]]))
    numbers = torch.tensor([0.05, 0.9])
    given = logits.clone()

    def answer(*arguments):
        token, logprob = f(given, numbers, *arguments)
        return torch.stack((token.double(), logprob.double().exp()))

    def softened(temperature):
        flat = torch.tensor([[0.01, 0.09, 0.9], [0.5, 0.3, 0.2]]) ** (1 / temperature)
        return flat / flat.sum(1, keepdim=True)

    yield (
        "greedy",
        answer(0, 1.0),
        torch.tensor([[2.0, 0.0], [0.9, 0.5]]),
        "temperature 0 takes the most probable token, and softmax(logits) its logprob",
    )
    yield (
        "greedy with a top-p of 0.8",
        answer(0, 0.8),
        torch.tensor([[2.0, 0.0], [0.9, 0.5]]),
        "top-p always keeps the most probable token, and changes no logprob",
    )
    yield (
        "temperature 1",
        answer(1.0, 1.0),
        torch.tensor([[1.0, 2.0], [0.09, 0.2]]),
        "0.05 falls between .01 and .1, 0.9 between .8 and 1",
    )
    for temperature, tokens in ((2.0, (0, 2)), (0.5, (2, 2)), (0.8, (1, 2))):
        probs = softened(temperature)
        yield (
            f"temperature {temperature}",
            answer(temperature, 1.0),
            torch.stack(
                (torch.tensor(tokens), probs[[0, 1], list(tokens)]),
            ),
            "divide the logits by it, for the draw and for the logprob",
        )
    yield (
        "top-p changes the draw, not the logprob",
        answer(1.0, 0.75),
        torch.tensor([[2.0, 1.0], [0.9, 0.3]]),
        "the logprob is that of the whole distribution",
    )
    # temperature 2: .0741, .2224, .7034 and .4154, .3218, .2628; 0.5: .0001, .0099,
    # .99 and .6579, .2368, .1053
    for temperature, top_p, tokens in ((2.0, 0.8, (1, 2)), (0.5, 0.7, (2, 1))):
        probs = softened(temperature)
        yield (
            f"temperature {temperature} and top-p {top_p}",
            answer(temperature, top_p),
            torch.stack((torch.tensor(tokens), probs[[0, 1], list(tokens)])),
            "first the temperature, then top-p; the logprob before top-p",
        )
    yield ("the logits stay as they were", given, logits, "change no argument")
    half = f(logits.bfloat16(), numbers, 1.0, 1.0)[1]
    yield (
        "logprobs of bfloat16 logits are of type",
        str(half.dtype),
        "torch.float32",
        "make float32 of the logits before the softmax",
    )


def convinced(chances):
    """Return a model that gives id i the chance chances[i], whatever it has read."""
    network = tiny_llama()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.embed_tokens.weight.fill_(1.0)
        network.norm.weight.fill_(1.0)  # so that all states are ones
        for i, chance in chances.items():
            network.lm_head.weight[i] = (math.log(chance) + 30) / 32
    return network


def _written(numbers, chances, temperature=1.0, end=None, kept=()):
    """What `convinced` writes in a row of uniform numbers: ids, and their chances."""
    hot = {i: chance ** (1 / temperature) for i, chance in chances.items()}
    total, text = sum(hot.values()), []
    drawn = {i: x for i, x in hot.items() if not kept or i in kept}
    for number in numbers:
        ends = list(itertools.accumulate(drawn.values()))
        text.append(list(drawn)[bisect.bisect_right(ends, number * ends[-1])])
        if text[-1] == end:
            break
    return text, [round(hot[i] / total, 3) for i in text]


@functools.partial(check, may_draw=True)
def generate(f):
    """Check `generate(model, prompts, max_new_tokens, ...)`."""
    network = tiny_llama()
    prompts = [[1, 5, 7, 9], [1, 6]]

    def drawn(prompts, seed=3, **others):
        draw = torch.Generator().manual_seed(seed)
        return f(network, prompts, 6, generator=draw, **others)

    def answer(rollout, row=0):
        return rollout.ids[row][rollout.response_mask[row]].tolist()

    def logprobs(ids, start, temperature=1.0):
        logits = network(torch.tensor([ids]))[0] / temperature
        scored = torch.log_softmax(logits.detach(), -1)
        return torch.stack([scored[t - 1, ids[t]] for t in range(start, len(ids))])

    rollout = f(network, prompts, 6, temperature=0, eos_id=None)
    for i, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(6):  # no cache, no batch
            ids.append(network(torch.tensor([ids]))[0, -1].argmax().item())
        yield (
            f"greedy, prompt {i}, as one token at a time",
            rollout.ids[i][rollout.mask[i]].tolist(),
            ids,
            "pad on the left, and give the mask to the model",
        )
        yield (
            f"log-probabilities, prompt {i}",
            rollout.logprobs[i][rollout.response_mask[i]],
            logprobs(ids, len(prompt)),
            "of each token given what precedes it",
        )
    yield (
        "what the mask of responses leaves out",
        (rollout.ids[:, :4] * rollout.mask[:, :4]).tolist(),
        [[1, 5, 7, 9], [0, 0, 1, 6]],
        "padding, then the prompt; responses start in one column",
    )
    yield (
        "log-probabilities outside the response",
        rollout.logprobs[~rollout.response_mask].abs().sum(),
        NOTHING,
        "0 there",
    )
    last = answer(rollout)
    stop = last[2]
    ended = f(network, prompts, 6, temperature=0, eos_id=stop)
    yield (
        "the end token ends the response and belongs to it",
        answer(ended),
        last[: last.index(stop) + 1],
        "keep it, then stop",
    )
    yield (
        "real tokens after the end, in any row",
        int((ended.mask & ~ended.response_mask)[:, 4:].sum()),
        0,
        "mask is False after the end",
    )
    yield (
        "log-probabilities outside the responses, one of which has ended",
        ended.logprobs[~ended.response_mask].abs().sum(),
        NOTHING,
        "0 after the end too",
    )
    yield (
        "the other row goes on as if alone",
        answer(ended, 1),
        answer(f(network, prompts[1:], 6, temperature=0, eos_id=stop)),
        "a row that has ended ends no other",
    )
    seeds = range(8)
    texts = [answer(drawn(prompts, seed, eos_id=None)) for seed in seeds]
    torch.manual_seed(1)
    yield (
        "the same generators, the same texts",
        [answer(drawn(prompts, seed, eos_id=None)) for seed in seeds],
        texts,
        "draw from the generator that was given",
    )
    yield (
        "other generators, other texts",
        len({tuple(text) for text in texts}) > 1,
        True,
        "temperature is 1 unless another is given",
    )
    yield (
        "a sampled text beside another prompt and alone",
        texts,
        [answer(drawn(prompts[:1], seed, eos_id=None)) for seed in seeds],
        "draw the numbers beforehand, row by row",
    )
    hot = drawn(prompts, temperature=2.5, eos_id=None)
    yield (
        "log-probabilities at temperature 2.5",
        hot.logprobs[0][hot.response_mask[0]],
        logprobs(prompts[0] + answer(hot), 4, 2.5),
        "those of softmax(logits / temperature)",
    )
    yield (
        "a top-p of 0.01 leaves the most probable token",
        answer(drawn(prompts, top_p=0.01, eos_id=None)),
        last,
        "pass top_p on",
    )
    # beliefs that no text changes, so that uniform numbers alone decide
    chances = {2: 0.1, 4: 0.2, 5: 0.3, 6: 0.4}
    sure, prompts = convinced(chances), [[1], [1, 5], [1, 5, 6], [1]]
    numbers = torch.rand(4, 9, generator=torch.Generator().manual_seed(4)).tolist()

    def four(**others):
        draw = torch.Generator().manual_seed(4)
        rollout = f(sure, prompts, 9, generator=draw, **others)
        return rollout, [
            (answer(rollout, i), [round(x, 3) for x in scored.exp().tolist()])
            for i in range(4)
            for scored in [rollout.logprobs[i][rollout.response_mask[i]]]
        ]

    for claim, settings, by_hand in (
        ("nothing else given", {}, {"end": 2}),
        ("temperature 0.5", {"temperature": 0.5}, {"temperature": 0.5, "end": 2}),
        ("temperature 2", {"temperature": 2.0}, {"temperature": 2.0, "end": 2}),
        ("top-p 0.65", {"top_p": 0.65}, {"kept": (5, 6), "end": 2}),
        ("end 4", {"eos_id": 4}, {"end": 4}),
    ):
        rollout, got = four(**settings)
        expected = [_written(row, chances, **by_hand) for row in numbers]
        at = next((i for i in range(4) if got[i] != expected[i]), 0)
        yield (
            f"four prompts, beliefs that stay, {claim}: ids and chances of text {at}",
            got[at],
            expected[at],
            "row i, column t of torch.rand(rows, max_new_tokens) draws its token t; "
            "temperature 1, top-p 1 and end 2 unless others are given",
        )
    rollout, _ = four(pad_id=9, eos_id=6)
    longest = max(len(_written(row, chances, end=6)[0]) for row in numbers)
    yield (
        "columns: the longest prompt and the longest response",
        tuple(rollout.ids.shape),
        (4, 3 + longest),
        "stop when all rows have ended",
    )
    yield (
        "what stands where nothing is real",
        set(rollout.ids[~rollout.mask].tolist()),
        {9},
        "pad_id, before the prompt and after the end",
    )
    rollout, _ = four(eos_id=6)
    yield (
        "and unless another is given",
        set(rollout.ids[~rollout.mask].tolist()),
        {3},
        "pad_id is 3",
    )
    yield (
        "the prompts stay as they were",
        prompts,
        [[1], [1, 5], [1, 5, 6], [1]],
        "change no argument",
    )
    modes = []
    sure.embed_tokens.register_forward_hook(
        lambda module, *_: modes.append(module.training)
    )
    for training in (True, False):
        sure.train(training)
        gentle = f(sure, prompts, 2)
        yield (
            f"mode inside, mode afterwards, gradients, from training = {training}",
            (any(modes), sure.training, gentle.logprobs.requires_grad),
            (False, training, False),
            "eval mode and no gradients inside; the model's own mode comes back",
        )
    for length, expected in ((14, ValueError), (13, "no error")):
        yield (
            f"{length} more tokens after a prompt of 3",
            error_of(lambda length=length: f(network, prompts, length)),
            expected,
            "max_seq_len is 16: refuse more",
        )
    broken = convinced({4: math.inf})
    yield (
        "logits that are not finite",
        error_of(lambda: f(broken, prompts, 2)),
        FloatingPointError,
        "no token can be drawn from them: refuse",
    )
    yield (
        "is the model in training mode after that, as before?",
        broken.training,
        True,
        "its own mode comes back whatever happens: try … finally",
    )
