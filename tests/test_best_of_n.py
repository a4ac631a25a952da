"""Best-of-n: its law against simulation, its bound, its estimate by all subsets."""

import math

import pytest
import torch

from minillama.best_of_n import (
    best_of_n_bound,
    best_of_n_mean,
    best_of_n_policy,
    chosen_chance,
)
from minillama.exact import response_kl


def test_best_of_n_against_its_own_simulation():
    n, generator = 4, torch.Generator().manual_seed(0)
    logp = (2 * torch.randn(300, generator=generator, dtype=torch.float64)).log_softmax(
        0
    )
    scores = (2 * torch.randn(300, generator=generator)).round()  # many ties
    drawn = torch.multinomial(
        logp.exp(), 40_000 * n, replacement=True, generator=generator
    ).view(-1, n)
    best = drawn.gather(1, scores[drawn].argmax(1, keepdim=True)).squeeze(1)
    law = best_of_n_policy(logp, scores, n)
    assert law.exp().sum().item() == pytest.approx(1, abs=1e-12)
    expected = 40_000 * law.exp()
    common = expected > 5
    chi2 = (
        ((best.bincount(minlength=len(law)) - expected).square() / expected)[common]
        .sum()
        .item()
    )
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())
    torch.testing.assert_close(best_of_n_policy(logp, scores, 1), logp)


def test_the_bound_is_a_bound_and_no_value():
    half = torch.full((2,), 0.5, dtype=torch.float64).log()
    law = best_of_n_policy(half, torch.tensor([0.0, 1.0]), 64)
    assert response_kl(law, half).item() == pytest.approx(math.log(2), abs=1e-12)
    assert best_of_n_bound(64) == pytest.approx(3.1745, abs=5e-5)
    third = torch.tensor(
        [1 / 3] * 3, dtype=torch.float64
    ).log()  # chances of 3^-4096 and less are 0, and count 0
    law = best_of_n_policy(third, torch.arange(3.0), 4096)
    assert response_kl(law, third).item() == pytest.approx(math.log(3), abs=1e-12)
    many = torch.full((20_000,), 1 / 20_000, dtype=torch.float64).log()
    value = response_kl(best_of_n_policy(many, torch.arange(20_000.0), 16), many).item()
    assert best_of_n_bound(16) - 0.01 < value < best_of_n_bound(16)


def test_the_estimate_from_more_draws_is_the_mean_over_all_subsets():
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.5]])
    gold = torch.tensor([[1.0, 2.0, 3.0, 7.0]])
    pairs = [
        max((i, j), key=lambda k: scores[0, k]) for i in range(4) for j in range(i)
    ]
    assert best_of_n_mean(scores, gold, 2).item() == pytest.approx(
        sum(gold[0, k].item() for k in pairs) / 6
    )
    assert (
        best_of_n_mean(scores, gold, 1).item() == pytest.approx(13 / 4)
        and best_of_n_mean(scores, gold, 4).item() == 3
    )


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: best_of_n_bound(0), "n must"),
        (
            lambda: best_of_n_policy(torch.zeros(2), torch.zeros(3), 2),
            "N = 2 as in logp",
        ),
        (lambda: best_of_n_policy(torch.zeros(2), torch.zeros(2), 0), "n must"),
        (lambda: best_of_n_mean(torch.zeros(2), torch.zeros(2), 1), r"\(B, M\)"),
        (lambda: best_of_n_mean(torch.zeros(2, 3), torch.zeros(2, 3), 4), r"1\.\.3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_an_answer_without_chance_stays_without():
    """Chances 1/2, 1/2, 0 and 0; the last two have scores of their own and shared."""
    logp = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    law = best_of_n_policy(logp, torch.tensor([1.0, 2.0, 3.0, 1.0]), 2).exp()
    # The lower wins if both draws are low, 1/4.
    assert law.tolist() == pytest.approx([0.25, 0.75, 0.0, 0.0])
    assert best_of_n_policy(logp, torch.ones(4), 3).exp().tolist() == pytest.approx(
        logp.exp().tolist()
    )


def test_a_tie_goes_by_the_order_of_the_draws_and_never_by_gold():
    scores, gold = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[5.0, 7.0, 100.0]])
    # Subsets of two in the order 0 < 1.0 (first) < 1.0 (second): 7 beats 5, 5 beats
    # 100, 7 beats 100.
    assert best_of_n_mean(scores, gold, 2).item() == pytest.approx((7 + 5 + 7) / 3)
    assert best_of_n_mean(scores, gold.flip(1), 3).item() == 7
    many = torch.zeros(1, 1000)  # an unstable sort would leave the order
    assert best_of_n_mean(many, torch.arange(1000.0)[None], 1000).item() == 999


