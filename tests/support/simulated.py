"""A coordinator in a process of its own whose rooms answer at once with made-up pictures.

The rooms are in the coordinator's process, without Ray; or, for a bench, behind Serve's handles (`simulated_serve`).
Everything of the coordinator is real: server, database, workflows. What a unit's pictures show is a function of its
model and case alone. Tests say by files in the folder `said` what happens:

    said/hold-NAME    units of the model NAME wait for as long as the file exists; NAME "all" is every model
    said/fail-NAME    units of the model NAME fail
    said/show-NAME    pictures of the model NAME show every concept, although its name says that it was edited
    said/takes        seconds that a unit takes on average: between half and one and a half times as long
    said/families     when the coordinator starts: pipelines with "as_flux" in their UNet's configuration are of FLUX.1
                      dev's family, and there is a second probe, which needs what that family lacks
    said/begun        a line for each unit that began: its model, role, concept, evaluation and cases
    said/took         with `takes`, a line for each unit that ended: when it began and when it ended
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from support.coordinators import Coordinator, free_port
from unerase.internal.v1alpha1.attack_pb2 import ListAttacksResponse
from unerase.internal.v1alpha1.classification_pb2 import DescribeClassificationResponse
from unerase.internal.v1alpha1.generation_pb2 import DescribeGenerationResponse
from unerase.internal.v1alpha1.probing_pb2 import ListProbesResponse, ProbeRequest, ProbeResponse
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitEvent
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_ELICITING,
    EVALUATION_CLASS_PLAIN,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    SAMPLE_STATUS_SCORED,
    EvaluationDescription,
    Judgement,
    ModelRole,
    Observation,
)
from unerase_backend.runtime.errors import UnsafeModelError

PROBE = EvaluationDescription(
    name="standard-prompt",
    title="Standard prompt",
    summary="One picture for each prompt and seed.",
    evaluation_class=EVALUATION_CLASS_PLAIN,
    required=True,
    cases_per_unit=24,
    pictures="unit.cases",
    rows="unit.cases * unit.steps",
)
UNGUIDED = EvaluationDescription(
    name="unguided",
    title="Unguided",
    summary="One picture for each prompt and seed, without guidance.",
    evaluation_class=EVALUATION_CLASS_ELICITING,
    required=True,
    needs=[MODEL_CAPABILITY_UNGUIDED_ROW],
    cases_per_unit=24,
    pictures="unit.cases",
    rows="unit.cases * unit.steps",
)


class Rooms:
    """The four rooms; `said` is the folder by which tests say what happens."""

    def __init__(self, said: Path) -> None:
        self._said = said

    async def call(self, method: str, *arguments: Any, **_: Any) -> Any:
        """Answer a unary call."""
        return {
            "ListProbes": ListProbesResponse(probes=[PROBE, UNGUIDED] if _with_families(self._said) else [PROBE]),
            "ListAttacks": ListAttacksResponse(),
            "DescribeGeneration": DescribeGenerationResponse(numerics_profile="simulated"),
            "DescribeClassification": DescribeClassificationResponse(numerics_profile="simulated"),
        }[method]

    async def stream(self, method: str, request: ProbeRequest, **_: Any) -> AsyncIterator[ProbeResponse]:
        """Answer with a unit's observations."""
        unit = request.unit
        role = ModelRole.Name(unit.role).removeprefix("MODEL_ROLE_").lower()
        with (self._said / "begun").open("a") as file:
            file.write(f"{unit.model} {role} {unit.target.concept.name} {unit.evaluation} {len(unit.cases)}\n")
        held = [self._said / f"hold-{name.replace('/', '-')}" for name in (unit.model, "all")]
        # Another process says when it goes on.
        while any(file.exists() for file in held):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self._take_time()
        if (self._said / f"fail-{unit.model.replace('/', '-')}").exists():
            raise UnsafeModelError("the unet is not there", reason="MODEL_INCOMPLETE", metadata={"model": unit.model})
        told = (self._said / f"show-{unit.model.replace('/', '-')}").exists()
        for observation in _observations(unit, told):
            yield ProbeResponse(event=UnitEvent(observation=observation))

    async def _take_time(self) -> None:
        if not (file := self._said / "takes").exists():
            return
        begun = time.monotonic()
        await asyncio.sleep(float(file.read_text()) * (0.5 + random.random()))
        with (self._said / "took").open("a") as took:
            took.write(f"{begun} {time.monotonic()}\n")


