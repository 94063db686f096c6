"""The attack engine: what it refuses, how it cancels, what it streams."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path

import pytest
from ray import serve

from unerase.internal.v1alpha1 import attack_pb2
from unerase.internal.v1alpha1.attack_pb2 import AttackRequest, ListAttacksRequest
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import EVALUATION_CLASS_INJECTING
from unerase_backend.attack import engine as module
from unerase_backend.attack.deployment import Attack, build
from unerase_backend.attack.engine import AttackEngine
from unerase_backend.attack.settings import AttackSettings
from unerase_backend.attack.workbench import Workbench
from unerase_backend.catalogue import Catalogue
from unerase_backend.evaluation.models import Models
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import DeadlineError, InvalidRequestError, NotFoundError

UnitOf = Callable[..., Unit]


async def drained(engine: AttackEngine, unit: Unit) -> None:
    async for _ in engine.Attack(AttackRequest(unit=unit)):
        pass


async def test_leaving_the_stream_ends_the_optimisation_within_two_steps(
    engine: AttackEngine, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    report = Workbench.progress

    def counted(bench: Workbench, step: int, of: int, loss: float | None = None) -> None:
        steps.append(step)
        report(bench, step, of, loss)

    monkeypatch.setattr(Workbench, "progress", counted)
    async with aclosing(engine.Attack(AttackRequest(unit=unit_of("reference", steps=100, batch_size=1)))) as responses:
        async for response in responses:
            if response.event.HasField("progress") and response.event.progress.step >= 3:
                break
    seen = len(steps)
    # The thread takes the next unit only when the one before has ended.
    await drained(engine, unit_of("reference", steps=1, batch_size=1))
    assert steps[seen:-1] in ([], [seen + 1], [seen + 1, seen + 2])
    assert seen < 10


async def test_a_cancelled_task_ends_the_optimisation(engine: AttackEngine, unit_of: UnitOf) -> None:
    started = asyncio.Event()

    async def consume() -> None:
        async for _ in engine.Attack(AttackRequest(unit=unit_of("reference", steps=1000, batch_size=1))):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(drained(engine, unit_of("reference", steps=1, batch_size=1)), timeout=20)


async def test_a_unit_that_takes_too_long_ends(
    catalogue: Catalogue, store: ArtifactStore, models: Models, unit_of: UnitOf
) -> None:
    settings = AttackSettings(artifacts="unused", unit_timeout_seconds=0.2)
    with pytest.raises(DeadlineError):
        await drained(AttackEngine(catalogue, store, settings, models), unit_of("reference", steps=20_000))


async def test_a_silent_unit_shows_that_it_lives(
    engine: AttackEngine, unit_of: UnitOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.01)
    waiting = threading.Event()
    monkeypatch.setattr(module, "load_model", lambda *_: waiting.wait())
    own = AttackEngine(engine._catalogue, engine._store, engine._settings, engine._models)
    async with aclosing(own.Attack(AttackRequest(unit=unit_of("reference")))) as responses:
        try:
            response = await anext(responses)
        finally:
            waiting.set()
    assert response.event.HasField("progress")


async def test_an_error_of_the_backends_comes_through(
    catalogue: Catalogue, store: ArtifactStore, models: Models, unit_of: UnitOf
) -> None:
    async def generate(request: object):
        raise NotFoundError("no such model", reason="MODEL_NOT_FOUND")
        yield

    broken = Models(generate, models.encode_prompts, models.measure_pictures, models.classify_pictures)
    engine = AttackEngine(catalogue, store, AttackSettings(artifacts="unused"), broken)
    with pytest.raises(NotFoundError):
        await drained(engine, unit_of("reference", steps=1, batch_size=1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda unit: unit.parameters.update({"steps": 0}), "unit.parameters.steps"),
        (lambda unit: unit.parameters.update({"rate": 0.1}), "unit.parameters.rate"),
        (lambda unit: unit.ClearField("cases"), "unit.cases"),
        (lambda unit: unit.ClearField("model"), "unit.model"),
        (lambda unit: unit.ClearField("role"), "unit.role"),
        (lambda unit: unit.ClearField("steps"), "unit.steps"),
        (lambda unit: unit.ClearField("target"), "unit.target.concept.name"),
    ],
)
async def test_bad_units_name_their_field(
    engine: AttackEngine, unit_of: UnitOf, change: Callable[[Unit], None], field: str
) -> None:
    unit = unit_of("reference")
    change(unit)
    with pytest.raises(InvalidRequestError) as error:
        await drained(engine, unit)
    assert [violation.field for violation in error.value.violations] == [field]


async def test_unknown_names_are_not_found(engine: AttackEngine, unit_of: UnitOf) -> None:
    unit = unit_of("reference")
    unit.evaluation = "standard-prompt"
    with pytest.raises(NotFoundError) as error:
        await drained(engine, unit)
    assert error.value.reason == "EVALUATION_NOT_FOUND"
    with pytest.raises(NotFoundError) as error:
        await drained(engine, unit_of("nothing"))
    assert error.value.reason == "MODEL_NOT_FOUND"
    unit = unit_of("reference")
    unit.target.concept.picture_digests[0] = "0" * 64
    with pytest.raises(NotFoundError) as error:
        await drained(engine, unit)
    assert error.value.reason == "ARTIFACT_NOT_FOUND"


async def test_attacks_are_listed(engine: AttackEngine) -> None:
    answer = await engine.ListAttacks(ListAttacksRequest())
    assert "dtype=float32 device=cpu/" in answer.numerics_profile
    assert " threads=1 " in answer.numerics_profile
    assert f" small=onnxruntime-{version('onnxruntime')}" in answer.numerics_profile
    attacks = {item.name: item for item in answer.attacks}
    inversion = attacks["textual-inversion"]
    assert inversion.attack
    assert inversion.required
    assert inversion.evaluation_class == EVALUATION_CLASS_INJECTING
    assert {parameter.name for parameter in inversion.parameters} == {"steps", "batch_size", "learning_rate", "tokens"}


def test_the_deployment_serves_the_engine(tmp_path: Path) -> None:
    settings = AttackSettings(artifacts=str(tmp_path))
    handle = serve.run(build(settings), name="attack", route_prefix=None, _local_testing_mode=True)
    listed = handle.ListAttacks.remote(ListAttacksRequest()).result()
    assert "textual-inversion" in [item.name for item in listed.attacks]
    responses = handle.options(stream=True).Attack.remote(AttackRequest(unit=Unit(evaluation="no-such-attack")))
    with pytest.raises(NotFoundError):
        list(responses)


def test_the_deployment_has_the_services_methods() -> None:
    methods = {method.name for method in attack_pb2.DESCRIPTOR.services_by_name["AttackService"].methods}
    assert methods == {name for name in vars(Attack) if name[0].isupper()}
