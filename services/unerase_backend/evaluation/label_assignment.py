"""The label of a picture by the judge: a concept of the erased concept's kind, something else, or `NONE`.

A judge's first choice among all its labels may answer another question: it calls a red heart "red". So the judge is
asked about each concept of the kind by that concept's own labels, and the detected one with the highest score is the
label. If none is detected, the judge's first choice remains, provided that it has one and that this means no concept of
the catalogue (as most of ImageNet's thousand labels do not). Otherwise the label is `NONE`.
"""

from collections.abc import Sequence

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Judgement, Observation
from unerase_backend.catalogue.kinds import alike
from unerase_backend.evaluation.models import JUDGE, Models

NONE = "none of its kind"
# The most questions that the judges accept in one request.
QUESTIONS_AT_ONCE = 64


async def assign_labels(unit: Unit, models: Models, observations: Sequence[Observation]) -> None:
    """Set the label, and its probability, in the judge's judgement of every scored observation.

    An observation whose picture cannot be judged again becomes unscored.
    """
    scored = [observation for observation in observations if observation.status == SAMPLE_STATUS_SCORED]
    if not scored:
        return
    digests = [observation.picture_digest for observation in scored]
    questions = [each.judge for each in (unit.target, *alike(unit.target.concept, unit.others))]
    known = {label for each in (unit.target, *unit.others) for label in each.judge.labels}
    answers: list[list[Judgement]] = [[] for _ in scored]
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        seen = await models.classify(digests, questions[start : start + QUESTIONS_AT_ONCE])
        for observation, picture, answered in zip(scored, seen, answers, strict=True):
            if picture.status != SAMPLE_STATUS_SCORED:
                unscore(observation, picture.reason)
            answered.extend(picture.judgements)
    for observation, answered in zip(scored, answers, strict=True):
        if observation.status != SAMPLE_STATUS_SCORED:
            continue
        judgement = observation.judgements[JUDGE]
        found = [(answer.score, -place) for place, answer in enumerate(answered) if answer.detected]
        if found:
            score, place = max(found)
            judgement.label, judgement.label_score = questions[-place].labels[0], score
        elif not judgement.label or judgement.label in known:
            judgement.label, judgement.label_score = NONE, 1 - max(answer.score for answer in answered)


def unscore(observation: Observation, reason: str) -> None:
    """Turn an observation into an unscored one."""
    observation.status, observation.reason = SAMPLE_STATUS_UNSCORED, reason
    observation.ClearField("judgements")
    observation.ClearField("measures")
