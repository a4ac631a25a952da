"""Checks of 08_reward_head."""

import math

import torch
import torch.nn.functional as F

from minillama.course.checks.case import (
    check,
    dtype_of,
    error_of,
    gradient,
    scaled,
    tiny_llama,
)
from minillama.course.checks.shared import normal


def _bits(model):
    """Return all weights and buffers of a model, in one row."""
    return torch.cat(
        [x.detach().flatten().float() for x in model.state_dict().values()]
    )


def _two_rows():
    """Return states (2, 4, 2) of texts of 4 and 2 real tokens, and their mask.

    Padding stands on the right and holds 99.
    """
    states = torch.full((2, 4, 2), 99.0)
    states[0] = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 2.0], [6.0, 2.0]])
    states[1, :2] = torch.tensor([[4.0, 1.0], [8.0, 3.0]])
    return states, torch.tensor([[True] * 4, [True, True, False, False]])


@check
def last_token(f):
    """Check `last_token(mask)`."""
    states, mask = _two_rows()
    yield (
        "booleans come back",
        (f(mask).dtype, tuple(f(mask).shape)),
        (torch.bool, (2, 4)),
        "True or False, (B, T)",
    )
    yield (
        "right padding",
        f(mask).nonzero().tolist(),
        [[0, 3], [1, 1]],
        "the last True of each row, not the last column",
    )
    yield (
        "left padding",
        f(mask.roll(2, 1)[1:]).nonzero().tolist(),
        [[0, 3]],
        (
            "mask.sum() - 1 finds the last real token only where padding stands on "
            "the right"
        ),
    )
    yield (
        "one real token",
        f(torch.tensor([[False, True, False]])).tolist(),
        [[False, True, False]],
        "that one",
    )
    yield (
        "as an index it picks one state a row",
        states[f(mask)],
        torch.tensor([[6.0, 2.0], [8.0, 3.0]]),
        "one True a row",
    )
    holes = torch.tensor([[True, False, True, False], [False, True, True, True]])
    yield (
        "a hole in the mask",
        f(holes).nonzero().tolist(),
        [[0, 2], [1, 3]],
        "one True a row, at its last real token",
    )
    wide = torch.ones(3, 300, dtype=torch.bool)
    wide[1, 280:] = wide[2, :270] = False
    yield (
        "three rows of 300",
        f(wide).nonzero().tolist(),
        [[0, 299], [1, 279], [2, 299]],
        "each row by itself, whatever its length",
    )


@check
def pool_mean(f):
    """Check `pool_mean(hidden, mask)`."""
    states, mask = _two_rows()
    yield (
        "right padding",
        f(states, mask),
        torch.tensor([[3.0, 1.0], [6.0, 2.0]]),
        "12 / 4, 4 / 4 and 12 / 2, 4 / 2",
    )
    yield (
        "left padding",
        f(states.roll(2, 1), mask.roll(2, 1))[1],
        torch.tensor([6.0, 2.0]),
        "sum over True, divide by their number",
    )
    noisy = torch.where(mask[:, :, None], states, torch.nan)
    yield (
        "padding may hold anything, NaN included",
        f(noisy, mask)[1],
        torch.tensor([6.0, 2.0]),
        "masked_fill before the sum: 0 times NaN is NaN",
    )
    yield (
        "the gradient is 1/n at real tokens, 0 at padding",
        gradient(lambda x: f(x, mask), states),
        (mask / mask.sum(1, keepdim=True))[:, :, None].expand(2, 4, 2),
        "no detach; padding must not reach the result",
    )
    yield (
        "the dtype is that of the states",
        f(states.double(), mask).dtype,
        torch.float64,
        "convert nothing",
    )
    states[0, 1] = torch.nan
    yield (
        "a real state that is NaN shows",
        f(states, mask).isnan().tolist(),
        [[True, True], [False, False]],
        "hide what stands at padding alone",
    )
    wide, real = normal(3, 9, 2), torch.arange(9) < torch.tensor([[9], [7], [1]])
    means = torch.stack([x[:n].mean(0) for x, n in zip(wide, (9, 7, 1), strict=True)])

    yield (
        "texts of 9, 7 and 1 tokens, states small and large",
        scaled(lambda c: f(c * wide, real)),
        torch.stack([means] * 2),
        "no limit and no rounding, anywhere",
    )
    yield (
        "padding on the left of both rows",
        f(F.pad(wide[:2, :5], (0, 0, 4, 0)), F.pad(real[:2, :5], (4, 0))),
        wide[:2, :5].mean(1),
        "the mask says what counts, not the place",
    )


