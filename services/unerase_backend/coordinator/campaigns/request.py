"""Checks the request for a campaign field by field, and fills in its defaults."""

import difflib
from collections.abc import Callable, Collection, Iterable

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.gates_pb2 import Gate
from unerase_backend.comparison import check_gate
from unerase_backend.coordinator.planning.request import MAX_NAME
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import MOST_NAMED, FieldViolation, InvalidRequestError
from unerase_backend.runtime.identifiers import AUDIT_ID

MAX_CELLS = 200_000
DEFAULT_WINDOW = 64
MAX_WINDOW = 1024
DEFAULT_ALPHA = 0.05

TOO_LARGE = "CAMPAIGN_TOO_LARGE"


def resolve_campaign(
    spec: CampaignSpec,
    filtered: Collection[str],
    models: Collection[str],
    concepts: Collection[str],
    seed_base: Callable[[], int],
) -> CampaignSpec:
    """Return the request with every default filled in; `filtered` are the subjects that its filter finds.

    `models` and `concepts` are the names that may be named. `seed_base` is called if the template gives none. The
    template is checked with the first cells (`first_cells.py`).

    Raises:
        InvalidRequestError: one violation for each bad field. If all have the same reason, the error has it as well.
    """
    found = [
        *_names("spec.subjects", spec.subjects, models, "model", required=not spec.subject_filter),
        *_names("spec.concepts", spec.concepts, concepts, "concept", required=True),
        *_template(spec.template),
        *_gate(spec),
    ]
    if spec.compared_with and not AUDIT_ID.fullmatch(spec.compared_with):
        found.append(("spec.compared_with", "must be a campaign's id", InvalidRequestError.reason))
    if spec.window > MAX_WINDOW:
        found.append(("spec.window", f"must be at most {MAX_WINDOW}, not {spec.window}", InvalidRequestError.reason))
    subjects = list(dict.fromkeys((*spec.subjects, *sorted(filtered))))
    if not subjects and not any(field == "spec.subjects" for field, *_ in found):
        found.append(("spec.subject_filter", "holds for no model", InvalidRequestError.reason))
    cells = len(subjects) * len(spec.concepts)
    if cells > MAX_CELLS:
        sides = f"{counted(len(subjects), 'subject')} and {counted(len(spec.concepts), 'concept')}"
        description = f"{sides} make {cells:,} cells; "
        found.append(("spec.subjects", f"{description}at most {MAX_CELLS:,} are allowed", TOO_LARGE))
    raise_all(found)
    whole = CampaignSpec()
    whole.CopyFrom(spec)
    whole.subjects[:] = subjects
    whole.window = spec.window or DEFAULT_WINDOW
    whole.sequential = spec.sequential if spec.HasField("sequential") else True
    if not whole.template.HasField("seed_base"):
        whole.template.seed_base = seed_base()
    if whole.HasField("gate"):
        whole.gate.CopyFrom(whole_gate(spec.gate))
    return whole


def cell_spec(spec: CampaignSpec, subject: str, concept: str) -> AuditSpec:
    """Return the specification of one cell's audit."""
    whole = AuditSpec()
    whole.CopyFrom(spec.template)
    whole.subject, whole.concept, whole.sequential = subject, concept, spec.sequential
    return whole


def whole_gate(gate: Gate) -> Gate:
    """Return a gate with its defaults filled in."""
    whole = Gate()
    whole.CopyFrom(gate)
    if whole.no_worse_than and not whole.HasField("alpha"):
        whole.alpha = DEFAULT_ALPHA
    return whole


def raise_all(found: Iterable[Iterable[str]]) -> None:
    """Raise the violations, each with its field, description and reason, if there are any."""
    violations, reasons = [], set()
    for field, description, reason in found:
        violations.append(FieldViolation(field, description))
        reasons.add(reason)
    if violations:
        error = InvalidRequestError.of(*violations)
        if len(reasons) == 1:
            error.reason = reasons.pop()
        raise error


def _names(
    field: str, names: Iterable[str], known: Collection[str], kind: str, *, required: bool
) -> list[tuple[str, str, str]]:
    found, seen = [], set()
    for index, name in enumerate(names):
        place = f"{field}[{index}]"
        if not name or len(name) > MAX_NAME:
            found.append((place, f"must name a {kind}, in at most {MAX_NAME} characters", InvalidRequestError.reason))
        elif name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            more = f"; did you mean {near[0]!r}?" if near else ""
            found.append((place, f"there is no {kind} {name[:60]!r}{more}", f"{kind.upper()}_NOT_FOUND"))
        elif name in seen:
            found.append((place, f"names {name!r} a second time", InvalidRequestError.reason))
        seen.add(name)
        if len(found) == MOST_NAMED:
            break
    if not seen and required:
        found.append((field, f"must name a {kind}", InvalidRequestError.reason))
    return found


def _gate(spec: CampaignSpec) -> Iterable[tuple[str, str, str]]:
    if spec.HasField("gate"):
        try:
            check_gate(spec.gate, spec.concepts, field="spec.gate")
        except InvalidRequestError as error:
            yield from ((each.field, each.description, error.reason) for each in error.violations)
        if spec.gate.no_worse_than and not AUDIT_ID.fullmatch(spec.gate.no_worse_than):
            yield "spec.gate.no_worse_than", "must be a campaign's id", InvalidRequestError.reason


def _template(template: AuditSpec) -> Iterable[tuple[str, str, str]]:
    for field, instead in (
        ("subject", "spec.subjects"),
        ("concept", "spec.concepts"),
        ("sequential", "spec.sequential"),
    ):
        if getattr(template, field):
            yield f"spec.template.{field}", f"must be left out; give {instead}", InvalidRequestError.reason
