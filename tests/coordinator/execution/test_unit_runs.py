"""Which units run at once: the attacks of an audit do not wait behind its probes."""

import asyncio
import time
import uuid
from pathlib import Path

import pytest
from google.protobuf import json_format

from support.backend import LocalBackend, without_processes
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase.v1.audits_pb2 import Audit, AuditSpec
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retry import Retry
from unerase_backend.coordinator.execution.unit_runs import UnitRuns
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.plan import make_plan
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.estimates import Estimates

BATTERY = [{"name": "standard-prompt"}, {"name": "inpainting"}, {"name": "textual-inversion"}]


class Held(Units):
    """Notes the units that begin, and ends none before it is let go."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.let_go = asyncio.Event()

    async def attempt(self, audit_id: str, planned: Unit) -> UnitResult:
        self.begun.put_nowait(planned.id)
        await self.let_go.wait()
        return UnitResult()


@pytest.mark.parametrize(("places", "attacks"), [(1, 1), (4, 2)])
async def test_attacks_have_places_of_their_own(
    local: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int, attacks: int
) -> None:
    without_processes(local, monkeypatch)
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    metrics, notifications = Metrics(), Notifications(database.audits.sequences)
    estimates = Estimates(database.engine, places)
    units = Held(database, local.catalogue, local.store, metrics, notifications, estimates)
    runs = UnitRuns(database, units, Retry(database, metrics, notifications, 60.0), metrics, places)
    spec = json_format.ParseDict(
        {
            "subject": "testbed/uce",
            "concept": "hourglass",
            "cases": 2,
            "battery": {"evaluations": BATTERY},
        },
        AuditSpec(),
    )
    plan = make_plan(spec, local.catalogue, local.store, await units.descriptions(), lambda: 991)
    audit = Audit(id=uuid.uuid4().hex, request_id="one", spec=plan.spec, create_time=timestamp(time.time_ns()))
    assert await database.transitions.insert(audit, "digest", plan)
    planned = [unit for unit in plan.units if unit.evaluation in {each["name"] for each in BATTERY}]
    ids = {False: [], True: []}
    for unit in planned:
        ids[unit.evaluation == "textual-inversion"].append(unit.id)
    running = [asyncio.create_task(runs.compute(audit.id, unit)) for unit in planned]
    async with asyncio.timeout(60):
        first = [await units.begun.get() for _ in range(places + attacks)]
    assert len(set(first) & set(ids[False])) == places
    assert len(set(first) & set(ids[True])) == attacks
    assert units.begun.empty()
    units.let_go.set()
    assert await asyncio.gather(*running) == [UnitResult()] * len(planned)
    rest = [units.begun.get_nowait() for _ in range(units.begun.qsize())]
    assert sorted(first + rest) == sorted(ids[False] + ids[True])
    await database.close()
