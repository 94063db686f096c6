"""Exact bounds of the difference of two paired proportions.

Of n pairs, b show the concept in the first model only and c in the second only: (b, c) is multinomial with cell
probabilities p1 and p2, and d = p1 - p2 is the difference. p2 is a nuisance. Tango's score statistic for a difference d

    T(b, c; d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))),
    q = (w + sqrt(w^2 + 8 n c d (1 - d))) / (4 n),    w = (b + c) (1 - d) - 2 d (n - b)

has q, the likeliest p2 given d (Tango 1998). Its limit U(b, c), where T(b, c; U) = -z with z the normal quantile of
1 - alpha / 2, orders the outcomes, but covers only approximately. The bound is the exact one with that order,

    upper(b, c) = the largest d with  sup over p2 of P(U(B, C) <= U(b, c); d, p2) > alpha,
    lower(b, c) = -upper(c, b),

the smallest bound that grows with U and covers at least 1 - alpha, whatever n, p1 and p2 (Buehler 1957; Lloyd and
Moldovan 2007; the supremum over the nuisance in place of conditioning: Chan and Zhang 1999). Any order would do for
coverage. The limit at alpha / 2 puts few outcomes with many discordant pairs before those with none. So the bound of
b = c = 0 at 95 % is Clopper and Pearson's of 0 of n (but for n = 9), which the limit at alpha, or T at each d, exceeds
at small n.

T grows with b and falls with c. So a region R = {U <= u} holds, for each b, every c from some c_min(b) on, c_min grows
with b, and P(R) falls with p1 and grows with p2 (Barnard's convexity; Hsueh, Liu and Chen 2001). Two things follow.
The supremum over p2 falls with d, so that bisection finds the bound. And where p2 is between q and q', P(R) at d is at
most P(R; p1 = d + q, p2 = q'), so that finitely many values certify the supremum: the bound errs upwards alone, by at
most `PRECISION`.

Sources: Tango 1998, Statistics in Medicine 17:891; Buehler 1957, JASA 52:482; Chan and Zhang 1999, Biometrics 55:1202;
Hsueh, Liu and Chen 2001, Biometrics 57:478; Lloyd and Moldovan 2007, Statistics in Medicine 26:3369.
"""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from unerase_backend.verdict import statistics
from unerase_backend.verdict.statistics import ALPHA, FURTHER_CASES_LIMIT, HALVINGS

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

PRECISION = 5e-5
"""How much larger than the exact bound the returned one may be."""

MOST_PAIRS = 1024
"""With more pairs than this the bounds are Bonferroni's over two bounds of Clopper and Pearson, which are wider."""

_FIRST_PARTS = 16


def excess_bounds(
    only_first: ArrayLike, only_second: ArrayLike, cases: ArrayLike, alpha: float = ALPHA
) -> tuple[Floats, Floats]:
    """Return the one-sided lower and upper bounds of P(first) - P(second), each at confidence 1 - alpha.

    `only_first` and `only_second` count the pairs in which only that model shows the concept, of `cases` pairs; arrays
    broadcast. Without pairs the bounds are -1 and 1.
    """
    counts = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (only_first, only_second, cases)))
    shape = counts[0].shape
    each = list(zip(*(count.ravel().tolist() for count in counts), strict=True))
    upper = np.array([upper_bound(b, c, n, alpha) for b, c, n in each], float).reshape(shape)
    lower = np.array([-upper_bound(c, b, n, alpha) for b, c, n in each], float).reshape(shape)
    return lower, upper


@cache
def upper_bound(only_first: int, only_second: int, cases: int, alpha: float = ALPHA) -> float:
    """Return the one-sided upper bound of the difference, at confidence 1 - alpha."""
    if cases in (0, only_first):
        return 1.0
    if cases > MOST_PAIRS:
        return float(statistics.unpaired_bounds(only_first, cases, only_second, cases, alpha)[1])
    least = _region_of(only_first, only_second, cases, alpha)
    low, high = (only_first - only_second) / cases, 1.0
    while high - low > PRECISION / 2:
        middle = (low + high) / 2
        if _is_rare(least, middle, alpha):
            high = middle
        else:
            low = middle
    return high


@cache
def bounded_below(difference: float, cases: int, alpha: float = ALPHA) -> Counts:
    """Return, for each count b of the first model only, the least c with upper(b, c) < `difference`; (cases + 1,).

    It is cases + 1 where no c is enough. This is the table of the test "the difference is at least that",
    and takes no more time than a few bounds.
    """
    low, high, found = -1.0, 1.0, np.full(cases + 1, cases + 1)
    # Regions grow with the limit that they are made of; the largest rare one is the answer.
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        least = region(middle, cases, alpha / 2)
        if _is_rare(least, difference, alpha):
            low, found = middle, least
        else:
            high = middle
    found.flags.writeable = False
    return found


