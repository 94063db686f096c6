"""What both clients repeat, and what they do not, over a real socket."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from support.scripted_server import AUDIT_ID, EVENTS, Script, failing
from unerase import AuditSpec, Client, ClientSettings, Concept, RetryConfig, UneraseError
from unerase.v1.audits_pb2 import (
    CreateAuditRequest,
    DeleteAuditRequest,
    GetAuditRequest,
    GetReportRequest,
    WatchAuditRequest,
)

SPEC = AuditSpec(subject="testbed/uce", concept="hourglass")
CONCEPT = Concept(name="mine/hourglass")
SOON = RetryConfig(initial_backoff_seconds=0.01, max_backoff_seconds=0.05)
SHORT = ClientSettings(timeout_seconds=0.5, transfer_timeout_seconds=0.5, retry=SOON)
CANCELLED = failing(grpc.StatusCode.CANCELLED)


def exhausted(seconds: float, reason: str = "CALLS_FULL") -> Callable[[grpc.ServicerContext], None]:
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return failing(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "too much at once",
        error_details_pb2.RetryInfo(retry_delay=delay),
        reason=reason,
    )


def silent(context: grpc.ServicerContext) -> None:
    """Say nothing for as long as the client waits."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(60)


def test_a_creation_whose_time_runs_out_is_asked_for_again(connect, address: str, script: Script) -> None:
    """Its answer may have been lost: the same request id gives the same audit."""
    script.failures["CreateAudit"] = [silent]
    with connect(address, SHORT) as client:
        assert client.create_audit(SPEC).id == AUDIT_ID
    first, second = script.seen(CreateAuditRequest)
    assert first == second


def test_an_upload_that_grpc_itself_broke_off_is_sent_again(connect, address: str, script: Script) -> None:
    script.failures["CreateConcept"] = [failing(grpc.StatusCode.INTERNAL, "Internal error from Core")]
    with connect(address, SHORT) as client:
        assert client.create_concept(CONCEPT, [b"picture"]).custom
    assert len(script.uploads) == 2


def test_an_incident_of_the_backend_is_not_repeated(connect, address: str, script: Script) -> None:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain="unerase", metadata={"incident": "1f"})
    script.failures["CreateConcept"] = [failing(grpc.StatusCode.INTERNAL, "something unexpected went wrong", info)]
    with connect(address, SHORT) as client, pytest.raises(UneraseError) as caught:
        client.create_concept(CONCEPT, [b"picture"])
    assert caught.value.metadata == {"incident": "1f"}
    assert len(script.uploads) == 1


def test_a_creation_that_is_never_answered_ends(connect, address: str, script: Script) -> None:
    script.failures["CreateAudit"] = [silent] * 9
    with connect(address, SHORT) as client, pytest.raises(UneraseError) as caught:
        client.create_audit(SPEC)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(script.seen(CreateAuditRequest)) == 2


def test_a_timeout_of_the_caller_holds_for_all_attempts(connect, address: str, script: Script) -> None:
    script.failures["CreateAudit"] = [silent] * 9
    started = time.monotonic()
    with connect(address, SHORT) as client, pytest.raises(UneraseError) as caught:
        client.create_audit(SPEC, timeout=0.8)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 5
    assert len(script.seen(CreateAuditRequest)) == 2


def test_an_upload_whose_time_runs_out_is_sent_again_whole(connect, address: str, script: Script) -> None:
    script.failures["CreateConcept"] = [silent]
    with connect(address, SHORT) as client:
        assert client.create_concept(CONCEPT, [b"picture"]).custom
    first, second = script.uploads
    assert first == second
    assert len(first) == 2


@pytest.mark.parametrize("method", ["get_audit", "delete"])
def test_no_other_call_gets_more_than_its_time(connect, address: str, script: Script, method: str) -> None:
    script.failures |= {"GetAudit": [silent] * 2, "DeleteAudit": [silent] * 2}
    with connect(address, SHORT) as client, pytest.raises(UneraseError) as caught:
        getattr(client, method)(AUDIT_ID)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(script.seen(GetAuditRequest)) + len(script.seen(DeleteAuditRequest)) == 1


def test_a_call_that_a_limit_refuses_waits_as_it_is_told(connect, address: str, script: Script) -> None:
    """More often than other failures are repeated, and what deletes too: a refused call has done nothing."""
    script.failures |= {"GetAudit": [exhausted(0.02)] * 6, "DeleteAudit": [exhausted(0.1)]}
    with connect(address) as client:
        assert client.get_audit(AUDIT_ID).id == AUDIT_ID
        started = time.monotonic()
        client.delete(AUDIT_ID)
        assert time.monotonic() - started >= 0.1
    assert len(script.seen(GetAuditRequest)) == 7
    assert len(script.seen(DeleteAuditRequest)) == 2


