"""Concludes a campaign whose cells have all ended: writes the content of its report, and evaluates its gate.

The content is written cell by cell into a file (`content.py`). What needs the cells reads them back from there.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import IO

from unerase.v1.campaigns_pb2 import CampaignReportCell, CampaignSpec
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import Gate, GateResult
from unerase_backend.comparison import GateEvaluation
from unerase_backend.coordinator.campaigns.comparing import compare, read_compared, write
from unerase_backend.coordinator.campaigns.content import read_cells, write_part
from unerase_backend.coordinator.campaigns.reader import Reader
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime.artifacts import ArtifactStore

# A verdict takes some ten kilobytes.
_CELLS_AT_ONCE = 32
# Comparing takes a core. At once in all, and for one tenant.
_CONCLUDING = (2, 1)


@dataclass(frozen=True)
class Concluded:
    """What belongs to the end of a campaign."""

    gate: GateResult | None
    content_digest: str
    reports: dict[str, str] = field(default_factory=dict)
    """The artefacts of the comparisons with earlier campaigns, by name."""


def compared_form(campaign_id: str) -> str:
    """Return the name under which the comparison with an earlier campaign is kept among a campaign's reports."""
    return f"compared-{campaign_id}"


class CampaignConclusion:
    """Writes the contents of campaigns' reports, and holds gates against them."""

    def __init__(self, database: Database, store: ArtifactStore) -> None:
        self._database = database
        self._store = store
        self._concluding = FairQueue(*_CONCLUDING)

    async def conclude(self, campaign_id: str) -> Concluded:
        """Return what a campaign comes to whose cells have all ended.

        Raises:
            ExhaustedError: the artefact store is full.
            LookupError: the campaign was deleted.
        """
        spec = await until_answered(lambda: self._database.campaigns.whole_spec(campaign_id))
        if spec is None:
            raise LookupError("the campaign was deleted")
        reader = Reader(self._database, self._store)
        with tempfile.TemporaryFile() as file:
            await self._write_cells(file, campaign_id, spec)
            return await self._concluding.run(self._finish, file, campaign_id, spec, reader)

    async def content_again(self, campaign_id: str, gate: GateResult | None) -> str:
        """Write the content of a report that is lost, or that a cancelled campaign never had; return its digest."""
        spec = await until_answered(lambda: self._database.campaigns.whole_spec(campaign_id))
        if spec is None:
            raise LookupError("the campaign was deleted")
        with tempfile.TemporaryFile() as file:
            await self._write_cells(file, campaign_id, spec)
            if gate is not None:
                write_part(file, gate=gate)
            return await asyncio.to_thread(self._store.put_file, file)

    async def evaluate(self, campaign_id: str, content: IO[bytes], gate: Gate) -> GateResult:
        """Return what a gate says of a campaign whose content is in a file."""
        reader = Reader(self._database, self._store)
        return await self._concluding.run(self._evaluated, content, campaign_id, gate, reader)

    async def _write_cells(self, file: IO[bytes], campaign_id: str, spec: CampaignSpec) -> None:
        write_part(file, spec=spec)
        read, after = self._database.campaigns.report_cells, -1
        while True:
            cells = await until_answered(partial(read, campaign_id, after, _CELLS_AT_ONCE))
            await asyncio.to_thread(_write_all, file, cells)
            if len(cells) < _CELLS_AT_ONCE:
                return
            after = cells[-1].index

    def _finish(self, file: IO[bytes], campaign_id: str, spec: CampaignSpec, reader: Reader) -> Concluded:
        earlier = dict.fromkeys(each for each in (spec.compared_with, spec.gate.no_worse_than) if each)
        with ExitStack() as held:
            compared = {}
            for first in earlier:
                other = held.enter_context(tempfile.TemporaryFile())
                if _compare(reader, first, campaign_id, other):
                    compared[first] = other
            gate = None
            if spec.HasField("gate"):
                gate = _hold(spec.gate, file, compared.get(spec.gate.no_worse_than))
                file.seek(0, 2)
                write_part(file, gate=gate)
            digests = {compared_form(first): self._store.put_file(other) for first, other in compared.items()}
            return Concluded(gate, self._store.put_file(file), digests)

    def _evaluated(self, content: IO[bytes], campaign_id: str, gate: Gate, reader: Reader) -> GateResult:
        with tempfile.TemporaryFile() as other:
            compared = bool(gate.no_worse_than) and _compare(reader, gate.no_worse_than, campaign_id, other)
            return _hold(gate, content, other if compared else None)


def _write_all(file: IO[bytes], cells: Iterable[CampaignReportCell]) -> None:
    for cell in cells:
        write_part(file, cell=cell)


def _compare(reader: Reader, first: str, second: str, file: IO[bytes]) -> bool:
    """Write the comparison of two campaigns to a file; False if the earlier one was deleted meanwhile."""
    try:
        for part in compare(reader, first, second):
            write(file, part)
    except LookupError:
        return False
    return True


def _hold(gate: Gate, content: IO[bytes], compared: IO[bytes] | None) -> GateResult:
    """Hold a gate against the cells of a content, with the comparisons of these cells if there are any."""
    evaluation = GateEvaluation(gate)
    comparisons: Iterator[CellComparison] = read_compared(compared) if compared is not None else iter(())
    # Both have every cell, in the same order.
    for cell in read_cells(content):
        evaluation.add(cell, next(comparisons, None))
    return evaluation.result()
