"""A watch by both clients: resumed where it broke, with an end where its caller wants one."""

import threading
import time
from dataclasses import replace

import grpc
import pytest

from support.scripted_server import AUDIT_ID, EVENTS, QUICK, Script, failing, serve, until_inactive
from unerase import (
    AsyncClient,
    AuditState,
    Client,
    ClientSettings,
    RetryConfig,
    UneraseError,
)
from unerase.v1.audits_pb2 import WatchAuditRequest

UNAVAILABLE = failing(grpc.StatusCode.UNAVAILABLE, "gone for the moment")


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_a_watch_resumes_where_it_broke(connect, address: str, script: Script, code: grpc.StatusCode) -> None:
    script.breaks = [2, 0, 3]
    script.repeated = 1
    script.after_break = failing(code)
    with connect(address) as client:
        events = list(client.watch(AUDIT_ID))
    assert [event.sequence for event in events] == list(range(1, EVENTS + 1))
    assert [request.after_sequence for request in script.seen(WatchAuditRequest)] == [0, 2, 2, 5]


def test_a_stream_that_ends_early_is_resumed(connect, address: str, script: Script) -> None:
    script.breaks = [2]
    with connect(address) as client:
        events = list(client.watch(AUDIT_ID, 1))
    assert [event.sequence for event in events] == list(range(2, EVENTS + 1))


def test_nothing_comes_after_the_last_event(connect, address: str) -> None:
    with connect(address) as client:
        assert list(client.watch(AUDIT_ID, EVENTS)) == []


def test_a_gap_is_an_error(connect, address: str, script: Script) -> None:
    script.skipped = 2
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        list(client.watch(AUDIT_ID))
    assert caught.value.reason == "EVENTS_MISSING"


def test_a_watch_of_an_unknown_audit_fails_at_once(connect, address: str, script: Script) -> None:
    script.failures["WatchAudit"] = [failing(grpc.StatusCode.NOT_FOUND, reason="AUDIT_NOT_FOUND")]
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        list(client.watch("nobody"))
    assert caught.value.reason == "AUDIT_NOT_FOUND"
    assert len(script.seen(WatchAuditRequest)) == 1


def test_a_watch_has_patience_and_no_more(connect) -> None:
    settings = ClientSettings(
        watch_patience_seconds=0.3, retry=RetryConfig(initial_backoff_seconds=0.05, max_backoff_seconds=0.1)
    )
    with connect("127.0.0.1:1", settings) as client, pytest.raises(UneraseError) as caught:
        list(client.watch(AUDIT_ID))
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def test_a_watch_ends_at_its_deadline(connect, address: str, script: Script) -> None:
    script.breaks = [0] * 1000
    script.state = AuditState.AUDIT_STATE_RUNNING
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        list(client.watch(AUDIT_ID, timeout=0.3))
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


def _silent_for(seconds: float, code: grpc.StatusCode):
    """Say nothing for some time, then break."""

    def silent(context: grpc.ServicerContext) -> None:
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(seconds)
        failing(code)(context)

    return silent


def test_a_watch_that_was_silent_for_long_is_resumed(connect, address: str, script: Script) -> None:
    """Nothing happened to the audit for longer than the patience with a backend that does not answer."""
    script.breaks = [2]
    script.after_break = _silent_for(0.8, grpc.StatusCode.UNAVAILABLE)
    with connect(address, replace(QUICK, watch_patience_seconds=0.3)) as client:
        events = list(client.watch(AUDIT_ID))
    assert [event.sequence for event in events] == list(range(1, EVENTS + 1))


def test_a_watch_that_was_silent_until_its_deadline_says_so(connect, address: str, script: Script) -> None:
    script.breaks = [2]
    script.after_break = until_inactive
    settings = replace(QUICK, watch_patience_seconds=0.1)
    with connect(address, settings) as client, pytest.raises(UneraseError) as caught:
        list(client.watch(AUDIT_ID, timeout=0.6))
    assert caught.value.reason == "AUDIT_NOT_IN_TIME"


def test_a_watch_asks_for_the_audit_no_longer_than_its_caller_waits(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [until_inactive]
    start = time.monotonic()
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        list(client.watch(AUDIT_ID, EVENTS, timeout=0.5))
    assert caught.value.reason == "AUDIT_NOT_IN_TIME"
    assert time.monotonic() - start < 3


def test_a_watch_ends_when_its_client_is_closed(address: str, script: Script) -> None:
    script.breaks = [2]
    script.after_break = until_inactive
    client = Client(address, settings=QUICK)
    events = client.watch(AUDIT_ID)
    next(events), next(events)
    client.close()
    with pytest.raises(UneraseError):
        next(events)
    assert client._channel is None
    assert len(script.seen(WatchAuditRequest)) == 1


async def test_a_watch_ends_when_its_asynchronous_client_is_closed(address: str, script: Script) -> None:
    script.breaks = [2]
    script.after_break = until_inactive
    client = AsyncClient(address, settings=QUICK)
    events = client.watch(AUDIT_ID)
    await anext(events), await anext(events)
    await client.close()
    with pytest.raises(UneraseError):
        await anext(events)
    assert client._channel is None
    assert len(script.seen(WatchAuditRequest)) == 1


def test_a_watch_survives_a_restart_of_the_server(script: Script) -> None:
    """The server is stopped in the middle of the stream and comes back on the same port."""
    server, port = serve(script, "127.0.0.1:0")
    script.breaks = [2]
    script.after_break = until_inactive
    with Client(f"127.0.0.1:{port}", settings=QUICK) as client:
        events = client.watch(AUDIT_ID)
        seen = [next(events).sequence, next(events).sequence]
        server.stop(0).wait()
        server, _ = serve(script, f"127.0.0.1:{port}")
        seen += [event.sequence for event in events]
    server.stop(None).wait()
    assert seen == list(range(1, EVENTS + 1))
