"""Checks the request for an audit field by field, and fills in every default."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import (
    CONTROL_KIND_MODEL,
    CONTROL_KIND_PLACEBO,
    CONTROL_KIND_UNSPECIFIED,
    DECIDED_BY_BOTH,
    DecidedBy,
    EvaluationDescription,
    EvaluationRequest,
)
from unerase_backend.catalogue import GUIDANCE_SCALES, MAX_STEPS, Catalogue
from unerase_backend.coordinator.planning import (
    access,
    applicability,
    control_checks,
    fixed_prompts,
    model_checks,
    packs,
    schedule_checks,
)
from unerase_backend.coordinator.planning.controls import takes_placebo
from unerase_backend.coordinator.planning.presets import DEFAULT_PRESET, PRESETS
from unerase_backend.evaluation.parameters import parameters_struct, resolve_parameters
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, PreconditionError
from unerase_backend.verdict.decision import DEFAULT_CASES, Tolerances, tolerance_problem
from unerase_backend.verdict.inapplicable import applying

MAX_EVALUATIONS = most_items(Battery, "evaluations")
MAX_NAME = 200


def resolve_request(
    spec: AuditSpec,
    catalogue: Catalogue,
    descriptions: Mapping[str, EvaluationDescription],
    broken: Mapping[str, str],
    draw_seed: Callable[[], int],
) -> AuditSpec:
    """Return the request with every default filled in; the arguments are those of `make_plan`.

    Raises:
        InvalidRequestError: one violation for each bad field.
    """
    return _Resolution(spec, catalogue, descriptions, broken).resolve(draw_seed)


class _Resolution:
    """One pass over a request, which collects every violation before it raises."""

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
        self._loadable = False
        self._violations: list[FieldViolation] = []
        self._reasons: set[str] = set()

    def resolve(self, draw_seed: Callable[[], int]) -> AuditSpec:
        spec = AuditSpec()
        spec.CopyFrom(self._given)
        self._controls(spec)
        self._models_and_concept(spec)
        self._judges(spec)
        self._numbers(spec)
        self._battery(spec)
        self._placebos(spec)
        for problem in (*fixed_prompts.problems_of_list(spec), *packs.problems_of_request(spec)):
            self._add(*problem)
        if self._violations:
            error = InvalidRequestError.of(*self._violations)
            if len(self._reasons) == 1:
                error.reason = self._reasons.pop()
            raise error
        reference = self._catalogue.models[spec.reference]
        preset = PRESETS.get(spec.battery.preset)
        spec.cases = spec.cases or fixed_prompts.cases_listed(spec) or (preset.cases if preset else DEFAULT_CASES)
        spec.steps = spec.steps or (preset.steps_for(reference.resolution) if preset else 0) or reference.steps
        if not spec.HasField("guidance_scale"):
            spec.guidance_scale = reference.guidance_scale
        if not spec.HasField("seed_base"):
            spec.seed_base = draw_seed()
        spec.decided_by = spec.decided_by or DECIDED_BY_BOTH
        for name, value in asdict(Tolerances.of(spec)).items():
            setattr(spec.tolerances, name, value)
        return spec

    def _controls(self, spec: AuditSpec) -> None:
        placebos = "spec.placebos" if spec.placebos else "spec.placebo"
        for problem in (*control_checks.fold_placebo(spec), *control_checks.contradictions(spec, placebos)):
            self._add(*problem)
        if spec.decided_by not in DecidedBy.values():
            self._add("spec.decided_by", f"there is no way to decide {spec.decided_by}")

    def _models_and_concept(self, spec: AuditSpec) -> None:
        models, concepts = self._catalogue.models, self._catalogue.concepts
        known_subject = self._name("spec.subject", spec.subject, models, "model", required=True)
        if known_subject:
            for problem in access.resolve_access(spec, self._catalogue):
                self._add(*problem)
        known_concept = self._name("spec.concept", spec.concept, concepts, "concept", required=True)
        known_reference = self._reference(spec, known_subject)
        whole = known_subject and known_reference and bool(spec.reference)
        if whole:
            named = {"spec.subject": spec.subject}
            # The default is the subject's own base, which is a part of it.
            if self._given.reference and spec.reference != spec.subject:
                named["spec.reference"] = spec.reference
            whole = self._loadable = self._usable(named)
        if not spec.control and control_checks.takes_own_control(spec) and known_concept and whole:
            spec.control = model_checks.default_control(spec, self._catalogue)
            if spec.control_kind == CONTROL_KIND_MODEL and not spec.control:
                description = "must be given: the catalogue has no model for it that never learned the concept"
                self._add("spec.control", description, control_checks.MISSING)
        known_control = self._name("spec.control", spec.control, models, "model")
        if known_control and spec.control:
            known_control = self._usable({"spec.control": spec.control})
        if whole:
            self._fit(spec, known_concept, known_control)

    def _reference(self, spec: AuditSpec, known_subject: bool) -> bool:
        """Fill in the reference, and return whether it is known or left out."""
        if not spec.reference and known_subject:
            spec.reference = model_checks.default_reference(spec, self._catalogue)
            if not spec.reference:
                self._add(*model_checks.without_reference(spec))
        return self._name("spec.reference", spec.reference, self._catalogue.models, "model")

    def _fit(self, spec: AuditSpec, known_concept: bool, known_control: bool) -> None:
        """Check that the models of a request and its concept's pictures can be compared."""
        if known_control and known_concept:
            for problem in model_checks.role_problems(spec, self._catalogue):
                self._add(*problem)
        if known_control:
            for problem in (
                *applicability.family_problems(spec, self._catalogue),
                *schedule_checks.schedule_refusals(spec, self._catalogue),
            ):
                self._add(*problem)
        self._sizes(spec, known_concept, known_control)

    def _sizes(self, spec: AuditSpec, known_concept: bool, known_control: bool) -> None:
        """Refuse pictures of different sizes, which cannot be compared."""
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

    def _usable(self, named: Mapping[str, str]) -> bool:
        """Refuse each of the models that cannot be loaded; `named` are their names by field."""
        found = list(model_checks.usable_problems(named, self._catalogue))
        for problem in found:
            self._add(*problem)
        return not found

    def _judges(self, spec: AuditSpec) -> None:
        fields = ("selector", "judge", "second_judge")
        given = [getattr(spec, field) for field in fields]
        if not all(given):
            try:
                chosen = self._catalogue.default_judges(spec.concept, given)
            except PreconditionError as error:
                self._add(f"spec.{error.metadata['field']}", error.message, error.reason)
                return
            for field, name in zip(fields, chosen, strict=True):
                setattr(spec, field, name)
        known = [
            self._name(f"spec.{field}", getattr(spec, field), self._catalogue.judges, "judge", required=True)
            for field in fields
        ]
        names = [getattr(spec, field) for field in fields]
        for position, field in enumerate(fields):
            if known[position] and names[position] in names[:position]:
                self._add(f"spec.{field}", "must differ from the judges before it: a judge may not confirm itself")
        if all(known) and len(set(names)) == len(names):
            for problem in model_checks.judge_problems(dict(zip(fields, names, strict=True)), self._catalogue):
                self._add(*problem)
            if spec.subject in self._catalogue.models:
                for problem in access.guard_judge_problems(spec, self._catalogue):
                    self._add(*problem)
        if all(known):
            self._labels(spec.concept, dict(zip(fields, names, strict=True)))

    def _labels(self, name: str, judges: Mapping[str, str]) -> None:
        """Refuse each judge, by its field, that cannot be asked about a concept."""
        concept = self._catalogue.concepts.get(name)
        if concept is None:
            return
        for field, judge in judges.items():
            if not concept.labels.get(judge):
                self._add(f"spec.{field}", f"has no labels for the concept {name!r}")
            elif not self._has_something_to_weigh(name, judge):
                self._add(
                    f"spec.{field}",
                    f"a CLIP judge weighs the labels of {name!r} against texts of what else a picture may show, and "
                    "there are none: give the concept alternatives, or the catalogue other concepts of its kind with "
                    "labels for the judge",
                )

    def _has_something_to_weigh(self, concept: str, judge: str) -> bool:
        clip = self._catalogue.judges[judge].kind == "clip"
        return not clip or bool(self._catalogue.question(concept, judge).alternatives)

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
        side = self._resolution(spec.reference) if spec.reference in self._catalogue.models else 0
        preset = PRESETS[battery.preset].requests(self._descriptions, side) if battery.preset else []
        chosen = {request.name: request for request in preset}
        fields = {name: f"spec.battery.preset.{name}" for name in chosen}
        seen: set[str] = set()
        for index, request in enumerate(battery.evaluations):
            field = f"spec.battery.evaluations[{index}]"
            if not self._name(f"{field}.name", request.name, self._descriptions, "evaluation", required=True):
                continue
            if request.name in seen:
                self._add(f"{field}.name", f"{request.name!r} occurs twice")
            seen.add(request.name)
            chosen[request.name], fields[request.name] = request, field
        resolved = [
            self._evaluation(request, f"{fields[name]}.parameters")
            for name, request in chosen.items()
            if self._name(fields[name], name, self._descriptions, "evaluation")
        ]
        del battery.evaluations[:]
        battery.evaluations.extend(resolved)
        if self._loadable:
            for problem in applicability.mark_inapplicable(spec, self._catalogue, self._descriptions):
                self._add(*problem)

    def _placebos(self, spec: AuditSpec) -> None:
        """Check the placebos. If none is named but one is needed, take all of the catalogue that fit."""
        if not spec.placebos:
            asked = spec.control_kind == CONTROL_KIND_PLACEBO
            chosen = map(self._descriptions.get, applying(spec.battery.evaluations))
            needed = spec.control_kind == CONTROL_KIND_UNSPECIFIED and not spec.control
            if asked or (needed and any(each is not None and takes_placebo(each) for each in chosen)):
                spec.placebos.extend(control_checks.default_placebos(spec, self._catalogue))
            if asked and not spec.placebos:
                description = "must name a placebo: the catalogue has none that fits"
                self._add("spec.placebos", description, control_checks.MISSING)
            return
        if len(spec.placebos) > control_checks.MAX_PLACEBOS:
            self._add("spec.placebos", f"must be at most {control_checks.MAX_PLACEBOS}, not {len(spec.placebos)}")
            return
        before: list[str] = []
        for index, name in enumerate(spec.placebos):
            field = f"spec.placebos[{index}]" if self._given.placebos else "spec.placebo"
            if self._name(field, name, self._catalogue.concepts, "concept", required=True):
                if problem := control_checks.placebo_problem(name, before, spec, self._catalogue):
                    self._add(field, problem)
                before.append(name)

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
