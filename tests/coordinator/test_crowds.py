"""A crowd at the coordinator's own port: what some do takes nothing from others, and each refusal has its reason."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.coordinators import free_port
from support.registering import nothing_registered
from unerase.v1 import audits_pb2
from unerase.v1.audits_pb2 import AUDIT_VIEW_FULL, Audit, AuditSpec, ListAuditsRequest, WatchAuditRequest
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.models_pb2 import CreateConceptRequest, ListConceptsRequest, NewConcept, PictureChunk
from unerase.v1.models_pb2_grpc import ModelServiceStub
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription
from unerase.v1.verdicts_pb2 import CONCLUSION_AVOIDED, EvaluationResult, Verdict
from unerase_backend.catalogue import Catalogue, CustomConcept
from unerase_backend.coordinator.api import call_limits, upload_limits
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.api.paging import MAX_PAGE_BYTES
from unerase_backend.coordinator.api.server import MAX_METADATA_BYTES, MAX_RECEIVE_BYTES, Server
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.runtime import tokens
from unerase_backend.runtime.access import SCOPES, Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.pictures import encode_picture

from .api.guarded import audit_service, campaign_service, server_info

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass
class Door:
    """A server with two tenants and what is behind it."""

    address: str
    database: Database
    tokens: dict[str, str]

    def channel(self) -> grpc.aio.Channel:
        # Each a connection of its own, and the limits of a client that sets none.
        return grpc.aio.insecure_channel(
            self.address, options=[("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        )

    def metadata(self, tenant: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.tokens[tenant]}"),)


@pytest.fixture
async def door(tmp_path: Path, catalogue: Catalogue, store: ArtifactStore) -> AsyncIterator[Door]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    file = tmp_path / "tokens.json"
    made = {tenant: tokens.create(file, tenant, tenant, list(SCOPES), 1) for tenant in ("greedy", "other")}
    audits, campaigns = audit_service(database, catalogue, store), campaign_service(database, catalogue, store)
    models = ModelServicer(catalogue, store, database, None, None, nothing_registered(catalogue, store, database), None)  # type: ignore[arg-type]
    server = Server(audits, campaigns, models, server_info(), Metrics(), Gate(file), domain_error)
    port = free_port()
    await server.start("127.0.0.1", port)
    yield Door(f"127.0.0.1:{port}", database, made)
    await server.stop(None)
    await database.close()


def reason_of(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """Return an error's reason, and when to come back."""
    reason, seconds = "", 0.0
    trailing = dict(error.trailing_metadata() or ())
    for detail in status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b"")).details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        if detail.Unpack(retry):
            seconds = retry.retry_delay.ToMilliseconds() / 1000
    return reason, seconds


async def said(call: Any) -> str | tuple[str, str, float]:
    """Return "OK", or the code, reason and delay of a call."""
    try:
        await call
    except grpc.RpcError as error:
        return (error.code().name, *reason_of(error))
    return "OK"


async def healthy(door: Door, seconds: float = 5) -> None:
    async with door.channel() as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("count", [258, 1500])
async def test_health_answers_however_many_anonymous_say_nothing(door: Door, count: int) -> None:
    """Calls of health without a message, from one connection and from several: every probe of others is answered."""
    channels = [door.channel() for _ in range(3)]
    silent = []
    for index in range(count):
        call = channels[index % 3].stream_unary("/grpc.health.v1.Health/Check")()
        silent.append(call)
    # Headers are sent before anything is waited for; the last call that the server has heard of answers another way.
    for channel in channels:
        await said(channel.unary_unary("/unerase.v1.AuditService/Nothing")(b"", timeout=20))
    for _ in range(19):
        await healthy(door)
    for call in silent:
        call.cancel()
    for channel in channels:
        await channel.close()


async def test_anonymous_do_not_wait_for_long(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "ANONYMOUS_SECONDS", 0.2)
    async with door.channel() as channel:
        call = channel.stream_unary("/grpc.health.v1.Health/Check")()
        assert await said(call) == ("DEADLINE_EXCEEDED", "REQUEST_LATE", 0.0)


