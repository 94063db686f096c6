"""What stands in a picture: the concepts of the kind, what no concept means, and nothing."""

import pytest

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONCEPT_KIND_COLOUR,
    CONCEPT_KIND_OBJECT,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Concept,
    Judgement,
    Observation,
)
from unerase_backend.evaluation.label_assignment import NONE, assign_labels
from unerase_backend.evaluation.models import Models


def target(name: str, kind: int = CONCEPT_KIND_OBJECT) -> Target:
    return Target(concept=Concept(name=name, kind=kind), judge=Question(judge="judge", labels=[name]))  # type: ignore[arg-type]


def unit(*others: Target) -> Unit:
    return Unit(target=target("hourglass"), others=[target("house"), target("red", CONCEPT_KIND_COLOUR), *others])


def first_choice(label: str, digest: str = "d") -> Observation:
    judgements = [
        Judgement(judge="clip"),
        Judgement(judge="judge", label=label, label_score=0.99, score=0.3),
        Judgement(),
    ]
    return Observation(status=SAMPLE_STATUS_SCORED, judgements=judgements, picture_digest=digest)


async def named(asked: Unit, observations: list[Observation], scores: dict[str, float], threshold: float = 0.5) -> int:
    """Let a judge answer with these scores, and return how often it was asked."""
    calls = 0

    async def classify(request: ClassifyRequest) -> ClassifyResponse:
        nonlocal calls
        calls += 1
        assert len(request.questions) <= 64
        found = [scores.get(question.labels[0], 0.0) for question in request.questions]
        answers = [Judgement(score=score, detected=score > threshold) for score in found]
        return ClassifyResponse(
            pictures=[
                PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason="not finite")
                if digest == "broken"
                else PictureJudgements(status=SAMPLE_STATUS_SCORED, judgements=answers)
                for digest in request.picture_digests
            ]
        )

    async def unused(request: object) -> object:
        raise AssertionError("only judges are asked")

    await assign_labels(asked, Models(unused, unused, unused, classify), observations)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize(
    ("first", "scores", "label", "probability"),
    [
        ("red", {"house": 0.9, "red": 0.99}, "house", 0.9),
        ("red", {"house": 0.6, "hourglass": 0.7}, "hourglass", 0.7),
        ("red", {"house": 0.4}, NONE, 0.6),
        ("house", {"house": 0.45}, NONE, 0.55),
        ("vase", {"house": 0.3}, "vase", 0.99),
        ("vase", {"house": 0.8}, "house", 0.8),
    ],
)
async def test_the_label_is_of_the_kind_or_of_no_concept(
    first: str, scores: dict[str, float], label: str, probability: float
) -> None:
    observation = first_choice(first)
    await named(unit(), [observation], scores)
    judgement = observation.judgements[1]
    assert (judgement.label, judgement.label_score) == (label, pytest.approx(probability))
    assert judgement.score == 0.3


async def test_a_tie_goes_to_the_concept_that_is_asked_first() -> None:
    observation = first_choice("red")
    await named(unit(), [observation], {"hourglass": 0.8, "house": 0.8})
    assert observation.judgements[1].label == "hourglass"


async def test_what_is_not_scored_is_not_asked_and_what_fails_becomes_unscored() -> None:
    whole, broken = first_choice("red"), first_choice("red", "broken")
    lost = Observation(status=SAMPLE_STATUS_UNSCORED, reason="before")
    await named(unit(), [lost, broken, whole], {"house": 0.9})
    assert (lost.reason, whole.judgements[1].label) == ("before", "house")
    assert (broken.status, broken.reason, len(broken.judgements)) == (SAMPLE_STATUS_UNSCORED, "not finite", 0)
    assert await named(unit(), [lost], {}) == 0


async def test_many_concepts_are_asked_a_few_at_a_time() -> None:
    observation = first_choice("red")
    others = [target(f"thing-{number}") for number in range(100)]
    assert await named(unit(*others), [observation], {"thing-99": 0.9}) == 2
    assert observation.judgements[1].label == "thing-99"


async def test_a_judge_without_a_first_choice_saw_nothing_of_the_kind() -> None:
    """As a detector that found no box."""
    seen = first_choice("")
    await named(unit(), [seen], {"hourglass": 0.1, "house": 0.02})
    assert seen.judgements[1].label == NONE
    assert seen.judgements[1].label_score == pytest.approx(0.9)
