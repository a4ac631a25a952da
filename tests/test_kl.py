"""KL: exact, estimated, as a reward; reference numbers, enumeration, refusals."""

import math

import pytest
import torch

from minillama.kl import exact_kl, kl_estimate, kl_penalised_rewards

INF, NAN = math.inf, math.nan
Q, P = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], dtype=torch.float64)


def close(got, expected, atol=1e-5):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def test_exact_kl_in_both_directions():
    # 0.1 ln(0.1/0.5) + 0.2 ln(0.2/0.3) + 0.7 ln(0.7/0.2)
    close(exact_kl(Q.log()[None, None], P.log()[None, None]), [[0.634897]])
    close(exact_kl(P.log()[None, None], Q.log()[None, None]), [[0.675806]])


def test_exact_kl_of_each_position_by_itself():
    logits, ref_logits = torch.stack((Q, P, Q)).log(), torch.stack((P, P, Q)).log()
    close(exact_kl(logits[None], ref_logits[None]), [[0.634897, 0.0, 0.0]])
    # logits are free up to a constant
    close(exact_kl(logits[None] + 7, ref_logits[None] - 3), [[0.634897, 0.0, 0.0]])


def test_exact_kl_where_a_token_is_excluded():
    half, one = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, -INF]]])
    close(exact_kl(one, half), [[math.log(2)]])  # 1 ln(1 / 0.5) + 0 log 0
    assert exact_kl(half, one).item() == INF  # the policy may draw what cannot be
    assert exact_kl(one, one).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_exact_kl_of_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = torch.randn(2, 1, 3, 50, generator=generator).to(dtype)
    got = exact_kl(logits, ref_logits)
    assert got.dtype == torch.float32
    close(got, exact_kl(logits.double(), ref_logits.double()), 1e-6)
    assert exact_kl(Q[None, None], P[None, None]).dtype == torch.float64
    assert exact_kl(logits.double(), ref_logits).dtype == torch.float64


@pytest.mark.parametrize(
    "kind, ratio, estimate",
    [
        # logratio = ln(0.1 / 0.5) = -1.609438
        ("k1", 0, -1.609438),
        ("k2", 0, 1.295145),  # 1.609438^2 / 2
        ("k3", 0, 2.390562),  # 5 - 1 - 1.609438
        # logratio = ln(0.7 / 0.2) = 1.252763
        ("k1", 2, 1.252763),
        ("k2", 2, 0.784708),
        ("k3", 2, 0.538477),  # 2/7 - 1 + 1.252763
    ],
)
def test_estimators_by_hand(kind, ratio, estimate):
    close(kl_estimate(Q.log()[None], P.log()[None], kind)[0, ratio], estimate)


def test_the_estimate_is_k1_unless_said_otherwise():
    close(kl_estimate(Q.log()[None], P.log()[None]), (Q.log() - P.log())[None])


def test_k3_keeps_its_digits_near_0():
    # x^2 / 2 - x^3 / 6 of logratio x = 1e-3, which exp(-x) - 1 + x in float32 misses
    got = kl_estimate(torch.tensor([[1e-3]]), torch.zeros(1, 1), "k3").item()
    assert got == pytest.approx(5e-7 - 1e-9 / 6, rel=2e-4)


@pytest.mark.parametrize(
    "kind, mean, variance",
    [("k1", 0.634897, 0.9874), ("k2", 0.695250, 0.1168), ("k3", 0.634897, 0.3731)],
)
def test_estimators_by_enumeration(kind, mean, variance):
    k = kl_estimate(Q.log()[None], P.log()[None], kind)[0]
    close((Q * k).sum(), mean)
    close((Q * k**2).sum() - (Q * k).sum() ** 2, variance, 1e-4)


def test_gradients_of_the_estimators_as_losses():
    """One draw: k1 gives 0, k2 the gradient of KL(q || p), k3 that of KL(p || q).

    Exactly, by enumeration.
    """

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


MASK = torch.tensor([[False, True, True, False], [False, False, True, True]])
LOGPROBS = torch.tensor([[9.0, -1, -2, 9], [9, 9, -1, -1]])
REF = torch.tensor([[0.0, -2, -2, 0], [0, 0, -1, -4]])
SCORES = torch.tensor([5.0, 7.0])


def test_rewards_put_the_score_on_the_last_response_token():
    # row 0: -0.1 (-1 + 2), 5 - 0.1 (-2 + 2); row 1: -0.1 (-1 + 1), 7 - 0.1 (-1 + 4)
    rewards = kl_penalised_rewards(SCORES, LOGPROBS, REF, MASK, 0.1)
    close(rewards, [[0, -0.1, 5, 0], [0, 0, 0, 6.7]])
    close(rewards.sum(1), [5 - 0.1 * 1, 7 - 0.1 * 3])  # score - beta * sum(k1)


def test_beta_scales_the_penalty_alone():
    free = kl_penalised_rewards(SCORES, LOGPROBS, REF, MASK, 0)
    close(free, [[0, 0, 5, 0], [0, 0, 0, 7]])
    dear = kl_penalised_rewards(SCORES, LOGPROBS, REF, MASK, 2.0)
    close(dear, [[0, -2, 5, 0], [0, 0, 0, 7 - 6]])


