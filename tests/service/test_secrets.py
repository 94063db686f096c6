"""What a backend shows beside its RPCs: the ports of Ray, which ask for a token; and what it writes down.

No secret is in its output, its folder, and all that Ray keeps of its processes.

The backends are of their own: one with tokens, which is called in many ways, and one whose database does not answer.
"""

import http.client
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest

from support.fuzzing import assert_lawful
from support.postgres import Postgres
from unerase import Client, ClientSettings, Concept, ConceptKind, JudgeLabels, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.runtime import tokens

from .conftest import small_spec

pytestmark = [pytest.mark.backends, pytest.mark.timeout(600)]

PASSWORD = "hunter2-of-the-database"
PROMPT = "a-prompt-of-somebodys"
NAME = "a-name-of-somebodys"
REQUEST = "a-request-of-somebodys"
RAY_TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """Where Ray and the backends keep everything; a short path, since sockets are below it."""
    with tempfile.TemporaryDirectory(prefix="u") as folder:
        yield Path(folder)


def _serve(kept: Path, name: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "unerase", "serve", "--port", "0", "--data-dir", str(kept / name), *options]
    # A token of Ray's that can be looked for, in place of one made at start.
    given = {"RAY_TMPDIR": str(kept / "ray"), "RAY_AUTH_TOKEN": RAY_TOKEN, "OMP_NUM_THREADS": "1", **environment}
    log = (kept / f"{name}.log").open("wb")
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | given)


@dataclass(frozen=True)
class Served:
    """A backend with tokens."""

    process: subprocess.Popen[bytes]
    address: str
    token: str


@pytest.fixture(scope="module")
def served(kept: Path) -> Iterator[Served]:
    file = kept / "tokens.json"
    token = tokens.create(file, "alice", "acme", ["admin"], 1)
    process = _serve(kept, "served", "--tokens", str(file))
    assert process.stdout is not None
    first = process.stdout.readline().decode()
    assert first.startswith("unerase listens on "), (kept / "served.log").read_text()
    yield Served(process, first.split()[-1], token)
    process.terminate()
    process.wait(60)


def _found(kept: Path, *secrets: str) -> list[str]:
    """Return the files that hold one of the secrets; a search of bytes, as some are no text."""
    return [
        f"{path.relative_to(kept)} holds {secret[:8]}"
        for path in kept.rglob("*")
        if path.is_file() and not path.is_symlink()
        for secret in secrets
        if secret.encode() in path.read_bytes()
    ]


# One method of each of Ray's servers: whichever of them a port has, it is asked for.
RAY_METHODS = (
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
)


