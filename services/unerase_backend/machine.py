"""What this machine, or the container, gives this process: cores, memory and GPUs.

A core counts if the process may run on it (its CPU affinity, which cpusets bound too) and no control group above the
process has a quota below that many. Control groups are read in both versions, from the process's own group upwards.
"""

import math
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unerase_backend.runtime.counting import counted

_GROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Cores:
    """The cores of a process."""

    allowed: int
    """Cores that it may run on."""
    quota: float | None = None
    """Cores' worth of time that its control groups allow; None without a quota."""

    @property
    def usable(self) -> int:
        """Whole cores that it can keep busy, at least one."""
        return max(1, self.allowed if self.quota is None else min(self.allowed, math.floor(self.quota)))

    def __str__(self) -> str:
        quota = "no quota" if self.quota is None else f"a quota of {self.quota:g}"
        return f"{counted(self.usable, 'core')} ({self.allowed} by affinity, {quota})"


@dataclass(frozen=True)
class Card:
    """A GPU: its name and the bytes that are free on it."""

    name: str
    free_bytes: int


def cores(groups: Path = _GROUPS, process: Path = _PROCESS) -> Cores:
    """Return this process's cores; `groups` and `process` are where the kernel shows the control groups."""
    quotas = [each for folder in _folders(groups, process, "cpu") if (each := _quota(folder)) is not None]
    # Not every system says which cores a process may use.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Cores(allowed, min(quotas, default=None))


def free_memory(groups: Path = _GROUPS, process: Path = _PROCESS) -> int:
    """Return the bytes of memory that this machine, or the container, can still give; files' cache counts as free."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    left = (_left(folder) for folder in _folders(groups, process, "memory"))
    return max(0, min([free, *(each for each in left if each is not None)]))


def cards() -> list[Card]:
    """Return the GPUs of this machine, as `nvidia-smi` lists them; only those that CUDA_VISIBLE_DEVICES names.

    Raises:
        ValueError: there is none, or `nvidia-smi` does not answer.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        raise ValueError("device: cuda needs an NVIDIA GPU and its driver, and nvidia-smi lists none") from None
    found = read_cards(said)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and all(part.strip().isdigit() for part in visible.split(",")):
        found = [found[int(part)] for part in visible.split(",") if int(part) < len(found)]
    if not found:
        raise ValueError("device: cuda needs an NVIDIA GPU, and nvidia-smi lists none that is visible here")
    return found


def read_cards(listed: str) -> list[Card]:
    """Return the GPUs of nvidia-smi's list: a line each, of its name and its free MiB.

    Raises:
        ValueError: a line is not of this form.
    """
    found = []
    for line in filter(None, map(str.strip, listed.splitlines())):
        name, _, free = line.rpartition(",")
        if not free.strip().isdigit():
            raise ValueError(f"nvidia-smi says {line!r}, which is not a GPU with its free memory")
        found.append(Card(name.strip(), int(free) * 1024 * 1024))
    return found


def _folders(groups: Path, process: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups above a process that may have a controller's limits."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        named, _, path = rest.partition(":")
        if number == "0" and not named:
            root = groups
        elif controller in named.split(","):
            # The hierarchy of several controllers has a folder of all their names, and links of single ones.
            root = groups / named if (groups / named).is_dir() else groups / controller
        else:
            continue
        # A container may see its own group as the root while the kernel names it by the host's path.
        yield root
        inner = root / path.strip("/")
        while inner != root and inner.is_relative_to(root):
            yield inner
            inner = inner.parent


def _quota(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us, period_us = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        return quota_us / period_us if quota_us > 0 and period_us > 0 else None
    return None


def _left(folder: Path) -> int | None:
    """Return the bytes that a control group can still take; None if it has no bound."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            return _number(folder / limit) - _number(folder / used) + _cached(folder / "memory.stat", cache)
    return None


def _cached(statistics: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in statistics.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))
