"""Checks of 17_gae."""

import itertools
import math

import torch
import torch.nn.functional as F

from minillama.course.checks.case import (
    check,
    dtype_of,
    error_of,
    row,
    scaled,
    tiny_llama,
)
from minillama.course.checks.shared import normal, ragged
from minillama.exact import Responses
from minillama.reward_model import RewardModel


@check
def gae(f):
    """Check `gae(rewards, values, response_mask, gamma, lam)`."""
    last, full = row(0, 0, 0, 1), torch.ones(1, 4, dtype=torch.bool)
    advantages, returns = f(last, last, full, gamma=0.9, lam=0.95)
    yield (
        "advantages by hand",
        advantages,
        row(0.657923, 0.7695, 0.9, 0.0),  # .855^2 * .9, .855 * .9, .9
        "start at the last token, where the next value and the next advantage are 0",
    )
    yield (
        "returns by hand",
        returns,
        row(0.657923, 0.7695, 0.9, 1.0),
        "advantages + values",
    )
    rewards, values = row(1, -2, 0.5, 3), row(0.3, 0.7, -0.2, 0.4)
    yield (
        "lam = 0 looks one step ahead",
        f(rewards, values, full, gamma=0.5, lam=0.0)[0],
        row(1.05, -2.8, 0.9, 2.6),
        "rewards[t] + gamma * values[t + 1] - values[t]",
    )
    yield (
        "lam = 1 forgets the values: Monte-Carlo returns",
        f(rewards, values, full, gamma=0.5, lam=1.0)[1],
        row(0.5, -1.0, 2.0, 3.0),
        "sum of gamma^k * rewards[t + k]",
    )
    mask = torch.tensor(
        [
            [False, True, True, True, True, False],
            [False, False, False, True, True, True],
        ]
    )
    padded = [
        torch.full((2, 6), 50.0).masked_scatter(mask, torch.cat((row[0], row[0, 1:])))
        for row in (rewards, values)
    ]
    got = torch.stack(f(*padded, mask, gamma=0.9, lam=0.8))  # (2, B, T)
    alone = [
        torch.stack(f(rewards[:, k:], values[:, k:], full[:, k:], gamma=0.9, lam=0.8))
        for k in (0, 1)
    ]
    yield (
        "padding changes nothing and holds 0",
        got,
        torch.cat((F.pad(alone[0], (1, 1)), F.pad(alone[1], (3, 0))), dim=1),
        (
            "zero rewards and values off the response before the loop, and the "
            "advantages after it"
        ),
    )
    leaf = values.clone().requires_grad_()
    yield (
        "both come detached",
        [x.requires_grad for x in f(rewards, leaf, full)],
        [False, False],
        "a policy loss must not train the value model",
    )
    yield (
        "a row without response token is refused",
        error_of(lambda: f(rewards, values, ~full)),
        ValueError,
        "look at response_mask before the loop",
    )
    yield (
        "gamma is 1 and lam 0.95 by default",
        torch.stack(f(rewards, values, full)),
        torch.stack(f(rewards, values, full, 1.0, 0.95)),
        "see the head of the definition",
    )
    leaf = rewards.clone().requires_grad_()
    yield (
        "rewards reach nothing either",
        [x.requires_grad for x in f(leaf, values, full)],
        [False, False],
        "detach both",
    )
    mask, r, v = ragged(), normal(5, 6), normal(5, 6, seed=1)
    by_hand = torch.zeros(5, 6)
    for b, t in mask.nonzero().tolist():
        rest = [s for s in range(t, 6) if mask[b, s]]
        by_hand[b, t] = sum(
            0.63 ** (s - t)
            * (r[b, s] + 0.9 * (v[b, s + 1] if s + 1 in rest else 0.0) - v[b, s])
            for s in rest
        )
    yield (
        "five answers of 3, 1, 4, 2 and 5 tokens, as a sum over later errors",
        torch.stack(f(r, v, mask, 0.9, 0.7)),
        torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0))),
        "sum of (gamma * lam)^k * delta[t + k], row by row",
    )
    broken = [torch.where(mask, x, math.nan) for x in (r, v)]
    yield (
        "off the response there may be NaN",
        torch.stack(f(*broken, mask, 0.9, 0.7)),
        torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0))),
        "0 * NaN is NaN; use torch.where",
    )
    yield (
        "float64 in, float64 out",
        [x.dtype for x in f(r.double(), v.double(), mask)],
        [torch.float64] * 2,
        "compute in the dtype that comes",
    )
    pair = torch.stack((by_hand, torch.where(mask, by_hand + v, 0.0)))

    yield (
        "small rewards and values, and large ones",
        scaled(lambda c: f(c * r, c * v, mask, 0.9, 0.7)),
        torch.stack([pair] * 2),
        "no limit and no rounding, anywhere",
    )

    short = f(r, v, mask, 0.9, 0.2)[0]
    twice = f(r, v, mask, 0.9, 0.4)[0]
    none = f(r, v, mask, 0.9, 0.0)[0]
    last = torch.tensor([3, 2, 4, 5, 5]) - 1  # the token before each answer's last
    rows = torch.tensor([0, 2, 3, 4])  # the answers of more than one token
    near = [(x - none)[rows, last[rows]] for x in (short, twice)]
    yield (
        "next to the end, lam 0.4 adds twice what lam 0.2 does",
        near[1],
        2 * near[0],
        "lam multiplies the next advantage, whatever its size",
    )


