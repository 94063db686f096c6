"""The plan of an audit: its request checked field by field, every default filled in, cut into cases and units.

A pure function of the request, the catalogue and what the rooms say of their evaluations: the same request with the
same seed base makes the same plan, and planning the filled-in request again changes nothing.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditCost, AuditSpec, Battery
from unerase.v1.types_pb2 import (
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Case,
    Concept,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    ModelRole,
)
from unerase_backend.catalogue import MAX_STEPS, Catalogue
from unerase_backend.coordinator import model_checks
from unerase_backend.coordinator.batteries import DEFAULT_PRESET, PRESETS, planned_descriptions
from unerase_backend.coordinator.cost import cost_of, count_work
from unerase_backend.coordinator.parts import Parts
from unerase_backend.evaluation.cost import Surroundings, Work
from unerase_backend.evaluation.parameters import parameters_struct, resolve_parameters
from unerase_backend.evaluation.units import GUIDANCE_SCALES, MAX_CASES
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict.decision import Tolerances, tolerance_problem
from unerase_backend.verdict.sequential import cases_between_looks

DEFAULT_CASES = 24
MAX_EVALUATIONS = most_items(Battery, "evaluations")
MAX_NAME = 200

_ALL_ROLES = (MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL)
_ROLE_NAMES = {MODEL_ROLE_SUBJECT: "subject", MODEL_ROLE_REFERENCE: "reference", MODEL_ROLE_CONTROL: "control"}


@dataclass(frozen=True)
class Plan:
    """An audit, ready to run: `spec` with every default filled in, and its units in the order in which they start.

    Units name what they share by digest (`coordinator/parts.py`); `parts` has the bytes of it.
    """

    spec: AuditSpec
    concept: Concept
    cases: tuple[Case, ...]
    units: tuple[Unit, ...]
    parts: Mapping[str, bytes]
    works: tuple[Work, ...]
    """What each unit takes."""
    cost: AuditCost
    resolution: int


def make_plan(
    spec: AuditSpec,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    draw_seed: Callable[[], int],
    broken: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """Check the request, fill in what it leaves out, and cut it into units.

    `descriptions` are the evaluations there are, `broken` says why others that are installed are not among them;
    `draw_seed` is asked where the request has no seed base.

    Raises:
        InvalidRequestError: with a violation for each bad field; its reason names the kind of what was not found, if
            that is all that is wrong.
    """
    resolved = _Resolution(spec, catalogue, descriptions, broken).resolve(draw_seed)
    concept = catalogue.concept_message(resolved.concept, store)
    cases = tuple(_cases(concept, resolved))
    parts, known = Parts(), dict[str, Surroundings]()
    units = tuple(_units(resolved, cases, catalogue, store, descriptions, parts, known))
    parts.descriptions(planned_descriptions(list(resolved.battery.evaluations), descriptions))
    works = count_work(units, descriptions, known)
    return Plan(
        resolved,
        concept,
        cases,
        units,
        parts.contents,
        works,
        cost_of(resolved, concept, units, works, parts.contents),
        catalogue.models[resolved.reference].resolution,
    )


class _Resolution:
    """One pass over a request: collects every violation before it gives up."""

    def __init__(
        self,
        spec: AuditSpec,
        catalogue: Catalogue,
        descriptions: Mapping[str, EvaluationDescription],
        broken: Mapping[str, str],
    ) -> None:
        self._given = spec
        self._catalogue = catalogue
        self._descriptions = descriptions
        self._broken = broken
        self._violations: list[FieldViolation] = []
        self._reasons: set[str] = set()

    def resolve(self, draw_seed: Callable[[], int]) -> AuditSpec:
        spec = AuditSpec()
        spec.CopyFrom(self._given)
        self._models_and_concept(spec)
        self._judges(spec)
        self._numbers(spec)
        self._battery(spec)
        self._placebo(spec)
        if self._violations:
            error = InvalidRequestError.of(*self._violations)
            if len(self._reasons) == 1:
                error.reason = self._reasons.pop()
            raise error
        reference = self._catalogue.models[spec.reference]
        spec.cases = spec.cases or DEFAULT_CASES
        preset = PRESETS.get(spec.battery.preset)
        spec.steps = spec.steps or (preset.steps if preset else 0) or reference.steps
        if not spec.HasField("guidance_scale"):
            spec.guidance_scale = reference.guidance_scale
        if not spec.HasField("seed_base"):
            spec.seed_base = draw_seed()
        asked = {field.name for field, _ in spec.tolerances.ListFields()}
        for name, default in asdict(Tolerances()).items():
            if name not in asked:
                setattr(spec.tolerances, name, default)
        return spec

    def _models_and_concept(self, spec: AuditSpec) -> None:
        models, concepts = self._catalogue.models, self._catalogue.concepts
        known_subject = self._name("spec.subject", spec.subject, models, "model", required=True)
        known_concept = self._name("spec.concept", spec.concept, concepts, "concept", required=True)
        if not spec.reference and known_subject:
            spec.reference = self._catalogue.chain(spec.subject)[-1]
        known_reference = self._name("spec.reference", spec.reference, models, "model")
        whole = known_subject and known_reference and bool(spec.reference)
        # A placebo that is asked for stands in the place of the concept's own control.
        if not spec.control and not spec.placebo and known_concept and whole:
            spec.control = model_checks.default_control(spec, self._catalogue)
        known_control = self._name("spec.control", spec.control, models, "model")
        if not whole:
            return
        if known_control and known_concept:
            for problem in model_checks.role_problems(spec, self._given, self._catalogue):
                self._add(*problem)
        resolution = self._resolution(spec.reference)
        side = self._catalogue.picture_side(spec.concept) if known_concept else 0
        if side not in (0, resolution):
            self._add("spec.concept", f"its pictures have {side} pixels a side, the reference's {resolution}")
        others = {"spec.subject": spec.subject, "spec.control": spec.control if known_control else ""}
        for field, name in others.items():
            if name and self._resolution(name) != resolution:
                self._add(
                    field,
                    f"makes pictures of {self._resolution(name)} pixels, the reference of {resolution}: "
                    "they cannot be compared",
                )

    def _judges(self, spec: AuditSpec) -> None:
        fields = ("selector", "judge", "second_judge")
        missing = [position for position, field in enumerate(fields) if not getattr(spec, field)]
        if missing:
            defaults = self._catalogue.default_judges()
            for position in missing:
                setattr(spec, fields[position], defaults[position])
        known = [
            self._name(f"spec.{field}", getattr(spec, field), self._catalogue.judges, "judge", required=True)
            for field in fields
        ]
        names = [getattr(spec, field) for field in fields]
        for position, field in enumerate(fields):
            if known[position] and names[position] in names[:position]:
                self._add(f"spec.{field}", "must be another judge than the ones before it: none may confirm itself")
        if all(known) and len(set(names)) == len(names):
            for problem in model_checks.judge_problems(dict(zip(fields, names, strict=True)), self._catalogue):
                self._add(*problem)
        concept = self._catalogue.concepts.get(spec.concept)
        if concept is not None and all(known):
            for field, name in zip(fields, names, strict=True):
                if not concept.labels.get(name):
                    self._add(f"spec.{field}", f"has no labels for the concept {spec.concept!r}")

    def _numbers(self, spec: AuditSpec) -> None:
        if spec.cases > MAX_CASES:
            self._add("spec.cases", f"must be at most {MAX_CASES}, not {spec.cases}")
        if spec.steps > MAX_STEPS:
            self._add("spec.steps", f"must be at most {MAX_STEPS}, not {spec.steps}")
        low, high = GUIDANCE_SCALES
        if spec.HasField("guidance_scale") and not low <= spec.guidance_scale <= high:
            self._add("spec.guidance_scale", f"must be from {low:g} to {high:g}, not {spec.guidance_scale:g}")
        for field, value in spec.tolerances.ListFields():
            if problem := tolerance_problem(field.name, value):
                self._add(f"spec.tolerances.{field.name}", problem)

    def _battery(self, spec: AuditSpec) -> None:
        battery = spec.battery
        if not battery.preset and not battery.evaluations:
            battery.preset = DEFAULT_PRESET
        if battery.preset and battery.preset not in PRESETS:
            self._add(
                "spec.battery.preset", f"there is no preset {_quoted(battery.preset)}{_near(battery.preset, PRESETS)}"
            )
            return
        if len(battery.evaluations) > MAX_EVALUATIONS:
            self._add("spec.battery.evaluations", f"must be at most {MAX_EVALUATIONS}, not {len(battery.evaluations)}")
            return
        preset = PRESETS[battery.preset].requests(self._descriptions) if battery.preset else []
        chosen = {request.name: request for request in preset}
        fields = {name: f"spec.battery.preset.{name}" for name in chosen}
        seen: set[str] = set()
        for index, request in enumerate(battery.evaluations):
            field = f"spec.battery.evaluations[{index}]"
            if not self._name(f"{field}.name", request.name, self._descriptions, "evaluation", required=True):
                continue
            if request.name in seen:
                self._add(f"{field}.name", f"{request.name!r} is there twice")
            seen.add(request.name)
            chosen[request.name], fields[request.name] = request, field
        resolved = [
            self._evaluation(request, f"{fields[name]}.parameters")
            for name, request in chosen.items()
            if self._name(fields[name], name, self._descriptions, "evaluation")
        ]
        del battery.evaluations[:]
        battery.evaluations.extend(resolved)

    def _placebo(self, spec: AuditSpec) -> None:
        """Check the placebo, or take the catalogue's only one that can serve where one is needed."""
        concepts = self._catalogue.concepts
        if not spec.placebo:
            placebos = [name for name, entry in concepts.items() if entry.placebo and not self._unfit(spec, name)]
            needed = not spec.control and any(
                has_placebo(self._descriptions[request.name])
                for request in spec.battery.evaluations
                if request.name in self._descriptions
            )
            if needed and len(placebos) == 1:
                (spec.placebo,) = placebos
            return
        if self._given.control:
            self._add("spec.placebo", "is for audits without a control model; this one names spec.control")
        if self._name("spec.placebo", spec.placebo, concepts, "concept"):
            if not concepts[spec.placebo].placebo:
                self._add(
                    "spec.placebo", "is a concept like any other: the catalogue does not say that no model knows it"
                )
            elif problem := self._unfit(spec, spec.placebo):
                self._add("spec.placebo", problem)

    def _unfit(self, spec: AuditSpec, placebo: str) -> str:
        """Return why a placebo cannot stand beside the concept; empty where it can."""
        entry, concept = self._catalogue.concepts[placebo], self._catalogue.concepts.get(spec.concept)
        if placebo == spec.concept:
            return "is the concept itself"
        if concept is not None and self._catalogue.same(entry, concept):
            return "is the concept itself under another name: they share a word or a label"
        if concept is not None and entry.kind != concept.kind:
            return f"is of the kind {entry.kind}, the concept is not: the procedure would be another"
        if entry.pictures is None:
            return "has no pictures to hand to the model"
        judges = (spec.selector, spec.judge, spec.second_judge)
        missing = [judge for judge in judges if judge not in entry.labels]
        return f"has no labels for the judge {missing[0]!r}" if missing else ""

    def _evaluation(self, request: EvaluationRequest, field: str) -> EvaluationRequest:
        try:
            parameters = resolve_parameters(self._descriptions[request.name], request.parameters, field=field)
        except InvalidRequestError as error:
            for violation in error.violations:
                self._add(violation.field, violation.description)
            return request
        return EvaluationRequest(name=request.name, parameters=parameters_struct(parameters))

    def _name(self, field: str, name: str, known: Iterable[str], kind: str, *, required: bool = False) -> bool:
        if not name:
            if required:
                self._add(field, f"must name a{'n' if kind[0] in 'aeiou' else ''} {kind}")
            return not required
        if len(name) > MAX_NAME:
            self._add(field, f"must be at most {MAX_NAME} characters, not {len(name)}")
            return False
        if name not in known:
            why = f"; {self._broken[name]}" if kind == "evaluation" and name in self._broken else _near(name, known)
            self._add(field, f"there is no {kind} {_quoted(name)}{why}", f"{kind.upper()}_NOT_FOUND")
            return False
        return True

    def _add(self, field: str, description: str, reason: str = InvalidRequestError.reason) -> None:
        self._violations.append(FieldViolation(field, description))
        self._reasons.add(reason)

    def _resolution(self, name: str) -> int:
        return self._catalogue.models[name].resolution


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "...")


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def runs_in_sequence(description: EvaluationDescription) -> bool:
    """Whether a sequential audit may stop the evaluation where it has a control: its cases need not be one unit."""
    return description.cases_per_unit > 0 and (description.evaluation_class != EvaluationClass.EVALUATION_CLASS_MEASURE)


