"""The statistics of an audit: intervals, tests and their power.

Every function takes numbers or arrays (which broadcast) and returns float64 arrays, unless it says otherwise. Counts
adjusted for a design effect may be fractions. Only functions that take a generator are random.
"""

from dataclasses import dataclass

import numpy as np

# Its `stats` takes half a second to import, and is imported when it is first used.
import scipy
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Every interval is at 95 %, every test at 5 %."""

HALVINGS = 60
"""Halvings of an interval of length 2 until a bound is as exact as float64 is."""


FURTHER_CASES_LIMIT = 512
"""The most cases that an audit can have."""


def wilson(hits: ArrayLike, cases: ArrayLike, alpha: float = ALPHA) -> tuple[Floats, Floats]:
    """Return Wilson's two-sided interval of a proportion (Wilson 1927); [0, 1] without cases."""
    hits, cases = np.broadcast_arrays(np.asarray(hits, float), np.asarray(cases, float))
    z2 = float(special.ndtri(1 - alpha / 2)) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = hits / cases
        centre = (rate + z2 / (2 * cases)) / (1 + z2 / cases)
        half = np.sqrt(z2 * (rate * (1 - rate) / cases + z2 / (4 * cases**2))) / (1 + z2 / cases)
    # The bounds at 0 and 1 are exact; rounding must not shift them.
    lower = np.where((cases > 0) & (hits > 0), centre - half, 0.0)
    upper = np.where((cases > 0) & (hits < cases), centre + half, 1.0)
    return lower, upper


def clopper_pearson_lower(hits: ArrayLike, cases: ArrayLike, alpha: float = ALPHA) -> Floats:
    """Return the exact one-sided lower bound of a proportion at confidence 1 - alpha (Clopper and Pearson 1934)."""
    hits, cases = np.broadcast_arrays(np.asarray(hits, float), np.asarray(cases, float))
    some = hits > 0
    return np.where(some, special.betaincinv(np.where(some, hits, 1.0), np.maximum(cases - hits, 0) + 1, alpha), 0.0)


def clopper_pearson_upper(hits: ArrayLike, cases: ArrayLike, alpha: float = ALPHA) -> Floats:
    """Return the exact one-sided upper bound of a proportion at confidence 1 - alpha."""
    hits, cases = np.broadcast_arrays(np.asarray(hits, float), np.asarray(cases, float))
    return 1 - clopper_pearson_lower(cases - hits, cases, alpha)


def unpaired_bounds(
    first: ArrayLike, first_cases: ArrayLike, second: ArrayLike, second_cases: ArrayLike, alpha: float = ALPHA
) -> tuple[Floats, Floats]:
    """Return the one-sided lower and upper bounds of a difference of two proportions, from the hits of each.

    upper = CP_upper(first; alpha/2) - CP_lower(second; alpha/2), and the lower bound mirrors it: Bonferroni over the
    two. The coverage of each bound is at least 1 - alpha, whatever the number of cases and their dependence. For pairs,
    `paired.excess_bounds` are much tighter.
    """
    lower = clopper_pearson_lower(first, first_cases, alpha / 2) - clopper_pearson_upper(
        second, second_cases, alpha / 2
    )
    upper = clopper_pearson_upper(first, first_cases, alpha / 2) - clopper_pearson_lower(
        second, second_cases, alpha / 2
    )
    return lower, upper


def mcnemar_p(only_first: ArrayLike, only_second: ArrayLike) -> Floats:
    """Return McNemar's exact one-sided p that the first exceeds the second: P(X >= b), X ~ Binomial(b + c, 1/2)."""
    only_first, only_second = np.asarray(only_first), np.asarray(only_second)
    return np.asarray(scipy.stats.binom.sf(only_first - 1, only_first + only_second, 0.5), float)


def fisher_p(first: ArrayLike, first_cases: ArrayLike, second: ArrayLike, second_cases: ArrayLike) -> Floats:
    """Return Fisher's exact one-sided p that the first of two unpaired proportions exceeds the second."""
    first, first_cases, second, second_cases = (np.asarray(x) for x in (first, first_cases, second, second_cases))
    return np.asarray(
        scipy.stats.hypergeom.sf(first - 1, first_cases + second_cases, first + second, first_cases), float
    )


def holm(p: ArrayLike) -> Floats:
    """Return p-values adjusted by Holm's method (Holm 1979) along the last axis."""
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    adjusted = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, np.minimum(adjusted, 1.0), -1)
    return result


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Return Cohen's kappa of two binary raters; 1 if both give one and the same answer to all items, NaN if none."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.size == 0:
        return float("nan")
    observed = float(np.mean(first == second))
    chance = float(first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean()))
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def rogan_gladen(rate: ArrayLike, sensitivity: ArrayLike, specificity: ArrayLike) -> Floats:
    """Return the true rate behind an apparent one (Rogan and Gladen 1978), within [0, 1].

    (rate + specificity - 1) / (sensitivity + specificity - 1); NaN if the judge is no better than chance.
    """
    rate, sensitivity, specificity = (np.asarray(x, float) for x in (rate, sensitivity, specificity))
    youden = sensitivity + specificity - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(youden > 0, np.clip((rate + specificity - 1) / youden, 0, 1), np.nan)


