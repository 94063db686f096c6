"""Renders the forms of a campaign's report when they are first asked for, and keeps them in the artefact store."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignReport,
    CampaignReportCell,
    CampaignReportContent,
    CampaignReportFormat,
)
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.campaigns.comparing import read_compared, read_whole
from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion, compared_form
from unerase_backend.coordinator.campaigns.content import read_cells, read_gate, read_spec
from unerase_backend.coordinator.campaigns.reader import Reader
from unerase_backend.coordinator.fair_queue import RENDERING, FairQueue
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.report import campaign as pages
from unerase_backend.report.schema import CAMPAIGN_SCHEMA_VERSION
from unerase_backend.runtime.artifacts import PIECE_BYTES, ArtifactStore
from unerase_backend.runtime.errors import DataLossError, NotFoundError


@dataclass(frozen=True)
class _Parts:
    """What a form is rendered from; the cells are read from a file whenever they are asked for."""

    head: CampaignReport
    cells: Callable[[], Iterator[CampaignReportCell]]
    comparisons: Callable[[], Iterator[CellComparison]]
    reader: Reader


@dataclass(frozen=True)
class _Form:
    """One form of a report."""

    name: str
    media_type: str
    write: Callable[[BinaryIO, _Parts], Any]


def _write_json(file: BinaryIO, parts: _Parts) -> None:
    for piece in pages.render_json(parts.head, parts.cells()):
        file.write(piece.encode())


def _write_html(file: BinaryIO, parts: _Parts) -> None:
    pages.write_html(
        file,
        parts.head,
        parts.cells(),
        parts.comparisons(),
        content_of=lambda cell: parts.reader.content(cell.content_digest),
        read_picture=parts.reader.artifact,
    )


def _write_observations(file: BinaryIO, parts: _Parts) -> None:
    head, reader = parts.head, parts.reader
    pages.write_observations(
        file,
        head,
        parts.cells(),
        lambda cell: reader.observations(head.audits[cell.index]) if cell.HasField("verdict") else (),
    )


_PARQUET = "application/vnd.apache.parquet"
_FORMS: dict[CampaignReportFormat.ValueType, _Form] = {
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_JSON: _Form("json", "application/json", _write_json),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML: _Form("html", pages.HTML, _write_html),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET: _Form(
        "cells-parquet",
        _PARQUET,
        lambda file, parts: pages.write_cells_parquet(file, parts.head, parts.cells(), parts.comparisons()),
    ),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_CSV: _Form(
        "cells-csv",
        "text/csv; charset=utf-8",
        lambda file, parts: pages.write_cells_csv(file, parts.head, parts.cells(), parts.comparisons()),
    ),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_OBSERVATIONS_PARQUET: _Form(
        "observations-parquet", _PARQUET, _write_observations
    ),
}


class CampaignReports:
    """The reports of campaigns that have ended."""

    def __init__(self, database: Database, store: ArtifactStore, conclusion: CampaignConclusion) -> None:
        self._database = database
        self._store = store
        self._conclusion = conclusion
        self._rendering = FairQueue(*RENDERING)

    async def form(self, campaign: Campaign, tenant: str, asked: CampaignReportFormat.ValueType) -> tuple[str, str]:
        """Return the artefact of a report in one form, and its media type; JSON for a form that does not exist.

        Raises:
            ExhaustedError: the artefact store is full.
            NotFoundError: the campaign was deleted meanwhile.
        """
        form = _FORMS.get(asked, _FORMS[CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_JSON])
        media_type = form.media_type
        if form.name == "html" and campaign.cells_total > pages.MAX_CELLS:
            media_type = pages.ZIP
        reports = await self._database.campaigns.reports(campaign.id)
        kept = reports.get(form.name, "")
        if await self._is_whole(kept):
            return kept, media_type
        content_digest = await self.content(campaign)
        audits = await self._database.campaigns.audit_ids(campaign.id)
        compared = reports.get(compared_form(campaign.spec.compared_with), "")
        head = CampaignReport(
            schema_version=CAMPAIGN_SCHEMA_VERSION,
            campaign_id=campaign.id,
            create_time=campaign.create_time,
            end_time=campaign.end_time,
            tenant=tenant,
            labels=campaign.labels,
            audits=audits,
        )
        reader = Reader(self._database, self._store)
        digest = await self._rendering.run(self._render, form, head, content_digest, compared, reader)
        await self._database.campaign_transitions.keep_report(campaign.id, form.name, digest, content_digest)
        return digest, media_type

    async def content(self, campaign: Campaign) -> str:
        """Return the artefact of a report's content, which is written if there is none.

        Raises:
            ExhaustedError: the artefact store is full.
            NotFoundError: the campaign was deleted meanwhile.
        """
        reports = await self._database.campaigns.reports(campaign.id)
        kept = reports.get("content", "")
        if await self._is_whole(kept):
            return kept
        gate: GateResult | None = campaign.gate_result if campaign.HasField("gate_result") else None
        try:
            digest = await self._conclusion.content_again(campaign.id, gate)
        except LookupError:
            raise NotFoundError(f"the campaign {campaign.id!r} was deleted", reason="CAMPAIGN_NOT_FOUND") from None
        await self._database.campaign_transitions.keep_content(campaign.id, digest)
        return digest

    async def _is_whole(self, digest: str) -> bool:
        whole: bool = await self._rendering.run(self._store.whole, digest)
        return whole

    def read(self, digest: str, file: IO[bytes]) -> IO[bytes]:
        """Copy an artefact into a file, and return the file.

        Raises:
            DataLossError: the artefact is lost or damaged.
        """
        try:
            for piece in self._store.pieces(digest, PIECE_BYTES)[1]:
                file.write(piece)
        except NotFoundError:
            raise DataLossError("the campaign's report was lost while it was read; try again") from None
        return file

    def _render(self, form: _Form, head: CampaignReport, content: str, compared: str, reader: Reader) -> str:
        with tempfile.TemporaryFile() as cells, tempfile.TemporaryFile() as others, tempfile.TemporaryFile() as file:
            self.read(content, cells)
            has_comparison = bool(compared) and self._store.whole(compared)
            if has_comparison:
                self.read(compared, others)
                head.comparison.CopyFrom(read_whole(others))
            head.content.CopyFrom(CampaignReportContent(spec=read_spec(cells), gate_result=read_gate(cells)))
            parts = _Parts(
                head, lambda: read_cells(cells), lambda: read_compared(others) if has_comparison else iter(()), reader
            )
            form.write(cast(BinaryIO, file), parts)
            return self._store.put_file(file)
