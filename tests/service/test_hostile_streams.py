"""Streams that only wait, readers that do not read, connections that do not speak: others are served meanwhile."""

import asyncio
import socket
import time

import grpc
import pytest

from unerase import AsyncClient, Client, UneraseError
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AuditEvent,
    GetReportRequest,
    ReportFormat,
    WatchAuditRequest,
)
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.coordinator.api.call_limits import CALLS

from .conftest import Running, small_spec

STREAMS = 1000
# Their pictures are in the report.
PICTURED = ("unconditional-rate", "diffusion-completion", "inpainting", "alternatives")
OWN_CONNECTION = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


def _resident(backend: Running) -> int:
    """Return the coordinator's memory in bytes."""
    (coordinator,) = backend.replicas("coordinator")
    return int(coordinator.memory_info().rss)


async def _watched(stub: AuditServiceStub, audit_id: str, first: asyncio.Semaphore) -> list[AuditEvent]:
    events = []
    async for event in stub.WatchAudit(WatchAuditRequest(id=audit_id), timeout=120):
        events.append(event)
        if len(events) == 1:
            first.release()
    return events


@pytest.mark.backends
async def test_a_thousand_watchers_see_every_event_and_cost_little(backend: Running) -> None:
    before = _resident(backend)
    async with (
        AsyncClient(backend.address) as client,
        grpc.aio.insecure_channel(backend.address, options=OWN_CONNECTION) as flood,
    ):
        audit = await client.create_audit(small_spec(seed_base=31, cases=200, steps=200))
        stub, first = AuditServiceStub(flood), asyncio.Semaphore(0)
        watchers = [asyncio.create_task(_watched(stub, audit.id, first)) for _ in range(STREAMS)]
        for _ in range(STREAMS):
            await asyncio.wait_for(first.acquire(), 60)
        # All are open. Somebody else is served as ever.
        assert (await asyncio.wait_for(client.get_audit(audit.id), 5)).id == audit.id
        assert (_resident(backend) - before) / STREAMS < 200 * 1024
        await client.cancel(audit.id)
        seen = await asyncio.wait_for(asyncio.gather(*watchers), 60)
    events = seen[0]
    assert events[-1].state_changed.state == AUDIT_STATE_CANCELLED
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(each == events for each in seen)


@pytest.mark.backends
async def test_readers_that_do_not_read_hold_a_piece_each(backend: Running, client: Client) -> None:
    spec = small_spec(seed_base=32, cases=8, steps=2)
    spec.battery.evaluations.extend(EvaluationRequest(name=name) for name in PICTURED)
    audit = client.create_audit(spec)
    list(client.watch(audit.id, timeout=120))
    size = len(client.report(audit.id, ReportFormat.REPORT_FORMAT_HTML))
    # More than is buffered on the way to a reader that takes nothing.
    assert size > 256 * 1024
    before = _resident(backend)
    request = GetReportRequest(id=audit.id, format=ReportFormat.REPORT_FORMAT_HTML)
    # So that this client takes no more than the 64 KiB of a stream that HTTP/2 lets it be sent without asking.
    unread = [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(backend.address, options=unread) as slow:
        calls = [AuditServiceStub(slow).GetReport(request, timeout=60) for _ in range(CALLS)]
        await asyncio.gather(*(call.initial_metadata() for call in calls))
        with pytest.raises(UneraseError) as refused:
            client.get_audit(audit.id)
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLS_FULL")
        assert _resident(backend) - before < CALLS * 2**19
        for call in calls:
            call.cancel()
    for _ in range(100):
        try:
            assert len(client.report(audit.id, ReportFormat.REPORT_FORMAT_HTML)) == size
            break
        except UneraseError as error:
            assert error.reason == "CALLS_FULL"  # noqa: PT017
            await asyncio.sleep(0.05)
    else:
        pytest.fail("the places of readers that are gone are still taken")


def test_a_connection_that_does_not_speak_is_closed(backend: Running, client: Client) -> None:
    host, _, port = backend.address.rpartition(":")
    begun = time.monotonic()
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(100)]
    try:
        client.evaluations()
        for connection in silent:
            # What the server says first is its settings; then it hangs up.
            while connection.recv(4096):
                pass
        assert time.monotonic() - begun < 30
    finally:
        for connection in silent:
            connection.close()


def test_a_request_that_never_ends_holds_nobody_up(backend: Running, client: Client) -> None:
    """HTTP/2 by hand: a call of GetAudit with the head of a message of 4 MB, of which a byte comes now and then."""
    host, _, port = backend.address.rpartition(":")
    headers = b"\x83\x86" + b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in (
            (b":path", b"/unerase.v1.AuditService/GetAudit"),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b""))
        connection.sendall(_frame(1, 4, 1, headers))
        connection.sendall(_frame(0, 0, 1, b"\x00" + (4_000_000).to_bytes(4, "big") + b"\x0a"))
        client.evaluations()
        answered = b""
        while b"did not arrive" not in answered:
            piece = connection.recv(65536)
            assert piece, "the server hung up without a word"
            answered += piece
    client.evaluations()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
