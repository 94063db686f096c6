"""CampaignService: creates, watches, reads, cancels, retries and deletes campaigns."""

# ruff: noqa: N802 - methods have the names of the RPCs

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from unerase.v1.audits_pb2 import Audit, GetReportResponse
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignEvent,
    CampaignState,
    CancelCampaignRequest,
    CreateCampaignRequest,
    DeleteCampaignRequest,
    EvaluateGateRequest,
    GetCampaignReportRequest,
    GetCampaignRequest,
    ListCampaignsRequest,
    ListCampaignsResponse,
    ListCellsRequest,
    ListCellsResponse,
    RetryCampaignRequest,
    WatchCampaignRequest,
)
from unerase.v1.campaigns_pb2_grpc import CampaignServiceServicer
from unerase.v1.comparisons_pb2 import CompareRequest, CompareResponse
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.api.paging import LISTED_AT_ONCE, Page, cursor_of, kind_of, page_size, time_cursor_of
from unerase_backend.coordinator.api.pieces import CHUNK_BYTES, in_turn
from unerase_backend.coordinator.api.request_ids import check_request_id
from unerase_backend.coordinator.api.watching import WATCHERS_READING, follow
from unerase_backend.coordinator.campaigns.answers import Answers
from unerase_backend.coordinator.campaigns.creation import Creation
from unerase_backend.coordinator.campaigns.removal import CampaignRemoval
from unerase_backend.coordinator.campaigns.reports import CampaignReports
from unerase_backend.coordinator.campaigns.workflow import CampaignRunner
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.fair_queue import THREADS, FairQueue
from unerase_backend.coordinator.filtering import CAMPAIGN_FIELDS, CELL_FIELDS, read_filter
from unerase_backend.coordinator.states import ENDED_CAMPAIGN
from unerase_backend.coordinator.storage.campaigns import CELLS_AT_ONCE
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.access import CALLER
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError, PreconditionError
from unerase_backend.runtime.identifiers import AUDIT_ID

Context = grpc.aio.ServicerContext[Any, Any]

_POSITION = re.compile(r"[0-9]{1,9}")


