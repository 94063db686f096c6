"""Plans the first cells of a campaign before it is accepted, so that a bad template is refused at once, and its cost.

One cell of each concept is planned, with the first subject that can be planned. If none of the first subjects can, the
campaign is refused, and what is wrong is said of its fields, as in `spec.template.cases`. Subjects that cannot be
audited beside others that can are failed cells later, each with its reason.
"""

from collections.abc import Iterable

from unerase.v1.audits_pb2 import AuditCost
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase_backend.coordinator.campaigns.request import cell_spec
from unerase_backend.coordinator.execution.admission import Admission, Planned
from unerase_backend.runtime.errors import ExhaustedError, FieldViolation, InvalidRequestError
from unerase_backend.verdict.inapplicable import NOT_APPLICABLE

# A plan takes a tenth of a second or more, and a call may take minutes at most.
CONCEPTS_PLANNED = 32
SUBJECTS_TRIED = 4


async def plan_first_cells(spec: CampaignSpec, admission: Admission, tenant: str) -> AuditCost:
    """Plan one cell of each of the first `CONCEPTS_PLANNED` concepts, and return the cost of the whole campaign.

    The cost counts each concept's planned cell once for every subject, and every further concept as the mean of those
    that were planned.

    Raises:
        InvalidRequestError: the template is bad for a concept, or none of the first subjects can be audited.
        ExhaustedError: a cell would take more than the tenant's whole quota.
        UneraseError: a room is unavailable, or the artefact store is full.
    """
    costs = []
    for index in range(min(CONCEPTS_PLANNED, len(spec.concepts))):
        planned = await _first_planned(spec, index, admission, tenant)
        if planned is None:
            continue
        try:
            await admission.check(planned, tenant)
        except ExhaustedError as error:
            # What is only used up now will be free again.
            if error.retry_after_seconds is None:
                raise
        costs.append(planned.plan.cost)
    return _scaled(costs, len(spec.subjects) * len(spec.concepts) / max(len(costs), 1))


async def _first_planned(spec: CampaignSpec, concept: int, admission: Admission, tenant: str) -> Planned | None:
    """Return the plan of the first subject that can be planned; None if only later subjects can tell.

    Raises:
        InvalidRequestError: none of the first subjects can be planned.
    """
    refused = []
    for position, subject in enumerate(spec.subjects[:SUBJECTS_TRIED]):
        try:
            return await admission.plan(cell_spec(spec, subject, spec.concepts[concept]), tenant)
        except InvalidRequestError as error:
            refused.append((position, error))
    if all(_of_the_subject(error) for _, error in refused) and len(spec.subjects) > SUBJECTS_TRIED:
        return None
    raise _of_campaign(refused[0][1], spec, refused[0][0], concept)


def _of_the_subject(error: InvalidRequestError) -> bool:
    """Whether a cell was refused because of its subject, or because nothing applies to its subject's family."""
    return error.reason == NOT_APPLICABLE or {each.field for each in error.violations} == {"spec.subject"}


def _of_campaign(error: InvalidRequestError, spec: CampaignSpec, subject: int, concept: int) -> InvalidRequestError:
    """Return the error about a cell as one about the campaign."""
    violations = _renamed(error.violations, subject, concept)
    cell = f"the cell {spec.subjects[subject]!r} x {spec.concepts[concept]!r}"
    return InvalidRequestError(
        f"{cell}: {'; '.join(f'{each.field}: {each.description}' for each in violations)}",
        reason=error.reason,
        metadata=error.metadata | {"subject": spec.subjects[subject], "concept": spec.concepts[concept]},
        violations=violations,
    )


def _renamed(violations: Iterable[FieldViolation], subject: int, concept: int) -> list[FieldViolation]:
    """Return violations of an audit's fields as those of the campaign's fields."""
    places = {"spec.subject": f"spec.subjects[{subject}]", "spec.concept": f"spec.concepts[{concept}]"}
    return [
        FieldViolation(places.get(each.field, f"spec.template.{each.field.removeprefix('spec.')}"), each.description)
        for each in violations
    ]


def _scaled(costs: list[AuditCost], times: float) -> AuditCost:
    """Return the sum of the costs times `times`, by evaluation in the order in which they come."""
    whole = AuditCost()
    for cost in costs:
        whole.units += cost.units
        whole.pictures += cost.pictures
        whole.rows += cost.rows
        whole.stored_bytes += cost.stored_bytes
        for each in cost.evaluations:
            known = next((other for other in whole.evaluations if other.evaluation == each.evaluation), None)
            known = known or whole.evaluations.add(evaluation=each.evaluation)
            known.units += each.units
            known.pictures += each.pictures
            known.rows += each.rows
            known.assumed |= each.assumed
    for figures in (whole, *whole.evaluations):
        for field in ("units", "pictures", "rows"):
            setattr(figures, field, round(getattr(figures, field) * times))
    whole.stored_bytes = round(whole.stored_bytes * times)
    return whole
