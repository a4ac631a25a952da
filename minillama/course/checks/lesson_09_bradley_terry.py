"""Checks of 09_bradley_terry."""

import math

import torch

from minillama import world
from minillama.course.checks.case import check, error_of, gradient, tiny_tokenizer
from minillama.course.checks.shared import normal
from minillama.data import PairExample


@check
def bradley_terry_loss(f):
    """Check `bradley_terry_loss(chosen_scores, …, margin, reduction)`."""
    zero = torch.zeros(1)
    yield ("equal scores cost ln 2", f(zero, zero), torch.tensor(0.693147), "-log(1/2)")
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    # ln(1 + exp(-1)), ln(1 + e), ln 2
    hand = torch.tensor([0.313262, 1.313262, 0.693147])
    yield (
        "one loss per pair",
        f(chosen, rejected, reduction="none"),
        hand,
        "-logsigmoid(chosen - rejected)",
    )
    yield (
        "the mean is the default, sum the other",
        torch.stack((f(chosen, rejected), f(chosen, rejected, reduction="sum"))),
        torch.tensor([0.773224, 2.319671]),
        "mean over the pairs",
    )
    margins = torch.tensor([1 / 3, 2 / 3, 1.0, 3.0])
    yield (
        "a margin per pair",
        f(torch.zeros(4), torch.zeros(4), margins, "none"),
        torch.tensor([0.87364, 1.08104, 1.31326, 3.04859]),
        "subtract it from the difference: ln(1 + exp(m))",
    )
    slopes = torch.cat(
        [
            gradient(lambda x, m=m: f(x, zero, m), torch.tensor([1.5]))
            for m in (0.0, 3.0)
        ]
    )
    yield (
        "slopes at difference 1.5, margins 0 and 3",
        slopes,
        torch.tensor([-0.18243, -0.81757]),
        "sigmoid(d - m) - 1",
    )
    yield (
        "a constant added to all scores changes nothing",
        f(chosen + 7, rejected + 7, reduction="none"),
        hand,
        "only differences count",
    )
    wrong = torch.tensor([-90.0])
    yield (
        "no overflow at difference -90",
        torch.stack((f(wrong, zero), gradient(lambda x: f(x, zero), wrong)[0])),
        torch.tensor([90.0, -1.0]),
        "F.logsigmoid, not log(sigmoid), which underflows",
    )
    yield (
        "a margin (B, 1) is refused",
        error_of(lambda: f(chosen, rejected, torch.ones(3, 1))),
        ValueError,
        "it would broadcast to a (B, B) loss",
    )
    yield (
        "a negative margin is refused",
        error_of(lambda: f(chosen, rejected, -1.0)),
        ValueError,
        "0 or more",
    )
    d, margin = normal(7, scale=3.0), normal(7, seed=1).abs()
    base = normal(7, seed=2)
    losses = torch.tensor(
        [math.log1p(math.exp(m - x)) for x, m in zip(d, margin, strict=True)]
    )
    yield (
        "seven pairs: none, mean, sum",
        torch.cat(
            [f(base + d, base, margin, x).view(-1) for x in ("none", "mean", "sum")]
        ),
        torch.cat((losses, losses.mean().view(1), losses.sum().view(1))),
        "ln(1 + exp(margin - difference)), then reduce",
    )
    yield (
        "one margin for all seven, a whole number",
        f(base + d, base, 1, "none"),
        torch.tensor([math.log1p(math.exp(1 - x)) for x in d]),
        "subtract a number as well",
    )
    slopes = torch.tensor(
        [-1 / (1 + math.exp(x - m)) for x, m in zip(d, margin, strict=True)]
    )
    for reduction, share in (("none", 1.0), ("sum", 1.0), ("mean", 1 / 7)):
        yield (
            f"both scores feel it, reduction {reduction}",
            torch.stack(
                (
                    gradient(lambda x, r=reduction: f(x, base, margin, r), base + d),
                    gradient(lambda x, r=reduction: f(base + d, x, margin, r), base),
                )
            ),
            share * torch.stack((slopes, -slopes)),
            "detach neither; chosen up, rejected down",
        )
    yield (
        "float64 scores, a float64 loss",
        f(base.double(), base.double(), margin.double()).dtype,
        torch.float64,
        "compute in the dtype that comes",
    )
    yield (
        "losses at differences 12 and 15, as often as exp(-12) and exp(-15)",
        f(torch.tensor([12.0, 15.0]), torch.zeros(2), None, "none")
        / torch.tensor([-12.0, -15.0]).exp(),
        torch.ones(2),
        "small is not 0",
    )


class _SumOfIds(torch.nn.Module):
    """A reward model whose score is the sum of the real ids; it counts rows read."""

    def __init__(self):
        super().__init__()
        self.weight, self.rows = torch.nn.Parameter(torch.ones(())), []

    def forward(self, ids, mask=None):
        self.rows.append(len(ids))
        return self.weight * (ids if mask is None else ids * mask).sum(1)


