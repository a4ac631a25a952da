"""Intervals against arithmetic by hand, tables and simulation."""

import pytest
import torch

from minillama import evidence as e


def test_the_interval_of_a_mean_by_hand():
    """1, 2, 3: s = 1, t(2) = 4.303, half = 4.303 / sqrt 3."""
    middle, half = e.mean_interval([1, 2, 3])
    assert middle == 2 and half == pytest.approx(4.303 / 3**0.5)
    assert e.mean_interval(torch.tensor([5.0, 5.0])) == (5.0, 0.0)
    with pytest.raises(ValueError, match="must be at least two runs, got one"):
        e.mean_interval([1.0])


@pytest.mark.parametrize(
    "count, t", [(2, 12.706), (3, 4.303), (10, 2.262), (11, 2.228), (31, 2.042)]
)
def test_students_quantiles_as_tables_have_them(count, t):
    """Half times sqrt N over s is t; 11 and 31 runs are beyond our own table."""
    x = torch.arange(count, dtype=torch.float64)
    half = e.mean_interval(x)[1]
    assert half * count**0.5 / x.std().item() == pytest.approx(t, abs=5e-3)


def test_the_interval_of_a_mean_holds_the_truth():
    """Of 4,000 triples from a Gaussian about 95 % have an interval that holds 0."""
    triples = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    held = [abs(m) <= half for m, half in map(e.mean_interval, triples)]
    assert 0.94 < sum(held) / 4000 < 0.96


def test_wilsons_interval_by_hand():
    """8 of 10 right: Wilson 0.490 to 0.943; 10 of 10: 1 / (1 + 1.96²/10) = 0.722."""
    low, high = e.wilson_interval(0.8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    low, high = e.wilson_interval(1.0, 10)
    assert low == pytest.approx(1 / (1 + 1.96**2 / 10)) and high == 1.0
    assert e.wilson_interval(0.0, 10)[0] == 0.0
    assert e.wilson_interval(0.5, 1e6)[1] == pytest.approx(0.5 + 0.00098, abs=1e-6)


def test_wilsons_interval_covers_the_truth():
    """Of 4,000 samples of 40 at p = 0.7 about 95 % have an interval that holds 0.7."""
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(4000, 40, generator=generator) < 0.7).double().mean(1)
    held = [
        low <= 0.7 <= high
        for low, high in (e.wilson_interval(x, 40) for x in right.tolist())
    ]
    assert 0.93 < sum(held) / 4000 < 0.97


def test_outcomes_that_stand_together_count_once():
    """Groups (1, 1), (0, 0), twice: d = ±½, 8 · ¼ = 2 alone, 4 · 1 = 4 together."""
    right = torch.tensor([1.0, 1.0, 0.0, 0.0] * 2)
    assert e.effective_count(right, list("aabbccdd")) == pytest.approx(4.0)
    assert e.effective_count(right, list("abcdefgh")) == 8.0
    assert e.effective_count(torch.ones(4), list("aabb")) == 2.0  # all alike
    assert e.effective_count(right, ["a"] * 8) == 1.0
    assert e.effective_count(torch.tensor([1.0, 0.0]), ["a", "b"]) == 2.0
