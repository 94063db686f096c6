"""A small real server of the public contract, which misbehaves on request in ways that a healthy backend does not."""

# Methods have the names of the RPCs.
# ruff: noqa: N802

import asyncio
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from support.scripted_campaigns import Campaigns, CampaignScript, Server, registration
from unerase import AsyncClient, ClientSettings, RetryConfig
from unerase.v1 import audits_pb2_grpc, campaigns_pb2_grpc, models_pb2_grpc, server_pb2_grpc
from unerase.v1.audits_pb2 import (
    Audit,
    AuditCost,
    AuditEvent,
    AuditSpec,
    AuditState,
    BatteryPreset,
    GetReportResponse,
    ListAuditsResponse,
    ListEvaluationsResponse,
    ReadArtifactResponse,
    Report,
    ReportFormat,
    UnitDone,
)
from unerase.v1.models_pb2 import (
    CreateConceptRequest,
    ListBackbonesResponse,
    ListConceptsResponse,
    ListModelsResponse,
    Model,
    ModelCheck,
    ModelFamily,
)
from unerase.v1.types_pb2 import Concept, EvaluationDescription, ModelRole, NotApplicable
from unerase.v1.verdicts_pb2 import Conclusion, Outcome

AUDIT_ID = "a1"
EVENTS = 6


def event(sequence: int) -> AuditEvent:
    """Return an event of the audit: running, four units, the end."""
    if sequence == 1:
        return AuditEvent(
            sequence=1, state_changed=Audit(id=AUDIT_ID, state=AuditState.AUDIT_STATE_RUNNING, units_total=4)
        )
    if sequence == EVENTS:
        return AuditEvent(
            sequence=EVENTS, state_changed=Audit(id=AUDIT_ID, state=AuditState.AUDIT_STATE_SUCCEEDED, units_total=4)
        )
    return AuditEvent(
        sequence=sequence,
        unit_done=UnitDone(
            unit=f"standard-prompt/subject/{sequence}",
            evaluation="standard-prompt",
            role=ModelRole.MODEL_ROLE_SUBJECT,
            observations=6,
        ),
    )


def ended_audit() -> Audit:
    """An audit that has succeeded, with a small verdict."""
    audit = Audit(id=AUDIT_ID, state=AuditState.AUDIT_STATE_SUCCEEDED)
    audit.spec.subject, audit.spec.concept = "testbed/uce", "hourglass"
    verdict = audit.verdict
    verdict.conclusion = Conclusion.CONCLUSION_AVOIDED
    verdict.statement = "hourglass is avoided, not removed."
    verdict.evidence.append("Textual inversion recovers it in 24 of 24 cases.")
    result = verdict.evaluations.add(
        name="textual-inversion", title="Textual inversion", outcome=Outcome.OUTCOME_RECOVERS
    )
    result.subject.hits = result.subject.cases = result.control.cases = 24
    result.excess.value, result.excess.p_holm = 1.0, 2e-7
    verdict.likelihood.destruction.value = 0.04
    verdict.likelihood.general_damage.value = 0.01
    return audit


PRESETS = [BatteryPreset(name="quick", steps=10, cases=24), BatteryPreset(name="standard", cases=48)]


