"""Checks of 03_attention."""

import math

import torch

from minillama import model
from minillama.course.checks.case import check, gradient, tiny_config
from minillama.course.checks.shared import (
    NOTHING,
    gap,
    in_pieces,
    randomised,
    wrong_gradients,
)


@check
def rope_cos_sin(f):
    """Check `rope_cos_sin(positions, head_dim, theta)`."""
    # frequencies 1 and 100^(-1/2)
    given = torch.tensor([[0, 1, 30]])
    cos, sin = f(given, 4, theta=100.0)
    yield (
        "shape, with room for the heads",
        tuple(cos.shape),
        (1, 3, 1, 2),
        "(B, T, 1, E / 2)",
    )
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [30.0, 3.0]])[None, :, None]
    yield (
        "cosines by hand",
        cos,
        angles.cos(),
        "angle = position * theta^(-2i / E), so 1 and 0.1 radians per position",
    )
    yield ("sines by hand", sin, angles.sin(), "the same angles")
    yield (
        "position 0 does not turn",
        sin[0, 0],
        torch.zeros(1, 2),
        "positions count from 0",
    )
    yield (
        "each row has positions of its own",
        f(torch.tensor([[0, 1], [30, 0]]), 4, theta=100.0)[1][..., 0, :],
        torch.tensor([[[0, 0], [1, 0.1]], [[30, 3], [0, 0]]]).sin(),
        "positions are (B, T), one row for each text",
    )
    yield (
        "the positions stay as they were",
        given.tolist(),
        [[0, 1, 30]],
        "change no argument",
    )
    yield (
        "three pairs of features, and theta 1000",
        f(torch.tensor([[2]]), 6, theta=1000.0)[1].flatten(),
        torch.tensor([2.0, 0.2, 0.02]).sin(),
        "E = 6: exponents 0, -2/6 and -4/6",
    )
    yield (
        "theta is 10000 unless another is given",
        f(torch.tensor([[3]]), 4)[1].flatten(),
        torch.tensor([3.0, 0.03]).sin(),
        "E = 4: exponents 0 and -1/2",
    )
    far = torch.tensor([[300, 5000]])
    yield (
        "far positions: the first pair of 300 and 5000",
        torch.stack([x[0, :, 0, 0] for x in f(far, 4)]),
        torch.stack((far[0].double().cos(), far[0].double().sin())),
        "any position has its angle, in float32 at least",
    )
    yield (
        "float32, as the weights",
        (cos.dtype, sin.dtype),
        (torch.float32, torch.float32),
        "turn whole positions into floats before multiplying",
    )


