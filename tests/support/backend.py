"""The backend in one process, without Ray: the same engines, connected directly."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_PLACEBO,
    CONTROL_KIND_UNSPECIFIED,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Case,
    Concept,
    ControlKind,
    ModelRole,
    Observation,
)
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.coordinator.execution import units
from unerase_backend.coordinator.planning.packs import concept_free_pack, placebo_pack
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import Parameters, parameters_struct
from unerase_backend.evaluation.registry import Evaluation
from unerase_backend.generation.engine import GenerationEngine
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.probing.engine import ProbingEngine
from unerase_backend.probing.registry import PROBES
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.seeds import derive_seed
from unerase_backend.runtime.settings import RoomSettings

REFERENCE, NEVER, REDIRECTED = "testbed/reference", "testbed/never", "testbed/redirected"
CONCEPT, PLACEBO = "hourglass", "fish"

_ROLES: dict[str, ModelRole.ValueType] = {REFERENCE: MODEL_ROLE_REFERENCE, NEVER: MODEL_ROLE_CONTROL}


def evaluations() -> dict[str, Evaluation[Any]]:
    """Every registered evaluation by name."""
    return {**PROBES.all(), **ATTACKS.all()}


def own_evaluations() -> dict[str, Evaluation[Any]]:
    """Every evaluation of this repository by name; a third party's package may be installed beside."""
    return {name: each for name, each in evaluations().items() if each.run.__module__.startswith("unerase_backend.")}


@dataclass(frozen=True)
class LocalBackend:
    """Every engine over one artefact store."""

    catalogue: Catalogue
    store: ArtifactStore
    models: Models
    generation: GenerationEngine
    classification: ClassificationEngine
    probing: ProbingEngine
    attack: AttackEngine
    attack_settings: AttackSettings
    _targets: dict[str, Target] = field(default_factory=dict)

    async def run(self, unit: Unit, models: Models | None = None) -> list[UnitEvent]:
        """Run a unit in its room and return its events; `models` replaces the backend's own."""
        if unit.evaluation not in ATTACKS.all():
            probing = self.probing if models is None else ProbingEngine(models)
            return [response.event async for response in probing.Probe(ProbeRequest(unit=unit))]
        attack = self.attack
        if models is not None:
            attack = AttackEngine(self.catalogue, self.store, self.attack_settings, models)
        try:
            return [response.event async for response in attack.Attack(AttackRequest(unit=unit))]
        finally:
            if attack is not self.attack:
                attack.close()

    async def observe(self, unit: Unit, models: Models | None = None) -> list[Observation]:
        """Run a unit and return only its observations."""
        return [event.observation for event in await self.run(unit, models) if event.HasField("observation")]

    def target(self, concept: str = CONCEPT) -> Target:
        """Return a concept with the questions for the default judges; a placebo has the pack of an audit's control."""
        if concept not in self._targets:
            judges = self.catalogue.default_judges()
            self._targets[concept] = self.catalogue.target(concept, self.store, *judges)
            if concept == PLACEBO:
                found = self._targets[concept].concept
                found.pack.CopyFrom(placebo_pack(self.target().concept.pack, found))
        return self._targets[concept]

    def unit(
        self,
        evaluation: str,
        model: str = REFERENCE,
        *,
        cases: int = 2,
        steps: int = 4,
        seed_base: int = 1,
        parameters: Parameters | None = None,
        control_kind: ControlKind.ValueType = CONTROL_KIND_UNSPECIFIED,
    ) -> Unit:
        """Return a small unit; a model of the testbed gets its usual role.

        With `control_kind` it is a unit of a placebo, or a concept-free one.
        """
        target = self.target(PLACEBO if control_kind == CONTROL_KIND_PLACEBO else CONCEPT)
        known = [target.concept]
        if control_kind == CONTROL_KIND_CONCEPT_FREE:
            target, known = self._concept_free()
        return Unit(
            id=f"{evaluation}/{model}/0",
            evaluation=evaluation,
            role=MODEL_ROLE_CONTROL if control_kind else _ROLES.get(model, MODEL_ROLE_SUBJECT),
            model=model,
            reference=REFERENCE,
            target=target,
            others=[
                self.target(name) for name in self.catalogue.others(CONCEPT) if not self.catalogue.concept(name).placebo
            ],
            cases=[
                Case(
                    index=index,
                    prompt=_prompt(concept.prompts, concept, index),
                    latent_seed=derive_seed(seed_base, "latent", index),
                    held_out_prompt=_prompt(concept.held_out_prompts, concept, index),
                    held_out_latent_seed=derive_seed(seed_base, "held-out latent", index),
                )
                for index in range(cases)
                for concept in [known[index % len(known)]]
            ],
            parameters=parameters_struct(parameters or {}),
            steps=steps,
            guidance_scale=self.catalogue.model(REFERENCE).guidance_scale,
            seed_base=seed_base,
            control_kind=control_kind,
        )

    def _concept_free(self) -> tuple[Target, list[Concept]]:
        """Return the concept's target with the words and pictures of others of its kind, one of each in turn."""
        target = Target()
        target.CopyFrom(self.target())
        concepts = [self.target(name).concept for name in self.catalogue.others(CONCEPT)]
        known = [each for each in concepts if each.kind == target.concept.kind and not each.placebo]
        names = [each.names[0] for each in known]
        target.concept.pack.CopyFrom(concept_free_pack(target.concept.pack, target.concept, names))
        target.concept.names[:] = names
        target.concept.picture_digests[:] = [each.picture_digests[number] for number in range(8) for each in known]
        return target, known


