"""Bounds of the excess that hold at every look, so that an evaluation may stop as soon as its outcome is settled.

For the pair of case i, X_i in {-1, 0, 1} is the first model's detection minus the second's, and d is its mean given all
earlier pairs. Betting against "d is at least m" with a stake u in [0, 1] gives the wealth

    K_n(m; u) = product over i <= n of 1 - u (X_i - m) / (1 - m)
              = (1 - u)^b  (1 + u (1 + m) / (1 - m))^c  (1 + u m / (1 - m))^(n - b - c)

with b cases in which only the first model shows the concept, and c in which only the second does. No factor is
negative, and if d >= m each has a mean of at most 1. So K_n(m; u) is a test supermartingale, and so is its mixture
K_n(m) over stakes. By Ville's inequality, the chance that it ever reaches 1 / alpha is at most alpha. K_n(m) grows with
m, hence, at all looks at once,

    upper bound of d = the smallest m with K_n(m) >= 1 / alpha,    lower bound = -upper bound of -X,
    p of "d is at most 0" = 1 / K_n(0) of -X.

The mixture puts half the weight on u = 1, which is the test of fixed size except that a single case in the other
direction loses it all. The other half is on u = sin(theta) at the midpoints of 64 equal parts of [0, pi / 2]: the
arcsine law, which has a small regret against the best stake in hindsight. The finite mixture is exact, not an
approximation: every mixture of stakes is itself a valid bet.

Sources: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", arXiv 2010.09686 (the
bets); Ville 1939 (the inequality). Every p here holds at every stopping time, whatever the stopping rule. Holm's
adjustment over evaluations that stopped at different times is therefore as valid as for p-values of fixed size.
"""

from functools import lru_cache

import numpy as np

# Its `stats` takes half a second to import, and is imported when it is first used.
import scipy
from numpy.typing import ArrayLike, NDArray
from scipy import special

from unerase_backend.verdict.statistics import ALPHA, FURTHER_CASES_LIMIT, HALVINGS

Floats = NDArray[np.float64]

LOOK_EVERY = 3
"""Cases between two looks.

Seven to nine discordant cases settle an excess, 21 cases without any its absence at a tolerance of 0.15.
"""

_PARTS = 64
_STAKES: Floats = np.append(np.sin((np.arange(_PARTS) + 0.5) / _PARTS * np.pi / 2), 1.0)
_LOG_SHARES: Floats = np.log(np.append(np.full(_PARTS, 0.5 / _PARTS), 0.5))


def log_wealth(first: ArrayLike, second: ArrayLike, cases: ArrayLike, excess: ArrayLike) -> Floats:
    """Return log K_n(m), the evidence against an excess of at least m = `excess` in [-1, 1); arrays broadcast.

    `first` and `second` count the cases in which only the first, or only the second, model shows the concept.
    """
    first, second, cases, excess = (np.asarray(x, float)[..., None] for x in (first, second, cases, excess))
    unit = _STAKES / (1 - excess)
    logs = (
        _LOG_SHARES
        + special.xlog1py(first, -_STAKES)
        + special.xlog1py(second, unit * (1 + excess))
        + special.xlog1py(cases - first - second, unit * excess)
    )
    return _log_sum_exp(logs)


def _log_sum_exp(logs: Floats) -> Floats:
    """Return the logarithm of the sum of exp(logs) over the last axis, whose largest number must be finite.

    Bit for bit what `scipy.special.logsumexp` returns, whose checks take several times as long as the arithmetic.
    """
    largest = logs.max(axis=-1, keepdims=True)
    at_largest = logs == largest
    equal = at_largest.sum(axis=-1, dtype=float)
    rest = np.where(at_largest, 0.0, np.exp(logs - largest)).sum(axis=-1)
    return np.asarray(np.log1p(rest / equal) + np.log(equal) + largest[..., 0])


def anytime_bounds(
    first: ArrayLike, second: ArrayLike, cases: ArrayLike, alpha: float = ALPHA
) -> tuple[Floats, Floats]:
    """Return the one-sided lower and upper bounds of the excess, each at confidence 1 - alpha over all looks."""
    first, second, cases = np.broadcast_arrays(*(np.asarray(x, float) for x in (first, second, cases)))
    lower, upper = _bounds(*(tuple(counts.flat) for counts in (first, second, cases)), alpha)
    return np.reshape(lower, first.shape), np.reshape(upper, first.shape)


# The same few counts come again at every look, in every evaluation and in every audit of a campaign.
@lru_cache(maxsize=4096)
def _bounds(
    first: tuple[float, ...], second: tuple[float, ...], cases: tuple[float, ...], alpha: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    both = _upper(second + first, first + second, cases + cases, alpha).tolist()
    return tuple(-bound for bound in both[: len(first)]), tuple(both[len(first) :])


def anytime_p(first: ArrayLike, second: ArrayLike) -> Floats:
    """Return the one-sided p that the first model exceeds the second, valid at all looks at once."""
    discordant = np.asarray(first) + np.asarray(second)
    return np.exp(-np.maximum(log_wealth(second, first, discordant, 0.0), 0.0))


def _upper(first: ArrayLike, second: ArrayLike, cases: ArrayLike, alpha: float) -> Floats:
    first, second, cases = np.broadcast_arrays(*(np.asarray(x, float) for x in (first, second, cases)))
    low, high = np.full(first.shape, -1.0), np.ones(first.shape)
    enough = -np.log(alpha)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # At 1 there is nothing to bet on, so a midpoint that rounds to 1 is replaced by the number below it.
        refuted = log_wealth(first, second, cases, np.minimum(middle, np.nextafter(1.0, 0.0))) >= enough
        low, high = np.where(refuted, low, middle), np.where(refuted, middle, high)
    return high


def anytime_discordant_needed(tests: int, alpha: float = ALPHA) -> int:
    """Return the fewest discordant cases, all in one direction, whose p is under alpha as the smallest of `tests`."""
    needed = 1
    while max(tests, 1) * float(anytime_p(needed, 0)) >= alpha:
        needed += 1
    return needed


def anytime_power(cases: int, excess: float, tests: int, alpha: float = ALPHA) -> float:
    """Return the chance that an excess is found by the last case, if the control never shows the concept."""
    return float(scipy.stats.binom.sf(anytime_discordant_needed(tests, alpha) - 1, cases, excess))


def anytime_further_cases(
    only_first: int, only_second: int, cases: int, tolerance: float, tests: int, alpha: float = ALPHA
) -> int:
    """Return how many more cases would settle an excess at its present rates; 0 if that takes too many."""
    if cases == 0:
        return 0
    totals = np.arange(cases + 1, FURTHER_CASES_LIMIT + 1)
    first, second = np.rint(only_first * totals / cases), np.rint(only_second * totals / cases)
    bounded = log_wealth(first, second, totals, min(tolerance, np.nextafter(1.0, 0.0))) > -np.log(alpha)
    settled = bounded | (anytime_p(first, second) * max(tests, 1) < alpha)
    return int(totals[np.argmax(settled)]) - cases if settled.any() else 0


def cases_between_looks(cases_per_unit: int) -> int:
    """Return the number of cases between two looks at an evaluation whose units hold at most `cases_per_unit`.

    0 if all cases belong to one unit, which cannot be stopped.
    """
    return min(cases_per_unit, LOOK_EVERY)
