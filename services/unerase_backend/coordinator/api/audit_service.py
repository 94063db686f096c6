"""AuditService: creates, watches, reads, cancels and deletes audits."""

# ruff: noqa: N802 - methods have the names of the RPCs

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty

from unerase.v1.audits_pb2 import (
    AUDIT_STATE_PENDING,
    AUDIT_STATE_SUCCEEDED,
    Audit,
    AuditEvent,
    AuditState,
    AuditView,
    CancelAuditRequest,
    CreateAuditRequest,
    DeleteAuditRequest,
    GetAuditRequest,
    GetReportRequest,
    GetReportResponse,
    ListAuditsRequest,
    ListAuditsResponse,
    ListEvaluationsRequest,
    ListEvaluationsResponse,
    ReadArtifactRequest,
    ReadArtifactResponse,
    ReportFormat,
    WatchAuditRequest,
)
from unerase.v1.audits_pb2_grpc import AuditServiceServicer
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator.api.paging import LISTED_AT_ONCE, Page, kind_of, page_size, time_cursor_of
from unerase_backend.coordinator.api.pieces import CHUNK_BYTES, in_turn
from unerase_backend.coordinator.api.request_ids import check_request_id
from unerase_backend.coordinator.api.watching import WATCHERS_READING, follow
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.execution.workflow import Auditor
from unerase_backend.coordinator.fair_queue import RENDERING, THREADS, FairQueue
from unerase_backend.coordinator.filtering import AUDIT_FIELDS, read_filter, read_order
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.coordinator.states import ENDED
from unerase_backend.coordinator.storage.audits import AUDIT_ORDERS, NEWEST, Origin
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.evidence import Reports
from unerase_backend.coordinator.storage.webhooks import AUDIT
from unerase_backend.coordinator.webhooks.admission import WebhookAdmission
from unerase_backend.runtime import tracing
from unerase_backend.runtime.access import CALLER
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import (
    AlreadyExistsError,
    DataLossError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from unerase_backend.runtime.identifiers import AUDIT_ID, DIGEST
from unerase_backend.runtime.labels import check_labels

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class _Form:
    """One form of a report."""

    media_type: str
    digest: Callable[[Reports], str]


_FORMS: dict[ReportFormat.ValueType, _Form] = {
    ReportFormat.REPORT_FORMAT_JSON: _Form("application/json", lambda reports: reports.json),
    ReportFormat.REPORT_FORMAT_HTML: _Form("text/html; charset=utf-8", lambda reports: reports.html),
    ReportFormat.REPORT_FORMAT_PARQUET: _Form("application/vnd.apache.parquet", lambda reports: reports.parquet),
}


class AuditServicer(AuditServiceServicer):
    """Serves the audits of all tenants; each caller sees those of its tenant."""

    def __init__(
        self,
        auditor: Auditor,
        database: Database,
        store: ArtifactStore,
        notifications: Notifications,
        retention: Retention,
        admission: Admission,
        webhooks: WebhookAdmission | None = None,
    ) -> None:
        self._auditor = auditor
        self._database = database
        self._store = store
        self._notifications = notifications
        self._retention = retention
        self._admission = admission
        self._webhooks = webhooks or WebhookAdmission()
        self._reading = FairQueue(*WATCHERS_READING)
        self._rendering = FairQueue(*RENDERING)
        self._threads = FairQueue(*THREADS)

    async def CreateAudit(self, request: CreateAuditRequest, context: Context) -> Audit:
        """Accept an audit, or return the audit that the same request created before.

        With `validate_only` the audit is planned and its cost counted, but it is not accepted.
        """
        if request.request_id or not request.validate_only:
            check_request_id(request.request_id)
        check_labels(request.labels)
        digest = _digest(request)
        tenant = CALLER.get().tenant
        self._webhooks.check(request.webhook, tenant)
        if not request.validate_only:
            existing = await self._repeated(request.request_id, digest)
            if existing is not None:
                return existing
        planned = await self._admission.plan(request.spec, tenant)
        planned.audit.labels.update(request.labels)
        if request.validate_only:
            await self._admission.check(planned, tenant)
            return planned.audit
        origin = Origin(tenant, tracing.traceparent())
        telling = self._database.webhooks.telling(AUDIT, tenant, request.webhook)
        audit = await self._admission.accept(
            planned, request.request_id, digest, origin, lambda audit: telling(audit.id)
        )
        if audit is None:
            # A concurrent call with the same request id was first.
            audit = await self._repeated(request.request_id, digest)
        if audit is None:
            raise PreconditionError("the audit of this request_id was just deleted", reason="AUDIT_DELETED")
        return audit

    async def GetAudit(self, request: GetAuditRequest, context: Context) -> Audit:
        """Return one audit."""
        return await self._find(request.id)

    async def ListAudits(self, request: ListAuditsRequest, context: Context) -> ListAuditsResponse:
        """Return a page of audits, the newest first unless asked otherwise."""
        size = page_size(request.page_size)
        condition = read_filter(request.filter, AUDIT_FIELDS)
        order = read_order(request.order_by, AUDIT_ORDERS, NEWEST)
        kind = kind_of("audits", request.filter.strip(), request.order_by.strip())
        behind = time_cursor_of(request.page_token, kind) if request.page_token else None
        page = Page(kind, size)
        whole = request.view == AuditView.AUDIT_VIEW_FULL
        tenant, at_once = CALLER.get().tenant, min(LISTED_AT_ONCE, size + 1)
        while not page.full:
            # A few at a time, because a verdict is far larger than what the list shows of it.
            audits = await self._database.audits.listed(at_once, behind, tenant, condition, order)
            for audit in audits:
                behind = (getattr(audit, order.field).ToNanoseconds(), audit.id)
                if not page.add(audit if whole else _basic(audit), str(behind[0]), audit.id):
                    break
            if len(audits) < at_once:
                break
        return ListAuditsResponse(audits=page.items, next_page_token=page.token)

    async def WatchAudit(self, request: WatchAuditRequest, context: Context) -> AsyncIterator[AuditEvent]:
        """Stream the events after a sequence number until the audit ends."""
        await self._find(request.id)
        followed = follow(
            request.id,
            request.after_sequence,
            ended=self._ended,
            events=self._database.audits.events,
            gone=NotFoundError(f"the audit {request.id!r} was deleted", reason="AUDIT_NOT_FOUND"),
            notifications=self._notifications,
            turns=self._reading,
        )
        async with aclosing(followed) as events:
            async for event in events:
                yield event

    async def CancelAudit(self, request: CancelAuditRequest, context: Context) -> Audit:
        """Cancel an audit; an audit that has ended does not change."""
        await self._find(request.id)
        if await self._database.transitions.cancel(request.id):
            await self._auditor.cancelled(request.id)
        return await self._find(request.id)

    async def DeleteAudit(self, request: DeleteAuditRequest, context: Context) -> Empty:
        """Delete an audit that has ended, and the artefacts that only it needs."""
        audit = await self._find(request.id)
        if audit.state not in ENDED:
            raise PreconditionError(
                "the audit has not ended; cancel it first", reason="AUDIT_NOT_ENDED", metadata=_state_of(audit)
            )
        if audit.campaign and await self._database.campaigns.is_active(audit.campaign):
            raise PreconditionError(
                "the audit belongs to a campaign that has not ended",
                reason="CAMPAIGN_NOT_ENDED",
                metadata={"campaign": audit.campaign},
            )
        if await self._retention.delete(request.id):
            await self._auditor.announce()
        return Empty()

    async def GetReport(self, request: GetReportRequest, context: Context) -> AsyncIterator[GetReportResponse]:
        """Stream the report of an audit that has succeeded."""
        audit = await self._find(request.id)
        await self._check_shown(audit)
        reports = await self._database.evidence.reports(request.id)
        if audit.state != AUDIT_STATE_SUCCEEDED or reports is None:
            state = _state_of(audit)
            raise PreconditionError(
                f"there is no report of an audit in state {state['state']}", reason="REPORT_NOT_READY", metadata=state
            )
        form = _FORMS.get(request.format, _FORMS[ReportFormat.REPORT_FORMAT_JSON])
        if not form.digest(reports):
            raise PreconditionError(
                "the audit ended before its observations could be exported; run it again", reason="REPORT_NOT_KEPT"
            )
        digest = await self._whole_report(request.id, form, reports)
        size, pieces = await self._threads.run(self._store.pieces, digest, CHUNK_BYTES)
        response = GetReportResponse(media_type=form.media_type, size_bytes=size)
        async for piece in in_turn(pieces, self._threads):
            response.chunk = piece
            yield response
            response = GetReportResponse()

    async def ReadArtifact(self, request: ReadArtifactRequest, context: Context) -> AsyncIterator[ReadArtifactResponse]:
        """Stream an artefact of an audit."""
        await self._check_shown(await self._find(request.id))
        if not DIGEST.fullmatch(request.digest) or not await self._database.evidence.may_read(
            request.id, request.digest
        ):
            raise NotFoundError("the audit has no artefact with this digest", reason="ARTIFACT_NOT_FOUND")
        try:
            size, pieces = await self._threads.run(self._store.pieces, request.digest, CHUNK_BYTES)
        except NotFoundError:
            raise DataLossError("the artefact is lost; run the same audit again to make it again") from None
        response = ReadArtifactResponse(size_bytes=size)
        first = True
        async for piece in in_turn(pieces, self._threads):
            if first:
                png = piece.startswith(b"\x89PNG\r\n\x1a\n")
                response.media_type, first = "image/png" if png else "application/octet-stream", False
            response.chunk = piece
            yield response
            response = ReadArtifactResponse()

    async def ListEvaluations(self, request: ListEvaluationsRequest, context: Context) -> ListEvaluationsResponse:
        """List all evaluations and presets."""
        descriptions = await self._auditor.units.descriptions()
        return ListEvaluationsResponse(
            evaluations=[descriptions[name] for name in sorted(descriptions)],
            presets=[preset.message(descriptions) for preset in PRESETS.values()],
        )

    async def _whole_report(self, audit_id: str, form: _Form, reports: Reports) -> str:
        """Return the digest of the report in one form, after rendering it again if it is lost or damaged."""
        if await self._threads.run(self._store.whole, form.digest(reports)):
            return form.digest(reports)
        async with self._rendering.turn():
            # Another call may have rendered it while this one waited.
            if await self._threads.run(self._store.whole, form.digest(reports)):
                return form.digest(reports)
            again = await self._auditor.conclusion.render_again(audit_id)
        if again is None:
            raise NotFoundError(f"the audit {audit_id!r} was deleted", reason="AUDIT_NOT_FOUND")
        return form.digest(again)

    async def _repeated(self, request_id: str, digest: str) -> Audit | None:
        found = await self._database.audits.by_request(request_id, CALLER.get().tenant)
        if found is None:
            return None
        audit, known = found
        if known != digest:
            raise AlreadyExistsError(
                "another request used this request_id; choose a new one for a new audit",
                reason="REQUEST_ID_REUSED",
                metadata={"audit": audit.id},
            )
        if audit.state == AUDIT_STATE_PENDING:
            # The first call may have ended before it could begin the workflow.
            self._auditor.begin(audit.id)
        return audit

    async def _check_shown(self, audit: Audit) -> None:
        """Refuse what would show the seed base that the backend drew for a campaign, before the campaign has ended."""
        if audit.campaign and await self._database.audits.hidden(audit.id):
            raise PreconditionError(
                "the audit's report and artefacts can be read once its campaign has ended: they would show the seeds "
                "that the campaign's other audits still use",
                reason="CAMPAIGN_NOT_ENDED",
                metadata={"campaign": audit.campaign},
            )

    async def _ended(self, audit_id: str) -> bool | None:
        audit = await self._database.audits.get(audit_id)
        return None if audit is None else audit.state in ENDED

    async def _find(self, audit_id: str) -> Audit:
        if not audit_id:
            raise InvalidRequestError.of(FieldViolation("id", "must be an audit's id"))
        # Another tenant's audit gets the same answer as one that does not exist.
        audit = (
            await self._database.audits.owned(audit_id, CALLER.get().tenant) if AUDIT_ID.fullmatch(audit_id) else None
        )
        if audit is None:
            raise NotFoundError(
                "there is no audit with this id", reason="AUDIT_NOT_FOUND", metadata={"audit": audit_id[:64]}
            )
        return audit


def _digest(request: CreateAuditRequest) -> str:
    """Return the digest that tells a repeated request from another one.

    A request without what came after version 0.1.0 has the digest that it had there.
    """
    asked = CreateAuditRequest(spec=request.spec, labels=request.labels, webhook=request.webhook)
    plain = asked == CreateAuditRequest(spec=request.spec)
    return hashlib.sha256((request.spec if plain else asked).SerializeToString(deterministic=True)).hexdigest()


def _basic(audit: Audit) -> Audit:
    """Return an audit without its verdict's figures."""
    if audit.HasField("verdict"):
        whole = audit.verdict
        basic = Verdict(
            conclusion=whole.conclusion, statement=whole.statement, summary=whole.summary, damaged=whole.damaged
        )
        audit.verdict.CopyFrom(basic)
    return audit


def _state_of(audit: Audit) -> dict[str, str]:
    return {"state": AuditState.Name(audit.state).removeprefix("AUDIT_STATE_")}
