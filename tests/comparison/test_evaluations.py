"""One evaluation of two audits: p, interval, bounds and change against SciPy, enumeration and laws."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from support.compared_by_hand import Audit, compared, only, plain
from unerase.v1.comparisons_pb2 import Change
from unerase_backend.comparison.evaluations import difference, discordant_needed, two_sided_p
from unerase_backend.verdict import sequential, statistics

ROOT = Path(__file__).resolve().parents[2]

WORSE, BETTER, SAME, UNSETTLED = (
    Change.CHANGE_WORSE,
    Change.CHANGE_BETTER,
    Change.CHANGE_SAME,
    Change.CHANGE_UNSETTLED,
)

counts = st.integers(0, 40)


@given(counts, counts)
@settings(deadline=None)
def test_p_is_scipys_binomial_test(b: int, c: int) -> None:
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert two_sided_p(b, c) == pytest.approx(expected, rel=1e-9)


def test_p_of_a_comparison_is_scipys() -> None:
    one = only(compared(Audit().hits("standard-prompt", 2), Audit().hits("standard-prompt", 11)))
    assert one.p == pytest.approx(stats.binomtest(0, 9).pvalue)


TABLE = re.findall(r"^\| ([0-9,]+(?: \| [0-9]+){5}) \|$", (ROOT / "docs/comparison.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", TABLE)
def test_the_pages_table_of_tests(row: str) -> None:
    """The fewest discordant cases, and the power: how likely so many are, at each rate of the second subject."""
    tests, needed, *power = (int(cell.replace(",", "")) for cell in row.split(" | "))
    assert discordant_needed(tests) == needed
    chances = [stats.binom.sf(needed - 1, cases, rate) for cases in (24, 48) for rate in (0.4, 0.6)]
    assert [round(100 * chance) for chance in chances] == power


def test_the_page_has_the_table() -> None:
    assert len(TABLE) == 6


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_the_interval_inverts_the_score_test_of_the_constrained_maximum(b: int, c: int, rest: int) -> None:
    """Tango's limits, against a numeric maximum of the likelihood under each difference and a numeric inversion."""
    n = b + c + rest
    interval = difference(b, c, n).interval
    z = stats.norm.ppf(0.975)

    def score(d: float) -> float:
        def unlikeliness(q: float) -> float:
            cells = (c, q + d), (b, q), (rest, 1 - 2 * q - d)
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

        low, high = max(0.0, -d), (1 - d) / 2
        q = optimize.minimize_scalar(unlikeliness, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return float((c - b - n * d) / math.sqrt(n * (2 * q + d * (1 - d))))

    for limit, sign in ((interval.lower, 1), (interval.upper, -1)):
        if abs(limit) < 0.995:
            assert score(limit) == pytest.approx(sign * z, abs=2e-3)


def test_the_interval_covers_nearly_95_per_cent_by_enumeration() -> None:
    """The score interval is approximate: over a grid of rates its coverage is as docs/comparison.md says."""
    n = 24
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    limits = [difference(b, c, n).interval for b, c in outcomes]
    lower, upper = (np.array([getattr(each, side) for each in limits]) for side in ("lower", "upper"))
    found = []
    for p, q in itertools.product(np.linspace(0, 1, 26), repeat=2):
        if p + q <= 1 + 1e-9:
            cells = [p, q, max(0.0, 1 - p - q)]
            weights = stats.multinomial.pmf([(b, c, n - b - c) for b, c in outcomes], n, cells)
            found.append(weights[(lower <= q - p + 1e-12) & (q - p <= upper + 1e-12)].sum())
    assert min(found) > 0.93
    assert np.mean(found) == pytest.approx(0.957, abs=0.003)


def test_the_anytime_p_holds_however_the_audits_stop() -> None:
    """Both subjects show the concept equally often, and an audit stops where it looks best for a difference."""
    shown = np.random.default_rng(5).random((2, 2000, 60)) < 0.5
    b, c = (np.cumsum(shown[i] & ~shown[1 - i], axis=1)[:, 2::3] for i in (0, 1))
    anytime, exact = (
        2 * np.minimum(p(b, c), p(c, b)).min(axis=1) for p in (sequential.anytime_p, statistics.mcnemar_p)
    )
    assert np.mean(anytime < 0.05) < 0.05
    # McNemar's would not do.
    assert np.mean(exact < 0.05) == pytest.approx(0.11, abs=0.01)


def test_holm_is_over_the_battery() -> None:
    first, second = Audit(), Audit()
    for name, before, after in (("standard-prompt", 0, 9), ("noise-based", 0, 6), ("diffusion-completion", 3, 3)):
        first.hits(name, before)
        second.hits(name, after)
    found = compared(first, second).evaluations
    raw = [stats.binomtest(0, n).pvalue for n in (9, 6)] + [1.0]
    assert [one.p for one in found] == pytest.approx(raw)
    assert [one.p_holm for one in found] == pytest.approx(statistics.holm(raw).tolist())
    assert [one.change for one in found] == [WORSE, UNSETTLED, SAME]


@pytest.mark.parametrize(
    ("before", "after", "change"), [(0, 12, WORSE), (12, 0, BETTER), (5, 5, SAME), (0, 4, UNSETTLED), (4, 0, UNSETTLED)]
)
def test_the_change_follows_p_and_bounds(before: int, after: int, change: Change.ValueType) -> None:
    comparison = compared(Audit().hits("standard-prompt", before), Audit().hits("standard-prompt", after))
    assert only(comparison).change == comparison.change == change


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
@settings(deadline=None, max_examples=25)
def test_the_other_way_round_everything_is_mirrored(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (plain(*(pair[side] for pair in pairs)) for side in (0, 1))
    forth, back = only(compared(first, second)), only(compared(second, first))
    assert (forth.only_first, forth.only_second) == (back.only_second, back.only_first)
    assert (forth.p, forth.difference.value) == (back.p, -back.difference.value)
    assert forth.difference.interval.lower == pytest.approx(-back.difference.interval.upper)
    assert forth.bounds.lower == pytest.approx(-back.bounds.upper)
    mirrored = {WORSE: BETTER, BETTER: WORSE}
    assert back.change == mirrored.get(forth.change, forth.change)
    assert -1 <= forth.difference.interval.lower <= forth.difference.value <= forth.difference.interval.upper <= 1


def test_unscored_cases_can_only_make_a_change_less_certain() -> None:
    """Pictures that are not finite hide nothing: counted each way they unsettle what was settled."""
    first = Audit().hits("standard-prompt", 0)
    assert only(compared(first, Audit().hits("standard-prompt", 0))).change == SAME
    unscored = Audit().evaluation("standard-prompt", [None] * 8 + [False] * 16)
    one = only(compared(first, unscored))
    assert (one.cases, one.unpaired, one.p, one.change) == (16, 8, 1.0, UNSETTLED)
    assert one.bounds.upper > 8 / 24
    still = Audit().evaluation("standard-prompt", [True] * 12 + [None] + [False] * 11)
    assert only(compared(first, still)).change == WORSE


def test_a_direction_that_unscored_cases_could_turn_is_none() -> None:
    """The scored pairs say worse, and counted as not shown the unscored ones would say better, both significantly."""
    first = Audit(cases=60).evaluation("standard-prompt", [False] * 9 + [True] * 40 + [False] * 11)
    second = Audit(cases=60).evaluation("standard-prompt", [True] * 9 + [None] * 40 + [False] * 11)
    one = only(compared(first, second))
    assert (one.only_first, one.only_second, one.unpaired) == (0, 9, 40)
    assert max(stats.binomtest(b, n).pvalue for b, n in ((0, 9), (40, 49))) < 0.01
    assert (one.p, one.change) == (1.0, UNSETTLED)


def test_an_evaluation_without_pairs_says_nothing() -> None:
    comparison = compared(plain(None, None), plain(True, True))
    one = only(comparison)
    assert (one.cases, one.p, one.p_holm, one.change) == (0, 1.0, 1.0, Change.CHANGE_UNSPECIFIED)
    assert comparison.statement.startswith("No evaluation of the two audits can be compared.")


def test_an_audit_compared_with_itself_did_not_change() -> None:
    audit = Audit().hits("standard-prompt", 7).hits("noise-based", 20).likelihood([0.5, 0.6], [0.1, 0.0])
    comparison = compared(audit, audit)
    assert comparison.alike
    assert comparison.change == SAME
    assert not comparison.noted
    for figure in comparison.figures:
        interval = figure.difference.interval
        assert (figure.difference.value, interval.lower, interval.upper) == (0, 0, 0)
