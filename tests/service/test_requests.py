"""Bad and repeated requests over a real socket: each answered precisely."""

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf import json_format

from support.serving import Running
from unerase import Client, UneraseError
from unerase.internal.v1alpha1.generation_pb2 import EncodeRequest, GenerateRequest
from unerase.internal.v1alpha1.generation_pb2_grpc import GenerationServiceStub
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_SUCCEEDED,
    AuditSpec,
    CreateAuditRequest,
    ListAuditsRequest,
    ReportFormat,
    WatchAuditRequest,
)
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.models_pb2 import ListConceptsRequest, ListModelsRequest
from unerase.v1.models_pb2_grpc import ModelServiceStub

from .conftest import small_spec

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def _failing(call: Callable[[], object]) -> UneraseError:
    with pytest.raises(UneraseError) as caught:
        call()
    return caught.value


def _raw(call: Callable[[], object]) -> UneraseError:
    from unerase._errors import error_of

    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_of(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"subject": "testbed/nobody"}, "MODEL_NOT_FOUND", "spec.subject"),
        ({"concept": "nothing"}, "CONCEPT_NOT_FOUND", "spec.concept"),
        ({"reference": "nobody"}, "MODEL_NOT_FOUND", "spec.reference"),
        ({"reference": "testbed/uce"}, "REFERENCE_UNFIT", "spec.reference"),
        ({"subject": "testbed/reference"}, "REFERENCE_MISSING", "spec.reference"),
        ({"control": "testbed/uce", "assume_control": True}, "CONTROL_UNFIT", "spec.control"),
        ({"control": "testbed/esd-x"}, "CONTROL_UNKNOWN", "spec.control"),
        ({"judge": "nobody"}, "JUDGE_NOT_FOUND", "spec.judge"),
        ({"subject": ""}, "INVALID_REQUEST", "spec.subject"),
        ({"subject": "x" * 1_000_000}, "INVALID_REQUEST", "spec.subject"),
        ({"cases": 4_000_000_000}, "INVALID_REQUEST", "spec.cases"),
        ({"steps": 4_000_000_000}, "INVALID_REQUEST", "spec.steps"),
        ({"guidance_scale": "NaN"}, "INVALID_REQUEST", "spec.guidance_scale"),
        ({"guidance_scale": -3}, "INVALID_REQUEST", "spec.guidance_scale"),
        ({"tolerances": {"excess": -1}}, "INVALID_REQUEST", "spec.tolerances.excess"),
        (
            {"battery": {"evaluations": [{"name": "no-such"}]}},
            "EVALUATION_NOT_FOUND",
            "spec.battery.evaluations[0].name",
        ),
        (
            {"battery": {"evaluations": [{"name": "noise-based", "parameters": {"etas": [-1]}}]}},
            "INVALID_REQUEST",
            "spec.battery.evaluations[0].parameters.etas",
        ),
    ],
)
def test_a_bad_field_of_an_audit(client: Client, fields: dict[str, object], reason: str, field: str) -> None:
    spec = json_format.ParseDict({"subject": "testbed/uce", "concept": "hourglass", **fields}, AuditSpec())
    error = _failing(lambda: client.create_audit(spec))
    assert (error.code, error.reason) == (INVALID, reason)
    assert field in [violation.field for violation in error.violations]
    assert len(str(error)) < 2000


def test_a_negative_count_is_a_huge_one(channel: grpc.Channel) -> None:
    """No client of protobuf sends a negative uint32; somebody who writes the bytes by hand does."""
    spec = AuditSpec(subject="testbed/uce", concept="hourglass").SerializeToString()
    spec += b"\x30" + b"\xff" * 9 + b"\x01"
    request_id = b"negative"
    body = b"\x0a" + bytes([len(request_id)]) + request_id + b"\x12" + bytes([len(spec)]) + spec
    call = channel.unary_unary("/unerase.v1.AuditService/CreateAudit")
    error = _raw(lambda: call(body, timeout=30))
    assert error.code == INVALID
    assert [violation.field for violation in error.violations] == ["spec.cases"]


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a b", "é", "a/b"])
def test_a_bad_request_id(channel: grpc.Channel, request_id: str) -> None:
    request = CreateAuditRequest(request_id=request_id, spec=small_spec())
    error = _raw(lambda: AuditServiceStub(channel).CreateAudit(request, timeout=30))
    assert (error.code, [violation.field for violation in error.violations]) == (INVALID, ["request_id"])