async def test_of_anonymous_who_wait_the_last_ones_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = call_limits.AnonymousCalls(waiting=3)
    request = asyncio.Event()
    reasons: list[str] = []

    async def call() -> None:
        try:
            async with strangers.waits():
                await request.wait()
        except call_limits.ExhaustedError as error:
            reasons.append(error.reason)

    calls = [asyncio.create_task(call()) for _ in range(8)]
    await asyncio.wait(calls[:5], timeout=30)
    assert [each.done() for each in calls] == [True] * 5 + [False] * 3
    assert reasons == ["CALLS_FULL"] * 5
    request.set()
    await asyncio.gather(*calls)


async def test_a_connection_without_a_token_watches_a_little(door: Door) -> None:
    async with door.channel() as greedy, door.channel() as other:
        watches = [
            health_pb2_grpc.HealthStub(greedy).Watch(health_pb2.HealthCheckRequest())
            for _ in range(call_limits.ANONYMOUS_WATCHES)
        ]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        refused = health_pb2_grpc.HealthStub(greedy).Watch(health_pb2.HealthCheckRequest())
        assert await said(refused.read()) == ("RESOURCE_EXHAUSTED", "WATCHES_FULL", 1.0)
        answered = await health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest()).read()
        assert answered.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_burst_of_calls_is_answered_or_refused_with_a_reason(door: Door) -> None:
    async with door.channel() as channel:
        await channel.channel_ready()
        list_ = AuditServiceStub(channel).ListAudits
        request, metadata = ListAuditsRequest(), door.metadata("greedy")
        calls = [said(list_(request, metadata=metadata, timeout=120)) for _ in range(3000)]
        answers = Counter(await asyncio.gather(*calls))
    assert set(answers) <= {"OK", ("RESOURCE_EXHAUSTED", "CALLS_FULL", 1.0)}
    assert answers["OK"] >= call_limits.CALLS


async def planned(
    door: Door,
    tenant: str,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
) -> Any:
    spec = AuditSpec(subject="small/edited", concept="hourglass")
    return make_plan(spec, catalogue, store, descriptions, lambda: 1)


