"""Checks of 11_lm_regulariser."""

import math

import torch

from minillama.course.checks.case import check, error_of, tiny_llama
from minillama.course.checks.shared import normal
from minillama.data import PairExample
from minillama.reward_model import RewardModel


def _counting_model():
    """Return a reward model whose lm_head knows one rule.

    After token a comes a + 1 with probability 1/2, each other token with 1/20.
    Embeddings are far apart and both branches of the block are shut, so that a token's
    state depends on nothing but itself.
    """
    model = RewardModel(tiny_llama(), keep_lm_head=True)
    # [a, b] = P(b after a)
    table = torch.full((11, 11), 0.05) + 0.45 * torch.eye(11).roll(1, 1)
    with torch.no_grad():
        # the norm makes it sqrt(32)
        model.llama.embed_tokens.weight.copy_(10 * torch.eye(11, 32))
        model.llama.lm_head.weight[:, :11] = table.log().T / math.sqrt(32)
        for projection in (
            model.llama.layers[0].self_attn.o_proj,
            model.llama.layers[0].mlp.down_proj,
        ):
            projection.weight.zero_()
    return model


@check
def chosen_lm_loss(f):
    """Check `chosen_lm_loss(reward_model, pairs)`, on the rule of `_counting_model`."""
    half, twentieth = math.log(2), math.log(20)
    # 6 and 7 count: 1/2, 1/2
    short = PairExample([1, 5, 6, 7], [1, 5, 9, 2], 0.0, True, True, 2)
    again = PairExample([1, 5, 6, 7], [1, 5, 9, 9], 0.0, True, True, 2)
    # 9, 8, 9, 4 count: 1/20, 1/20, 1/2, 1/20
    long = PairExample([1, 5, 9, 8, 9, 4], [1, 5, 6, 7], 0.0, True, True, 2)
    # 9 and 4 count: 1/2, 1/20
    late = PairExample([1, 5, 9, 8, 9, 4], [1, 5, 9, 8, 9, 10], 0.0, True, True, 4)
    yield (
        "two tokens of an answer, each with probability 1/2",
        f(_counting_model(), [short]),
        torch.tensor(half),
        (
            "the logits at t predict the token at t + 1; count the chosen answer, not "
            "its prompt"
        ),
    )
    yield (
        "the answer starts where response_start says",
        f(_counting_model(), [late]),
        torch.tensor((half + twentieth) / 2),
        "loss_start is the pair's response_start",
    )
    six = torch.tensor((3 * half + 3 * twentieth) / 6)
    yield (
        "mean over tokens, without padding",
        f(_counting_model(), [short, long]),
        six,
        "six tokens count, each alike; no mean of the two answers' means",
    )
    yield (
        "an answer chosen twice is read once",
        f(_counting_model(), [short, again, long]),
        six,
        "collect the distinct chosen texts first",
    )
    model = _counting_model()
    f(model, [long]).backward()
    reached = [
        layer.weight.grad is not None and layer.weight.grad.abs().max().item() > 1e-6
        for layer in (model.llama.lm_head, model.llama.embed_tokens)
    ]
    yield (
        "its gradient reaches lm_head and body",
        reached,
        [True, True],
        "no detach, no item, no torch.no_grad",
    )
    yield (
        "without lm_head it is refused",
        error_of(lambda: f(RewardModel(tiny_llama()), [short])),
        ValueError,
        "look whether reward_model.llama.lm_head is None",
    )
    five = PairExample([1, 5, 6, 7, 8], [1, 5, 9], 0.0, True, True, 3)
    yield (
        "three texts, each with a start of its own",
        f(_counting_model(), [late, five, short]),
        torch.tensor((5 * half + twentieth) / 6),
        "9 and 4; 7 and 8; 6 and 7: a start for each text",
    )
    model = _counting_model().train()
    one, other = f(model, [long]), f(model.eval(), [long])
    yield (
        "a scalar, the same in both modes of the model",
        torch.stack((one, other)),
        torch.tensor([(half + 3 * twentieth) / 4] * 2),
        "a mean, of the tokens' losses",
    )
    real = RewardModel(tiny_llama(), keep_lm_head=True)
    text, got = torch.tensor([late.chosen]), f(real, [late])
    logprobs = real.llama(text)[0].log_softmax(-1)
    wanted = -(logprobs[3, 9] + logprobs[4, 4]) / 2
    slopes = [
        torch.autograd.grad(x, list(real.llama.parameters())) for x in (got, wanted)
    ]
    yield (
        "the gradient of every weight, against two logprobs by hand",
        max((a - b).abs().max().item() for a, b in zip(*slopes, strict=True)) < 1e-6,
        True,
        "all of the language model learns from it",
    )
    ended = PairExample([1, 5, 6, 2], [1, 5, 9, 2], 0.0, True, True, 2)
    yield (
        "an answer that ends with EOS",
        f(_counting_model(), [ended]),
        torch.tensor((half + twentieth) / 2),
        "the EOS is a token of the answer and counts",
    )


@check
def chosen_chance(f):
    """Check `chosen_chance(utilities, others, n, temperature)`."""
    # Against itself it loses with 1/2, against the other with 1/4 or 3/4.
    two = torch.tensor([0.0, math.log(3)])
    yield (
        "n = 2: 1 - (1/2 + 3/4) / 2 and 1 - (1/4 + 1/2) / 2",
        f(two, two, 2),
        torch.tensor([0.375, 0.625]),
        "it loses to another with sigmoid(other - utility); mean over the others",
    )
    yield (
        "n = 3: 1 - .625^2 and 1 - .375^2",
        f(two, two, 3),
        torch.tensor([0.609375, 0.859375]),
        "chosen at least once: 1 - P(it loses all n - 1 comparisons)",
    )
    yield (
        "three answers against two others",
        f(torch.tensor([0.0, math.log(3), 0.0]), two, 3),
        torch.tensor([0.609375, 0.859375, 0.609375]),
        "one chance for each answer asked about",
    )
    yield (
        "a temperature of 2, and utilities twice as large",
        f(2 * two, 2 * two, 3, 2.0),
        torch.tensor([0.609375, 0.859375]),
        "divide the difference by the temperature",
    )
    yield (
        "at equal utilities it is 1 - 2^-(n - 1)",
        f(torch.full((1,), 7.0), torch.full((4,), 7.0), 8),
        torch.tensor([1 - 2.0**-7]),
        "only differences count",
    )
    yield (
        "a single answer has no comparison",
        error_of(lambda: f(two, two, 1)),
        ValueError,
        "n must be at least 2",
    )
    some, many = normal(4, scale=3.0), normal(6, seed=1, scale=3.0)
    chances = [
        1 - (sum(1 / (1 + math.exp((u - v) / 0.7)) for v in many.tolist()) / 6) ** 4
        for u in some.tolist()
    ]
    yield (
        "four answers, six others, n = 5, temperature 0.7",
        f(some, many, 5, 0.7),
        torch.tensor(chances),
        "a mean over the others for each answer, then the power n - 1",
    )
    yield ("float64", f(two, two, 2).dtype, torch.float64, "convert first")
    yield (
        "far apart",
        f(torch.tensor([-300.0, 300.0]), torch.zeros(3), 2),
        torch.tensor([0.0, 1.0]),
        "no limit to how far utilities may be apart",
    )
    yield (
        "two others of three are alike",
        f(two[:1], torch.tensor([0.0, 0.0, math.log(3)]), 2),
        torch.tensor([1 - (0.5 + 0.5 + 0.75) / 3]),
        "each of the others counts",
    )