@check
def rotate(f):
    """Check `rotate(x, cos, sin)`."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    quarter = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 1, 1, 1, 2)
    yield (
        "the pair (1, 3) turns by 90 degrees, (2, 4) not at all",
        f(x, *quarter),
        torch.tensor([-3.0, 2.0, 1.0, 4.0]).view(1, 1, 1, 4),
        "(a cos - b sin, b cos + a sin), a and b half a head apart",
    )
    yield (
        "x stays as it was",
        x.flatten().tolist(),
        [1.0, 2.0, 3.0, 4.0],
        "compute a new tensor",
    )
    angle = torch.tensor([0.7, -2.0]).view(1, 1, 1, 2)
    turned = f(x, angle.cos(), angle.sin())
    yield ("lengths stay", turned.norm(), x.norm(), "a rotation changes no length")
    yield (
        "back again",
        f(turned, angle.cos(), -angle.sin()),
        x,
        "the opposite angle undoes it",
    )
    yield (
        "angles add up",
        f(turned, angle.cos(), angle.sin()),
        f(x, (2 * angle).cos(), (2 * angle).sin()),
        "both parts of the pair use the old values",
    )
    many = torch.arange(1.0, 17.0).view(2, 2, 2, 2)  # B = T = heads = 2, one pair
    turns = torch.tensor([[0.0, 1.0], [2.0, 3.0]]) * math.pi / 2
    turns = turns.view(2, 2, 1, 1)  # by 0, 90, 180, 270 degrees
    yield (
        "each token of each text by its own angle, all heads alike",
        f(many, turns.cos(), turns.sin()).flatten(0, 1),
        torch.tensor(
            [
                [[1.0, 2.0], [3.0, 4.0]],
                [[-6.0, 5.0], [-8.0, 7.0]],
                [[-9.0, -10.0], [-11.0, -12.0]],
                [[14.0, -13.0], [16.0, -15.0]],
            ]
        ),
        "cos and sin are (B, T, 1, E / 2): let them broadcast over the heads",
    )
    turns = turns[1:]  # by 180 and 270 degrees in both texts
    yield (
        "one row of angles serves all texts",
        f(many, turns.cos(), turns.sin())[:, :, 0],
        torch.tensor([[[-1.0, -2.0], [6.0, -5.0]], [[-9.0, -10.0], [14.0, -13.0]]]),
        "cos and sin may be (1, T, 1, E / 2)",
    )
    yield (
        "the gradient of the sum of what comes out",
        gradient(lambda x: f(x, angle.cos(), angle.sin()), x),
        torch.cat((angle.cos() + angle.sin(), angle.cos() - angle.sin()), -1),
        "detach nothing",
    )
    yield ("float32 in, out comes", turned.dtype, torch.float32, "change no dtype")


@check
def token_positions(f):
    """Check `token_positions(mask)`."""
    mask = torch.tensor(
        [[True] * 4, [False, False, True, True], [True, True, False, False]]
    )
    given = mask.clone()
    yield (
        "no padding, left padding, right padding",
        f(given),
        torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1]]),
        "count the real tokens so far, from 0",
    )
    yield ("the mask stays as it was", given, mask, "change no argument")
    yield (
        "a hole in the middle shifts nothing",
        f(torch.tensor([[True, False, False, True, True]])),
        torch.tensor([[0, 0, 0, 1, 2]]),
        "it is the count of real tokens that matters, not where padding stands",
    )
    yield (
        "the last three of 3000 tokens",
        f(torch.ones(1, 3000, dtype=torch.bool))[0, -3:],
        torch.tensor([2997, 2998, 2999]),
        "a text may be long",
    )
    yield (
        "whole numbers",
        f(mask).dtype,
        torch.int64,
        "positions are int64",
    )


@check
def attention_bias(f):
    """Check `attention_bias(key_mask, n_queries)`."""
    mask = torch.tensor(
        [
            [True, True, True],
            [False, True, True],
            [True, True, False],
            [True, False, False],
        ]
    )
    allowed = torch.tensor(
        [
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
            [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
            [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
            [[1, 0, 0], [1, 1, 0], [1, 0, 1]],
        ]
    )
    given = mask.clone()
    bias = f(given, 3)
    yield (
        "shape",
        tuple(bias.shape),
        (4, 1, 1, 3, 3),
        "(B, 1, 1, T, S): one for all heads",
    )
    yield (
        "causal, real tokens, and always itself",
        (bias[:, 0, 0] == 0).int(),
        allowed.int(),
        "key <= query and key real, or key == query",
    )
    yield (
        "elsewhere -inf",
        (bias[:, 0, 0] == -math.inf).int(),
        1 - allowed.int(),
        "softmax makes it exactly 0",
    )
    yield (
        "padding in the middle is hidden from what follows",
        (f(torch.tensor([[True, False, True]]), 3)[0, 0, 0] == 0).int(),
        torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]),
        "a key must be real wherever it stands; each token sees itself",
    )
    yield ("float32", bias.dtype, torch.float32, "it is added to scores")
    yield (
        "the mask is left as it was",
        given.int(),
        mask.int(),
        "do not write into what you are given",
    )
    yield (
        "one new token sees all that is cached",
        f(mask, 1)[:, 0, 0].isfinite().int(),
        torch.tensor([[[1, 1, 1]], [[0, 1, 1]], [[1, 1, 1]], [[1, 0, 1]]]),
        "the queries are the last n_queries positions",
    )
    yield (
        "the last two of four tokens, one of them padding",
        f(torch.tensor([[True, False, False, True]]), 2)[0, 0, 0].isfinite().int(),
        torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]]),
        "queries 2 and 3: neither looks ahead, each sees itself",
    )


@check
def attend(f):
    """Check `attend(queries, keys, values, bias)`."""
    queries = torch.tensor([2.0, 0, 0, 0]).view(1, 1, 1, 4)
    keys = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).view(1, 1, 2, 4)
    values = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]).view(1, 1, 2, 4)
    yield (
        "one query by hand",
        f(queries, keys, values, torch.zeros(1, 1, 1, 1, 2)),
        torch.tensor([0.7311, 0.2689, 0, 0]).view(1, 1, 4),
        "scores 2 / sqrt(4) = 1 and 0; softmax gives e / (e + 1)",
    )
    yield (
        "a bias of -inf hides a key",
        f(queries, keys, values, torch.tensor([-math.inf, 0]).view(1, 1, 1, 1, 2)),
        torch.tensor([0, 1.0, 0, 0]).view(1, 1, 4),
        "add the bias before the softmax",
    )
    yield (
        "a bias of 1 for the second key evens the two out",
        f(queries, keys, values, torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)),
        torch.tensor([0.5, 0.5, 0, 0]).view(1, 1, 4),
        "add the bias to the scores, whatever it is",
    )
    numbers = torch.Generator().manual_seed(0)
    queries, keys, values = (
        torch.randn(shape, generator=numbers)
        for shape in ((2, 3, 6, 2), (2, 2, 5, 2), (2, 2, 5, 2))
    )
    bias = torch.zeros(2, 1, 1, 3, 5)
    bias[0, ..., 4], bias[1, ..., 0, 1:] = -math.inf, -math.inf

    def by_loop(queries, keys, values):
        mixed = torch.empty(2, 3, 12)
        for b in range(2):
            for t in range(3):
                for h in range(6):  # heads 0 to 2 share key/value head 0
                    scores = torch.stack(
                        [queries[b, t, h] @ key for key in keys[b, h // 3]]
                    ) / math.sqrt(2)
                    mixed[b, t, 2 * h : 2 * h + 2] = (
                        torch.softmax(scores + bias[b, 0, 0, t], 0) @ values[b, h // 3]
                    )
        return mixed

    given = queries.clone(), keys.clone(), values.clone(), bias.clone()
    yield (
        "six query heads on two key/value heads, by a loop",
        f(*given),
        by_loop(queries, keys, values),
        (
            "query head h uses key/value head h // 3; heads come out side by side, "
            "head 0 first"
        ),
    )
    yield (
        "which of the four arguments changed",
        [
            i
            for i, (x, y) in enumerate(
                zip(given, (queries, keys, values, bias), strict=True)
            )
            if not torch.equal(x, y)
        ],
        [],
        "compute new tensors",
    )
    shares = torch.randn(2, 3, 12, generator=numbers)
    parts = {"queries": queries, "keys": keys, "values": values}
    for at, name in enumerate(parts):

        def mixed(x, how, at=at, rest=()):
            three = [x if i == at else y for i, y in enumerate(parts.values())]
            return how(*three, *rest) * shares

        yield (
            f"how far the gradient at {name} is from the loop's",
            gap(
                gradient(lambda x: mixed(x, f, rest=(bias,)), parts[name]),  # noqa: B023
                gradient(lambda x: mixed(x, by_loop), parts[name]),  # noqa: B023
            ),
            NOTHING,
            "detach nothing",
        )


def _attention_by_hand(layer, x, angles, bias, heads, kv_heads):
    """Attention with `layer`'s matrices, head by head; angles: (B, T, E / 2)."""
    half = angles.shape[-1]
    queries, keys, values = (
        (x @ p.weight.T).split(2 * half, -1)
        for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )

    def turned(y):  # as complex numbers
        y = torch.complex(y[..., :half], y[..., half:])
        y = y * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((y.real, y.imag), -1)

    mixed = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        scores = turned(queries[head]) @ turned(keys[shared]).mT / math.sqrt(2 * half)
        weights = (scores + bias[:, 0, 0]).softmax(-1)
        mixed.append(weights @ values[shared])
    return torch.cat(mixed, -1) @ layer.o_proj.weight.T


