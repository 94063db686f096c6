"""What the client does with campaigns, comparisons and gates."""

# `timeout` is a deadline that is sent to the backend, and the same argument as in Client.
# ruff: noqa: ASYNC109
from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unerase._aio.connection import AsyncConnection
from unerase._arrow import need_arrow, table_of
from unerase._errors import UneraseError
from unerase._files import replaced
from unerase._repeating import Attempts, new_id
from unerase._transfers import MOST_CELLS, check_complete, compared_audits, compared_campaigns
from unerase._watching import CAMPAIGN_ENDED, Watching
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignEvent,
    CampaignReportFormat,
    CampaignSpec,
    CancelCampaignRequest,
    Cell,
    CreateCampaignRequest,
    DeleteCampaignRequest,
    EvaluateGateRequest,
    GetCampaignReportRequest,
    GetCampaignRequest,
    ListCampaignsRequest,
    ListCellsRequest,
    RetryCampaignRequest,
    WatchCampaignRequest,
)
from unerase.v1.campaigns_pb2_grpc import CampaignServiceStub
from unerase.v1.comparisons_pb2 import (
    AuditComparison,
    AuditPair,
    CampaignComparison,
    CampaignPair,
    CellComparison,
    CompareRequest,
)
from unerase.v1.gates_pb2 import Gate, GateResult

if TYPE_CHECKING:
    import pyarrow

    from unerase.v1.campaigns_pb2_grpc import CampaignServiceAsyncStub


