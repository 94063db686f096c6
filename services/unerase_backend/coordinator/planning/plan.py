"""The plan of an audit: the request checked and completed with defaults, its cases, its units and its cost.

`make_plan` depends only on the request, the catalogue and the descriptions of the evaluations. The same request with
the same seed base gives the same plan, and planning the completed request again changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditCost, AuditSpec
from unerase.v1.types_pb2 import CONTROL_KIND_CONCEPT_FREE, Case, Concept, EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning import control_checks, fixed_prompts
from unerase_backend.coordinator.planning.access import guard_rows
from unerase_backend.coordinator.planning.applicability import has_one_row
from unerase_backend.coordinator.planning.cost import cost_of, count_work, picture_bytes
from unerase_backend.coordinator.planning.packs import with_pack
from unerase_backend.coordinator.planning.parts import Parts
from unerase_backend.coordinator.planning.picture_checks import check_pictures
from unerase_backend.coordinator.planning.presets import planned_descriptions
from unerase_backend.coordinator.planning.prompt_reach import check_labels, check_reach, encoders_of, notes_on_pack
from unerase_backend.coordinator.planning.request import resolve_request
from unerase_backend.coordinator.planning.schedule_checks import stepped_otherwise
from unerase_backend.coordinator.planning.targets import Targets, cases_of
from unerase_backend.coordinator.planning.units import units_of
from unerase_backend.evaluation.cost import Work
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


@dataclass(frozen=True)
class Plan:
    """An audit, ready to run: `spec` with every default filled in, and its units in the order in which they start.

    Units name what they share by digest (`coordinator/planning/parts.py`); `parts` holds its bytes by digest.
    """

    spec: AuditSpec
    concept: Concept
    placebo_pictures: tuple[str, ...]
    """The digests of custom placebos' pictures, which have no other copy."""
    cases: tuple[Case, ...]
    units: tuple[Unit, ...]
    parts: Mapping[str, bytes]
    works: tuple[Work, ...]
    """The work of each unit."""
    cost: AuditCost
    picture_bytes: int
    """About how many bytes the audit's pictures will take."""
    notes: tuple[str, ...] = ()
    """What a reader of the audit must know about its inputs, one sentence each."""
    models: tuple[Any, ...] = ()
    """The registered models that it names, bases included (`planning/registered.py`)."""


def make_plan(
    spec: AuditSpec,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    draw_seed: Callable[[], int],
    broken: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Check the request, fill in what it leaves out, and cut it into units.

    `descriptions` holds every evaluation that can be used, `broken` the reason for each installed one that cannot.
    `draw_seed` is called if the request has no seed base.

    Raises:
        InvalidRequestError: one violation for each bad field. If all have the same reason, such as MODEL_NOT_FOUND, the
            error has it as well.
    """
    resolved = resolve_request(spec, catalogue, descriptions, broken, draw_seed)
    concept = with_pack(catalogue.concept_message(resolved.concept, store), resolved)
    cases = tuple(cases_of(concept, resolved))
    parts = Parts()
    targets = Targets(resolved, cases, catalogue, store, parts)
    check_pictures(resolved, concept, targets.others, descriptions)
    notes = _check_prompts(resolved, concept, cases, catalogue, store)
    if resolved.control_kind == CONTROL_KIND_CONCEPT_FREE and not targets.stand_ins:
        raise _without_stand_ins()
    guarded, schedules = guard_rows(resolved, catalogue), stepped_otherwise(resolved, catalogue)
    one_row = has_one_row(resolved, catalogue)
    units = tuple(units_of(resolved, cases, targets, descriptions, guarded, schedules, one_row=one_row))
    parts.descriptions(planned_descriptions(resolved.battery.evaluations, descriptions))
    works = count_work(units, descriptions, targets.known)
    custom = [catalogue.custom[name].concept for name in resolved.placebos if name in catalogue.custom]
    placebo_pictures = tuple(dict.fromkeys(digest for each in custom for digest in each.picture_digests))
    pictures = {*concept.picture_digests, *concept.near_miss_digests, *placebo_pictures}
    cost = cost_of(resolved, concept, len(pictures), units, works, parts.contents)
    stored = picture_bytes(cost.pictures, catalogue.models[resolved.reference].resolution)
    return Plan(resolved, concept, placebo_pictures, cases, units, parts.contents, works, cost, stored, notes)


def _check_prompts(
    spec: AuditSpec, concept: Concept, cases: Sequence[Case], catalogue: Catalogue, store: ArtifactStore
) -> tuple[str, ...]:
    """Return the notes on the audit's list of prompts, and on prompts that an encoder cuts, placebos' included.

    Raises as `check_labels` and `check_reach`.
    """
    check_labels(spec, catalogue)
    encoders = encoders_of(spec, catalogue)
    if spec.fixed_prompts:
        notes = fixed_prompts.notes_on_list(spec, concept, catalogue.models[spec.reference].resolution)
        # A published prompt is taken as it is, and as it was read when it was published.
        nameless = Concept(name=concept.name)
        notes += check_reach("", nameless, [Case(index=case.index, prompt=case.prompt) for case in cases], encoders)
        held_out = [Case(index=case.index, held_out_prompt=case.held_out_prompt) for case in cases]
        notes += check_reach("spec.fixed_prompts", concept, held_out, encoders)
    else:
        notes = check_reach("spec.concept", concept, cases, encoders)
    notes += notes_on_pack(concept, encoders)
    for index, name in enumerate(spec.placebos):
        placebo = catalogue.concept_message(name, store)
        notes += check_reach(f"spec.placebos[{index}]", placebo, tuple(cases_of(placebo, spec)), encoders)
    return tuple(notes)


def _without_stand_ins() -> InvalidRequestError:
    description = "asks for CONCEPT_FREE, but the catalogue has no other concept that could take the concept's place"
    error = InvalidRequestError.of(FieldViolation("spec.control_kind", description))
    error.reason = control_checks.MISSING
    return error
