"""Times calls on a device within a budget of seconds, and says what memory they took at most."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class Clock:
    """The seconds that a whole run may take, of which each part gets a share."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def share(self, of_all: float) -> float:
        """Return `of_all` seconds, or fewer where less is left; never negative."""
        return max(0.0, min(of_all, self._until - time.monotonic()))


@dataclass(frozen=True)
class Timed:
    """The mean time of a call, after one that warms up."""

    seconds: float
    calls: int
    """0 if there was time for the first call alone, which counts then."""
    peak_gb: float | None
    """Of the device's memory, weights included; None on a CPU."""

    def figures(self, rows: int) -> dict[str, Any]:
        """Return what build/bench-gpu.json says of calls of so many rows."""
        told = {"seconds": _short(self.seconds), "rows_a_second": _short(rows / self.seconds), "calls": self.calls}
        return told if self.peak_gb is None else told | {"peak_gb": round(self.peak_gb, 2)}


def timed(call: Callable[[], object], device: torch.device, seconds: float, most: int = 50) -> Timed:
    """Call again and again for about `seconds`, at most `most` times after the first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first = once(call, device)
    calls = min(most, int((seconds - first) / first))
    if calls < 1:
        return Timed(first, 0, peak_gb(device))

    def repeated() -> None:
        for _ in range(calls):
            call()

    return Timed(once(repeated, device) / calls, calls, peak_gb(device))


def once(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, until the device has computed it."""
    _wait(device)
    begun = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begun


def peak_gb(device: torch.device) -> float | None:
    """Return the most memory that was allocated since this was last counted anew; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
