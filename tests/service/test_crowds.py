"""Hundreds of audits asked for at once: each that is accepted succeeds, and another tenant does not notice.

The backends are of their own, one on each database. The audits are equal, so that their units are computed once and the
database is what is crowded.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.postgres import Postgres
from support.serving import Running, serving
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_SUCCEEDED,
    Audit,
    AuditSpec,
    AuditState,
    Battery,
    CreateAuditRequest,
    GetAuditRequest,
    ListAuditsRequest,
    WatchAuditRequest,
)
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.runtime import tokens

pytestmark = [pytest.mark.backends, pytest.mark.timeout(900)]

# Half of what the pool of connections used to make others wait for.
_PATIENCE_SECONDS = 10.0
_REFUSALS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_SPEC = AuditSpec(
    subject="testbed/uce",
    concept="hourglass",
    cases=1,
    steps=2,
    seed_base=77,
    battery=Battery(evaluations=[EvaluationRequest(name="standard-prompt")], allow_incomplete=True),
)


@dataclass(frozen=True)
class Crowded:
    """A backend with two tenants: one that asks for hundreds of audits, and one that asks for little."""

    running: Running
    many: str
    single: str

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """Connect to the backend."""
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.running.address, options=options) as channel:
            yield channel


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    folder = tmp_path_factory.mktemp("crowded")
    file = folder / "tokens.json"
    many, single = (tokens.create(file, tenant, tenant, ["admin"], 1) for tenant in ("many", "single"))
    options: dict[str, Any] = {"tokens": str(file)}
    if request.param == "PostgreSQL":
        postgres: Postgres = request.getfixturevalue("postgres")
        options["database_url"] = postgres.new_database()
    (folder / "data").mkdir()
    with serving(Path(folder / "data"), **options) as running:
        yield Crowded(running, many, single)


@dataclass
class _Seen:
    """What became of a crowd."""

    ended: list[AuditState.ValueType] = field(default_factory=list)
    refused: list[grpc.StatusCode] = field(default_factory=list)
    unlawful: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def _as(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _retry_seconds(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


async def _ask(stub: Any, token: str, request: CreateAuditRequest, seen: _Seen) -> Audit | None:
    """Ask for an audit; a refusal that says when to try again is heeded."""
    while True:
        try:
            return await stub.CreateAudit(request, metadata=_as(token), timeout=300)  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            wait = _retry_seconds(error)
            if error.code() not in _REFUSALS or wait is None:
                seen.unlawful.append(f"{error.code()} {error.details()}")
                return None
            seen.refused.append(error.code())
        await asyncio.sleep(wait)


async def _audit(stub: Any, token: str, number: int, seen: _Seen) -> None:
    request = CreateAuditRequest(request_id=f"crowd-{number}", spec=_SPEC)
    audit = await _ask(stub, token, request, seen)
    if audit is None:
        return
    state = audit.state
    async for event in stub.WatchAudit(WatchAuditRequest(id=audit.id), metadata=_as(token), timeout=800):
        if event.WhichOneof("event") == "state_changed":
            state = event.state_changed.state
            if state not in (AUDIT_STATE_SUCCEEDED,) and event.state_changed.error_reason:
                seen.unlawful.append(f"{event.state_changed.error_reason} {event.state_changed.error_message}")
    seen.ended.append(state)


async def _look_on(channel: grpc.aio.Channel, token: str, mine: str, over: asyncio.Event, seen: _Seen) -> None:
    """Be the other tenant, who looks at its audits again and again; each call has a deadline."""
    stub: Any = AuditServiceStub(channel)
    health: Any = health_pb2_grpc.HealthStub(channel)
    loop = asyncio.get_running_loop()
    while not over.is_set():
        begin = loop.time()
        await stub.GetAudit(GetAuditRequest(id=mine), metadata=_as(token), timeout=_PATIENCE_SECONDS)
        await stub.ListAudits(ListAuditsRequest(), metadata=_as(token), timeout=_PATIENCE_SECONDS)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS)
        seen.waits.append(loop.time() - begin)


@pytest.mark.parametrize("count", [250, 500])
async def test_every_accepted_audit_of_a_crowd_succeeds(crowded: Crowded, count: int) -> None:
    seen, over = _Seen(), asyncio.Event()
    async with crowded.channel() as many, crowded.channel() as single:
        mine = Audit()
        ask: Any = AuditServiceStub(single)
        mine = await ask.CreateAudit(
            CreateAuditRequest(request_id=f"mine-{count}", spec=_SPEC), metadata=_as(crowded.single), timeout=120
        )
        looking = asyncio.create_task(_look_on(single, crowded.single, mine.id, over, seen))
        stub = AuditServiceStub(many)
        crowd = (_audit(stub, crowded.many, count * 1000 + number, seen) for number in range(count))
        await asyncio.gather(*crowd)
        over.set()
        # Raises where a call of the other tenant's took longer than its deadline.
        await looking
    print(f"{count}: refused {len(seen.refused)}, the other waited {max(seen.waits):.2f} s at most")
    assert seen.unlawful == []
    assert seen.ended == [AUDIT_STATE_SUCCEEDED] * count
