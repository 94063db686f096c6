"""Every statistic against an independent implementation, and its laws by enumeration."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unerase_backend.verdict import statistics

COUNTS = [(hits, cases) for cases in (1, 5, 24, 96) for hits in range(cases + 1)]


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_wilson_and_clopper_pearson_equal_scipy(alpha: float) -> None:
    hits, cases = np.array(COUNTS).T
    wilson = [stats.binomtest(*counts).proportion_ci(1 - alpha, method="wilson") for counts in COUNTS]
    np.testing.assert_allclose(np.transpose(statistics.wilson(hits, cases, alpha)), wilson, atol=1e-12)
    # Clopper and Pearson's bounds are quantiles of beta distributions, which are not there without hits, or misses.
    lower = np.where(hits > 0, stats.beta.ppf(alpha / 2, hits, cases - hits + 1), 0)
    upper = np.where(hits < cases, stats.beta.ppf(1 - alpha / 2, hits + 1, cases - hits), 1)
    np.testing.assert_allclose(statistics.clopper_pearson_lower(hits, cases, alpha / 2), lower, atol=1e-12)
    np.testing.assert_allclose(statistics.clopper_pearson_upper(hits, cases, alpha / 2), upper, atol=1e-12)


@pytest.mark.parametrize(("side", "ours"), [("less", "upper"), ("greater", "lower")])
def test_one_sided_bounds_equal_scipy(side: str, ours: str) -> None:
    for hits, cases in COUNTS[:40]:
        interval = stats.binomtest(hits, cases, alternative=side).proportion_ci(0.95, method="exact")
        expected = interval.high if ours == "upper" else interval.low
        assert getattr(statistics, f"clopper_pearson_{ours}")(hits, cases) == pytest.approx(expected, abs=1e-9)


def test_nothing_in_30_claims_what_the_rules_say() -> None:
    assert statistics.clopper_pearson_upper(0, 30) == pytest.approx(0.095, abs=5e-4)
    assert statistics.clopper_pearson_upper(0, 30, 0.025) == pytest.approx(0.116, abs=5e-4)


def test_without_cases_nothing_is_known() -> None:
    assert [float(bound) for bound in statistics.wilson(0, 0)] == [0, 1]
    assert (statistics.clopper_pearson_lower(0, 0), statistics.clopper_pearson_upper(0, 0)) == (0, 1)
    assert [float(bound) for bound in statistics.unpaired_bounds(0, 0, 0, 0)] == [-1, 1]


def test_mcnemar_equals_scipy() -> None:
    for b in range(12):
        for c in range(12):
            ours = float(statistics.mcnemar_p(b, c))
            expected = stats.binomtest(b, b + c, alternative="greater").pvalue if b + c else 1.0
            assert ours == pytest.approx(expected, rel=1e-12)
            if b > c:
                two_sided = stats.binomtest(b, b + c).pvalue
                assert 2 * ours == pytest.approx(two_sided, rel=1e-12)


def test_fisher_equals_scipy() -> None:
    for hits in range(0, 9, 2):
        for false in range(0, 13, 3):
            table = [[hits, 8 - hits], [false, 12 - false]]
            expected = stats.fisher_exact(table, alternative="greater").pvalue
            assert float(statistics.fisher_p(hits, 8, false, 12)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [[0.2], [0.01, 0.04, 0.03, 0.005], [0.5, 0.5, 0.001], [0.0, 1.0, 0.02, 0.02, 0.7]])
def test_holm_is_the_least_level_at_which_it_rejects(p: list[float]) -> None:
    """By Holm's own procedure: the smallest p against level / m, the next against level / (m - 1), until one fails."""
    for index, adjusted in enumerate(statistics.holm(p)):
        assert index in _rejected(p, float(adjusted) + 1e-9) or adjusted == 1
        assert index not in _rejected(p, float(adjusted) - 1e-9)