async def test_more_watches_than_a_tenant_may_have_are_refused_with_a_reason(
    door: Door, catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    plan = await planned(door, "greedy", catalogue, store, descriptions)
    audit = Audit(id=uuid.uuid4().hex, request_id="watched", spec=plan.spec, create_time=timestamp(1))
    assert await door.database.transitions.insert(audit, "digest", plan, Origin("greedy"))

    async def first(channel: grpc.aio.Channel) -> Any:
        watch = AuditServiceStub(channel).WatchAudit(WatchAuditRequest(id=audit.id), metadata=door.metadata("greedy"))
        answer = await said(watch.read())
        return watch, answer

    async with door.channel() as channel:
        await channel.channel_ready()
        watches = await asyncio.gather(*(first(channel) for _ in range(call_limits.WATCHES + 100)))
        answers = Counter(answer for _, answer in watches)
        assert answers == {"OK": call_limits.WATCHES, ("RESOURCE_EXHAUSTED", "WATCHES_FULL", 1.0): 100}
        await healthy(door)


def begin(name: str = "") -> CreateConceptRequest:
    concept = Concept(
        name=name or f"mine/{uuid.uuid4().hex[:8]}", kind=CONCEPT_KIND_OBJECT, names=["hat"], prompts=["a {concept}"]
    )
    return CreateConceptRequest(concept=NewConcept(request_id=uuid.uuid4().hex, concept=concept))


def upload(door: Door, channel: grpc.aio.Channel, tenant: str) -> Any:
    return ModelServiceStub(channel).CreateConcept(metadata=door.metadata(tenant), timeout=60)


async def whole(door: Door, tenant: str) -> None:
    """Upload a concept with a picture, from its beginning to its end.

    In a thread: grpc.aio says INTERNAL in place of the answer where a call ends while its requests are still written.
    """
    pixels = np.random.default_rng(uuid.uuid4().int).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    requests = [begin(), CreateConceptRequest(picture=PictureChunk(chunk=encode_picture(pixels), last=True))]

    def upload_all() -> None:
        with grpc.insecure_channel(door.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ModelServiceStub(channel).CreateConcept(iter(requests), metadata=door.metadata(tenant), timeout=60)

    await asyncio.to_thread(upload_all)


async def stalled(door: Door, channel: grpc.aio.Channel, tenant: str, content: bytes = b"") -> Any:
    call = upload(door, channel, tenant)
    await call.write(begin())
    if content:
        await call.write(CreateConceptRequest(picture=PictureChunk(chunk=content, last=True)))
    return call


async def test_a_tenant_that_stalls_its_uploads_keeps_no_other_from_theirs(door: Door) -> None:
    async with door.channel() as channel:
        calls = [await stalled(door, channel, "greedy") for _ in range(upload_limits.UPLOADS_OF_A_TENANT)]
        # Whatever of them has not arrived yet is in the way of this one alone.
        for _ in range(1000):
            answer = await said(whole(door, "greedy"))
            if answer != "OK":
                break
        assert answer == ("RESOURCE_EXHAUSTED", "UPLOADS_BUSY", 5.0)
        for _ in range(5):
            assert await said(whole(door, "other")) == "OK"
        for call in calls:
            call.cancel()


async def test_an_upload_that_keeps_silent_is_ended(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_limits, "SILENT_SECONDS", 0.2)
    async with door.channel() as channel:
        assert await said(await stalled(door, channel, "greedy")) == ("DEADLINE_EXCEEDED", "UPLOAD_SILENT", 0.0)
        assert await said(upload(door, channel, "greedy")) == ("DEADLINE_EXCEEDED", "UPLOAD_SILENT", 0.0)


async def test_who_holds_most_of_the_memory_gives_way(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_limits, "MAX_BYTES", 3_000_000)
    async with door.channel() as channel:
        small = await stalled(door, channel, "greedy", bytes(1_000_000))
        large = await stalled(door, channel, "greedy", bytes(1_500_000))
        other = await stalled(door, channel, "other", bytes(1_200_000))
        assert await said(large) == ("RESOURCE_EXHAUSTED", "UPLOADS_BUSY", 5.0)
        assert (small.done(), other.done()) == (False, False)
        small.cancel()
        other.cancel()


async def all_pages(stub: Any, request: Any, field: str, metadata: Any) -> tuple[list[Any], list[int]]:
    found, sizes = [], []
    while True:
        answer = await stub(request, metadata=metadata, timeout=60)
        found += getattr(answer, field)
        sizes.append(answer.ByteSize())
        if not answer.next_page_token:
            return found, sizes
        request.page_token = answer.next_page_token


async def test_a_page_of_audits_fits_into_any_clients_limit(
    door: Door, catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    """Four hundred audits with verdicts of 12 kB: all of them come, without figures, or with them on more pages."""
    plan = await planned(door, "other", catalogue, store, descriptions)
    verdict = Verdict(conclusion=CONCLUSION_AVOIDED, statement="It came back.", summary="It is there.", damaged=True)
    verdict.evaluations.extend([EvaluationResult(name="noise-based", reason="r" * 1000)] * 12)
    first = Audit(id=uuid.uuid4().hex, request_id="0", spec=plan.spec, create_time=timestamp(1))
    assert await door.database.transitions.insert(first, "digest", plan, Origin("other"))
    await copied(door.database, first.id, verdict, 399)
    async with door.channel() as channel:
        list_ = AuditServiceStub(channel).ListAudits
        metadata = door.metadata("other")
        basic, sizes = await all_pages(list_, ListAuditsRequest(page_size=400), "audits", metadata)
        assert len({audit.id for audit in basic}) == 400
        assert len(sizes) == 1
        kept = Verdict(conclusion=CONCLUSION_AVOIDED, statement="It came back.", summary="It is there.", damaged=True)
        assert {audit.verdict.SerializeToString() for audit in basic} == {kept.SerializeToString()}
        request = ListAuditsRequest(page_size=1000, view=AUDIT_VIEW_FULL)
        full, sizes = await all_pages(list_, request, "audits", metadata)
        assert [audit.id for audit in full] == [audit.id for audit in basic]
        assert all(audit.verdict == verdict for audit in full)
        assert max(sizes) <= MAX_PAGE_BYTES + 10_000
        few, sizes = await all_pages(list_, ListAuditsRequest(page_size=133), "audits", metadata)
        assert ([audit.id for audit in few], len(sizes)) == ([audit.id for audit in basic], 4)


async def copied(database: Database, audit: str, verdict: Verdict, count: int) -> None:
    """End an audit with a verdict, and make copies of its row."""
    import sqlalchemy as sa

    from unerase_backend.coordinator.storage import tables

    async with database.engine.begin() as connection:
        values = {"verdict": verdict.SerializeToString(), "state": audits_pb2.AUDIT_STATE_SUCCEEDED, "end_time": 5}
        await connection.execute(sa.update(tables.audits).where(tables.audits.c.id == audit).values(**values))
        row = (await connection.execute(sa.select(tables.audits).where(tables.audits.c.id == audit))).one()._asdict()
        # Some were created at the same time: the id decides.
        copies = [
            row | {"id": uuid.uuid4().hex, "request_id": str(index), "create_time": 2 + index // 3}
            for index in range(1, count + 1)
        ]
        await connection.execute(sa.insert(tables.audits), copies)


async def test_a_page_of_concepts_fits_into_any_clients_limit(door: Door) -> None:
    names = [f"mine/{index:02d}" for index in range(40)]
    for name in names:
        concept = Concept(name=name, kind=CONCEPT_KIND_OBJECT, names=["hat"], prompts=["a {concept}"], custom=True)
        concept.held_out_prompts.extend(f"{index} {'x' * 900} {{concept}}" for index in range(200))
        assert await door.database.concepts.insert(CustomConcept(concept, 0), name, "digest", "other")
    async with door.channel() as channel:
        list_ = ModelServiceStub(channel).ListConcepts
        found, sizes = await all_pages(list_, ListConceptsRequest(page_size=1000), "concepts", door.metadata("other"))
    assert [concept.name for concept in found if concept.custom] == names
    assert len(sizes) > 3
    assert max(sizes) <= MAX_PAGE_BYTES + 10_000


@pytest.mark.timeout(60)
async def test_a_concept_of_too_many_judges_is_refused_at_once(door: Door) -> None:
    request = begin()
    for index in range(26_000):
        request.concept.concept.labels.add(judge=f"{index:06d}")
    async with door.channel() as channel:
        call = ModelServiceStub(channel).CreateConcept(iter([request]), metadata=door.metadata("greedy"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "concept.concept.labels: must be at most 64, not 26000"


async def test_metadata_are_refused_beyond_their_limit_and_never_below(door: Door) -> None:
    async with door.channel() as channel:
        check = health_pb2_grpc.HealthStub(channel).Check

        async def sent(size: int) -> Counter[Any]:
            metadata = (("x-much", "a" * size),)
            calls = (said(check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=20)) for _ in range(50))
            return Counter(await asyncio.gather(*calls))

        # With what gRPC itself sends, some hundred bytes.
        assert await sent(MAX_METADATA_BYTES - 1000) == {"OK": 50}
        assert await sent(MAX_METADATA_BYTES) == {("RESOURCE_EXHAUSTED", "", 0.0): 50}


@pytest.mark.parametrize("case", ["message", "unfolded", "deadline"])
async def test_what_grpc_itself_refuses_has_its_own_words(door: Door, case: str) -> None:
    """These come without details of ours; docs/limits.md lists them."""
    async with door.channel() as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        large = bytes(MAX_RECEIVE_BYTES + 1)
        calls = {
            "message": lambda: call(large, timeout=20),
            "unfolded": lambda: call(large, timeout=20, compression=grpc.Compression.Gzip),
            "deadline": lambda: channel.stream_unary("/grpc.health.v1.Health/Check")(timeout=0.2),
        }
        code = "DEADLINE_EXCEEDED" if case == "deadline" else "RESOURCE_EXHAUSTED"
        assert await said(calls[case]()) == (code, "", 0.0)
        await healthy(door)
