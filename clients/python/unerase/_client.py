"""The synchronous client."""

# grpc's classes are generic for type checkers only.
from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from unerase._arrow import need_arrow, table_of
from unerase._errors import UneraseError, error_of
from unerase._interrupting import interruptible
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

Request = TypeVar("Request")
Response = TypeVar("Response")


class Client:
    """A connection to a backend, opened by the first call; safe to share between threads.

    Every method raises `UneraseError`. A timeout is in seconds and covers all attempts; None takes the settings' own.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, settings: ClientSettings | None = None) -> None:
        self._address = address
        self._settings = settings or ClientSettings()
        self._token = call_metadata(address, self._settings)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def create_audit(
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
        return self._ask(self._audits().CreateAudit, request, timeout, creates=True)

    def get_audit(self, audit_id: str, *, timeout: float | None = None) -> Audit:
        """Return the audit as it is now."""
        return self._ask(self._audits().GetAudit, GetAuditRequest(id=audit_id), timeout)

    def audits(
        self,
        *,
        page_size: int = 100,
        view: AuditView.ValueType = AuditView.AUDIT_VIEW_BASIC,
        timeout: float | None = None,
    ) -> Iterator[Audit]:
        """Yield all audits, newest first, fetched page by page; only the full `view` has the verdicts' figures."""
        token = ""
        while True:
            request = ListAuditsRequest(page_size=page_size, page_token=token, view=view)
            page = self._ask(self._audits().ListAudits, request, timeout)
            yield from page.audits
            token = page.next_page_token
            if not token:
                return

    def watch(self, audit_id: str, after_sequence: int = 0, *, timeout: float | None = None) -> Iterator[AuditEvent]:
        """Yield the audit's events after `after_sequence` until it ends, each once and in order.

        After a broken connection or a restart of the backend, it resumes after the last event. Without a `timeout` it
        watches as long as the backend answers.
        """
        watching = Watching(audit_id, after_sequence, self._settings, timeout)
        channel = self._open()
        while True:
            failure: UneraseError | None = None
            try:
                call = interruptible(
                    lambda: self._audits().WatchAudit(
                        watching.request(), timeout=watching.remaining(), metadata=self._metadata()
                    )
                )
                try:
                    while (event := interruptible(lambda: next(call, None))) is not None:  # noqa: B023
                        if watching.accept(event):
                            yield event
                finally:
                    call.cancel()
                # A stream that begins after the last event is empty: only the audit itself says that it has ended.
                if watching.ended:
                    return
                if watching.idle and (self.get_audit(audit_id, timeout=watching.asking())).state in ENDED:
                    return
            except grpc.RpcError as error:
                failure = error_of(error)
            except UneraseError as error:
                failure = error
            wait = watching.delay(failure)
            if self._channel is channel:
                time.sleep(wait)
            # The caller closed the client meanwhile: stop.
            if self._channel is not channel:
                raise failure or closed()

    def audit(
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
        audit = self.create_audit(spec, request_id=request_id)
        try:
            for event in self.watch(audit.id, timeout=timeout):
                if on_event is not None:
                    on_event(event)
            return self.get_audit(audit.id)
        except UneraseError as error:
            error.metadata.setdefault("audit", audit.id)
            raise

    def cancel(self, audit_id: str, *, timeout: float | None = None) -> Audit:
        """Cancel the audit; an audit that has ended stays as it is."""
        return self._ask(self._audits().CancelAudit, CancelAuditRequest(id=audit_id), timeout)

    def delete(self, audit_id: str, *, timeout: float | None = None) -> None:
        """Delete an audit that has ended."""
        self._ask(self._audits().DeleteAudit, DeleteAuditRequest(id=audit_id), timeout, safe=False)

    def report(
        self,
        audit_id: str,
        format: ReportFormat.ValueType = ReportFormat.REPORT_FORMAT_HTML,
        *,
        timeout: float | None = None,
    ) -> bytes:
        """Return the report of an audit that has succeeded: one HTML file, or JSON, in UTF-8."""
        request = GetReportRequest(id=audit_id, format=format)
        return self._fetch(self._audits().GetReport, request, timeout)

    def report_json(self, audit_id: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return the report as the dictionary that docs/report.schema.json describes."""
        report: dict[str, Any] = json.loads(self.report(audit_id, ReportFormat.REPORT_FORMAT_JSON, timeout=timeout))
        return report

    def report_message(self, audit_id: str, *, timeout: float | None = None) -> Report:
        """Return the report as a message."""
        content = self.report(audit_id, ReportFormat.REPORT_FORMAT_JSON, timeout=timeout)
        return json_format.Parse(content, Report())

    def report_parquet(self, audit_id: str, *, timeout: float | None = None) -> bytes:
        """Return the observations of an audit that has succeeded, as the Parquet file that `unerase verdict` reads."""
        return self.report(audit_id, ReportFormat.REPORT_FORMAT_PARQUET, timeout=timeout)

    def observations(self, audit_id: str, *, timeout: float | None = None) -> pyarrow.Table:
        """Return the observations of an audit that has succeeded as an Arrow table, one row for each observation.

        Needs pyarrow: `pip install 'unerase[arrow]'`. docs/client.md lists the columns.
        """
        need_arrow()
        content = self.report_parquet(audit_id, timeout=timeout)
        return table_of(content)

    def artifact(self, audit_id: str, digest: str, *, timeout: float | None = None) -> bytes:
        """Return an artefact of the audit, such as a PNG, by the SHA-256 that the report gives."""
        return self._fetch(self._audits().ReadArtifact, ReadArtifactRequest(id=audit_id, digest=digest), timeout)

    def serving(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Return whether a service is being served, by its full name; without a name, the backend as a whole.

        NOT_FOUND means that the service does not exist. Needs no token.
        """
        stub = health_pb2_grpc.HealthStub(self._open())
        answer = self._ask(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def evaluations(self, *, timeout: float | None = None) -> ListEvaluationsResponse:
        """Return the available evaluations with their parameters, and the presets."""
        return self._ask(self._audits().ListEvaluations, ListEvaluationsRequest(), timeout)

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Return the models of the catalogue, in order of name."""
        models: list[Model] = []
        token = ""
        while True:
            page = self._ask(self._catalogue().ListModels, ListModelsRequest(page_token=token), timeout)
            models += page.models
            token = page.next_page_token
            if not token:
                return models

    def model(self, name: str, *, timeout: float | None = None) -> Model:
        """Return one model of the catalogue."""
        return self._ask(self._catalogue().GetModel, GetModelRequest(name=name), timeout)

    def check_model(self, name: str, *, timeout: float | None = None) -> ModelCheck:
        """Return what is wrong with a model, and what memory it needs, as far as that is known without computing."""
        return self._ask(self._catalogue().CheckModel, CheckModelRequest(name=name), timeout)

    def concepts(self, *, timeout: float | None = None) -> list[Concept]:
        """Return the concepts of the catalogue, the custom ones included, in order of name."""
        concepts: list[Concept] = []
        token = ""
        while True:
            page = self._ask(self._catalogue().ListConcepts, ListConceptsRequest(page_token=token), timeout)
            concepts += page.concepts
            token = page.next_page_token
            if not token:
                return concepts

    def concept(self, name: str, *, timeout: float | None = None) -> Concept:
        """Return one concept, of the catalogue or custom."""
        return self._ask(self._catalogue().GetConcept, GetConceptRequest(name=name), timeout)

    def create_concept(
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
        return self._repeated(
            attempts,
            lambda limit: create(
                upload_of(concept, pictures, near_misses, tile, request_id), timeout=limit, metadata=self._metadata()
            ),
        )

    def delete_concept(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a custom concept; audits of it keep what they hold."""
        self._ask(self._catalogue().DeleteConcept, DeleteConceptRequest(name=name), timeout, safe=False)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (*self._token, *trace_metadata(self._settings))

    def _ask(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout: float | None,
        *,
        safe: bool = True,
        creates: bool = False,
    ) -> Response:
        attempts = Attempts(self._settings, timeout, safe=safe, creates=creates)
        return self._repeated(attempts, lambda limit: method(request, timeout=limit, metadata=self._metadata()))

    def _fetch(
        self, method: grpc.UnaryStreamMultiCallable[Request, Piece], request: Request, timeout: float | None
    ) -> bytes:
        def pieces(limit: float) -> list[Piece]:
            return list(method(request, timeout=limit, metadata=self._metadata()))

        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds)
        return joined(self._repeated(attempts, pieces))

    def _repeated(self, attempts: Attempts, call: Callable[[float], Response]) -> Response:
        """Return the answer of a call, which gets the seconds it may take; repeat it where that is safe."""
        channel = self._open()
        while True:
            try:
                return interruptible(lambda: call(attempts.remaining()))
            except grpc.RpcError as error:
                failure = error_of(error)
            wait = attempts.delay(failure)
            if self._channel is channel:
                time.sleep(wait)
            # The caller closed the client meanwhile: stop.
            if self._channel is not channel:
                raise failure

    def _audits(self) -> AuditServiceStub:
        return AuditServiceStub(self._open())

    def _catalogue(self) -> ModelServiceStub:
        return ModelServiceStub(self._open())

    def _open(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                options = channel_options(self._address, self._settings)
                tls = self._settings.tls
                if tls is None:
                    self._channel = grpc.insecure_channel(self._address, options=options)
                else:
                    credentials = grpc.ssl_channel_credentials(
                        tls.root_certificates, tls.client_key, tls.client_certificate
                    )
                    self._channel = grpc.secure_channel(self._address, credentials, options=options)
            return self._channel
