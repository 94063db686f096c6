"""What a whole audit costs against published code, and what the machine does meanwhile.

The audit is the standard battery with 12 cases and 50 steps on `testbed/uce`, from an empty store, with a backend whose
processes may use two cores and, once more, one. Published code's time is that of `bench.published_loop`: the median
seconds of each operation, taken before and after the backends run, times the counts that follow from the audit's own
cost (`bench.published_counts`). Published code has no store, so a second subject costs it as much as the first.

    cores busy        CPU seconds of all processes of the backend, Ray's included, over wall seconds times cores
    batch fill        rows in use over all rows of generation's UNet calls, by the rooms' metrics
    UNet's share      seconds in generation's UNet calls and in the attacks' optimisations, which are the UNet forward
                      and backward but for a few percent, over the CPU seconds of all processes. The seconds are those
                      of a clock on the wall: of a room they count up to the CPU time that the room took
    quick             the quick battery with 12 cases from an empty store, from the request to the verdict
"""

import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import sched_getaffinity
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.figures import figure
from bench.processes import Running, backend, cpu_seconds
from bench.published_counts import counts_of, seconds_of
from bench.published_time import loop_seconds, medians
from unerase import Audit, AuditSpec, AuditState, Battery, Client

FIRST, SECOND = "testbed/uce", "testbed/redirected"
CASES = 12
STEPS = 50
CORES = 2
# Ray forwards the rooms' metrics every ten seconds.
FORWARDED_SECONDS = 12.0
LOOKS = 5


@dataclass(frozen=True)
class Audited:
    """An audit that was made, and what it took."""

    audit: Audit
    seconds: float
    cpu: Mapping[str, float]
    """CPU seconds by room."""

    def busy(self, cores: int) -> float:
        """Return the share of so many cores that was used."""
        return sum(self.cpu.values()) / (self.seconds * cores)


def measure() -> list[dict[str, Any]]:
    """Return the figures whose names begin with `audit.`."""
    cores = sorted(sched_getaffinity(0))[:CORES]
    if len(cores) < CORES:
        raise RuntimeError(f"this bench needs {CORES} cores, and this process may use {len(cores)}")
    before = loop_seconds(cores)
    with tempfile.TemporaryDirectory() as folder:
        with backend(Path(folder) / "two", cores=cores) as running:
            first = _audited(running, FIRST, "standard")
            rooms = _settled(running.rooms_metrics_url)
            second = _audited(running, SECOND, "standard")
        with backend(Path(folder) / "quick", cores=cores) as running:
            quick = _audited(running, FIRST, "quick")
        with backend(Path(folder) / "one", cores=cores[:1]) as running:
            alone = _audited(running, FIRST, "standard")
    seconds = medians(before, loop_seconds(cores))
    return [
        *_loops(first, second, seconds),
        figure("audit.cores_busy_1", round(alone.busy(1), 3), seconds=round(alone.seconds, 1), cpu=_rounded(alone.cpu)),
        figure("audit.cores_busy_2", round(first.busy(2), 3), cpu=_rounded(first.cpu)),
        figure("audit.batch_fill", round(_of(rooms, "rows") / _of(rooms, "places"), 3)),
        figure("audit.unet_share_of_cpu", round(_unet_share(rooms, first.cpu), 3)),
        figure("audit.quick_seconds", round(quick.seconds, 1), cpu=_rounded(quick.cpu)),
    ]


def _loops(first: Audited, second: Audited, seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return published code's time over that of both audits."""
    figures = []
    for name, made in (("audit.over_published_loop", first), ("audit.second_subject_over_loop", second)):
        of_evaluations = seconds_of(counts_of(made.audit.cost, made.audit.spec), seconds)
        total = sum(of_evaluations.values())
        figures.append(
            figure(
                name,
                round(total / made.seconds, 2),
                seconds=round(made.seconds, 1),
                loop_seconds=round(total),
                loop_by_evaluation=_rounded(of_evaluations),
                operations={operation: round(each, 5) for operation, each in seconds.items()},
            )
        )
    return figures


def _audited(running: Running, subject: str, preset: str) -> Audited:
    spec = AuditSpec(subject=subject, concept="hourglass", battery=Battery(preset=preset), cases=CASES, seed_base=1)
    if preset == "standard":
        spec.steps = STEPS
    before = cpu_seconds(running.process)
    with Client(running.address) as client:
        begun = time.perf_counter()
        audit = client.audit(spec)
        seconds = time.perf_counter() - begun
    if audit.state != AuditState.AUDIT_STATE_SUCCEEDED:
        raise RuntimeError(f"the audit of {subject} did not succeed: {audit.error_message}")
    after = cpu_seconds(running.process)
    made = Audited(audit, seconds, {room: spent - before.get(room, 0.0) for room, spent in after.items()})
    shown = ", ".join(f"{room} {spent:.0f} s" for room, spent in sorted(made.cpu.items()))
    print(f"{subject}, {preset}: {seconds:.0f} s; CPU: {shown}", file=sys.stderr, flush=True)
    return made


def _settled(url: str) -> dict[str, float]:
    """Return the rooms' metrics by name without Ray's prefix, once they do not change any more."""
    found = _scraped(url)
    for _ in range(LOOKS):
        time.sleep(FORWARDED_SECONDS)
        before, found = found, _scraped(url)
        if found == before:
            return found
    raise RuntimeError("the rooms' metrics go on changing after the audit has ended")


def _scraped(url: str) -> dict[str, float]:
    """Return the sums of our counters over replicas and labels."""
    with urllib.request.urlopen(url) as response:  # noqa: S310 - the backend's own address on loopback
        families: Iterable[Any] = text_string_to_metric_families(response.read().decode())
    sums: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix("ray_")
            if name.startswith("unerase_") and name.endswith("_total"):
                sums[name] = sums.get(name, 0.0) + sample.value
    return sums


def _of(rooms: Mapping[str, float], what: str) -> float:
    return rooms[f"unerase_generation_{what}_total"]


def _unet_share(rooms: Mapping[str, float], cpu: Mapping[str, float]) -> float:
    pictures = min(_of(rooms, "unet_seconds"), cpu["generation"])
    attacks = min(rooms.get("unerase_attack_compute_seconds_total", 0.0), cpu["attack"])
    return (pictures + attacks) / sum(cpu.values())


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in sorted(values.items())}
