"""What campaigns cost: the coordinator's share of the CPU time, its memory by the number of cells, and how busy it
keeps many rooms at once.

The share is that of real audits on the testbed: CPU time of the coordinator's process, its database included, over that
of the backend's whole process tree. A campaign that says nothing else makes audits with the default battery; those with
the preset `quick`, the smallest that there are, have a figure of their own. Memory and efficiency are measured with a
real coordinator and database whose rooms are simulated (`tests/support/simulated.py`): a unit only waits. Fifty
replicas are replicas of Ray Serve behind its handles; for two hundred, more processes than a small machine starts, the
rooms are in the coordinator's process. Efficiency is the time that the simulated replicas were busy over the time that
they were there, from the moment when the first unit began to the moment when the last one began. The coordinator's CPU
time for a unit is that of the larger of these campaigns, from its creation to its end, over its units.
"""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
from google.protobuf import json_format

from bench.figures import figure
from bench.processes import backend, cpu_seconds
from support.simulated import say, simulated_coordinator
from support.small_files import write_pipeline, write_weights
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignSpec,
    CancelCampaignRequest,
    CreateCampaignRequest,
    GetCampaignReportRequest,
    GetCampaignRequest,
    WatchCampaignRequest,
)
from unerase.v1.campaigns_pb2_grpc import CampaignServiceStub
from unerase_backend.catalogue import EMBEDDED

SUBJECTS = ("testbed/uce", "testbed/redirected", "testbed/esd-x", "testbed/rece")
AUDITED_CASES = 12
CELLS = (100, 10_000)
ENDED_CELLS = 200
WINDOW = 64
REPLICAS = (50, 200)
SERVE_REPLICAS = 50
"""At most so many replicas are processes of Ray Serve."""
UNIT_SECONDS = 60.0
ROUNDS = 3
LOOK_SECONDS = 0.2
MODELS = 5_000
_CATALOGUE = """
judges:
  clip: {kind: clip, path: clip}
  first: {kind: classifier, path: first}
  second: {kind: classifier, path: second}
concepts:
  hourglass:
    kind: object
    names: [hourglass]
    prompts: ["a {concept}", "the {concept}"]
    labels: {clip: [an hourglass], first: [hourglass], second: [hourglass]}
    control: small/never
  circle:
    kind: object
    names: [circle]
    prompts: ["a {concept}", "the {concept}"]
    labels: {clip: [a circle], first: [circle], second: [circle]}
    control: small/never
models:
  small/reference: {pipeline: small, guidance_scale: 3.0, steps: 40, resolution: 32}
  small/never: {base: small/reference, unet: never.safetensors, never_learned: [hourglass, circle]}
"""


def measure() -> list[dict[str, Any]]:
    """Return the figures whose names begin with `campaign.`."""
    share, of_quick = _coordinator_share({}), _coordinator_share({"battery": {"preset": "quick"}})
    with tempfile.TemporaryDirectory() as folder:
        catalogue = _catalogue(Path(folder) / "catalogue")
        few, many = (_peak_mb(Path(folder) / f"cells-{cells}", catalogue, cells) for cells in CELLS)
        per_10k = (many - few) / (CELLS[1] - CELLS[0]) * 10_000
        fanned = {count: _fanned_out(Path(folder) / f"fan-{count}", catalogue, count) for count in REPLICAS}
    return [
        figure("campaign.coordinator_share", round(share, 3)),
        figure("campaign.coordinator_share_quick", round(of_quick, 3)),
        figure("campaign.memory_per_10k_cells_mb", round(per_10k, 1)),
        *(
            figure(f"campaign.fanout_efficiency_{count}", round(efficiency, 3))
            for count, (efficiency, _) in fanned.items()
        ),
        figure("campaign.coordinator_ms_per_unit", round(fanned[max(REPLICAS)][1], 1)),
    ]


