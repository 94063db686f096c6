"""What changed of the measures: paired over the same pictures."""

import math

import numpy as np
import pytest
from scipy import stats

from support.compared_by_hand import Audit, compared
from unerase_backend.comparison.evaluations import difference


def test_destruction_is_paired_over_the_same_pictures() -> None:
    noise = np.random.default_rng(3)
    concept, others = noise.normal(0.2, 0.3, 32), noise.normal(0, 0.1, 40)
    first = Audit().likelihood(concept.tolist(), others.tolist())
    second = Audit().likelihood((concept + 0.5).tolist(), (others + 0.1).tolist())
    figures = {figure.figure: figure for figure in compared(first, second).figures}
    expected = {"destruction": 0.4, "concept_loss": 0.5, "general_damage": 0.1}
    for name, change in expected.items():
        difference_ = figures[name].difference
        assert difference_.value == pytest.approx(change)
        # Every picture changed by as much, so that the pairs know it exactly, however the pictures differ.
        assert (difference_.interval.lower, difference_.interval.upper) == pytest.approx((change, change))
        assert figures[name].second - figures[name].first == pytest.approx(change)
    result = first.recorded().content.verdict.likelihood
    assert figures["destruction"].first == pytest.approx(result.destruction.value)
    assert figures["general_damage"].first == pytest.approx(result.general_damage.value)
    assert [figures[name].pictures for name in expected] == [72, 32, 40]


def test_the_bootstrap_is_that_of_scipy() -> None:
    noise = np.random.default_rng(4)
    concept, others, change = noise.normal(0, 0.3, 32), noise.normal(0, 0.1, 40), noise.normal(0.3, 0.2, 32)
    first = Audit().likelihood(concept.tolist(), others.tolist())
    second = Audit().likelihood((concept + change).tolist(), others.tolist())
    figure = next(each for each in compared(first, second).figures if each.figure == "concept_loss")
    expected = stats.bootstrap((change,), np.mean, n_resamples=4000, method="percentile", rng=6).confidence_interval
    interval = figure.difference.interval
    assert (interval.lower, interval.upper) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert (
        figure.difference
        == next(each for each in compared(first, second).figures if each.figure == "concept_loss").difference
    )


def test_only_common_pictures_count() -> None:
    first = Audit().likelihood([0.0, 0.0, 0.0], [0.0, 0.0])
    second = Audit().likelihood([0.5, 0.5, 9.0], [0.0, 0.0])
    for observation in first.observations:
        if observation.case_index == 2 and observation.arm == "concept":
            observation.measures["loss_empty"] = math.nan
    figure = next(each for each in compared(first, second).figures if each.figure == "concept_loss")
    assert (figure.pictures, figure.difference.value) == (2, pytest.approx(0.5))


def test_interference_is_what_was_lost_of_other_concepts() -> None:
    reference = [True] * 30 + [False] * 10
    first = Audit().interference([True] * 28 + [False] * 12, reference)
    second = Audit().interference([True] * 20 + [False] * 20, reference)
    (figure,) = compared(first, second).figures
    assert (figure.first, figure.second) == pytest.approx((2 / 40, 10 / 40))
    assert figure.difference.value == pytest.approx(8 / 40)
    assert figure.difference.interval == difference(0, 8, 40).interval
    for audit in (first, second):
        (lost,) = [audit.recorded().content.verdict.interference.loss.value]
        assert lost in (pytest.approx(2 / 40), pytest.approx(10 / 40))