@check
def attention(f):
    """Check `Attention(config, layer)`, the class."""
    config = tiny_config(dim=8, n_heads=4, n_kv_heads=2)
    torch.manual_seed(0)
    layer, x = f(config), torch.randn(1, 5, 8)
    yield (
        "four matrices and no bias",
        {name: tuple(p.shape) for name, p in layer.named_parameters()},
        {
            "q_proj.weight": (8, 8),
            "k_proj.weight": (4, 8),
            "v_proj.weight": (4, 8),
            "o_proj.weight": (8, 8),
        },
        "keys and values have n_kv_heads * head_dim rows",
    )

    def look(x, start=0):
        cos, sin = model.rope_cos_sin(torch.arange(start, start + x.shape[1])[None], 2)
        mask = torch.ones(1, x.shape[1], dtype=torch.bool)
        return layer(x, cos, sin, model.attention_bias(mask, x.shape[1]))

    out = look(x)
    yield (
        "what comes back, and its shape",
        (type(out).__name__, tuple(getattr(out, "shape", ()))),
        ("Tensor", (1, 5, 8)),
        "return o_proj of the mixed values, a tensor (B, T, D)",
    )
    slopes = torch.autograd.functional.jacobian(look, x)[0, :, :, 0]
    leak = slopes.abs().amax((1, 3)) > 0  # (T out, T in)
    yield (
        "each token depends on itself and its past, on nothing else",
        leak,
        torch.ones(5, 5).tril().bool(),
        "pass the bias to the scores",
    )
    yield (
        "how far a text moves that starts at position 3",
        gap(look(x, start=3), look(x)),
        NOTHING,
        "turn queries and keys alike, and the values not",
    )
    yield (
        "but order does: does the last token move with the order of the others?",
        not torch.allclose(look(x)[0, 4], look(x[:, [1, 0, 2, 3, 4]])[0, 4], atol=1e-3),
        True,
        "turn queries and keys by their positions",
    )
    both = torch.cat((x, x.flip(1)))
    yield (
        "how far two texts at once are from each by itself",
        gap(look(both), torch.cat((look(x), look(x.flip(1))))),
        NOTHING,
        "no text may use another's queries, keys or values",
    )
    small = f(tiny_config(dim=2, n_heads=1, n_kv_heads=1))
    with torch.no_grad():
        small.q_proj.weight.zero_()  # all scores are 0, so all weights are equal
        small.k_proj.weight.fill_(9.0)
        small.v_proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        small.o_proj.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        still = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
        bias = torch.tensor([[0.0, -math.inf], [0.0, 0.0]]).view(1, 1, 1, 2, 2)
        got = small(torch.tensor([[[1.0, 1.0], [3.0, 5.0]]]), *still, bias)
    yield (
        "equal scores average the values, by hand",
        got,
        torch.tensor([[[2.0, 1.0], [6.0, 2.0]]]),
        "values (1, 2) and (3, 10), their average (2, 6), then o_proj swaps the two",
    )
    with torch.no_grad():
        layer.o_proj.weight.zero_()
    yield (
        "how far from 0 it is with o_proj at 0",
        gap(look(x), torch.zeros(1, 5, 8)),
        NOTHING,
        "o_proj comes last; the stream is added by the block",
    )
    # three layers, six heads of size 4, so wider than the stream; two padded texts
    config = tiny_config(dim=12, n_layers=3, n_heads=6, n_kv_heads=2, head_size=4)
    layer = f(config, 2)
    yield (
        "matrices of heads of size 4",
        {name: tuple(p.shape) for name, p in layer.named_parameters()},
        {
            "q_proj.weight": (24, 12),
            "k_proj.weight": (8, 12),
            "v_proj.weight": (8, 12),
            "o_proj.weight": (12, 24),
        },
        "config.head_dim is dim / n_heads only if no head_size is given",
    )
    randomised(layer)
    x = torch.randn(2, 6, 12, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1]]).bool()
    positions = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 2, 3, 4]])
    angles = positions[..., None] * torch.tensor([1.0, 0.01])
    turns = angles.cos()[:, :, None], angles.sin()[:, :, None]
    bias = model.attention_bias(mask, 6)
    expected = _attention_by_hand(layer, x, angles, bias, 6, 2)
    got = layer(x, *turns, bias)
    yield (
        "how far two padded texts are from attention head by head",
        gap(got, expected),
        NOTHING,
        "each text has angles and a bias of its own; three heads share keys and values",
    )
    yield (
        "what gets a wrong gradient",
        wrong_gradients(layer, got, expected, x=x),
        [],
        "detach nothing, freeze nothing",
    )

    def reading(layer):
        def with_cache(x, mask, cache):
            at = slice(cache.length, cache.length + x.shape[1])
            seen = cache.extend(mask)[1]
            bias = model.attention_bias(seen, x.shape[1])
            return layer(x, *(turn[:, at] for turn in turns), bias, cache)

        return with_cache

    caches = [model.KVCache(config, 2, 6) for _ in range(2)]
    yield (
        "how far texts read in pieces, with a cache, are from texts read at once",
        gap(in_pieces(reading(layer), caches[0], x.detach(), mask), expected),
        NOTHING,
        "store the turned keys, and attend to all that store returns",
    )
    in_pieces(reading(f(config)), caches[1], x.detach(), mask)
    yield (
        "which layers of their caches layer 2 and one without a number filled",
        [[i for i in range(3) if cache.keys[i].abs().sum() > 0] for cache in caches],
        [[2], [0]],
        "store under the layer's own number, which is 0 unless another is given",
    )


