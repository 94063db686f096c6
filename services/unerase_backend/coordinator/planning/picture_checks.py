"""Whether the concept has the pictures without which an evaluation cannot run."""

from collections.abc import Mapping, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import Concept, EvaluationDescription
from unerase_backend.catalogue.kinds import alike
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.verdict.inapplicable import applying

PICTURES_MISSING = "PICTURES_MISSING"
"""The reason of an error about an evaluation that needs more pictures than there are."""


def check_pictures(
    spec: AuditSpec, concept: Concept, others: Sequence[Target], descriptions: Mapping[str, EvaluationDescription]
) -> None:
    """Check the evaluations of a request; `others` are the other concepts that its units get.

    Raises:
        InvalidRequestError: some of them cannot run; they are named together.
    """
    there = len(concept.picture_digests)
    chosen = [descriptions[name] for name in applying(spec.battery.evaluations)]
    poor = [each for each in chosen if each.least_pictures > there]
    pictured = any(len(other.concept.picture_digests) > 1 for other in alike(concept, others))
    lone = [] if pictured else [each for each in chosen if each.others_pictures and each not in poor]
    violations = []
    if poor:
        least = max(each.least_pictures for each in poor)
        violations.append(
            f"has {counted(there, 'picture')}, and {_listed(poor)} need at least {least}: give the concept "
            "pictures, or leave them out"
        )
    if lone:
        violations.append(
            f"{_listed(lone)} compare it with another concept of its kind that has two pictures, and the catalogue has "
            "none: add one, or leave them out"
        )
    if violations:
        error = InvalidRequestError.of(*(FieldViolation("spec.concept", each) for each in violations))
        error.reason = PICTURES_MISSING
        raise error


def _listed(descriptions: Sequence[EvaluationDescription]) -> str:
    return ", ".join(each.name for each in descriptions)
