"""What serving costs: a unit through gRPC and Ray against the same engines in one process, and memory during an audit.

The unit is the standard prompt's with 96 cases at the reference's own steps. Both ways take turns, each time with seeds
that nothing remembers; the median of the ratios counts, and their spread is given. Memory is the proportional set size
of the backend's whole process tree, looked at twice a second while a quick audit runs.
"""

import asyncio
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.figures import figure
from bench.processes import backend, pss
from tests.support.backend import LocalBackend, local_backend
from unerase import AuditSpec, Battery, Client
from unerase.internal.v1alpha1.probing_pb2 import ProbeRequest
from unerase.internal.v1alpha1.probing_pb2_grpc import ProbingServiceStub
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.runtime.allocation import keep_freed_memory

PICTURES = 96
STEPS = 50
REPEATS = 5
AUDITED_CASES = 8
LOOK_SECONDS = 0.5


def measure() -> list[dict[str, Any]]:
    """Return the figures `serving.overhead` and `memory.peak_mb`."""
    # As the rooms' processes do, so that both ways differ by serving alone.
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, backend(Path(folder) / "served") as running:
        ratios = asyncio.run(_ratios(running.address, Path(folder) / "local"))
        peak = _peak_mb(running.address, running.process)
    return [
        figure(
            "serving.overhead",
            round(statistics.median(ratios) - 1, 4),
            spread=[round(min(ratios) - 1, 4), round(max(ratios) - 1, 4)],
        ),
        figure("memory.peak_mb", round(peak)),
    ]


async def _ratios(address: str, folder: Path) -> list[float]:
    """Return served over local seconds of the same work, once for each repeat."""
    async with local_backend(folder) as backend:
        # The first unit loads models and judges, on both sides.
        await _local_seconds(backend, 0)
        _served_seconds(address, backend, 0)
        ratios = []
        for repeat in range(1, REPEATS + 1):
            served = _served_seconds(address, backend, 2 * repeat)
            ratios.append(served / await _local_seconds(backend, 2 * repeat + 1))
    return ratios


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
            looks.append(pss(process))

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
