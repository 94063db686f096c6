"""Exact bounds of a paired difference: coverage by enumeration, laws, and the parts against other ways to them."""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from unerase_backend.verdict import paired, statistics

Floats = NDArray[np.float64]


def _outcomes(cases: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every (b, c) of so many pairs."""
    b, c = np.array([(b, c) for b in range(cases + 1) for c in range(cases + 1 - b)]).T
    return b, c


@cache
def _every_outcome(cases: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return every (b, c) of so many pairs, with both bounds."""
    b, c = _outcomes(cases)
    return b, c, *paired.excess_bounds(b, c, cases)


def _weights(cases: int, p_first: float, p_second: float) -> Floats:
    b, c = _outcomes(cases)
    cells = [p_first, p_second, max(1 - p_first - p_second, 0.0)]
    weights: Floats = stats.multinomial.pmf(np.stack([b, c, cases - b - c], axis=1), cases, cells)
    assert weights.sum() == pytest.approx(1)
    return weights


@pytest.mark.parametrize("cases", [1, 6, 13, 24])
def test_both_bounds_cover_over_the_whole_simplex(cases: int) -> None:
    """By enumeration of every outcome, at differences that are bounds themselves too: there coverage is least."""
    _, _, lower, upper = _every_outcome(cases)
    steps = np.linspace(0, 1, 26)
    truths = [(p, q) for p in steps for q in steps if p + q <= 1 + 1e-12]
    for bound in np.unique(np.round(upper, 9))[:: max(1, cases // 4)]:
        most = (1 - bound) / 2
        truths += [(q + bound + 1e-9, q) for q in np.linspace(max(0.0, -bound), most, 12) if 2 * q + bound < 1 - 1e-9]
    worst = 1.0
    for p_first, p_second in truths:
        weights, true = _weights(cases, p_first, p_second), p_first - p_second
        below, above = weights[lower <= true + 1e-12].sum(), weights[upper >= true - 1e-12].sum()
        assert min(below, above) >= 0.95 - 1e-9, (p_first, p_second)
        worst = min(worst, below, above)
    # Nearly all of the 5 % is spent somewhere: the bounds are not wider than they must be.
    assert worst < 0.952


def test_bounds_at_twice_the_level_would_not_cover() -> None:
    """The test above can fail."""
    upper = np.array([paired.upper_bound(b, 0, 24, 0.1) for b in range(25)])
    chances = [stats.binom.pmf(np.arange(25), 24, p)[upper >= p].sum() for p in np.linspace(0.01, 0.99, 99)]
    assert min(chances) < 0.95


@pytest.mark.parametrize("cases", [1, 6, 13, 24])
def test_they_are_never_wider_than_bonferronis(cases: int) -> None:
    b, c, lower, upper = _every_outcome(cases)
    wide_lower, wide_upper = statistics.unpaired_bounds(b, cases, c, cases)
    assert np.all(upper <= wide_upper + paired.PRECISION)
    assert np.all(lower >= wide_lower - paired.PRECISION)
    assert np.mean(wide_upper - upper) > 0.02


@pytest.mark.parametrize("cases", [1, 2, 7, 23, 24, 29, 30, 36, 48, 64, 96, 200, 512])
def test_without_discordant_pairs_it_is_clopper_and_pearsons(cases: int) -> None:
    exact = 1 - 0.05 ** (1 / cases)
    assert exact <= paired.upper_bound(0, 0, cases) <= exact + paired.PRECISION


def test_what_a_clean_audit_can_say() -> None:
    assert paired.upper_bound(0, 0, 24) == pytest.approx(0.117, abs=5e-4)
    assert paired.upper_bound(0, 0, 28) > 0.10 > paired.upper_bound(0, 0, 29)
    assert paired.upper_bound(1, 0, 48) == pytest.approx(0.095, abs=5e-4)


counts = st.integers(0, 30)


@given(b=counts, c=counts, neither=counts)
@settings(max_examples=40, deadline=None)
def test_the_bounds_mirror_each_other_and_hold_the_estimate(b: int, c: int, neither: int) -> None:
    assume(b + c + neither)
    cases = b + c + neither
    lower, upper = (float(bound) for bound in paired.excess_bounds(b, c, cases))
    assert paired.excess_bounds(c, b, cases) == (-upper, -lower)
    assert -1 <= lower <= (b - c) / cases <= upper <= 1


def test_more_for_the_first_raises_them_and_more_for_the_second_lowers_them() -> None:
    for cases in (6, 13, 24):
        b, c, lower, upper = _every_outcome(cases)
        at = {pair: index for index, pair in enumerate(zip(b.tolist(), c.tolist(), strict=True))}
        for (first, second), index in at.items():
            for more, sign in (((first + 1, second), 1), ((first, second + 1), -1)):
                if more in at:
                    assert sign * (upper[at[more]] - upper[index]) >= -1e-12
                    assert sign * (lower[at[more]] - lower[index]) >= -1e-12


@given(b=counts, c=counts, neither=counts, difference=st.floats(-0.9, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_score_is_that_of_the_likeliest_nuisance(b: int, c: int, neither: int, difference: float) -> None:
    """Tango's closed form, against a numeric maximum of the likelihood under the difference."""
    assume(b + c + neither)
    cases, least, most = b + c + neither, max(0.0, -difference), (1 - difference) / 2

    def unlikeliness(q: float) -> float:
        cells = (b, q + difference), (c, q), (neither, 1 - 2 * q - difference)
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    q = optimize.minimize_scalar(unlikeliness, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    variance = cases * (2 * q + difference * (1 - difference))
    above = b - c - cases * difference
    score = float(paired.score_statistic(b, c, cases, difference))
    if variance > 1e-3:
        assert score == pytest.approx(above / math.sqrt(variance), rel=1e-3, abs=1e-3)
    assert np.sign(score) == np.sign(above)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_chance_of_a_region_is_the_sum_over_its_outcomes(data: st.DataObject) -> None:
    cases = data.draw(st.integers(1, 13))
    least = paired.region(data.draw(st.floats(-0.99, 0.99)), cases)
    p_first = data.draw(st.floats(0, 1))
    p_second = data.draw(st.floats(0, 1)) * (1 - p_first)
    b, c = _outcomes(cases)
    assert np.all(np.diff(least) >= 0)
    expected = _weights(cases, p_first, p_second)[c >= least[b]].sum()
    assert float(paired.chance(least, [p_first], [p_second])[0]) == pytest.approx(expected, abs=1e-12)


def test_a_region_holds_the_outcomes_of_no_larger_limit() -> None:
    b, c = _outcomes(13)
    limits = np.array([paired.score_limit(*pair, 13) for pair in zip(b.tolist(), c.tolist(), strict=True)])
    for limit in limits[::7]:
        least = paired.region(float(limit), 13)
        np.testing.assert_array_equal(c >= least[b], limits <= limit + 1e-8)


@pytest.mark.parametrize("difference", [-0.2, 0.0, 0.1, 0.15, 0.5])
@pytest.mark.parametrize("cases", [6, 24])
def test_the_table_of_a_test_agrees_with_the_bounds(cases: int, difference: float) -> None:
    b, c, _, upper = _every_outcome(cases)
    clear = np.abs(upper - difference) > paired.PRECISION
    below = c >= paired.bounded_below(difference, cases)[b]
    np.testing.assert_array_equal(below[clear], (upper < difference)[clear])
    assert 0 < below.mean() < 1


def test_without_pairs_nothing_is_known() -> None:
    assert [float(bound) for bound in paired.excess_bounds(0, 0, 0)] == [-1, 1]


def test_very_many_pairs_have_bonferronis_bounds() -> None:
    cases = paired.MOST_PAIRS + 1
    lower, upper = paired.excess_bounds(30, 10, cases)
    assert (float(lower), float(upper)) == pytest.approx(
        [float(bound) for bound in statistics.unpaired_bounds(30, cases, 10, cases)]
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(6, 40), st.integers(0, 10), st.integers(0, 10))
def test_further_cases_settle_it_and_one_less_does_not(cases: int, b: int, c: int) -> None:
    b, c = min(b, cases), min(c, cases - min(b, cases))
    further = paired.further_cases(b, c, cases, 0.15, 4)

    def settled(total: int) -> bool:
        first, second = round(b * total / cases), round(c * total / cases)
        bounded = paired.upper_bound(first, second, total) < 0.15
        return bounded or float(statistics.mcnemar_p(first, second)) * 4 < 0.05

    if further:
        assert settled(cases + further)
        assert not any(settled(total) for total in range(max(cases + 1, cases + further - 3), cases + further))
    else:
        assert not any(settled(total) for total in range(cases + 1, paired.FURTHER_CASES_LIMIT, 97))


def test_further_cases_of_a_clean_but_small_sample() -> None:
    assert paired.further_cases(0, 0, 12, 0.15, 4) == 19 - 12
    assert paired.further_cases(0, 0, 24, 0.10, 4) == 29 - 24
    assert paired.further_cases(0, 0, 0, 0.15, 4) == 0