@check
def value_model(f):
    """Check `ValueModel(reward_model)`, the class."""
    reward_model = RewardModel(tiny_llama(), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model = f(reward_model)
    yield (
        "a new value model gives 0 everywhere",
        model(ids),
        torch.zeros(1, 5),
        "start the head at zero",
    )
    with torch.no_grad():
        model.value.weight.copy_(reward_model.score.weight)
        alone = model(ids)  # (1, 5)
        # (1, 4)
        prefixes = torch.stack([reward_model(ids[:, :t]) for t in range(1, 5)], dim=1)
        padded_ids = torch.tensor([[0, 0, 3, 1, 4, 1, 5], [3, 1, 4, 1, 5, 0, 0]])
        padded_mask = torch.tensor([[False] * 2 + [True] * 5, [True] * 5 + [False] * 2])
        padded = model(padded_ids, padded_mask)  # (2, 7)
    yield (
        "entry 0 has nothing before it",
        alone[:, 0],
        torch.zeros(1),
        "shift by one, filling with 0",
    )
    yield (
        "entry t is the score of the text before token t",
        alone[:, 1:],
        prefixes,
        "start from the reward model's body; position t - 1 has read tokens 0 .. t - 1",
    )
    yield (
        "left padding",
        padded[:1],
        F.pad(alone, (2, 0)),
        "pass the mask on; the first real token has value 0",
    )
    yield (
        "right padding",
        padded[1:],
        F.pad(alone, (0, 2)),
        "0 on padding, also just after the last token",
    )
    model(ids).sum().backward()
    yield (
        "the reward model is not trained",
        all(p.grad is None for p in reward_model.parameters()),
        True,
        "a deep copy of the body",
    )
    yield (
        "what it holds besides a body without lm_head",
        [name for name, _ in model.named_parameters() if name[:6] != "llama."],
        ["value.weight"],
        "one linear head, without bias",
    )
    yield (
        "the body has no lm_head",
        model.llama.lm_head,
        None,
        "copy_body leaves it out",
    )
    body = model.llama.embed_tokens.weight
    yield (
        "the gradient reaches the embeddings",
        bool(body.grad is not None and body.grad.abs().sum() > 0),
        True,
        "detach nothing",
    )
    with torch.no_grad():
        model.value.weight.mul_(2)
        twice = model(ids)
    yield (
        "twice the weights of its head, twice the values",
        twice,
        2 * alone,
        "the head is its own, and linear",
    )
    half = f(RewardModel(tiny_llama().bfloat16()))
    yield (
        "head and values of a bfloat16 body",
        (half.value.weight.dtype, dtype_of(lambda: half(ids))),
        (torch.float32, torch.float32),
        "the head stays float32: convert the states with .float()",
    )
    three = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [7, 3, 8, 0, 0]])
    real = torch.tensor(
        [[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    )
    with torch.no_grad():
        rows = [model(x[None, : m.sum()])[0] for x, m in zip(three, real, strict=True)]
        got = model(three, real)
    yield (
        "three texts of 5, 3 and 2 tokens, each as if alone",
        got,
        torch.stack([F.pad(x, (0, 5 - len(x))) for x in rows]),
        "row by row",
    )
    model.zero_grad()
    model(ids).sum().backward()
    with torch.no_grad():
        states = model.llama.hidden(ids)[:, :-1].sum(1)
    yield (
        "the head learns: its gradient is the sum of the states but the last",
        model.value.weight.grad,
        states,
        "detach no weight; requires_grad stays True",
    )


@check
def exact_values(f):
    """Check `exact_values(logp, rewards, responses, gamma)`.

    On three responses to the prompt [1]: 0 0, 2 and 0 2.
    """
    ids = torch.tensor([[1, 0, 0], [1, 2, 3], [1, 0, 2]])  # 2 ends a response, 3 pads
    mask = torch.tensor([[True] * 3, [True, True, False], [True] * 3])
    responses = Responses(ids, mask, mask & torch.tensor([False, True, True]))
    logp = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    rewards = torch.tensor(
        [[50.0, 0.0, -1.0], [50.0, 1.0, 50.0], [50.0, 0.0, 2.0]], dtype=torch.float64
    )
    values, advantages = f(logp, rewards, responses)
    # After the token 0: (0.2 * -1 + 0.3 * 2) / 0.5 = 0.8.
    # After the prompt: 0.5 * 1 + 0.5 * 0.8 = 0.9.
    yield (
        "values by hand, 0 off the response",
        values,
        torch.tensor([[0, 0.9, 0.8], [0, 0.9, 0], [0, 0.9, 0.8]]),
        (
            "the mean return of all responses with the same tokens before t, each "
            "weighted by its chance"
        ),
    )
    yield (
        "advantages by hand",
        advantages,
        torch.tensor([[0, -0.1, -1.8], [0, 0.1, 0], [0, -0.1, 1.2]]),
        "rewards[t] + values[t + 1] - values[t], 0 off the response",
    )
    values, advantages = f(logp, rewards, responses, gamma=0.5)
    yield (
        "gamma halves what comes one token later",
        torch.stack((values[0], advantages[0])),
        torch.tensor([[0, 0.7, 0.8], [0, -0.3, -1.8]]),
        "0.5 * 1 + 0.5 * (0.5 * 0.8) = 0.7; use gamma in both results",
    )
    # Every response of up to four tokens of 0, 1 and 2, where 2 ends one.
    ids, mask = [], []
    for text in itertools.product((0, 1, 2), repeat=4):
        end = text.index(2) + 1 if 2 in text else 4
        if text[end:] == (0,) * (4 - end):
            ids.append([1, *text])
            mask.append([False] + [True] * end + [False] * (4 - end))
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    N, real = len(ids), mask | (torch.arange(5) == 0)
    logp = normal(N, scale=6.0).double().log_softmax(0)
    # A reward depends on the tokens so far: ids as digits.
    rewards = ((ids * torch.tensor([1, 3, 9, 27, 81])).cumsum(1) * 1.7).sin().double()
    by_hand = torch.zeros(2, N, 5, dtype=torch.float64)
    follow = torch.zeros(N, 6, dtype=torch.float64)
    for t in (4, 3, 2, 1):
        follow[:, t] = mask[:, t] * rewards[:, t] + 0.8 * follow[:, t + 1]
    for n, t in mask.nonzero().tolist():
        alike = [m for m in range(N) if mask[m, t] and ids[m, :t].equal(ids[n, :t])]
        p = logp[alike].exp()
        by_hand[0, n, t] = (p * follow[alike, t]).sum() / p.sum()
    later = F.pad(by_hand[0, :, 1:], (0, 1))
    by_hand[1] = (rewards + 0.8 * later - by_hand[0]) * mask
    got = f(logp, rewards, Responses(ids, real, mask), gamma=0.8)
    yield (
        "31 responses of up to four tokens",
        torch.stack(got),
        by_hand,
        "a state is all tokens before t, not the last one",
    )
    yield (
        "gamma is 1 by default",
        torch.stack(f(logp, rewards, Responses(ids, real, mask))),
        torch.stack(f(logp, rewards, Responses(ids, real, mask), 1.0)),
        "see the head of the definition",
    )
    low = f(logp.float(), rewards.float(), Responses(ids, real, mask))
    yield (
        "float64, both",
        [x.dtype for x in low],
        [torch.float64] * 2,
        "convert first",
    )
    leaf = logp.clone().requires_grad_()
    yield (
        "values are data",
        [x.requires_grad for x in f(leaf, rewards, Responses(ids, real, mask))],
        [False, False],
        "detach logp",
    )
    both = torch.stack(f(logp, rewards, Responses(ids, real, mask)))

    yield (
        "small rewards and large ones",
        scaled(lambda c: f(logp, c * rewards, Responses(ids, real, mask))),
        torch.stack([both] * 2),
        "no limit and no rounding, anywhere",
    )