def rogan_gladen_interval(
    sample: tuple[float, float],
    sensitivity: tuple[float, float],
    specificity: tuple[float, float],
    generator: np.random.Generator,
    *,
    resamples: int = 4000,
    alpha: float = ALPHA,
) -> tuple[float, float]:
    """Return a two-sided interval of the corrected rate that includes the uncertainty about the judge.

    Each argument is (hits, cases). The three rates are drawn from their Jeffreys posteriors, Beta(hits + 1/2,
    misses + 1/2), and corrected; the interval is the percentiles of the corrected rates. It is [0, 1] if the judge may
    be no better than chance.
    """
    rate, sensitive, specific = (
        generator.beta(hits + 0.5, cases - hits + 0.5, resamples) for hits, cases in (sample, sensitivity, specificity)
    )
    corrected = rogan_gladen(rate, sensitive, specific)
    if np.isnan(corrected).any():
        return 0.0, 1.0
    lower, upper = np.quantile(corrected, [alpha / 2, 1 - alpha / 2])
    return float(lower), float(upper)


def resampled_means(values: Floats, generator: np.random.Generator, resamples: int = 4000) -> Floats:
    """Return the means of bootstrap resamples of the pictures: (pictures, figures) -> (resamples, figures).

    The figures of one picture stay together.
    """
    indices = generator.integers(0, len(values), (resamples, len(values)))
    return np.stack([column[indices].mean(axis=1) for column in values.T], axis=1)


@dataclass(frozen=True)
class EffectiveSample:
    """A rate over clustered draws, and the number of independent draws that would estimate it as precisely."""

    rate: float
    size: float

    @property
    def hits(self) -> float:
        """Hits in a sample of that size."""
        return self.rate * self.size


def effective_sample(hits: ArrayLike, draws: ArrayLike) -> EffectiveSample:
    """Return the effective sample of draws that come in clusters, (clusters,) each (Korn and Graubard 1998).

    The size is the number of draws over the design effect (the linearised variance of the ratio hits / draws over the
    binomial one), times (t of draws - 1 over t of clusters - 1)^2, and at most the number of draws. If all draws agree,
    the design effect cannot be estimated, and the largest possible one is used: the size is the number of clusters.
    """
    hits, draws = np.asarray(hits, float), np.asarray(draws, float)
    hits, draws = hits[draws > 0], draws[draws > 0]
    total, clusters = float(draws.sum()), len(draws)
    if clusters == 0:
        return EffectiveSample(0.0, 0.0)
    rate = float(hits.sum()) / total
    if np.all(draws == 1):
        return EffectiveSample(rate, total)
    if rate in (0.0, 1.0) or clusters == 1:
        return EffectiveSample(rate, float(clusters))
    variance = clusters / (clusters - 1) * float(np.sum((hits - rate * draws) ** 2)) / total**2
    binomial = rate * (1 - rate) / total
    t_ratio = float(scipy.stats.t.ppf(0.975, total - 1) / scipy.stats.t.ppf(0.975, clusters - 1))
    # A variance below the binomial one is chance: clustered draws do not hold more information than independent ones.
    return EffectiveSample(rate, min(total, total / max(variance / binomial, 1e-9) * t_ratio**2))


def discordant_needed(tests: int, alpha: float = ALPHA) -> int:
    """Return the fewest discordant cases, all in one direction, whose p is under alpha as the smallest of `tests`."""
    needed = 1
    while max(tests, 1) * 0.5**needed >= alpha:
        needed += 1
    return needed


def power(cases: int, excess: float, tests: int, alpha: float = ALPHA) -> float:
    """Return the chance that an excess is found if the control shows nothing: P(X >= discordant_needed)."""
    return float(scipy.stats.binom.sf(discordant_needed(tests, alpha) - 1, cases, excess))


def further_cases_alone(hits: int, cases: int, tolerance: float, alpha: float = ALPHA) -> int:
    """Return how many more cases would bring the upper bound of a proportion under the tolerance at its present rate.

    0 if that takes more than FURTHER_CASES_LIMIT cases in all, or if `cases` is 0.
    """
    if cases == 0:
        return 0
    totals = np.arange(cases + 1, FURTHER_CASES_LIMIT + 1)
    settled = clopper_pearson_upper(np.rint(hits * totals / cases), totals, alpha) < tolerance
    return int(totals[np.argmax(settled)]) - cases if settled.any() else 0