def _rejected(p: Sequence[float], level: float) -> set[int]:
    rejected: set[int] = set()
    for index in sorted(range(len(p)), key=lambda each: p[each]):
        if p[index] > level / (len(p) - len(rejected)):
            break
        rejected.add(index)
    return rejected


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.data())
def test_holm_grows_with_every_p(p: list[float], data: st.DataObject) -> None:
    """What bounds every mixture of unscored cases: no p that grows makes another's adjusted p smaller."""
    index = data.draw(st.integers(0, len(p) - 1))
    raised = [*p]
    raised[index] = data.draw(st.floats(p[index], 1))
    assert np.all(statistics.holm(raised) >= statistics.holm(p) - 1e-15)


def test_holm_works_along_the_last_axis() -> None:
    p = np.random.default_rng(0).random((5, 4))
    np.testing.assert_array_equal(statistics.holm(p), np.stack([statistics.holm(row) for row in p]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kappa_is_the_agreement_beyond_that_of_chance(pairs: list[tuple[bool, bool]]) -> None:
    """Cohen 1960, equation 1, in exact fractions; chance is that any answer of one meets any answer of the other."""
    first, second = zip(*pairs, strict=True)
    observed = Fraction(sum(a == b for a, b in pairs), len(pairs))
    chance = Fraction(sum(a == b for a in first for b in second), len(pairs) ** 2)
    expected = 1.0 if chance == 1 else float((observed - chance) / (1 - chance))
    assert statistics.cohen_kappa(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("cases", "pictures"), [(1, 3), (24, 100)])
def test_unpaired_bounds_cover_whatever_the_truth(cases: int, pictures: int) -> None:
    """Exact validity, by full enumeration over a grid of truths."""
    b, c = np.meshgrid(np.arange(cases + 1), np.arange(pictures + 1), indexing="ij")
    lower, upper = statistics.unpaired_bounds(b, cases, c, pictures)
    for p_first in np.linspace(0, 1, 11):
        for p_second in np.linspace(0, 1, 11):
            weight = stats.binom.pmf(b, cases, p_first) * stats.binom.pmf(c, pictures, p_second)
            truth = p_first - p_second
            assert weight[lower <= truth + 1e-12].sum() >= 0.95 - 1e-9
            assert weight[upper >= truth - 1e-12].sum() >= 0.95 - 1e-9


@given(st.integers(0, 24), st.integers(0, 24))
def test_unpaired_bounds_are_antisymmetric_and_monotone(b: int, c: int) -> None:
    lower, upper = statistics.unpaired_bounds(b, 48, c, 48)
    mirrored_lower, mirrored_upper = statistics.unpaired_bounds(c, 48, b, 48)
    assert float(lower) == pytest.approx(-float(mirrored_upper))
    assert float(upper) == pytest.approx(-float(mirrored_lower))
    more_lower, more_upper = statistics.unpaired_bounds(b + 1, 48, c, 48)
    assert more_lower >= lower
    assert more_upper > upper
    assert lower <= (b - c) / 48 <= upper


@pytest.mark.parametrize("cases", [8, 16, 24])
def test_mcnemar_holds_its_level(cases: int) -> None:
    """P(p < 0.05) is at most 0.05 for every share of discordant cases, where neither model exceeds the other."""
    discordant = np.arange(cases + 1)
    for share in np.linspace(0.1, 1, 10):
        level = 0.0
        for d in discordant:
            b = np.arange(d + 1)
            rejected = statistics.mcnemar_p(b, d - b) < 0.05
            level += stats.binom.pmf(d, cases, share) * stats.binom.pmf(b, d, 0.5)[rejected].sum()
        assert level <= 0.05 + 1e-12


def test_rogan_gladen_undoes_what_a_judge_does() -> None:
    for true in (0.0, 0.3, 1.0):
        apparent = true * 0.9 + (1 - true) * 0.05
        assert float(statistics.rogan_gladen(apparent, 0.9, 0.95)) == pytest.approx(true)
    assert math.isnan(statistics.rogan_gladen(0.5, 0.4, 0.6))


def test_rogan_gladen_interval_covers() -> None:
    """By simulation of sample and judge together; without the judge's uncertainty it falls well short."""
    generator = np.random.default_rng(3)
    true, sensitivity, specificity, cases, known = 0.3, 0.9, 0.95, 200, 60
    covered = naive = 0
    for _ in range(400):
        hits = generator.binomial(cases, true * sensitivity + (1 - true) * (1 - specificity))
        sensitive, specific = generator.binomial(known, sensitivity), generator.binomial(known, specificity)
        lower, upper = statistics.rogan_gladen_interval(
            (hits, cases), (sensitive, known), (specific, known), generator, resamples=500
        )
        covered += lower <= true <= upper
        # The same with a judge of known (infinitely well measured) quality: only the sample is uncertain.
        lower, upper = statistics.rogan_gladen_interval(
            (hits, cases), (sensitive * 1e6, known * 1e6), (specific * 1e6, known * 1e6), generator, resamples=500
        )
        naive += lower <= true <= upper
    assert covered / 400 >= 0.92
    assert naive < covered


def test_rogan_gladen_interval_knows_nothing_from_a_useless_judge() -> None:
    assert statistics.rogan_gladen_interval((5, 24), (5, 10), (5, 10), np.random.default_rng(0)) == (0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).standard_normal((400, 1))
    means = statistics.resampled_means(values, np.random.default_rng(2), 8000)[:, 0]
    error = values.std() / 20
    assert np.quantile(means, 0.975) == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert np.quantile(means, 0.025) == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)


def test_bootstrap_keeps_a_picture_together() -> None:
    values = np.random.default_rng(1).standard_normal((30, 1))
    means = statistics.resampled_means(np.hstack([values, 2 * values]), np.random.default_rng(2), 100)
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])


