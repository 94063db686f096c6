"""What serving costs: a unit through gRPC and Ray against the same engines in one process, and memory during an audit.

The unit is the standard prompt's with 96 cases at the reference's own steps. Both ways take turns, each time with seeds
that nothing remembers, and the median of the ratios counts. Memory is the proportional set size of the backend's whole
process tree, looked at twice a second while a quick audit runs.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.support.backend import LocalBackend, local_backend
from unerase import AuditSpec, Battery, Client
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.internal.v1alpha1.probing_pb2_grpc import ProbingServiceStub
from unerase.internal.v1alpha1.units_pb2 import Unit

PICTURES = 96
STEPS = 50
REPEATS = 3
AUDITED_CASES = 8
LOOK_SECONDS = 0.5


def measure() -> list[dict[str, Any]]:
    """Return the figures `serving.overhead` and `memory.peak_mb`."""
    with tempfile.TemporaryDirectory() as folder, backend(Path(folder) / "served") as running:
        overhead = asyncio.run(_overhead(running.address, Path(folder) / "local"))
        peak = _peak_mb(running.address, running.process)
    return [
        {"name": "serving.overhead", "value": round(overhead, 4), "unit": "ratio", "target": 0.05, "better": "lower"},
        {"name": "memory.peak_mb", "value": round(peak), "unit": "MB", "target": None, "better": "lower"},
    ]


@dataclass(frozen=True)
class Running:
    """A backend of its own."""

    address: str
    metrics_url: str
    process: psutil.Process


@contextmanager
def backend(data: Path, *options: str) -> Iterator[Running]:
    """Serve from `data` for as long as the context lasts, with further options of `unerase serve`."""
    command = [sys.executable, "-m", "unerase", "serve", "--port", "0", "--metrics-port", "0", "--data-dir", str(data)]
    command += options
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        told = iter(process.stdout or ())
        address = _told(told, "unerase listens on ")
        metrics_url = _told(told, "metrics at ")
        yield Running(address, metrics_url, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(timeout=120)


def _told(lines: Iterator[str], beginning: str) -> str:
    for line in lines:
        if line.startswith(beginning):
            return line.split()[-1]
    raise RuntimeError(f"the backend ended before it said {beginning!r}; `unerase serve` says why")


async def _overhead(address: str, folder: Path) -> float:
    async with local_backend(folder) as backend:
        # The first unit loads models and judges, on both sides.
        await _local_seconds(backend, 0)
        _served_seconds(address, backend, 0)
        ratios = []
        for repeat in range(1, REPEATS + 1):
            served = _served_seconds(address, backend, 2 * repeat)
            ratios.append(served / await _local_seconds(backend, 2 * repeat + 1))
    return statistics.median(ratios) - 1


def _unit(backend: LocalBackend, seed: int) -> Unit:
    return backend.unit("standard-prompt", cases=PICTURES, steps=STEPS, seed_base=1000 + seed)


async def _local_seconds(backend: LocalBackend, seed: int) -> float:
    unit = _unit(backend, seed)
    begun = time.perf_counter()
    await backend.run(unit)
    return time.perf_counter() - begun


def _served_seconds(address: str, backend: LocalBackend, seed: int) -> float:
    unit = _unit(backend, seed)
    with grpc.insecure_channel(address) as channel:
        begun = time.perf_counter()
        list(ProbingServiceStub(channel).Probe(ProbeRequest(unit=unit), timeout=600))
        return time.perf_counter() - begun


def _peak_mb(address: str, process: psutil.Process) -> float:
    ended = threading.Event()
    looks = []

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            looks.append(sum(map(_pss, [process, *process.children(recursive=True)])))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with Client(address) as client:
            battery = Battery(preset="quick")
            client.audit(AuditSpec(subject="testbed/uce", concept="hourglass", battery=battery, cases=AUDITED_CASES))
    finally:
        ended.set()
        watcher.join()
    return max(looks) / 1e6


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
