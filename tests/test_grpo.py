"""Group relative policy optimisation: by hand, by enumeration, against PPO's parts."""

import copy
import itertools
import math

import pytest
import torch

from minillama import exact, ppo
from minillama.grpo import (
    GRPOSettings,
    collect_groups,
    group_advantages,
    group_summary,
    grouped,
    grpo_loss,
    grpo_step,
    kl_loss,
    live_groups,
    log_ratios,
    token_weights,
    train_grpo,
)
from minillama.kl import kl_estimate
from minillama.optim import Stepper

SIX = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])  # two groups of three
BY_HAND = [-2, -1, 3, -1, -1, 2]  # less their means, 3 and 1
# three tokens and one, the last two of row 2 are padding
MASK = torch.tensor([[True, True, True], [True, False, False]])
RESPONSES = exact.enumerate_responses(exact.PROMPT_IDS, 6, 3)
TINY = GRPOSettings(
    iterations=2,
    batch_size=8,
    group_size=4,
    minibatches=2,
    max_new_tokens=exact.MAX_NEW_TOKENS,
    whiten_scores=False,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close(got, expected, **how):
    expected = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, expected, **how)


def slope(f, at):
    at = at.clone().requires_grad_()
    return torch.autograd.grad(f(at), at)[0]


# ------------------------------------------------------------------------- advantages


def test_groups_are_consecutive():
    assert grouped(SIX, 3).tolist() == [[1, 2, 6], [0, 0, 3]]
    assert grouped(SIX, 2).tolist() == [[1, 2], [6, 0], [0, 3]]
    assert grouped(SIX, 2).dtype == torch.float64


def test_advantages_by_hand():
    # the means of the others are 4, 3.5, 1.5 and 1.5, 1.5, 0
    close(group_advantages(SIX, 3, scale="none"), BY_HAND)
    others = group_advantages(SIX, 3, baseline="others", scale="none")
    close(others, [-3, -1.5, 4.5, -1.5, -1.5, 3])
    # variances (4 + 1 + 9) / 2 = 7 and (1 + 1 + 4) / 2 = 3
    roots = [math.sqrt(7)] * 3 + [math.sqrt(3)] * 3
    expected = [a / (root + 1e-4) for a, root in zip(BY_HAND, roots, strict=True)]
    close(group_advantages(SIX, 3), expected)
    both = group_advantages(SIX, 3, baseline="others")
    close(both, [1.5 * a for a in expected])


def test_advantages_forget_offset_and_scale():
    close(group_advantages(SIX + 7, 3), group_advantages(SIX, 3))
    close(group_advantages(10 * SIX, 3), group_advantages(SIX, 3), atol=1e-3, rtol=0)
    plain = group_advantages(SIX, 3, scale="none")
    close(group_advantages(10 * SIX, 3, scale="none"), 10 * plain)


def test_advantages_are_constants_of_the_scores_dtype():
    scores = SIX.double().requires_grad_()
    advantages = group_advantages(scores, 3)
    assert advantages.dtype == torch.float64 and not advantages.requires_grad
    assert group_advantages(SIX, 3).dtype == torch.float32
    tiny = group_advantages(torch.tensor([1e4, 1e4 + 1]), 2, scale="none")
    assert tiny.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("baseline", ["group", "others"])
def test_a_dead_group_gets_zeros(baseline, scale):
    scores = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.1, 0.7])
    advantages = group_advantages(scores, 3, baseline, scale)
    assert advantages[:3].tolist() == [0, 0, 0] and (advantages[3:] != 0).all()


def test_live_groups():
    scores = torch.tensor([0.1, 0.1, 0.5, 0.5001, 2.0, 3.0])
    assert live_groups(scores, 2).tolist() == [False] * 2 + [True] * 4
    assert live_groups(scores, 2, 1e-3).tolist() == [False] * 4 + [True] * 2
    assert live_groups(scores, 2, 1.0).tolist() == [False] * 6
    assert live_groups(scores, 3).tolist() == [True] * 6


