"""Reads campaigns from threads: what compares and renders is written without `await`, and takes a cell at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from unerase.v1.audits_pb2 import ReportContent
from unerase.v1.campaigns_pb2 import CampaignSpec, Cell
from unerase.v1.types_pb2 import Observation
from unerase_backend.comparison import Recorded
from unerase_backend.coordinator.storage.campaigns import CELLS_AT_ONCE
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError

Result = TypeVar("Result")


class Reader:
    """Reads the database and the artefact store; make it on the event loop, and call it from threads alone."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store
        self._loop = asyncio.get_running_loop()

    def spec(self, campaign_id: str) -> CampaignSpec | None:
        """Return a campaign's specification with its names; None once it is deleted."""
        return self._ask(self._database.campaigns.whole_spec, campaign_id)

    def cells(self, campaign_id: str) -> Iterator[Cell]:
        """Yield the cells of a campaign in their order."""
        after = -1
        while cells := self._ask(self._database.campaigns.cells, campaign_id, after, CELLS_AT_ONCE):
            yield from cells
            after = cells[-1].index

    def cell(self, campaign_id: str, position: int) -> Cell | None:
        """Return one cell of a campaign; None if there is none."""
        found = self._ask(self._database.campaigns.cells, campaign_id, position - 1, 1)
        return found[0] if found and found[0].index == position else None

    def recorded(self, audit_id: str, content_digest: str) -> Recorded | None:
        """Return an audit as it was recorded; None if it was deleted, or its report is lost."""
        content = self.content(content_digest)
        if content is None:
            return None
        observations = self.observations(audit_id)
        return Recorded(audit_id, content, observations) if observations or not content.observations else None

    def observations(self, audit_id: str) -> list[Observation]:
        """Return all observations of an audit; none once it is deleted."""
        return self._ask(self._database.evidence.all_observations, audit_id)

    def content(self, digest: str) -> ReportContent | None:
        """Return the content of an audit's report; None if there is none, or it is lost."""
        content = self.artifact(digest) if digest else None
        return None if content is None else ReportContent.FromString(content)

    def artifact(self, digest: str) -> bytes | None:
        """Return the bytes of an artefact; None if they are lost."""
        try:
            return self._store.get(digest)
        except (NotFoundError, DataLossError):
            return None

    def _ask(self, read: Callable[..., Awaitable[Result]], *arguments: Any) -> Result:
        answer = until_answered(partial(read, *arguments))
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result()
