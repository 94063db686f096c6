"""Pictures beside the search: what is found is that of a search that waits, and an error ends both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import pytest

from attack.conftest import attacked
from attack.counting import Steps
from unerase.internal.v1alpha1.attack_pb2 import AttackRequest
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import Observation
from unerase_backend.attack import engine as engine_module
from unerase_backend.attack import trials
from unerase_backend.attack.attacks import p4d, unlearn_diff_atk
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.prompts import CaseRecord, Draw, Turn, conclude, words_of
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.attack.token_search import take_turn
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.units import resolve_unit
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UnavailableError

UnitOf = Callable[..., Unit]
EngineWith = Callable[..., AttackEngine]
Run = Callable[[Unit, Models, Workbench], Awaitable[list[Observation]]]
P4D = {"evaluation": "p4d", "starts": 3, "iterations": 2, "rows": 3}
UNLEARN_DIFF_ATK = {"evaluation": "unlearn-diff-atk", "timesteps": 3, "iterations": 2, "rows": 3}
LONG = {"evaluation": "unlearn-diff-atk", "timesteps": 200, "iterations": 1000, "rows": 1}


@pytest.fixture
def engine_with(catalogue: Catalogue, store: ArtifactStore) -> EngineWith:
    """Makes an engine with backends of its own."""

    def make(models: Models, steps: Steps | None = None) -> AttackEngine:
        return AttackEngine(catalogue, store, AttackSettings(artifacts="unused"), models, steps)

    return make


class Held:
    """Backends that note the pictures of each request, and make none until they are let go."""

    def __init__(self, models: Models) -> None:
        self.let_go = asyncio.Event()
        self.asked: list[int] = []
        self.in_flight = self.most = 0
        self.models = replace(models, generate_stream=self._generate)
        self._generate_stream = models.generate_stream

    async def _generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        self.asked.append(len(request.trajectories))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await self.let_go.wait()
            async for response in self._generate_stream(request):
                yield response
        finally:
            self.in_flight -= 1


async def serial_unlearn_diff_atk(unit: Unit, models: Models, bench: Workbench) -> list[Observation]:
    """Take each turn when all pictures of the one before are there, made one by one."""
    model, iterations = bench.model, bench.parameters["iterations"]
    records = [CaseRecord(case) for case in unit.cases]
    plain = [Draw(case, words_of(model, case.prompt), case.prompt, 0, plain=True) for case in unit.cases]
    await look(unit, models, list(zip(records, plain, strict=True)))
    searches, optimiser = unlearn_diff_atk._begin(unit, bench, records)
    for number, timestep in enumerate(model.schedule.visited(bench.parameters["timesteps"]).tolist()):
        method = unlearn_diff_atk._method(bench, optimiser, timestep)
        take_turn(bench, searches, Turn(number * iterations, 6, 0.0), method)
        await look(unit, models, [(search.record, search.draw(number + 1)) for search in searches])
    return conclude(bench, records, 6)


async def serial_p4d(unit: Unit, models: Models, bench: Workbench) -> list[Observation]:
    """Search from each start when all pictures of the one before are there, made one by one."""
    records = [CaseRecord(case) for case in unit.cases]
    targets = p4d._targets(unit, bench, records)
    for start in range(bench.parameters["starts"]):
        turn = Turn(start * bench.parameters["iterations"], 6, 0.0)
        searches = p4d._search(unit, bench, targets, start, turn)
        await look(unit, models, [(search.record, search.draw(start)) for search in searches])
    return conclude(bench, records, 6)


async def look(unit: Unit, models: Models, draws: list[tuple[CaseRecord, Draw]]) -> None:
    for record, draw in draws:
        (sample,) = await models.generate(unit.model, [draw.trajectory(unit)], panel(unit.target))
        record.add(unit, draw, sample)


@pytest.mark.parametrize(
    ("small", "serial"), [(P4D, serial_p4d), (UNLEARN_DIFF_ATK, serial_unlearn_diff_atk)], ids=["p4d", "unlearn"]
)
async def test_it_finds_what_a_search_finds_that_waits(
    engine: AttackEngine, unit_of: UnitOf, small: dict[str, object], serial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "PORTION_ROWS", 8)
    unit = unit_of("never", cases=3, **small)
    observations, findings, progress = await attacked(engine, unit)
    assert all(finding.losses for finding in findings)

    def resolved(*arguments: object) -> object:
        evaluation, parameters = resolve_unit(*arguments)
        return replace(evaluation, run=serial), parameters

    monkeypatch.setattr(engine_module, "resolve_unit", resolved)
    waited = await attacked(engine, unit)
    assert (observations, findings) == waited[:2]
    assert progress[-1] == waited[2][-1]


async def test_portions_fill_the_batch(
    engine_with: EngineWith, models: Models, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pictures; a guided one takes two rows, an unguided one takes one, and one with a guard's concept three.

    Where guidance is in the network, a guided one takes one.
    """
    monkeypatch.setattr(trials, "PORTION_ROWS", 10)
    unit = unit_of("never", cases=3, **UNLEARN_DIFF_ATK)
    asked = {}
    for name, scale, guard_rows in (
        ("guided", 3.0, 0),
        ("unguided", 1.0, 0),
        ("guarded", 3.0, 1),
        ("in the network", 3.0, 0),
    ):
        unit.guidance_scale, unit.guard_rows, unit.one_row = scale, guard_rows, name == "in the network"
        held = Held(models)
        held.let_go.set()
        await attacked(engine_with(held.models), unit)
        asked[name] = held.asked
    assert asked == {"guided": [5, 5, 2], "unguided": [10, 2], "guarded": [4, 4, 4], "in the network": [10, 2]}


