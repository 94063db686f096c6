"""Whether an audit takes its subject with the guards, as deployed, without them, as its weights, or both.

Reference and control are never guarded: the reference shows what the weights knew, and the control how often procedure
and judges find what is not there. A subject without guards is the same either way, and its units name no access.
"""

from collections.abc import Iterator, Sequence

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    MODEL_ACCESS_BOTH,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ACCESS_UNSPECIFIED,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
    ModelAccess,
    ModelRole,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.guard_kinds import added_rows
from unerase_backend.coordinator.planning.model_checks import Problem


def resolve_access(spec: AuditSpec, catalogue: Catalogue) -> Iterator[Problem]:
    """Fill in the access of a request whose subject is known; yield what is wrong with it.

    With guards the default is both: the deployed model alone would let a filter pass for an erasure, and the weights
    alone would leave out what its users meet.
    """
    if spec.access not in ModelAccess.values():
        yield Problem("spec.access", f"there is no access {spec.access}")
    elif catalogue.guards(spec.subject):
        spec.access = spec.access or MODEL_ACCESS_BOTH
    elif spec.access == MODEL_ACCESS_DEPLOYED:
        description = f"the catalogue gives {spec.subject!r} no guards, so that it is deployed as its weights"
        yield Problem("spec.access", f"{description}; leave it out, or add its guards", "GUARDS_MISSING")
    else:
        spec.access = MODEL_ACCESS_UNSPECIFIED


def guard_judge_problems(spec: AuditSpec, catalogue: Catalogue) -> Iterator[Problem]:
    """Yield a problem for each deciding judge by which the deployed subject withholds pictures, by its weights."""
    if spec.access not in (MODEL_ACCESS_DEPLOYED, MODEL_ACCESS_BOTH):
        return
    named = [getattr(guard.parameters, "judge", "") for guard in catalogue.guards(spec.subject)]
    for index, name in enumerate(named):
        if name and name not in catalogue.judges:
            yield Problem("spec.subject", f"its guard {index} withholds by the judge {name!r}, which there is not")
    withholding = {catalogue.judge_weights(name): name for name in named if name in catalogue.judges}
    for field in ("judge", "second_judge"):
        name = withholding.get(catalogue.judge_weights(getattr(spec, field)))
        if name:
            description = f"the subject's safety checker withholds by {name!r}, of the same weights"
            todo = "it would see nothing of what it detects; name another judge"
            yield Problem(f"spec.{field}", f"{description}: {todo}", "JUDGES_ALIKE")


def accesses(
    spec: AuditSpec, description: EvaluationDescription, role: ModelRole.ValueType
) -> Sequence[ModelAccess.ValueType]:
    """Return the accesses of an evaluation's units of a role; UNSPECIFIED for units without guards."""
    if role != MODEL_ROLE_SUBJECT or description.weights_only or description.without_model:
        return (MODEL_ACCESS_UNSPECIFIED,)
    if spec.access == MODEL_ACCESS_BOTH:
        return (MODEL_ACCESS_OPEN_WEIGHTS, MODEL_ACCESS_DEPLOYED)
    return (spec.access,)


def guard_rows(spec: AuditSpec, catalogue: Catalogue) -> int:
    """Return how many rows the subject's guards add to each guided step."""
    return added_rows(catalogue.guards(spec.subject))
