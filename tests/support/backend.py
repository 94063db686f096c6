"""The backend in one process, without Ray: the same engines, connected directly."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, PictureJudgements
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Target
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase.v1.types_pb2 import (
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    Case,
    ModelRole,
    Observation,
)
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
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

REFERENCE, NEVER, REDIRECTED = "testbed/reference", "testbed/never", "testbed/redirected"
CONCEPT = "hourglass"

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
        """Return a concept with the questions for the default judges."""
        if concept not in self._targets:
            judges = self.catalogue.default_judges()
            self._targets[concept] = self.catalogue.target(concept, self.store, *judges)
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
    ) -> Unit:
        """Return a small unit; a model of the testbed gets its usual role."""
        target = self.target()
        concept = target.concept
        held_out = concept.held_out_prompts
        return Unit(
            id=f"{evaluation}/{model}/0",
            evaluation=evaluation,
            role=_ROLES.get(model, MODEL_ROLE_SUBJECT),
            model=model,
            reference=REFERENCE,
            target=target,
            others=[
                self.target(name)
                for name in self.catalogue.others(concept.name)
                if not self.catalogue.concept(name).placebo
            ],
            cases=[
                Case(
                    index=index,
                    prompt=concept.prompts[index % len(concept.prompts)].replace("{concept}", concept.names[0]),
                    latent_seed=derive_seed(seed_base, "latent", index),
                    held_out_prompt=held_out[index % len(held_out)].replace("{concept}", concept.names[0]),
                    held_out_latent_seed=derive_seed(seed_base, "held-out latent", index),
                )
                for index in range(cases)
            ],
            parameters=parameters_struct(parameters or {}),
            steps=steps,
            guidance_scale=self.catalogue.model(REFERENCE).guidance_scale,
            seed_base=seed_base,
        )


@asynccontextmanager
async def local_backend(
    folder: Path, *, catalogues: Sequence[str] = (), torch_threads: int = 1, metrics: GenerationMetrics | None = None
) -> AsyncIterator[LocalBackend]:
    """Build the engines with a store in `folder`, and end their threads afterwards."""
    torch.set_num_threads(torch_threads)
    common: dict[str, Any] = {"artifacts": str(folder), "catalogues": tuple(catalogues), "torch_threads": torch_threads}
    catalogue, store = Catalogue.load(catalogues), ArtifactStore(str(folder))
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
