"""A backend of its own for a bench, on the cores that the bench gives it, and what its processes take."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Running:
    """A backend of its own."""

    address: str
    metrics_url: str
    rooms_metrics_url: str
    process: psutil.Process
    start_seconds: float
    """From the command until the backend said where it listens."""


@contextmanager
def backend(data: Path, *options: str, cores: Collection[int] = ()) -> Iterator[Running]:
    """Serve from `data` for as long as the context lasts, with further options of `unerase serve`.

    It may use `cores` alone, by affinity; empty means all of this process's.
    """
    command = [sys.executable, "-m", "unerase", "serve", "--port", "0", "--metrics-port", "0", "--data-dir", str(data)]
    command += options
    begun = time.perf_counter()
    with on(cores):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        told = iter(process.stdout or ())
        address = _told(told, "unerase listens on ")
        seconds = time.perf_counter() - begun
        metrics_url, rooms_url = _told(told, "metrics at "), _told(told, "the rooms' metrics at ")
        yield Running(address, metrics_url, rooms_url, psutil.Process(process.pid), seconds)
    finally:
        process.terminate()
        process.wait(timeout=120)


@contextmanager
def on(cores: Collection[int]) -> Iterator[None]:
    """Let this thread, and the processes that it starts, use these cores alone; empty changes nothing."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _told(lines: Iterator[str], beginning: str) -> str:
    for line in lines:
        if line.startswith(beginning):
            return line.split()[-1]
    raise RuntimeError(f"the backend ended before it said {beginning!r}; `unerase serve` says why")


def cpu_seconds(process: psutil.Process) -> dict[str, float]:
    """Return the CPU time of a backend's processes by room; `other` is Ray's own and the command's.

    A process that has ended counts in its parent, as far as that one has waited for it.
    """
    spent: dict[str, float] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            name, times = each.cmdline()[:1], each.cpu_times()
        except psutil.Error:
            continue
        title = name[0] if name else ""
        room = title.split(":")[3] if title.startswith("ray::ServeReplica:") else "other"
        spent[room] = spent.get(room, 0.0) + sum(times[:4])
    return spent


def pss(process: psutil.Process) -> int:
    """Return the proportional set size of a process and all below it, in bytes; what has ended counts nothing."""
    return sum(map(_pss, [process, *process.children(recursive=True)]))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
