"""An audit's rows grow with its units; what it takes is counted, bounded, kept and told before it runs."""

import time
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf import json_format
from sqlalchemy.ext.asyncio import AsyncSession

from support.backend import LocalBackend
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_UNSPECIFIED,
    AuditCost,
    AuditSpec,
    CreateAuditRequest,
    EvaluationCost,
    UnitDone,
)
from unerase.v1.types_pb2 import EvaluationDescription, Observation
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.limits import AdmissionSettings
from unerase_backend.coordinator.planning.cost import CostLimits, check_cost
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.errors import ExhaustedError, InvalidRequestError

from .conftest import insert, plan_of


def test_the_default_limits_let_pass_what_a_machine_can_bear(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    settings = AdmissionSettings()

    def plan(preset: str, cases: int) -> Plan:
        return plan_of(local.catalogue, local.store, everything, battery={"preset": preset}, cases=cases, steps=50)

    for preset, cases in (("full", 96), ("standard", 512), ("full", 360)):
        check_cost(plan(preset, cases).cost, settings.cost_limits())
    with pytest.raises(InvalidRequestError) as caught:
        check_cost(plan("full", 512).cost, settings.cost_limits())
    assert caught.value.reason == "AUDIT_TOO_LARGE"
    (violation,) = caught.value.violations
    assert violation.field == "spec.cases"
    for said in ("274576 pictures", "at most 200000 are allowed", "fewer cases", "noise-based"):
        assert said in violation.description
    # 461 audits of the full battery with 24 cases fit into a tenant's day, and so does calibrating ten models.
    assert settings.quota_audits >= 512
    assert 461 * plan("full", 24).cost.pictures <= settings.quota_pictures_per_day
    # Large ones do not slip below it.
    assert 500 * plan("full", 96).cost.pictures > settings.quota_pictures_per_day


@pytest.mark.parametrize(
    ("limits", "field", "said"),
    [
        (CostLimits(pictures=10), "spec.cases", "takes 11 pictures, and at most 10 are allowed"),
        (CostLimits(rows=99), "spec.cases", "takes 100 rows of the denoising network, and at most 99 are allowed"),
        (CostLimits(bytes=999), "spec.concept", "takes 1000 bytes in the database, and at most 999 are allowed"),
    ],
)
def test_each_limit_says_what_to_reduce(limits: CostLimits, field: str, said: str) -> None:
    mine = EvaluationCost(evaluation="mine", pictures=11, rows=100, assumed=True)
    cost = AuditCost(pictures=11, rows=100, stored_bytes=1000, evaluations=[mine])
    check_cost(cost, CostLimits(pictures=11, rows=100, bytes=1000))
    check_cost(cost, CostLimits())
    with pytest.raises(InvalidRequestError) as caught:
        check_cost(cost, limits)
    assert [each.field for each in caught.value.violations] == [field]
    assert said in caught.value.message


class _Units:
    def __init__(self, descriptions: dict[str, EvaluationDescription]) -> None:
        self._descriptions = descriptions

    async def descriptions(self) -> dict[str, EvaluationDescription]:
        return self._descriptions

    async def broken(self) -> dict[str, str]:
        return {}


class _Begun:
    """What CreateAudit needs of the auditor; whose workflows are in tests/service."""

    def __init__(self, units: _Units, estimates: Estimates) -> None:
        self.units = units
        self.estimates = estimates
        self.audits: list[str] = []

    def begin(self, audit_id: str) -> None:
        self.audits.append(audit_id)

    async def announce(self) -> None:
        pass


@pytest.fixture
def begun(database: Database, everything: dict[str, EvaluationDescription]) -> _Begun:
    return _Begun(_Units(everything), Estimates(database.engine, 6))


def _service(local: LocalBackend, database: Database, begun: _Begun, quota: Quota = Quota()) -> AuditServicer:  # noqa: B008
    auditor: Any = begun
    limits = AdmissionSettings().cost_limits()
    admission = Admission(auditor, database, local.catalogue, local.store, lambda _: quota, limits)
    notifications, retention = Notifications(database.audits.sequences), Retention(database, local.store, 0)
    return AuditServicer(auditor, database, local.store, notifications, retention, admission)


SPEC = json_format.ParseDict(
    {"subject": "testbed/uce", "concept": "hourglass", "battery": {"preset": "quick"}, "cases": 8}, AuditSpec()
)


async def _rows(database: Database) -> dict[str, int]:
    async with database.engine.connect() as connection:
        return {
            table.name: (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
            for table in tables.METADATA.sorted_tables
        }


async def test_an_audit_is_validated_and_nothing_is_written(
    local: LocalBackend, database: Database, begun: _Begun
) -> None:
    service = _service(local, database, begun)
    before = await _rows(database)
    shown = await service.CreateAudit(CreateAuditRequest(spec=SPEC, validate_only=True), None)  # type: ignore[arg-type]
    assert (shown.id, shown.request_id, shown.state) == ("", "", AUDIT_STATE_UNSPECIFIED)
    assert not shown.HasField("create_time")
    assert shown.spec.reference == "testbed/reference"
    assert shown.units_total == shown.cost.units == sum(each.units for each in shown.cost.evaluations) > 0
    assert shown.cost.pictures == sum(each.pictures for each in shown.cost.evaluations) > 0
    assert not shown.cost.HasField("estimated_duration")
    assert (await _rows(database), begun.audits) == (before, [])
    created = await service.CreateAudit(CreateAuditRequest(request_id="one", spec=shown.spec), None)  # type: ignore[arg-type]
    assert (created.cost, begun.audits) == (shown.cost, [created.id])
    # It is kept, and listed.
    assert (await database.audits.newest(1, None))[0].cost == shown.cost
    # Nothing of a request id is looked up, and a bad one is told.
    again = CreateAuditRequest(request_id="one", spec=SPEC, validate_only=True)
    assert not (await service.CreateAudit(again, None)).id  # type: ignore[arg-type]
    for bad in (CreateAuditRequest(spec=SPEC), CreateAuditRequest(request_id="?", spec=SPEC, validate_only=True)):
        with pytest.raises(InvalidRequestError, match="request_id"):
            await service.CreateAudit(bad, None)  # type: ignore[arg-type]


async def test_what_would_be_refused_is_refused_when_it_is_validated(
    local: LocalBackend, database: Database, begun: _Begun
) -> None:
    service = _service(local, database, begun, Quota(pictures_per_day=10))
    large = AuditSpec(subject="testbed/uce", concept="hourglass", cases=512)
    large.battery.preset = "full"
    for validate_only in (True, False):
        request = CreateAuditRequest(request_id="one", spec=SPEC, validate_only=validate_only)
        with pytest.raises(ExhaustedError) as exhausted:
            await service.CreateAudit(request, None)  # type: ignore[arg-type]
        assert exhausted.value.reason == "QUOTA_PICTURES"
        request.spec.CopyFrom(large)
        with pytest.raises(InvalidRequestError) as caught:
            await service.CreateAudit(request, None)  # type: ignore[arg-type]
        assert caught.value.reason == "AUDIT_TOO_LARGE"
    assert (await _rows(database))["unerase_audits"] == 0


async def test_time_is_estimated_from_what_units_took(
    local: LocalBackend, database: Database, begun: _Begun, everything: dict[str, EvaluationDescription]
) -> None:
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=8)
    for unit, work in zip(plan.units, plan.works, strict=True):
        begun.estimates.note(unit, work, 3.0)
    await begun.estimates.synchronise()
    # Another process, or this one after a restart.
    begun.estimates = Estimates(database.engine, 6)
    await begun.estimates.synchronise()
    service = _service(local, database, begun)
    created = await service.CreateAudit(CreateAuditRequest(request_id="one", spec=SPEC), None)  # type: ignore[arg-type]
    seconds = created.cost.estimated_duration.ToNanoseconds() / 1e9
    assert seconds == pytest.approx(3.0 * len(plan.units) / 6)
    expected = created.create_time.ToNanoseconds() + created.cost.estimated_duration.ToNanoseconds()
    assert created.estimated_end_time.ToNanoseconds() == expected
    found = await database.audits.get(created.id)
    assert found is not None
    assert found.estimated_end_time.ToNanoseconds() == expected


async def test_an_end_is_estimated_while_it_runs_and_never_in_the_past(
    local: LocalBackend, database: Database, everything: dict[str, EvaluationDescription]
) -> None:
    plan = plan_of(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=8)
    audit = await insert(database, plan, plan.cost)
    found = await database.audits.get(audit.id)
    assert found is not None
    # Nothing is known yet.
    assert not found.HasField("estimated_end_time")
    async with AsyncSession(database.engine) as session, session.begin():
        await database.transitions.start(session, audit.id)
    ends = []
    for unit in plan.units:
        async with AsyncSession(database.engine) as session, session.begin():
            assert await database.transitions.record(session, audit.id, UnitDone(unit=unit.id), [Observation()], [])
        before = time.time_ns()
        found = await database.audits.get(audit.id)
        assert found is not None
        ends.append(found.estimated_end_time.ToNanoseconds())
        assert ends[-1] >= before
    # All is done but the conclusion.
    assert ends[-1] <= time.time_ns()
    await database.transitions.cancel(audit.id)
    ended = await database.audits.get(audit.id)
    assert ended is not None
    assert not ended.HasField("estimated_end_time")
