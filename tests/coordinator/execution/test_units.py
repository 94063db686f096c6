"""A unit as it is kept runs in its room, whether it names what it shares by digest or holds it itself.

And what its audit was planned with is what the verdict rests on.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from google.protobuf import json_format

from support.backend import LocalBackend, without_processes
from unerase.internal.v1alpha1.attack_pb2 import AttackRequest, AttackResponse
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import Audit, AuditSpec, ReportContent
from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_ELICITING,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ACCESS_UNSPECIFIED,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
)
from unerase_backend.coordinator.execution import units as of_units
from unerase_backend.coordinator.execution.conclusion import Conclusion
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.coordinator.storage.evidence import Evidence
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.runtime.errors import UnavailableError, UnsafeModelError

BATTERY = [
    {"name": "standard-prompt"},
    {"name": "interference", "parameters": {"draws": 1}},
    {"name": "textual-inversion", "parameters": {"steps": 2}},
]


@pytest.fixture
def rooms(local: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(local, monkeypatch)


async def test_a_kept_unit_is_run_and_found_again(local: LocalBackend, rooms: None, tmp_path: Path) -> None:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    metrics, estimates = Metrics(), Estimates(database.engine, 6)
    units = Units(database, local.catalogue, local.store, metrics, Notifications(database.audits.sequences), estimates)
    spec = json_format.ParseDict(
        {"subject": "testbed/uce", "concept": "hourglass", "cases": 2, "steps": 3, "battery": {"evaluations": BATTERY}},
        AuditSpec(),
    )
    plan = make_plan(spec, local.catalogue, local.store, await units.descriptions(), lambda: 991)
    audit = Audit(id=uuid.uuid4().hex, request_id="one", spec=plan.spec, create_time=timestamp(time.time_ns()))
    assert await database.transitions.insert(audit, "digest", plan)
    assert estimates.expected(plan.units, plan.works) is None
    for unit in plan.units:
        stored, _ = await database.evidence.unit(audit.id, unit.id) or (unit, True)
        result = await units.compute(audit.id, stored)
        assert all(observation.picture_digest for observation in result.observations)
        assert len(result.observations) > 0
        # As an earlier version kept it: the same key, and no second run.
        assert await units.compute(audit.id, whole(unit, plan.parts)) == result
    kept = sum(sample.value for sample in metrics.units_kept.collect()[0].samples if sample.name.endswith("_total"))
    assert kept == len(plan.units)
    assert all(seconds > 0 for seconds in estimates.expected(plan.units, plan.works) or [0.0])
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)
    with pytest.raises(AuditEndedError):
        await units.compute(audit.id, plan.units[0])
    await database.close()


def test_an_error_about_its_model_says_which_role_the_model_has() -> None:
    unit = Unit(model="sd/edited", role=MODEL_ROLE_SUBJECT)
    about = {"model": "sd/edited", "part": "unet"}
    told = of_units._with_role(UnsafeModelError("unet is missing", reason="MODEL_INCOMPLETE", metadata=about), unit)
    assert isinstance(told, UnsafeModelError)
    assert (told.message, told.reason) == ("the subject: unet is missing", "MODEL_INCOMPLETE")
    assert told.metadata == about | {"role": "subject"}
    for metadata in ({}, {"model": "sd/other"}):
        error = UnsafeModelError("unet is missing", metadata=metadata)
        assert of_units._with_role(error, unit) is error


async def test_the_profile_is_that_of_every_room_that_computes(
    local: LocalBackend, rooms: None, tmp_path: Path
) -> None:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    notifications = Notifications(database.audits.sequences)
    units = Units(database, local.catalogue, local.store, Metrics(), notifications, Estimates(database.engine, 6))
    await units.descriptions()
    rooms, nothing = await units._profiles("standard-prompt")
    generation, judges = rooms.split("; ")
    assert (generation.partition("=")[0], judges.partition("=")[0], nothing) == ("source", "judge", "")
    _, attack = await units._profiles("unlearn-diff-atk")
    assert attack.startswith("gradients=24 encode=8 dtype=float32 device=")
    await database.close()


async def test_a_unit_is_kept_under_the_profile_of_the_replica_that_ran_it(
    local: LocalBackend, rooms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two replicas of attack one has gone on with smaller calls, and the coordinator has asked the other."""
    units, database = await units_in(local, tmp_path)
    unit = local.unit("textual-inversion", "testbed/uce", cases=1, seed_base=12, parameters={"steps": 1})
    _, profile = await units._profiles(unit.evaluation)
    other = local.attack._profile(local.attack._calls.smaller())
    assert other != profile
    keys = [
        await units._key(unit, (await units.descriptions())[unit.evaluation], "", each) for each in (profile, other)
    ]
    assert keys[0] != keys[1]
    kept: list[str] = []
    monkeypatch.setattr(units, "_whole", AsyncMock(side_effect=lambda _, unit: unit))
    monkeypatch.setattr(units, "_progress", AsyncMock())
    monkeypatch.setattr(units, "_profiles", AsyncMock(return_value=("", profile)))
    monkeypatch.setattr(of_units.unit_cache, "keep", lambda store, key, result: kept.append(key))
    await units.compute("audit", unit)
    monkeypatch.setattr(local.attack, "_calls", local.attack._calls.smaller())
    await units.compute("audit", unit)
    assert kept == keys
    await database.close()


