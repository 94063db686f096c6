"""One backend for all tests of the service: real processes, a real socket, the embedded testbed."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import example
from unerase import Client
from unerase.v1.audits_pb2 import AuditSpec, Battery
from unerase.v1.types_pb2 import EvaluationRequest

_STARTED = (
    "from unerase_backend.serve import main; "
    "main(port=0, metrics_port=0, data_dir={data!r}, catalogues=({catalogue!r},), ray_auth='disabled')"
)


@dataclass(frozen=True)
class Running:
    """A backend in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    data: Path

    def replicas(self, application: str) -> list[psutil.Process]:
        """Return the replica processes of an application."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                title = process.cmdline()[0]
            except (psutil.Error, IndexError):
                continue
            if title.startswith(f"ray::ServeReplica:{application}:"):
                found.append(process)
        return found

    def kill(self, application: str) -> None:
        """SIGKILL the replicas of an application."""
        killed = self.replicas(application)
        assert killed, f"no replica of {application} is running"
        for process in killed:
            process.send_signal(signal.SIGKILL)

    def forget(self) -> None:
        """Remove what generation remembers of earlier runs, so that the same trajectories are made again."""
        shutil.rmtree(self.data / "artifacts" / "records", ignore_errors=True)


def await_health(channel: grpc.Channel, service: str, serving: bool) -> None:
    """Wait for a service's health, as its watchers see it; a minute at most."""
    states = health_pb2.HealthCheckResponse
    wanted = states.SERVING if serving else states.NOT_SERVING
    watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=60)
    for answer in watched:
        if answer.status == wanted:
            watched.cancel()
            return
    pytest.fail(f"the watch of {service} ended")


@pytest.fixture(scope="session")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A backend with two packages of third parties: the example, and one that cannot be imported."""
    data = tmp_path_factory.mktemp("backend")
    site = example.install(tmp_path_factory.mktemp("third-parties") / "site")
    example.put_broken(site)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
    }
    catalogue = example.write_catalogue(tmp_path_factory.mktemp("catalogue"), environment)
    log = (data / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTED.format(data=str(data), catalogue=str(catalogue))],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines[0].startswith("unerase listens on "), (data / "log").read_text()
    yield Running(process, lines[0].split()[-1], lines[1].split()[-1], data)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (data / "log").read_text()


@pytest.fixture(scope="session")
def client(backend: Running) -> Iterator[Client]:
    with Client(backend.address) as client:
        yield client


@pytest.fixture(scope="session")
def channel(backend: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(backend.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def small_spec(seed_base: int = 11, *, cases: int = 8, steps: int = 6, subject: str = "testbed/uce") -> AuditSpec:
    """Return an audit of a few seconds."""
    noise = EvaluationRequest(name="noise-based")
    noise.parameters.update({"etas": [1.0, 1.5], "variance_scales": [1.0]})
    battery = Battery(evaluations=[EvaluationRequest(name="standard-prompt"), noise], allow_incomplete=True)
    return AuditSpec(
        subject=subject, concept="hourglass", cases=cases, steps=steps, seed_base=seed_base, battery=battery
    )
