"""Logit, whitening and the reference numbers of lesson 15."""

import pytest
import torch

from minillama.whiten import logit, masked_mean, whiten


def test_reference_numbers():
    # (1, 2, 3, 4): mean 2.5, unbiased variance 5/3, so 1.5 / sqrt(5/3) = 1.16190 and 0.5 / sqrt(5/3) = 0.38730
    expected = torch.tensor([-1.16190, -0.38730, 0.38730, 1.16190])
    torch.testing.assert_close(
        whiten(torch.tensor([1.0, 2, 3, 4])), expected, atol=1e-5, rtol=0
    )
    logits = torch.tensor([2.1972, 0, -4.5951])
    torch.testing.assert_close(
        logit(torch.tensor([0.9, 0.5, 0.01])), logits, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        whiten(logit(torch.tensor([0.9, 0.1, 0.5, 0.7]))),
        torch.tensor([1.07705, -1.30687, -0.11491, 0.34473]),
        atol=1e-5,
        rtol=0,
    )
    assert whiten(torch.full((5,), 7.0)).tolist() == [0] * 5


def test_mask_shift_and_scale():
    values = torch.tensor([[1.0, 99, 2], [3, 4, float("nan")]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    kept = whiten(torch.tensor([1.0, 2, 3, 4]))
    white = whiten(values, mask)
    torch.testing.assert_close(white[mask], kept)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(whiten(values, mask, shift_mean=False)[mask], kept + 2.5)
    torch.testing.assert_close(
        whiten(10 * values + 100, mask), white, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_logit_is_finite_at_the_ends(dtype):
    ends = logit(torch.tensor([0.0, 1.0], dtype=dtype))
    assert ends.dtype == dtype and ends.isfinite().all() and ends[1] > 13
    assert logit(torch.sigmoid(torch.tensor(20.0))).isfinite()  # saturated in float32


def test_masked_mean_ignores_what_does_not_count():
    assert (
        masked_mean(
            torch.tensor([1.0, float("nan"), 3]), torch.tensor([True, False, True])
        )
        == 2
    )


TWO, MASK = torch.tensor([1.0, 2.0]), torch.tensor([True, True])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: whiten(TWO[:1]),
            ValueError,
            "whiten: values needs at least 2 unmasked entries, got 1",
        ),
        (lambda: whiten(TWO, torch.tensor([True, False])), ValueError, "got 1"),
        (lambda: whiten(TWO, TWO), TypeError, "mask"),
        (lambda: whiten(TWO, MASK[:1]), ValueError, "mask"),
        (lambda: whiten(TWO / 0), ValueError, "values must be finite"),
        (lambda: whiten(TWO.long()), TypeError, "values"),
        (lambda: logit(TWO), ValueError, "p must"),
        (lambda: logit(TWO - 1.5), ValueError, "p must"),
        (lambda: logit(TWO * float("nan")), ValueError, "p must"),
        (lambda: logit(TWO / 4, eps=0.5), ValueError, "eps"),
        (lambda: logit(MASK.long()), TypeError, "p must"),
        (lambda: masked_mean(TWO, ~MASK), ValueError, "mask"),
        (lambda: masked_mean(TWO, TWO), TypeError, "mask"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
