"""What stands in a picture, as the judge says: one of the concepts of the erased one's kind, something else, or none.

A judge's first choice among all its labels may answer another question: it calls a red heart "red". So each concept of
the kind is asked for by its own labels, and of those detected the one with the highest score is the label. Where none
is, the judge's first choice stands if it means no concept of the catalogue, as with the thousand labels of ImageNet;
otherwise nothing of the kind is seen.
"""

from collections.abc import Sequence

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Judgement, Observation
from unerase_backend.evaluation.models import JUDGE, Models

NONE = "none of its kind"
# As many questions as the judges answer at once.
QUESTIONS_AT_ONCE = 64


async def name_what_stands(unit: Unit, models: Models, observations: Sequence[Observation]) -> None:
    """Give the judge's judgement of every scored observation the label of what stands there, with its probability.

    What cannot be judged again becomes unscored.
    """
    scored = [observation for observation in observations if observation.status == SAMPLE_STATUS_SCORED]
    if not scored:
        return
    digests = [observation.picture_digest for observation in scored]
    kind = unit.target.concept.kind
    questions = [each.judge for each in (unit.target, *unit.others) if each.concept.kind == kind]
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
        elif judgement.label in known:
            judgement.label, judgement.label_score = NONE, 1 - max(answer.score for answer in answered)


def unscore(observation: Observation, reason: str) -> None:
    """Turn an observation into one that could not be scored."""
    observation.status, observation.reason = SAMPLE_STATUS_UNSCORED, reason
    observation.ClearField("judgements")
    observation.ClearField("measures")