async def test_the_search_goes_on_while_pictures_wait(
    engine_with: EngineWith, models: Models, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No picture is made before the search has ended; few portions are in flight, and the draws keep their order."""
    monkeypatch.setattr(trials, "PORTION_ROWS", 2)
    unit = unit_of("never", cases=2, **UNLEARN_DIFF_ATK)
    held, observations = Held(models), []
    async with asyncio.timeout(120):
        async for response in engine_with(held.models).Attack(AttackRequest(unit=unit)):
            if response.event.HasField("observation"):
                observations.append(response.event.observation)
            if response.event.progress.step == 6:
                held.let_go.set()
    assert held.asked == [1] * 8
    assert held.most == trials.IN_FLIGHT
    assert [(o.case_index, o.variant) for o in observations] == [(case, n) for case in (0, 1) for n in range(4)]
    assert observations == (await attacked(engine_with(models), unit))[0]


async def test_a_picture_that_fails_ends_the_search(
    engine_with: EngineWith, models: Models, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "PORTION_ROWS", 2)

    async def lost(request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        raise UnavailableError("the replica died", reason="ROOM_UNAVAILABLE")
        yield

    steps, before = Steps(), asyncio.all_tasks()
    engine = engine_with(replace(models, generate_stream=lost), steps)
    with pytest.raises(UnavailableError, match="the replica died"):
        await attacked(engine, unit_of("never", cases=2, **LONG))
    assert asyncio.all_tasks() == before
    # The thread takes the next unit only when the one before has ended.
    with pytest.raises(UnavailableError):
        await attacked(engine, unit_of("never", evaluation="textual-inversion", steps=1, batch_size=1))
    assert steps.count < 10


async def test_who_leaves_cancels_the_pictures(
    engine_with: EngineWith, models: Models, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "PORTION_ROWS", 6)
    held, before = Held(models), asyncio.all_tasks()
    unit = unit_of("never", cases=3, **LONG | {"timesteps": 1})
    async with aclosing(engine_with(held.models).Attack(AttackRequest(unit=unit))) as responses:
        async for _ in responses:
            if held.asked:
                break
    assert held.asked == [3]
    assert held.in_flight == 0
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("name", ["stop_at_success", "timesteps"])
async def test_only_a_search_that_stops_at_success_waits(
    engine_with: EngineWith, models: Models, unit_of: UnitOf, name: str
) -> None:
    """Each round is a request of its own then, and a case that has succeeded is in no later one."""
    held = Held(models)
    held.let_go.set()
    unit = unit_of("never", cases=2, **UNLEARN_DIFF_ATK | {name: 1})
    await attacked(engine_with(held.models), unit)
    assert held.asked == ([2] * 4 if name == "stop_at_success" else [4])


async def test_another_unit_searches_while_one_waits_for_pictures(
    engine_with: EngineWith, models: Models, unit_of: UnitOf
) -> None:
    held = Held(models)
    engine = engine_with(held.models)
    unit = unit_of("never", cases=2, **UNLEARN_DIFF_ATK | {"stop_at_success": 1})
    waiting = asyncio.create_task(attacked(engine, unit))
    other = unit_of("never", evaluation="textual-inversion", steps=3, batch_size=1)
    async with asyncio.timeout(120):
        async for response in engine.Attack(AttackRequest(unit=other)):
            if response.event.progress.step == 3:
                assert not waiting.done()
                held.let_go.set()
        assert len((await waiting)[0]) == 8
    assert sorted(held.asked[:2]) == [1, 2]
