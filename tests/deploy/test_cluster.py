"""The backend on a Ray cluster of three nodes: requests find their model, replicas follow the work, a node may die."""

import json
import os
import secrets
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from unerase import Client
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest
from unerase.internal.v1alpha1.generation_pb2_grpc import GenerationServiceStub
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Battery
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.serve_config import check

# Of three nodes with a few replicas each; a machine with other work takes its time.
pytestmark = [pytest.mark.backends, pytest.mark.timeout(600)]
CONFIG = Path(__file__).parents[2] / "deploy" / "serve" / "cpu.yaml"
MODELS = ("testbed/reference", "testbed/uce")


@dataclass(frozen=True)
class Running:
    """A cluster in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    data: Path

    def tell(self, command: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or self.fail())

    def fail(self) -> str:
        pytest.fail((self.data / "log").read_text()[-4000:])

    def held(self) -> list[str]:
        """Return the models in memory, over all replicas of generation."""
        return sorted(model for told in self.tell("replicas").values() for model in told["models"])

    def forget(self) -> None:
        """Remove what was made before, so that it is made again."""
        shutil.rmtree(self.data / "artifacts" / "records", ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("cluster")
    port = _free_port()
    config = yaml.safe_load(CONFIG.read_text()) | {"proxy_location": "Disabled"}
    for application in config["applications"]:
        application["args"]["artifacts"] = str(data / "artifacts")
        application["args"]["digests"] = str(data / "digests")
        if application["name"] == "coordinator":
            beyond = ("database_url_variable", "tls_certificate", "tls_key", "tokens", "metrics_port")
            kept = {key: value for key, value in application["args"].items() if key not in beyond}
            application["args"] = kept | {"state": str(data / "coordinator"), "host": "127.0.0.1", "port": port}
        if application["name"] == "generation":
            # In production these are tens of seconds, so that a short burst starts nothing.
            scaling = application["deployments"][0]["autoscaling_config"]
            scaling |= {"max_replicas": 3, "look_back_period_s": 2, "upscale_delay_s": 1}
    assert list(check(config)) == []
    file = data / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    }
    with (data / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cluster_process.py")), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
    running = Running(process, f"127.0.0.1:{port}", data)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready = process.stdout.readline() or running.fail()
        assert json.loads(ready) == {"nodes": 3}
        yield running
        process.stdin.close()
        assert process.wait(60) == 0, running.fail()
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def client(cluster: Running) -> Iterator[Client]:
    with Client(cluster.address) as client:
        yield client


@pytest.fixture(scope="module")
def generation(cluster: Running) -> Iterator[GenerationServiceStub]:
    with grpc.insecure_channel(cluster.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield GenerationServiceStub(channel)


def _request(model: str, seed: int, *, trajectories: int = 2, steps: int = 2) -> GenerateRequest:
    return GenerateRequest(
        model=model,
        pictures=True,
        trajectories=[
            Trajectory(
                conditioning=Conditioning(text="a circle"),
                guidance_scale=3,
                steps=steps,
                latent_seed=1000 * seed + index,
            )
            for index in range(trajectories)
        ],
    )


def test_requests_go_where_their_model_is(cluster: Running, generation: GenerationServiceStub) -> None:
    assert len(cluster.tell("replicas")) == 2
    for seed in range(8):
        # One after the other, and then all at once.
        assert len(list(generation.Generate(_request(MODELS[seed % 2], seed), timeout=60))) == 2
    calls = [generation.Generate(_request(MODELS[seed % 2], seed), timeout=60) for seed in range(8, 20)]
    assert [len(list(call)) for call in calls] == [2] * 12
    # Twenty requests, and each model was loaded once.
    assert cluster.held() == sorted(MODELS)


def test_a_busy_replica_passes_its_model_on_and_another_is_started(
    cluster: Running, generation: GenerationServiceStub
) -> None:
    model = MODELS[0]
    large = generation.Generate(_request(model, 100, trajectories=1500, steps=30), timeout=240)
    next(large)
    assert len(list(generation.Generate(_request(model, 101), timeout=60))) == 2
    assert cluster.held().count(model) == 2
    left = 1499
    while len(replicas := cluster.tell("replicas")) < 3 and left:
        next(large)
        left -= 1
    large.cancel()
    # Two requests; Serve's own policy would have left it at two replicas.
    assert len(replicas) == 3


def _spec() -> AuditSpec:
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0, 1.5], "variance_scales": [1.0]})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), noise], allow_incomplete=True)
    return AuditSpec(subject="testbed/uce", concept="hourglass", cases=16, steps=6, seed_base=3, battery=battery)


def _content(client: Client, audit_id: str) -> bytes:
    return client.report_message(audit_id).content.SerializeToString(deterministic=True)


def _observations(cluster: Running, audit_id: str) -> list[bytes]:
    with sqlite3.connect(cluster.data / "coordinator" / "audits.sqlite") as connection:
        rows = connection.execute(
            "select message from unerase_observations where audit = ? order by unit, ordinal", (audit_id,)
        )
        return [row[0] for row in rows]


def test_a_node_that_dies_under_load_changes_nothing(cluster: Running, client: Client) -> None:
    contents, rows = [], []
    for disturbed in (False, True):
        cluster.forget()
        audit = client.create_audit(_spec())
        done: list[str] = []
        killed: list[str] = []
        for event in client.watch(audit.id, timeout=150):
            if event.WhichOneof("event") == "unit_done":
                done.append(event.unit_done.unit)
                if disturbed and not killed:
                    killed = cluster.tell("kill")["killed"]
        assert any(title.startswith("ray::ServeReplica:generation:") for title in killed) == disturbed
        ended = client.get_audit(audit.id)
        assert ended.state == AUDIT_STATE_SUCCEEDED
        assert len(done) == len(set(done)) == ended.units_done == audit.units_total > 1
        contents.append(_content(client, audit.id))
        rows.append(_observations(cluster, audit.id))
    assert rows[0] == rows[1]
    assert contents[0] == contents[1]