def expected_gradient(p, scores, size, **how):
    """Of the logits of a bandit, over all groups of answers: a loop over tuples."""
    slopes = torch.eye(len(p), dtype=p.dtype) - p
    total = torch.zeros_like(p)
    for group in itertools.product(range(len(p)), repeat=size):
        drawn = list(group)
        A = group_advantages(scores[drawn], size, **how)
        total += p[drawn].prod() * (A[:, None] * slopes[drawn]).mean(0)
    return total


@pytest.mark.parametrize("size", [2, 3, 4])
def test_expected_gradients_by_enumeration(size):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    scores = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    truth = p * (scores - p @ scores)
    plain = expected_gradient(p, scores, size, scale="none")
    close(plain, (size - 1) / size * truth)
    close(expected_gradient(p, scores, size, baseline="others", scale="none"), truth)
    ratio = expected_gradient(p, scores, size) / truth
    assert ratio.max() / ratio.min() > 1.05  # not proportional


# ---------------------------------------------------------------------------- weights


def test_token_weights_by_hand():
    close(token_weights(MASK), [[1 / 6], [1 / 2]])  # 2 answers of 3 tokens and of 1
    close(token_weights(MASK, "batch"), [[1 / 4], [1 / 4]])
    close(token_weights(MASK, "constant", 5), [[1 / 10], [1 / 10]])
    for average in ("answer", "batch"):
        close((token_weights(MASK, average) * MASK).sum(), 1.0)


# ------------------------------------------------------------------------------- loss


def test_the_loss_is_zero_and_its_gradient_is_not():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 9.0, 9.0]])
    A = torch.tensor([-1.0, 1.0])
    assert grpo_loss(logprobs, logprobs, A, MASK).item() == 0
    gradient = slope(lambda x: grpo_loss(x, logprobs, A, MASK), logprobs)
    close(gradient, [[1 / 6] * 3, [-1 / 2, 0, 0]])  # -A * weight
    # all tokens alike: -(3 * -1 + 1) / 4
    close(grpo_loss(logprobs, logprobs, A, MASK, average="batch"), 0.5)


def test_the_loss_by_hand():
    """Ratios 1.5, 1, 0.5 of a good answer, 0.5 of a bad one."""
    logprobs = torch.tensor([[1.5, 1.0, 0.5], [0.5, 9.0, 9.0]]).log()
    A, old = torch.tensor([1.0, -2.0]), torch.zeros(2, 3)
    # clipped: 1.2 + 1 + 0.5 = 2.7, and min(-1, -1.6) = -1.6
    close(grpo_loss(logprobs, old, A, MASK), -(2.7 / 3 - 1.6) / 2)
    close(grpo_loss(logprobs, old, A, MASK, average="batch"), -(2.7 - 1.6) / 4)
    how = {"average": "constant", "length": 10}
    close(grpo_loss(logprobs, old, A, MASK, **how), -(2.7 - 1.6) / 20)
    close(grpo_loss(logprobs, old, A, MASK, clip_eps=1.0), -(3.0 / 3 - 1.0) / 2)
    # the geometric mean of 1.5, 1, 0.5 is 0.75 ^ (1 / 3) = 0.9086
    root = 0.75 ** (1 / 3)
    close(grpo_loss(logprobs, old, A, MASK, ratio="sequence"), -(root - 1.6) / 2)
    clipped = grpo_loss(logprobs, old, A, MASK, 0.05, ratio="sequence")
    close(clipped, -(root - 2 * 0.95) / 2)  # a good answer is not clipped below


def test_all_tokens_alike_is_the_loss_of_ppo():
    logprobs, old = torch.randn(2, 5, 7, generator=generator())
    A, mask = torch.randn(5, generator=generator(1)), torch.ones(5, 7).bool().triu()
    expected = ppo.policy_loss(logprobs, old, A[:, None].expand(5, 7), mask)
    close(grpo_loss(logprobs, old, A, mask, average="batch"), expected)