class _Length(torch.nn.Module):
    """A reward model whose score is the number of real tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, ids, mask):
        return self.weight * mask.sum(1)


@check
def pair_scores(f):
    """Check `pair_scores(reward_model, pairs)`."""
    model = _SumOfIds()
    pairs = [
        PairExample([5, 6, 7], [8, 9], 0.0, True, True, 1),
        PairExample([5, 6, 7], [1], 0.0, True, True, 1),
    ]
    scores = torch.stack(tuple(f(model, pairs)))  # (2, 2)
    yield (
        "the chosen first, then the rejected; padding counts nothing",
        scores,
        torch.tensor([[18.0, 18.0], [17.0, 1.0]]),
        "18 = 5 + 6 + 7 and 17 = 8 + 9; pass the mask that pad returns to the model",
    )
    yield ("one forward", len(model.rows), 1, "pad chosen and rejected texts together")
    yield (
        "a text that stands in two pairs is read once",
        model.rows[0],
        3,
        "collect the distinct texts first",
    )
    scores.sum().backward()
    yield (
        "the gradient reaches the model",
        model.weight.grad,
        torch.tensor(54.0),
        "no detach, no item",
    )
    model = _SumOfIds()
    texts = [5, 6, 7, 8, 9], [1], [4, 4], [2, 3, 4, 5, 6, 7]
    pairs = [
        PairExample(texts[i], texts[j], 0.0, True, True, 1)
        for i, j in ((1, 0), (2, 3), (0, 2), (3, 1), (1, 2))
    ]
    chosen, rejected = f(model.train(), pairs)
    yield (
        "five pairs of four texts, of 1 to 6 tokens",
        torch.stack((chosen, rejected)),
        torch.tensor([[1.0, 8.0, 35.0, 27.0, 1.0], [35.0, 27.0, 8.0, 1.0, 8.0]]),
        "one score for each pair, in the order of the pairs; cut no text",
    )
    yield (
        "the model stays in the mode it was in",
        (model.training, f(model.eval(), pairs) and model.training),
        (True, False),
        "who calls decides about train and eval",
    )
    steps = [
        torch.autograd.grad(side.sum(), model.weight, retain_graph=True)[0]
        for side in (chosen, rejected)
    ]
    yield (
        "the gradient through either side",
        torch.stack(steps),
        torch.tensor([72.0, 79.0]),
        "detach neither",
    )
    yield (
        "another model: the number of real tokens",
        torch.stack(tuple(f(_Length(), pairs))),
        torch.tensor([[1.0, 2.0, 5.0, 6.0, 1.0], [5.0, 6.0, 2.0, 1.0, 2.0]]),
        "hand the mask to the model as pad returns it",
    )


@check
def pair_example(f):
    """Check `pair_example(tokenizer, preference, margins)`."""
    tiny = tiny_tokenizer()
    space, ab, b = tiny.encode(" "), tiny.encode("ab"), tiny.encode("b")
    prompt, margins = world.Prompt("ab", "ab", False), (0.5, 1.0, 2.0, 4.0)
    pairs = [
        f(tiny, world.Preference(prompt, "b", "ab", strength, True, False), margins)
        for strength in (0, 2, 3)
    ]
    chosen = [1, 4, *space, *ab, 5, *space, *b, 2]
    rejected = [1, 4, *space, *ab, 5, *space, *ab, 2]
    yield (
        "two whole dialogues, the chosen one first",
        [pairs[0].chosen, pairs[0].rejected],
        [chosen, rejected],
        "prompt ids, then response ids, with the same prompt twice",
    )
    yield (
        "the margins of the strengths 0, 2 and 3",
        [pair.margin for pair in pairs],
        [0.5, 2.0, 4.0],
        "look the strength up in margins, weakest first",
    )
    plain = f(tiny, world.Preference(prompt, "b", "ab", 3, True, False))
    yield (
        "no margin unless margins are given",
        plain.margin,
        0.0,
        "four zeros are the default",
    )
    yield (
        "who is safe",
        [plain.chosen_is_safe, plain.rejected_is_safe],
        [True, False],
        "copy both labels, chosen first",
    )
    yield (
        "where the answers begin",
        plain.response_start,
        chosen.index(5) + 1,
        "the length of the prompt's ids",
    )
    asked = world.Prompt("b ab", "ab", False)
    other = f(tiny, world.Preference(asked, "ab", "b b", 1, False, True), [1, 2, 3, 4])
    pieces = tiny.encode(" b ab")
    yield (
        "another prompt: what is read is its text",
        [other.chosen, other.rejected],
        [
            [1, 4, *pieces, 5, *tiny.encode(" ab"), 2],
            [1, 4, *pieces, 5, *tiny.encode(" b b"), 2],
        ],
        "preference.prompt.text, not its request",
    )
    yield (
        "its margin, its labels, its start",
        (
            other.margin,
            other.chosen_is_safe,
            other.rejected_is_safe,
            other.response_start,
        ),
        (2, False, True, 3 + len(pieces)),
        "margins[strength], both labels as they are, the length of the prompt's ids",
    )
    for safe in (True, False):
        same = f(tiny, world.Preference(asked, "ab", "b b", 1, safe, safe))
        yield (
            f"both answers called {safe}",
            (same.chosen_is_safe, same.rejected_is_safe),
            (safe, safe),
            "two labels, each copied",
        )
