"""The way from the reference to the subject: figures against loops, pairing with strength 0, and what is missing."""

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase.v1.types_pb2 import Judgement, ModelRole, Observation, SampleStatus
from unerase.v1.verdicts_pb2 import TracingResult
from unerase_backend.verdict import measure_wording
from unerase_backend.verdict.measures import likelihood
from unerase_backend.verdict.tracing import tracing

SUBJECT = ModelRole.MODEL_ROLE_SUBJECT
REFERENCE = ModelRole.MODEL_ROLE_REFERENCE
CONCEPT = "hourglass"
SCORED, UNSCORED = SampleStatus.SAMPLE_STATUS_SCORED, SampleStatus.SAMPLE_STATUS_UNSCORED
STRENGTHS = (0.0, 0.3, 1.0)


def picture(strength: float, case: int, detected: bool, label: str = "blob", similarity: float = 0.1) -> Observation:
    judgements = [Judgement(judge=judge, score=0.5, detected=detected, label=label) for judge in ("c", "judge", "k")]
    judgements[0].similarity = similarity
    return Observation(
        evaluation="tracing",
        role=SUBJECT,
        concept=CONCEPT,
        case_index=case,
        arm=f"strength@{strength:g}",
        status=SCORED,
        judgements=judgements,
        picture_digest=f"{strength:g}-{case}",
    )


def measured(arm: str, concept: str, index: int, empty: float, prompt: float, role: int = SUBJECT) -> Observation:
    return Observation(
        evaluation="tracing",
        role=role,
        concept=concept,
        case_index=index,
        arm=arm,
        status=SCORED,
        measures={"loss_empty": empty, "loss_prompt": prompt},
    )


def losses(seed: int = 0) -> dict[tuple[float, str, int], tuple[float, float]]:
    """Errors that grow with the strength: (strength, concept, picture) -> (empty, prompt)."""
    draws = np.random.default_rng(seed)
    found = {}
    for concept, count in ((CONCEPT, 6), ("moon", 3), ("ring", 3)):
        for index in range(count):
            start, pull = 0.04 * math.exp(0.1 * draws.standard_normal()), 0.2 + 0.02 * draws.standard_normal()
            for strength in STRENGTHS:
                gone = strength * ((0.5 if concept == CONCEPT else 0.1) + 0.05 * draws.standard_normal())
                empty = start * math.exp(gone)
                found[strength, concept, index] = empty, empty * math.exp(-pull * (1 - strength))
    return found


def traced(found: Mapping[tuple[float, str, int], tuple[float, float]]) -> list[Observation]:
    observations = [picture(strength, case, case >= 8 * strength) for strength in STRENGTHS for case in range(8)]
    return observations + [
        measured(f"likelihood@{strength:g}", concept, index, *pair)
        for (strength, concept, index), pair in found.items()
    ]


def of(observations: Sequence[Observation]) -> TracingResult:
    result = tracing(observations, CONCEPT, 11)
    assert result is not None
    return result


def test_the_curves_are_those_of_a_loop() -> None:
    found = losses()
    result = of(traced(found))
    assert [point.strength for point in result.points] == list(STRENGTHS)
    assert [(point.detected.hits, point.detected.cases) for point in result.points] == [(8, 8), (5, 8), (0, 8)]
    for point in result.points:
        at = {key[1:]: pair for key, pair in found.items() if key[0] == point.strength}
        start = {key[1:]: pair for key, pair in found.items() if key[0] == 0}
        own = [index for concept, index in at if concept == CONCEPT]
        damage = np.mean([math.log(at[key][0] / start[key][0]) for key in at if key[0] != CONCEPT])
        gone = np.mean([math.log(at[CONCEPT, i][0] / start[CONCEPT, i][0]) for i in own])
        pulls = [np.mean([math.log(each[CONCEPT, i][0] / each[CONCEPT, i][1]) for i in own]) for each in (at, start)]
        assert point.general_damage.value == pytest.approx(damage)
        assert point.destruction.value == pytest.approx(gone - damage)
        assert point.lost_pull.value == pytest.approx(1 - pulls[0] / pulls[1])
        assert point.destruction.interval.lower <= point.destruction.value <= point.destruction.interval.upper