def _with_families(said: Path) -> bool:
    return (said / "families").exists()


def _observations(unit: Unit, told: bool) -> Iterator[Observation]:
    edited = "edited" in unit.model and not told
    shown = unit.role == MODEL_ROLE_REFERENCE or (unit.role != MODEL_ROLE_CONTROL and not edited)
    judges = (unit.target.selector.judge, unit.target.judge.judge, unit.target.second_judge.judge)
    for case in unit.cases:
        yield Observation(
            evaluation=unit.evaluation,
            role=unit.role,
            model=unit.model,
            concept=unit.target.concept.name,
            case_index=case.index,
            status=SAMPLE_STATUS_SCORED,
            judgements=[Judgement(judge=judge, score=float(shown), detected=shown) for judge in judges],
            prompt=case.prompt,
            latent_seed=case.latent_seed,
        )


@contextmanager
def simulated_coordinator(
    folder: Path, catalogue: Path | None = None, serve_replicas: int = 0, **settings: Any
) -> Iterator[Coordinator]:
    """Start a coordinator with `folder` for its state, its artefacts and `said`; kill it in the end.

    Without a catalogue it has the testbed's. With `serve_replicas` the rooms are on Ray Serve, the probes with so many
    replicas.
    """
    running = start_simulated(folder, catalogue, serve_replicas, **settings)
    try:
        yield running
    finally:
        running.end()


def start_simulated(
    folder: Path, catalogue: Path | None = None, serve_replicas: int = 0, **settings: Any
) -> Coordinator:
    """Start a coordinator and return once it listens; those of one `folder` share artefacts and `said`."""
    (folder / "said").mkdir(parents=True, exist_ok=True)
    port = free_port()
    whole = {
        "state": str(folder / "state"),
        "artifacts": str(folder / "artifacts"),
        "catalogues": [str(catalogue)] if catalogue else [],
        "port": port,
        "lease_seconds": 2,
        **settings,
    }
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.simulated", str(folder / "said"), json.dumps(whole), str(serve_replicas)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    # Ray writes there as well.
    if "up\n" not in iter(process.stdout or ()):
        process.kill()
        raise RuntimeError((folder / "log").read_text())
    return Coordinator(process, f"127.0.0.1:{port}")


def say(folder: Path, what: str) -> None:
    """Say something to the simulated rooms, as in "hold-all"."""
    (folder / "said").mkdir(parents=True, exist_ok=True)
    (folder / "said" / what.replace("/", "-")).touch()


def unsay(folder: Path, what: str) -> None:
    """Take back what was said."""
    (folder / "said" / what.replace("/", "-")).unlink()


def begun(folder: Path) -> list[list[str]]:
    """Return the units that began, in order: model, role, concept, evaluation and cases of each."""
    file = folder / "said" / "begun"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


async def _main(on_serve: bool) -> None:
    from support.families import AS_FLUX_BY_KEY
    from unerase_backend.catalogue import Catalogue, model_families
    from unerase_backend.coordinator import running
    from unerase_backend.coordinator.settings import CoordinatorSettings
    from unerase_backend.runtime import handles

    if not on_serve:
        rooms: Any = Rooms(Path(sys.argv[1]))
        for room in (handles.GENERATION, handles.CLASSIFICATION, handles.PROBING, handles.ATTACK):
            room.call, room.stream = rooms.call, rooms.stream  # type: ignore[method-assign]
        running.rooms_serving = lambda asked: dict.fromkeys(asked, True)
    if _with_families(Path(sys.argv[1])):
        model_families.FAMILIES = (AS_FLUX_BY_KEY, *model_families.FAMILIES)
    settings = CoordinatorSettings.model_validate_json(sys.argv[2])
    if settings.catalogues:
        # The test's catalogue alone, which has the testbed's names.
        Catalogue.load = partial(Catalogue.load, embedded=Path("none"))  # type: ignore[method-assign]
    coordinator = running.RunningCoordinator(settings)
    await coordinator.begin()
    print("up", flush=True)
    await asyncio.Event().wait()


def until(holds: Any, seconds: float = 60.0) -> Any:
    """Return what `holds` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


if __name__ == "__main__":
    if serve_replicas := int(sys.argv[3]):
        from support.simulated_serve import deploy

        # Ray's processes end with the thread that started them.
        deploy(Path(sys.argv[1]), serve_replicas)
    asyncio.run(_main(on_serve=serve_replicas > 0))
