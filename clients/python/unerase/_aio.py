"""The client for asyncio, with the same methods as `Client`."""

# `timeout` is a deadline that is sent to the backend, and the same argument as in Client.
# ruff: noqa: ASYNC109
# grpc's classes are generic for type checkers only.
from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from unerase._arrow import need_arrow, table_of
from unerase._errors import UneraseError, error_of
from unerase._repeating import Attempts, new_id
from unerase._settings import DEFAULT_ADDRESS, ClientSettings, call_metadata, channel_options, trace_metadata
from unerase._transfers import Piece, joined, upload_of
from unerase._watching import ENDED, Watching, closed
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
)
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.models_pb2 import (
    CheckModelRequest,
    DeleteConceptRequest,
    GetConceptRequest,
    GetModelRequest,
    ListConceptsRequest,
    ListModelsRequest,
    Model,
    ModelCheck,
)
from unerase.v1.models_pb2_grpc import ModelServiceStub
from unerase.v1.types_pb2 import Concept

if TYPE_CHECKING:
    import pyarrow

    from unerase.v1.audits_pb2_grpc import AuditServiceAsyncStub
    from unerase.v1.models_pb2_grpc import ModelServiceAsyncStub

Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncClient:
    """A connection to a backend, opened by the first call, in the event loop of that call.

    Every method raises `UneraseError`. A timeout is in seconds and covers all attempts; None takes the settings' own.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, settings: ClientSettings | None = None) -> None:
        self._address = address
        self._settings = settings or ClientSettings()
        self._token = call_metadata(address, self._settings)
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the next call opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def create_audit(
        self,
        spec: AuditSpec,
        *,
        request_id: str | None = None,
        validate_only: bool = False,
        timeout: float | None = None,
    ) -> Audit:
        """Create an audit and return it as accepted, with every default filled in.

        The `request_id`, generated unless given, makes the call safe to repeat: the same id and spec give the same
        audit. With `validate_only` the audit is planned but not run: it has no id, and `cost` says what it would take.
        """
        request = CreateAuditRequest(request_id=new_id(request_id), spec=spec, validate_only=validate_only)
        return await self._ask(self._audits().CreateAudit, request, timeout, creates=True)

    async def get_audit(self, audit_id: str, *, timeout: float | None = None) -> Audit:
        """Return the audit as it is now."""
        return await self._ask(self._audits().GetAudit, GetAuditRequest(id=audit_id), timeout)

    async def audits(
        self,
        *,
        page_size: int = 100,
        view: AuditView.ValueType = AuditView.AUDIT_VIEW_BASIC,
        timeout: float | None = None,
    ) -> AsyncIterator[Audit]:
        """Yield all audits, newest first, fetched page by page; only the full `view` has the verdicts' figures."""
        token = ""
        while True:
            request = ListAuditsRequest(page_size=page_size, page_token=token, view=view)
            page = await self._ask(self._audits().ListAudits, request, timeout)
            for audit in page.audits:
                yield audit
            token = page.next_page_token
            if not token:
                return

    async def watch(
        self, audit_id: str, after_sequence: int = 0, *, timeout: float | None = None
    ) -> AsyncIterator[AuditEvent]:
        """Yield the audit's events after `after_sequence` until it ends, each once and in order.

        After a broken connection or a restart of the backend, it resumes after the last event. Without a `timeout` it
        watches as long as the backend answers.
        """
        watching = Watching(audit_id, after_sequence, self._settings, timeout)
        channel = self._open()
        while True:
            failure: UneraseError | None = None
            try:
                call = self._audits().WatchAudit(
                    watching.request(), timeout=watching.remaining(), metadata=self._metadata()
                )
                try:
                    async for event in call:
                        if watching.accept(event):
                            yield event
                finally:
                    call.cancel()
                # A stream that begins after the last event is empty: only the audit itself says that it has ended.
                if watching.ended:
                    return
                if watching.idle and (await self.get_audit(audit_id, timeout=watching.asking())).state in ENDED:
                    return
            except grpc.RpcError as error:
                failure = error_of(error)
            except UneraseError as error:
                failure = error
            except asyncio.CancelledError:
                if self._cancelled(channel):
                    raise
                failure = closed()
            wait = watching.delay(failure)
            if self._channel is channel:
                await asyncio.sleep(wait)
            # The caller closed the client meanwhile: stop.
            if self._channel is not channel:
                raise failure or closed()

    async def audit(
        self,
        spec: AuditSpec,
        *,
        request_id: str | None = None,
        on_event: Callable[[AuditEvent], None] | None = None,
        timeout: float | None = None,
    ) -> Audit:
        """Create an audit, watch it until it ends and return it: succeeded with its verdict, failed or cancelled.

        `on_event` is called with each event. A `timeout` ends the waiting, not the audit; the error then holds the
        audit's id in `metadata["audit"]`.
        """
        audit = await self.create_audit(spec, request_id=request_id)
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

    async def serving(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether a service is being served, by its full name; without a name, the backend as a whole.

        NOT_FOUND means that the service does not exist. Needs no token.
        """
        stub = health_pb2_grpc.HealthStub(self._open())
        answer = await self._ask(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def evaluations(self, *, timeout: float | None = None) -> ListEvaluationsResponse:
        """Return the available evaluations with their parameters, and the presets."""
        return await self._ask(self._audits().ListEvaluations, ListEvaluationsRequest(), timeout)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """Return the models of the catalogue, in order of name."""
        models: list[Model] = []
        token = ""
        while True:
            page = await self._ask(self._catalogue().ListModels, ListModelsRequest(page_token=token), timeout)
            models += page.models
            token = page.next_page_token
            if not token:
                return models

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """Return one model of the catalogue."""
        return await self._ask(self._catalogue().GetModel, GetModelRequest(name=name), timeout)

    async def check_model(self, name: str, *, timeout: float | None = None) -> ModelCheck:
        """Return what is wrong with a model, and what memory it needs, as far as that is known without computing."""
        return await self._ask(self._catalogue().CheckModel, CheckModelRequest(name=name), timeout)

    async def concepts(self, *, timeout: float | None = None) -> list[Concept]:
        """Return the concepts of the catalogue, the custom ones included, in order of name."""
        concepts: list[Concept] = []
        token = ""
        while True:
            page = await self._ask(self._catalogue().ListConcepts, ListConceptsRequest(page_token=token), timeout)
            concepts += page.concepts
            token = page.next_page_token
            if not token:
                return concepts

    async def concept(self, name: str, *, timeout: float | None = None) -> Concept:
        """Return one concept, of the catalogue or custom."""
        return await self._ask(self._catalogue().GetConcept, GetConceptRequest(name=name), timeout)

    async def create_concept(
        self,
        concept: Concept,
        pictures: Sequence[bytes] = (),
        near_misses: Sequence[bytes] = (),
        *,
        tile: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Concept:
        """Create a custom concept and return it with the digests of its pictures.

        Pictures are square files of PNG, JPEG or WebP, all of one size; with a `tile`, each is a sheet of square tiles
        with that side.
        The `request_id`, generated unless given, makes the call safe to repeat: the same id and content give the same
        concept.
        """
        request_id = new_id(request_id)
        create = self._catalogue().CreateConcept
        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds, creates=True)
        return await self._repeated(
            attempts,
            lambda limit: create(
                upload_of(concept, pictures, near_misses, tile, request_id), timeout=limit, metadata=self._metadata()
            ),
        )

    async def delete_concept(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a custom concept; audits of it keep what they hold."""
        await self._ask(self._catalogue().DeleteConcept, DeleteConceptRequest(name=name), timeout, safe=False)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._token, *trace_metadata(self._settings))

    async def _ask(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        *,
        safe: bool = True,
        creates: bool = False,
    ) -> Response:
        attempts = Attempts(self._settings, timeout, safe=safe, creates=creates)
        return await self._repeated(attempts, lambda limit: method(request, timeout=limit, metadata=self._metadata()))

    async def _fetch(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Piece], request: Request, timeout: float | None
    ) -> bytes:
        async def pieces(limit: float) -> list[Piece]:
            return [piece async for piece in method(request, timeout=limit, metadata=self._metadata())]

        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds)
        return joined(await self._repeated(attempts, pieces))

    async def _repeated(self, attempts: Attempts, call: Callable[[float], Awaitable[Response]]) -> Response:
        """Return the answer of a call, which gets the seconds it may take; repeat it where that is safe."""
        channel = self._open()
        while True:
            try:
                return await call(attempts.remaining())
            except grpc.RpcError as error:
                failure = error_of(error)
            except asyncio.CancelledError:
                if self._cancelled(channel):
                    raise
                raise closed() from None
            wait = attempts.delay(failure)
            if self._channel is channel:
                await asyncio.sleep(wait)
            # The caller closed the client meanwhile: stop.
            if self._channel is not channel:
                raise failure

    def _cancelled(self, channel: grpc.aio.Channel) -> bool:
        """Say whether the caller's own task was cancelled, and not only a call whose client was closed meanwhile."""
        task = asyncio.current_task()
        return self._channel is channel or (task is not None and task.cancelling() > 0)

    def _audits(self) -> AuditServiceAsyncStub:
        return AuditServiceStub(self._open())

    def _catalogue(self) -> ModelServiceAsyncStub:
        return ModelServiceStub(self._open())

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = channel_options(self._address, self._settings)
            tls = self._settings.tls
            if tls is None:
                self._channel = grpc.aio.insecure_channel(self._address, options=options)
            else:
                credentials = grpc.ssl_channel_credentials(
                    tls.root_certificates, tls.client_key, tls.client_certificate
                )
                self._channel = grpc.aio.secure_channel(self._address, credentials, options=options)
        return self._channel
