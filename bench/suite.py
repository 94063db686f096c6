"""What a whole audit costs: the standard battery with 24 cases, each evaluation's share, a second subject's cost, and
what stopping early saves.

The backend is a fresh one with an empty store. An evaluation's share is that of its units in the time of all units,
which run side by side. The second subject has the same reference and seed base. The sequential audit repeats the first
subject's under a seed base that nothing remembers; the saving is 1 - sequential / first.
"""

import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.figures import figure
from bench.processes import backend
from unerase import AuditSpec, Battery, Client

FIRST, SECOND = "testbed/uce", "testbed/redirected"
CASES = 24


def measure() -> list[dict[str, Any]]:
    """Return `suite.seconds_per_audit` and its companions."""
    with tempfile.TemporaryDirectory() as folder, backend(Path(folder)) as running:
        first = _seconds(running.address, FIRST, seed_base=1)
        units = _unit_seconds(running.metrics_url)
        second = _seconds(running.address, SECOND, seed_base=1)
        sequential = _seconds(running.address, FIRST, seed_base=2, sequential=True)
    total = sum(units.values())
    shares = {name: round(seconds / total, 3) for name, seconds in sorted(units.items())}
    return [
        figure("suite.seconds_per_audit", round(first), shares=shares),
        figure("suite.seconds_of_second_subject", round(second)),
        figure("suite.sequential_saving", round(1 - sequential / first, 3)),
    ]


def _seconds(address: str, subject: str, *, seed_base: int, sequential: bool = False) -> float:
    spec = AuditSpec(
        subject=subject,
        concept="hourglass",
        battery=Battery(preset="standard"),
        cases=CASES,
        seed_base=seed_base,
        sequential=sequential,
    )
    with Client(address) as client:
        begun = time.perf_counter()
        client.audit(spec)
        seconds = time.perf_counter() - begun
    print(
        f"{subject}, seed base {seed_base}{', sequential' * sequential}: {seconds:.0f} s", file=sys.stderr, flush=True
    )
    return seconds


def _unit_seconds(url: str) -> dict[str, float]:
    """Return the seconds that units have run, by evaluation."""
    with urllib.request.urlopen(url) as response:  # noqa: S310 - the backend's own address on loopback
        families: Iterable[Any] = text_string_to_metric_families(response.read().decode())
    return {
        sample.labels["evaluation"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "unerase_unit_seconds_sum"
    }
