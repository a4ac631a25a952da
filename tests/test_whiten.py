"""Logit, whitening, masked mean: the reference numbers of lesson 15, and refusals."""

import math

import pytest
import torch

from minillama.whiten import logit, masked_mean, whiten


def close(got, expected, atol=1e-5):
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def test_logit_by_hand():
    # ln 9, ln 1, ln(1 / 99)
    close(logit(torch.tensor([0.9, 0.5, 0.01])), [2.197225, 0, -4.595120])
    close(logit(torch.tensor([[0.25], [0.75]])), [[-1.098612], [1.098612]])  # ln 3
    close(logit(torch.tensor(0.5)), 0.0)


def test_logit_is_clamped_where_it_is_said():
    # ln(1e6 - 1) = 13.815510 by default; eps = 0.1 allows 0.1 .. 0.9, and no more
    close(logit(torch.tensor([0.0, 1.0])), [-13.815510, 13.815510])
    p = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.95])
    expected = [-2.197225, -2.197225, -2.197225, -1.386294, 2.197225]
    close(logit(p, eps=0.1), expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_logit_is_finite_at_the_ends(dtype):
    ends = logit(torch.tensor([0.0, 1.0], dtype=dtype))
    assert ends.dtype == dtype and ends.isfinite().all() and ends[1] > 13
    # a sigmoid that is 1 in float32
    assert logit(torch.sigmoid(torch.tensor(20.0))).isfinite()


def test_logit_undoes_the_sigmoid():
    scores = torch.linspace(-13, 13, 27, dtype=torch.float64)
    close(logit(torch.sigmoid(scores)), scores, 1e-9)


def test_whiten_by_hand():
    # (1, 2, 3, 4): mean 2.5, unbiased variance 5/3,
    # so 1.5 / sqrt(5/3) = 1.16190 and 0.5 / sqrt(5/3) = 0.38730
    white = whiten(torch.tensor([1.0, 2, 3, 4]))
    close(white, [-1.161895, -0.387298, 0.387298, 1.161895])
    close(
        whiten(logit(torch.tensor([0.9, 0.1, 0.5, 0.7]))),
        [1.07705, -1.30687, -0.11491, 0.34473],
    )


def test_equal_values_have_no_scale():
    assert whiten(torch.full((5,), 7.0)).tolist() == [0] * 5
    assert whiten(torch.full((5,), 7.0), shift_mean=False).tolist() == [7] * 5


def test_tiny_differences_are_kept_small():
    # variance 2e-10 / 4 beside 1e-8: (1e-5 / 2) / sqrt(5e-11 + 1e-8) = 0.049876
    values = torch.tensor([0.0, 1e-5], dtype=torch.float64)
    close(whiten(values), [-0.049876, 0.049876])


def test_mask_shift_and_scale():
    values = torch.tensor([[1.0, 99, 2], [3, 4, math.nan]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    kept = whiten(torch.tensor([1.0, 2, 3, 4]))
    white = whiten(values, mask)
    close(white[mask], kept)
    assert (white[~mask] == 0).all()
    close(whiten(values, mask, shift_mean=False)[mask], kept + 2.5)
    close(whiten(10 * values + 100, mask).nan_to_num(), white.nan_to_num())
    assert (whiten(values, mask, shift_mean=False)[~mask] == 0).all()


def test_whiten_is_computed_in_float64():
    # float32 holds 1e6 + k / 16 exactly, but not their mean, 1e6 + 3 / 32
    values = 1e6 + torch.arange(4.0) / 16
    close(whiten(values), [-1.161895, -0.387298, 0.387298, 1.161895])
    for dtype in (torch.bfloat16, torch.float64):
        assert whiten(torch.tensor([1.0, 2.0], dtype=dtype)).dtype == dtype


def test_masked_mean_is_over_entries_and_ignores_what_does_not_count():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    values.requires_grad_()
    mean = masked_mean(values, mask)
    assert mean.item() == 4 and mean.shape == ()  # 16 / 4; of the row means it is 6
    mean.backward()
    assert values.grad.tolist() == [[0.25, 0.25, 0.25], [0.25, 0, 0]]


TWO, MASK = torch.tensor([1.0, 2.0]), torch.tensor([True, True])
ONE = torch.tensor([True, False])
NAN = math.nan


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: whiten(TWO[:1]), ValueError, "whiten: values .* at least 2 .* got 1"),
        (lambda: whiten(TWO, ONE), ValueError, "whiten: values .* at least 2 .* got 1"),
        (lambda: whiten(TWO, ~MASK), ValueError, "whiten: values .* got 0"),
        (lambda: whiten(TWO[:0]), ValueError, "whiten: values .* got shape"),
        (lambda: whiten(TWO, TWO), TypeError, "whiten: mask"),
        (lambda: whiten(TWO, MASK[:1]), ValueError, "whiten: mask"),
        (lambda: whiten(TWO, MASK[:, None]), ValueError, "whiten: mask"),
        (lambda: whiten(TWO / 0), ValueError, "whiten: values .* got inf at"),
        (lambda: whiten(TWO * NAN, MASK), ValueError, "whiten: values .* got nan at"),
        (lambda: whiten(TWO.long()), TypeError, "whiten: values"),
        (lambda: whiten([1.0, 2.0]), TypeError, "whiten: values .* got a list"),
        (lambda: whiten(TWO, None, "no"), TypeError, "whiten: shift_mean .* got 'no'"),
        (lambda: logit(TWO), ValueError, "logit: p .* got 2 at"),
        (lambda: logit(TWO - 1.5), ValueError, "logit: p .* got -0.5 at"),
        (lambda: logit(TWO * NAN), ValueError, "logit: p .* got nan at"),
        (lambda: logit(TWO / 4, eps=0.5), ValueError, "logit: eps .* got 0.5"),
        (lambda: logit(TWO / 4, eps=0), ValueError, "logit: eps .* got 0"),
        (lambda: logit(MASK.long()), TypeError, "logit: p"),
        (lambda: masked_mean(TWO, ~MASK), ValueError, "masked_mean: mask .* True"),
        (lambda: masked_mean(TWO, TWO), TypeError, "masked_mean: mask"),
        (lambda: masked_mean(TWO, MASK[:1]), ValueError, "masked_mean: mask"),
        (lambda: masked_mean(TWO, MASK[:, None]), ValueError, "masked_mean: mask"),
        (lambda: masked_mean(TWO.long(), MASK), TypeError, "masked_mean: values"),
        (lambda: masked_mean(TWO * NAN, ONE), ValueError, "masked_mean: values .*nan"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
