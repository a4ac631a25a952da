"""Checks of 19_ppo."""

import math

import torch
import torch.nn.functional as F

from minillama.course.checks.case import check, tiny_llama
from minillama.course.checks.shared import normal, ragged
from minillama.ppo import Experience, PPOSettings
from minillama.reward_model import RewardModel, ValueModel


@check
def response_logprobs(f):
    """Check `response_logprobs(model, ids, mask, response_mask)`."""
    model, zero = tiny_llama(), torch.zeros(1, 2)
    text, mask = torch.tensor([[3, 1, 4, 1, 5]]), torch.ones(1, 5, dtype=torch.bool)
    counted = torch.tensor([[False, False, True, True, True]])
    table = torch.log_softmax(model(text), -1)[0]  # (5, V)
    expected = torch.stack(
        [table[t - 1, text[0, t]] if t >= 2 else table.new_zeros(()) for t in range(5)]
    )[None]
    yield (
        "log p of a token stands where the token stands",
        f(model, text, mask, counted),
        expected,
        "position t - 1 predicts token t; 0 where the response is not",
    )
    ids = torch.cat((F.pad(text, (2, 0)), F.pad(text, (0, 2))))
    masks = [torch.cat((F.pad(x, (2, 0)), F.pad(x, (0, 2)))) for x in (mask, counted)]
    yield (
        "padding on either side changes nothing",
        f(model, ids, *masks),
        torch.cat((torch.cat((zero, expected), 1), torch.cat((expected, zero), 1))),
        "pass the mask to the model",
    )
    got = f(model, text, mask, counted)
    yield (
        "they carry a gradient",
        got.requires_grad,
        True,
        "PPO's loss climbs through them",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
        model.lm_head.weight.mul_(20)
    three = torch.tensor([[3, 1, 4, 1, 5], [0, 9, 2, 6, 7], [8, 2, 10, 0, 0]])
    real = three > 0
    answers = real.clone()
    answers[:, :2] = answers[1, 2] = False
    wanted = torch.zeros(3, 5)
    for b, t in answers.nonzero().tolist():
        start = int(real[b].int().argmax())
        logits = model(three[b : b + 1, start:t])[0, -1]
        wanted[b, t] = logits.log_softmax(-1)[three[b, t]]
    got = f(model, three, real, answers)
    yield (
        "three texts, one padded on the left, one on the right, each token by its past",
        got,
        wanted,
        "row by row; log-probabilities may be far below 0",
    )
    shares, parameters = normal(3, 5, seed=3), list(model.parameters())
    slopes = [
        torch.autograd.grad((x * shares).sum(), parameters, allow_unused=True)
        for x in (got, wanted)
    ]
    yield (
        "every weight feels it as it should",
        [
            a is not None and ((a - b).norm() < 0.01 * b.norm() + 1e-3).item()
            for a, b in zip(*slopes, strict=True)
        ],
        [True] * len(parameters),
        "detach nothing",
    )


class _Recorder:
    """A `Stepper` that takes no step: it keeps the losses and whose they are."""

    def __init__(self):
        self.losses, self.rows = [], []

    def step(self, loss, batch_ids):
        self.losses.append(loss.item())
        self.rows.append(list(batch_ids))


def _four_answers(policy):
    """Return an `Experience`: four answers of three tokens, advantages 1, 2, 3, 6."""
    ids = torch.tensor([[1, 4, 5, 6], [1, 7, 8, 9], [1, 5, 4, 3], [1, 9, 9, 2]])
    mask = torch.ones(4, 4, dtype=torch.bool)
    response_mask = torch.tensor([[False, True, True, True]]).expand(4, 4)
    with torch.no_grad():
        table = torch.log_softmax(policy(ids)[:, :-1], -1)  # (4, 3, V)
    logprobs = F.pad(table.gather(-1, ids[:, 1:, None]).squeeze(-1), (1, 0))
    worth = torch.tensor([[1.0], [2.0], [3.0], [6.0]]) * response_mask
    return Experience(
        ids=ids,
        mask=mask,
        response_mask=response_mask,
        logprobs=logprobs,
        ref_logprobs=logprobs,
        values=torch.zeros(4, 4),
        safety=torch.zeros(4),
        helpfulness=torch.zeros(4),
        selected=torch.zeros(4),
        scores=torch.zeros(4),
        rewards=worth,
        advantages=worth,
        returns=worth,
    )


class _Follower(_Recorder):
    """A `Stepper` that works out each loss by hand, and then changes its model."""

    def __init__(self, model, by_hand):
        super().__init__()
        self.model, self.by_hand, self.expected, self.off = model, by_hand, [], []

    def step(self, loss, batch_ids):
        super().step(loss, batch_ids)
        wanted, weights = self.by_hand(batch_ids), list(self.model.parameters())
        self.expected.append(wanted.item())
        slopes = [
            torch.cat([x.flatten() for x in torch.autograd.grad(y, weights)])
            if y.requires_grad
            else torch.zeros(1)
            for y in (loss, wanted)
        ]
        apart, size = (slopes[0] - slopes[1]).norm(), slopes[1].norm()
        self.off.append((apart / (size + 0.01)).item())
        with torch.no_grad():
            for seed, weight in enumerate(weights):
                weight += normal(*weight.shape, seed=seed, scale=0.02)


def _five_answers(policy):
    """Return an `Experience` in which everything differs, and the policy has moved."""
    starts, counted = torch.tensor([4, 3, 5, 6, 6]), ragged()
    at, begins = torch.arange(6), torch.tensor([[0], [1], [0], [2], [0]])
    mask = (at >= begins) & (at < starts[:, None])
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, 11, (5, 6), generator=generator) * mask
    with torch.no_grad():
        logprobs = _logprobs(policy, ids, mask)
    logprobs, ref_logprobs, values, rewards, advantages, returns = (
        (x + normal(5, 6, seed=seed)) * counted
        for seed, x in enumerate((logprobs, logprobs, 0, 0, 2, 1))
    )
    each = torch.zeros(5)
    return Experience(
        ids=ids,
        mask=mask,
        response_mask=counted,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        safety=each,
        helpfulness=each,
        selected=each,
        scores=each,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
    )