class AsyncCampaignCalls(AsyncConnection):
    """The calls of CampaignService."""

    async def create_campaign(
        self,
        spec: CampaignSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        webhook: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> Campaign:
        """Create a campaign and return it as accepted, with every default and the subjects that its filter found.

        The `request_id`, generated unless given, makes the call safe to repeat: the same id and content give the same
        campaign. With `validate_only` the campaign is planned but not run: it has no id, and `cost` says what it would
        take.
        The `webhook` is a URL that is told of the campaign's end (docs/webhooks.md).
        """
        request = CreateCampaignRequest(
            request_id=new_id(request_id), spec=spec, labels=labels, webhook=webhook, validate_only=validate_only
        )
        campaign = await self._ask(self._campaigns().CreateCampaign, request, timeout, creates=True)
        await self._check_contract()
        return campaign

    async def get_campaign(self, campaign_id: str, *, timeout: float | None = None) -> Campaign:
        """Return the campaign as it is now."""
        return await self._ask(self._campaigns().GetCampaign, GetCampaignRequest(id=campaign_id), timeout)

    async def campaigns(
        self, *, filter: str = "", page_size: int = 100, timeout: float | None = None
    ) -> AsyncIterator[Campaign]:
        """Yield the campaigns, newest first, without their subjects, concepts and gates' findings."""
        request = ListCampaignsRequest(page_size=page_size, filter=filter)
        async for page in self._pages(lambda: self._campaigns().ListCampaigns, request, timeout):
            for item in page.campaigns:
                yield item

    async def cells(
        self, campaign_id: str, *, filter: str = "", page_size: int = MOST_CELLS, timeout: float | None = None
    ) -> AsyncIterator[Cell]:
        """Yield the cells of a campaign in their order, fetched page by page."""
        request = ListCellsRequest(id=campaign_id, page_size=page_size, filter=filter)
        async for page in self._pages(lambda: self._campaigns().ListCells, request, timeout):
            for item in page.cells:
                yield item

    def watch_campaign(
        self, campaign_id: str, after_sequence: int = 0, *, timeout: float | None = None
    ) -> AsyncIterator[CampaignEvent]:
        """Yield the campaign's events after `after_sequence` until it ends, each once and in order, as `watch` does."""

        async def ended(seconds: float) -> bool:
            return (await self.get_campaign(campaign_id, timeout=seconds)).state in CAMPAIGN_ENDED

        watching = Watching[CampaignEvent]("campaign", campaign_id, after_sequence, self._settings, timeout)
        return self._watched(
            watching,
            lambda seconds: self._campaigns().WatchCampaign(
                WatchCampaignRequest(id=campaign_id, after_sequence=watching.last),
                timeout=seconds,
                metadata=self._metadata(),
            ),
            ended,
        )

    async def campaign(
        self,
        spec: CampaignSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        webhook: str = "",
        on_event: Callable[[CampaignEvent], None] | None = None,
        timeout: float | None = None,
    ) -> Campaign:
        """Create a campaign, watch it until it ends and return it; single cells may have failed.

        `on_event` is called with each event. A `timeout` ends the waiting, not the campaign; the error then holds the
        campaign's id in `metadata["campaign"]`.
        """
        campaign = await self.create_campaign(spec, labels=labels, request_id=request_id, webhook=webhook)
        try:
            async for event in self.watch_campaign(campaign.id, timeout=timeout):
                if on_event is not None:
                    on_event(event)
            return await self.get_campaign(campaign.id)
        except UneraseError as error:
            error.metadata.setdefault("campaign", campaign.id)
            raise

    async def cancel_campaign(self, campaign_id: str, *, timeout: float | None = None) -> Campaign:
        """Cancel the campaign with its audits in flight; a campaign that has ended stays as it is."""
        return await self._ask(self._campaigns().CancelCampaign, CancelCampaignRequest(id=campaign_id), timeout)

    async def retry_campaign(self, campaign_id: str, *, timeout: float | None = None) -> Campaign:
        """Run the failed and cancelled cells of a campaign that has ended again."""
        return await self._ask(
            self._campaigns().RetryCampaign, RetryCampaignRequest(id=campaign_id), timeout, safe=False
        )

    async def delete_campaign(self, campaign_id: str, *, timeout: float | None = None) -> None:
        """Delete a campaign that has ended, with its audits."""
        await self._ask(self._campaigns().DeleteCampaign, DeleteCampaignRequest(id=campaign_id), timeout, safe=False)

    async def campaign_report(
        self,
        campaign_id: str,
        format: CampaignReportFormat.ValueType = CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML,
        *,
        timeout: float | None = None,
    ) -> bytes:
        """Return the report of a campaign that has ended, in memory; `save_campaign_report` is for large ones."""
        request = GetCampaignReportRequest(id=campaign_id, format=format)
        return await self._fetch(self._campaigns().GetCampaignReport, request, timeout)

    async def campaign_report_json(self, campaign_id: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the report as the dictionary whose content is a `CampaignReport`."""
        json_format = CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_JSON
        report: dict[str, Any] = json.loads(await self.campaign_report(campaign_id, json_format, timeout=timeout))
        return report

    async def save_campaign_report(
        self,
        campaign_id: str,
        path: Path | str,
        format: CampaignReportFormat.ValueType = CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML,
        *,
        timeout: float | None = None,
    ) -> str:
        """Write the report to a file, piece by piece as it comes, and return its media type.

        The file is replaced once the whole report is there. `application/zip` is a folder of pages, for a campaign of
        more cells than one page holds. Raises OSError if the file cannot be written.
        """
        request = GetCampaignReportRequest(id=campaign_id, format=format)
        method = self._campaigns().GetCampaignReport

        async def save(limit: float) -> str:
            media_type, size, arrived = "", 0, 0
            with replaced(Path(path)) as file:
                pieces = method(request, timeout=limit, metadata=self._metadata())
                try:
                    async for piece in pieces:
                        media_type, size = piece.media_type or media_type, piece.size_bytes or size
                        arrived += file.write(piece.chunk)
                finally:
                    pieces.cancel()
                check_complete(size, arrived)
            return media_type

        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds)
        return await self._repeated(attempts, save)

    async def campaign_table(self, campaign_id: str, *, timeout: float | None = None) -> pyarrow.Table:
        """Return the cells of a campaign that has ended as an Arrow table, one row for each cell and evaluation.

        Needs pyarrow: `pip install 'unerase[arrow]'`. docs/campaign-report.md lists the columns.
        """
        need_arrow()
        parquet = CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET
        content = await self.campaign_report(campaign_id, parquet, timeout=timeout)
        return await asyncio.to_thread(table_of, content)

    async def compare_audits(self, first: str, second: str, *, timeout: float | None = None) -> AuditComparison:
        """Compare two audits by their ids: what changed from the first to the second."""
        request = CompareRequest(audits=AuditPair(first=first, second=second))
        return compared_audits(await self._all(self._campaigns().Compare, request, timeout))

    async def compare_campaigns(
        self, first: str, second: str, *, changed_only: bool = False, timeout: float | None = None
    ) -> tuple[CampaignComparison, list[CellComparison]]:
        """Compare two campaigns by their ids: the whole, and the cells in the order of the second campaign.

        With `changed_only` the cells in which nothing changed are left out.
        """
        pair = CampaignPair(first=first, second=second, changed_only=changed_only)
        return compared_campaigns(await self._all(self._campaigns().Compare, CompareRequest(campaigns=pair), timeout))

    async def evaluate_gate(
        self, campaign_id: str, gate: Gate | None = None, *, timeout: float | None = None
    ) -> GateResult:
        """Hold a campaign that has ended against a gate, its own unless given, and return what the gate says."""
        request = EvaluateGateRequest(id=campaign_id, gate=gate)
        limit = self._settings.transfer_timeout_seconds if timeout is None else timeout
        return await self._ask(self._campaigns().EvaluateGate, request, limit)

    def _campaigns(self) -> CampaignServiceAsyncStub:
        return CampaignServiceStub(self._open())
