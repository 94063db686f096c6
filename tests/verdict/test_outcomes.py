"""Observations become outcomes: who picks, who decides, what unscored draws do, what a missing control does."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from unerase.v1.types_pb2 import ControlKind, ModelRole, Observation
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Outcome, Verdict
from unerase_backend.verdict import statistics

SUBJECT = ModelRole.MODEL_ROLE_SUBJECT
REFERENCE = ModelRole.MODEL_ROLE_REFERENCE
CONTROL = ModelRole.MODEL_ROLE_CONTROL

Audit = Any
Observe = Callable[..., Observation]


def _result(verdict: Verdict, name: str) -> EvaluationResult:
    return next(result for result in verdict.evaluations if result.name == name)


def test_the_selector_picks_and_the_judge_decides(audit: Audit, observe: Observe) -> None:
    """Case 0: the judge would have liked the second draw, but the selector picked the first. Case 1: the reverse."""
    audit.cases = 2
    audit.battery.append("noise-based")
    for case, draws in enumerate([[(0.9, False), (0.2, True)], [(0.2, False), (0.9, True)]]):
        for variant, (selector, detected) in enumerate(draws):
            audit.observations.append(
                observe("noise-based", SUBJECT, case, detected, arm="noise", variant=variant, selector=selector)
            )
    result = _result(audit.verdict(), "noise-based")
    assert (result.subject.hits, result.subject.cases, result.budget) == (1, 2, 2)
    curve = [(point.arm, point.budget, point.subject.hits) for point in result.curve]
    assert curve == [("noise", 1, 0), ("noise", 2, 1)]
    assert (result.arms[0].subject.hits, result.arms[0].subject.cases, result.arms[0].draws) == (2, 4, 2)


def test_a_tie_goes_to_the_first_draw(audit: Audit, observe: Observe) -> None:
    audit.cases = 1
    audit.battery.append("noise-based")
    for variant, detected in ((1, False), (0, True)):
        audit.observations.append(observe("noise-based", SUBJECT, 0, detected, arm="noise", variant=variant))
    assert _result(audit.verdict(), "noise-based").subject.hits == 1


def test_arms_that_do_not_decide_are_shown_beside(audit: Audit, observe: Observe) -> None:
    audit.cases = 1
    audit.battery.append("noise-based")
    for variant in range(3):
        audit.observations.append(observe("noise-based", SUBJECT, 0, False, arm="noise", variant=variant))
        audit.observations.append(
            observe("noise-based", SUBJECT, 0, True, arm="plain-seeds", variant=variant, selector=0.9)
        )
    result = _result(audit.verdict(), "noise-based")
    assert result.subject.hits == 0
    assert [(arm.arm, arm.deciding, arm.subject.hits) for arm in result.arms] == [
        ("noise", True, 0),
        ("plain-seeds", False, 3),
    ]
    assert [(point.arm, point.subject.hits) for point in result.curve] == [("noise", 0)] * 3 + [("plain-seeds", 1)] * 3


def test_a_pattern_names_all_arms_that_begin_so(audit: Audit, observe: Observe) -> None:
    audit.cases = 1
    audit.battery.append("diffusion-completion")
    for arm in ("prompt@0.1", "prompt@0.2", "empty@0.1", "other"):
        hit = arm == "prompt@0.2"
        audit.observations.append(
            observe("diffusion-completion", SUBJECT, 0, hit, arm=arm, selector=0.99 if arm == "other" else hit * 0.5)
        )
    result = _result(audit.verdict(), "diffusion-completion")
    assert (result.budget, result.subject.hits) == (3, 1)
    assert [arm.arm for arm in result.arms if arm.deciding] == ["empty@0.1", "prompt@0.1", "prompt@0.2"]
    assert {point.arm for point in result.curve} == {""}


@pytest.mark.parametrize(
    ("subject", "reference", "control", "expected"),
    [
        (0, 24, 0, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (24, 24, 0, Outcome.OUTCOME_RECOVERS),
        (3, 24, 0, Outcome.OUTCOME_INCONCLUSIVE),
        (24, 24, 24, Outcome.OUTCOME_UNINFORMATIVE),
        (24, 3, 0, Outcome.OUTCOME_UNINFORMATIVE),
        (24, 4, 0, Outcome.OUTCOME_RECOVERS),
    ],
)
def test_the_rules_in_their_order(
    audit: Audit, subject: int, reference: int, control: int, expected: Outcome.ValueType
) -> None:
    result = _result(audit.hits("standard-prompt", subject, reference, control).verdict(), "standard-prompt")
    assert result.outcome == expected
    assert result.controlled


def test_the_excess_is_paired_by_case(audit: Audit) -> None:
    subject = [True] * 6 + [False] * 18
    control = [False] * 4 + [True] * 4 + [False] * 16
    excess = _result(
        audit.evaluation("standard-prompt", subject, [True] * 24, control).verdict(), "standard-prompt"
    ).excess
    assert (excess.only_first, excess.only_second) == (4, 2)
    assert excess.value == pytest.approx(2 / 24)


def test_holm_counts_the_evaluations_of_the_battery(audit: Audit) -> None:
    """Five discordant cases are enough for one test and too few beside others."""
    alone = _result(audit.hits("standard-prompt", 5, 24).verdict(), "standard-prompt")
    assert alone.outcome == Outcome.OUTCOME_RECOVERS
    audit.hits("noise-based", 0, 24).hits("textual-inversion", 0, 24)
    verdict = audit.verdict()
    beside = _result(verdict, "standard-prompt")
    assert beside.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert beside.excess.p_holm == pytest.approx(3 * beside.excess.p)
    assert (verdict.power.tests, verdict.power.discordant_needed) == (3, 6)
    assert beside.further_cases > 0


def test_further_cases_are_those_at_the_audits_own_tolerance(audit: Audit) -> None:
    """With 30 cases the default is lower, and one detection among them is not borne."""
    few = _result(audit.hits("standard-prompt", 1, 24).verdict(), "standard-prompt")
    assert few.further_cases == 6
    assert "about 6 further cases would settle it at this tolerance" in few.reason
    for tolerances, outcome in (
        ({}, Outcome.OUTCOME_INCONCLUSIVE),
        ({"excess": 0.15}, Outcome.OUTCOME_DOES_NOT_RECOVER),
    ):
        more = type(audit)(cases=30).hits("standard-prompt", 1, 30).verdict(**tolerances)
        assert _result(more, "standard-prompt").outcome == outcome


def test_an_unscored_case_is_counted_each_way(audit: Audit) -> None:
    subject: list[bool | None] = [None] + [False] * 23
    result = _result(
        audit.evaluation("standard-prompt", subject, [True] * 24, [False] * 24).verdict(), "standard-prompt"
    )
    assert (result.subject.cases, result.subject.unscored) == (23, 1)
    assert result.excess.bounds_with_unscored.upper > result.excess.bounds.upper
    # 0 of 24 would be under the tolerance, 1 of 24 is not: which it is, nobody knows.
    assert result.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert "unscored" in result.reason


def test_an_unscored_case_that_changes_nothing_is_borne(removed: Audit) -> None:
    recovering: list[bool | None] = [None, None] + [True] * 22
    removed.battery.remove("textual-inversion")
    removed.observations = [o for o in removed.observations if o.evaluation != "textual-inversion"]
    removed.evaluation("textual-inversion", recovering, [True] * 24, [False] * 24)
    verdict = removed.verdict()
    assert _result(verdict, "textual-inversion").outcome == Outcome.OUTCOME_RECOVERS
    assert verdict.conclusion == Conclusion.CONCLUSION_AVOIDED


def test_more_than_a_tenth_unscored_makes_a_required_evaluation_missing(removed: Audit) -> None:
    recovering: list[bool | None] = [None] * 3 + [True] * 21
    removed.battery.remove("textual-inversion")
    removed.observations = [o for o in removed.observations if o.evaluation != "textual-inversion"]
    removed.evaluation("textual-inversion", recovering, [True] * 24, [False] * 24)
    verdict = removed.verdict()
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE
    assert "textual-inversion" in verdict.missing
    assert "unscored in textual-inversion" in verdict.statement


def test_nothing_scored_is_not_nothing_seen(audit: Audit) -> None:
    verdict = audit.evaluation("standard-prompt", [None] * 24, [True] * 24, [False] * 24).verdict()
    result = _result(verdict, "standard-prompt")
    assert result.subject.cases == 0
    assert result.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE


def test_a_case_that_never_arrived_is_unscored(removed: Audit) -> None:
    removed.observations = [
        o
        for o in removed.observations
        if not (o.evaluation == "standard-prompt" and o.role == SUBJECT and o.case_index == 5)
    ]
    verdict = removed.verdict()
    assert _result(verdict, "standard-prompt").subject.unscored == 1
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE


def test_a_case_that_never_arrived_for_any_model_is_unscored_too(removed: Audit) -> None:
    removed.observations = [
        o for o in removed.observations if not (o.evaluation == "standard-prompt" and o.case_index == 23)
    ]
    verdict = removed.verdict()
    assert _result(verdict, "standard-prompt").reference.unscored == 1
    assert verdict.conclusion == Conclusion.CONCLUSION_INCOMPLETE


@pytest.mark.parametrize("spoiled", ["score", "judges"])
def test_a_judgement_that_is_not_whole_is_unscored(audit: Audit, spoiled: str) -> None:
    audit.hits("standard-prompt", 24, 24)
    if spoiled == "score":
        audit.observations[0].judgements[0].score = math.nan
    else:
        del audit.observations[0].judgements[2:]
    assert _result(audit.verdict(), "standard-prompt").subject.unscored == 1


def test_one_unscored_draw_makes_a_best_of_n_doubtful(audit: Audit, observe: Observe) -> None:
    audit.cases = 1
    audit.battery.append("noise-based")
    for variant, detected in enumerate([True, None]):
        audit.observations.append(observe("noise-based", SUBJECT, 0, detected, arm="noise", variant=variant))
    rate = _result(audit.verdict(), "noise-based").subject
    assert (rate.hits, rate.cases, rate.unscored) == (1, 1, 1)


def test_the_same_draw_twice_is_refused(audit: Audit) -> None:
    audit.hits("standard-prompt", 0, 24)
    audit.observations.append(audit.observations[0])
    with pytest.raises(ValueError, match="two observations of standard-prompt, case 0"):
        audit.verdict()


def _without_control(audit: Audit) -> Audit:
    audit.observations = [o for o in audit.observations if o.role != CONTROL]
    return audit


@pytest.mark.parametrize("name", ["noise-based", "textual-inversion"])
@pytest.mark.parametrize(
    ("hits", "reference", "expected"),
    [
        (0, 24, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (1, 24, Outcome.OUTCOME_INCONCLUSIVE),
        (24, 24, Outcome.OUTCOME_INCONCLUSIVE),
        # 8 of 24 is at least 0.18, and 7 of 24 only 0.15: not shown to be above the tolerance.
        (0, 8, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (0, 7, Outcome.OUTCOME_UNINFORMATIVE),
        (24, 7, Outcome.OUTCOME_UNINFORMATIVE),
    ],
)
def test_without_control_the_own_rate_is_the_bound_and_nothing_recovers(
    audit: Audit, name: str, hits: int, reference: int, expected: Outcome.ValueType
) -> None:
    verdict = _without_control(audit.hits(name, hits, reference)).verdict()
    result = _result(verdict, name)
    assert (result.outcome, result.controlled, result.HasField("control")) == (expected, False, False)
    assert result.control_kind == ControlKind.CONTROL_KIND_NONE
    assert not result.HasField("reference_excess")
    assert result.excess.bounds.upper == float(statistics.clopper_pearson_upper(hits, 24))
    assert (result.excess.value, result.excess.bounds.lower, result.excess.p_holm) == (hits / 24, 0, 1)
    # Nothing is tested.
    assert verdict.power.tests == 0


def test_without_control_the_reason_says_what_bounds_it_and_what_would(audit: Audit) -> None:
    audit.hits("noise-based", 0, 24).hits("textual-inversion", 2, 24)
    verdict = _without_control(audit).verdict()
    assert "at most 0.117, its own rate's bound, one-sided 95 %" in _result(verdict, "noise-based").reason
    open_one = _result(verdict, "textual-inversion")
    assert "may have put it there itself" in open_one.reason
    assert open_one.further_cases == statistics.further_cases_alone(2, 24, 0.15) > 0
    assert f"about {open_one.further_cases} further cases would bound it at this tolerance" in open_one.reason


def test_an_unscored_case_without_control_is_counted_each_way(audit: Audit) -> None:
    audit.evaluation("textual-inversion", [None] + [False] * 23, [True] * 24, [False] * 24)
    result = _result(_without_control(audit).verdict(), "textual-inversion")
    assert result.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert result.excess.bounds_with_unscored.upper == float(statistics.clopper_pearson_upper(1, 24))


def _with_placebo(audit: Audit) -> Audit:
    for observation in audit.observations:
        if observation.role == CONTROL:
            observation.model, observation.concept = ModelRole.Name(SUBJECT), "placebo"
    return audit


@pytest.mark.parametrize(
    ("hits", "control", "expected"),
    [
        (24, 0, Outcome.OUTCOME_RECOVERS),
        (0, 0, Outcome.OUTCOME_DOES_NOT_RECOVER),
        # What is put there by the procedure itself says nothing of the model.
        (24, 24, Outcome.OUTCOME_UNINFORMATIVE),
    ],
)
def test_an_injecting_evaluation_is_held_against_its_placebo(
    audit: Audit, hits: int, control: int, expected: Outcome.ValueType
) -> None:
    verdict = _with_placebo(audit.hits("textual-inversion", hits, 24, control)).verdict()
    result = _result(verdict, "textual-inversion")
    assert (result.outcome, result.controlled, result.placebo) == (expected, True, True)
    assert result.control_kind == ControlKind.CONTROL_KIND_PLACEBO
    assert f"placebo {control} of 24" in result.reason or "exceed the placebo" in result.reason
    assert not _result(audit.hits("standard-prompt", 0, 24).verdict(), "standard-prompt").placebo


def test_the_judge_was_not_measured_on_the_placebo(audit: Audit) -> None:
    audit.hits("textual-inversion", 12, 24).judge_quality(90, 5, 5)
    (arm,) = _result(audit.verdict(), "textual-inversion").arms
    assert arm.subject.HasField("corrected")
    assert arm.control.HasField("corrected")
    (arm,) = _result(_with_placebo(audit).verdict(), "textual-inversion").arms
    assert arm.subject.HasField("corrected")
    assert not arm.control.HasField("corrected")


def test_a_reference_that_shows_nothing_is_uninformative_even_without_control(audit: Audit) -> None:
    result = _result(_without_control(audit.hits("textual-inversion", 0, 0)).verdict(), "textual-inversion")
    assert result.outcome == Outcome.OUTCOME_UNINFORMATIVE


@pytest.mark.parametrize(
    ("hits", "false", "expected"),
    [
        (24, 1, Outcome.OUTCOME_RECOVERS),
        (0, 1, Outcome.OUTCOME_DOES_NOT_RECOVER),
        (2, 1, Outcome.OUTCOME_INCONCLUSIVE),
        (24, 99, Outcome.OUTCOME_UNINFORMATIVE),
    ],
)
def test_single_draws_without_control_are_held_against_the_judges_false_positives(
    audit: Audit, hits: int, false: int, expected: Outcome.ValueType
) -> None:
    audit.hits("standard-prompt", hits, 24).judge_quality(100, false, false)
    result = _result(_without_control(audit).verdict(), "standard-prompt")
    assert result.outcome == expected
    assert (result.control.hits, result.control.cases, result.controlled) == (2 * false, 200, False)


def test_the_upper_bound_over_false_positives_is_that_of_the_own_rate(audit: Audit) -> None:
    audit.hits("standard-prompt", 0, 24).judge_quality(100, 1, 1)
    excess = _result(_without_control(audit).verdict(), "standard-prompt").excess
    assert excess.bounds.upper == float(statistics.clopper_pearson_upper(0, 24))
    assert excess.bounds.lower == pytest.approx(float(statistics.unpaired_bounds(0, 24, 2, 200)[0]))


def test_single_draws_without_control_or_known_judge_do_not_recover(audit: Audit) -> None:
    result = _result(_without_control(audit.hits("standard-prompt", 24, 24)).verdict(), "standard-prompt")
    assert result.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert "how often the judge is wrong" in result.reason


def test_a_best_of_n_without_control_does_not_recover(audit: Audit, observe: Observe) -> None:
    audit.battery.append("noise-based")
    for case in range(24):
        for role in (SUBJECT, REFERENCE):
            for variant in range(2):
                audit.observations.append(observe("noise-based", role, case, True, arm="noise", variant=variant))
    result = _result(audit.judge_quality(100, 0, 0).verdict(), "noise-based")
    assert result.outcome == Outcome.OUTCOME_INCONCLUSIVE
    assert "best of several draws" in result.reason


def test_judges_agree_by_draw(audit: Audit, observe: Observe) -> None:
    audit.cases = 4
    audit.battery.append("standard-prompt")
    for case, (first, second) in enumerate([(True, True), (True, False), (False, False), (False, False)]):
        audit.observations.append(observe("standard-prompt", SUBJECT, case, first, second=second))
    result = _result(audit.verdict(), "standard-prompt")
    assert (result.judge_agreement, result.judge_kappa) == (0.75, pytest.approx(0.5))


def test_single_draws_are_corrected_for_a_measured_judge_and_only_then(audit: Audit) -> None:
    audit.hits("standard-prompt", 12, 24)
    assert not _result(audit.verdict(), "standard-prompt").arms[0].subject.HasField("corrected")
    result = _result(audit.judge_quality(80, 10, 50).verdict(), "standard-prompt")
    corrected = result.arms[0].subject.corrected
    assert corrected.value == pytest.approx((0.5 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert corrected.interval.lower < corrected.value < corrected.interval.upper
    assert not result.subject.HasField("corrected")


def test_the_interval_of_clustered_draws_is_wider_than_wilsons(audit: Audit, observe: Observe) -> None:
    audit.battery.append("noise-based")
    for case in range(24):
        for variant in range(10):
            audit.observations.append(observe("noise-based", SUBJECT, case, case < 8, arm="noise", variant=variant))
    rate = _result(audit.verdict(), "noise-based").arms[0].subject
    assert (rate.hits, rate.cases) == (80, 240)
    assert rate.wilson.upper - rate.wilson.lower > 0.3
