"""Intervals against arithmetic by hand, tables and simulation."""

import itertools
import math

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
    "count, t", [(2, 12.706), (3, 4.303), (10, 2.262), (11, 2.228), (31, 2.0423)]
)
def test_students_quantiles_as_tables_have_them(count, t):
    """Half times sqrt N over s is t; 11 and 31 runs are beyond our own table."""
    x = torch.arange(count, dtype=torch.float64)
    half = e.mean_interval(x)[1]
    assert half * count**0.5 / x.std().item() == pytest.approx(t, abs=3e-3)


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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_exact_coverage_by_hand():
    """Two tosses of a coin: one head, with chance 1/2, is the only k at the truth."""

    def at_the_share(share, count):
        return share, share

    assert e.exact_coverage(at_the_share, 0.5, 2) == 0.5
    assert e.exact_coverage(at_the_share, 0.25, 4) == pytest.approx(4 * 0.25 * 0.75**3)
    assert e.exact_coverage(lambda share, n: (0.0, share), 0.5, 3) == pytest.approx(0.5)
    assert e.exact_coverage(lambda share, n: (0.0, 1.0), 0.3, 7) == pytest.approx(1)
    assert e.exact_coverage(at_the_share, 1.0, 3) == 1.0
    for k in range(1, 60):  # rounding does not take it above 1
        assert e.exact_coverage(lambda share, n: (0.0, 1.0), k / 60, 50) <= 1
    seen = []
    e.exact_coverage(lambda share, n: seen.append((share, n)) or (0, 1), 0.5, 2)
    assert seen == [(0.0, 2), (0.5, 2), (1.0, 2)]


def test_wilsons_interval_covers_close_to_95_percent_everywhere():
    """By exact arithmetic; shares ± 1.96 standard errors do not."""
    chances = [x / 200 for x in range(10, 191)]

    def wald(share, n):
        half = 1.96 * (share * (1 - share) / n) ** 0.5
        return share - half, share + half

    held = [e.exact_coverage(e.wilson_interval, p, 50) for p in chances]
    assert min(held) > 0.92 and abs(sum(held) / len(held) - 0.95) < 0.005
    assert min(e.exact_coverage(wald, p, 50) for p in chances) < 0.9


def test_exact_coverage_is_what_simulation_finds():
    right = (torch.rand(4000, 40, generator=seeded()) < 0.7).double().mean(1).tolist()
    held = [
        low <= 0.7 <= high for low, high in (e.wilson_interval(x, 40) for x in right)
    ]
    exact = e.exact_coverage(e.wilson_interval, 0.7, 40)
    assert sum(held) / 4000 == pytest.approx(exact, abs=0.015)


def test_the_bootstrap_of_three_values_is_its_27_resamples():
    """Sums of 1, 2, 6: 7 of 27 are up to 5 and 8 up to 6; 20 up to 9, 23 up to 13."""
    means = torch.tensor(
        [sum(x) / 3 for x in itertools.product([1.0, 2.0, 6.0], repeat=3)]
    ).sort()[0]
    low, high = e.bootstrap_interval(
        torch.tensor([1.0, 2.0, 6.0]), seeded(), draws=20000, level=0.6
    )
    assert low == pytest.approx(means[int(0.2 * 27)].item())
    assert high == pytest.approx(means[int(0.8 * 27)].item())


def test_the_bootstrap_of_many_values_is_nearly_gaussian():
    values = torch.randn(400, generator=seeded(1))
    middle, half = e.mean_interval(values)
    low, high = e.bootstrap_interval(values, seeded(2), draws=4000)
    assert low == pytest.approx(middle - half, abs=0.01)
    assert high == pytest.approx(middle + half, abs=0.01)
    narrow = e.bootstrap_interval(values, seeded(2), draws=4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * half * 0.6745 / 1.96, abs=0.01)


def test_the_bootstrap_draws_whole_prompts():
    """Prompts (0, 0), (1, 1): both draws are the first with 1/4, so 80 % is 0 to 1."""
    values = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert e.bootstrap_interval(values, seeded(), list("aabb"), 2000, 0.8) == (0.0, 1.0)
    assert e.bootstrap_interval(values, seeded(), None, 2000, 0.8) == (0.25, 0.75)
    uneven = torch.tensor([6.0, 0.0, 0.0, 0.0])  # 6, 6 / 4 or 0
    assert e.bootstrap_interval(uneven, seeded(), ["x", 1, 1, 1], 2000, 0.4) == (
        1.5,
        1.5,
    )
    many = torch.arange(90.0)
    assert e.bootstrap_interval(many, seeded(3)) == e.bootstrap_interval(
        many, seeded(3), None, 1000, 0.95
    )
    again = e.bootstrap_interval(values, seeded(3), draws=20)
    assert again == e.bootstrap_interval(values, seeded(3), draws=20)


def test_the_bootstrap_of_one_prompt_is_refused():
    with pytest.raises(ValueError, match="values must be of at least two units"):
        e.bootstrap_interval(torch.tensor([0.0, 1.0]), seeded(), ["a", "a"])
    with pytest.raises(ValueError, match="values must be of at least two units"):
        e.bootstrap_interval(torch.tensor([1.0]), seeded())


def test_answers_that_share_their_prompt_by_hand():
    """(1, 1), (0, 0), (1, 0): B = 2 · 1/4, W = 1/6, so (1/3) / (2/3)."""
    rows = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert e.intraclass_correlation(rows) == pytest.approx(0.5)
    assert e.intraclass_correlation(7 - 3 * rows) == pytest.approx(0.5)
    alternating = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0]])
    assert e.intraclass_correlation(alternating) == pytest.approx(-0.5)  # -1 / (K - 1)
    assert e.intraclass_correlation(torch.tensor([[5.0, 5.0], [1.0, 1.0]])) == 1.0
    for refused in (torch.ones(3, 2), rows[:1], rows[:, :1]):
        with pytest.raises(ValueError, match="must be at least"):
            e.intraclass_correlation(refused)


def test_the_design_effect_is_how_much_the_variance_of_a_mean_grows():
    """Answer = prompt + own luck, in equal parts: correlation 1/2, effect 1 + 3/2."""
    x = torch.randn(4000, 20, 1, generator=seeded()) + torch.randn(
        4000, 20, 4, generator=seeded(1)
    )
    rho = e.intraclass_correlation(x.view(-1, 4))
    assert rho == pytest.approx(0.5, abs=0.02)
    grown = x.mean((1, 2)).var() / (x.var() / 80)
    assert grown.item() == pytest.approx(1 + 3 * rho, rel=0.06)


def test_how_many_prompts_by_hand():
    """(1.96 + 0.8416)² = 7.849, times 5² = 196.2; at a power of one half 96.04."""
    assert e.prompts_needed(0.1, 0.5) == 197
    assert e.prompts_needed(0.1, 0.5, power=0.5) == 97
    assert e.prompts_needed(2.0, 0.5) == 1
    n = e.prompts_needed(0.3, 1.0, power=0.9)
    z = torch.randn(20000, generator=seeded()) + 0.3 * math.sqrt(n)
    assert (z.abs() > 1.96).double().mean().item() == pytest.approx(0.9, abs=0.01)
