"""Exact answers against a second route: closed forms, simulation, gradient descent on the loss itself."""

import math
import random

import pytest
import torch

from minillama import world
from minillama.exact import margin_minimiser, margin_slope, outcome_chances
from minillama.preference_loss import MARGINS, bradley_terry_loss

P = torch.tensor([0.03, 0.3, 0.5, 0.55, 0.75, 0.999], dtype=torch.float64)
THRESHOLDS = world.HELPFULNESS_ANNOTATOR.thresholds


def of_one_margin(p, margin):
    return margin_minimiser(p[:, None], 1 - p[:, None], torch.tensor([margin]))


def test_reference_numbers():
    assert of_one_margin(P[4:5], 0.0).item() == pytest.approx(math.log(3), abs=1e-12)
    assert of_one_margin(P[4:5], 1.0).item() == pytest.approx(1.782, abs=5e-4)


@pytest.mark.parametrize("margin", [0.0, 1 / 3, 1.0, 3.0, 9.0])
def test_one_margin_against_the_quadratic(margin):
    """p sigmoid(m - d) = (1 - p) sigmoid(m + d) is (1 - p) x^2 + (1 - 2p) e^m x - p = 0 in x = e^d."""
    q, middle = 1 - P, (1 - 2 * P) * math.exp(margin)
    discriminant = (middle.square() + 4 * P * q).sqrt()
    x = torch.where(middle > 0, 2 * P / (middle + discriminant), (discriminant - middle) / (2 * q))
    assert torch.allclose(of_one_margin(P, margin), x.log(), atol=1e-9)


def test_swapping_the_sides_changes_the_sign_and_counts_do_as_well_as_chances():
    wins, losses = torch.rand(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    margins = torch.tensor(MARGINS["large"])
    best = margin_minimiser(wins, losses, margins)
    assert torch.allclose(margin_minimiser(losses, wins, margins), -best, atol=1e-12)
    assert torch.allclose(margin_minimiser(40 * wins, 40 * losses, margins), best, atol=1e-12)
    assert margin_slope(best, wins, losses, margins).abs().max() < 1e-12
    assert margin_slope(best + 0.1, wins, losses, margins).min() > 0 > margin_slope(best - 0.1, wins, losses, margins).max()


@pytest.mark.parametrize("name", MARGINS)
def test_the_slope_is_that_of_the_loss(name):
    wins, losses = outcome_chances(torch.tensor([-2.0, 0.0, 0.5]), THRESHOLDS)
    margins = torch.tensor(MARGINS[name], dtype=torch.float64)
    scores = torch.tensor([-1.0, 0.5, 2.5], dtype=torch.float64, requires_grad=True)
    for pair in range(3):
        a, b = scores[pair].expand(4), torch.zeros(4, dtype=torch.float64)
        loss = wins[pair] @ bradley_terry_loss(a, b, margins, "none") + losses[pair] @ bradley_terry_loss(b, a, margins, "none")
        loss.backward()
    assert torch.allclose(scores.grad, margin_slope(scores.detach(), wins, losses, margins), atol=1e-12)


def test_descent_reaches_the_minimiser():
    """Newton's method on a free difference, another route than bisection."""
    wins, losses = outcome_chances(torch.linspace(-4, 4, 9), THRESHOLDS)
    margins = torch.tensor(MARGINS["large"], dtype=torch.float64)
    d = torch.zeros(9, dtype=torch.float64)
    for _ in range(200):
        total = torch.stack([torch.sigmoid(margins + x) * torch.sigmoid(-margins - x) for x in d])
        other = torch.stack([torch.sigmoid(margins - x) * torch.sigmoid(x - margins) for x in d])
        step = margin_slope(d, wins, losses, margins) / (losses * total + wins * other).sum(1)
        d = d - step.clamp(-0.5, 0.5)
    assert torch.allclose(d, margin_minimiser(wins, losses, margins), atol=1e-9)


def test_without_margins_the_strengths_do_not_matter():
    difference = torch.linspace(-9, 9, 7, dtype=torch.float64)
    best = margin_minimiser(*outcome_chances(difference, THRESHOLDS), torch.zeros(4))
    assert torch.allclose(best, difference, atol=1e-9)


def test_chances_by_hand():
    wins, losses = outcome_chances(torch.tensor([0.0, math.log(3)]), (math.log(3),))
    # F(ln 3) = 3/4, so at difference 0: 3/4 - 1/2 and 1 - 3/4; at ln 3: 1/2 - 1/4, 1/2; F(2 ln 3) = 9/10
    assert torch.allclose(wins, torch.tensor([[0.25, 0.25], [0.25, 0.5]], dtype=torch.float64))
    assert torch.allclose(losses, torch.tensor([[0.25, 0.25], [0.15, 0.1]], dtype=torch.float64))


def test_chances_of_an_annotator_who_is_asked_often():
    annotator = world.Annotator(gold=lambda prompt, text: float(text), temperature=0.5)
    rng, prompt, count = random.Random(0), world.all_prompts(False)[0], 20_000
    asked = [annotator.compare(rng, prompt, "1", "0.4") for _ in range(count)]
    wins, losses = outcome_chances(torch.tensor([1.2]), annotator.thresholds)
    for chances, text in ((wins, "1"), (losses, "0.4")):
        shares = torch.tensor([sum(x.chosen == text and x.strength == k for x in asked) / count for k in range(4)])
        assert (shares - chances[0]).abs().max() < 0.015  # 4 standard errors of at most 0.0035
    assert (wins.sum() + losses.sum()).item() == pytest.approx(1)
    assert wins.sum().item() == pytest.approx(annotator.prefers(prompt, "1", "0.4"))


@pytest.mark.parametrize("wins, losses, margins, complaint", [
    (torch.ones(2), torch.ones(2), torch.ones(2), "must be"), (torch.ones(2, 3), torch.ones(2, 1), torch.ones(3), "alike"),
    (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 1), "margins"),
    (torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1), "row"),
    (torch.ones(1, 2), torch.tensor([[2.0, -1.0]]), torch.ones(2), ">= 0")])
def test_bad_arguments_are_refused(wins, losses, margins, complaint):
    with pytest.raises(ValueError, match=f"margin_minimiser: .*{complaint}"):
        margin_minimiser(wins, losses, margins)