def blind_to_estimates(models: Models) -> Models:
    """Return the backends with judges that detect nothing in an estimate: completion admits every beginning."""

    async def generate(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        async for response in models.generate_stream(request):
            for judgement in response.sample.judgements if request.trajectories[0].estimate else ():
                judgement.detected = False
            yield response

    return replace(models, generate_stream=generate)


def _prompt(templates: Sequence[str], concept: Concept, index: int) -> str:
    return templates[index % len(templates)].replace("{concept}", concept.names[0])


@asynccontextmanager
async def local_backend(
    folder: Path,
    *,
    catalogues: Sequence[str] = (),
    torch_threads: int = 1,
    metrics: GenerationMetrics | None = None,
    **given: Any,
) -> AsyncIterator[LocalBackend]:
    """Build the engines with a store in `folder`, and end their threads afterwards; `given` are all rooms' settings."""
    torch.set_num_threads(torch_threads)
    common: dict[str, Any] = {
        "artifacts": str(folder),
        "catalogues": tuple(catalogues),
        "torch_threads": torch_threads,
        **given,
    }
    store = ArtifactStore(str(folder))
    catalogue = open_catalogue(RoomSettings(**common), store)
    classification = ClassificationEngine(catalogue, store, ClassificationSettings(**common))

    async def classify(pictures: np.ndarray, questions: Sequence[Question]) -> list[PictureJudgements]:
        response = await classification.Classify(ClassifyRequest(questions=questions), pictures)
        return list(response.pictures)

    generation = GenerationEngine(catalogue, store, GenerationSettings(**common), classify, metrics)
    models = Models(generation.Generate, generation.Encode, generation.MeasureDenoising, classification.Classify)
    settings = AttackSettings(**common)
    attack = AttackEngine(catalogue, store, settings, models)
    try:
        yield LocalBackend(
            catalogue, store, models, generation, classification, ProbingEngine(models), attack, settings
        )
    finally:
        attack.close()
        generation.close()
        classification.close()


def without_processes(local: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the rooms' own engines in place of the coordinator's handles to their processes."""
    for name, engine in (
        ("PROBING", local.probing),
        ("ATTACK", local.attack),
        ("GENERATION", local.generation),
        ("CLASSIFICATION", local.classification),
    ):

        async def call(method: str, request: Any, engine: Any = engine, **_: object) -> Any:
            return await getattr(engine, method)(request)

        def stream(method: str, request: Any, engine: Any = engine) -> AsyncIterator[Any]:
            return getattr(engine, method)(request)  # type: ignore[no-any-return]

        monkeypatch.setattr(units, name, SimpleNamespace(call=call, stream=stream))