@check
def reward_model(f):
    """Check `RewardModel(llama, pooling, keep_lm_head, generator)`, the class."""
    llama = tiny_llama(dim=256)
    model = f(llama, generator=torch.Generator().manual_seed(1))
    long, short = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2, 6]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    right = torch.cat((long, F.pad(short, (0, 2))))
    left = torch.cat((long, F.pad(short, (2, 0))))
    with torch.no_grad():
        head, states = model.score.weight[0], llama.hidden(short)  # (D,), (1, 3, D)
        by_hand = torch.cat((llama.hidden(long)[:, -1] @ head, states[:, -1] @ head))
        mean_head = (mean_model := f(llama, pooling="mean")).score.weight[0]
        mean_by_hand = torch.stack(
            (llama.hidden(long).mean(1)[0] @ mean_head, states.mean(1)[0] @ mean_head)
        )
    yield (
        "the head's std is 1 / sqrt(dim + 1)",
        0.8 < head.std().item() * math.sqrt(257) < 1.2,
        True,
        "1 / (dim + 1) is the variance",
    )
    yield (
        "right padding: one score per row, at the last real token",
        model(right, mask),
        by_hand,
        "the last True of the mask, not column -1",
    )
    yield (
        "left padding",
        model(left, torch.stack((mask[0], mask[1].flip(0)))),
        by_hand,
        "the last True is not at mask.sum() - 1 here",
    )
    yield (
        "mean pooling, over real tokens",
        mean_model(right, mask),
        mean_by_hand,
        "divide by the number of real tokens",
    )
    parameters = sum(p.numel() for p in model.parameters())
    yield (
        "number of parameters",
        parameters,
        sum(p.numel() for p in llama.parameters()) - 11 * 256 + 256,
        "the lm_head goes, a head of dim weights without bias comes",
    )
    model.train()(right, mask).sum().backward()
    yield (
        "the language model is not trained along",
        all(p.grad is None for p in llama.parameters()),
        True,
        "deep copy",
    )
    model.set_normalisation(2.0, 4.0)
    yield (
        "no normalisation in train mode",
        model.train()(right, mask),
        by_hand,
        "look at self.training",
    )
    yield (
        "normalisation in eval mode",
        model.eval()(right, mask),
        (by_hand - 2) / 4,
        "(score - mean) / std",
    )
    yield (
        "an unknown pooling is refused",
        error_of(lambda: f(llama, pooling="first")),
        ValueError,
        '"last" or "mean"',
    )

    def drawn(seed):
        return f(llama, generator=torch.Generator().manual_seed(seed)).score.weight

    yield (
        "the same generator gives the same head, another another",
        [bool((drawn(1) == drawn(seed)).all()) for seed in (1, 2)],
        [True, False],
        "hand the generator to torch.randn",
    )
    kept = f(llama, keep_lm_head=True)
    yield (
        "keep_lm_head=True keeps the output projection, False does not",
        (kept.llama.lm_head is not None, model.llama.lm_head),
        (True, None),
        "hand keep_lm_head to copy_body",
    )
    model.set_normalisation(3.0)
    yield (
        "set anew, and centred only: the std is 1",
        model.eval()(right, mask),
        by_hand - 3,
        "std=1.0 by default",
    )
    model.set_normalisation(3.0, 0.5)
    other = f(llama)
    other.load_state_dict(model.state_dict())
    yield (
        "weights and normalisation are saved and loaded",
        _bits(other),
        _bits(model),
        "register_buffer for score_mean and score_std",
    )
    yield (
        "the loaded one scores alike",
        other.eval()(right, mask),
        (by_hand - 3) / 0.5,
        "register_buffer for score_mean and score_std",
    )
    zeros = torch.tensor([[3, 0, 4, 0]])
    with torch.no_grad():
        of_zeros = llama.hidden(zeros)[0]
    yield (
        "without a mask every token is real, id 0 too",
        torch.cat([x.train()(zeros) for x in (model, mean_model)]),
        torch.stack((of_zeros[-1] @ head, of_zeros.mean(0) @ mean_head)),
        "the mask says what is real, not the ids",
    )
    yield (
        "mean pooling, padding on the left, both modes",
        torch.stack(
            [
                mean_model.train(mode)(left, torch.stack((mask[0], mask[1].flip(0))))
                for mode in (True, False)
            ]
        ),
        mean_by_hand.expand(2, 2),
        "the mask goes to the body, too; pooling is the same in both modes",
    )
    for one, claim in ((model, "last"), (mean_model, "mean")):
        one.zero_grad()
        one.train()(right, mask).sum().backward()
        yield (
            f"pooling {claim}: the gradient reaches the embeddings",
            bool(one.llama.embed_tokens.weight.grad.abs().sum() > 0),
            True,
            "detach nothing",
        )
    half = f(tiny_llama().bfloat16())
    yield (
        "head and scores of a bfloat16 body",
        (half.score.weight.dtype, dtype_of(lambda: half(right, mask))),
        (torch.float32, torch.float32),
        "the head stays float32: convert the pooled state with .float()",
    )
    yield (
        "the head has no mean",
        abs(head.mean().item()) < 0.02,
        True,
        "normal numbers around 0",
    )
    narrow = f(tiny_llama(dim=64), generator=torch.Generator().manual_seed(1))
    yield (
        "the head's std at dim 64 is 1 / sqrt(65)",
        0.7 < narrow.score.weight.std().item() * math.sqrt(65) < 1.3,
        True,
        "it depends on dim",
    )
    with torch.no_grad():
        model.score.weight.mul_(1000)
    model.set_normalisation(2.5, 0.125)
    yield (
        "a head a thousand times as large, raw and normalised",
        torch.stack([model.train(mode)(right, mask) for mode in (True, False)]),
        torch.stack((1000 * by_hand, (1000 * by_hand - 2.5) / 0.125)),
        "a linear head: no limit, no rounding",
    )
    model.zero_grad()
    model.train()(right, mask).sum().backward()
    with torch.no_grad():
        read = model.llama.hidden(long)[:, -1] + model.llama.hidden(short)[:, -1]
    yield (
        "the head learns: its gradient is the sum of the states that were read",
        model.score.weight.grad,
        read,
        "detach no weight; requires_grad stays True",
    )
    mean_model.set_normalisation(-1.0, 0.5)
    yield (
        "mean pooling is normalised, too",
        mean_model.eval()(right, mask),
        (mean_by_hand + 1) / 0.5,
        "the mode decides, not the pooling",
    )
    near = (drawn(3).abs() * math.sqrt(257) < 1).float().mean().item()
    yield (
        "two in three weights of a head are within one std",
        0.58 < near < 0.78,
        True,
        "draw from a normal distribution",
    )
