"""PPO: losses by hand, each setting where it must arrive, runs that climb or break."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_model import small

from minillama import exact, lm, ppo
from minillama import reward_model as plain
from minillama.optim import Stepper, TrainingDiverged, warmup_cosine
from minillama.ppo import (
    Experience,
    Judges,
    PPOSettings,
    clip_fraction,
    collect_experience,
    policy_loss,
    ppo_step,
    summary,
    train_ppo,
    value_loss,
)
from minillama.reward_model import RewardModel, ValueModel

ONE = torch.ones(1, 1, dtype=torch.bool)
NAN, INF = math.nan, math.inf


def row(*numbers):
    """A float tensor of one row."""
    return torch.tensor([numbers], dtype=torch.float32)


def with_slope(loss, x):
    """A loss at x and its gradient there."""
    x = x.clone().requires_grad_()
    value = loss(x)
    value.backward()
    return value.detach(), x.grad


def close(got, expected, atol=1e-5, rtol=0.0):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=rtol)


# --------------------------------------------------------------------------------------
# The losses, by hand


@pytest.mark.parametrize(
    "logratio, advantage, loss, slope",
    [
        (1.0, 1.0, -1.2, 0.0),  # far enough: min(e, 1.2)
        (1.0, -1.0, math.e, math.e),  # must come back: min(-e, -1.2)
        (-1.0, 1.0, -1 / math.e, -1 / math.e),  # must come back: min(1/e, 0.8)
        (-1.0, -1.0, 0.8, 0.0),  # far enough: min(-1/e, -0.8)
        (0.1, 1.0, -math.exp(0.1), -math.exp(0.1)),  # inside 0.8 .. 1.2
        (0.0, 3.0, -3.0, -3.0),
    ],
)
def test_the_cases_of_the_clip_and_their_slopes(logratio, advantage, loss, slope):
    got = with_slope(
        lambda x: policy_loss(x, row(0.5), row(advantage), ONE), row(0.5 + logratio)
    )
    close(got[0], loss)
    close(got[1], [[slope]])


@pytest.mark.parametrize(
    "logratio, advantage, loss, slope",
    [
        (100.0, 2.0, -2.4, 0.0),  # exp(100) is inf in float32
        (85.0, 2.0, -2.4, 0.0),
        (100.0, 0.0, 0.0, 0.0),
        (-200.0, -1.0, 0.8, 0.0),
        (-200.0, 1.0, 0.0, 0.0),
        (85.0, -1.0, math.exp(85), math.exp(85)),  # not clipped, however far
    ],
)
def test_a_ratio_that_overflows_has_the_slope_of_the_clip(
    logratio, advantage, loss, slope
):
    got = with_slope(
        lambda x: policy_loss(x, row(0.0), row(advantage), ONE), row(logratio)
    )
    close(got[0], loss, rtol=1e-5)
    close(got[1], [[slope]], rtol=1e-5)


def test_the_clip_is_as_wide_as_asked():
    # ratio 3: clipped at 1.5 with A = 2
    close(policy_loss(row(math.log(3)), row(0.0), row(2.0), ONE, 0.5), -3.0)
    close(policy_loss(row(math.log(3)), row(0.0), row(2.0), ONE, INF), -6.0)


# v, old v, R, clip_eps; loss; slope: v - R, or 0 where only the clipped error counts
@pytest.mark.parametrize(
    "v, old_v, R, clip_eps, loss, slope",
    [
        (1.0, 1.0, 3.0, 0.5, 2.0, -2.0),  # (1 - 3)^2 / 2
        (3.0, 1.0, 3.0, 0.5, 1.125, 0.0),  # moved too far: (1.5 - 3)^2 / 2
        (0.0, 1.0, 3.0, 0.5, 4.5, -3.0),  # moved away: (0 - 3)^2 / 2
        (-1.0, 1.0, -3.0, 0.5, 6.125, 0.0),  # too far down: (0.5 + 3)^2 / 2
        (3.0, 1.0, 3.0, INF, 0.0, 0.0),
        (2.0, 1.0, 3.0, INF, 0.5, -1.0),
    ],
)
def test_the_cases_of_the_value_clip_and_their_slopes(
    v, old_v, R, clip_eps, loss, slope
):
    got = with_slope(lambda x: value_loss(x, row(old_v), row(R), ONE, clip_eps), row(v))
    close(got[0], loss)
    close(got[1], [[slope]])


def test_the_value_clip_is_0_2_unless_said_otherwise():
    close(value_loss(row(1.0), row(0.0), row(2.0), ONE), (0.2 - 2) ** 2 / 2)


def test_the_clip_fraction_counts_both_sides_and_not_the_bound_itself():
    def share(*ratios, **options):
        logratio = torch.tensor([ratios], dtype=torch.float64).log()
        everywhere = torch.ones(logratio.shape, dtype=torch.bool)
        return clip_fraction(logratio + 1, logratio * 0 + 1, everywhere, **options)

    assert share(0.7, 1.3, 0.85, 1.15) == 0.5
    assert share(0.7, 1.3, 0.85, 1.15, clip_eps=0.1) == 1
    assert share(1.0, 2.0, clip_eps=1.0) == 0 and share(1.0, 2.1, clip_eps=1.0) == 0.5
    assert clip_fraction(row(500.0), row(0.0), ONE) == 1  # exp overflows
    assert not clip_fraction(row(0.1).requires_grad_(), row(0.0), ONE).requires_grad


MASK = torch.tensor([[True, True, True, False], [False, True, False, False]])


@pytest.mark.parametrize("junk", [0.0, 1e30, INF, NAN])
def test_losses_are_means_over_tokens_and_padding_reaches_nothing(junk):
    def filled(*numbers):  # the four response tokens, junk elsewhere
        return torch.full(MASK.shape, junk).masked_scatter(MASK, torch.tensor(numbers))

    old, advantages = filled(0.0, 0.0, 0.0, 0.0), filled(1.0, 2.0, 3.0, -10.0)
    got = with_slope(lambda x: policy_loss(x, old, advantages, MASK), old)
    close(got[0], 1.0)  # -(1 + 2 + 3 - 10) / 4, and not -(2 - 10) / 2
    close(got[1], [[-0.25, -0.5, -0.75, 0], [0, 2.5, 0, 0]])
    returns = filled(1.0, 2.0, 3.0, 5.0)
    got = with_slope(lambda x: value_loss(x, old, returns, MASK), old)
    close(got[0], 4.875)  # (1 + 4 + 9 + 25) / 4 / 2
    close(got[1], [[-0.25, -0.5, -0.75, 0], [0, -1.25, 0, 0]])
    assert clip_fraction(filled(0.0, 0.0, 0.0, 9.0), old, MASK) == 0.25


def test_only_the_first_argument_gets_a_gradient():
    for loss in (policy_loss, value_loss):
        x = [torch.zeros(1, 2, requires_grad=True) for _ in range(3)]
        loss(*x, torch.ones(1, 2, dtype=torch.bool)).backward()
        assert [y.grad is not None for y in x] == [True, False, False]


Z, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("loss", [policy_loss, value_loss, clip_fraction])
def test_what_is_not_finite_is_refused(loss, place, value):
    names = {
        policy_loss: ("logprobs", "old_logprobs", "advantages"),
        value_loss: ("values", "old_values", "returns"),
        clip_fraction: ("logprobs", "old_logprobs"),
    }[loss]
    if place < len(names):
        x = [Z.clone() for _ in names]
        x[place][1, 2] = value
        expected = rf"{loss.__name__}: {names[place]} must .* got {value} at \[1, 2\]"
        with pytest.raises(ValueError, match=expected):
            loss(*x, M)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda f: f(Z, Z, Z, M, 0), ValueError, "clip_eps must"),
        (lambda f: f(Z, Z, Z, M, NAN), ValueError, "clip_eps must"),
        (lambda f: f(Z, Z, Z, M, "0.2"), TypeError, "clip_eps must"),
        (lambda f: f(Z, Z, Z[:, :1], M), ValueError, "(advantages|returns) must"),
        (lambda f: f(Z, Z[:1], Z, M), ValueError, "old_(logprobs|values) must"),
        (lambda f: f(Z, Z, Z, M[:, :1]), ValueError, "response_mask must"),
        (lambda f: f(Z[0], Z[0], Z[0], M[0]), ValueError, "(logprobs|values) must"),
        (lambda f: f(Z.long(), Z, Z, M), TypeError, "(logprobs|values) must"),
        (lambda f: f(Z, Z, Z, Z), TypeError, "response_mask must"),
        (lambda f: f(Z, Z, Z, ~M), ValueError, "response_mask must"),
        (lambda f: f(Z[:0], Z[:0], Z[:0], M[:0]), ValueError, "(logprobs|values) must"),
    ],
)
@pytest.mark.parametrize("loss", [policy_loss, value_loss])
def test_bad_arguments_of_the_losses_are_refused(loss, call, error, message):
    with pytest.raises(error, match=f"^{loss.__name__}: {message}"):
        call(loss)


@pytest.mark.parametrize(
    "name, bad",
    [(name, bad) for name in ("iterations", "epochs", "minibatches") for bad in (0, -1)]
    + [("batch_size", 1), ("batch_size", 3), ("minibatches", 65), ("epochs", 2.5)]
    + [("max_new_tokens", 0), ("max_new_tokens", True), ("warmup_steps", -1)]
    + [(name, bad) for name in ("policy_lr", "value_lr", "beta") for bad in (-1, INF)]
    + [(name, bad) for name in ("gamma", "lam", "threshold") for bad in (-0.1, 1.1)]
    + [("clip_eps", 0.0), ("beta", NAN), ("beta", "0.1"), ("whiten_scores", 1)],
)
def test_bad_settings_are_refused(name, bad):
    at = "minibatches" if (name, bad) == ("batch_size", 3) else name  # 4 are too many
    with pytest.raises((TypeError, ValueError), match=f"^PPOSettings: {at} must"):
        PPOSettings(**{name: bad})


# --------------------------------------------------------------------------------------
# One iteration, every number by another route

PROMPTS = [([3 + i % 5, 4 + i % 3][: 1 + i % 2], i % 4 == 0) for i in range(32)]
PROMPT_IDS = [ids for ids, _ in PROMPTS]
IS_SAFETY = torch.tensor([flag for _, flag in PROMPTS])


class CountsToken(RewardModel):
    """A planted judge: how often a token stands in a text, less two."""

    def __init__(self, token):
        super().__init__(small())
        self.token = token
        self.eval()

    def raw_scores(self, ids, mask=None):
        return (((ids == self.token) & mask).sum(1) - 2.0).float()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_judge(seed):
    """A reward model with scores of a few units."""
    judge = RewardModel(small(seed), generator=seeded(seed)).eval()
    judge.set_normalisation(0.3, 0.5)
    return judge


def random_values(seed=5):
    """A value model whose head is not zero."""
    value_model = ValueModel(random_judge(seed))
    torch.nn.init.normal_(value_model.value.weight, generator=seeded(seed))
    return value_model


SMALL_RUN = PPOSettings(
    iterations=2,
    batch_size=8,
    epochs=2,
    minibatches=3,
    max_new_tokens=5,
    policy_lr=1e-3,
    value_lr=3e-3,
    warmup_steps=2,
    beta=0.3,
    gamma=0.9,
    lam=0.7,
    clip_eps=0.1,
    threshold=0.5,
)


def an_experience(settings=SMALL_RUN, count=10, policy=None):
    return collect_experience(
        policy or small(),
        small(1),
        random_values(),
        Judges(random_judge(2), random_judge(3)),
        PROMPT_IDS[:count],
        IS_SAFETY[:count],
        settings,
        seeded(),
    )


def test_the_answers_are_those_of_generate_at_temperature_1():
    x = an_experience()
    expected = ppo.generate(small(), PROMPT_IDS[:10], 5, generator=seeded())
    for name, tensor in vars(expected).items():
        assert torch.equal(getattr(x, name), tensor)
    again = lm.response_logprobs(small(), x.ids, x.mask, x.response_mask)
    close(again.detach(), x.logprobs, 1e-4)  # so that the first ratio is 1
    assert not any(tensor.requires_grad for tensor in vars(x).values())


def test_reference_values_and_judges_are_asked_about_the_answers():
    x = an_experience()
    text = x.ids, x.mask, x.response_mask
    with torch.no_grad():
        close(x.ref_logprobs, lm.response_logprobs(small(1), *text), 1e-5)
        close(x.values, plain.response_values(random_values(), *text), 1e-5)
        close(x.safety, random_judge(2)(*text[:2]).sigmoid(), 1e-5)
        close(x.helpfulness, random_judge(3)(*text[:2]).sigmoid(), 1e-5)
    assert x.values.abs().max() > 0.1 and (x.safety - x.helpfulness).abs().min() > 1e-3


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_the_selected_score_is_whitened_or_not(threshold):
    settings = replace(SMALL_RUN, threshold=threshold)
    x = an_experience(settings)
    selected = [
        s if is_safety or s < threshold else h
        for s, h, is_safety in zip(
            x.safety.tolist(), x.helpfulness.tolist(), IS_SAFETY.tolist(), strict=False
        )
    ]
    close(x.selected, selected)
    logits = [math.log(p / (1 - p)) for p in selected]
    close(an_experience(replace(settings, whiten_scores=False)).scores, logits, 1e-4)
    mean = sum(logits) / 10
    std = math.sqrt(sum((y - mean) ** 2 for y in logits) / 9)
    close(x.scores, [(y - mean) / std for y in logits], 1e-4)


def test_rewards_and_advantages_are_the_sums_they_stand_for():
    x, settings = an_experience(), SMALL_RUN
    for i in range(10):
        at = x.response_mask[i].nonzero().flatten().tolist()
        rewards = [-0.3 * (x.logprobs[i, t] - x.ref_logprobs[i, t]) for t in at]
        rewards[-1] += x.scores[i]
        close(x.rewards[i, at], torch.stack(rewards))
        values = [*x.values[i, at], 0.0]
        errors = [
            r + settings.gamma * after - before
            for r, before, after in zip(rewards, values, values[1:], strict=False)
        ]
        decay = settings.gamma * settings.lam
        advantages = [
            sum(decay**k * error for k, error in enumerate(errors[t:]))
            for t in range(len(at))
        ]
        close(x.advantages[i, at], torch.stack(advantages), 1e-4)
        close(x.returns[i, at], x.advantages[i, at] + x.values[i, at])
    for tensor in (x.rewards, x.advantages, x.returns, x.values, x.ref_logprobs):
        assert (tensor[~x.response_mask] == 0).all()


def test_rows_are_the_answers_asked_for():
    x = an_experience()
    part = x.rows(torch.tensor([4, 1]))
    assert isinstance(part, Experience)
    for name, tensor in vars(part).items():
        assert torch.equal(tensor, getattr(x, name)[[4, 1]])


def test_the_judges_give_two_sigmoids_without_gradient():
    judges = Judges(safety=CountsToken(7), helpfulness=CountsToken(9))
    ids = torch.tensor([[7, 7, 7, 9], [9, 9, 5, 0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    safety, helpfulness = judges.probabilities(ids, mask)
    close(safety, row(1, -2)[0].sigmoid())
    close(helpfulness, row(-1, 0)[0].sigmoid())
    random = Judges(random_judge(2), random_judge(3)).probabilities(ids, mask)
    assert not any(p.requires_grad for p in random)


def test_a_summary_is_four_means():
    half = torch.tensor([[0.0, -1.0, -2.0], [0.0, 0.0, -3.0]])
    mask = torch.tensor([[False, True, True], [False, False, True]])
    x = Experience(
        ids=torch.ones(2, 3, dtype=torch.int64),
        mask=torch.ones(2, 3, dtype=torch.bool),
        response_mask=mask,
        logprobs=half.masked_fill(~mask, 50.0),
        ref_logprobs=2 * half,
        selected=torch.tensor([0.5, 0.9]),
        **dict.fromkeys(("values", "rewards", "advantages", "returns"), half),
        **dict.fromkeys(("safety", "helpfulness", "scores"), torch.zeros(2)),
    )
    assert summary(x) == pytest.approx(
        {
            "proxy": math.log(9) / 2,  # (log 1 + log 9) / 2
            "kl": 3.0,  # (1 + 2 and 3) / 2
            "length": 1.5,
            "entropy": 2.0,  # (1 + 2 + 3) / 3
        }
    )


def test_groups_of_similar_length_change_no_number_and_no_gradient():
    policy, x = small(), an_experience(replace(SMALL_RUN, max_new_tokens=6), 32)
    value_model, judges = random_values(), Judges(random_judge(2), random_judge(3))
    assert x.mask.sum(1).unique().numel() > 2  # there is something to group
    text = x.ids, x.mask, x.response_mask
    for whole, parts, model in (
        (lm.response_logprobs, ppo.response_logprobs, policy),
        (plain.response_values, ppo.response_values, value_model),
    ):
        whole, parts = whole(model, *text), parts(model, *text)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
        weight = getattr(model, "llama", model).embed_tokens.weight
        gradients = [
            torch.autograd.grad(y.square().sum(), weight)[0] for y in (whole, parts)
        ]
        torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
    safety = torch.sigmoid(judges.safety(x.ids, x.mask))
    close(judges.probabilities(x.ids, x.mask)[0], safety.detach())


# --------------------------------------------------------------------------------------
# The gradient steps


class Recorder:
    """A `Stepper` that takes no step: it keeps the losses and whose they are."""

    def __init__(self):
        self.losses, self.rows = [], []

    def step(self, loss, batch_ids):
        assert loss.requires_grad
        self.losses.append(loss.item())
        self.rows.append(batch_ids)


def recorded_step(x, settings, seed=0):
    """Recorders of a step by a policy that has moved, and what the step returned."""
    recorders = Recorder(), Recorder()
    means = ppo_step(small(6), random_values(7), *recorders, x, settings, seeded(seed))
    return *recorders, means


def test_every_epoch_cuts_all_answers_into_even_minibatches():
    policy, values, _ = recorded_step(an_experience(), SMALL_RUN)
    assert [len(rows) for rows in policy.rows] == [4, 3, 3] * 2
    assert values.rows == policy.rows
    generator = seeded()
    for epoch in (policy.rows[:3], policy.rows[3:]):
        assert sum(epoch, []) == torch.randperm(10, generator=generator).tolist()


def test_the_losses_of_a_step_by_another_route():
    x, settings = an_experience(), SMALL_RUN
    policy, values, means = recorded_step(x, settings)
    at, text = x.response_mask, (x.ids, x.mask, x.response_mask)
    with torch.no_grad():
        new_logprobs = lm.response_logprobs(small(6), *text)
        new_values = plain.response_values(random_values(7), *text)
    white = (x.advantages - x.advantages[at].mean()) / x.advantages[at].std()
    shares = []
    for rows, loss, value_error in zip(
        policy.rows, policy.losses, values.losses, strict=True
    ):
        gains, errors, outside = [], [], []
        for i in rows:
            for t in at[i].nonzero().flatten():
                ratio = math.exp(new_logprobs[i, t] - x.logprobs[i, t])
                outside.append(not 0.9 <= ratio <= 1.1)
                A, R = white[i, t].item(), x.returns[i, t].item()
                gains.append(min(ratio * A, min(max(ratio, 0.9), 1.1) * A))
                v, old_v = new_values[i, t].item(), x.values[i, t].item()
                moved = old_v + min(max(v - old_v, -0.1), 0.1)
                errors.append(max((v - R) ** 2, (moved - R) ** 2) / 2)
        close(loss, -sum(gains) / len(gains), 1e-3, 1e-3)
        close(value_error, sum(errors) / len(errors), 1e-3, 1e-3)
        shares.append(sum(outside) / len(outside))
    close(means, [sum(shares) / 6, sum(values.losses) / 6])
    assert 0 < means[0] < 1


def test_a_step_moves_both_models_and_leaves_the_experience():
    policy, value_model, x = small(), random_values(), an_experience()
    before = deepcopy((policy, value_model, x))
    steppers = Stepper(policy, 1e-3), Stepper(value_model, 1e-3)
    ppo_step(policy, value_model, *steppers, x, SMALL_RUN, seeded())
    for model, old in zip((policy, value_model), before, strict=False):
        pairs = zip(model.parameters(), old.parameters(), strict=True)
        assert all((new != old).any() for new, old in pairs)
    for name, tensor in vars(x).items():
        assert torch.equal(tensor, getattr(before[2], name))


def test_more_minibatches_than_answers_are_refused():
    x = an_experience(count=3)
    _, _, means = recorded_step(x, replace(SMALL_RUN, minibatches=3))
    assert means[1] > 0
    expected = (
        "^ppo_step: experience must have at least settings.minibatches = 4 answers, "
        "got 3$"
    )
    with pytest.raises(ValueError, match=expected):
        recorded_step(x, replace(SMALL_RUN, minibatches=4))


# --------------------------------------------------------------------------------------
# The loop


def run(settings=SMALL_RUN, seed=0, prompts=PROMPTS, **options):
    """The policy, the value model and the history of a short run."""
    policy, value_model = small(), random_values()
    judges = Judges(random_judge(2), random_judge(3))
    history = train_ppo(
        *(policy, small(1), value_model, judges),
        *(prompts, settings, seeded(seed)),
        **options,
    )
    return policy, value_model, history


def equal_weights(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def steppers(monkeypatch):
    """The steppers that `train_ppo` will make: the policy's first, then the values'."""
    made = []

    class Kept(Stepper):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(ppo, "Stepper", Kept)
    return made


@pytest.fixture
def collected(monkeypatch):
    """The arguments of every `collect_experience` of `train_ppo`, and what it gave."""
    calls, right = [], ppo.collect_experience

    def keep(*args):
        calls.append((args, right(*args)))
        return calls[-1][1]

    monkeypatch.setattr(ppo, "collect_experience", keep)
    return calls


def test_rates_and_schedule_reach_both_models_and_end_with_the_run(steppers):
    policy, value_model, _ = run()
    assert [s.model for s in steppers] == [policy, value_model]
    assert [s.lr for s in steppers] == [1e-3, 3e-3]
    for stepper in steppers:
        assert stepper.steps == 12  # 2 iterations of 2 epochs of 3 minibatches
        shares = [stepper.schedule(step) for step in range(13)]
        assert shares == [warmup_cosine(step, 12, 2) for step in range(13)]
        assert shares[:2] == [0.5, 1.0] and shares[12] == 0.0


def test_each_iteration_draws_other_prompts_with_their_flags(collected):
    ids = [[3 + i // 8, 4 + i % 8] for i in range(32)]  # all different
    prompts = [(x, i % 3 == 0) for i, x in enumerate(ids)]
    seen = []
    run(prompts=prompts, judge_gold=lambda batch, x: seen.append((batch, x)) or {})
    assert len(collected) == 2
    for (args, experience), (batch, shown) in zip(collected, seen, strict=True):
        assert args[4] == [ids[i] for i in batch] and shown is experience
        assert args[5].tolist() == [i % 3 == 0 for i in batch]
        assert len(set(batch)) == 8 and args[6] is SMALL_RUN
    assert set(seen[0][0]) != set(seen[1][0])
    assert seen[0][0] == torch.randperm(32, generator=seeded())[:8].tolist()


def test_the_models_have_their_parts_and_the_frozen_stay_frozen(collected):
    policy, value_model, history = run()
    (args, experience), (_, second) = collected
    assert args[0] is policy and args[2] is value_model
    assert equal_weights(args[1], small(1))
    assert equal_weights(args[3].safety, random_judge(2))
    assert equal_weights(args[3].helpfulness, random_judge(3))
    assert not equal_weights(policy, small())
    assert not equal_weights(value_model, random_values())
    first = summary(experience)
    assert {name: history[0][name] for name in first} == first
    assert {name: history[1][name] for name in first} == summary(second)


def test_the_history_has_the_means_of_each_step(monkeypatch):
    means = iter([(0.25, 3.0), (0.5, 2.0)])
    monkeypatch.setattr(ppo, "ppo_step", lambda *args: next(means))
    _, _, history = run(judge_gold=lambda batch, x: {"gold": len(batch)})
    columns = ["proxy", "kl", "length", "entropy", "clip_fraction", "value_loss"]
    assert [list(row) for row in history] == [[*columns, "gold"]] * 2
    assert [row["clip_fraction"] for row in history] == [0.25, 0.5]
    assert [row["value_loss"] for row in history] == [3.0, 2.0]
    assert [row["gold"] for row in history] == [8, 8]


def test_a_run_is_its_seed_and_gold_judges_change_nothing(capsys):
    policy, value_model, history = run()
    assert capsys.readouterr().err == ""
    twin, values, same = run(judge_gold=lambda batch, x: {"gold": 1}, desc="climbing")
    assert "climbing" in capsys.readouterr().err
    assert equal_weights(policy, twin) and equal_weights(value_model, values)
    assert [row | {"gold": 1} for row in history] == same
    assert not equal_weights(policy, run(seed=1)[0])


def test_a_value_model_without_a_learning_rate_stays(steppers):
    settings = replace(SMALL_RUN, value_lr=0.0)
    policy, value_model, _ = run(settings)
    assert equal_weights(value_model, random_values())
    assert not equal_weights(policy, small())


def test_a_planted_reward_is_climbed():
    judge = CountsToken(7)
    settings = PPOSettings(
        iterations=12,
        batch_size=32,
        max_new_tokens=6,
        policy_lr=5e-3,
        value_lr=5e-3,
        warmup_steps=1,
        beta=0.01,
    )
    history = train_ppo(
        *(small(), small(), ValueModel(judge), Judges(judge, judge)),
        *(PROMPTS, settings, seeded()),
    )
    assert len(history) == 12 and history[-1]["proxy"] > history[0]["proxy"] + 1


# --------------------------------------------------------------------------------------
# Runs that break

TWO_STEPS = replace(SMALL_RUN, epochs=1, minibatches=2)


def run_with_rate(monkeypatch, which, iterations, step, rate):
    """A run that trains one model, with rate 1e-3 and another rate at one step."""
    monkeypatch.setattr(
        ppo, "warmup_cosine", lambda now, *_: rate if now == step else 1e-3
    )
    rates = {"policy_lr": 0.0, "value_lr": 0.0} | {which: 1.0}
    return run(replace(TWO_STEPS, iterations=iterations, **rates))


# With 1e30 weights are finite and what they give is not; with 1e45 they are inf, which
# the stepper sees before it counts the step.
@pytest.mark.parametrize(
    "which, rate, message",
    [
        ("policy_lr", 1e30, r"^step 2: logprobs .* \[0, 1, 2, 3, 4, 5, 6, 7\]"),
        ("policy_lr", 1e45, "^step 1: weights"),
        ("value_lr", 1e45, "^step 1: weights"),
    ],
)
@pytest.mark.parametrize("iterations", [1, 2])
def test_weights_that_the_last_update_of_an_iteration_breaks(
    monkeypatch, which, rate, message, iterations
):
    """Step 1 ends the first of one or of two iterations: there may be no next loss."""
    with pytest.raises(TrainingDiverged, match=message) as caught:
        run_with_rate(monkeypatch, which, iterations, 1, rate)
    good = run_with_rate(monkeypatch, which, 1, 1, 0.0)  # as it was before that update
    index = ["policy_lr", "value_lr"].index(which)
    assert equal_weights(caught.value.model, good[index])
    assert not equal_weights(good[index], (small(), random_values())[index])


@pytest.mark.parametrize("which, rate", [("policy_lr", 1e30), ("value_lr", 1e20)])
def test_weights_that_an_earlier_update_breaks(monkeypatch, which, rate):
    """The policy's next logprobs are NaN, the value model's next loss is inf."""
    with pytest.raises(TrainingDiverged) as caught:
        run_with_rate(monkeypatch, which, 1, 0, rate)
    index = ["policy_lr", "value_lr"].index(which)
    assert equal_weights(caught.value.model, (small(), random_values())[index])


def test_outputs_of_a_value_model_that_overflow():
    """Values of 1e38 * 32 are inf although every weight is finite."""
    policy, value_model, x = small(), random_values(), an_experience()
    steppers = Stepper(policy, 0.0), Stepper(value_model, 0.0)
    ppo.require_sound(*steppers, x)
    torch.nn.init.constant_(value_model.value.weight, 3e38)
    message = r"values .* \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]"
    with pytest.raises(TrainingDiverged, match=message) as caught:
        ppo.require_sound(*steppers, x)
    assert caught.value.model is value_model
    assert equal_weights(value_model, random_values())


def test_a_model_that_comes_broken_did_not_diverge():
    policy = small()
    torch.nn.init.constant_(policy.norm.weight, NAN)
    with pytest.raises(FloatingPointError) as caught:
        an_experience(policy=policy)
    assert not isinstance(caught.value, TrainingDiverged)
    with pytest.raises(FloatingPointError) as caught:
        train_ppo(
            *(policy, small(1), random_values()),
            *(Judges(random_judge(2), random_judge(3)), PROMPTS, SMALL_RUN, seeded()),
        )
    assert not isinstance(caught.value, TrainingDiverged)


def test_an_error_of_the_gold_judges_stays_itself():
    def judge_gold(batch, experience):
        raise RuntimeError("no gold today")

    with pytest.raises(RuntimeError, match="no gold today"):
        run(judge_gold=judge_gold)


# --------------------------------------------------------------------------------------
# What is refused


def refused(error, message, **changes):
    """Call `train_ppo` with some arguments changed, which it must refuse."""
    policy = small()
    given = {
        "policy": policy,
        "ref_policy": small(1),
        "value_model": random_values(),
        "judges": Judges(random_judge(2), random_judge(3)),
        "prompts": PROMPTS,
        "settings": SMALL_RUN,
        "generator": seeded(),
    }
    with pytest.raises(error, match=message):
        train_ppo(**(given | changes))


WANTED = (
    r"^train_ppo: prompts must be pairs \(ids, is_safety\) of at most max_seq_len - "
    r"max_new_tokens = 27 ids below 50, and True or False, got "
)


@pytest.mark.parametrize(
    "prompt, error, got",
    [
        (([1, 2],), TypeError, r"\(\[1, 2\],\) at \[9\]$"),
        ([1, 2], TypeError, r"\[1, 2\] at \[9\]$"),
        (([1, 2], 1), TypeError, r"\(\[1, 2\], 1\) at \[9\]$"),
        ((True, [1, 2]), TypeError, r"\(True, \[1, 2\]\) at \[9\]$"),
        (([1, 2], True, True), TypeError, r"\(\[1, 2\], True, True\) at \[9\]$"),
        ((torch.tensor([1]), True), TypeError, r"\(tensor\(\[1\]\), True\) at \[9\]$"),
        (([1, 2.5], True), TypeError, r"\(\[1, 2.5\], True\) at \[9\]$"),
        (([], True), ValueError, r"0 ids at \[9\]$"),
        (([1] * 28, True), ValueError, r"28 ids at \[9\]$"),
        (([1, 50], True), IndexError, r"\(\[1, 50\], True\) at \[9\]$"),
        (([-1, 2], True), IndexError, r"\(\[-1, 2\], True\) at \[9\]$"),
    ],
)
def test_prompts_that_would_stop_a_run_in_the_middle(steppers, prompt, error, got):
    prompts = [*PROMPTS[:9], prompt, *PROMPTS[10:]]
    refused(error, WANTED + got, prompts=prompts)
    assert not steppers  # refused before anything was built
    run(replace(SMALL_RUN, iterations=1), prompts=[([0] * 27, True), ([49], False)] * 4)


def test_too_few_prompts_are_refused(steppers):
    few = "^train_ppo: prompts must be at least settings.batch_size = 8, got 7$"
    refused(ValueError, few, prompts=PROMPTS[:7])
    refused(ValueError, "^train_ppo: prompts must", prompts=[])
    refused(TypeError, "^train_ppo: prompts must", prompts=PROMPT_IDS[0])
    assert not steppers


def test_a_policy_that_is_its_own_reference_is_refused(steppers):
    policy = small()
    message = "^train_ppo: ref_policy must"
    refused(ValueError, message, policy=policy, ref_policy=policy)
    refused(TypeError, "^train_ppo: value_model must", value_model=random_judge(2))
    refused(TypeError, "^train_ppo: settings must", settings={})
    refused(TypeError, "^train_ppo: generator must", generator=None)
    refused(TypeError, "^train_ppo: judge_gold must", judge_gold={})
    assert not steppers


@pytest.mark.parametrize("name", ["safety", "helpfulness"])
def test_judges_in_train_mode_are_refused(name):
    judges = {"safety": random_judge(2), "helpfulness": random_judge(3)}
    judges[name].train()
    message = f"^Judges: {name} must be in eval mode, got train mode$"
    with pytest.raises(ValueError, match=message):
        Judges(**judges)
    with pytest.raises(TypeError, match=f"^Judges: {name} must"):
        Judges(**(judges | {name: small()}))


@pytest.mark.parametrize(
    "prompt_ids, is_safety, error, message",
    [
        ([[1], [2]], [True, False], TypeError, "is_safety must be"),
        ([[1], [2]], torch.tensor([1, 0]), TypeError, "is_safety must be"),
        ([[1], [2]], torch.tensor([True]), ValueError, "is_safety must be"),
        ([[1], []], torch.tensor([True, False]), ValueError, "prompt_ids must be"),
        ([[1], [50]], torch.tensor([True, False]), IndexError, "prompt_ids must be"),
        ([], torch.tensor([True]), ValueError, "prompt_ids must be"),
        (torch.ones(2, 1).long(), IS_SAFETY[:2], TypeError, "prompt_ids must be"),
    ],
)
def test_bad_prompts_of_an_experience_are_refused(
    prompt_ids, is_safety, error, message
):
    with pytest.raises(error, match=f"^collect_experience: {message}"):
        collect_experience(
            *(small(), small(1), random_values()),
            Judges(random_judge(2), random_judge(3)),
            *(prompt_ids, is_safety, SMALL_RUN, seeded()),
        )


def test_tensors_that_do_not_belong_together_are_no_experience():
    x = an_experience()
    with pytest.raises(ValueError, match="^Experience: returns must"):
        replace(x, returns=x.returns[:, :1])
    with pytest.raises(ValueError, match="^Experience: scores must"):
        replace(x, scores=x.scores[:, None])


# --------------------------------------------------------------------------------------


def test_the_exact_optimum_is_reached():
    """Where all responses are listed, PPO as it is gains 99 % of what can be gained."""
    beta, generator = 0.5, seeded()
    ref_policy = exact.small_policy(generator)
    policy = deepcopy(ref_policy)
    value_model = ValueModel(RewardModel(ref_policy, generator=generator))
    settings = PPOSettings(
        iterations=120,
        batch_size=256,
        epochs=2,
        minibatches=2,
        max_new_tokens=exact.MAX_NEW_TOKENS,
        policy_lr=5e-3,
        value_lr=5e-3,
        beta=beta,
        whiten_scores=False,
    )
    train_ppo(
        *(policy, ref_policy, value_model, exact.RisesJudges()),
        *([(exact.PROMPT_IDS, False)] * 256, settings, generator),
    )
    responses = exact.enumerate_responses(
        exact.PROMPT_IDS, exact.VOCAB_SIZE, exact.MAX_NEW_TOKENS
    )
    scores = exact.rises(responses.ids, responses.mask)
    with torch.no_grad():
        ref_logp, logp = (
            exact.sequence_logprobs(model, responses) for model in (ref_policy, policy)
        )
    start, reached = (
        exact.objective(x, ref_logp, scores, beta) for x in (ref_logp, logp)
    )
    _, height = exact.optimal_policy(ref_logp, scores, beta)
    assert height > start + 0.5 and (reached - start) / (height - start) >= 0.99
