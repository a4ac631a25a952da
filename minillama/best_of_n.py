"""Best-of-n: draw n answers, keep the one with the highest score.

Its soft relative is what a language term on comparisons reads: every answer that a
noisy annotator prefers to at least one of the other n - 1 (`chosen_chance`).

Conventions. Ties in the score are broken by the order of the draws, never by gold.
Every KL is KL(best-of-n || policy that draws), of whole answers, in nats. Scores
choose; gold may be anything, it only reports.

Best-of-n is in Stiennon et al. 2020 (arXiv 2009.01325, section 4.3 and appendix G.3);
gold against proxy over sqrt(KL) in Gao et al. 2022 (arXiv 2210.10760); the estimator
from more than n draws in Nakano et al. 2021 (arXiv 2112.09332, appendix I). That
log n - (n - 1) / n is a bound and not the value: Beirami et al. 2024 (arXiv
2401.01879). Left out: training on the best answers (rejection sampling fine-tuning,
Llama 2, section 3.2.3).
"""

import math

import torch

from minillama.contracts import expects


@expects("n: int >= 1")
def best_of_n_bound(n):
    """Return log n - (n - 1) / n, in nats: an upper bound of the KL of best-of-n.

    It is the value in the limit of infinitely many answers, none of them likely,
    without ties in score.
    """
    return math.log(n) - (n - 1) / n


@expects("logp: float (N,) no NaN", "scores: finite float (N,)", "n: int >= 1")
def best_of_n_policy(logp, scores, n):
    """Return the exact law of best-of-n: log-probabilities, float64 (N,).

        P(the best has score s) = F(s)^n - F(s-)^n

    F(s) is the chance of a score of at most s, F(s-) of one below s; answers that share
    a score share its chance in the proportions of the policy. logp are the
    log-probabilities of all answers of an enumerable world.
    """
    p = logp.double().exp()  # (N,)
    if not 0 < p.sum() < math.inf:
        raise ValueError(
            f"best_of_n_policy: logp must be log-probabilities, got a sum of {p.sum()}"
        )
    level, which = scores.unique(return_inverse=True)  # (K,) ascending, (N,)
    mass = torch.zeros(len(level), dtype=p.dtype).index_add(0, which, p)  # (K,)
    at_most = mass.cumsum(0) / mass.sum()
    below = torch.cat((at_most.new_zeros(1), at_most[:-1]))
    best = (at_most.pow(n) - below.pow(n)).log()  # (K,)
    law = best[which] + logp.double() - mass.log()[which]  # (N,)
    return law.masked_fill(mass[which] == 0, -math.inf)  # a level without any chance


@expects("scores: finite float (B, M)", "gold: finite tensor (B, M)", "n: int >= 1")
def best_of_n_mean(scores, gold, n):
    """Return the expected gold of the best of n answers of each prompt: float64 (B,).

    It is estimated without bias from M >= n independent answers to each of B prompts,
    as the average over all subsets of n: with the answers in order of rising score,
    answer i of 1..M is the best of C(i - 1, n - 1) of the C(M, n) subsets. gold =
    scores gives the proxy. Among equal scores the first answer counts as the lowest.
    """
    M = scores.shape[1]
    if n > M:
        raise ValueError(
            f"best_of_n_mean: n must be in 1..{M}, the answers to a prompt, got {n}"
        )
    weights = torch.tensor(
        [math.comb(i, n - 1) / math.comb(M, n) for i in range(M)], dtype=torch.float64
    )  # (M,)
    order = scores.argsort(dim=1, stable=True)  # (B, M)
    return (gold.double().gather(1, order) * weights).sum(1)


@expects(
    "utilities: finite float (N,)",
    "others: finite float (M,)",
    "n: int >= 2",
    "temperature: number in (0, inf)",
)
def chosen_chance(utilities, others, n, temperature=1.0):
    """Return P(an answer is chosen at least once) among n answers: float64 (N,).

        1 - (mean over others of sigmoid((other - utility) / temperature))^(n - 1)

    It is compared once with each of n - 1 others, by an annotator of this temperature
    (Bradley-Terry); the mean is its chance to lose to one of them. utilities are of the
    answers asked about, others of answers drawn as the n - 1 are.
    """
    behind = others.double() - utilities.double()[:, None]  # (N, M)
    loses = torch.sigmoid(behind / temperature).mean(1)  # (N,)
    return 1 - loses.pow(n - 1)
