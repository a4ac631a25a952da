"""Selection, KL, per-token rewards, advantages and PPO's losses: reference numbers, other routes, the door."""

import math

import pytest
import torch

from minillama.gae import gae
from minillama.kl import exact_kl, kl_estimate, kl_penalised_rewards
from minillama.ppo import clip_fraction, policy_loss, value_loss
from minillama.reward_selection import select_reward

Q, P = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], dtype=torch.float64)


def close(got, expected, atol=1e-5):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def test_selection():
    safety, helpful = (
        torch.tensor([0.9, 0.9, 0.1499, 0.15]),
        torch.tensor([0.3, 0.4, 0.5, 0.6]),
    )
    flags = torch.tensor([True, False, False, False])
    close(
        select_reward(safety, helpful, flags), [0.9, 0.4, 0.1499, 0.6]
    )  # at the threshold helpfulness is selected
    close(select_reward(safety, helpful, flags, threshold=0.0), [0.9, 0.4, 0.5, 0.6])


def test_exact_kl_in_both_directions():
    close(exact_kl(Q.log()[None, None], P.log()[None, None])[0, 0], 0.634897)
    close(exact_kl(P.log()[None, None], Q.log()[None, None])[0, 0], 0.675806)
    zero = torch.tensor([[[0.0, -math.inf]]])
    assert exact_kl(zero, torch.zeros(1, 1, 2)).item() == pytest.approx(
        math.log(2)
    )  # 0 log 0 = 0


@pytest.mark.parametrize(
    "kind, mean, variance",
    [("k1", 0.634897, 0.9874), ("k2", 0.695250, 0.1168), ("k3", 0.634897, 0.3731)],
)
def test_estimators_by_enumeration(kind, mean, variance):
    k = kl_estimate(Q.log()[None], P.log()[None], kind)[0]
    close((Q * k).sum(), mean)
    close((Q * k**2).sum() - (Q * k).sum() ** 2, variance, 1e-4)


def test_gradients_of_the_estimators_as_losses():
    """For one draw: k1 gives 0, k2 the gradient of KL(q || p), k3 that of KL(p || q); exactly, by enumeration."""

    def gradient(loss):
        logits = Q.log().clone().requires_grad_()
        return torch.autograd.grad(loss(logits.log_softmax(0)), logits)[0]

    def as_loss(kind):
        return gradient(
            lambda logq: (Q * kl_estimate(logq[None], P.log()[None], kind)[0]).sum()
        )

    forward = gradient(lambda logq: (logq.exp() * (logq - P.log())).sum())
    backward = gradient(lambda logq: (P * (P.log() - logq)).sum())
    close(as_loss("k1"), torch.zeros(3))
    close(as_loss("k2"), forward)
    close(as_loss("k3"), backward)


def test_rewards_put_the_score_on_the_last_response_token():
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    logprobs, ref = (
        torch.tensor([[9.0, -1, -2, 9], [9, 9, -1, -1]]),
        torch.tensor([[0.0, -2, -2, 0], [0, 0, -1, -4]]),
    )
    rewards = kl_penalised_rewards(torch.tensor([5.0, 7.0]), logprobs, ref, mask, 0.1)
    close(rewards, [[0, -0.1, 5, 0], [0, 0, 0, 7 - 0.3]])


def test_gae_reference_and_padding():
    row = torch.tensor([[0.0, 0, 0, 1]])
    close(
        gae(row, row, torch.ones(1, 4, dtype=torch.bool), 0.9, 0.95)[1],
        [[0.657923, 0.7695, 0.9, 1]],
    )
    junk = torch.tensor([[8.0, 0, 0, 0, 1, 7, 5]])
    advantages, returns = gae(
        junk, junk, torch.tensor([[0, 1, 1, 1, 1, 0, 0]]).bool(), 0.9, 0.95
    )
    close(returns, [[0, 0.657923, 0.7695, 0.9, 1, 0, 0]])
    assert (advantages[0, [0, 5, 6]] == 0).all()


def test_gae_is_the_sum_of_discounted_errors():
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, written as the sum it is; lambda = 1 gives Monte Carlo returns."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 6, dtype=torch.bool)
    for gamma, lam in ((0.9, 0.8), (1.0, 1.0), (0.99, 0.0)):
        after = torch.cat((values[:, 1:], torch.zeros(3, 1)), 1)
        delta = rewards + gamma * after - values
        expected = torch.stack(
            [
                sum((gamma * lam) ** k * delta[:, t + k] for k in range(6 - t))
                for t in range(6)
            ],
            1,
        )
        close(gae(rewards, values, mask, gamma, lam)[0], expected)
    close(gae(rewards, values, mask, 1.0, 1.0)[1], rewards.flip(1).cumsum(1).flip(1))