class CampaignServicer(CampaignServiceServicer):
    """Serves the campaigns of all tenants; each caller sees those of its tenant."""

    def __init__(
        self,
        database: Database,
        creation: Creation,
        runner: CampaignRunner,
        removal: CampaignRemoval,
        notifications: Notifications,
        reports: CampaignReports,
        answers: Answers,
        store: ArtifactStore,
    ) -> None:
        """Take the parts that campaigns need; `notifications` are those of campaigns."""
        self._database = database
        self._reports = reports
        self._answers = answers
        self._store = store
        self._threads = FairQueue(*THREADS)
        self._creation = creation
        self._runner = runner
        self._removal = removal
        self._notifications = notifications
        self._reading = FairQueue(*WATCHERS_READING)

    async def CreateCampaign(self, request: CreateCampaignRequest, context: Context) -> Campaign:
        """Accept a campaign, or return the campaign that the same request created before.

        With `validate_only` the campaign is planned and its cost counted, but it is not accepted.
        """
        if request.request_id or not request.validate_only:
            check_request_id(request.request_id)
        return await self._creation.create(request, CALLER.get().tenant)

    async def GetCampaign(self, request: GetCampaignRequest, context: Context) -> Campaign:
        """Return one campaign."""
        return await self._find(request.id)

    async def ListCampaigns(self, request: ListCampaignsRequest, context: Context) -> ListCampaignsResponse:
        """Return a page of campaigns, the newest first."""
        size, condition = page_size(request.page_size), read_filter(request.filter, CAMPAIGN_FIELDS)
        kind = kind_of("campaigns", request.filter.strip())
        before = time_cursor_of(request.page_token, kind) if request.page_token else None
        page, tenant, at_once = Page(kind, size), CALLER.get().tenant, min(LISTED_AT_ONCE, size + 1)
        while not page.full:
            campaigns = await self._database.campaigns.newest(at_once, before, tenant, condition)
            for campaign in campaigns:
                before = (campaign.create_time.ToNanoseconds(), campaign.id)
                if not page.add(campaign, str(before[0]), campaign.id):
                    break
            if len(campaigns) < at_once:
                break
        return ListCampaignsResponse(campaigns=page.items, next_page_token=page.token)

    async def ListCells(self, request: ListCellsRequest, context: Context) -> ListCellsResponse:
        """Return a page of a campaign's cells, in their order."""
        size, condition = page_size(request.page_size), read_filter(request.filter, CELL_FIELDS)
        await self._find(request.id)
        kind, after = kind_of("cells", request.id, request.filter.strip()), -1
        if request.page_token:
            (position,) = cursor_of(request.page_token, kind, 1)
            if not _POSITION.fullmatch(position):
                raise InvalidRequestError.of(FieldViolation("page_token", "is not a page token that this backend gave"))
            after = int(position)
        page, at_once = Page(kind, size), min(CELLS_AT_ONCE, size + 1)
        while not page.full:
            cells = await self._database.campaigns.cells(request.id, after, at_once, condition)
            for cell in cells:
                after = cell.index
                if not page.add(cell, str(cell.index)):
                    break
            if len(cells) < at_once:
                break
        return ListCellsResponse(cells=page.items, next_page_token=page.token)

    async def WatchCampaign(self, request: WatchCampaignRequest, context: Context) -> AsyncIterator[CampaignEvent]:
        """Stream the events after a sequence number until the campaign ends."""
        await self._find(request.id)
        followed = follow(
            request.id,
            request.after_sequence,
            ended=self._ended,
            events=self._database.campaigns.events,
            gone=NotFoundError(f"the campaign {request.id!r} was deleted", reason="CAMPAIGN_NOT_FOUND"),
            notifications=self._notifications,
            turns=self._reading,
        )
        async with aclosing(followed) as events:
            async for event in events:
                yield event

    async def CancelCampaign(self, request: CancelCampaignRequest, context: Context) -> Campaign:
        """Cancel a campaign with its audits; a campaign that has ended does not change."""
        await self._find(request.id)
        cancelled = await self._database.campaign_transitions.cancel(request.id)
        if cancelled is not None:
            await self._runner.cancelled(cancelled)
        return await self._find(request.id)

    async def RetryCampaign(self, request: RetryCampaignRequest, context: Context) -> Campaign:
        """Run the failed and cancelled cells again; a campaign that has not ended, or has none, does not change."""
        await self._find(request.id)
        round_ = await self._database.campaign_transitions.retry(request.id)
        if round_ is not None:
            self._runner.begin(request.id, round_)
            await self._runner.announce()
        return await self._find(request.id)

    async def DeleteCampaign(self, request: DeleteCampaignRequest, context: Context) -> Empty:
        """Delete a campaign that has ended, with its audits and the artefacts that only they need."""
        campaign = await self._find(request.id)
        check_ended(campaign)
        await self._removal.delete(request.id)
        await self._runner.announce()
        return Empty()

    async def GetCampaignReport(
        self, request: GetCampaignReportRequest, context: Context
    ) -> AsyncIterator[GetReportResponse]:
        """Stream the report of a campaign that has ended."""
        campaign = await self._find(request.id)
        check_ended(campaign)
        digest, media_type = await self._reports.form(campaign, CALLER.get().tenant, request.format)
        size, pieces = await self._threads.run(self._store.pieces, digest, CHUNK_BYTES)
        response = GetReportResponse(media_type=media_type, size_bytes=size)
        async for piece in in_turn(pieces, self._threads):
            response.chunk = piece
            yield response
            response = GetReportResponse()

    async def Compare(self, request: CompareRequest, context: Context) -> AsyncIterator[CompareResponse]:
        """Compare two audits, or two campaigns cell by cell."""
        match request.WhichOneof("pair"):
            case "audits":
                pair = request.audits
                found = [await self._find_audit(f"audits.{side}", getattr(pair, side)) for side in ("first", "second")]
                yield CompareResponse(audits=await self._answers.audits(*found))
            case "campaigns":
                asked = request.campaigns
                for side in ("first", "second"):
                    check_ended(await self._find(getattr(asked, side), f"campaigns.{side}"))
                read = self._answers.campaigns(asked.first, asked.second, changed_only=asked.changed_only)
                async for response in in_turn(read, self._answers.comparing):
                    yield response
            case _:
                raise InvalidRequestError.of(FieldViolation("pair", "must be two audits or two campaigns"))

    async def EvaluateGate(self, request: EvaluateGateRequest, context: Context) -> GateResult:
        """Hold a campaign that has ended against a gate."""
        campaign = await self._find(request.id)
        check_ended(campaign)
        gate = request.gate if request.HasField("gate") else None
        if gate is not None and gate.no_worse_than:
            check_ended(await self._find(gate.no_worse_than, "gate.no_worse_than"))
        return await self._answers.gate(campaign, gate)

    async def _ended(self, campaign_id: str) -> bool | None:
        state = await self._database.campaigns.state(campaign_id)
        return None if state is None else state in ENDED_CAMPAIGN

    async def _find_audit(self, field: str, audit_id: str) -> Audit:
        owned = self._database.audits.owned
        audit = await owned(audit_id, CALLER.get().tenant) if AUDIT_ID.fullmatch(audit_id) else None
        if audit is None:
            raise NotFoundError(
                f"{field}: there is no audit with this id", reason="AUDIT_NOT_FOUND", metadata={"audit": audit_id[:64]}
            )
        return audit

    async def _find(self, campaign_id: str, field: str = "id") -> Campaign:
        if not campaign_id:
            raise InvalidRequestError.of(FieldViolation(field, "must be a campaign's id"))
        tenant = CALLER.get().tenant
        # Another tenant's campaign gets the same answer as one that does not exist.
        found = await self._database.campaigns.owned(campaign_id, tenant) if AUDIT_ID.fullmatch(campaign_id) else None
        if found is None:
            raise NotFoundError(
                "there is no campaign with this id",
                reason="CAMPAIGN_NOT_FOUND",
                metadata={"campaign": campaign_id[:64]},
            )
        return found


def check_ended(campaign: Campaign) -> None:
    """Check that a campaign has ended.

    Raises:
        PreconditionError: it has not.
    """
    if campaign.state not in ENDED_CAMPAIGN:
        state = CampaignState.Name(campaign.state).removeprefix("CAMPAIGN_STATE_")
        raise PreconditionError(
            f"the campaign has not ended, its state is {state}; wait for its end, or cancel it first",
            reason="CAMPAIGN_NOT_ENDED",
            metadata={"state": state, "campaign": campaign.id},
        )
