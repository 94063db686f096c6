"""Which evaluations of a request apply to its models: planning marks those that do not, and gives them no units.

The subject's family decides. Reference and control must be of the same family: what one family lacks could not be
compared with what another has.
"""

from collections.abc import Iterator, Mapping

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_families import Guidance, family_of_model
from unerase_backend.coordinator.planning.model_checks import Problem
from unerase_backend.evaluation.applicability import applicability
from unerase_backend.runtime.errors import MOST_NAMED
from unerase_backend.verdict.inapplicable import NOT_APPLICABLE

FAMILIES_DIFFER = "FAMILIES_DIFFER"
"""The reason of a request whose models are of several families."""


def mark_inapplicable(
    spec: AuditSpec, catalogue: Catalogue, descriptions: Mapping[str, EvaluationDescription]
) -> Iterator[Problem]:
    """Mark the evaluations of the battery that do not apply to the subject's family, each with the reason.

    Yields a problem if none applies.
    """
    family = family_of_model(catalogue, spec.subject)
    said = []
    for request in spec.battery.evaluations:
        lacking = applicability(descriptions[request.name], family)
        if lacking is not None:
            request.not_applicable.CopyFrom(lacking)
            said.append(f"{request.name} is not applicable: {lacking.reason}")
    if said and len(said) == len(spec.battery.evaluations):
        left = len(said) - MOST_NAMED
        listed = ". ".join([*said[:MOST_NAMED], *([f"So it is with {left} more"] if left > 0 else [])])
        description = f"must hold an evaluation that applies to the models, which are of {family.title}. {listed}"
        yield Problem("spec.battery.evaluations", description, NOT_APPLICABLE)


def has_one_row(spec: AuditSpec, catalogue: Catalogue) -> bool:
    """Return whether a step of the models has one row with guidance too, which is in their network."""
    return family_of_model(catalogue, spec.subject).guidance is not Guidance.CLASSIFIER_FREE


def family_problems(spec: AuditSpec, catalogue: Catalogue) -> Iterator[Problem]:
    """Yield a problem for the reference and for the control if it is of another family than the subject."""
    own = family_of_model(catalogue, spec.subject)
    for field in ("reference", "control"):
        name = getattr(spec, field)
        if name and (family := family_of_model(catalogue, name)) != own:
            description = (
                f"is of another family than the subject ({family.title}, not {own.title}), so that they cannot be "
                "compared; name a model of the subject's family"
            )
            yield Problem(f"spec.{field}", description, FAMILIES_DIFFER)