def test_only_logprobs_get_a_gradient_and_padding_none():
    logprobs = torch.where(MASK, -1.0, math.nan)
    A, old = torch.tensor([1.0, 2.0]), torch.full((2, 3), -1.0)
    for ratio in ("token", "sequence"):
        gradient = slope(
            lambda x, r=ratio: grpo_loss(x, old, A, MASK, 0.2, r), logprobs
        )
        close(gradient, [[-1 / 6] * 3, [-1, 0, 0]])
        constant = slope(
            lambda x, r=ratio: (
                grpo_loss(logprobs + 0 * x, x, A, MASK, 0.2, r) + 0 * x.sum()
            ),
            old,
        )
        assert (constant[MASK] == 0).all()


def test_log_ratios_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -6.0], [-4.0, math.nan, math.nan]])
    old = torch.tensor([[-2.0, -2.0, -2.0], [-3.0, 0.0, 0.0]])
    close(log_ratios(logprobs, old, MASK), [[1, 0, -4], [-1, 0, 0]])
    close(log_ratios(logprobs, old, MASK, "sequence"), [[-1, -1, -1], [-1, 0, 0]])


def test_kl_loss_by_hand():
    logprobs = torch.tensor([[2.0, 1.0, 0.5], [4.0, 9.0, 9.0]]).log()
    zero = torch.zeros(2, 3)
    k3 = [1 / x - 1 + math.log(x) for x in (2.0, 1.0, 0.5, 4.0)]
    close(kl_loss(logprobs, zero, MASK), sum(k3[:3]) / 6 + k3[3] / 2)
    close(kl_loss(logprobs, zero, MASK, "batch"), sum(k3) / 4)
    close(kl_loss(logprobs, zero, MASK, "constant", 10), sum(k3) / 20)
    gradient = slope(lambda x: kl_loss(x, zero, MASK, "batch"), logprobs)
    close(gradient, [[1 / 8, 0, -1 / 4], [3 / 16, 0, 0]])  # (1 - 1 / ratio) / 4


def test_the_gradient_of_k3_is_that_of_the_other_direction():
    """One token of six: the expectation over own draws, against autograd."""
    z, ref = torch.randn(2, 6, generator=generator(), dtype=torch.float64)
    ref = ref.log_softmax(0)
    p = z.softmax(0)

    def expected_loss(z):  # each draw a row of one token, as often as it comes
        logprobs, often = z.log_softmax(0), 6 * p
        k3 = kl_estimate(logprobs[:, None], ref[:, None], "k3")[:, 0]
        return (often * k3).mean()

    def reverse(z):
        return (ref.exp() * (ref - z.log_softmax(0))).sum()

    close(slope(expected_loss, z), slope(reverse, z))
    # and kl_loss is that k3, token by token
    one = torch.ones(6, 1, dtype=torch.bool)
    mean = kl_loss(z.log_softmax(0)[:, None], ref[:, None], one)
    close(mean, kl_estimate(z.log_softmax(0)[:, None], ref[:, None], "k3").mean())


# ------------------------------------------------------------------------------- loop


def small():
    ref = exact.small_policy(generator())
    return copy.deepcopy(ref), ref


def collected(settings=TINY, policy=None, ref=None):
    first, second = small()
    asked = [exact.PROMPT_IDS] * 2
    return collect_groups(
        policy or first,
        ref or second,
        exact.RisesJudges(),
        asked,
        torch.zeros(2, dtype=torch.bool),
        settings,
        generator(1),
    )


def test_what_is_collected():
    groups = collected()
    assert groups.ids.shape == groups.ref_logprobs.shape and len(groups.ids) == 8
    rises = exact.rises(groups.ids, groups.mask)
    close(groups.scores, rises, atol=1e-4, rtol=0)
    close(groups.selected, rises.sigmoid())
    assert torch.equal(groups.rewards, groups.scores)  # the KL is in the loss
    rows = groups.rows(torch.tensor([2, 5]))
    assert torch.equal(rows.ids, groups.ids[[2, 5]])
    assert torch.equal(rows.rewards, groups.rewards[[2, 5]])


