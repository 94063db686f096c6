"""Backends in processes of their own: real replicas, a real socket, SIGTERM at the end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

_STARTED = "import json, sys; from unerase_backend.serve import run; run(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Running:
    """A backend in a process of its own."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    rooms_metrics_url: str
    data: Path

    @property
    def log(self) -> str:
        """Return what all backends of this data folder have written to stderr so far."""
        return _log(self.data).read_text()

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
        """Send SIGKILL to the replicas of an application."""
        killed = self.replicas(application)
        assert killed, f"no replica of {application} is running"
        for process in killed:
            process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGTERM to the backend, and wait until it has drained and ended without an error."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.log

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the coordinator's samples of this name and these labels."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        text = opener.open(self.metrics_url, timeout=10).read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def forget(self) -> None:
        """Remove the stored results of earlier runs, so that the same trajectories are made again."""
        shutil.rmtree(self.data / "artifacts" / "records", ignore_errors=True)


@contextmanager
def serving(
    data: Path, *, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = (), **options: Any
) -> Iterator[Running]:
    """Run a backend on a data folder, and stop it at the end unless it has ended before.

    `options` are fields of `ServeSettings`, on free ports where they name none; `environment` goes beside this
    process's own; `prefix` is a command that becomes the backend.
    """
    # The same on every machine: one process makes the pictures.
    defaults = {"port": 0, "metrics_port": 0, "ray_auth": "disabled", "generation_replicas": 1}
    options = {**defaults, "data_dir": data, **options}
    with _log(data).open("a") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _STARTED, json.dumps(options, default=str)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("unerase listens on "), _log(data).read_text()
    running = Running(process, *(line.split()[-1] for line in lines), data)
    try:
        yield running
    finally:
        if process.poll() is None:
            running.stop()
        process.stdout.close()


def _log(data: Path) -> Path:
    return data / "log"
