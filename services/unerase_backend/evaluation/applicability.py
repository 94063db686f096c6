"""Whether an evaluation applies to a family of models, by what it needs and what they can do; else why not."""

from collections.abc import Mapping

from unerase.v1.types_pb2 import (
    MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE,
    MODEL_CAPABILITY_GUIDANCE_SCALE,
    MODEL_CAPABILITY_LEARNED_TOKENS,
    MODEL_CAPABILITY_TOKEN_IDS,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    MODEL_CAPABILITY_UNSPECIFIED,
    EvaluationDescription,
    ModelCapability,
    NotApplicable,
)
from unerase_backend.catalogue.model_families import Guidance, ModelFamily

_GUIDED: Mapping[Guidance, str] = {
    Guidance.CLASSIFIER_FREE: "{family} has classifier-free guidance alone",
    Guidance.EMBEDDED: "{family} takes the guidance scale as an input, so that all that it predicts is guided",
    Guidance.NONE: "{family} has its guidance in its weights, so that all that it predicts is guided",
}
_NEEDED: Mapping[ModelCapability.ValueType, str] = {
    MODEL_CAPABILITY_GUIDANCE_SCALE: "a guidance scale is needed",
    MODEL_CAPABILITY_CLASSIFIER_FREE_GUIDANCE: "classifier-free guidance is needed",
    MODEL_CAPABILITY_UNGUIDED_ROW: "predictions without guidance are needed",
    MODEL_CAPABILITY_LEARNED_TOKENS: "learned embeddings in the place of words are needed",
    MODEL_CAPABILITY_TOKEN_IDS: "prompts given as token ids are needed",
}
_NO_TEXT = "no text encoder of {family} takes them"


def applicability(description: EvaluationDescription, family: ModelFamily) -> NotApplicable | None:
    """Return None if the evaluation applies to the family's models; else what they lack, with the reason in words."""
    lacks = [need for need in dict.fromkeys(description.needs) if need not in family.capabilities]
    if not lacks:
        return None
    reason = "; ".join(_reason(need, family) for need in lacks)
    return NotApplicable(reason=reason, lacks=lacks, family=family.name)


def unknown_needs(description: EvaluationDescription) -> list[int]:
    """Return the needs of an evaluation that are no capability of this version."""
    known = set(ModelCapability.values()) - {MODEL_CAPABILITY_UNSPECIFIED}
    return [need for need in description.needs if need not in known]


def _reason(need: ModelCapability.ValueType, family: ModelFamily) -> str:
    if need not in _NEEDED:
        return f"a capability is needed that only a later version knows ({need})"
    guided = need not in (MODEL_CAPABILITY_LEARNED_TOKENS, MODEL_CAPABILITY_TOKEN_IDS)
    lacking = (_GUIDED[family.guidance] if guided else _NO_TEXT).format(family=family.title)
    return f"{_NEEDED[need]}, and {lacking}"
