"""The cost of an audit: counted before the audit is accepted, and checked against the limits on one audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditCost, AuditSpec, EvaluationCost
from unerase.v1.types_pb2 import Concept, EvaluationDescription
from unerase_backend.evaluation.cost import Surroundings, Work, work_of
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

# The keys, index entries and header of a row in SQLite and PostgreSQL; tests/coordinator/planning/test_cost.py measures
# it.
_ROW_BYTES = 200
# For a PNG of three channels. Noise does not compress; what models paint compresses to half of three bytes or less.
_BYTES_PER_PIXEL = 1.5


@dataclass(frozen=True)
class CostLimits:
    """The most that one audit may take; 0 means no limit."""

    pictures: int = 0
    rows: int = 0
    bytes: int = 0


def count_work(
    units: Sequence[Unit], descriptions: Mapping[str, EvaluationDescription], known: Mapping[str, Surroundings]
) -> tuple[Work, ...]:
    """Return the work of each unit; `known` holds the surroundings by the digest of the unit's target."""
    return tuple(
        work_of(
            unit,
            descriptions[unit.evaluation],
            resolve_parameters(descriptions[unit.evaluation], unit.parameters),
            known[unit.target_digest],
        )
        for unit in units
    )


def cost_of(
    spec: AuditSpec,
    concept: Concept,
    known_pictures: int,
    units: Sequence[Unit],
    works: Sequence[Work],
    parts: Mapping[str, bytes],
) -> AuditCost:
    """Add up an audit's cost, by evaluation in the order of the battery.

    `known_pictures` is the number of pictures that exist before the audit and that the audit keeps.
    """
    by_evaluation = {request.name: EvaluationCost(evaluation=request.name) for request in spec.battery.evaluations}
    for unit, work in zip(units, works, strict=True):
        cost = by_evaluation[unit.evaluation]
        cost.units += 1
        cost.pictures += work.pictures
        cost.rows += work.rows
        cost.assumed |= work.assumed
    costs = list(by_evaluation.values())
    return AuditCost(
        units=len(units),
        pictures=sum(cost.pictures for cost in costs),
        rows=sum(cost.rows for cost in costs),
        stored_bytes=_stored_bytes(spec, concept, known_pictures, units, parts),
        evaluations=costs,
    )


def picture_bytes(pictures: int, resolution: int) -> int:
    """Return about how many bytes `pictures` pictures of `resolution` pixels a side take."""
    return round(pictures * resolution * resolution * _BYTES_PER_PIXEL)


def check_cost(cost: AuditCost, limits: CostLimits) -> None:
    """Check an audit's cost against the limits on one audit.

    Raises:
        InvalidRequestError: the cost is above a limit; the message says which evaluation takes the most.
    """
    figures = (
        ("pictures", cost.pictures, limits.pictures),
        ("rows of the denoising network", cost.rows, limits.rows),
        ("bytes in the database", cost.stored_bytes, limits.bytes),
    )
    above = [(what, count, limit) for what, count, limit in figures if limit and count > limit]
    if not above:
        return
    said = "; ".join(
        f"takes {count} {what}, and at most {limit} {'is' if limit == 1 else 'are'} allowed"
        for what, count, limit in above
    )
    error = InvalidRequestError.of(FieldViolation(*_to_reduce(cost, above[0][0], said)))
    error.reason = "AUDIT_TOO_LARGE"
    what, count, limit = above[0]
    error.metadata.update({"what": what, "count": str(count), "limit": str(limit)})
    raise error


def _to_reduce(cost: AuditCost, what: str, said: str) -> tuple[str, str]:
    if what.startswith("bytes"):
        return "spec.concept", f"the audit {said}: take fewer cases, or a concept with shorter prompts"
    field = "pictures" if what == "pictures" else "rows"
    most = max(cost.evaluations, key=lambda each: getattr(each, field))
    share = f"{most.evaluation} takes {getattr(most, field)} of them"
    if most.assumed:
        share += ", counted high because it does not declare its cost"
    steps = "" if field == "pictures" else ", fewer steps"
    return "spec.cases", f"the audit {said}: take fewer cases{steps}, or fewer evaluations; {share}"


def _stored_bytes(
    spec: AuditSpec, concept: Concept, known_pictures: int, units: Sequence[Unit], parts: Mapping[str, bytes]
) -> int:
    # The specification is in the audit's row and in its events; the cases are in the row and among the parts.
    messages = 4 * spec.ByteSize() + concept.ByteSize() + sum(unit.ByteSize() + len(unit.id) for unit in units)
    contents = sum(len(content) for content in parts.values())
    row_cases = max((len(parts[unit.cases_digest]) for unit in units), default=0)
    rows = 2 + len(units) + len(parts) + known_pictures
    return messages + contents + row_cases + rows * _ROW_BYTES