@pytest.mark.parametrize("junk", [INF, -INF, NAN, 1e30])
def test_rewards_use_nothing_off_the_response(junk):
    rewards = kl_penalised_rewards(
        SCORES, LOGPROBS.masked_fill(~MASK, junk), REF.masked_fill(~MASK, junk), MASK, 1
    )
    close(rewards, [[0, -1, 5, 0], [0, 0, 0, 4]])


def test_a_response_with_a_hole_is_scored_at_its_last_token():
    mask = torch.tensor([[True, False, True, False]])
    zero = torch.zeros(1, 4)
    close(kl_penalised_rewards(SCORES[:1], zero, zero, mask, 0.1), [[0, 0, 5, 0]])
    only = torch.tensor([[True, False, False, False]])  # the first column may be last
    close(kl_penalised_rewards(SCORES[:1], zero, zero, only, 0.1), [[5, 0, 0, 0]])


def test_rewards_are_computed_where_the_logprobs_are():
    with torch.device("meta"):  # a new tensor that is not told where to lie has no data
        rewards = kl_penalised_rewards(SCORES, LOGPROBS, REF, MASK, 0.1)
    close(rewards.sum(), 12 - 0.1 * 4)


def test_a_reward_is_data():
    leaves = [x.clone().requires_grad_() for x in (SCORES, LOGPROBS, REF)]
    assert not kl_penalised_rewards(*leaves, MASK, 0.1).requires_grad


Z, M, S = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)
EMPTY_ROW = torch.tensor([[True, True, True], [False, False, False]])
L = torch.zeros(1, 2, 3)
rewards_of = kl_penalised_rewards


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: exact_kl(L, L[:, :1]), ValueError, "exact_kl: ref_logits"),
        (lambda: exact_kl(L, L[..., :1]), ValueError, "exact_kl: ref_logits .* V = 3"),
        (lambda: exact_kl(L[:, :0], L[:, :0]), ValueError, "exact_kl: logits"),
        (lambda: exact_kl(L.long(), L), TypeError, "exact_kl: logits"),
        (lambda: exact_kl(L + NAN, L), ValueError, "exact_kl: logits .* got nan"),
        (lambda: exact_kl(L, L + INF), ValueError, "exact_kl: ref_logits .* got inf"),
        (lambda: exact_kl(L - INF, L), ValueError, "exact_kl: the result .* got nan"),
        (lambda: kl_estimate(Z, Z, "k4"), ValueError, "kl_estimate: kind .* got 'k4'"),
        (lambda: kl_estimate(Z, Z, 1), TypeError, "kl_estimate: kind .* got 1"),
        (lambda: kl_estimate(Z, Z[:, :1]), ValueError, "kl_estimate: ref_logprobs"),
        (lambda: kl_estimate(Z, S), ValueError, "kl_estimate: ref_logprobs"),
        (lambda: kl_estimate(Z + NAN, Z), ValueError, "kl_estimate: logprobs .* nan"),
        (lambda: kl_estimate(Z, Z - INF), ValueError, "kl_estimate: ref_logprobs"),
        (lambda: rewards_of(S, Z, Z, M, -0.1), ValueError, "beta .* got -0.1"),
        (lambda: rewards_of(S, Z, Z, M, INF), ValueError, "beta .* got inf"),
        (lambda: rewards_of(S, Z, Z, M, NAN), ValueError, "beta .* got nan"),
        (lambda: rewards_of(S, Z, Z, Z, 0.1), TypeError, "response_mask"),
        (lambda: rewards_of(S / 0, Z, Z, M, 0.1), ValueError, "scores .* got nan"),
        (lambda: rewards_of(S.long(), Z, Z, M, 0.1), TypeError, "scores"),
        (lambda: rewards_of(S[:1], Z, Z, M, 0.1), ValueError, "(scores|logprobs)"),
        (lambda: rewards_of(S[:, None], Z, Z, M, 0.1), ValueError, "scores"),
        (lambda: rewards_of(S, Z + NAN, Z, M, 0.1), ValueError, "logprobs .* got nan"),
        (lambda: rewards_of(S, Z, Z - INF, M, 0.1), ValueError, "ref_logprobs .* -inf"),
        (lambda: rewards_of(S, Z, Z[:, :1], M, 0.1), ValueError, "ref_logprobs"),
        (lambda: rewards_of(S, Z, Z, M[:, :1], 0.1), ValueError, "response_mask"),
        (lambda: rewards_of(S, Z, Z, EMPTY_ROW, 0.1), ValueError, "response_mask"),
        (lambda: rewards_of(S[:0], Z[:0], Z[:0], M[:0], 0.1), ValueError, "scores"),
    ],
)
def test_bad_arguments(call, error, message):
    named = message if ":" in message else f"kl_penalised_rewards: {message}"
    with pytest.raises(error, match=f"^{named}"):
        call()