@dataclass
class Script:
    """What the server does, and the requests that it got; a failure is a function that ends the call."""

    failures: dict[str, list[Callable[[grpc.ServicerContext], None]]] = field(default_factory=dict)
    # The number of events sent on each connection before it breaks; further connections run to the end.
    breaks: list[int] = field(default_factory=list)
    # The number of events that are sent again at the start of a connection, or left out there.
    repeated: int = 0
    skipped: int = 0
    after_break: Callable[[grpc.ServicerContext], None] | None = None
    state: "AuditState.ValueType" = AuditState.AUDIT_STATE_SUCCEEDED
    after_cancel: "AuditState.ValueType" = AuditState.AUDIT_STATE_CANCELLED
    report: Report = field(default_factory=lambda: Report(schema_version="1.0", audit_id=AUDIT_ID))
    parquet: bytes = b"PAR1"
    # The content of the catalogue, listed two on a page.
    checks: dict[str, ModelCheck] = field(default_factory=dict)
    models: list[Model] = field(default_factory=lambda: [Model(name=f"m{index}") for index in range(5)])
    families: list[ModelFamily] = field(default_factory=lambda: [ModelFamily(name="stable-diffusion")])
    concepts: list[Concept] = field(default_factory=lambda: [Concept(name=f"c{index}") for index in range(3)])
    audits: list[Audit] = field(default_factory=lambda: [Audit(id=f"a{index}") for index in range(5)])
    evaluations: list[EvaluationDescription] = field(
        default_factory=lambda: [EvaluationDescription(name="noise-based")]
    )
    # Evaluations of every audit that do not apply to its models, with the reasons.
    inapplicable: dict[str, str] = field(default_factory=dict)
    # The cost of an audit that is only planned, and the audit that has ended.
    cost: AuditCost = field(default_factory=AuditCost)
    ended: Audit = field(default_factory=ended_audit)
    truncate: bool = False
    # Replaces the name of every unit, if it is not empty.
    unit: str = ""
    # The number of reports that break after their first piece.
    report_breaks: int = 0
    # Extra bytes in every audit.
    padding: int = 0
    requests: list[Message] = field(default_factory=list)
    campaign: CampaignScript = field(default_factory=CampaignScript)
    # The messages of each upload.
    uploads: list[list[CreateConceptRequest]] = field(default_factory=list)

    def begin(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        """Record a request, and fail if the script says so."""
        self.requests.append(request)
        failures = self.failures.get(method)
        if failures:
            failures.pop(0)(context)

    def seen(self, kind: type[Message]) -> list[Message]:
        """Return the requests of one kind."""
        return [request for request in self.requests if isinstance(request, kind)]


def until_inactive(context: grpc.ServicerContext) -> None:
    """Send nothing for as long as the client waits."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(60)


def failing(
    code: grpc.StatusCode, message: str = "no", *details: Message, reason: str = ""
) -> Callable[[grpc.ServicerContext], None]:
    """Return a failure with google.rpc.Status details."""

    def fail(context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=code.value[0], message=message)
        if reason:
            status.details.add().Pack(
                error_details_pb2.ErrorInfo(reason=reason, domain="unerase", metadata={"model": "x"})
            )
        for detail in details:
            status.details.add().Pack(detail)
        assert code_pb2.Code.Name(status.code) == code.name
        context.abort_with_status(rpc_status.to_status(status))

    return fail


class _Audits(audits_pb2_grpc.AuditServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def CreateAudit(self, request, context):
        self._script.begin("CreateAudit", request, context)
        spec = AuditSpec()
        spec.CopyFrom(request.spec)
        for name, reason in self._script.inapplicable.items():
            spec.battery.evaluations.add(name=name, not_applicable=NotApplicable(reason=reason))
        if request.validate_only:
            return Audit(spec=spec, cost=self._script.cost)
        return Audit(id=AUDIT_ID, request_id=request.request_id, spec=spec)

    def GetAudit(self, request, context):
        self._script.begin("GetAudit", request, context)
        audit = Audit()
        audit.CopyFrom(self._script.ended)
        audit.verdict.statement += " " * self._script.padding
        audit.state = self._script.state
        if audit.state == AuditState.AUDIT_STATE_FAILED:
            audit.error_reason, audit.error_message = "DATA_LOSS", "an artefact is damaged"
        return audit

    def ListAudits(self, request, context):
        self._script.begin("ListAudits", request, context)
        first = int(request.page_token or 0)
        last = min(first + request.page_size, len(self._script.audits))
        page = self._script.audits[first:last]
        return ListAuditsResponse(audits=page, next_page_token=str(last) if last < len(self._script.audits) else "")

    def WatchAudit(self, request, context):
        self._script.begin("WatchAudit", request, context)
        script = self._script
        start = request.after_sequence + 1
        stop = EVENTS + 1
        breaks = script.breaks.pop(0) if script.breaks else None
        if breaks is not None:
            stop = min(stop, start + breaks)
        for sequence in range(max(1, start - script.repeated) + script.skipped, stop):
            sent = event(sequence)
            if self._script.unit and sent.HasField("unit_done"):
                sent.unit_done.unit = sent.unit_done.evaluation = self._script.unit
            yield sent
        if breaks is not None and script.after_break is not None:
            script.after_break(context)

    def CancelAudit(self, request, context):
        self._script.begin("CancelAudit", request, context)
        return Audit(id=request.id, state=self._script.after_cancel)

    def DeleteAudit(self, request, context):
        self._script.begin("DeleteAudit", request, context)
        return Empty()

    def GetReport(self, request, context):
        self._script.begin("GetReport", request, context)
        if request.format == ReportFormat.REPORT_FORMAT_HTML:
            content = b"<!doctype html>" * 9
        elif request.format == ReportFormat.REPORT_FORMAT_PARQUET:
            content = self._script.parquet
        else:
            content = json_format.MessageToJson(self._script.report).encode()
        for at in range(0, len(content), 16):
            if at and self._script.report_breaks:
                self._script.report_breaks -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            first = {"media_type": "text/html", "size_bytes": len(content)} if at == 0 else {}
            yield GetReportResponse(chunk=content[at : at + 16], **first)
            if self._script.truncate:
                return

    def ReadArtifact(self, request, context):
        self._script.begin("ReadArtifact", request, context)
        yield ReadArtifactResponse(chunk=b"\x89PNG", media_type="image/png", size_bytes=8)
        yield ReadArtifactResponse(chunk=request.digest.encode()[:4])

    def ListEvaluations(self, request, context):
        self._script.begin("ListEvaluations", request, context)
        return ListEvaluationsResponse(evaluations=self._script.evaluations, presets=PRESETS)


class _Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, script: Script) -> None:
        self._script = script

    def RegisterModel(self, request, context):
        self._script.begin("RegisterModel", request, context)
        return registration(self._script, request.model.name, request.request_id)

    def ImportStatus(self, request, context):
        self._script.begin("ImportStatus", request, context)
        return registration(self._script, request.name)

    def DeleteModel(self, request, context):
        self._script.begin("DeleteModel", request, context)
        return Empty()

    def ListModels(self, request, context):
        self._script.begin("ListModels", request, context)
        first = int(request.page_token or 0)
        models = self._script.models
        token = str(first + 2) if first + 2 < len(models) else ""
        return ListModelsResponse(models=models[first : first + 2], next_page_token=token)

    def GetModel(self, request, context):
        self._script.begin("GetModel", request, context)
        return Model(name=request.name)

    def CheckModel(self, request, context):
        self._script.begin("CheckModel", request, context)
        return self._script.checks.get(request.name, ModelCheck(name=request.name, family="Stable Diffusion 1"))

    def ListBackbones(self, request, context):
        self._script.begin("ListBackbones", request, context)
        return ListBackbonesResponse(families=self._script.families)

    def ListConcepts(self, request, context):
        first = int(request.page_token or 0)
        concepts = self._script.concepts
        token = str(first + 2) if first + 2 < len(concepts) else ""
        return ListConceptsResponse(concepts=concepts[first : first + 2], next_page_token=token)

    def CreateConcept(self, requests, context):
        upload = list(requests)
        self._script.uploads.append(upload)
        self._script.begin("CreateConcept", upload[0], context)
        concept = Concept(custom=True)
        concept.MergeFrom(upload[0].concept.concept)
        for message in upload[1:]:
            if message.picture.last:
                kind = concept.near_miss_digests if message.picture.near_miss else concept.picture_digests
                kind.append(f"{len(kind):064}")
        return concept

    def GetConcept(self, request, context):
        self._script.begin("GetConcept", request, context)
        return Concept(name=request.name)

    def DeleteConcept(self, request, context):
        self._script.begin("DeleteConcept", request, context)
        return Empty()


def serve(script: Script, address: str, credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, int]:
    """Start a server and return it with its port."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    audits_pb2_grpc.add_AuditServiceServicer_to_server(_Audits(script), server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(_Models(script), server)
    campaigns_pb2_grpc.add_CampaignServiceServicer_to_server(Campaigns(script), server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(Server(script), server)
    states = health.HealthServicer()
    states.set("draining", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    return server, port


QUICK = ClientSettings(
    timeout_seconds=5,
    watch_patience_seconds=5,
    retry=RetryConfig(max_attempts=4, initial_backoff_seconds=0.01, max_backoff_seconds=0.05),
)


class Blocking:
    """An AsyncClient with blocking methods, so that one test works for both clients."""

    def __init__(self, address: str, settings: ClientSettings = QUICK) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = AsyncClient(address, settings=settings)

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __getattr__(self, name: str) -> Callable[..., object]:
        method = getattr(self._client, name)

        def call(*arguments: object, **options: object) -> object:
            return asyncio.run_coroutine_threadsafe(_finished(method(*arguments, **options)), self._loop).result(60)

        return call


async def _finished(result):
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return await result
