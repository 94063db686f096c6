"""What an evaluation says that it takes, against what it does: trajectories, measured errors, passes of attacks."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from torch.nn.modules.module import register_module_forward_pre_hook

from conformance.conftest import small_unit, units_of_controls
from support.backend import LocalBackend, blind_to_estimates, evaluations, local_backend
from unerase.internal.v1alpha1.generation_pb2 import (
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
)
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_UNSPECIFIED,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    ControlKind,
)
from unerase_backend.evaluation.cost import Surroundings, work_of
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.generation.metrics import GenerationMetrics


@dataclass
class Counting:
    """Backends that count what they are asked for."""

    whole: Models
    pictures: int = 0
    rows: int = 0
    attack_rows: int = field(default=0)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        for trajectory in request.trajectories:
            begin = trajectory.resumption.step if trajectory.HasField("resumption") else 0
            steps = (trajectory.stop_step or trajectory.steps) - begin
            self.rows += steps * (1 if trajectory.guidance_scale == 1 else 2)
        async for response in self.whole.generate_stream(request):
            self.pictures += bool(response.sample.picture_digest)
            yield response

    async def measure(self, request: MeasureDenoisingRequest) -> MeasureDenoisingResponse:
        self.rows += len(request.picture_digests) * len(request.prompts) * len(request.timesteps)
        return await self.whole.measure_pictures(request)

    def models(self) -> Models:
        return Models(self.generate, self.whole.encode_prompts, self.measure, self.whole.classify_pictures)

    @contextmanager
    def watching_attacks(self) -> Iterator[None]:
        """Count the rows of every UNet that runs in the attack room's thread."""

        def count(module: Any, arguments: tuple[Any, ...]) -> None:
            if isinstance(module, UNet2DConditionModel) and threading.current_thread().name.startswith("attack"):
                self.attack_rows += len(arguments[0])

        handle = register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()


@pytest.mark.parametrize("cases", [1, 3])
@pytest.mark.parametrize("name", sorted(evaluations()))
async def test_it_takes_what_it_says(name: str, cases: int, local: LocalBackend) -> None:
    await taken_as_said(small_unit(local, name, cases=cases), local)


@pytest.mark.parametrize(("name", "kind"), [*units_of_controls(), ("diffusion-completion", CONTROL_KIND_UNSPECIFIED)])
async def test_a_control_takes_what_it_says(name: str, kind: ControlKind.ValueType, local: LocalBackend) -> None:
    unit = small_unit(local, name, control_kind=kind)
    if not kind:
        # Completion without held-out pictures has half the arms.
        unit.target.concept.ClearField("picture_digests")
    await taken_as_said(unit, local)


SEARCHING = sorted(name for name, each in evaluations().items() if "unit.searches" in each.description.rows)


def test_attacks_that_search_are_counted_apart() -> None:
    assert SEARCHING == ["p4d", "relearning", "textual-inversion", "unlearn-diff-atk"]


@pytest.mark.parametrize("name", SEARCHING)
async def test_what_both_accesses_search_for_is_counted_once(name: str, local: LocalBackend) -> None:
    unit = small_unit(local, name, seed_base=7)
    unit.access = MODEL_ACCESS_OPEN_WEIGHTS
    searched = await taken_as_said(unit, local)
    unit.access, unit.search_shared = MODEL_ACCESS_DEPLOYED, True
    assert await taken_as_said(unit, local) < searched


async def taken_as_said(unit: Unit, local: LocalBackend) -> int:
    """Compare what a unit takes with its evaluation's formulas, and return its rows; no beginning is excluded here."""
    name = unit.evaluation
    description = evaluations()[name].description
    parameters = resolve_parameters(description, unit.parameters)
    said = work_of(unit, description, parameters, Surroundings.of(unit.target, unit.others))
    assert not said.assumed
    counting = Counting(blind_to_estimates(local.models))
    with counting.watching_attacks():
        await local.run(unit, counting.models())
    rows = counting.rows + counting.attack_rows
    assert counting.pictures == said.pictures
    assert rows == said.rows
    return rows


@dataclass
class Ticks(GenerationMetrics):
    rows: int = 0
    finished_pictures: int = 0

    def ticked(self, unet_seconds: float, rows: int, called: int) -> None:
        self.rows += rows

    def finished(self, pictures: int, *, cached: bool) -> None:
        self.finished_pictures += pictures * (not cached)


async def test_what_is_asked_for_is_what_the_sampler_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    ticks = Ticks()
    async with local_backend(tmp_path_factory.mktemp("counted"), metrics=ticks) as backend:
        unit = small_unit(backend, "noise-based", cases=3, steps=6)
        await backend.run(unit)
        description = evaluations()["noise-based"].description
        parameters = resolve_parameters(description, unit.parameters)
        said = work_of(unit, description, parameters, Surroundings.of(unit.target, unit.others))
    assert ticks.finished_pictures == said.pictures
    assert ticks.rows == said.rows
