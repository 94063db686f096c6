"""Judge quality: what do the judges say about pictures whose truth is known?

The concept's questions judge the concept's own pictures (arm "concept"), those of the other concepts of its kind (arm
"other"), and near misses (arm "near-miss"). The verdict computes (`verdict/measures.py`)

    sensitivity = share detected of "concept",    specificity = share not detected of "other", or of "near-miss"

No audited model takes part, so one unit serves all roles. Pictures of concepts of another kind are left out, because
they may show the concept: a red thing may be the erased object.
"""

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_MEASURE, RESULT_KIND_JUDGE_QUALITY, Observation
from unerase_backend.catalogue.kinds import alike
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.parameters import Parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.probing.registry import probe


@probe(
    "judge-quality",
    title="Judge quality",
    summary="The judges on known pictures of the concept, of others, and on near misses.",
    evaluation_class=EVALUATION_CLASS_MEASURE,
    result=RESULT_KIND_JUDGE_QUALITY,
    without_model=True,
    pictures="0",
    rows="0",
    others=True,
    parameters=[
        parameter("other_pictures", "Most pictures of each other concept.", 64, minimum=1, maximum=1024, integer=True),
    ],
)
async def judge_quality(unit: Unit, models: Models, parameters: Parameters) -> list[Observation]:
    """Judge every known picture by the concept's questions."""
    concept = unit.target.concept
    known = [("concept", concept.name, digest) for digest in concept.picture_digests]
    for other in alike(concept, unit.others):
        pictures = other.concept.picture_digests[: parameters["other_pictures"]]
        known += [("other", other.concept.name, digest) for digest in pictures]
    known += [("near-miss", concept.name, digest) for digest in concept.near_miss_digests]
    judged = await models.classify([digest for *_, digest in known], panel(unit.target)) if known else []
    return [
        Observation(
            evaluation=unit.evaluation,
            role=unit.role,
            concept=pictured,
            case_index=index,
            arm=arm,
            status=picture.status,
            reason=picture.reason,
            judgements=picture.judgements,
            picture_digest=digest,
        )
        for index, ((arm, pictured, digest), picture) in enumerate(zip(known, judged, strict=True))
    ]
