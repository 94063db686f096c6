"""What the client does with audits."""

# `timeout` is a deadline that is sent to the backend, and the same argument as in Client.
# ruff: noqa: ASYNC109
from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from unerase._aio.connection import AsyncConnection
from unerase._arrow import need_arrow, table_of
from unerase._errors import UneraseError
from unerase._repeating import new_id
from unerase._watching import ENDED, Watching
from unerase.v1.audits_pb2 import (
    Audit,
    AuditEvent,
    AuditSpec,
    AuditView,
    CancelAuditRequest,
    CreateAuditRequest,
    DeleteAuditRequest,
    GetAuditRequest,
    GetReportRequest,
    ListAuditsRequest,
    ListEvaluationsRequest,
    ListEvaluationsResponse,
    ReadArtifactRequest,
    Report,
    ReportFormat,
    WatchAuditRequest,
)
from unerase.v1.audits_pb2_grpc import AuditServiceStub

if TYPE_CHECKING:
    import pyarrow

    from unerase.v1.audits_pb2_grpc import AuditServiceAsyncStub


class AsyncAuditCalls(AsyncConnection):
    """The calls of AuditService."""

    async def create_audit(
        self,
        spec: AuditSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        webhook: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> Audit:
        """Create an audit and return it as accepted, with every default filled in.

        The `request_id`, generated unless given, makes the call safe to repeat: the same id and content give the same
        audit. With `validate_only` the audit is planned but not run: it has no id, and `cost` says what it would take.
        The `webhook` is a URL that is told of the audit's end (docs/webhooks.md).
        """
        request = CreateAuditRequest(
            request_id=new_id(request_id), spec=spec, labels=labels, webhook=webhook, validate_only=validate_only
        )
        audit = await self._ask(self._audits().CreateAudit, request, timeout, creates=True)
        await self._check_contract()
        return audit

    async def get_audit(self, audit_id: str, *, timeout: float | None = None) -> Audit:
        """Return the audit as it is now."""
        return await self._ask(self._audits().GetAudit, GetAuditRequest(id=audit_id), timeout)

    async def audits(
        self,
        *,
        filter: str = "",
        order_by: str = "",
        page_size: int = 100,
        view: AuditView.ValueType = AuditView.AUDIT_VIEW_BASIC,
        timeout: float | None = None,
    ) -> AsyncIterator[Audit]:
        """Yield the audits, newest first, fetched page by page; only the full `view` has the verdicts' figures.

        `filter` and `order_by` are those of ListAuditsRequest, as in `state = FAILED AND labels.team = "safety"` and
        `end_time desc`.
        """
        request = ListAuditsRequest(page_size=page_size, view=view, filter=filter, order_by=order_by)
        async for page in self._pages(lambda: self._audits().ListAudits, request, timeout):
            for item in page.audits:
                yield item

    def watch(
        self, audit_id: str, after_sequence: int = 0, *, timeout: float | None = None
    ) -> AsyncIterator[AuditEvent]:
        """Yield the audit's events after `after_sequence` until it ends, each once and in order.

        After a broken connection or a restart of the backend, it resumes after the last event. Without a `timeout` it
        watches as long as the backend answers.
        """

        async def ended(seconds: float) -> bool:
            return (await self.get_audit(audit_id, timeout=seconds)).state in ENDED

        watching = Watching[AuditEvent]("audit", audit_id, after_sequence, self._settings, timeout)
        return self._watched(
            watching,
            lambda seconds: self._audits().WatchAudit(
                WatchAuditRequest(id=audit_id, after_sequence=watching.last), timeout=seconds, metadata=self._metadata()
            ),
            ended,
        )

    async def audit(
        self,
        spec: AuditSpec,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        webhook: str = "",
        on_event: Callable[[AuditEvent], None] | None = None,
        timeout: float | None = None,
    ) -> Audit:
        """Create an audit, watch it until it ends and return it: succeeded with its verdict, failed or cancelled.

        `on_event` is called with each event. A `timeout` ends the waiting, not the audit; the error then holds the
        audit's id in `metadata["audit"]`.
        """
        audit = await self.create_audit(spec, labels=labels, request_id=request_id, webhook=webhook)
        try:
            async for event in self.watch(audit.id, timeout=timeout):
                if on_event is not None:
                    on_event(event)
            return await self.get_audit(audit.id)
        except UneraseError as error:
            error.metadata.setdefault("audit", audit.id)
            raise

    async def cancel(self, audit_id: str, *, timeout: float | None = None) -> Audit:
        """Cancel the audit; an audit that has ended stays as it is."""
        return await self._ask(self._audits().CancelAudit, CancelAuditRequest(id=audit_id), timeout)

    async def delete(self, audit_id: str, *, timeout: float | None = None) -> None:
        """Delete an audit that has ended."""
        await self._ask(self._audits().DeleteAudit, DeleteAuditRequest(id=audit_id), timeout, safe=False)

    async def report(
        self,
        audit_id: str,
        format: ReportFormat.ValueType = ReportFormat.REPORT_FORMAT_HTML,
        *,
        timeout: float | None = None,
    ) -> bytes:
        """Return the report of an audit that has succeeded: one HTML file, or JSON, in UTF-8."""
        request = GetReportRequest(id=audit_id, format=format)
        return await self._fetch(self._audits().GetReport, request, timeout)

    async def report_json(self, audit_id: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the report as the dictionary that docs/report.schema.json describes."""
        report: dict[str, Any] = json.loads(
            await self.report(audit_id, ReportFormat.REPORT_FORMAT_JSON, timeout=timeout)
        )
        return report

    async def report_message(self, audit_id: str, *, timeout: float | None = None) -> Report:
        """Return the report as a message."""
        content = await self.report(audit_id, ReportFormat.REPORT_FORMAT_JSON, timeout=timeout)
        return json_format.Parse(content, Report())

    async def report_parquet(self, audit_id: str, *, timeout: float | None = None) -> bytes:
        """Return the observations of an audit that has succeeded, as the Parquet file that `unerase verdict` reads."""
        return await self.report(audit_id, ReportFormat.REPORT_FORMAT_PARQUET, timeout=timeout)

    async def observations(self, audit_id: str, *, timeout: float | None = None) -> pyarrow.Table:
        """Return the observations of an audit that has succeeded as an Arrow table, one row for each observation.

        Needs pyarrow: `pip install 'unerase[arrow]'`. docs/client.md lists the columns.
        """
        need_arrow()
        content = await self.report_parquet(audit_id, timeout=timeout)
        return await asyncio.to_thread(table_of, content)

    async def artifact(self, audit_id: str, digest: str, *, timeout: float | None = None) -> bytes:
        """Return an artefact of the audit, such as a PNG, by the SHA-256 that the report gives."""
        return await self._fetch(self._audits().ReadArtifact, ReadArtifactRequest(id=audit_id, digest=digest), timeout)

    async def evaluations(self, *, timeout: float | None = None) -> ListEvaluationsResponse:
        """Return the available evaluations with their parameters, and the presets."""
        return await self._ask(self._audits().ListEvaluations, ListEvaluationsRequest(), timeout)

    def _audits(self) -> AuditServiceAsyncStub:
        return AuditServiceStub(self._open())
