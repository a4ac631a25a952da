"""Best-of-n: the exact law against simulation, the bound against the value, the estimate against all subsets."""

import math

import pytest
import torch

from minillama.best_of_n import best_of_n_bound, best_of_n_mean, best_of_n_policy
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
            "logp and scores",
        ),
        (lambda: best_of_n_policy(torch.zeros(2), torch.zeros(2), 0), "n must"),
        (lambda: best_of_n_mean(torch.zeros(2), torch.zeros(2), 1), r"\(B, M\)"),
        (lambda: best_of_n_mean(torch.zeros(2, 3), torch.zeros(2, 3), 4), r"1\.\.3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
