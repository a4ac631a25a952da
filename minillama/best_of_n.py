"""Best-of-n: draw n answers, keep the one with the highest score. Exact, estimated, and how far it goes.

Conventions. Ties in the score are broken by the order of the draws, never by gold. Every KL is KL(best-of-n || policy
that draws), of whole answers, in nats. Scores choose; gold may be anything, it only reports.

Best-of-n is in Stiennon et al. 2020 (arXiv 2009.01325, section 4.3 and appendix G.3); gold against proxy over
sqrt(KL), and the estimator from more than n draws, in Gao et al. 2022 (arXiv 2210.10760). That log n - (n - 1) / n is
a bound and not the value: Beirami et al. 2024 (arXiv 2401.01879). Left out: training on the best answers (rejection
sampling fine-tuning, Llama 2, section 3.2.3).
"""

import math

import torch


def best_of_n_bound(n):
    """log n - (n - 1) / n, in nats: an upper bound of the KL of best-of-n.

    It is the value in the limit of infinitely many answers, none of them likely, without ties in score.
    Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"best_of_n_bound: n must be at least 1, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_policy(logp, scores, n):
    """The exact law of best-of-n over all answers of an enumerable world: log-probabilities, float64 (N,).

        P(the best has score s) = F(s)^n - F(s-)^n,   shared within s in the proportions of the policy

    logp: (N,), log-probabilities of all answers. scores: (N,). F(s): chance of a score of at most s, F(s-): below s.
    Raises ValueError for different shapes or n < 1.
    """
    if logp.shape != scores.shape or logp.ndim != 1:
        raise ValueError(
            f"best_of_n_policy: logp and scores must be (N,) alike, got {tuple(logp.shape)} and "
            f"{tuple(scores.shape)}"
        )
    if n < 1:
        raise ValueError(f"best_of_n_policy: n must be at least 1, got {n}")
    p = logp.double().exp()  # (N,)
    level, which = scores.unique(return_inverse=True)  # (K,) ascending, (N,)
    mass = torch.zeros(len(level), dtype=p.dtype).index_add(0, which, p)  # (K,)
    at_most = mass.cumsum(0) / mass.sum()
    below = torch.cat((at_most.new_zeros(1), at_most[:-1]))
    return (
        (at_most.pow(n) - below.pow(n)).log()[which] + logp.double() - mass.log()[which]
    )


def best_of_n_mean(scores, gold, n):
    """Expected gold of the best of n answers, estimated without bias from M >= n draws for each prompt: a (B,) tensor.

    Averages over all subsets of n: with the draws in order of rising score, draw i of 1..M is the best of
    C(i - 1, n - 1) of the C(M, n) subsets. scores, gold: (B, M), M independent answers to each of B prompts; gold =
    scores gives the proxy. Raises ValueError for different shapes or n outside 1..M.
    """
    if scores.shape != gold.shape or scores.ndim != 2:
        raise ValueError(
            f"best_of_n_mean: scores and gold must be (B, M) alike, got {tuple(scores.shape)} and "
            f"{tuple(gold.shape)}"
        )
    M = scores.shape[1]
    if not 1 <= n <= M:
        raise ValueError(
            f"best_of_n_mean: n must lie in 1..{M}, the answers a prompt, got {n}"
        )
    weights = torch.tensor(
        [math.comb(i, n - 1) / math.comb(M, n) for i in range(M)], dtype=torch.float64
    )  # (M,)
    order = scores.argsort(dim=1, stable=True)  # (B, M)
    return (gold.double().gather(1, order) * weights).sum(1)
