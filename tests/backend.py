"""The backend in one process, without Ray: the same engines, handed to each other directly."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.registry import Evaluation
from unerase_backend.generation.engine import GenerationEngine
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.probing.engine import ProbingEngine
from unerase_backend.probing.registry import PROBES
from unerase_backend.runtime.artifacts import ArtifactStore


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

    async def run(self, unit: Unit) -> list[UnitEvent]:
        """Run a unit in the room that it belongs to and return its events."""
        if unit.evaluation in ATTACKS.all():
            return [response.event async for response in self.attack.Attack(AttackRequest(unit=unit))]
        return [response.event async for response in self.probing.Probe(ProbeRequest(unit=unit))]


def evaluations() -> dict[str, Evaluation]:
    """Every registered evaluation by name."""
    return {**PROBES.all(), **ATTACKS.all()}


@asynccontextmanager
async def local_backend(
    folder: Path, *, catalogues: Sequence[str] = (), torch_threads: int = 1
) -> AsyncIterator[LocalBackend]:
    """Build the engines over an empty store in `folder`, and end their threads afterwards."""
    torch.set_num_threads(torch_threads)
    common = {"artifacts": str(folder), "catalogues": tuple(catalogues), "torch_threads": torch_threads}
    catalogue, store = Catalogue.load(catalogues), ArtifactStore(str(folder))
    classification = ClassificationEngine(catalogue, store, ClassificationSettings(**common))

    async def classify(pictures, questions):
        response = await classification.Classify(ClassifyRequest(questions=questions), pictures)
        return list(response.pictures)

    generation = GenerationEngine(catalogue, store, GenerationSettings(**common), classify)
    models = Models(generation.Generate, generation.Encode, generation.MeasureDenoising, classification.Classify)
    attack = AttackEngine(catalogue, store, AttackSettings(**common), models)
    try:
        yield LocalBackend(catalogue, store, models, generation, classification, ProbingEngine(models), attack)
    finally:
        attack.close()
        generation.close()
