"""An arena: contestants meet in pairs, and strengths explain who wins how often.

Conventions. `wins[i, j]` says how often i beat j: counts, or expected counts. Strengths
are Bradley and Terry's, in nats, and have the mean 0, since wins depend on differences
alone. Leading dimensions are tables of their own, fitted side by side.

The fit is Zermelo's (1929), that of Bradley and Terry (1952); Ford (1957) says when
there is one, and Hunter (2004, "MM algorithms for generalized Bradley-Terry models")
that no pass lowers the likelihood. Arenas of language models fit the same strengths:
Chiang et al. 2024 (arXiv 2403.04132). Left out: ties, and strengths that change.
"""

import torch

from minillama.contracts import expects

# More passes than any table needs in which everyone has won and lost a fair share.
PASSES = 10_000


@expects("wins: finite tensor (..., N, N) >= 0", "-> float (..., N)")
def fit_strengths(wins):
    """Return the strengths of highest likelihood for tables of wins: float64 (..., N).

        P(i beats j) = sigmoid(strength_i - strength_j)

    Each pass adds to every strength the log of its wins over the wins that the
    strengths explain, until both agree. There is no best fit where one part of the
    contestants has never lost to the rest: that is refused.
    """
    wins = wins.double()
    require_connected(wins)
    games = wins + wins.mT  # (..., N, N)
    strengths = torch.zeros_like(wins[..., 0])  # (..., N)
    for _ in range(PASSES):
        p = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :])
        explained = (games * p).sum(-1)  # (..., N)
        move = (wins.sum(-1) / explained).log()
        strengths = strengths + move
        strengths = strengths - strengths.mean(-1, keepdim=True)
        if move.abs().max() < 1e-10:
            return strengths
    raise ValueError(
        f"fit_strengths: wins must be explained after {PASSES} passes, got a last move "
        f"of {move.abs().max().item():.1e}"
    )


def require_connected(wins):
    """Refuse a table in which some contestants have never lost to the others."""
    others = torch.eye(wins.shape[-1], dtype=wins.dtype)
    beats = (wins > 0).to(wins.dtype) + others  # (..., N, N)
    for _ in range(len(others)):  # who beats whom, directly or over others
        beats = ((beats @ beats) > 0).to(wins.dtype)
    if not beats.all():
        raise ValueError(
            "fit_strengths: wins must lead from everyone to everyone, got a table in "
            "which some have never lost to the others"
        )


@expects(
    "wins: finite tensor (..., N, N) >= 0",
    "strengths: finite float (..., N)",
    "-> float (..., N)",
)
def strength_errors(wins, strengths):
    """Return the standard errors of fitted strengths, float64 (..., N), in nats.

        information = diag(rows of w) - w,   w_ij = games_ij p_ij (1 - p_ij)

    is the negative second derivative of the log-likelihood; games are wins of both
    sides. Strengths whose mean is held at 0 have its pseudo-inverse as covariance: the
    inverse once every entry is 1/N larger, less 1/N.
    """
    strengths, n = strengths.double(), wins.shape[-1]
    p = torch.sigmoid(strengths[..., :, None] - strengths[..., None, :])  # (..., N, N)
    w = (wins + wins.mT).double() * p * (1 - p)
    information = torch.diag_embed(w.sum(-1)) - w
    covariance = (information + 1 / n).inverse() - 1 / n
    return covariance.diagonal(dim1=-2, dim2=-1).sqrt()