def _listening(process: subprocess.Popen[bytes]) -> list[tuple[str, int, str]]:
    """Return the address, the port and the process' title of everything that the backend listens on."""
    return [
        (connection.laddr.ip, connection.laddr.port, (each.cmdline() or [each.name()])[0])
        for each in psutil.Process(process.pid).children(recursive=True)
        for connection in each.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


def _grpc_codes(port: int) -> set[grpc.StatusCode]:
    """Return how a port answers who brings no token; nothing where it does not speak gRPC."""
    codes = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for method in RAY_METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=2)
                codes.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.add(error.code())
    return codes - {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def _http_statuses(ip: str, port: int) -> tuple[int, int]:
    """Return how a port answers a POST without a token that would run code, and a GET."""
    statuses = []
    for method, path in (("POST", "/api/job_agent/jobs/"), ("GET", "/metrics")):
        connection = http.client.HTTPConnection("127.0.0.1" if ip == "0.0.0.0" else ip, port, timeout=5)
        try:
            connection.request(method, path)
            statuses.append(connection.getresponse().status)
        finally:
            connection.close()
    return statuses[0], statuses[1]


def test_rays_ports_ask_for_its_token(served: Served) -> None:
    """SECURITY.md names them: what is not the backend's own asks for Ray's token, or tells metrics and no more."""
    own = int(served.address.rpartition(":")[2])
    guarded, open_ = set(), set()
    for ip, port, title in _listening(served.process):
        if port == own:
            assert ip.removeprefix("::ffff:") == "127.0.0.1"
        elif codes := _grpc_codes(port):
            assert codes == {grpc.StatusCode.UNAUTHENTICATED}, (title, port)
            guarded.add(title)
        elif (statuses := _http_statuses(ip, port)) == (401, 401):
            guarded.add(title)
        else:
            assert statuses == (405, 200), (title, port, statuses)
            open_.add(title)
    assert {"ray::ServeController", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= guarded
    assert sum(title.startswith("ray::ServeReplica:") for title in guarded) == 5
    assert not any(title.startswith("ray::Serve") for title in open_)


def test_no_token_is_written_down(served: Served, kept: Path) -> None:
    token, wrong = served.token, tokens.new_token()
    with Client(served.address, settings=ClientSettings(token=token)) as client:
        audit = client.audit(small_spec(cases=1, steps=2))
        client.report(audit.id)
        for call in (lambda: client.get_audit("x" * 40), lambda: client.concept("nothing")):
            with pytest.raises(UneraseError):
                call()
    with grpc.insecure_channel(served.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        models = channel.unary_unary("/unerase.v1.ModelService/ListModels")
        for sent in (wrong, f"{token} {token}", token[:-1], token * 50):
            metadata = (("authorization", f"Bearer {sent}"),)
            assert assert_lawful(lambda metadata=metadata: models(b"", metadata=metadata, timeout=20))  # type: ignore[misc]
        # As a caller might, who takes one thing for another.
        metadata = (("authorization", f"Bearer {wrong}"), ("x-request-id", "mine"))
        with pytest.raises(grpc.RpcError) as refused:
            models(token.encode(), metadata=metadata, timeout=20)
        assert token not in str(refused.value)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    written = {path.name for path in (kept / "ray").rglob("*.log")}
    assert any("coordinator" in name for name in written), written
    assert _found(kept, token, wrong, RAY_TOKEN) == []


def test_nothing_of_a_request_is_written_down_when_the_database_dies(kept: Path, postgres: Postgres) -> None:
    """The server ends in the middle of INSERTs, of a concept and of an audit; their parameters hold what is asked."""
    file, url = kept / "dying.json", postgres.new_database()
    token = tokens.create(file, "bob", "acme", ["admin"], 1)
    process = _serve(kept, "dying", "--tokens", str(file), UNERASE_SERVE_DATABASE_URL=url)
    assert process.stdout is not None
    first = process.stdout.readline().decode()
    assert first.startswith("unerase listens on "), (kept / "dying.log").read_text()
    with (
        Client(first.split()[-1], settings=ClientSettings(token=token)) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        client.create_concept(_concept(NAME), _sheet(), tile=32)
        spec = small_spec(cases=1, steps=2)
        spec.concept = NAME
        with (
            # Those of the test end with the server as well.
            suppress(psycopg.OperationalError),
            psycopg.connect(url) as holder,
            psycopg.connect(url, autocommit=True) as watcher,
        ):
            holder.execute("lock table unerase_concepts, unerase_audits in exclusive mode")
            asked = [
                threads.submit(client.create_audit, spec, request_id=f"{REQUEST}-1"),
                threads.submit(
                    client.create_concept, _concept(f"{NAME}-2"), _sheet(), tile=32, request_id=f"{REQUEST}-2"
                ),
            ]
            _await_inserts(watcher, 2)
            postgres.stop()
        for each in asked:
            with pytest.raises(UneraseError) as refused:
                each.result()
            assert refused.value.code == grpc.StatusCode.UNAVAILABLE
        postgres.start()
        audit = client.create_audit(spec, request_id=f"{REQUEST}-1")
        assert list(client.watch(audit.id, timeout=240))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    logs = [
        path for path in kept.rglob("*") if path.is_file() and ("log" in path.name or path.suffix in (".out", ".err"))
    ]
    text = b"".join(path.read_bytes() for path in logs)
    # The error is told, and what it was about is not.
    assert b"unerase.v1.AuditService/CreateAudit failed, request " in text
    assert [secret for secret in (NAME, PROMPT, token, REQUEST, url) if secret.encode() in text] == []


def _concept(name: str) -> Concept:
    labels = {"testbed/judge": ["hourglass"], "testbed/second-judge": ["hourglass"], "testbed/clip": [PROMPT]}
    return Concept(
        name=name,
        kind=ConceptKind.CONCEPT_KIND_OBJECT,
        names=["hourglass"],
        prompts=[f"{PROMPT} {{concept}}"],
        held_out_prompts=["a drawing of a {concept}"],
        labels=[JudgeLabels(judge=judge, labels=said) for judge, said in labels.items()],
        control="testbed/never",
    )


def _sheet() -> list[bytes]:
    return [(EMBEDDED.parent / "pictures" / "hourglass.png").read_bytes()]


def _await_inserts(watcher: psycopg.Connection, least: int) -> None:
    waiting = (
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ilike 'insert into %'"
        " and datname = current_database()"
    )
    for _ in range(600):
        (count,) = watcher.execute(waiting).fetchone() or (0,)
        if count >= least:
            return
        watcher.execute("select pg_sleep(0.1)")
    pytest.fail("a minute has passed, and nobody inserts")


def test_no_password_of_a_database_is_written_down(kept: Path) -> None:
    url = f"postgresql://unerase:{PASSWORD}@127.0.0.1:1/unerase"
    process = _serve(kept, "no-database", UNERASE_SERVE_DATABASE_URL=url)
    out, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert b"unerase listens" not in out
    said = (kept / "no-database.log").read_text()
    assert PASSWORD not in said + out.decode()
    assert _found(kept, PASSWORD) == []
