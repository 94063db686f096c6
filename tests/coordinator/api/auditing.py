"""An AuditService whose audits are planned and stored, and never run."""

from collections.abc import Mapping
from typing import Any

from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.artifacts import ArtifactStore


class Begun:
    """Lets audits begin, and does nothing with them."""

    def __init__(self, database: Database, descriptions: Mapping[str, EvaluationDescription]) -> None:
        self.estimates = Estimates(database.engine, 6)
        self.units = self
        self._descriptions = descriptions

    async def descriptions(self) -> Mapping[str, EvaluationDescription]:
        return self._descriptions

    async def broken(self) -> Mapping[str, str]:
        return {}

    def begin(self, audit_id: str) -> None:
        pass

    async def cancelled(self, audit_id: str) -> None:
        pass

    async def announce(self) -> None:
        pass


def auditing(
    database: Database,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
    **more: Any,
) -> AuditServicer:
    """The service; `more` are further arguments of it."""
    begun: Any = Begun(database, descriptions)
    notifications, retention = Notifications(database.audits.sequences), Retention(database, store, 0)
    admission = Admission(begun, database, catalogue, store, lambda _: Quota())
    return AuditServicer(begun, database, store, notifications, retention, admission, **more)
