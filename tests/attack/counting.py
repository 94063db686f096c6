"""Counts the optimisation steps of an attack."""

from pathlib import Path

from attack.conftest import attacked
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Finding, Observation
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.metrics import AttackMetrics
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore


class Steps(AttackMetrics):
    """Counts the optimisation steps."""

    def __init__(self) -> None:
        self.count = 0

    def stepped(self, evaluation: str) -> None:
        self.count += 1


async def counted(
    catalogue: Catalogue, store: ArtifactStore, models: Models, unit: Unit
) -> tuple[int, list[Observation], list[Finding]]:
    """Run a unit on an engine of its own; return its steps, its observations and what it found."""
    steps = Steps()
    engine = AttackEngine(catalogue, store, AttackSettings(artifacts="unused"), models, steps)
    observations, findings, _ = await attacked(engine, unit)
    engine.close()
    return steps.count, observations, findings


def unit_store(folder: Path, catalogue: Catalogue) -> ArtifactStore:
    """A store with the concept's pictures, and without what other tests have recorded."""
    store = ArtifactStore(str(folder / "artifacts"))
    catalogue.target("hourglass", store, "clip", "judge", "second-judge")
    return store
