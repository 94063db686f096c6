"""Arms with several draws a case: their mean, their best, and whether the reference makes anything of them."""

from collections.abc import Callable
from typing import Any

import pytest

from unerase.v1.types_pb2 import Observation
from unerase.v1.verdicts_pb2 import ArmResult

from .conftest import CONTROL, REFERENCE, SUBJECT

Audit = Any
CASES = 24


def arms(audit: Audit) -> dict[str, ArmResult]:
    (result,) = audit.verdict().evaluations
    return {arm.arm: arm for arm in result.arms}


@pytest.fixture
def two_kinds(audit: Audit, observe: Callable[..., Observation]) -> Audit:
    """Two draws a case of two kinds: the reference makes the one in the second draw, and the other never."""
    audit.battery.append("noise-based")
    audit.observations = [
        observe("noise-based", role, case, hit, arm=arm, variant=variant, selector=0.6 + 0.1 * variant)
        for role in (SUBJECT, REFERENCE, CONTROL)
        for case in range(CASES)
        for arm in ("noise", "noise-2")
        for variant in range(2)
        for hit in [role == REFERENCE and arm == "noise" and variant == 1]
    ]
    return audit


def test_the_best_of_an_arm_stands_beside_its_mean(two_kinds: Audit) -> None:
    arm = arms(two_kinds)["noise"]
    assert (arm.draws, arm.reference.hits, arm.reference.cases) == (2, CASES, 2 * CASES)
    assert (arm.reference_best.hits, arm.reference_best.cases) == (CASES, CASES)
    assert (arm.subject_best.hits, arm.control_best.hits) == (0, 0)


def test_an_arm_is_marked_where_the_reference_does_not_exceed_the_control(two_kinds: Audit) -> None:
    assert not arms(two_kinds)["noise"].uninformative
    for observation in two_kinds.observations:
        if observation.role == CONTROL and observation.arm == "noise" and observation.variant == 1:
            for judgement in observation.judgements:
                judgement.detected = True
    assert arms(two_kinds)["noise"].uninformative


def test_one_draw_has_no_best(audit: Audit) -> None:
    (arm,) = arms(audit.hits("standard-prompt", 3, 24)).values()
    assert (arm.draws, arm.HasField("subject_best")) == (1, False)
