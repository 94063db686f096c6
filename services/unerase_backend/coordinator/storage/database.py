"""The coordinator's database: one object for each part of it, all on one engine."""

from unerase_backend.coordinator.storage.artifact_collection import ArtifactCollection
from unerase_backend.coordinator.storage.audits import Audits
from unerase_backend.coordinator.storage.campaign_transitions import CampaignTransitions
from unerase_backend.coordinator.storage.campaigns import Campaigns
from unerase_backend.coordinator.storage.concepts import CustomConcepts
from unerase_backend.coordinator.storage.engine import Engine, migrate
from unerase_backend.coordinator.storage.evidence import EvidenceStore
from unerase_backend.coordinator.storage.models import ModelRegistry
from unerase_backend.coordinator.storage.transitions import Transitions
from unerase_backend.coordinator.storage.unit_parts import UnitParts
from unerase_backend.coordinator.storage.webhooks import Webhooks


class Database:
    """The parts of the database: audits and campaigns, their state transitions, evidence, unit parts, concepts,
    registered models, webhooks, and artefacts to remove.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.audits = Audits(engine)
        self.transitions = Transitions(engine)
        self.campaigns = Campaigns(engine)
        self.campaign_transitions = CampaignTransitions(engine, self.transitions)
        self.evidence = EvidenceStore(engine)
        self.unit_parts = UnitParts(engine)
        self.concepts = CustomConcepts(engine)
        self.models = ModelRegistry(engine)
        self.webhooks = Webhooks(engine)
        self.artifact_collection = ArtifactCollection(engine)

    async def migrate(self) -> None:
        """Create missing tables, and missing columns and indexes of tables that an earlier version created."""
        await migrate(self.engine)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