def test_independent_draws_are_their_own_effective_sample() -> None:
    sample = statistics.effective_sample([1, 0, 1, 1], [1, 1, 1, 1])
    assert (sample.rate, sample.size) == (0.75, 4)


def test_draws_that_all_agree_within_a_case_count_about_once() -> None:
    hits = np.array([10] * 6 + [0] * 18)
    sample = statistics.effective_sample(hits, np.full(24, 10))
    assert sample.rate == 0.25
    assert 18 < sample.size < 24
    assert statistics.effective_sample(np.zeros(24), np.full(24, 10)).size == 24


def test_the_interval_at_the_effective_sample_covers_clustered_draws_where_that_at_all_draws_does_not() -> None:
    """10 cases x 10 draws, correlation within a case 0.2, rate 0.1."""
    generator = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(400):
        # A beta-binomial with correlation 1 / (a + b + 1) = 0.2.
        hits = generator.binomial(10, generator.beta(0.4, 3.6, 10))
        sample = statistics.effective_sample(hits, np.full(10, 10))
        lower, upper = statistics.wilson(sample.hits, sample.size)
        covered += lower <= 0.1 <= upper
        lower, upper = statistics.wilson(hits.sum(), 100)
        naive += lower <= 0.1 <= upper
    assert covered / 400 >= 0.92
    assert naive / 400 <= 0.85


def test_discordant_needed_is_the_least_that_survives_holm() -> None:
    for tests in range(1, 12):
        needed = statistics.discordant_needed(tests)
        others = [1.0] * (tests - 1)
        assert statistics.holm([float(statistics.mcnemar_p(needed, 0)), *others])[0] < 0.05
        assert statistics.holm([float(statistics.mcnemar_p(needed - 1, 0)), *others])[0] >= 0.05


def test_power_is_the_chance_of_a_significant_result() -> None:
    generator = np.random.default_rng(0)
    b = generator.binomial(24, 0.4, 20000)
    simulated = np.mean(statistics.mcnemar_p(b, 0) * 4 < 0.05)
    assert statistics.power(24, 0.4, 4) == pytest.approx(simulated, abs=0.01)