def has_placebo(description: EvaluationDescription) -> bool:
    """Whether the evaluation can run with a placebo as its control."""
    injecting = description.evaluation_class == EvaluationClass.EVALUATION_CLASS_INJECTING
    return injecting and not description.reference_begins


def _cases(concept: Concept, spec: AuditSpec) -> Iterable[Case]:
    """Yield the cases: distinct prompts for as long as the concept has some, and a latent seed of its own for each."""
    for index in range(spec.cases):
        yield Case(
            index=index,
            prompt=_prompt(concept.prompts, concept.names, index),
            latent_seed=derive_seed(spec.seed_base, "latent", index),
            held_out_prompt=_prompt(concept.held_out_prompts or concept.prompts, concept.names[:1], index),
            held_out_latent_seed=derive_seed(spec.seed_base, "held-out latent", index),
        )


def _prompt(templates: Sequence[str], names: Sequence[str], index: int) -> str:
    # The shift after each common period reaches every pair of template and name before one comes again.
    period = math.lcm(len(templates), len(names))
    name = names[(index + index // period) % len(names)]
    return templates[index % len(templates)].replace("{concept}", name)


def _units(
    spec: AuditSpec,
    cases: Sequence[Case],
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    parts: Parts,
    known: dict[str, Surroundings],
) -> Iterable[Unit]:
    judges = (spec.selector, spec.judge, spec.second_judge)
    target = catalogue.target(spec.concept, store, *judges)
    others = _others(spec, catalogue, store)
    models = {
        MODEL_ROLE_SUBJECT: spec.subject,
        MODEL_ROLE_REFERENCE: spec.reference,
        MODEL_ROLE_CONTROL: spec.control or spec.subject,
    }
    others_digest = parts.others(others)

    def share(target: Target, cases: Sequence[Case]) -> tuple[str, str]:
        digest = parts.target(target)
        known[digest] = Surroundings.of(target, others)
        return digest, parts.cases(cases)

    sought = dict.fromkeys(models, share(target, cases))
    if spec.placebo:
        placebo = catalogue.target(spec.placebo, store, *judges)
        sought[MODEL_ROLE_CONTROL] = share(placebo, tuple(_cases(placebo.concept, spec)))
    indices = [Case(index=case.index) for case in cases]
    for request in spec.battery.evaluations:
        description = descriptions[request.name]
        roles = _roles(description, spec)
        size = description.cases_per_unit
        if spec.sequential and runs_in_sequence(description) and MODEL_ROLE_CONTROL in roles:
            size = cases_between_looks(size)
        size = size or len(cases)
        for role in roles:
            target_digest, cases_digest = sought[role]
            for shard, start in enumerate(range(0, len(cases), size)):
                yield Unit(
                    id=f"{request.name}/{_ROLE_NAMES[role]}/{shard}",
                    evaluation=request.name,
                    role=role,
                    model="" if description.without_model else models[role],
                    reference=spec.reference,
                    target_digest=target_digest,
                    others_digest=others_digest if description.others else "",
                    cases=indices[start : start + size],
                    cases_digest=cases_digest,
                    parameters=request.parameters,
                    steps=spec.steps,
                    guidance_scale=spec.guidance_scale,
                    seed_base=spec.seed_base,
                )


def evaluation_of(unit_id: str) -> str:
    """Return the evaluation that a unit is of."""
    return unit_id.rsplit("/", 2)[0]


def in_sequence(
    unit_ids: Iterable[str], descriptions: Mapping[str, EvaluationDescription]
) -> dict[str, list[list[str]]]:
    """Return what a sequential audit runs shard after shard: by evaluation, the units of all roles for each shard.

    `unit_ids` are in plan order. Without a control there is nothing to settle, and all units run at once.
    """
    shards: dict[str, dict[str, list[str]]] = {}
    controlled = set()
    for unit_id in unit_ids:
        evaluation, role, shard = unit_id.rsplit("/", 2)
        if evaluation in descriptions and runs_in_sequence(descriptions[evaluation]):
            shards.setdefault(evaluation, {}).setdefault(shard, []).append(unit_id)
            if role == _ROLE_NAMES[MODEL_ROLE_CONTROL]:
                controlled.add(evaluation)
    return {name: list(of_shard.values()) for name, of_shard in shards.items() if name in controlled}


def _roles(description: EvaluationDescription, spec: AuditSpec) -> Sequence[ModelRole.ValueType]:
    if description.without_model:
        return (MODEL_ROLE_REFERENCE,)
    roles = description.roles or _ALL_ROLES
    controlled = bool(spec.control) or (bool(spec.placebo) and has_placebo(description))
    return [role for role in roles if role != MODEL_ROLE_CONTROL or controlled]


def _others(spec: AuditSpec, catalogue: Catalogue, store: ArtifactStore) -> list[Target]:
    judges = (spec.selector, spec.judge, spec.second_judge)
    return [
        catalogue.target(name, store, *judges)
        for name in sorted(catalogue.others(spec.concept))
        if not (entry := catalogue.concept(name)).placebo and all(entry.labels.get(judge) for judge in judges)
    ]