async def test_a_unit_during_which_a_room_took_other_shapes_is_not_kept(
    local: LocalBackend, rooms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, database = await units_in(local, tmp_path)
    unit = local.unit("standard-prompt", "testbed/uce", cases=1, seed_base=13, steps=1)
    (right, _), kept = await units._profiles(unit.evaluation), list[str]()
    monkeypatch.setattr(units, "_whole", AsyncMock(side_effect=lambda _, unit: unit))
    monkeypatch.setattr(units, "_progress", AsyncMock())
    monkeypatch.setattr(of_units.unit_cache, "keep", lambda store, key, result: kept.append(key))
    for after, count in ((("smaller", ""), 0), (UnavailableError("gone"), 0), ((right, ""), 1)):
        monkeypatch.setattr(units, "_profiles", AsyncMock(side_effect=[(right, ""), after]))
        assert (await units.compute("audit", unit)).observations
        assert len(kept) == count
    await database.close()


async def test_units_that_share_a_search_run_one_after_the_other(
    local: LocalBackend, rooms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, database = await units_in(local, tmp_path)
    running: list[str] = []
    most: dict[str, int] = {}
    both = asyncio.Event()

    async def attack(method: str, request: AttackRequest) -> AsyncIterator[AttackResponse]:
        running.append(request.unit.id)
        most[request.unit.evaluation] = max(most.get(request.unit.evaluation, 0), len(running))
        if len(running) == 2:
            both.set()
        if request.unit.evaluation == "p4d":
            await asyncio.wait_for(both.wait(), 60)
        else:
            # Long enough for the other unit to find nothing kept, which takes a few turns of a thread.
            for _ in range(100):
                await asyncio.to_thread(int)
        running.remove(request.unit.id)
        yield AttackResponse()

    monkeypatch.setattr(of_units.ATTACK, "stream", attack)
    monkeypatch.setattr(units, "_whole", AsyncMock(side_effect=lambda _, unit: unit))
    monkeypatch.setattr(units, "_key", AsyncMock(side_effect=lambda unit, *_: uuid.uuid4().hex))
    for name, access in (("ring-a-bell", MODEL_ACCESS_OPEN_WEIGHTS), ("p4d", MODEL_ACCESS_UNSPECIFIED)):
        first, second = local.unit(name, "testbed/uce"), local.unit(name, "testbed/uce")
        first.access, second.access = access, access and MODEL_ACCESS_DEPLOYED
        second.id, second.search_shared, second.guard_rows = "second", True, 1
        await asyncio.gather(units.compute("audit", first), units.compute("audit", second))
    assert most == {"ring-a-bell": 1, "p4d": 2}
    await database.close()


async def units_in(local: LocalBackend, folder: Path) -> tuple[Units, Database]:
    """Return units of a new database, and the database."""
    database = Database(create_engine(f"sqlite+aiosqlite:///{folder / 'audits.sqlite'}"))
    await database.migrate()
    notifications = Notifications(database.audits.sequences)
    estimates = Estimates(database.engine, 6)
    units = Units(database, local.catalogue, local.store, Metrics(), notifications, estimates)
    await units.descriptions()
    return units, database


async def test_a_verdict_rests_on_what_the_audit_was_planned_with(
    local: LocalBackend, rooms: None, tmp_path: Path
) -> None:
    """A third party's required evaluation counts, though its package has gone from the rooms meanwhile."""
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    estimates = Estimates(database.engine, 6)
    units = Units(
        database, local.catalogue, local.store, Metrics(), Notifications(database.audits.sequences), estimates
    )
    theirs = EvaluationDescription(name="theirs", evaluation_class=EVALUATION_CLASS_ELICITING, required=True)
    battery = {"evaluations": BATTERY[:1], "allow_incomplete": True}
    spec = json_format.ParseDict(
        {"subject": "testbed/uce", "concept": "hourglass", "cases": 2, "steps": 3, "battery": battery}, AuditSpec()
    )
    described = {**await units.descriptions(), "theirs": theirs}
    plan = make_plan(spec, local.catalogue, local.store, described, lambda: 991)
    audit = Audit(id=uuid.uuid4().hex, request_id="two", spec=plan.spec, create_time=timestamp(time.time_ns()))
    assert await database.transitions.insert(audit, "digest", plan)
    results = [await units.compute(audit.id, unit) for unit in plan.units]
    observations = [observation for result in results for observation in result.observations]
    evidence = Evidence(audit, plan.concept, list(plan.cases), observations, [])
    conclusion = Conclusion(database, local.catalogue, local.store, units)
    verdict, reports = await conclusion.conclude(evidence, time.time_ns())
    assert verdict.missing[-1] == "theirs"
    content = ReportContent.FromString(local.store.get(reports.content))
    assert "theirs" in {description.name for description in content.descriptions}
    await database.close()
