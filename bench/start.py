"""How long a backend takes until it listens, and what it holds then without a model: the median of five starts."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.figures import figure
from bench.processes import Running, backend, cpu_seconds, pss

STARTS = 5


def measure() -> list[dict[str, Any]]:
    """Return `serve.start_seconds` and `memory.at_rest_mb`."""
    started = [_started() for _ in range(STARTS)]
    seconds = [running.start_seconds for running, _, _ in started]
    return [
        figure(
            "serve.start_seconds",
            round(statistics.median(seconds), 1),
            spread=[round(each, 1) for each in sorted(seconds)],
            cpu_seconds=[round(cpu, 1) for _, cpu, _ in started],
        ),
        figure("memory.at_rest_mb", round(statistics.median(memory for _, _, memory in started) / 1e6)),
    ]


def _started() -> tuple[Running, float, int]:
    """Return a backend that has started and ended since, its CPU seconds and its bytes when it listened."""
    with tempfile.TemporaryDirectory() as folder, backend(Path(folder)) as running:
        return running, sum(cpu_seconds(running.process).values()), pss(running.process)
