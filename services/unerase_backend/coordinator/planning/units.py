"""Divides an audit, for each evaluation and model, into units of some cases each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    CONTROL_KIND_NONE,
    CONTROL_KIND_UNSPECIFIED,
    MODEL_ACCESS_BOTH,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Case,
    ControlKind,
    EvaluationClass,
    EvaluationDescription,
    ModelRole,
)
from unerase_backend.coordinator.planning.access import accesses
from unerase_backend.coordinator.planning.controls import control_kind
from unerase_backend.coordinator.planning.targets import Targets
from unerase_backend.verdict.sequential import cases_between_looks

_ALL_ROLES = (MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL)
_ROLE_NAMES = {MODEL_ROLE_SUBJECT: "subject", MODEL_ROLE_REFERENCE: "reference", MODEL_ROLE_CONTROL: "control"}


def runs_in_sequence(description: EvaluationDescription) -> bool:
    """Whether a sequential audit with a control may stop the evaluation early: its cases may be split into units."""
    return description.cases_per_unit > 0 and (description.evaluation_class != EvaluationClass.EVALUATION_CLASS_MEASURE)


def units_of(
    spec: AuditSpec,
    cases: Sequence[Case],
    targets: Targets,
    descriptions: Mapping[str, EvaluationDescription],
    guard_rows: int = 0,
    schedules: Mapping[str, str] = MappingProxyType({}),
    *,
    one_row: bool = False,
) -> Iterable[Unit]:
    """Yield the units in the order in which they start; evaluations that do not apply to the models have none.

    With several placebos, a unit of the control holds the cases of one of them. In an audit of both accesses each unit
    of the subject comes twice: from its weights, and as deployed. `guard_rows` are those that its guards add to a step.
    `schedules` holds the models that are stepped by another's schedule, each with that model's name. `one_row` says
    that the models have their guidance in their network.
    """
    models = {
        MODEL_ROLE_SUBJECT: spec.subject,
        MODEL_ROLE_REFERENCE: spec.reference,
        MODEL_ROLE_CONTROL: spec.control or spec.subject,
    }
    for request in spec.battery.evaluations:
        if request.HasField("not_applicable"):
            continue
        description = descriptions[request.name]
        control = control_kind(description, spec, others=bool(targets.stand_ins))
        looks = spec.sequential and runs_in_sequence(description) and control != CONTROL_KIND_NONE
        size = cases_between_looks(description.cases_per_unit) if looks else description.cases_per_unit
        for role in _roles(description, control):
            kind = control if role == MODEL_ROLE_CONTROL else CONTROL_KIND_UNSPECIFIED
            sought = targets.of(kind)
            # What is looked at together holds the same cases for all roles; elsewhere units may all be full.
            block = size if looks else size * len(sought)
            for access in accesses(spec, description, role):
                deployed = access == MODEL_ACCESS_DEPLOYED
                for shard, turn, held in _shards(cases, block or len(cases), len(sought)):
                    yield Unit(
                        id=f"{request.name}/{_ROLE_NAMES[role]}{'@deployed' if deployed else ''}/{shard}",
                        evaluation=request.name,
                        role=role,
                        control_kind=kind,
                        model="" if description.without_model else models[role],
                        reference=spec.reference,
                        schedule_of="" if description.without_model else schedules.get(models[role], ""),
                        target_digest=sought[turn].target_digest,
                        others_digest=targets.others_digest if description.others else "",
                        cases=held,
                        cases_digest=sought[turn].cases_digest,
                        parameters=request.parameters,
                        steps=spec.steps,
                        guidance_scale=spec.guidance_scale,
                        seed_base=spec.seed_base,
                        access=access,
                        guard_rows=guard_rows if deployed else 0,
                        one_row=one_row,
                        search_shared=deployed and description.attack and spec.access == MODEL_ACCESS_BOTH,
                    )


def evaluation_of(unit_id: str) -> str:
    """Return the evaluation of a unit."""
    return unit_id.rsplit("/", 2)[0]


def in_sequence(
    unit_ids: Iterable[str], descriptions: Mapping[str, EvaluationDescription]
) -> dict[str, list[list[str]]]:
    """Return what a sequential audit runs shard by shard: for each evaluation, the units of all roles in each shard.

    `unit_ids` are in plan order. An evaluation without a control cannot stop early, so all its units run at once.
    """
    shards: dict[str, dict[str, list[str]]] = {}
    controlled = set()
    for unit_id in unit_ids:
        evaluation, role, shard = unit_id.rsplit("/", 2)
        if evaluation in descriptions and runs_in_sequence(descriptions[evaluation]):
            shards.setdefault(evaluation, {}).setdefault(shard.partition(".")[0], []).append(unit_id)
            if role == _ROLE_NAMES[MODEL_ROLE_CONTROL]:
                controlled.add(evaluation)
    return {name: list(of_shard.values()) for name, of_shard in shards.items() if name in controlled}


def _shards(cases: Sequence[Case], size: int, turns: int) -> Iterator[tuple[str, int, list[Case]]]:
    """Yield the cases, without their prompts, in shards of `size`, each divided by turns: "SHARD" or "SHARD.TURN"."""
    for shard, start in enumerate(range(0, len(cases), size)):
        for turn in range(turns):
            held = [_stub(case) for case in cases[start : start + size] if case.index % turns == turn]
            if held:
                yield str(shard) if turns == 1 else f"{shard}.{turn}", turn, held


def _stub(case: Case) -> Case:
    """Return a case with its index, and with what its cost depends on."""
    stub = Case(index=case.index)
    if case.HasField("guidance_scale"):
        stub.guidance_scale = case.guidance_scale
    return stub


def cases_up_to(shard: Iterable[Unit]) -> int:
    """Return how many cases an evaluation has run once every unit of a shard, of all roles, has ended.

    With several placebos, the last unit need not hold the last case.
    """
    return 1 + max(unit.cases[-1].index for unit in shard)


def _roles(description: EvaluationDescription, control: ControlKind.ValueType) -> Sequence[ModelRole.ValueType]:
    if description.without_model:
        return (MODEL_ROLE_REFERENCE,)
    roles = description.roles or _ALL_ROLES
    return [role for role in roles if role != MODEL_ROLE_CONTROL or control != CONTROL_KIND_NONE]
