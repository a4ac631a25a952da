"""The rollout and the loop: ratio 1 at first, rewards that add up, frozen models, a planted reward that is climbed."""

from copy import deepcopy

import pytest
import torch
from test_model import small

from minillama import exact
from minillama.lm import token_logprobs
from minillama.optim import Stepper
from minillama.ppo import (
    Judges,
    PPOSettings,
    collect_experience,
    ppo_step,
    response_logprobs,
    response_values,
    summary,
    train_ppo,
)
from minillama.reward_model import RewardModel, ValueModel

SETTINGS = PPOSettings(
    iterations=12,
    batch_size=32,
    max_new_tokens=6,
    policy_lr=5e-3,
    value_lr=5e-3,
    warmup_steps=1,
    beta=0.01,
)
PROMPTS = [([3 + i % 5, 4 + i % 3][: 1 + i % 2], i % 4 == 0) for i in range(32)]


class CountsSevens(RewardModel):
    """A planted judge: the score is the number of tokens 7 in a text, less two."""

    def raw_scores(self, ids, mask=None):
        return (((ids == 7) & mask).sum(1) - 2.0).float()


def setting():
    ref_policy, judge = small(), CountsSevens(small()).eval()
    return ref_policy, ValueModel(judge), Judges(judge, judge)


def experience(policy, settings=SETTINGS):
    ref_policy, value_model, judges = setting()
    prompt_ids, is_safety = (
        [ids for ids, _ in PROMPTS],
        torch.tensor([flag for _, flag in PROMPTS]),
    )
    return collect_experience(
        policy,
        ref_policy,
        value_model,
        judges,
        prompt_ids,
        is_safety,
        settings,
        torch.Generator().manual_seed(0),
    )


def test_the_first_ratio_is_one():
    policy = small()
    batch = experience(policy)
    again = response_logprobs(policy, batch.ids, batch.mask, batch.response_mask)
    torch.testing.assert_close(again.detach(), batch.logprobs, atol=1e-4, rtol=0)
    assert summary(batch)["kl"] == pytest.approx(0, abs=1e-3)


def test_rewards_add_up_to_score_minus_penalty():
    batch = experience(small(seed=1))
    kl = ((batch.logprobs - batch.ref_logprobs) * batch.response_mask).sum(1)
    assert kl.abs().max() > 0.1
    torch.testing.assert_close(
        batch.rewards.sum(1), batch.scores - SETTINGS.beta * kl, atol=1e-4, rtol=0
    )
    assert (
        batch.scores.mean().abs() < 1e-5
        and batch.scores.std().item() == pytest.approx(1, abs=1e-3)
    )
    expected = torch.where(
        torch.tensor([flag for _, flag in PROMPTS]) | (batch.safety < 0.15),
        batch.safety,
        batch.helpfulness,
    )
    assert torch.equal(batch.selected, expected)


def test_groups_of_similar_length_change_no_number_and_no_gradient():
    policy, batch = small(), experience(small())
    _, value_model, judges = setting()
    torch.nn.init.normal_(
        value_model.value.weight, generator=torch.Generator().manual_seed(3)
    )
    assert batch.mask.sum(1).unique().numel() > 2  # there is something to group
    rectangle = (
        token_logprobs(policy(batch.ids, batch.mask), batch.ids) * batch.response_mask,
        value_model(batch.ids, batch.mask) * batch.response_mask,
    )
    grouped = (
        response_logprobs(policy, batch.ids, batch.mask, batch.response_mask),
        response_values(value_model, batch.ids, batch.mask, batch.response_mask),
    )
    for whole, parts, model in zip(
        rectangle, grouped, (policy, value_model.llama), strict=True
    ):
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
        gradients = [
            torch.autograd.grad(x.square().sum(), model.embed_tokens.weight)[0]
            for x in (whole, parts)
        ]
        torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
    safety = torch.sigmoid(judges.safety(batch.ids, batch.mask))
    torch.testing.assert_close(
        judges.probabilities(batch.ids, batch.mask)[0], safety, atol=1e-5, rtol=0
    )


def test_a_planted_reward_is_climbed_and_the_frozen_stay_frozen():
    policy = small()
    ref_policy, value_model, judges = setting()
    frozen = [p.clone() for m in (ref_policy, judges.safety) for p in m.parameters()]
    history = train_ppo(
        policy,
        ref_policy,
        value_model,
        judges,
        PROMPTS,
        SETTINGS,
        torch.Generator().manual_seed(0),
    )
    assert len(history) == 12 and history[-1]["proxy"] > history[0]["proxy"] + 1
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            frozen,
            [p for m in (ref_policy, judges.safety) for p in m.parameters()],
            strict=True,
        )
    )


def test_a_step_uses_every_answer_once_per_epoch():
    policy, batch = small(), experience(small())
    _, value_model, _ = setting()
    steppers = Stepper(policy, 0.0), Stepper(value_model, 0.0)
    seen = []
    steppers[0].step = lambda loss, batch_ids: seen.extend(batch_ids)
    ppo_step(policy, value_model, *steppers, batch, SETTINGS, torch.Generator())
    assert sorted(seen) == sorted(list(range(32)) * SETTINGS.epochs)


def test_too_few_prompts_are_refused():
    with pytest.raises(ValueError, match="prompts"):
        train_ppo(small(), *setting(), PROMPTS[:3], SETTINGS, torch.Generator())


def test_the_exact_optimum_is_reached():
    """PPO as it is, in the world where all responses are listed: 99 % of what can be gained, gained."""
    beta, generator = 0.5, torch.Generator().manual_seed(0)
    ref_policy = exact.small_policy(generator)
    policy, value_model = (
        deepcopy(ref_policy),
        ValueModel(RewardModel(ref_policy, generator=generator)),
    )
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
        policy,
        ref_policy,
        value_model,
        exact.RisesJudges(),
        [(exact.PROMPT_IDS, False)] * 256,
        settings,
        generator,
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
