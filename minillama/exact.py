"""Exact answers: the chances and optima that the course is held against, computed and never estimated.

Conventions. A pair (a, b) has a *difference*, a minus b: of utilities, in units of the annotator's temperature, or
of scores, in nats. An outcome says who won and with which strength, weakest first. All is computed in float64.
Nothing here is trained or sampled, and nothing knows a tokenizer or the world's texts.

The margin loss is Llama 2's (arXiv 2307.09288, equation 2). Left out: optima of a whole reward model. They exist
for a pair, whose difference is free; a model must get by with one score for each answer.
"""

import math

import torch


def outcome_chances(difference, thresholds):
    """Chances that a wins and that b wins with each strength, weakest first: two float64 tensors (N, K).

    difference: (N,), utility of a minus utility of b in units of the temperature. thresholds: K - 1 sizes of the
    noisy difference at which the strength rises by one. As in `world.Annotator`: a wins where difference +
    logistic noise is above 0, and its size gives the strength. Each row of both together sums to 1.
    """
    edges = torch.tensor([0.0, *thresholds, math.inf], dtype=torch.float64)  # (K + 1,)
    difference = difference.double()[:, None]  # (N, 1)
    return torch.sigmoid(edges - difference).diff(), torch.sigmoid(edges + difference).diff()


def margin_slope(difference, wins, losses, margins):
    """Slope of the expected margin loss at score differences (N,): float64 (N,), 0 at the minimum.

    The loss is sum_k wins_k softplus(margins_k - d) + losses_k softplus(margins_k + d), convex in d.
    wins, losses: (N, K), how often a and b win with each strength, chances or counts. margins: (K,).
    """
    difference, margins = difference.double()[:, None], margins.double()  # (N, 1), (K,)
    return (losses * torch.sigmoid(margins + difference) - wins * torch.sigmoid(margins - difference)).sum(1)


def margin_minimiser(wins, losses, margins):
    """The score difference at which the expected margin loss is lowest, float64 (N,), by bisection of its slope.

    Arguments as for `margin_slope`. Without margins it is the log-odds log(wins / losses).
    Raises ValueError for other shapes, a negative entry, or a row that one side never wins: there the loss
    falls for ever and has no minimum.
    """
    if wins.ndim != 2 or losses.shape != wins.shape or margins.shape != wins.shape[1:]:
        raise ValueError("margin_minimiser: wins and losses must be (N, K) alike and margins (K,), got "
                         f"{tuple(wins.shape)}, {tuple(losses.shape)} and {tuple(margins.shape)}")
    if not all((x >= 0).all() and (x.sum(1) > 0).all() for x in (wins, losses)):
        raise ValueError("margin_minimiser: wins and losses must be >= 0, and more than 0 in every row")
    odds = wins.double().sum(1) / losses.double().sum(1)  # (N,)
    high = odds.log().abs() + margins.double().abs().max()  # the slope is >= 0 here, and <= 0 at -high
    low = -high
    for _ in range(64):
        middle = (low + high) / 2
        falls = margin_slope(middle, wins, losses, margins) < 0  # the minimum lies to the right
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return (low + high) / 2
