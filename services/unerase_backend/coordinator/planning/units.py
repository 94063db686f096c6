"""Divides an audit into cases, and for each evaluation and model into units of some cases each."""

import math
from collections.abc import Iterable, Mapping, Sequence

from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Case,
    Concept,
    EvaluationClass,
    EvaluationDescription,
    ModelRole,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.parts import Parts
from unerase_backend.evaluation.cost import Surroundings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.verdict.sequential import cases_between_looks

_ALL_ROLES = (MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL)
_ROLE_NAMES = {MODEL_ROLE_SUBJECT: "subject", MODEL_ROLE_REFERENCE: "reference", MODEL_ROLE_CONTROL: "control"}


def runs_in_sequence(description: EvaluationDescription) -> bool:
    """Whether a sequential audit with a control may stop the evaluation early: its cases may be split into units."""
    return description.cases_per_unit > 0 and (description.evaluation_class != EvaluationClass.EVALUATION_CLASS_MEASURE)


def takes_placebo(description: EvaluationDescription) -> bool:
    """Whether the evaluation can run with a placebo as its control."""
    injecting = description.evaluation_class == EvaluationClass.EVALUATION_CLASS_INJECTING
    return injecting and not description.reference_begins


def cases_of(concept: Concept, spec: AuditSpec) -> Iterable[Case]:
    """Yield the cases, each with its own latent seed; a prompt repeats only after every distinct prompt was used."""
    for index in range(spec.cases):
        yield Case(
            index=index,
            prompt=_prompt(concept.prompts, concept.names, index),
            latent_seed=derive_seed(spec.seed_base, "latent", index),
            held_out_prompt=_prompt(concept.held_out_prompts or concept.prompts, concept.names[:1], index),
            held_out_latent_seed=derive_seed(spec.seed_base, "held-out latent", index),
        )


def _prompt(templates: Sequence[str], names: Sequence[str], index: int) -> str:
    # The shift after each common period makes every pair of template and name come once before one repeats.
    period = math.lcm(len(templates), len(names))
    name = names[(index + index // period) % len(names)]
    return templates[index % len(templates)].replace("{concept}", name)


def units_of(
    spec: AuditSpec,
    cases: Sequence[Case],
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    parts: Parts,
    known: dict[str, Surroundings],
) -> Iterable[Unit]:
    """Yield the units in the order in which they start.

    What units share is added to `parts`, and the surroundings of each target to `known` by the target's digest.
    """
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
        sought[MODEL_ROLE_CONTROL] = share(placebo, tuple(cases_of(placebo.concept, spec)))
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
            shards.setdefault(evaluation, {}).setdefault(shard, []).append(unit_id)
            if role == _ROLE_NAMES[MODEL_ROLE_CONTROL]:
                controlled.add(evaluation)
    return {name: list(of_shard.values()) for name, of_shard in shards.items() if name in controlled}


def _roles(description: EvaluationDescription, spec: AuditSpec) -> Sequence[ModelRole.ValueType]:
    if description.without_model:
        return (MODEL_ROLE_REFERENCE,)
    roles = description.roles or _ALL_ROLES
    controlled = bool(spec.control) or (bool(spec.placebo) and takes_placebo(description))
    return [role for role in roles if role != MODEL_ROLE_CONTROL or controlled]


def _others(spec: AuditSpec, catalogue: Catalogue, store: ArtifactStore) -> list[Target]:
    judges = (spec.selector, spec.judge, spec.second_judge)
    return [
        catalogue.target(name, store, *judges)
        for name in sorted(catalogue.others(spec.concept))
        if not (entry := catalogue.concept(name)).placebo and all(entry.labels.get(judge) for judge in judges)
    ]