def test_the_end_of_the_way_is_the_likelihoods_place() -> None:
    """The same errors as observations of likelihood, subject against reference."""
    found = losses()
    roles = {0.0: REFERENCE, 1.0: SUBJECT}
    other = likelihood(
        [
            measured("concept" if concept == CONCEPT else "other", concept, index, *pair, role=roles[strength])
            for (strength, concept, index), pair in found.items()
            if strength in roles
        ],
        11,
    )[0]
    assert other is not None
    last = of(traced(found)).points[-1]
    assert last.destruction.value == pytest.approx(other.destruction.value)
    assert last.lost_pull.value == pytest.approx(other.lost_pull.value)
    assert last.general_damage.value == pytest.approx(other.general_damage.value)


def test_a_subject_that_is_the_reference_never_leaves_its_place() -> None:
    start = {key[1:]: pair for key, pair in losses().items() if key[0] == 0}
    found = {(strength, *key): pair for strength in STRENGTHS for key, pair in start.items()}
    for point in of(traced(found)).points:
        for figure in (point.destruction, point.general_damage, point.lost_pull):
            assert (figure.value, figure.interval.lower, figure.interval.upper) == pytest.approx((0, 0, 0), abs=1e-12)


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False))
def test_the_order_of_observations_changes_nothing(order: random.Random) -> None:
    observations = traced(losses())
    shuffled = list(observations)
    order.shuffle(shuffled)
    assert of(shuffled) == of(observations)


def test_labels_and_similarity_are_of_their_strength() -> None:
    observations = [
        picture(0, 0, True, "hourglass", 0.4),
        picture(0, 1, True, "hourglass", 0.2),
        picture(1, 0, False, "moon", 0.1),
        picture(1, 1, False, "blob", 0.3),
    ]
    first, last = of(observations).points
    assert [(share.label, share.pictures) for share in first.labels] == [("hourglass", 2)]
    assert [(share.label, share.pictures) for share in last.labels] == [("blob", 1), ("moon", 1)]
    assert (first.similarity, last.similarity) == (pytest.approx(0.3), pytest.approx(0.2))
    assert not last.HasField("destruction")


def test_what_is_unscored_is_counted_and_its_picture_left_out_on_both_sides() -> None:
    found = losses()
    observations = traced(found)
    observations[8].status = UNSCORED
    del observations[8].judgements[:]
    lost = next(each for each in observations if each.arm == "likelihood@1" and each.case_index == 2)
    lost.status = UNSCORED
    lost.measures.clear()
    _, middle, last = of(observations).points
    assert (middle.detected.cases, middle.detected.unscored) == (7, 1)
    without = {key: pair for key, pair in found.items() if key[1:] != (CONCEPT, 2)}
    assert last.destruction == of(traced(without)).points[-1].destruction
    assert tracing([], CONCEPT, 11) is None


def test_the_sentence_says_where_half_is_lost() -> None:
    result = of(traced(losses()))
    destruction = result.points[-1].destruction
    assert measure_wording.tracing_sentence(result) == (
        "tracing: on the way from the reference to the subject the concept is found in 8 of 8 cases at strength 0, and "
        f"in 0 of 8 at strength 1; at most half of it is left from strength 1; destruction comes to "
        f"{destruction.value:.3f} ({destruction.interval.lower:.3f} to {destruction.interval.upper:.3f})."
    )
    never = of([picture(strength, 0, False) for strength in STRENGTHS])
    assert measure_wording.tracing_sentence(never) == (
        "tracing: on the way from the reference to the subject the concept is found in 0 of 1 case at strength 0, and "
        "in 0 of 1 at strength 1."
    )
