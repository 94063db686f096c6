"""Which control each evaluation of an audit has: the same evaluation where the concept cannot be.

An evaluation has the first of these that it can have, or the one that the request asks for, or none:

1. a control model, which never learned the concept;
2. a placebo: the same procedure on the subject for a concept that neither subject nor reference knows;
3. the concept-free control: the same cases on the subject with prompts of other concepts (`concept_free.py`).
"""

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_MODEL,
    CONTROL_KIND_NONE,
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_ELICITING,
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_PLAIN,
    MODEL_ROLE_CONTROL,
    ControlKind,
    EvaluationDescription,
)


def takes_control(description: EvaluationDescription) -> bool:
    """Whether the evaluation runs on a control at all."""
    return not description.without_model and (not description.roles or MODEL_ROLE_CONTROL in description.roles)


def takes_placebo(description: EvaluationDescription) -> bool:
    """Whether the evaluation can run with a placebo as its control."""
    measure = description.evaluation_class == EVALUATION_CLASS_MEASURE
    return takes_control(description) and not measure and not description.reference_begins


def takes_concept_free(description: EvaluationDescription) -> bool:
    """Whether the evaluation can run with other concepts' prompts as its control: it hands the model no concept."""
    free = description.evaluation_class in (EVALUATION_CLASS_PLAIN, EVALUATION_CLASS_ELICITING)
    return takes_control(description) and free


def control_kind(description: EvaluationDescription, spec: AuditSpec, *, others: bool) -> ControlKind.ValueType:
    """Return the control of one evaluation of an audit; NONE if it has none.

    `spec` is a request with every default filled in. `others` says whether there are other concepts for a concept-free
    control.
    """
    can_have = {
        CONTROL_KIND_MODEL: bool(spec.control) and takes_control(description),
        CONTROL_KIND_PLACEBO: bool(spec.placebos) and takes_placebo(description),
        CONTROL_KIND_CONCEPT_FREE: others and takes_concept_free(description),
    }
    asked = [spec.control_kind] if spec.control_kind else list(can_have)
    return next((kind for kind in asked if can_have.get(kind)), CONTROL_KIND_NONE)