@pytest.mark.parametrize("prompt", ["x" * 1_000_000, "ünïcode" * 100_000])
def test_a_prompt_of_a_megabyte(channel: grpc.Channel, prompt: str) -> None:
    stub = GenerationServiceStub(channel)
    encode = EncodeRequest(model="testbed/reference", prompts=["fine", prompt])
    error = _raw(lambda: stub.Encode(encode, timeout=60))
    assert error.code == INVALID
    assert [violation.field for violation in error.violations] == ["prompts[1]"]
    trajectory = Trajectory(conditioning=Conditioning(text=prompt), guidance_scale=3, steps=2)
    generate = GenerateRequest(model="testbed/reference", trajectories=[trajectory], pictures=True)
    error = _raw(lambda: list(stub.Generate(generate, timeout=60)))
    assert error.code == INVALID
    assert [violation.field for violation in error.violations] == ["trajectories[0].conditioning.text"]


def test_a_message_beyond_the_limit(channel: grpc.Channel) -> None:
    encode = EncodeRequest(model="testbed/reference", prompts=["x" * 5_000_000])
    error = _raw(lambda: GenerationServiceStub(channel).Encode(encode, timeout=60))
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_model_behind(channel: grpc.Channel) -> None:
    encode = EncodeRequest(model="nobody", prompts=["a"])
    error = _raw(lambda: GenerationServiceStub(channel).Encode(encode, timeout=60))
    assert (error.code, error.reason) == (NOT_FOUND, "MODEL_NOT_FOUND")


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/unerase.v1.AuditService/CreateAudit")
    error = _raw(lambda: call(b"\xff\xff\xff", timeout=30))
    assert (error.code, error.message) == (INVALID, "the request is not a message of this method")


def test_an_audit_that_is_not_there(client: Client) -> None:
    calls: list[Callable[[], object]] = [
        lambda: client.get_audit("nobody"),
        lambda: client.cancel("nobody"),
        lambda: client.delete("nobody"),
        lambda: client.report("nobody"),
        lambda: list(client.watch("nobody")),
        lambda: client.artifact("nobody", "0" * 64),
        lambda: client.get_audit("x" * 100_000),
    ]
    for call in calls:
        error = _failing(call)
        assert (error.code, error.reason) == (NOT_FOUND, "AUDIT_NOT_FOUND")
    error = _failing(lambda: client.get_audit(""))
    assert (error.code, [violation.field for violation in error.violations]) == (INVALID, ["id"])


def test_a_repeated_request_is_the_same_audit_and_another_body_is_refused(client: Client) -> None:
    request_id = uuid.uuid4().hex
    spec = small_spec(cases=1, steps=1)
    together = threading.Barrier(8)

    def create(_: int) -> str:
        together.wait()
        return client.create_audit(spec, request_id=request_id).id

    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(create, range(8)))
    assert len(ids) == 1
    (audit_id,) = ids
    error = _failing(lambda: client.create_audit(small_spec(cases=2, steps=1), request_id=request_id))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert error.metadata == {"audit": audit_id}
    list(client.watch(audit_id, timeout=60))
    assert client.create_audit(spec, request_id=request_id).state == AUDIT_STATE_SUCCEEDED


