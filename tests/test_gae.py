"""gae: the reference number, the sum that it is, padding on both sides, refusals."""

import math

import pytest
import torch

from minillama.gae import gae


def close(got, expected, atol=1e-5):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


ALL = torch.ones(1, 2, dtype=torch.bool)
# rewards 1, 2; values 0.5, 0.25: the errors delta are
# 2 - 0.25 = 1.75 at the end, and 1 + gamma * 0.25 - 0.5 before it
TWO = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]]), ALL


@pytest.mark.parametrize(
    "gamma, lam, first",
    [
        (1.0, 1.0, 0.75 + 1.75),
        (1.0, 0.0, 0.75),
        (0.8, 0.5, 0.7 + 0.4 * 1.75),
        (0.0, 1.0, 0.5),
    ],
)
def test_two_tokens_by_hand(gamma, lam, first):
    advantages, returns = gae(*TWO, gamma, lam)
    close(advantages, [[first, 1.75]])
    close(returns, [[first + 0.5, 2.0]])


def test_one_token_by_hand():
    one = torch.ones(1, 1)
    assert [x.item() for x in gae(3 * one, one, one.bool())] == [2, 3]  # 3 - 1, 2 + 1


def test_gamma_is_1_and_lam_0_95_unless_said_otherwise():
    close(gae(*TWO)[0], [[0.75 + 0.95 * 1.75, 1.75]])


def test_reference_and_padding():
    row = torch.tensor([[0.0, 0, 0, 1]])
    close(
        gae(row, row, torch.ones(1, 4, dtype=torch.bool), 0.9, 0.95)[1],
        [[0.657923, 0.7695, 0.9, 1]],
    )
    junk = torch.tensor([[8.0, 0, 0, 0, 1, 7, 5]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0]]).bool()
    advantages, returns = gae(junk, junk, mask, 0.9, 0.95)
    close(returns, [[0, 0.657923, 0.7695, 0.9, 1, 0, 0]])
    assert (advantages[0, [0, 5, 6]] == 0).all()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
def test_nothing_off_the_response_counts(junk):
    rows = torch.tensor([[junk, 1.0, 2.0, junk]]), torch.tensor([[junk, 0.5, 0.25, 1]])
    advantages, returns = gae(*rows, torch.tensor([[False, True, True, False]]), 1, 1)
    close(advantages, [[0, 2.5, 1.75, 0]])
    close(returns, [[0, 3.0, 2.0, 0]])


def test_rows_know_nothing_of_each_other():
    rewards, values = torch.tensor([[1.0, 2, 9], [9, 1, 2]]), torch.zeros(2, 3)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    close(gae(rewards, values, mask, 1, 1)[1], [[3, 2, 0], [0, 3, 2]])


def test_advantages_are_sums_of_discounted_errors():
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, written as the sum that it is.

    lambda = 1 gives Monte Carlo returns.
    """
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


def test_advantages_and_returns_are_data_and_the_arguments_stay():
    rewards, values = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2)
    values.requires_grad_()
    for result in gae(rewards, values, ALL):
        assert not result.requires_grad
    assert (rewards == 1).all() and (values == 1).all()


Z, M = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
EMPTY_ROW = torch.tensor([[True, True, True], [False, False, False]])
HOLE = torch.tensor([[True, True, True], [True, False, True]])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gae(Z, Z, EMPTY_ROW), ValueError, "response_mask .* 0 runs in row 1"),
        (lambda: gae(Z, Z, HOLE), ValueError, "response_mask .* 2 runs in row 1"),
        (lambda: gae(Z, Z, Z), TypeError, "response_mask"),
        (lambda: gae(Z, Z, M[:, :1]), ValueError, "response_mask"),
        (lambda: gae(Z, Z, M, gamma=1.1), ValueError, "gamma .* got 1.1"),
        (lambda: gae(Z, Z, M, lam=-0.1), ValueError, "lam .* got -0.1"),
        (lambda: gae(Z, Z, M, lam=math.nan), ValueError, "lam .* got nan"),
        (lambda: gae(Z, Z, M, gamma="1"), TypeError, "gamma .* got '1'"),
        (lambda: gae(Z / 0, Z, M), ValueError, "rewards .* got nan at"),
        (lambda: gae(Z, Z + math.inf, M), ValueError, "values .* got inf at"),
        (lambda: gae(Z.long(), Z, M), TypeError, "rewards"),
        (lambda: gae(Z, Z[:, :1], M), ValueError, "values"),
        (lambda: gae(Z[0], Z[0], M[0]), ValueError, "rewards"),
        (lambda: gae(Z[:0], Z[:0], M[:0]), ValueError, "rewards"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^gae: {message}"):
        call()
