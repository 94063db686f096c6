"""What a backend writes down: its output, its folder, and all that Ray keeps of its processes. No secret is in it.

The backends are of their own: one with tokens, which is called in many ways, and one whose database does not answer.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from fuzzing import assert_lawful
from unerase import Client, ClientSettings, UneraseError
from unerase_backend.runtime import tokens

from .conftest import small_spec

PASSWORD = "hunter2-of-the-database"
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
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
)


def _listening(process: subprocess.Popen[bytes]) -> dict[int, tuple[str, str]]:
    """Return the address and the process of every port that the backend listens on."""
    found = {}
    for each in psutil.Process(process.pid).children(recursive=True):
        for connection in each.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN:
                title = (each.cmdline() or [each.name()])[0]
                found[connection.laddr.port] = (connection.laddr.ip, title)
    return found


def _codes(port: int) -> set[grpc.StatusCode]:
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


def test_no_token_is_written_down(kept: Path) -> None:
    file = kept / "tokens.json"
    token = tokens.create(file, "alice", "acme", ["admin"], 1)
    wrong = tokens.new_token()
    process = _serve(kept, "served", "--tokens", str(file))
    assert process.stdout is not None
    try:
        first = process.stdout.readline().decode()
        assert first.startswith("unerase listens on "), (kept / "served.log").read_text()
        address = first.split()[-1]
        for port, (ip, title) in sorted(_listening(process).items()):
            print(ip, port, title, _codes(port))
        with Client(address, settings=ClientSettings(token=token)) as client:
            audit = client.audit(small_spec(cases=1, steps=2))
            client.report(audit.id)
            for call in (lambda: client.get_audit("x" * 40), lambda: client.concept("nothing")):
                with pytest.raises(UneraseError):
                    call()
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            models = channel.unary_unary("/unerase.v1.ModelService/ListModels")
            for sent in (wrong, f"{token} {token}", token[:-1], token * 50):
                metadata = (("authorization", f"Bearer {sent}"),)
                assert assert_lawful(lambda metadata=metadata: models(b"", metadata=metadata, timeout=20))  # type: ignore[misc]
            # As a caller might, who takes one thing for another.
            metadata = (("authorization", f"Bearer {wrong}"), ("x-request-id", token))
            with pytest.raises(grpc.RpcError) as refused:
                models(b"", metadata=metadata, timeout=20)
            assert token not in str(refused.value.details())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    written = {path.name for path in (kept / "ray").rglob("*.log")}
    assert any("coordinator" in name for name in written), written
    assert _found(kept, token, wrong, RAY_TOKEN) == []


def test_no_password_of_a_database_is_written_down(kept: Path) -> None:
    url = f"postgresql://unerase:{PASSWORD}@127.0.0.1:1/unerase"
    process = _serve(kept, "no-database", UNERASE_SERVE_DATABASE_URL=url)
    out, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert b"unerase listens" not in out
    said = (kept / "no-database.log").read_text()
    assert PASSWORD not in said + out.decode()
    assert _found(kept, PASSWORD) == []
