"""What both clients do when the backend is healthy, and when it is not, over a real socket."""

import asyncio
import inspect
import subprocess
import threading
import time
from math import inf, nan
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import unerase
from support.scripted_server import AUDIT_ID, EVENTS, QUICK, Script, failing, serve, until_inactive
from unerase import (
    AsyncClient,
    AuditSpec,
    AuditState,
    Client,
    ClientSettings,
    Concept,
    ConceptKind,
    FieldViolation,
    ReportFormat,
    RetryConfig,
    TLSConfig,
    UneraseError,
)
from unerase.v1.audits_pb2 import CreateAuditRequest, DeleteAuditRequest, GetAuditRequest
from unerase.v1.models_pb2 import DeleteConceptRequest

UNAVAILABLE = failing(grpc.StatusCode.UNAVAILABLE, "gone for the moment")
CONCEPT = Concept(name="mine/hourglass", kind=ConceptKind.CONCEPT_KIND_OBJECT, names=["hourglass"])
SPEC = AuditSpec(subject="testbed/uce", concept="hourglass")


def test_both_clients_are_the_same() -> None:
    """Every public method of one is a method of the other, with the same parameters."""

    def public(client: type) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [(each.name, each.kind, each.default) for each in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(client, callable)
            if not name.startswith("_") or name == "__init__"
        }

    assert public(Client) == public(AsyncClient)
    assert {"audit", "watch", "report", "report_json", "models", "concepts", "create_concept", "evaluations"} <= public(
        Client
    ).keys()


def test_everything_exported_is_there() -> None:
    assert sorted(unerase.__all__) == sorted(set(unerase.__all__))
    assert all(hasattr(unerase, name) for name in unerase.__all__)


def test_a_new_client_does_nothing() -> None:
    """No connection is made, so an address where nobody listens is no error yet."""
    client = Client("127.0.0.1:1")
    assert client._channel is None
    client.close()


def test_an_audit_from_beginning_to_end(connect, address: str, script: Script) -> None:
    events = []
    with connect(address) as client:
        audit = client.audit(SPEC, on_event=events.append)
    assert audit.state == AuditState.AUDIT_STATE_SUCCEEDED
    assert [event.sequence for event in events] == list(range(1, EVENTS + 1))
    (request,) = script.seen(CreateAuditRequest)
    assert 1 <= len(request.request_id) <= 64
    assert request.spec == SPEC


def test_pages_are_joined(connect, address: str) -> None:
    with connect(address) as client:
        assert [audit.id for audit in client.audits(page_size=2)] == ["a0", "a1", "a2", "a3", "a4"]
        assert [model.name for model in client.models()] == ["m0", "m1", "m2", "m3", "m4"]
        assert [concept.name for concept in client.concepts()] == ["c0", "c1", "c2"]
        assert client.model("m3").name == "m3"
        assert [each.name for each in client.evaluations().evaluations] == ["noise-based"]


def test_health_is_of_the_whole_or_of_one_service(connect, address: str) -> None:
    with connect(address) as client:
        assert client.serving() is True
        assert client.serving("draining") is False
        with pytest.raises(UneraseError) as caught:
            client.serving("nowhere")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND


def test_transfers_are_joined(connect, address: str) -> None:
    with connect(address) as client:
        assert client.report(AUDIT_ID) == b"<!doctype html>" * 9
        assert client.report_json(AUDIT_ID)["auditId"] == AUDIT_ID
        assert client.report_message(AUDIT_ID).schema_version == "1.0"
        assert client.report(AUDIT_ID, ReportFormat.REPORT_FORMAT_JSON).startswith(b"{")
        assert client.report_parquet(AUDIT_ID) == b"PAR1"
        assert client.artifact(AUDIT_ID, "f00d") == b"\x89PNGf00d"
        assert client.cancel(AUDIT_ID).state == AuditState.AUDIT_STATE_CANCELLED
        assert client.delete(AUDIT_ID) is None


def test_a_concept_is_uploaded_in_pieces(connect, address: str, script: Script) -> None:
    pictures, near_misses = [b"small", bytes(range(256)) * 3000], [b"near"]
    with connect(address) as client:
        created = client.create_concept(CONCEPT, pictures, near_misses, tile=32, request_id="mine")
        assert client.concept("mine/hourglass").name == "mine/hourglass"
        assert client.delete_concept("mine/hourglass") is None
    assert created.custom
    assert (len(created.picture_digests), len(created.near_miss_digests)) == (2, 1)
    ((first, *pieces),) = script.uploads
    assert (first.concept.request_id, first.concept.concept) == ("mine", CONCEPT)
    assert b"".join(each.picture.chunk for each in pieces) == b"".join([*pictures, *near_misses])
    assert all(len(each.picture.chunk) <= 2**18 for each in pieces)
    ends = [each.picture for each in pieces if each.picture.last]
    assert [(end.near_miss, end.tile) for end in ends] == [(False, 32), (False, 32), (True, 32)]


def test_an_upload_of_any_size_is_repeated_whole_with_one_request_id(connect, address: str, script: Script) -> None:
    """Larger than what gRPC keeps of a call unless it is told to."""
    script.failures["CreateConcept"] = [UNAVAILABLE, UNAVAILABLE]
    pictures = [bytes([index]) * 2**20 for index in range(8)]
    with connect(address) as client:
        assert client.create_concept(CONCEPT, pictures).custom
    first, *again = script.uploads
    assert again == [first, first]
    assert 1 <= len(first[0].concept.request_id) <= 64


def test_deleting_a_concept_is_not_repeated(connect, address: str, script: Script) -> None:
    script.failures["DeleteConcept"] = [UNAVAILABLE]
    with connect(address) as client, pytest.raises(UneraseError):
        client.delete_concept("mine/hourglass")
    assert len(script.seen(DeleteConceptRequest)) == 1


