"""How far a number may be trusted: intervals of a mean and of a share.

Every comparison of the course rests on several runs or prompts and is told with the
interval of its mean. An interval is only as good as its unit: what may be drawn anew
alone (a prompt, a seed) is one, several answers to one prompt are not. Why language
models are to be compared so: Miller 2024 (arXiv 2411.00640); seeds as the unit:
Henderson et al. 2018 (1709.06560), Agarwal et al. 2021 (2108.13264). Left out: tests of
hypotheses (an interval says more), and bootstrap intervals other than the percentile's.
"""

import math
from collections import defaultdict
from statistics import NormalDist

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


@expects(
    "interval: function",
    "chance: number in [0, 1]",
    "count: int in [1, 1000]",
    "-> number in [0, 1]",
)
def exact_coverage(interval, chance, count):
    """Return how often the interval of a share holds the true chance, exactly.

        sum_k C(n, k) p^k (1 - p)^(n - k) [low(k / n) <= p <= high(k / n)]

    interval(share, count) -> (low, high), such as `wilson_interval`. n = count
    independent outcomes, each one right with chance p. Nothing is drawn.
    """
    held = 0.0
    for k in range(count + 1):
        low, high = interval(k / count, count)
        if low <= chance <= high:
            held += math.comb(count, k) * chance**k * (1 - chance) ** (count - k)
    return min(held, 1.0)  # rounding may add a last bit


@expects(
    "values: finite float (N,)",
    "generator: Generator",
    "groups: list (N,) or None",
    "draws: int >= 1",
    "level: number in (0, 1)",
    "-> number",
    "-> number",
)
def bootstrap_interval(values, generator, groups=None, draws=1000, level=0.95):
    """Return the lowest and the highest mean that redrawn values speak for.

    Each draw takes as many units as there are, with replacement, and notes the mean of
    all their values; the ends are the quantiles (1 - level) / 2 and (1 + level) / 2 of
    these means. A unit is one value, or with `groups` all values of one group (of one
    prompt): they go in or stay out together. Raises ValueError for a single unit.
    Source: Efron 1979 (Annals of Statistics 7); the percentile interval: Efron and
    Tibshirani 1993, section 13.3.
    """
    names = range(len(values)) if groups is None else groups
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    units = len(place)
    if units == 1:
        raise ValueError(
            "bootstrap_interval: values must be of at least two units, got 1"
        )
    which = torch.tensor([place[name] for name in names])  # (N,)
    sums = torch.zeros(units, dtype=torch.float64)
    sums.index_add_(0, which, values.detach().cpu().double())
    sizes = torch.bincount(which)
    drawn = torch.randint(units, (draws, units), generator=generator)
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)  # (draws,)
    low, high = ((1 - level) / 2, (1 + level) / 2)
    return means.quantile(low).item(), means.quantile(high).item()


@expects("values: finite float (N, K)", "-> number in [-1, 1]")
def intraclass_correlation(values):
    """Return how alike the K values of one row are, against values of other rows.

        (B - W) / (B + (K - 1) W)

    B: K times the variance of the rows' means; W: the mean variance within a row. 1
    where every row is constant, about 0 where rows do not matter, -1 / (K - 1) at the
    least. The mean of N K values then has a variance 1 + (K - 1) times this, the design
    effect, as large as of N K independent ones. Raises ValueError for fewer than two
    rows or columns, and where all values are equal. Source: Fisher 1925 (Statistical
    Methods for Research Workers, chapter 7); ICC(1, 1) of Shrout and Fleiss 1979.
    """
    N, K = values.shape
    if N == 1 or K == 1 or values.min() == values.max():
        raise ValueError(
            "intraclass_correlation: values must be at least (2, 2) and not all equal, "
            f"got {(N, K)}, from {values.min()} to {values.max()}"
        )
    between = K * values.double().mean(1).var()
    within = values.double().var(1).mean()
    alike = (between - within) / (between + (K - 1) * within)
    return alike.clamp(-1, 1).item()  # rounding may add a last bit


@expects(
    "difference: finite number > 0",
    "std: finite number > 0",
    "power: number in [0.5, 1)",
    "-> int >= 1",
)
def prompts_needed(difference, std, power=0.8):
    """Return how many prompts show a true difference of two policies.

        n = ((z(0.975) + z(power)) std / difference)^2, rounded up

    With n prompts the 95 % interval of the mean difference leaves out 0 with a chance
    of `power`. std: of the difference on one prompt, in the unit of `difference`; z: a
    quantile of a standard Gaussian. Source: Miller 2024, on power analysis.
    """
    z = NormalDist().inv_cdf
    return math.ceil(((z(0.975) + z(power)) * std / difference) ** 2)