def test_the_kl_as_a_part_of_the_reward():
    other = exact.small_policy(generator(5))
    settings = GRPOSettings(**{**vars(TINY), "kl": "reward", "beta": 0.5})
    groups = collected(settings, policy=other)
    paid = 0.5 * kl_estimate(groups.logprobs, groups.ref_logprobs).sum(1)
    assert paid.abs().max() > 0.1
    close(groups.rewards, groups.scores - paid)


def test_scores_are_whitened_over_all_groups():
    groups = collected(GRPOSettings(**{**vars(TINY), "whiten_scores": True}))
    close(groups.scores.mean(), 0.0, atol=1e-5, rtol=0)
    close(groups.scores.std(), 1.0, atol=1e-3, rtol=0)


def test_unsafe_prompts_are_judged_by_safety():
    class Half:
        def probabilities(self, ids, mask):
            return torch.full((len(ids),), 0.9), torch.full((len(ids),), 0.6)

    policy, ref = small()
    asked, unsafe = [exact.PROMPT_IDS] * 2, torch.tensor([True, False])
    groups = collect_groups(policy, ref, Half(), asked, unsafe, TINY, generator())
    close(groups.selected, [0.9] * 4 + [0.6] * 4)


def test_a_step_is_the_gradient_of_the_loss():
    """One minibatch, one epoch: the step's gradient is that of both terms."""
    settings = GRPOSettings(**{**vars(TINY), "minibatches": 1, "lr": 0.0, "beta": 0.3})
    policy, ref = exact.small_policy(generator(5)), small()[1]
    groups = collected(settings, policy, ref)
    stepper = Stepper(policy, 0.0, max_norm=1e9)
    assert grpo_step(policy, stepper, groups, settings, generator()) == 0
    got = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    logprobs = ppo.response_logprobs(
        policy, groups.ids, groups.mask, groups.response_mask
    )
    A = group_advantages(groups.rewards, 4)
    loss = grpo_loss(logprobs, groups.logprobs, A, groups.response_mask)
    away = kl_loss(logprobs, groups.ref_logprobs, groups.response_mask)
    (loss + 0.3 * away).backward()
    for a, p in zip(got, policy.parameters(), strict=True):
        close(a, p.grad, atol=1e-6, rtol=1e-4)


def test_the_kl_term_is_in_the_loss_only_if_it_is_said():
    other = exact.small_policy(generator(5))
    norms = []
    for kl in ("loss", "reward"):
        dead = collected(policy=other)
        dead.rewards = torch.zeros(8)
        settings = GRPOSettings(**{**vars(TINY), "kl": kl, "beta": 1.0})
        stepper = Stepper(other, 0.0)
        grpo_step(other, stepper, dead, settings, generator())
        norms.append(sum(p.grad.square().sum().item() for p in other.parameters()))
    assert norms[0] > 1e-4 and norms[1] == 0


def test_dead_groups_are_dropped():
    policy, _ = small()
    groups = collected(policy=policy)
    groups.rewards = torch.tensor([1.0, 1, 1, 1, 0, 1, 1, 1])
    settings = GRPOSettings(**{**vars(TINY), "drop_dead": True, "minibatches": 1})
    seen = []

    class Watch(Stepper):
        def step(self, loss, batch_ids):
            seen.append(batch_ids)
            return super().step(loss, batch_ids)

    grpo_step(policy, Watch(policy, 0.0), groups, settings, generator())
    assert sorted(seen[0]) == [4, 5, 6, 7]  # the second group
    groups.rewards = torch.ones(8)
    assert grpo_step(policy, Watch(policy, 0.0), groups, settings, generator()) == 0
    assert len(seen) == 1
    assert group_summary(groups, 4)["dead"] == 1


def test_epochs_and_minibatches_are_counted():
    policy, _ = small()
    groups = collected(policy=policy)
    settings = GRPOSettings(**{**vars(TINY), "epochs": 3, "minibatches": 2, "lr": 0.05})
    stepper = Stepper(policy, 0.05)
    fraction = grpo_step(policy, stepper, groups, settings, generator())
    assert stepper.steps == 6 and 0 < fraction < 1


