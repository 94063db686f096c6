"""Likelihood, interference and the judges' quality."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from unerase.v1.types_pb2 import ModelRole
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.verdict.measures import mechanisms

Audit = Any


def test_the_place_on_the_plane_is_what_the_formulas_say() -> None:
    """Exact, picture by picture, without spread."""
    reference = np.array([[0.04, 0.03]] * 5)
    subject = np.array([[0.08, 0.075]] * 5)
    found = mechanisms(subject, reference, np.full(7, 0.05), np.full(7, 0.04), np.random.default_rng(0))
    assert found.general_damage == pytest.approx(np.log(0.05 / 0.04))
    assert found.destruction == pytest.approx(np.log(2) - np.log(1.25))
    assert found.lost_pull == pytest.approx(1 - np.log(0.08 / 0.075) / np.log(0.04 / 0.03))
    assert found.destruction_bounds == pytest.approx((found.destruction, found.destruction))
    assert found.concept_loss == pytest.approx(np.log(2))
    assert found.concept_loss_bounds == pytest.approx((np.log(2), np.log(2)))


def test_the_mean_is_of_log_ratios_not_the_log_of_means() -> None:
    reference = np.array([[0.1, 0.05], [0.1, 0.05]])
    subject = np.array([[0.1, 0.05], [0.4, 0.05]])
    found = mechanisms(subject, reference, np.ones(3), np.ones(3), np.random.default_rng(0))
    assert found.destruction == pytest.approx(np.log(4) / 2)


def test_the_bounds_cover_at_about_their_level() -> None:
    """Skewed log ratios, 32 and 72 pictures: the percentile bootstrap is a little short, and not by much."""
    generator = np.random.default_rng(1)
    above = below = 0
    for _ in range(500):
        concept = np.exp(0.3 * (generator.standard_exponential(32) - 1))
        other = np.exp(0.1 * (generator.standard_exponential(72) - 1))
        found = mechanisms(
            np.stack([concept, concept], axis=1), np.ones((32, 2)), other, np.ones(72), generator, resamples=400
        )
        lower, upper = found.destruction_bounds
        above += lower <= 0
        below += upper >= 0
    assert above / 500 >= 0.93
    assert below / 500 >= 0.86


def test_the_concepts_loss_is_bounded_like_a_mean_of_its_pictures() -> None:
    """Against SciPy's percentile bootstrap of the same mean; the other pictures have no part in it."""
    generator = np.random.default_rng(3)
    ratios = 0.5 + 0.3 * generator.standard_exponential(32)
    concept = np.stack([np.exp(ratios), np.ones(32)], axis=1)
    found = [
        mechanisms(concept, np.ones((32, 2)), np.exp(others), np.ones(72), np.random.default_rng(4))
        for others in (np.zeros(72), 3 + generator.standard_normal(72))
    ]
    expected = bootstrap(
        (ratios,), np.mean, method="percentile", confidence_level=0.9, n_resamples=4000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found[0].concept_loss == pytest.approx(ratios.mean())
    assert found[0].concept_loss_bounds == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found[1].concept_loss_bounds == found[0].concept_loss_bounds
    assert found[1].destruction_draws == pytest.approx(found[1].concept_loss_draws - found[1].general_damage_draws)


def test_general_damage_is_not_destruction(audit: Audit) -> None:
    likelihood = audit.likelihood(destruction=0.0, damage=0.5).verdict().likelihood
    assert likelihood.general_damage.value == pytest.approx(0.5, abs=0.05)
    assert likelihood.destruction.value == pytest.approx(0.0, abs=0.05)
    assert likelihood.concept_loss.value == pytest.approx(
        likelihood.destruction.value + likelihood.general_damage.value, abs=1e-12
    )
    assert (likelihood.concept_pictures, likelihood.other_pictures) == (32, 64)


def test_one_sided_bounds_lie_within_the_two_sided_interval(audit: Audit) -> None:
    likelihood = audit.likelihood(destruction=0.3).verdict().likelihood
    interval, bounds = likelihood.destruction.interval, likelihood.destruction_bounds
    assert interval.lower < bounds.lower < likelihood.destruction.value < bounds.upper < interval.upper
    assert likelihood.control_destruction.value == pytest.approx(1.0, abs=0.05)
    interval, bounds = likelihood.concept_loss.interval, likelihood.concept_loss_bounds
    assert interval.lower < bounds.lower < likelihood.concept_loss.value < bounds.upper < interval.upper
    assert likelihood.control_concept_loss.value == pytest.approx(1.0, abs=0.05)


def test_lost_pull_of_avoidance_and_of_nothing(new_audit: type[Audit]) -> None:
    assert new_audit().likelihood(0.0, lost_pull=1.0).verdict().likelihood.lost_pull.value == pytest.approx(1)
    assert new_audit().likelihood(0.0, lost_pull=0.0).verdict().likelihood.lost_pull.value == pytest.approx(0)


def test_no_pull_to_lose_gives_no_lost_pull(audit: Audit) -> None:
    likelihood = audit.likelihood(0.0, pull=-0.1).verdict().likelihood
    assert not likelihood.HasField("lost_pull")
    assert likelihood.HasField("destruction")


@pytest.mark.parametrize(("spoiled", "borne"), [(9, True), (10, False)])
def test_unscored_pictures_are_borne_up_to_a_tenth(removed: Audit, spoiled: int, borne: bool) -> None:
    subject = [
        o for o in removed.observations if o.evaluation == "likelihood" and o.role == ModelRole.MODEL_ROLE_SUBJECT
    ]
    for observation in subject[:spoiled]:
        observation.measures["loss_empty"] = float("nan")
    verdict = removed.verdict()
    assert verdict.likelihood.concept_pictures == 32 - spoiled
    expected = Conclusion.CONCLUSION_REMOVED if borne else Conclusion.CONCLUSION_INCOMPLETE
    assert verdict.conclusion == expected


def test_without_other_pictures_there_is_no_destruction(removed: Audit) -> None:
    removed.observations = [o for o in removed.observations if o.arm != "other"]
    verdict = removed.verdict()
    assert not verdict.HasField("likelihood")
    assert "likelihood" in verdict.missing


def test_interference_is_paired_and_by_concept(audit: Audit) -> None:
    result = audit.interference(lost=10).verdict().interference
    assert result.loss.value == pytest.approx(10 / 40)
    assert result.loss.interval.lower < 0.25 < result.loss.interval.upper
    assert [(item.concept, item.subject.hits, item.reference.hits) for item in result.concepts] == [
        ("moon", 15, 20),
        ("ring", 15, 20),
    ]
    assert (result.subject_similarity, result.reference_similarity) == (pytest.approx(0.2), pytest.approx(0.3))


def test_judge_quality_counts_what_is_right(audit: Audit) -> None:
    judge = audit.judge_quality(90, 2, 7).verdict().judges[1]
    assert judge.judge == "judge"
    assert (judge.sensitivity.hits, judge.sensitivity.cases) == (90, 100)
    assert (judge.specificity.hits, judge.near_miss_specificity.hits) == (98, 93)


def test_an_unscored_picture_says_nothing_of_the_judge(audit: Audit) -> None:
    audit.judge_quality(90, 2, 7)
    del audit.observations[0].judgements[:]
    rate = audit.verdict().judges[1].sensitivity
    assert (rate.hits, rate.cases, rate.unscored) == (89, 99, 1)
