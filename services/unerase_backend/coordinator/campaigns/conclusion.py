"""Concludes a campaign whose cells have all ended: writes the content of its report, and evaluates its gate.

The content is written cell by cell into a file (`content.py`). What needs the cells reads them back from there.
"""

import asyncio
import tempfile
from functools import partial
from typing import IO

from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.campaigns.content import write_part
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.storage.campaigns import Run
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime.artifacts import ArtifactStore

# A verdict takes some ten kilobytes.
_CELLS_AT_ONCE = 32
_AT_ONCE = 2


class CampaignConclusion:
    """Writes the contents of campaigns' reports."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store
        self._writing = FairQueue(_AT_ONCE)

    async def conclude(self, run: Run) -> tuple[GateResult | None, str]:
        """Return what the campaign's gate says, if it has one, and the digest of the report's content.

        Raises:
            ExhaustedError: the artefact store is full.
        """
        spec = await until_answered(lambda: self._database.campaigns.whole_spec(run.id))
        async with self._writing.turn():
            with tempfile.TemporaryFile() as file:
                await self._write_cells(file, run.id, spec or run.spec)
                return await asyncio.to_thread(self._finish, file)

    async def _write_cells(self, file: IO[bytes], campaign_id: str, spec: CampaignSpec) -> None:
        write_part(file, spec=spec)
        read, after = self._database.campaigns.report_cells, -1
        while True:
            cells = await until_answered(partial(read, campaign_id, after, _CELLS_AT_ONCE))
            for cell in cells:
                write_part(file, cell=cell)
                after = cell.index
            if len(cells) < _CELLS_AT_ONCE:
                return

    def _finish(self, file: IO[bytes]) -> tuple[GateResult | None, str]:
        gate = None
        file.seek(0)
        return gate, self._store.put_file(file)