def _coordinator_share(template: dict[str, Any]) -> float:
    with (
        tempfile.TemporaryDirectory() as folder,
        backend(Path(folder)) as running,
        _service(running.address) as service,
    ):
        before = cpu_seconds(running.process)
        _whole(service, _spec(SUBJECTS, ["hourglass"], {"cases": AUDITED_CASES, "seedBase": 1, **template}))
        after = cpu_seconds(running.process)
    spent = {name: after[name] - before.get(name, 0.0) for name in after}
    _say(", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(spent.items()) if seconds > 1))
    return spent["coordinator"] / sum(spent.values())


def _peak_mb(folder: Path, catalogue: Path, cells: int) -> float:
    """Return the coordinator's peak of memory in a campaign, up to its cancellation and its report."""
    subjects = [f"edited/{number}" for number in range(cells // 2)]
    with _coordinator(folder, catalogue, concurrent_units=32) as (process, service):
        with _peak(process) as peak:
            campaign = _create(service, _spec(subjects, ["hourglass", "circle"], _SMALL, window=WINDOW))
            wanted = min(cells, ENDED_CELLS)
            for event in service.WatchCampaign(WatchCampaignRequest(id=campaign.id), timeout=3600):
                counts = (
                    service.GetCampaign(GetCampaignRequest(id=campaign.id)).cells if event.sequence % 50 == 0 else None
                )
                if counts is not None and counts.succeeded >= wanted:
                    break
            service.CancelCampaign(CancelCampaignRequest(id=campaign.id), timeout=600)
            for _ in service.GetCampaignReport(GetCampaignReportRequest(id=campaign.id), timeout=600):
                pass
        _say(f"{cells} cells: {peak.megabytes:.0f} MB")
    return peak.megabytes


def _fanned_out(folder: Path, catalogue: Path, replicas: int) -> tuple[float, float]:
    """Return the efficiency of so many replicas, and the coordinator's CPU time for a unit in milliseconds."""
    subjects = [f"edited/{number}" for number in range(replicas * ROUNDS // 2)]
    say(folder, "takes")
    (folder / "said" / "takes").write_text(str(UNIT_SECONDS))
    serve_replicas = replicas if replicas <= SERVE_REPLICAS else 0
    with _coordinator(folder, catalogue, serve_replicas=serve_replicas, concurrent_units=replicas) as running:
        process, service = running
        before = process.cpu_times()
        _whole(service, _spec(subjects, ["hourglass", "circle"], _SMALL, window=min(2 * replicas, 1024)))
        after = process.cpu_times()
    lines = (folder / "said" / "took").read_text().splitlines()
    spans = sorted((float(begin), float(end)) for begin, end in map(str.split, lines))
    seconds = after.user + after.system - before.user - before.system
    return _busy(spans, replicas), 1000 * seconds / len(spans)


def _busy(spans: Sequence[tuple[float, float]], replicas: int) -> float:
    """Return the share of their time that the replicas were busy, from the first to the last beginning of a unit."""
    since, until = spans[0][0], spans[-1][0]
    busy = sum(min(end, until) - begin for begin, end in spans)
    return busy / (replicas * (until - since))


_SMALL: dict[str, Any] = {
    "cases": 2,
    "steps": 2,
    "battery": {"evaluations": [{"name": "standard-prompt"}], "allowIncomplete": True},
    "seedBase": 1,
}


def _spec(subjects: Any, concepts: list[str], template: dict[str, Any], **more: Any) -> CampaignSpec:
    whole = {"subjects": list(subjects), "concepts": concepts, "template": template, **more}
    return json_format.ParseDict(whole, CampaignSpec())


def _create(service: CampaignServiceStub, spec: CampaignSpec) -> Campaign:
    campaign: Campaign = service.CreateCampaign(CreateCampaignRequest(request_id="bench", spec=spec), timeout=600)
    return campaign


def _whole(service: CampaignServiceStub, spec: CampaignSpec) -> None:
    campaign = _create(service, spec)
    for _ in service.WatchCampaign(WatchCampaignRequest(id=campaign.id), timeout=7200):
        pass
    ended = service.GetCampaign(GetCampaignRequest(id=campaign.id))
    if ended.cells.succeeded != ended.cells_total:
        raise RuntimeError(f"only {ended.cells.succeeded} of {ended.cells_total} cells succeeded")


@contextmanager
def _service(address: str) -> Iterator[CampaignServiceStub]:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield CampaignServiceStub(channel)


@contextmanager
def _coordinator(
    folder: Path, catalogue: Path, **settings: Any
) -> Iterator[tuple[psutil.Process, CampaignServiceStub]]:
    with simulated_coordinator(folder, catalogue, **settings) as running, _service(running.address) as service:
        yield psutil.Process(running.process.pid), service


class _Peak:
    megabytes = 0.0


@contextmanager
def _peak(process: psutil.Process) -> Iterator[_Peak]:
    """Look at a process's memory for as long as the context lasts, and keep the most."""
    ended, peak = threading.Event(), _Peak()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            peak.megabytes = max(peak.megabytes, process.memory_info().rss / 1e6)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _catalogue(folder: Path) -> Path:
    """Write a catalogue of many models with the same small files."""
    write_pipeline(folder / "small", "small")
    for judge in ("clip", "first", "second"):
        (folder / judge).mkdir()
        write_weights(folder / judge / "model.safetensors", judge)
    for file in (EMBEDDED.parent / "clip").glob("*.json"):
        shutil.copy(file, folder / "clip")
    for change in ("never", "edited"):
        write_weights(folder / f"{change}.safetensors", change)
    models = "".join(
        f"  edited/{number}: {{base: small/reference, unet: edited.safetensors, erased: [hourglass]}}\n"
        for number in range(MODELS)
    )
    path = folder / "catalogue.yaml"
    path.write_text(_CATALOGUE + models)
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