def test_summary_by_hand():
    groups = collected(policy=exact.small_policy(generator(5)))
    numbers = group_summary(groups, 4)
    counted = groups.response_mask
    away = (groups.logprobs - groups.ref_logprobs)[counted].sum() / 8
    assert numbers["kl"] == pytest.approx(away.item(), abs=1e-5)
    assert numbers["length"] == pytest.approx(counted.sum().item() / 8)
    rises = exact.rises(groups.ids, groups.mask).mean().item()
    assert numbers["proxy"] == pytest.approx(rises, abs=1e-4)
    assert numbers["dead"] == 0


def test_the_loop_trains_the_policy_alone_and_repeats():
    def run():
        policy, ref = small()
        before = copy.deepcopy(ref.state_dict())
        prompts = [(exact.PROMPT_IDS, False), ([1, 4], False), ([1, 5], False)]
        seen = []

        def judge_gold(indices, groups):
            seen.append((indices, groups))
            return {"seen": len(seen)}

        history = train_grpo(
            policy, ref, exact.RisesJudges(), prompts, TINY, generator(3), judge_gold
        )
        assert all(torch.equal(x, before[k]) for k, x in ref.state_dict().items())
        return policy, history, seen

    policy, history, seen = run()
    again, same, _ = run()
    assert history == same and [row["seen"] for row in history] == [1, 2]
    assert all(
        map(torch.equal, policy.state_dict().values(), again.state_dict().values())
    )
    assert not torch.equal(policy.lm_head.weight, small()[1].lm_head.weight)
    indices, groups = seen[0]
    assert len(indices) == 8 and len(set(indices)) == 2
    assert indices[:4] == [indices[0]] * 4
    starts = {i: ids[1] for i, ids in enumerate([exact.PROMPT_IDS, [1, 4], [1, 5]])}
    assert groups.ids[:, 1].tolist() == [starts[i] for i in indices]


def test_it_climbs_to_the_exact_optimum():
    """The KL in the reward, on average no bias: most of the gap in a short run."""
    policy, ref = small()
    responses = exact.enumerate_responses(
        exact.PROMPT_IDS, exact.VOCAB_SIZE, exact.MAX_NEW_TOKENS
    )
    scores = exact.rises(responses.ids, responses.mask)
    settings = GRPOSettings(
        iterations=30,
        batch_size=256,
        epochs=2,
        minibatches=2,
        max_new_tokens=exact.MAX_NEW_TOKENS,
        lr=5e-3,
        beta=0.5,
        kl="reward",
        scale="none",
        average="constant",
        whiten_scores=False,
    )
    prompts = [(exact.PROMPT_IDS, False)] * 32
    train_grpo(policy, ref, exact.RisesJudges(), prompts, settings, generator(1))
    with torch.no_grad():
        new, old = (exact.sequence_logprobs(m, responses) for m in (policy, ref))
    top = exact.optimal_policy(old, scores, 0.5)[1]
    bottom, reached = (exact.objective(x, old, scores, 0.5) for x in (old, new))
    assert 0.9 < (reached - bottom) / (top - bottom) <= 1


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: grouped(SIX, 4), "whole groups of group_size = 4, got 6"),
        (lambda: group_advantages(SIX, 1), "group_size must be an int >= 2, got 1"),
        (lambda: group_advantages(SIX * math.nan, 3), "scores must be a finite float"),
        (lambda: token_weights(MASK, "constant"), "length must be given if and only"),
        (lambda: token_weights(MASK, "batch", 3), "length must be given if and only"),
        (lambda: grpo_loss(SIX[None], SIX[None], SIX, MASK), "with B = 1 as in"),
        (lambda: GRPOSettings(batch_size=12), "batch_size must be an int a multiple"),
        (
            lambda: train_grpo(*small(), exact.RisesJudges(), [], TINY, generator()),
            "prompts must be",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
