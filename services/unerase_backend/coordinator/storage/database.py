"""The coordinator's database: its tables by what is done with them, through one engine."""

from unerase_backend.coordinator.storage.artifact_collection import ArtifactCollection
from unerase_backend.coordinator.storage.audits import Audits
from unerase_backend.coordinator.storage.concepts import CustomConcepts
from unerase_backend.coordinator.storage.engine import Engine, migrate
from unerase_backend.coordinator.storage.evidence import EvidenceStore
from unerase_backend.coordinator.storage.transitions import Transitions
from unerase_backend.coordinator.storage.unit_parts import UnitParts


class Database:
    """What the coordinator remembers."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.audits = Audits(engine)
        self.transitions = Transitions(engine)
        self.evidence = EvidenceStore(engine)
        self.unit_parts = UnitParts(engine)
        self.concepts = CustomConcepts(engine)
        self.artifact_collection = ArtifactCollection(engine)

    async def migrate(self) -> None:
        """Create what is missing: tables, or columns and indexes of tables that an earlier version made."""
        await migrate(self.engine)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
