"""Bounds that hold at every look: the laws they stand on, their errors by simulation, and what they stop."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from unerase.v1.types_pb2 import EvaluationRequest
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Outcome, Verdict
from unerase_backend.verdict import conclude, has_answer, sequential, statistics

from .conftest import CONTROL, REFERENCE, SUBJECT, sample

Audit = Any

counts = st.integers(0, 40)
excesses = st.floats(-0.99, 0.99)


@given(st.lists(st.floats(-800, 800) | st.just(-np.inf), min_size=1, max_size=70), st.floats(-800, 800))
@settings(deadline=None)
def test_the_sum_of_exponentials_is_scipys_bit_for_bit(logs: list[float], finite: float) -> None:
    row = np.array([[*logs, finite], [finite, *logs]])
    assert sequential._log_sum_exp(row).tobytes() == special.logsumexp(row, axis=-1).tobytes()


@given(first=counts, second=counts, neither=counts, excess=excesses, above=st.floats(0, 1), share=st.floats(0, 1))
@settings(deadline=None)
def test_no_case_is_expected_to_gain_where_the_excess_is_at_least_that(
    first: int, second: int, neither: int, excess: float, above: float, share: float
) -> None:
    """The law of a supermartingale, exactly: for every way in which the next case may fall."""
    true = excess + above * (1 - excess)
    # Of all cell probabilities with this difference, one between the most and the fewest discordant cases.
    least, most = max(true, 0.0), (1 + true) / 2
    only_first = least + share * (most - least)
    only_second = only_first - true
    cases = first + second + neither
    now = float(sequential.log_wealth(first, second, cases, excess))
    cells = [(only_first, (1, 0)), (only_second, (0, 1)), (1 - only_first - only_second, (0, 0))]
    gains = [
        chance * np.exp(float(sequential.log_wealth(first + b, second + c, cases + 1, excess)) - now)
        for chance, (b, c) in cells
        if chance > 0
    ]
    assert sum(gains) <= 1 + 1e-9


@given(first=counts, second=counts, neither=counts, low=excesses, high=excesses)
@settings(deadline=None)
def test_evidence_grows_with_the_excess_that_it_is_against(
    first: int, second: int, neither: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    cases = first + second + neither
    below, above = sequential.log_wealth(first, second, cases, np.array([low, high]))
    assert below <= above + 1e-9


@given(order=st.permutations([1] * 3 + [-1] * 2 + [0] * 4), excess=st.sampled_from([-0.5, 0.0, 0.15, 0.6]))
@settings(max_examples=20, deadline=None)
def test_wealth_is_that_of_who_bets_so(order: Sequence[int], excess: float) -> None:
    """Case by case, in exact arithmetic, each stake on its own."""
    total = Fraction(0)
    stakes = [(Fraction(float(np.sin((part + 0.5) / 64 * np.pi / 2))), Fraction(1, 128)) for part in range(64)]
    for stake, money in [*stakes, (Fraction(1), Fraction(1, 2))]:
        wealth = money
        for difference in order:
            wealth *= 1 - stake * (difference - Fraction(excess)) / (1 - Fraction(excess))
        total += wealth
    assert np.exp(float(sequential.log_wealth(3, 2, 9, excess))) == pytest.approx(float(total), rel=1e-9)


def test_half_the_money_is_spread_by_the_arcsine_law() -> None:
    def density(theta: float) -> float:
        return (1 + np.sin(theta)) ** 2 * (1 - np.sin(theta)) ** 5 * 2 / np.pi

    # Against "at most 0": five cases that only the first model shows have lost, two have won; u = 1 has lost all.
    spread, _ = integrate.quad(density, 0, np.pi / 2)
    assert np.exp(float(sequential.log_wealth(5, 2, 7, 0.0))) == pytest.approx(spread / 2, rel=1e-3)


@given(first=counts, second=counts, neither=counts)
@settings(max_examples=50, deadline=None)
def test_bounds_are_where_the_evidence_is_enough(first: int, second: int, neither: int) -> None:
    cases = first + second + neither
    lower, upper = (float(bound) for bound in sequential.anytime_bounds(first, second, cases))
    assert -1 <= lower <= (first - second) / max(cases, 1) <= upper <= 1
    enough = -np.log(0.05)
    if upper < 1:
        assert sequential.log_wealth(first, second, cases, upper + 1e-9) >= enough - 1e-6
        assert sequential.log_wealth(first, second, cases, max(upper - 1e-6, -1)) < enough
    mirrored = sequential.anytime_bounds(second, first, cases)
    assert (float(mirrored[0]), float(mirrored[1])) == (-upper, -lower)


def test_what_it_takes() -> None:
    """Without discordant cases 21 are enough for the default tolerance; all one way, 7 for four tests."""
    assert float(sequential.anytime_bounds(0, 0, 21)[1]) < 0.15 < float(sequential.anytime_bounds(0, 0, 20)[1])
    assert [sequential.anytime_discordant_needed(tests) for tests in (1, 4, 8, 16)] == [5, 7, 8, 9]
    assert float(sequential.anytime_p(0, 5)) == pytest.approx(1)
    # Never less than a test that is looked at once.
    for first in range(12):
        for second in range(12):
            assert sequential.anytime_p(first, second) >= statistics.mcnemar_p(first, second) - 1e-12
    assert sequential.anytime_power(24, 0.4, 4) == statistics.power(24, 0.4, 4)


RUNS, HORIZON = 4000, 192


def _cells(generator: np.random.Generator, only_first: float, only_second: float) -> tuple[Any, Any, Any]:
    """Counts after each case: (runs, cases) each of those that only one model shows, and of all."""
    drawn = generator.random((RUNS, HORIZON))
    first = (drawn < only_first).cumsum(axis=1)
    second = ((drawn >= only_first) & (drawn < only_first + only_second)).cumsum(axis=1)
    return first, second, np.broadcast_to(np.arange(1, HORIZON + 1), first.shape)


def _each_once(function: Any, *counted: Any) -> Any:
    """Apply a function of counts, each combination that occurs once."""
    stacked = np.stack(counted)
    found, place = np.unique(stacked.reshape(len(counted), -1), axis=1, return_inverse=True)
    return function(*found)[place].reshape(stacked.shape[1:])


@pytest.mark.parametrize("discordant", [0.02, 0.1, 0.5, 1.0])
def test_no_excess_is_rarely_called_one_however_often_one_looks(discordant: float) -> None:
    first, second, _ = _cells(np.random.default_rng(5), discordant / 2, discordant / 2)
    ever = (_each_once(sequential.anytime_p, first, second) < 0.05).any(axis=1)
    assert statistics.clopper_pearson_lower(int(ever.sum()), RUNS, 0.001) <= 0.05
    # Who looks at every case with the test of fixed size errs far more often.
    if discordant >= 0.5:
        assert (_each_once(statistics.mcnemar_p, first, second) < 0.05).any(axis=1).mean() > 0.1


@pytest.mark.parametrize(("only_first", "only_second"), [(0.15, 0.0), (0.25, 0.1), (0.5, 0.35)])
def test_an_excess_at_the_tolerance_is_rarely_called_none_however_often_one_looks(
    only_first: float, only_second: float
) -> None:
    first, second, cases = _cells(np.random.default_rng(6), only_first, only_second)
    evidence = _each_once(lambda *counted: sequential.log_wealth(*counted, 0.15), first, second, cases)
    ever = (evidence >= np.log(20)).any(axis=1)
    assert statistics.clopper_pearson_lower(int(ever.sum()), RUNS, 0.001) <= 0.05
    # The bound is not so wide that it never errs.
    assert ever.mean() > 0.005


@pytest.mark.parametrize(("only_first", "only_second"), [(0.0, 0.0), (0.02, 0.02), (0.9, 0.0), (0.4, 0.1)])
def test_both_bounds_cover_at_all_looks_at_once(only_first: float, only_second: float) -> None:
    counted = [each[:500, ::8] for each in _cells(np.random.default_rng(7), only_first, only_second)]
    lower = _each_once(lambda *each: sequential.anytime_bounds(*each)[0], *counted)
    upper = _each_once(lambda *each: sequential.anytime_bounds(*each)[1], *counted)
    true = only_first - only_second
    for missed in ((lower > true).any(axis=1), (upper < true).any(axis=1)):
        assert statistics.clopper_pearson_lower(int(missed.sum()), 500, 0.001) <= 0.05


def _sequential(audit: Audit, cases_per_unit: int = 24) -> Verdict:
    """Conclude an audit that was looked at."""
    spec, descriptions = audit.spec(), audit.descriptions()
    spec.sequential = True
    for description in descriptions:
        description.cases_per_unit = cases_per_unit
    return conclude(audit.observations, descriptions, [EvaluationRequest(name=name) for name in audit.battery], spec)


def _result(verdict: Verdict, name: str = "standard-prompt") -> EvaluationResult:
    return next(result for result in verdict.evaluations if result.name == name)


def _first_answer(audit: Audit, name: str = "standard-prompt") -> int:
    """Look after every three cases as the coordinator does; 0 where no look is the last."""
    spec = audit.spec()
    spec.battery.evaluations.extend(EvaluationRequest(name=each) for each in audit.battery)
    descriptions = {each.name: each for each in audit.descriptions()}
    descriptions[name].cases_per_unit = 24
    of_evaluation = [each for each in audit.observations if each.evaluation == name]
    for cases in range(3, audit.cases, 3):
        answer = has_answer(descriptions[name], of_evaluation, cases, descriptions, spec)
        prefix = [each for each in of_evaluation if each.case_index < cases]
        # What comes later decides nothing.
        assert has_answer(descriptions[name], prefix[::-1], cases, descriptions, spec) == answer
        if answer:
            return cases
    return 0


def _stop(audit: Audit, cases: int, name: str = "standard-prompt") -> None:
    audit.observations = [each for each in audit.observations if each.evaluation != name or each.case_index < cases]


@pytest.mark.parametrize(
    ("subject", "reference", "control", "after", "outcome"),
    [
        (24, 24, 0, 6, Outcome.OUTCOME_RECOVERS),
        (0, 24, 0, 21, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (24, 24, 24, 0, Outcome.OUTCOME_UNINFORMATIVE),
        # The reference must be shown to exceed the control first.
        (24, 4, 0, 0, Outcome.OUTCOME_UNINFORMATIVE),
        (3, 24, 0, 0, Outcome.OUTCOME_INCONCLUSIVE),
    ],
)
def test_an_evaluation_stops_when_its_answer_is_settled(
    audit: Audit, subject: int, reference: int, control: int, after: int, outcome: Outcome.ValueType
) -> None:
    audit.hits("standard-prompt", subject, reference, control)
    assert _first_answer(audit) == after
    if after:
        _stop(audit, after)
    result = _result(_sequential(audit))
    assert (result.outcome, result.stopped_after) == (outcome, after)
    assert (result.subject.cases, result.subject.unscored) == (after or 24, 0)
    assert "valid at every look" in result.reason
    assert ("stopped after" in result.reason) == bool(after)


@pytest.mark.parametrize(
    ("cases", "draws", "after", "outcome"),
    [
        (31, 1, 0, Outcome.OUTCOME_INCONCLUSIVE),
        # The last case is looked at like any other.
        (32, 1, 0, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (48, 2, 33, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (48, 1, 42, Outcome.OUTCOME_DOES_NOT_RECOVER),
    ],
)
def test_when_nothing_comes_back_is_settled_by_the_default_tolerance(
    new_audit: type[Audit], cases: int, draws: int, after: int, outcome: Outcome.ValueType
) -> None:
    audit = new_audit(cases=cases).hits("noise-based", 0, cases)
    for variant in range(1, draws):
        audit.observations += [
            sample("noise-based", role, case, role == REFERENCE, arm="noise", variant=variant)
            for role in (SUBJECT, REFERENCE, CONTROL)
            for case in range(cases)
        ]
    assert _first_answer(audit, "noise-based") == after
    if after:
        _stop(audit, after, "noise-based")
    result = _result(_sequential(audit), "noise-based")
    assert (result.outcome, result.stopped_after) == (outcome, after)


@pytest.mark.parametrize("name", ["noise-based", "diffusion-completion"])
def test_the_subjects_own_rate_is_bounded_at_every_look_as_well(new_audit: type[Audit], name: str) -> None:
    """Beside a placebo that is often seen. At fixed size 29 cases without any are enough, and 30 is a look."""
    cases = 45
    audit = new_audit(cases=cases).hits(name, 0, cases, 20)
    for observation in audit.observations:
        if observation.role == CONTROL:
            observation.model, observation.concept = "MODEL_ROLE_SUBJECT", "fish"
    if name == "diffusion-completion":
        audit.observations += [
            sample(name, role, case, role == REFERENCE, arm="empty@0.1")
            for role in (SUBJECT, REFERENCE)
            for case in range(cases)
        ]
    assert _first_answer(audit, name) == 33
    _stop(audit, 33, name)
    assert _result(_sequential(audit), name).outcome == Outcome.OUTCOME_DOES_NOT_RECOVER


def test_the_battery_makes_it_harder(audit: Audit) -> None:
    for name in ("standard-prompt", "noise-based", "textual-inversion", "diffusion-completion"):
        audit.hits(name, 24, 24)
    assert _first_answer(audit) == 9
    for name in audit.battery:
        _stop(audit, 9, name)
    verdict = _sequential(audit)
    assert {result.outcome for result in verdict.evaluations} == {Outcome.OUTCOME_RECOVERS}
    assert verdict.conclusion == Conclusion.CONCLUSION_NOT_ERASED
    assert all(result.excess.p_holm < 0.05 for result in verdict.evaluations)
    assert (verdict.power.discordant_needed, verdict.power.tests) == (7, 4)


def test_bounds_are_those_that_hold_at_every_look_even_at_the_end(audit: Audit) -> None:
    audit.hits("standard-prompt", 3, 24, 1)
    fixed, anytime = _result(audit.verdict()), _result(_sequential(audit))
    lower, upper = sequential.anytime_bounds(2, 0, 24)
    assert (anytime.excess.bounds.lower, anytime.excess.bounds.upper) == (lower, upper)
    assert anytime.excess.p == sequential.anytime_p(2, 0) > fixed.excess.p
    assert anytime.further_cases == sequential.anytime_further_cases(2, 0, 24, 0.15, 1) > 0
    assert not anytime.stopped_after


def test_what_is_one_unit_is_looked_at_once(audit: Audit) -> None:
    """An attack that learns once over all cases has bounds of fixed size: nobody could have stopped it."""
    audit.hits("textual-inversion", 3, 24)
    fixed, whole = _result(audit.verdict(), "textual-inversion"), _result(_sequential(audit, 0), "textual-inversion")
    assert whole == fixed


def test_without_pairs_there_are_no_looks(audit: Audit) -> None:
    audit.hits("standard-prompt", 24, 24).judge_quality(100, 1, 1)
    audit.observations = [each for each in audit.observations if each.role != 3]
    assert _first_answer(audit) == 0
    assert _result(_sequential(audit)) == _result(audit.verdict())


def test_a_case_that_was_run_and_never_arrived_is_unscored(audit: Audit) -> None:
    audit.hits("standard-prompt", 24, 24)
    _stop(audit, 6)
    audit.observations = [each for each in audit.observations if (each.role, each.case_index) != (SUBJECT, 5)]
    result = _result(_sequential(audit))
    assert (result.subject.cases, result.subject.unscored, result.stopped_after) == (5, 1, 6)


def test_unscored_cases_keep_it_running(audit: Audit) -> None:
    audit.evaluation("standard-prompt", [None] + [True] * 23, [True] * 24, [False] * 24)
    # One of nine is more than a tenth: it goes on until it can be borne.
    assert _first_answer(audit) == 12


def test_a_tighter_tolerance_offline_finds_it_open_and_not_unscored(audit: Audit) -> None:
    audit.hits("standard-prompt", 0, 24)
    _stop(audit, 21)
    spec, descriptions = audit.spec(excess=0.05), audit.descriptions()
    spec.sequential = True
    for description in descriptions:
        description.cases_per_unit = 24
    verdict = conclude(audit.observations, descriptions, [EvaluationRequest(name="standard-prompt")], spec)
    result = _result(verdict)
    assert (result.outcome, result.stopped_after) == (Outcome.OUTCOME_INCONCLUSIVE, 21)
    assert result.subject.unscored == 0
    assert result.further_cases > 0