def test_a_wait_that_is_longer_than_the_call_is_not_begun(connect, address: str, script: Script) -> None:
    """As that of a quota; both where the caller says how long it waits and where the settings do."""
    script.failures["CreateAudit"] = [exhausted(30, "QUOTA_AUDITS")] * 2
    started = time.monotonic()
    with connect(address) as client:
        for timeout in (2.0, None):
            with pytest.raises(UneraseError) as caught:
                client.create_audit(SPEC, timeout=timeout)
            assert (caught.value.reason, caught.value.retry_after) == ("QUOTA_AUDITS", 30)
    assert time.monotonic() - started < 2
    assert len(script.seen(CreateAuditRequest)) == 2


def test_a_limit_that_stays_ends_with_the_calls_time(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [exhausted(0.1)] * 1000
    started = time.monotonic()
    with connect(address, SHORT) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    assert caught.value.reason == "CALLS_FULL"
    assert time.monotonic() - started < 5


def test_a_cancel_by_the_server_is_repeated_where_that_is_safe(connect, address: str, script: Script) -> None:
    script.failures |= {"GetAudit": [CANCELLED], "CreateAudit": [CANCELLED], "GetReport": [CANCELLED]}
    script.failures["DeleteAudit"] = [CANCELLED]
    with connect(address) as client:
        assert client.get_audit(AUDIT_ID).id == AUDIT_ID
        assert client.create_audit(SPEC).id == AUDIT_ID
        assert client.report(AUDIT_ID).startswith(b"<!doctype html>")
        with pytest.raises(UneraseError) as caught:
            client.delete(AUDIT_ID)
    assert caught.value.code == grpc.StatusCode.CANCELLED
    assert len(script.seen(DeleteAuditRequest)) == 1
    assert len(script.seen(CreateAuditRequest)) == len(script.seen(GetReportRequest)) == 2


def test_a_transfer_that_breaks_in_the_middle_begins_again(connect, address: str, script: Script) -> None:
    script.report_breaks = 2
    with connect(address) as client:
        assert client.report(AUDIT_ID) == b"<!doctype html>" * 9
    assert len(script.seen(GetReportRequest)) == 3


def test_unavailable_waits_as_it_is_told(connect, address: str, script: Script) -> None:
    again = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=200_000_000))
    script.failures["GetAudit"] = [failing(grpc.StatusCode.UNAVAILABLE, "soon", again)]
    started = time.monotonic()
    with connect(address) as client:
        client.get_audit(AUDIT_ID)
    assert time.monotonic() - started >= 0.2
    later = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=60))
    script.failures["GetAudit"] = [failing(grpc.StatusCode.UNAVAILABLE, "later", later)]
    started = time.monotonic()
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    assert caught.value.retry_after == 60
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("failure", [exhausted(0.02, "WATCHES_FULL"), failing(grpc.StatusCode.DEADLINE_EXCEEDED)])
def test_a_watch_goes_on_after_what_passes(
    connect, address: str, script: Script, failure: Callable[[grpc.ServicerContext], None]
) -> None:
    script.failures["WatchAudit"] = [failure, failure]
    with connect(address) as client:
        assert [event.sequence for event in client.watch(AUDIT_ID)] == list(range(1, EVENTS + 1))
    assert len(script.seen(WatchAuditRequest)) == 3


def test_a_watch_without_words_of_when_ends(connect, address: str, script: Script) -> None:
    script.failures["WatchAudit"] = [failing(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    with connect(address) as client, pytest.raises(UneraseError):
        list(client.watch(AUDIT_ID))
    assert len(script.seen(WatchAuditRequest)) == 1


def test_an_audit_that_is_not_waited_for_is_named(connect, address: str, script: Script) -> None:
    script.failures["WatchAudit"] = [silent]
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.audit(SPEC, timeout=0.3)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.metadata["audit"] == AUDIT_ID
    assert AUDIT_ID in caught.value.message


def test_one_attempt_means_one_of_every_kind(connect, address: str, script: Script) -> None:
    once = ClientSettings(timeout_seconds=2, retry=RetryConfig(max_attempts=1))
    script.failures |= {"GetAudit": [exhausted(0.01)], "CreateAudit": [CANCELLED]}
    with connect(address, once) as client:
        with pytest.raises(UneraseError):
            client.get_audit(AUDIT_ID)
        with pytest.raises(UneraseError):
            client.create_audit(SPEC)
    assert len(script.requests) == 2


def test_a_client_that_is_closed_meanwhile_repeats_nothing(address: str, script: Script) -> None:
    begun = threading.Event()

    def hang(context: grpc.ServicerContext) -> None:
        begun.set()
        silent(context)

    script.failures["GetAudit"] = [hang]
    client, failures = Client(address), []

    def ask() -> None:
        try:
            client.get_audit(AUDIT_ID)
        except UneraseError as error:
            failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(30)
    client.close()
    asking.join(30)
    assert [error.code for error in failures] == [grpc.StatusCode.CANCELLED]
    assert len(script.seen(GetAuditRequest)) == 1
    assert client._channel is None


def test_an_empty_request_id_is_not_replaced(connect, address: str, script: Script) -> None:
    """The backend refuses it; one made here would hide that the caller's was empty."""
    with connect(address) as client:
        client.create_audit(SPEC, request_id="")
    assert script.seen(CreateAuditRequest)[0].request_id == ""
