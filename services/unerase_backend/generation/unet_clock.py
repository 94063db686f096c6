"""Measures the time inside the UNet, for the metrics."""

import time
from typing import Any

import torch

from unerase_backend.diffusion.model import DiffusionModel


class UNetClock:
    """Adds up the time of the calls of UNets.

    A GPU computes after the call has returned, so that its time is measured by events on the device; calls that have
    not ended count when the clock is next read.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._running: list[tuple[Any, Any]] = []

    def attach(self, model: DiffusionModel) -> None:
        """Measure the calls of this model's UNet from now on."""
        if model.graph is not None:
            model.graph.timed = self._add
        unet = model.denoiser
        on_gpu = model.device.type == "cuda"
        begun: list[Any] = []

        def now() -> Any:
            if not on_gpu:
                return time.perf_counter()
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event

        def begin(*_: object) -> None:
            begun[:] = [now()]

        def end(*_: object) -> None:
            if on_gpu:
                self._running.append((begun[0], now()))
            else:
                self._add(now() - begun[0])

        unet.register_forward_pre_hook(begin)
        unet.register_forward_hook(end)

    def _add(self, seconds: float) -> None:
        self._seconds += seconds

    def take(self) -> float:
        """Return the seconds since the clock was last read."""
        ended = [pair for pair in self._running if pair[1].query()]
        self._running = self._running[len(ended) :]
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in ended) / 1000
        self._seconds = 0.0
        return float(seconds)