def test_a_cancelled_audit_stops_and_others_go_on(client: Client) -> None:
    other = client.create_audit(small_spec(seed_base=5, cases=2, steps=3))
    audit = client.create_audit(small_spec(cases=200, steps=200))
    events = client.watch(audit.id, timeout=60)
    next(events)
    error = _failing(lambda: client.report(audit.id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REPORT_NOT_READY")
    assert error.metadata["state"] in ("PENDING", "RUNNING")
    error = _failing(lambda: client.delete(audit.id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "AUDIT_NOT_ENDED")
    cancelled = client.cancel(audit.id)
    assert cancelled.state == AUDIT_STATE_CANCELLED
    assert cancelled.HasField("end_time")
    *_, last = events
    assert last.state_changed.state == AUDIT_STATE_CANCELLED
    assert client.cancel(audit.id) == cancelled
    assert _failing(lambda: client.report(audit.id)).metadata["state"] == "CANCELLED"
    # Generation is free again: the other audit ends long before the cancelled one could have.
    *_, last = client.watch(other.id, timeout=60)
    assert last.state_changed.state == AUDIT_STATE_SUCCEEDED
    client.delete(audit.id)
    assert _failing(lambda: client.get_audit(audit.id)).code == NOT_FOUND


def test_a_second_subject_of_the_same_reference_shares_its_units(client: Client, backend: Running) -> None:
    def records() -> set[str]:
        return {path.name for path in (backend.data / "artifacts" / "records").rglob("*") if path.is_file()}

    def finished(subject: str) -> bytes:
        audit = client.create_audit(small_spec(seed_base=404, cases=2, subject=subject))
        assert list(client.watch(audit.id, timeout=120))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
        return client.report_message(audit.id).content.SerializeToString(deterministic=True)

    before = records()
    content = finished("testbed/uce")
    first = records()
    finished("testbed/redirected")
    second = records()
    # Two evaluations of three models, and their trajectories (2 cases of 1 + 2 + 2); then the second subject's alone.
    assert len(first - before) == 3 * (2 + 2 * 5)
    assert len(second - first) == 1 * (2 + 2 * 5)
    # The same audit again runs nothing, and says the same.
    assert finished("testbed/uce") == content
    assert records() == second


def test_events_can_be_resumed_anywhere(client: Client, channel: grpc.Channel) -> None:
    audit = client.create_audit(small_spec(seed_base=6, cases=2, steps=2))
    events = list(client.watch(audit.id, timeout=60))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    assert events[-1].state_changed == client.get_audit(audit.id)
    stub = AuditServiceStub(channel)
    for after in (0, 1, len(events) - 1, len(events), 10**15):
        request = WatchAuditRequest(id=audit.id, after_sequence=after)
        assert list(stub.WatchAudit(request, timeout=30)) == events[min(after, len(events)) :]


def test_an_artefact_is_read_by_its_audit_alone(client: Client) -> None:
    audits = [client.create_audit(small_spec(seed_base=seed, cases=1, steps=2)) for seed in (7, 8)]
    for audit in audits:
        list(client.watch(audit.id, timeout=60))
    digests = [{picture.digest for picture in client.report_message(audit.id).content.pictures} for audit in audits]
    (digest, *_) = digests[0] - digests[1]
    assert client.artifact(audits[0].id, digest).startswith(b"\x89PNG")
    for audit_id, asked in ((audits[1].id, digest), (audits[0].id, "0" * 64), (audits[0].id, "../../etc/passwd")):
        error = _failing(lambda audit_id=audit_id, asked=asked: client.artifact(audit_id, asked))
        assert (error.code, error.reason) == (NOT_FOUND, "ARTIFACT_NOT_FOUND")
    page = client.report(audits[0].id, ReportFormat.REPORT_FORMAT_HTML).decode()
    assert page.startswith("<!doctype html>")
    assert "data:image/png;base64," in page
    concept = client.report_message(audits[0].id).content.concept
    assert client.artifact(audits[0].id, concept.picture_digests[0]).startswith(b"\x89PNG")


def test_pages(client: Client, channel: grpc.Channel) -> None:
    for seed in (21, 22, 23):
        client.cancel(client.create_audit(small_spec(seed_base=seed)).id)
    audits, models = AuditServiceStub(channel), ModelServiceStub(channel)
    everything = audits.ListAudits(ListAuditsRequest(), timeout=30).audits
    assert len(everything) >= 3
    paged, token = [], ""
    while True:
        page = audits.ListAudits(ListAuditsRequest(page_size=2, page_token=token), timeout=30)
        paged += page.audits
        token = page.next_page_token
        if not token:
            break
    assert paged == list(everything)
    first = models.ListModels(ListModelsRequest(page_size=1), timeout=60)
    second = models.ListModels(ListModelsRequest(page_size=1, page_token=first.next_page_token), timeout=60)
    assert first.models[0].name < second.models[0].name
    for call in (
        lambda: audits.ListAudits(ListAuditsRequest(page_size=1001), timeout=30),
        lambda: models.ListConcepts(ListConceptsRequest(page_size=1001), timeout=30),
    ):
        assert [violation.field for violation in _raw(call).violations] == ["page_size"]
    for call in (
        lambda: audits.ListAudits(ListAuditsRequest(page_token=first.next_page_token), timeout=30),
        lambda: models.ListConcepts(ListConceptsRequest(page_token=first.next_page_token), timeout=30),
        lambda: models.ListModels(ListModelsRequest(page_token="nonsense"), timeout=30),
    ):
        assert [violation.field for violation in _raw(call).violations] == ["page_token"]


def test_a_deadline_ends_a_stream_and_its_work(channel: grpc.Channel) -> None:
    trajectory = Trajectory(conditioning=Conditioning(text="a circle"), guidance_scale=3, steps=500)
    request = GenerateRequest(model="testbed/reference", trajectories=[trajectory] * 256, pictures=True)
    stub = GenerationServiceStub(channel)
    error = _raw(lambda: list(stub.Generate(request, timeout=2)))
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    # Had the work gone on, this one would wait for it.
    short = GenerateRequest(model="testbed/reference", trajectories=[trajectory], pictures=True)
    short.trajectories[0].steps = 2
    assert len(list(stub.Generate(short, timeout=20))) == 1