def _logprobs(policy, ids, mask):
    """Return log p of each token but a row's first, where there is 0: (B, T)."""
    table = torch.log_softmax(policy(ids, mask)[:, :-1], -1)
    return F.pad(table.gather(-1, ids[:, 1:, None]).squeeze(-1), (1, 0))


def _follow(f, seed, settings):
    """Return both followers, the experience and the result of a step on it."""
    policy = tiny_llama()
    value_model = ValueModel(RewardModel(policy))
    with torch.no_grad():
        value_model.value.weight.copy_(normal(1, 32))
    x, eps, outside = _five_answers(policy), settings.clip_eps, []
    counted = x.response_mask
    mean = x.advantages[counted].mean()
    spread = ((x.advantages[counted] - mean) ** 2).sum() / 14
    white = (x.advantages - mean) / spread.sqrt()

    def of_policy(rows):
        at, logprobs = counted[rows], _logprobs(policy, x.ids[rows], x.mask[rows])
        ratio, A = (logprobs - x.logprobs[rows])[at].exp(), white[rows][at]
        outside.append(((ratio < 1 - eps) | (ratio > 1 + eps)).float().mean().item())
        least = torch.minimum(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)
        return -least.sum() / len(A)

    def of_values(rows):
        at, v = counted[rows], value_model(x.ids[rows], x.mask[rows])
        v, old, R = v[at], x.values[rows][at], x.returns[rows][at]
        near = torch.minimum(torch.maximum(v, old - eps), old + eps)
        return torch.maximum((v - R) ** 2, (near - R) ** 2).sum() / len(R) / 2

    both = _Follower(policy, of_policy), _Follower(value_model, of_values)
    generator = torch.Generator().manual_seed(seed)
    return *both, outside, f(policy, value_model, *both, x, settings, generator)


