"""The families of models with what each evaluation does on them, as callers are told."""

from collections.abc import Iterable, Mapping

from unerase.v1 import models_pb2
from unerase.v1.models_pb2 import (
    GUIDANCE_KIND_CLASSIFIER_FREE,
    GUIDANCE_KIND_EMBEDDED,
    GUIDANCE_KIND_NONE,
    NOISE_PATH_RECTIFIED_FLOW,
    NOISE_PATH_VARIANCE_PRESERVING,
    FamilyEvaluation,
    FamilyPart,
    GuidanceKind,
)
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue.backbone_kinds import BACKBONES, BackboneKind, backbone_of
from unerase_backend.catalogue.model_families import FAMILIES, STABLE_DIFFUSION, Guidance, ModelFamily, NoisePath
from unerase_backend.evaluation.applicability import applicability

_GUIDANCE: Mapping[Guidance, GuidanceKind.ValueType] = {
    Guidance.CLASSIFIER_FREE: GUIDANCE_KIND_CLASSIFIER_FREE,
    Guidance.EMBEDDED: GUIDANCE_KIND_EMBEDDED,
    Guidance.NONE: GUIDANCE_KIND_NONE,
}
_PATHS = {
    NoisePath.VARIANCE_PRESERVING: NOISE_PATH_VARIANCE_PRESERVING,
    NoisePath.RECTIFIED_FLOW: NOISE_PATH_RECTIFIED_FLOW,
}


def described_families(descriptions: Iterable[EvaluationDescription]) -> list[models_pb2.ModelFamily]:
    """Return the known families, then those of third parties in order of name, with all the evaluations described."""
    evaluations = sorted(descriptions, key=lambda each: each.name)
    known = {pipeline for family in FAMILIES for pipeline in family.classes}
    own = [_described(family, _backbone(family), evaluations) for family in FAMILIES]
    others = [kind for kind in BACKBONES.all().values() if not known & {*kind.pipelines}]
    return [*own, *(_third_party(kind, evaluations) for kind in others)]


def _backbone(family: ModelFamily) -> type[BackboneKind] | None:
    return next((kind for each in family.classes if (kind := backbone_of(each)) is not None), None)


def _described(
    family: ModelFamily, kind: type[BackboneKind] | None, evaluations: Iterable[EvaluationDescription]
) -> models_pb2.ModelFamily:
    return models_pb2.ModelFamily(
        name=family.name,
        title=family.title,
        pipelines=[each for each in family.classes if kind is None or each in kind.pipelines],
        parts=_parts(kind) if kind is not None else (),
        path=_PATHS[family.path],
        prediction_types=family.path.prediction_types,
        guidance=_GUIDANCE[family.guidance],
        evaluations=_applied(family, evaluations),
        loaded=kind is not None,
    )


def _third_party(kind: type[BackboneKind], evaluations: Iterable[EvaluationDescription]) -> models_pb2.ModelFamily:
    # What evaluations do on a family without a row here is what they do on the one that plans take it for.
    return models_pb2.ModelFamily(
        name=kind.family,
        title=kind.title,
        pipelines=kind.pipelines,
        parts=_parts(kind),
        guidance=_GUIDANCE[STABLE_DIFFUSION.guidance],
        evaluations=_applied(STABLE_DIFFUSION, evaluations),
        loaded=True,
    )


def _parts(kind: type[BackboneKind]) -> list[FamilyPart]:
    return [
        FamilyPart(name=name, class_name=part.kind, role=part.role.value, optional=not part.required)
        for name, part in kind.parts.items()
    ]


def _applied(family: ModelFamily, evaluations: Iterable[EvaluationDescription]) -> list[FamilyEvaluation]:
    return [FamilyEvaluation(name=each.name, not_applicable=applicability(each, family)) for each in evaluations]