@pytest.mark.parametrize(
    "advantage, logratio, loss",
    [
        (1.0, 1.0, -1.2),
        (1.0, -1.0, -0.36788),
        (1.0, 0.1, -1.10517),
        (-1.0, 1.0, 2.71828),
        (-1.0, -1.0, 0.8),
    ],
)
def test_the_cases_of_the_clip(advantage, logratio, loss):
    one = torch.ones(1, 1)
    close(policy_loss(logratio * one, 0 * one, advantage * one, one.bool(), 0.2), loss)


def test_losses_are_means_over_tokens_and_ignore_the_rest():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 1, 1], [5, math.nan, math.nan]])
    logprobs = torch.zeros(2, 3, requires_grad=True)
    loss = policy_loss(logprobs, torch.zeros(2, 3), advantages, mask)
    close(loss.detach(), -(3 * 1 + 5) / 4)  # not -(1 + 5) / 2
    loss.backward()
    close(logprobs.grad, [[-0.25, -0.25, -0.25], [-1.25, 0, 0]])
    # v = 1, old 0, R = 2: (1 - 2)^2 = 1; clipped to 0.2: (0.2 - 2)^2 = 3.24; half of the larger is 1.62
    one = torch.ones(1, 1)
    close(value_loss(one, 0 * one, 2 * one, one.bool(), 0.2), 1.62)
    assert (
        clip_fraction(
            torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), torch.tensor([[True, True]])
        )
        == 0.5
    )


def test_no_gradient_through_what_is_data():
    x = [torch.zeros(1, 2, requires_grad=True) for _ in range(3)]
    policy_loss(*x, torch.ones(1, 2, dtype=torch.bool)).backward()
    value_loss(*x, torch.ones(1, 2, dtype=torch.bool)).backward()
    assert x[0].grad is not None and x[1].grad is None and x[2].grad is None
    assert not gae(x[0], x[1], torch.ones(1, 2, dtype=torch.bool))[0].requires_grad
    assert not kl_penalised_rewards(
        x[0][:, 0], x[1], x[2], torch.ones(1, 2, dtype=torch.bool), 0.1
    ).requires_grad


Z, M, S = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)
EMPTY_ROW = torch.tensor([[True, True, True], [False, False, False]])


@pytest.mark.parametrize(
    "call, error, named",
    [
        (lambda: select_reward(S + 2, S, M[:, 0]), ValueError, "safety"),
        (lambda: select_reward(S, S - 1, M[:, 0]), ValueError, "helpfulness"),
        (lambda: select_reward(S * math.nan, S, M[:, 0]), ValueError, "safety"),
        (lambda: select_reward(S, S, S), TypeError, "is_safety_prompt"),
        (lambda: select_reward(S, S[:1], M[:, 0]), ValueError, "helpfulness"),
        (lambda: select_reward(S[:0], S[:0], M[:0, 0]), ValueError, "safety"),
        (lambda: select_reward(S, S, M[:, 0], 1.5), ValueError, "threshold"),
        (lambda: exact_kl(Z, Z[:1]), ValueError, "ref_logits"),
        (lambda: kl_estimate(Z, Z, "k4"), ValueError, "kind"),
        (lambda: kl_estimate(Z, Z[:, :1]), ValueError, "ref_logprobs"),
        (lambda: kl_penalised_rewards(S, Z, Z, M, -0.1), ValueError, "beta"),
        (lambda: kl_penalised_rewards(S, Z, Z, Z, 0.1), TypeError, "response_mask"),
        (lambda: kl_penalised_rewards(S / 0, Z, Z, M, 0.1), ValueError, "scores"),
        (lambda: kl_penalised_rewards(S[:1], Z, Z, M, 0.1), ValueError, "scores"),
        (
            lambda: kl_penalised_rewards(S, Z, Z, EMPTY_ROW, 0.1),
            ValueError,
            "response_mask",
        ),
        (lambda: gae(Z, Z, EMPTY_ROW), ValueError, "response_mask"),
        (lambda: gae(Z, Z, M, gamma=1.1), ValueError, "gamma"),
        (lambda: gae(Z, Z, M, lam=-0.1), ValueError, "lam"),
        (lambda: gae(Z / 0, Z, M), ValueError, "rewards"),
        (lambda: gae(Z, Z, Z), TypeError, "response_mask"),
        (
            lambda: gae(Z, Z, torch.tensor([[True, False, True]] * 2)),
            ValueError,
            "response_mask",
        ),
        (lambda: gae(Z[:0], Z[:0], M[:0]), ValueError, "rewards"),
        (lambda: policy_loss(Z, Z, Z, M, 0), ValueError, "clip_eps"),
        (lambda: policy_loss(Z, Z, Z[:1], M), ValueError, "advantages"),
        (lambda: policy_loss(Z, Z, Z, Z), TypeError, "mask"),
        (lambda: policy_loss(Z, Z, Z, ~M), ValueError, "mask"),
        (lambda: value_loss(Z, Z, Z, M, -1), ValueError, "clip_eps"),
        (lambda: value_loss(Z, Z, Z[:, :1], M), ValueError, "returns"),
    ],
)
def test_bad_arguments(call, error, named):
    with pytest.raises(error, match=named):
        call()