@check
def attention_only(f):
    """Check `AttentionOnly(config, positions, generator)`, the class."""
    config = tiny_config(n_layers=2, rope_theta=100.0, norm_eps=0.1)

    def draw(seed=0, **named):
        return f(config, generator=torch.Generator().manual_seed(seed), **named)

    network = draw()
    yield (
        "the parts and their names",
        sorted(name.removesuffix(".weight") for name, _ in network.named_parameters()),
        [
            *(f"attention.{x}_proj" for x in "koqv"),
            *("attention_norm", "embed_tokens", "lm_head", "norm"),
        ],
        "embed_tokens, attention_norm, attention, norm, lm_head",
    )
    yield (
        "weights are those of the generator, as small as Llama's",
        (
            torch.equal(network.lm_head.weight, draw().lm_head.weight),
            torch.equal(network.lm_head.weight, draw(1).lm_head.weight),
            0.015 < network.lm_head.weight.std().item() < 0.025,
            0.008 < network.attention.o_proj.weight.std().item() < 0.012,
        ),
        (True, False, True, True),
        "draw_weights(self, config.n_layers, generator): std 0.02, o_proj's 0.01",
    )
    blind = draw(positions=False)
    randomised(network)
    with torch.no_grad():
        for one, other in zip(network.parameters(), blind.parameters(), strict=True):
            other.copy_(one)
    ids = torch.tensor([[3, 1, 4, 1, 5]])

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * weight

    def by_hand(speed):
        angles = torch.arange(5)[None, :, None] * 100.0 ** (-torch.arange(8) / 8)
        bias = torch.full((5, 5), -math.inf).triu(1).view(1, 1, 1, 5, 5)
        x = network.embed_tokens.weight[ids]
        read = norm(x, network.attention_norm.weight)
        x = x + _attention_by_hand(
            network.attention, read, speed * angles, bias, heads=2, kv_heads=1
        )
        return norm(x, network.norm.weight) @ network.lm_head.weight.T

    logits, expected = network(ids), by_hand(1)
    yield (
        "how far it is from norm, attention, sum, norm and output by hand",
        gap(logits, expected),
        NOTHING,
        "x + attention(attention_norm(x)), then lm_head(norm(x)); rope_theta and "
        "norm_eps are config's",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, logits, expected),
        [],
        "detach nothing, freeze nothing",
    )
    yield (
        "how far it is without positions",
        gap(blind(ids), by_hand(0)),
        NOTHING,
        "every token stands at position 0, so nothing turns; the rest stays",
    )
    with torch.no_grad():
        yield (
            "how far the past moves with the future",
            gap(network(torch.tensor([[3, 1, 4, 1, 9]]))[:, :4], logits[:, :4]),
            NOTHING,
            "pass attention_bias on",
        )
        mask = torch.tensor([[False, False] + [True] * 5, [True] * 5 + [False] * 2])
        mask = torch.cat(
            (mask, torch.tensor([[True, True, False, False] + 3 * [True]]))
        )
        padded = torch.tensor(
            [[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0], [3, 1, 0, 0, 4, 1, 5]]
        )
        for name, reader in (("with", network), ("without", blind)):
            got = reader(padded, mask)[mask].view(3, 5, -1)
            yield (
                f"how far padding on any side moves it, {name} positions",
                gap(got, reader(ids).expand(3, -1, -1)),
                NOTHING,
                "on the left, on the right or in the middle: positions and bias both "
                "come from the mask",
            )
        shuffled = torch.tensor([[4, 3, 1, 1, 5]])
        yield (
            "with positions, order counts",
            torch.allclose(network(shuffled)[0, -1], logits[0, -1], atol=1e-2),
            False,
            "the angles come from token_positions",
        )
        yield (
            "without positions, how far a shuffled past moves it",
            gap(blind(shuffled)[0, -1], blind(ids)[0, -1]),
            NOTHING,
            "every token stands at position 0",
        )
