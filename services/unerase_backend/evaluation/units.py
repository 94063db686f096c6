"""The checks of a unit that every room makes before any work, and what units with and without guards share."""

import math
from collections.abc import Iterator

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    EVALUATION_CLASS_INJECTING,
    EVALUATION_CLASS_MEASURE,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ACCESS_UNSPECIFIED,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Concept,
    EvaluationDescription,
)
from unerase_backend.catalogue import (
    GUIDANCE_SCALES,
    MAX_CONCEPT_NAMES,
    MAX_CONCEPT_PROMPTS,
    MAX_PROMPT_BYTES,
    MAX_STEPS,
)
from unerase_backend.evaluation.parameters import Parameters, resolve_parameters
from unerase_backend.evaluation.questions import problems
from unerase_backend.evaluation.registry import Evaluation, Registry, Run
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError

MAX_CASES = most_items(Unit, "cases")
MAX_OTHERS = most_items(Unit, "others")

HEARTBEAT_SECONDS = 60.0
"""Seconds between a room's signs of life while it runs a unit. The caller takes a silent stream for a dead one."""

_ROLES = (MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL)


def resolve_unit(unit: Unit, registry: Registry[Run], kind: str) -> tuple[Evaluation[Run], Parameters]:
    """Return a unit's evaluation and its checked parameters; `kind` is the word for the registry's evaluations.

    Raises:
        NotFoundError: the registry does not have the evaluation.
        InvalidRequestError: with every bad field.
    """
    evaluation = registry.all().get(unit.evaluation)
    if evaluation is None:
        why = registry.broken().get(unit.evaluation) or f"there are {', '.join(registry.all())}"
        raise NotFoundError(f"there is no {kind} {unit.evaluation!r}; {why}", reason="EVALUATION_NOT_FOUND")
    return evaluation, check_unit(unit, evaluation.description)


def without_access(unit: Unit) -> Unit:
    """Return the unit without its id and without what concerns guards: what two units of one search have in common."""
    shared = Unit()
    shared.CopyFrom(unit)
    for name in ("id", "access", "guard_rows", "search_shared"):
        shared.ClearField(name)
    return shared


def check_unit(unit: Unit, description: EvaluationDescription) -> Parameters:
    """Check a unit of the described evaluation, and return its parameters.

    Raises:
        InvalidRequestError: with every bad field.
    """
    violations = [
        *_general(unit),
        *_access(unit, description),
        *_control(unit, description),
        *_generating(unit, required=description.evaluation_class != EVALUATION_CLASS_MEASURE),
    ]
    try:
        parameters = resolve_parameters(description, unit.parameters)
    except InvalidRequestError as error:
        violations += error.violations
    if violations:
        raise InvalidRequestError.of(*violations)
    return parameters


def _general(unit: Unit) -> Iterator[FieldViolation]:
    if unit.role not in _ROLES:
        yield FieldViolation("unit.role", "must be subject, reference or control")
    if len(unit.others) > MAX_OTHERS:
        yield FieldViolation("unit.others", f"must be at most {MAX_OTHERS}, not {len(unit.others)}")
    yield from _target(unit.target, "unit.target")
    for index, other in enumerate(unit.others[:MAX_OTHERS]):
        yield from _target(other, f"unit.others[{index}]")


def _access(unit: Unit, description: EvaluationDescription) -> Iterator[FieldViolation]:
    if unit.access == MODEL_ACCESS_UNSPECIFIED:
        return
    if unit.access not in (MODEL_ACCESS_DEPLOYED, MODEL_ACCESS_OPEN_WEIGHTS):
        yield FieldViolation("unit.access", "must be deployed or open weights, or left out")
    elif unit.role != MODEL_ROLE_SUBJECT:
        yield FieldViolation("unit.access", "must be left out, unless the unit's role is subject")
    elif description.weights_only:
        yield FieldViolation("unit.access", "must be left out: the evaluation measures the weights alone")


def _control(unit: Unit, description: EvaluationDescription) -> Iterator[FieldViolation]:
    if unit.control_kind and unit.role != MODEL_ROLE_CONTROL:
        yield FieldViolation("unit.control_kind", "must be left out, unless the unit's role is control")
    injecting = description.evaluation_class == EVALUATION_CLASS_INJECTING
    if injecting and unit.control_kind == CONTROL_KIND_CONCEPT_FREE:
        problem = (
            "must not be concept-free: an injecting evaluation hands the model the concept that its judges look for"
        )
        yield FieldViolation("unit.control_kind", problem)


def _generating(unit: Unit, *, required: bool) -> Iterator[FieldViolation]:
    """Check the fields that making pictures requires; a measure may leave them empty."""
    if required and not unit.model:
        yield FieldViolation("unit.model", "must be given")
    if not required <= len(unit.cases) <= MAX_CASES:
        yield FieldViolation("unit.cases", f"must be {required:d} to {MAX_CASES}, not {len(unit.cases)}")
    if not required <= unit.steps <= MAX_STEPS:
        yield FieldViolation("unit.steps", f"must be {required:d} to {MAX_STEPS}, not {unit.steps}")
    scale, (low, high) = unit.guidance_scale, GUIDANCE_SCALES
    if (required or scale) and (math.isnan(scale) or not low <= scale <= high):
        yield FieldViolation("unit.guidance_scale", f"must be {low:g} to {high:g}, not {scale:g}")
    for index, case in enumerate(unit.cases[:MAX_CASES]):
        if case.HasField("guidance_scale") and not low <= case.guidance_scale <= high:
            problem = f"must be {low:g} to {high:g}, not {case.guidance_scale:g}"
            yield FieldViolation(f"unit.cases[{index}].guidance_scale", problem)
        for field in ("prompt", "held_out_prompt"):
            yield from _text(getattr(case, field), f"unit.cases[{index}].{field}")


def _target(target: Target, field: str) -> Iterator[FieldViolation]:
    yield from _concept(target.concept, f"{field}.concept")
    for name in ("selector", "judge", "second_judge"):
        if target.HasField(name):
            yield from problems(getattr(target, name), f"{field}.{name}")


def _concept(concept: Concept, field: str) -> Iterator[FieldViolation]:
    if not concept.name:
        yield FieldViolation(f"{field}.name", "must be given")
    if concept.prompts and not concept.names:
        yield FieldViolation(f"{field}.names", "must be given, since prompts are")
    limits = {"names": MAX_CONCEPT_NAMES, "prompts": MAX_CONCEPT_PROMPTS, "held_out_prompts": MAX_CONCEPT_PROMPTS}
    for name, most in limits.items():
        texts = getattr(concept, name)
        if len(texts) > most:
            yield FieldViolation(f"{field}.{name}", f"must be at most {most}, not {len(texts)}")
        for index, text in enumerate(texts[:most]):
            yield from _text(text, f"{field}.{name}[{index}]")
    yield from _text(concept.initial_token, f"{field}.initial_token")


def _text(text: str, field: str) -> Iterator[FieldViolation]:
    if len(text.encode()) > MAX_PROMPT_BYTES:
        yield FieldViolation(field, f"must be at most {MAX_PROMPT_BYTES} bytes")
