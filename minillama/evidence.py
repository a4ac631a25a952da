"""How far a number may be trusted: intervals of a mean and of a share.

Every comparison of the course rests on several runs or prompts and is told with the
interval of its mean. Left out: tests of hypotheses (an interval says more).
"""

from collections import defaultdict

import torch

from minillama.contracts import expects

# The 97.5 % quantile of Student's t with 1 to 9 degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@expects("values: finite float (N,) or list of number (N,)", "-> number", "-> number")
def mean_interval(values):
    """Return the mean of independent runs and half the width of its 95 % interval.

        half = t(N - 1) s / sqrt(N)

    s: the runs' standard deviation (divisor N - 1); t(n): the 97.5 % quantile of
    Student's t with n degrees of freedom, 4.3 for three runs and close to 1.96 for
    many. Where two runs share a seed, give it their difference: common luck drops out.
    Raises ValueError for a single run. Source: Student 1908 (Biometrika 6); beyond nine
    degrees of freedom the series of Abramowitz and Stegun, equation 26.7.5.
    """
    x = torch.as_tensor(values, dtype=torch.float64)
    n, z = len(x) - 1, 1.959964  # z: the quantile of a Gaussian, t with n = infinity
    if n == 0:
        raise ValueError("mean_interval: values must be at least two runs, got one")
    if n <= len(STUDENT):
        t = STUDENT[n - 1]
    else:
        t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    return x.mean().item(), t * x.std().item() / (n + 1) ** 0.5


@expects("share: number in [0, 1]", "count: number > 0", "-> number", "-> number")
def wilson_interval(share, count, z=1.96):
    """Return the lowest and the highest chance that a share of a count speaks for.

        (share + z^2 / 2n ± z sqrt(share (1 - share) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    n = count, which need not be whole; z = 1.96 covers 95 %. Unlike share ± 1.96
    standard errors it stays within [0, 1] and has a width when all were right. Source:
    Wilson 1927 (Journal of the American Statistical Association 22).
    """
    n = count
    middle = share + z**2 / (2 * n)
    width = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)
    return max(0.0, low), min(1.0, high)


@expects("right: float (N,) in [0, 1]", "groups: list (N,)", "-> number > 0")
def effective_count(right, groups):
    """Return how many independent outcomes tell as much as these, at most N.

        N sum_i d_i^2 / sum_g (sum of d_i in group g)^2      d_i = right_i - their mean

    groups: for each outcome a value that is equal within a group, such as the prompt:
    comparisons of one prompt's answers stand or fall together. Where all outcomes are
    alike, or of one group, it is the number of groups. Source: the design effect of
    cluster sampling (Kish 1965, Survey Sampling, section 5.4).
    """
    deviations = (right - right.double().mean()).tolist()
    sums = defaultdict(float)
    for group, deviation in zip(groups, deviations, strict=True):
        sums[group] += deviation
    alone = sum(d * d for d in deviations)
    together = sum(d * d for d in sums.values())
    if alone == 0 or len(sums) == 1:
        return float(len(sums))
    return len(deviations) * (alone / max(alone, together))