def test_a_transfer_cut_short_is_no_report(connect, address: str, script: Script) -> None:
    script.truncate = True
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.report(AUDIT_ID)
    assert caught.value.code == grpc.StatusCode.DATA_LOSS
    assert caught.value.reason == "TRANSFER_INCOMPLETE"


def test_error_details_are_parsed(connect, address: str, script: Script) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.cases", description="must be at most 512")
    script.failures["CreateAudit"] = [
        failing(
            grpc.StatusCode.INVALID_ARGUMENT,
            "spec.cases: must be at most 512",
            error_details_pb2.BadRequest(field_violations=[violation]),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
            reason="INVALID_REQUEST",
        )
    ]
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.create_audit(SPEC)
    error = caught.value
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_REQUEST"
    assert error.message == "spec.cases: must be at most 512"
    assert error.violations == (FieldViolation("spec.cases", "must be at most 512"),)
    assert error.retry_after == 1.5
    assert error.metadata == {"model": "x"}
    assert str(error) == "INVALID_REQUEST: spec.cases: must be at most 512"


def test_an_error_without_details(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [lambda context: context.abort(grpc.StatusCode.INTERNAL, "")]
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    assert (caught.value.reason, caught.value.message, caught.value.violations) == ("INTERNAL", "INTERNAL", ())


def test_creating_is_repeated_with_one_request_id(connect, address: str, script: Script) -> None:
    script.failures["CreateAudit"] = [UNAVAILABLE, UNAVAILABLE]
    with connect(address) as client:
        assert client.create_audit(SPEC).id == AUDIT_ID
        client.create_audit(SPEC)
        assert client.create_audit(SPEC, request_id="mine").request_id == "mine"
    ids = [request.request_id for request in script.seen(CreateAuditRequest)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids)) == 3


def test_attempts_have_an_end(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [UNAVAILABLE] * 9
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert len(script.seen(GetAuditRequest)) == QUICK.retry.max_attempts


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_only_unavailable_is_repeated(connect, address: str, script: Script, code: grpc.StatusCode) -> None:
    script.failures["GetAudit"] = [failing(code)]
    with connect(address) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    assert caught.value.code == code
    assert len(script.seen(GetAuditRequest)) == 1


def test_deleting_is_not_repeated(connect, address: str, script: Script) -> None:
    script.failures["DeleteAudit"] = [UNAVAILABLE]
    with connect(address) as client, pytest.raises(UneraseError):
        client.delete(AUDIT_ID)
    assert len(script.seen(DeleteAuditRequest)) == 1


def test_one_attempt_means_one(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [UNAVAILABLE]
    settings = ClientSettings(retry=RetryConfig(max_attempts=1))
    with connect(address, settings) as client, pytest.raises(UneraseError):
        client.get_audit(AUDIT_ID)
    assert len(script.seen(GetAuditRequest)) == 1


def test_a_call_ends_at_its_deadline(connect, address: str, script: Script) -> None:
    script.failures["GetAudit"] = [until_inactive, until_inactive]
    start = time.monotonic()
    with connect(address) as client:
        with pytest.raises(UneraseError) as caught:
            client.get_audit(AUDIT_ID, timeout=0.2)
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.message == "no answer came within 0.2 s"
    with connect(address, ClientSettings(timeout_seconds=0.2)) as client, pytest.raises(UneraseError):
        client.get_audit(AUDIT_ID)
    assert time.monotonic() - start < 4


async def test_a_call_under_way_ends_with_an_error_when_its_client_is_closed(address: str, script: Script) -> None:
    """Not as if the caller's own task had been cancelled."""
    asked = threading.Event()
    script.failures["GetAudit"] = [lambda context: (asked.set(), until_inactive(context))]
    client = AsyncClient(address, settings=QUICK)
    call = asyncio.ensure_future(client.get_audit(AUDIT_ID))
    await asyncio.to_thread(asked.wait, 10)
    await client.close()
    with pytest.raises(UneraseError):
        await call


def test_a_large_answer_is_received(connect, address: str, script: Script) -> None:
    """More than gRPC's own limit of 4 MiB."""
    script.padding = 6_000_000
    with connect(address) as client:
        assert len(client.get_audit(AUDIT_ID).verdict.statement) > 6_000_000


def test_tls(connect, script: Script, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=unerase.test "
        f"-addext subjectAltName=DNS:unerase.test -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    server, port = serve(script, "127.0.0.1:0", credentials)
    tls = TLSConfig(root_certificates=certificate.read_bytes(), server_name="unerase.test")
    with connect(f"127.0.0.1:{port}", ClientSettings(tls=tls)) as client:
        assert client.get_audit(AUDIT_ID).id == AUDIT_ID
    other_name = TLSConfig(root_certificates=certificate.read_bytes(), server_name="other.test")
    settings = ClientSettings(timeout_seconds=3, tls=other_name, retry=QUICK.retry)
    with connect(f"127.0.0.1:{port}", settings) as client, pytest.raises(UneraseError) as caught:
        client.get_audit(AUDIT_ID)
    server.stop(None).wait()
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"initial_backoff_seconds": 0},
        {"multiplier": 0.5},
        {"multiplier": nan},
    ],
)
def test_retries_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        RetryConfig(**options)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(TLSConfig(client_key=b"secret"))


@pytest.mark.parametrize("name", ["timeout_seconds", "transfer_timeout_seconds", "watch_patience_seconds"])
@pytest.mark.parametrize("seconds", [0, -1, nan, inf, 1e300])
def test_times_are_checked(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        ClientSettings(**{name: seconds})
