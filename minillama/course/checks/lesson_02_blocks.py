"""Checks of 02_blocks."""

import math

import torch

from minillama.course.checks.case import check, row, tiny_config
from minillama.course.checks.shared import (
    NOTHING,
    counted,
    gap,
    randomised,
    wrong_gradients,
)


@check
def rms_norm(f):
    """Check `RMSNorm(dim, eps)`, the class."""
    norm = f(2, eps=1e-5)
    yield (
        "what it learns",
        {name: tuple(p.shape) for name, p in norm.named_parameters()},
        {"weight": (2,)},
        "one weight a feature, an nn.Parameter",
    )
    given = torch.tensor([[3.0, 4.0]])
    yield (
        "(3, 4) by hand",
        norm(given),
        torch.tensor([[0.8485, 1.1314]]),
        "divide by sqrt(25 / 2)",
    )
    yield (
        "(3, 4) itself afterwards",
        given,
        torch.tensor([[3.0, 4.0]]),
        "compute a new tensor",
    )
    yield (
        "no mean is subtracted",
        norm(torch.tensor([[5.0, 5.0]])),
        torch.ones(1, 2),
        "LayerNorm would give 0",
    )
    yield (
        "eps stands under the root",
        f(1, eps=9.0)(torch.tensor([[4.0]])),
        torch.tensor([[0.8]]),
        "4 / sqrt(16 + 9)",
    )
    yield (
        "eps is 1e-5 unless another is given",
        f(1)(torch.tensor([[0.003]])),
        torch.tensor([[0.6882]]),
        "0.003 / sqrt(0.000009 + 0.00001)",
    )
    yield (
        "each position by itself",
        norm(torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]]])),
        torch.tensor([[[0.8485, 1.1314]]] * 2),
        "the mean runs over the last dimension",
    )
    yield (
        "float16 neither overflows nor changes",
        norm.half()(torch.tensor([[300.0, 400.0]], dtype=torch.float16)),
        torch.tensor([[0.8486, 1.1318]], dtype=torch.float16),
        "300^2 exceeds float16; square in float32, convert back",
    )
    half = f(2).bfloat16()(torch.tensor([[25.0, 34.0]]).bfloat16())
    yield (
        "bfloat16 loses nothing on the way",
        half,
        torch.tensor([[0.8359375, 1.140625]]),
        "compute in float32; round once, at the end",
    )
    yield ("bfloat16 in, out comes", half.dtype, torch.bfloat16, "convert back")
    norm = f(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
    yield (
        "one learned weight a feature, 1 at the start",
        norm(torch.tensor([[3.0, 4.0]])),
        torch.tensor([[1.6971, -1.1314]]),
        "multiply by self.weight at the end",
    )
    x = torch.tensor([[3.0, 4.0], [1.0, -2.0]], requires_grad=True)
    root = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    yield (
        "what gets a wrong gradient",
        wrong_gradients(norm, norm(x), x / root * norm.weight, x=x),
        [],
        "the root and the weight are part of the graph: detach nothing, freeze nothing",
    )


@check
def feed_forward(f):
    """Check `FeedForward(config)`, the class."""
    config = tiny_config(dim=2, n_heads=1, ffn_dim=1)
    network = f(config)
    yield (
        "three matrices and no bias",
        {name: tuple(p.shape) for name, p in network.named_parameters()},
        {
            "gate_proj.weight": (1, 2),
            "up_proj.weight": (1, 2),
            "down_proj.weight": (2, 1),
        },
        "Hugging Face's names",
    )
    with torch.no_grad():
        for layer, weight in (
            (network.gate_proj, [[1.0, 0.0]]),
            (network.up_proj, [[0.0, 1.0]]),
            (network.down_proj, [[1.0], [10.0]]),
        ):
            layer.weight.copy_(torch.tensor(weight))
    x = torch.tensor([[[1.0, 2.0], [-1.0, 2.0]]])
    # silu(1) = .7311, silu(-1) = -.2689
    by_hand = torch.tensor([[[1.4621, 14.6212], [-0.5379, -5.3788]]])
    yield (
        "down(silu(gate(x)) * up(x)) by hand",
        network(x),
        by_hand,
        "silu(1) * 2 = 1.4621; only the gate goes through silu",
    )
    network = randomised(f(tiny_config(dim=4, n_heads=1, ffn_dim=3)))
    x = 3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    gate, up, down = (
        getattr(network, f"{name}_proj").weight for name in ("gate", "up", "down")
    )
    by_hand = (x @ gate.T * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ down.T
    yield (
        "how far two texts of three tokens are from the formula",
        gap(network(x), by_hand),
        NOTHING,
        "silu(z) = z * sigmoid(z), for every token of every text",
    )
    yield (
        "what gets a wrong gradient",
        wrong_gradients(network, network(x), by_hand, x=x),
        [],
        "detach nothing, freeze nothing",
    )


@check
def one_token_floor(f):
    """Check `one_token_floor(counts)`."""
    untouched = counted()
    yield (
        "after 0 always 1, after 1 one of two",
        row(f(untouched)),
        row(math.log(2) / 2),
        "(2 * 0 + 2 * ln 2) / 4; a token that never came has no row to divide",
    )
    yield ("the counts stay as they were", untouched, counted(), "change no argument")
    yield ("a number", type(f(counted())), float, "nats a token")
    uneven = torch.tensor([[1.0, 3.0], [6.0, 0.0]]).double()
    entropy = (math.log(4) + 3 * math.log(4 / 3)) / 4
    yield (
        "rows weigh as often as they came",
        row(f(uneven), f(uneven.T)),
        row(0.4 * entropy, (math.log(7) + 6 * math.log(7 / 6)) / 10),
        "4 of 10 tokens come after 0, so its row's entropy counts 0.4; then 7 of 10",
    )
    yield (
        "counts ten times as large, and shares that add up to 1",
        row(f(10 * uneven), f(uneven / 10)),
        row(0.4 * entropy, 0.4 * entropy),
        "divide each row by its own sum, and smooth nothing",
    )
    yield (
        "four equally frequent pairs in each row",
        row(f(torch.ones(4, 4))),
        row(math.log(4)),
        "natural logarithms",
    )


@check
def one_token(f):
    """Check `OneToken(config, generator)`, the class."""
    config = tiny_config(n_layers=2, ffn_dim=40, norm_eps=0.1)
    network = f(config, torch.Generator().manual_seed(0))
    weights = dict(network.named_parameters())
    yield (
        "embedding, norm, feed-forward, norm, output",
        {name: tuple(p.shape) for name, p in weights.items()},
        {
            "embed_tokens.weight": (11, 32),
            "mlp_norm.weight": (32,),
            "mlp.gate_proj.weight": (40, 32),
            "mlp.up_proj.weight": (40, 32),
            "mlp.down_proj.weight": (32, 40),
            "norm.weight": (32,),
            "lm_head.weight": (11, 32),
        },
        "embed_tokens, mlp_norm, mlp, norm, and lm_head without bias",
    )
    yield (
        "small weights, those back into the stream smaller",
        [
            0.8 < weights[f"{name}.weight"].std().item() / std < 1.2
            for name, std in (
                ("embed_tokens", 0.02),
                ("mlp.up_proj", 0.02),
                ("mlp.down_proj", 0.01),
                ("lm_head", 0.02),
            )
        ],
        [True] * 4,
        "draw_weights(self, config.n_layers, generator) at the end of __init__",
    )
    yield (
        "the same generator gives the same weights",
        f(config, torch.Generator().manual_seed(0)).lm_head.weight,
        network.lm_head.weight,
        "hand the generator on",
    )
    randomised(network)
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    logits = network(ids)
    w = {name.removesuffix(".weight"): p for name, p in weights.items()}

    def normed(x, scale):
        return x / (x.square().mean() + 0.1).sqrt() * scale

    def by_hand(token):
        x = w["embed_tokens"][token]
        y = normed(x, w["mlp_norm"])
        gate, up = w["mlp.gate_proj"] @ y, w["mlp.up_proj"] @ y
        x = x + w["mlp.down_proj"] @ (gate * torch.sigmoid(gate) * up)
        return w["lm_head"] @ normed(x, w["norm"])

    expected = torch.stack([torch.stack([by_hand(i) for i in r]) for r in ids.tolist()])
    yield (
        "eight tokens, one at a time",
        logits,
        expected.detach(),
        "x + mlp(mlp_norm(x)), then the last norm, then lm_head; norm_eps is config's",
    )
    yield (
        "weights that get a wrong gradient",
        wrong_gradients(network, logits, expected),
        [],
        "detach nothing, freeze nothing",
    )
    yield (
        "a token sees itself alone",
        network(ids.roll(1, 0).flip(1)),
        logits.roll(1, 0).flip(1),
        "nothing may pass between positions or texts",
    )
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    yield (
        "a mask may be given, and changes nothing",
        network(ids, mask),
        logits,
        "forward(ids, mask=None): there is nobody else to be hidden",
    )