@check
def ppo_step(f):
    """Check `ppo_step(policy, value_model, …, experience, settings, generator)`."""
    policy, (first, second) = tiny_llama(), (_Recorder(), _Recorder())
    value_model = ValueModel(RewardModel(policy))
    settings = PPOSettings(epochs=3, minibatches=2)
    clipped, value_error = f(
        policy,
        value_model,
        first,
        second,
        _four_answers(policy),
        settings,
        torch.Generator().manual_seed(0),
    )
    yield (
        "3 epochs of 2 minibatches are 6 steps",
        (len(first.losses), len(second.losses)),
        (6, 6),
        "for both models",
    )
    epochs = [sorted(first.rows[i] + first.rows[i + 1]) for i in (0, 2, 4)]
    yield (
        "every answer once an epoch",
        epochs,
        [[0, 1, 2, 3]] * 3,
        "a random order, cut into minibatches",
    )
    yield (
        "in an order that changes",
        len({tuple(rows) for rows in first.rows[::2]}) > 1,
        True,
        "a new one each epoch",
    )
    # 12 tokens with mean 3 and unbiased variance (4 + 1 + 0 + 9) * 3 / 11
    white = [(worth - 3) / math.sqrt(42 / 11) for worth in (1, 2, 3, 6)]
    expected = torch.tensor([-(white[a] + white[b]) / 2 for a, b in first.rows])
    yield (
        (
            "at ratio 1 the loss is minus the mean advantage, whitened over the whole "
            "batch"
        ),
        torch.tensor(first.losses),
        expected,
        "whiten once, before the minibatches are cut",
    )
    expected = torch.tensor(
        [
            ((a + b) / 4)
            for a, b in [((1, 4, 9, 36)[i], (1, 4, 9, 36)[j]) for i, j in second.rows]
        ]
    )
    yield (
        "values 0 miss the returns by 1, 2, 3, 6",
        torch.tensor(second.losses),
        expected,
        "returns stay as they are: whitened ones would teach the value model noise",
    )
    yield ("no ratio has moved yet", clipped, 0.0, "the mean clip fraction comes first")
    # (1 + 4 + 9 + 36) / 4 / 2
    yield (
        "and the mean value loss",
        torch.tensor(value_error),
        torch.tensor(6.25),
        "then this",
    )
    settings = PPOSettings(epochs=2, minibatches=3, clip_eps=0.35)
    first, second, outside, means = _follow(f, 0, settings)
    yield (
        "five answers in three minibatches: every answer once an epoch, for both",
        [sorted(sum(x.rows[i : i + 3], [])) for x in (first, second) for i in (0, 3)],
        [[0, 1, 2, 3, 4]] * 4,
        "cut unequal minibatches rather than leave an answer out",
    )
    yield (
        "losses of a policy that has moved, and moves, clip_eps 0.35",
        torch.tensor(first.losses),
        torch.tensor(first.expected),
        "logprobs of the policy as it is, those of the experience as old ones",
    )
    yield (
        "losses of values that are not 0, clip_eps 0.35",
        torch.tensor(second.losses),
        torch.tensor(second.expected),
        "old values and returns of the experience, and settings.clip_eps",
    )
    yield (
        "the slopes of both losses, in all weights",
        [max(x.off) < 1e-3 for x in (first, second)],
        [True, True],
        "detach nothing that the models compute",
    )
    yield (
        "the mean clip fraction, and the mean value loss",
        torch.tensor(means),
        torch.tensor([sum(x) / 6 for x in (outside, second.expected)]),
        "over all steps, clip_eps 0.35",
    )
    yield (
        "two plain numbers",
        [isinstance(x, float) for x in means],
        [True, True],
        "take .item()",
    )
    again, other = (_follow(f, seed, settings)[0].rows for seed in (0, 1))
    four = _follow(f, 0, PPOSettings(minibatches=4))[0].rows
    yield (
        "five answers in four minibatches: four steps, none without an answer",
        (len(four), min(map(len, four)), sorted(sum(four, []))),
        (4, 1, [0, 1, 2, 3, 4]),
        "settings.minibatches is the number of steps, not a size",
    )
    yield (
        "the generator decides about the order: the same again, and another",
        (again == first.rows, other == first.rows),
        (True, False),
        "hand the generator to torch.randperm",
    )
