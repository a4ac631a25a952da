"""Strengths from tables of wins: by hand, by search, and by simulation."""

import math

import pytest
import torch

from minillama.arena import fit_strengths, require_connected, strength_errors


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def log_likelihood(wins, strengths):
    return (wins * torch.nn.functional.logsigmoid(strengths[:, None] - strengths)).sum()


def test_two_contestants_by_hand():
    wins = table([0, 75], [25, 0])
    strengths = fit_strengths(wins)
    assert strengths.tolist() == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    # The difference has the variance 1 / (100 x 0.75 x 0.25), a strength a quarter.
    assert strength_errors(wins, strengths).tolist() == pytest.approx(
        [math.sqrt(1 / 18.75) / 2] * 2
    )


def test_no_other_strengths_are_likelier():
    wins = table([0, 9, 4, 1], [3, 0, 8, 2], [2, 5, 0, 6], [0, 3, 1, 0])
    best = fit_strengths(wins)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            other = best + size * torch.randn(4, generator=generator)
            assert log_likelihood(wins, other) < log_likelihood(wins, best)
    assert best.mean().abs() < 1e-12


def test_expected_wins_give_the_strengths_back():
    truth = torch.tensor([0.7, -0.2, 1.5, -2.0], dtype=torch.float64)
    games = table([0, 9, 1, 0], [9, 0, 5, 3], [1, 5, 0, 7], [0, 3, 7, 0])
    wins = games * torch.sigmoid(truth[:, None] - truth)
    torch.testing.assert_close(fit_strengths(wins), truth, atol=1e-8, rtol=0)
    # counts of any kind: float32 and integers
    torch.testing.assert_close(fit_strengths(wins.float()), truth, atol=1e-5, rtol=0)
    assert fit_strengths(games.long()).dtype == torch.float64


def test_tables_side_by_side_are_fitted_apart():
    one, two = table([0, 3], [1, 0]), table([0, 1], [5, 0])
    both = torch.stack((one, two))
    strengths = fit_strengths(both)
    torch.testing.assert_close(strengths[0], fit_strengths(one))
    torch.testing.assert_close(strengths[1], fit_strengths(two))
    errors = strength_errors(both, strengths)
    torch.testing.assert_close(errors[1], strength_errors(two, strengths[1]))


def test_the_errors_are_those_of_simulated_tables():
    truth = torch.tensor([0.8, 0.1, -0.9], dtype=torch.float64)
    p = torch.sigmoid(truth[:, None] - truth)
    generator = torch.Generator().manual_seed(0)
    games = table([0, 300, 100], [300, 0, 200], [100, 200, 0])
    won = torch.binomial(
        games.triu().expand(4000, 3, 3), p.expand(4000, 3, 3), generator=generator
    )
    wins = won + (games.triu() - won).mT
    fitted = fit_strengths(wins)
    expected = strength_errors(games * p, truth)
    torch.testing.assert_close(fitted.std(0), expected, atol=0, rtol=0.05)
    covered = (fitted - truth).abs() < 1.96 * strength_errors(wins, fitted)
    assert 0.94 < covered.double().mean() < 0.96


def test_games_against_oneself_change_nothing():
    wins = table([0, 9], [3, 0])
    with_own = wins + 7 * torch.eye(2)
    strengths = fit_strengths(wins)
    torch.testing.assert_close(fit_strengths(with_own), strengths)
    torch.testing.assert_close(
        strength_errors(with_own, strengths), strength_errors(wins, strengths)
    )


@pytest.mark.parametrize(
    "rows",
    [
        ([0, 5], [0, 0]),  # never lost
        ([0, 5, 5], [5, 0, 5], [0, 0, 0]),  # never won
        ([0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]),  # two groups
        ([0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]),  # that never met
    ],
)
def test_what_has_no_best_fit_is_refused(rows):
    for wins in (table(*rows), torch.stack((1 - torch.eye(len(rows)), table(*rows)))):
        with pytest.raises(ValueError, match="^fit_strengths: wins must lead from"):
            require_connected(wins.double())


def test_a_chain_of_wins_is_connected():
    wins = torch.zeros(6, 6, dtype=torch.float64)
    wins[range(6), [1, 2, 3, 4, 5, 0]] = 1.0  # 0 beat 1, 1 beat 2, …, 5 beat 0
    require_connected(wins)
    assert fit_strengths(wins).abs().max() < 1e-9  # all alike


def test_what_does_not_settle_is_refused(monkeypatch):
    monkeypatch.setattr("minillama.arena.PASSES", 3)
    with pytest.raises(
        ValueError,
        match=r"^fit_strengths: wins must be explained after 3 passes, got a last move",
    ):
        fit_strengths(table([0, 30, 90], [10, 0, 5], [10, 10, 0]))