def further_cases(
    only_first: int, only_second: int, cases: int, tolerance: float, tests: int, alpha: float = ALPHA
) -> int:
    """Return how many more cases would settle an inconclusive excess at its present rates.

    It is settled if the upper bound is under the tolerance, or if p times the number of tests is under alpha (Holm's
    requirement for the smallest p). Returns 0 if that takes more than FURTHER_CASES_LIMIT cases in all, or if `cases`
    is 0.
    """
    if cases == 0:
        return 0
    totals = np.arange(cases + 1, FURTHER_CASES_LIMIT + 1)
    first, second = np.rint(only_first * totals / cases), np.rint(only_second * totals / cases)
    found = statistics.mcnemar_p(first, second) * max(tests, 1) < alpha
    # Tango's limit is quick, and nearly never above the exact bound.
    promising = score_statistic(first, second, totals, tolerance) <= special.ndtri(alpha)
    for index in np.flatnonzero(found | promising):
        counts = int(first[index]), int(second[index]), int(totals[index])
        if found[index] or _is_rare(_region_of(*counts, alpha), tolerance, alpha):
            return counts[2] - cases
    return 0


def score_statistic(only_first: ArrayLike, only_second: ArrayLike, cases: ArrayLike, difference: ArrayLike) -> Floats:
    """Return Tango's T(b, c; d); arrays broadcast. Where T has no variance it is infinite, or 0 at the estimate."""
    b, c, n, d = (np.asarray(x, float) for x in (only_first, only_second, cases, difference))
    w = (b + c) * (1 - d) - 2 * d * (n - b)
    q = (w + np.sqrt(np.maximum(w**2 + 8 * n * c * d * (1 - d), 0))) / (4 * n)
    variance = n * (2 * np.clip(q, np.maximum(0, -d), (1 - d) / 2) + d * (1 - d))
    above = b - c - n * d
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == 0, 0.0, above / np.sqrt(np.maximum(variance, 0)))


def score_limit(only_first: int, only_second: int, cases: int, alpha: float = ALPHA) -> float:
    """Return Tango's approximate upper limit U: the difference at which T is -z."""
    enough = special.ndtri(alpha)
    low, high = (only_first - only_second) / cases, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if score_statistic(only_first, only_second, cases, middle) <= enough:
            high = middle
        else:
            low = middle
    return high


def region(limit: float, cases: int, alpha: float = ALPHA) -> Counts:
    """Return c_min(b) of the outcomes whose approximate limit is at most `limit`; (cases + 1,).

    It is cases + 1 where there is none.
    """
    b = np.arange(cases + 1)
    low, high = np.zeros(cases + 1, np.int64), cases - b + 1
    # Rounding must not leave out the outcome that the limit is of.
    enough = special.ndtri(alpha) + 1e-9
    for _ in range(int(cases).bit_length() + 1):
        middle = (low + high) // 2
        inside = score_statistic(b, np.minimum(middle, cases - b), cases, limit) <= enough
        low, high = np.where(inside | (low >= high), low, middle + 1), np.where(inside, middle, high)
    high = np.where(high <= cases - b, high, cases + 1)
    # The hull in Barnard's sense, so that the laws above hold whatever rounding did.
    return np.minimum.accumulate(high[::-1])[::-1]


def _region_of(only_first: int, only_second: int, cases: int, alpha: float) -> Counts:
    return region(score_limit(only_first, only_second, cases, alpha / 2), cases, alpha / 2)


def chance(least: Counts, first: ArrayLike, second: ArrayLike) -> Floats:
    """Return P(C >= least[B]) for cell probabilities `first` and `second`, (k,) each; `least` is (cases + 1,)."""
    p1, p2 = (np.asarray(x, float)[:, None] for x in (first, second))
    cases = len(least) - 1
    b = np.flatnonzero(least <= cases - np.arange(cases + 1))
    left, needed = cases - b, least[b]
    ways = special.gammaln(cases + 1) - special.gammaln(b + 1) - special.gammaln(left + 1)
    weight = np.exp(ways + special.xlogy(b, p1) + special.xlog1py(left, -p1))
    # What is left out is less than rounding.
    k, j = np.nonzero(weight > 1e-18)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(p1 < 1, p2 / (1 - p1), 0.0), 0, 1)[k, 0]
    tail = np.where(needed[j] > 0, special.betainc(np.maximum(needed[j], 1), left[j] - needed[j] + 1, share), 1.0)
    return np.bincount(k, weight[k, j] * tail, minlength=len(p1)).astype(float)


def _is_rare(least: Counts, difference: float, alpha: float) -> bool:
    """Whether a region's chance is certainly at most alpha at this difference, whatever the nuisance."""
    if difference >= 1:
        return True
    edges = np.linspace(max(0.0, -difference), (1 - difference) / 2, _FIRST_PARTS + 1)
    low, high = edges[:-1], edges[1:]
    while True:
        # The middle of a part is a point of it: where it is not rare, neither is the region.
        middle = (low + high) / 2
        likely = chance(least, difference + np.append(low, middle), np.append(high, middle)) > alpha
        still_open = likely[: len(low)]
        if not still_open.any():
            return True
        if likely[len(low) :].any() or high[0] - low[0] < PRECISION / 2:
            return False
        low, middle, high = low[still_open], middle[still_open], high[still_open]
        low, high = np.append(low, middle), np.append(middle, high)