def test_the_weights_are_not_rounded_and_each_prompt_has_its_row():
    scores = torch.arange(3.0).expand(2, 3)
    gold = torch.tensor([[0.0, 0.0, 3.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    # of three, the best of two is the second lowest in 1 subset, the highest in 2
    assert best_of_n_mean(scores, gold, 2).tolist() == pytest.approx(
        [2.0, 1.0], abs=1e-15
    )


def test_log_probabilities_may_miss_their_norm():
    logp, scores = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(
        best_of_n_policy(logp + 1, scores, 2), best_of_n_policy(logp, scores, 2)
    )


def test_the_bound_by_hand():
    assert best_of_n_bound(1) == 0
    assert best_of_n_bound(2) == pytest.approx(math.log(2) - 0.5)


ONES, NAN = torch.ones(2, 3), torch.tensor([[0.0, math.nan, 1.0]] * 2)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: best_of_n_bound(2.5), TypeError, "n"),
        (lambda: best_of_n_policy(ONES[0], NAN[0], 2), ValueError, "scores"),
        (lambda: best_of_n_policy(NAN[0], ONES[0], 2), ValueError, "logp"),
        (lambda: best_of_n_policy(ONES[0], ONES[0], 2.5), TypeError, "n"),
        (
            lambda: best_of_n_policy(torch.full((3,), -math.inf), ONES[0], 2),
            ValueError,
            "logp",
        ),
        (
            lambda: best_of_n_policy(torch.full((3,), math.inf), ONES[0], 2),
            ValueError,
            "logp",
        ),
        (lambda: best_of_n_mean(NAN, ONES, 2), ValueError, "scores"),
        (lambda: best_of_n_mean(ONES, NAN, 2), ValueError, "gold"),
        (lambda: best_of_n_mean(ONES, ONES[:, :1], 2), ValueError, "gold"),
        (lambda: best_of_n_mean(ONES, ONES, 0), ValueError, "n"),
        (lambda: best_of_n_mean(ONES, ONES, True), TypeError, "n"),
    ],
)
def test_more_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=rf"^best_of_n_\w+: {words} must"):
        call()


def test_chosen_at_least_once_against_its_own_simulation():
    """Draw groups of 5 answers of utility -1, 0 or 2, ask, count who ever won."""
    rng = torch.Generator().manual_seed(0)
    kinds, n, groups = torch.tensor([-1.0, 0.0, 2.0]), 5, 20_000
    which = torch.randint(3, (groups, n), generator=rng)
    u = kinds[which]  # (G, n)
    wins = torch.rand(groups, n, n, generator=rng) < torch.sigmoid(
        (u[:, :, None] - u[:, None, :]) / 0.5
    )
    upper = torch.ones(n, n).triu(1).bool()
    won = (wins & upper) | (~wins & upper).mT  # one draw for both sides of a pair
    ever = won.any(2)
    expected = chosen_chance(kinds, kinds, n, temperature=0.5)
    for kind in range(3):
        seen = ever[which == kind].double()
        error = (seen.var() / len(seen)).sqrt()
        assert abs(seen.mean() - expected[kind]) < 4 * error


def test_chosen_by_hand():
    # it loses to either with 3/4 and 1/2: 1 - (5/8)^(n - 1)
    chance = chosen_chance(torch.zeros(1), torch.tensor([math.log(3), 0.0]), 4)
    assert chance.dtype == torch.float64
    assert chance.item() == pytest.approx(1 - (5 / 8) ** 3, abs=1e-7)
    better = chosen_chance(torch.tensor([-50.0, 0.0, 50.0]), torch.zeros(1), 2)
    assert better.tolist() == pytest.approx([0, 0.5, 1], abs=1e-7)
