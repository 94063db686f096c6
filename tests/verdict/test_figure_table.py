"""A measure of which nothing is known but its figures: their means over cases, and an interval that resamples cases."""

import numpy as np
import pytest

from unerase.v1.types_pb2 import EvaluationClass, EvaluationDescription, Observation, SampleStatus
from unerase_backend.verdict.figure_table import figure_table, has_usable_figures

from .conftest import CONTROL, REFERENCE, SUBJECT, sample

MEASURE = EvaluationDescription(
    name="sharpness", title="Sharpness", evaluation_class=EvaluationClass.EVALUATION_CLASS_MEASURE
)


def measured(role: int, case: int, variant: int = 0, arm: str = "", **figures: float) -> Observation:
    return Observation(
        evaluation="sharpness",
        role=role,
        concept="hourglass",
        case_index=case,
        arm=arm,
        variant=variant,
        status=SampleStatus.SAMPLE_STATUS_SCORED,
        measures=figures,
    )


def test_draws_are_averaged_within_their_case() -> None:
    observations = [
        measured(SUBJECT, 0, 0, edge=1.0),
        measured(SUBJECT, 0, 1, edge=3.0),
        measured(SUBJECT, 1, edge=8.0),
    ]
    (row,) = figure_table(MEASURE, observations, 5).figures
    assert (row.figure, row.concept, row.subject.cases) == ("edge", "hourglass", 2)
    assert row.subject.mean.value == 5.0
    assert not row.reference.HasField("mean")


def test_the_interval_is_that_of_a_bootstrap_over_cases() -> None:
    values = np.random.default_rng(1).normal(size=40)
    observations = [measured(REFERENCE, case, edge=float(value)) for case, value in enumerate(values)]
    (row,) = figure_table(MEASURE, observations, 5).figures
    draws = np.random.default_rng(9).choice(values, (20_000, 40)).mean(axis=1)
    interval = row.reference.mean.interval
    assert (interval.lower, interval.upper) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_equal_models_have_equal_intervals() -> None:
    observations = [measured(role, case, edge=case**0.5) for role in (SUBJECT, REFERENCE, CONTROL) for case in range(9)]
    (row,) = figure_table(MEASURE, observations, 5).figures
    assert row.subject == row.reference == row.control


@pytest.mark.parametrize("left_out", [SampleStatus.SAMPLE_STATUS_EXCLUDED, SampleStatus.SAMPLE_STATUS_NOT_APPLICABLE])
@pytest.mark.parametrize(("excluded", "unscored", "usable"), [(8, 1, True), (8, 2, False), (12, 0, False)])
def test_what_is_excluded_is_neither_scored_nor_unscored(
    left_out: SampleStatus.ValueType, excluded: int, unscored: int, usable: bool
) -> None:
    statuses = [left_out] * excluded + [SampleStatus.SAMPLE_STATUS_UNSCORED] * unscored
    observations = [measured(SUBJECT, case, edge=1.0) for case in range(18 - excluded if excluded < 12 else 0)]
    observations += [Observation(role=SUBJECT, status=status) for status in statuses]
    table = figure_table(MEASURE, observations, 5)
    assert (table.observations, table.unscored) == (len(observations), unscored)
    assert has_usable_figures(observations) == usable


def test_rows_are_in_order_of_arm_concept_and_figure_whatever_came_first() -> None:
    observations = [measured(SUBJECT, case, arm=arm, edge=1.0, blur=2.0) for case in range(3) for arm in ("b", "a")]
    table = figure_table(MEASURE, observations, 5)
    assert [(row.arm, row.figure) for row in table.figures] == [
        ("a", "blur"),
        ("a", "edge"),
        ("b", "blur"),
        ("b", "edge"),
    ]
    assert figure_table(MEASURE, observations[::-1], 5) == table


def test_what_was_judged_is_counted_as_detected() -> None:
    observations = [sample("sharpness", SUBJECT, case, case < 3) for case in range(4)]
    (row,) = figure_table(MEASURE, observations, 5).figures
    assert (row.figure, row.subject.mean.value, row.subject.cases) == ("detected", 0.75, 4)


def test_what_is_unscored_or_not_finite_is_counted_and_left_out() -> None:
    broken = Observation(evaluation="sharpness", role=SUBJECT, status=SampleStatus.SAMPLE_STATUS_UNSCORED)
    observations = [measured(SUBJECT, 1, edge=2.0), measured(SUBJECT, 2, edge=float("nan")), broken]
    table = figure_table(MEASURE, observations, 5)
    assert (table.observations, table.unscored) == (3, 2)
    assert (table.figures[0].subject.mean.value, table.figures[0].subject.cases) == (2.0, 1)
    assert not figure_table(MEASURE, [broken], 5).figures
