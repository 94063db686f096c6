"""An audit's rows grow with its units; what it takes is counted, bounded, kept and told before it runs."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf import json_format
from sqlalchemy.ext.asyncio import AsyncSession

from support.backend import LocalBackend, evaluations
from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_PENDING,
    AUDIT_STATE_UNSPECIFIED,
    Audit,
    AuditCost,
    AuditSpec,
    CreateAuditRequest,
    EvaluationCost,
    UnitDone,
)
from unerase.v1.types_pb2 import EvaluationDescription, Observation
from unerase_backend.catalogue import MAX_PROMPT_BYTES, Catalogue
from unerase_backend.coordinator import kept, tables
from unerase_backend.coordinator.admission import AdmissionSettings
from unerase_backend.coordinator.audits import AuditServicer
from unerase_backend.coordinator.changes import Changes
from unerase_backend.coordinator.cost import CostLimits, check_cost
from unerase_backend.coordinator.database import Database, timestamp
from unerase_backend.coordinator.estimates import Estimates
from unerase_backend.coordinator.parts import digests_of, whole
from unerase_backend.coordinator.plan import Plan, make_plan
from unerase_backend.coordinator.retention import Retention
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import ExhaustedError, InvalidRequestError

LONG = "{concept} " + "x" * (MAX_PROMPT_BYTES - 200)


@pytest.fixture(scope="session")
def everything() -> dict[str, EvaluationDescription]:
    return {name: each.description for name, each in evaluations().items()}


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tables.create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    yield database
    await database.close()


def _plan(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription], **fields: object
) -> Plan:
    spec = json_format.ParseDict({"subject": "testbed/uce", "concept": "hourglass", **fields}, AuditSpec())
    return make_plan(spec, catalogue, store, descriptions, lambda: 7)


def _large(catalogue: Catalogue, store: ArtifactStore) -> Catalogue:
    """The catalogue with an hourglass of 57 long prompts, 236 KB of words."""
    entry = catalogue.concepts["hourglass"].model_copy(update={"prompts": tuple(LONG + str(n) for n in range(57))})
    return replace(catalogue, concepts={**catalogue.concepts, "hourglass": entry})


async def _insert(database: Database, plan: Plan, cost: AuditCost | None = None) -> Audit:
    audit = Audit(
        id=uuid.uuid4().hex,
        request_id=uuid.uuid4().hex,
        spec=plan.spec,
        state=AUDIT_STATE_PENDING,
        units_total=len(plan.units),
        create_time=timestamp(time.time_ns()),
        cost=cost,
    )
    assert await database.insert(audit, "digest", plan)
    return audit


async def _stored(database: Database) -> int:
    """The bytes of everything that the database holds."""
    async with database.engine.connect() as connection:
        pages = (await connection.execute(sa.text("PRAGMA page_count"))).scalar_one()
        free = (await connection.execute(sa.text("PRAGMA freelist_count"))).scalar_one()
        size = (await connection.execute(sa.text("PRAGMA page_size"))).scalar_one()
    return int((pages - free) * size)


async def test_an_audits_rows_do_not_grow_with_units_times_concept(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    """What took 434 MB: every evaluation, 512 cases, and a concept of 236 KB."""
    full = {"battery": {"preset": "full"}, "cases": 512}
    plan = _plan(_large(local.catalogue, local.store), local.store, everything, **full)
    assert len(plan.units) == 1204
    assert plan.concept.ByteSize() > 220_000
    # A case holds two of the prompts; the list is there once, and no unit has any of it.
    assert sum(map(len, plan.parts.values())) < 6_000_000
    assert max(unit.ByteSize() for unit in plan.units) < 4096
    empty = await _stored(database)
    await _insert(database, plan)
    grown = await _stored(database) - empty
    assert grown < 10_000_000
    # What is told before is what comes.
    assert grown * 0.6 < plan.cost.stored_bytes < grown * 1.4
    small = _plan(local.catalogue, local.store, everything, **full)
    before = await _stored(database)
    await _insert(database, small)
    grown = await _stored(database) - before
    assert grown < 3_000_000
    assert grown * 0.6 < small.cost.stored_bytes < grown * 1.4


async def test_parts_go_with_their_audit(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "quick"})
    first, second = await _insert(database, plan), await _insert(database, plan)
    digests = digests_of(plan.units[0])
    assert await database.parts.of(first.id, digests) == {digest: plan.parts[digest] for digest in digests}
    await database.cancel(first.id)
    assert await database.delete(first.id)
    assert await database.parts.of(first.id, digests) == {}
    assert len(await database.parts.of(second.id, digests)) == len(digests)


def test_a_unit_is_whole_again_and_has_the_key_that_it_had(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "standard"}, cases=30)
    judges = local.catalogue.default_judges()
    targets: dict[str, Target] = {}
    for unit in plan.units:
        restored = whole(unit, plan.parts)
        # As an earlier version planned it, and kept it.
        inline = Unit()
        inline.CopyFrom(unit)
        for field in ("target_digest", "others_digest", "cases_digest", "cases"):
            inline.ClearField(field)  # type: ignore[arg-type]
        names = ["hourglass", *sorted(local.catalogue.others("hourglass"))]
        for name in names:
            targets.setdefault(name, local.catalogue.target(name, local.store, *judges))
        inline.target.CopyFrom(targets["hourglass"])
        if everything[unit.evaluation].others:
            inline.others.extend(targets[name] for name in names[1:] if not local.catalogue.concept(name).placebo)
        inline.cases.extend(plan.cases[case.index] for case in unit.cases)
        assert restored == inline
        assert whole(inline, {}) == inline
        keys = {
            kept.unit_key(each, everything[unit.evaluation], local.catalogue, "profile", "1")
            for each in (restored, inline)
        }
        assert len(keys) == 1


async def test_what_an_earlier_version_planned_is_finished(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    """Its units hold everything themselves, and nothing was counted."""
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=4)
    audit = await _insert(database, plan)
    inline = whole(plan.units[0], plan.parts)
    units, audits, parts = tables.units, tables.audits, tables.parts
    old = {"message": tables.deterministic(inline), "pictures": None, "work": None}
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(units).where(units.c.unit == inline.id).values(**old))
        await connection.execute(sa.update(audits).values(cost=None, counted_pictures=0, counted_bytes=0, work=0.0))
        await connection.execute(sa.delete(parts))
    planned = await database.unit(audit.id, inline.id)
    assert planned == (inline, False)
    assert whole(inline, await database.parts.of(audit.id, digests_of(inline))) == inline
    async with AsyncSession(database.engine) as session, session.begin():
        await database.start(session, audit.id)
        seen = [Observation(picture_digest=digest) for digest in ("a", "b", "b")]
        assert await database.record(session, audit.id, UnitDone(unit=inline.id), seen, [], {"a": 5, "b": 5})
    found = await database.get(audit.id)
    assert found is not None
    assert (found.units_done, found.HasField("cost"), found.HasField("estimated_end_time")) == (1, False, False)
    with pytest.raises(ExhaustedError) as caught:
        await database.check("", Quota(pictures_per_day=2), replace(plan, cost=AuditCost()))
    assert caught.value.metadata["used"] == "2"


async def test_who_looks_at_an_audit_does_not_read_its_cases(
    local: LocalBackend, everything: dict[str, EvaluationDescription], database: Database
) -> None:
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=4)
    audit = await _insert(database, plan)
    asked: list[str] = []

    @sa.event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def _keep(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    await database.get(audit.id)
    await database.owned(audit.id, "")
    await database.newest(10, None)
    await database.by_request(audit.request_id)
    assert len(asked) >= 4
    assert not [statement for statement in asked if "cases" in statement or "concept" in statement]


def test_the_default_limits_let_pass_what_a_machine_can_bear(
    local: LocalBackend, everything: dict[str, EvaluationDescription]
) -> None:
    settings = AdmissionSettings()

    def plan(preset: str, cases: int) -> Plan:
        return _plan(local.catalogue, local.store, everything, battery={"preset": preset}, cases=cases, steps=50)

    for preset, cases in (("full", 96), ("standard", 512), ("full", 400)):
        check_cost(plan(preset, cases).cost, settings.cost_limits())
    with pytest.raises(InvalidRequestError) as caught:
        check_cost(plan("full", 512).cost, settings.cost_limits())
    assert caught.value.reason == "AUDIT_TOO_LARGE"
    (violation,) = caught.value.violations
    assert violation.field == "spec.cases"
    for said in ("237712 pictures", "200000 is the most", "fewer cases", "noise-based"):
        assert said in violation.description
    # 500 audits of the full battery with the default cases fit into a tenant's day, and so does calibrating ten models.
    assert settings.quota_audits >= 512
    assert 500 * plan("full", 24).cost.pictures <= settings.quota_pictures_per_day
    # Large ones do not slip below it.
    assert 500 * plan("full", 96).cost.pictures > settings.quota_pictures_per_day


@pytest.mark.parametrize(
    ("limits", "field", "said"),
    [
        (CostLimits(pictures=10), "spec.cases", "takes 11 pictures, 10 is the most"),
        (CostLimits(rows=99), "spec.cases", "takes 100 rows of the denoising network, 99 is the most"),
        (CostLimits(bytes=999), "spec.concept", "takes 1000 bytes in the database, 999 is the most"),
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
    return AuditServicer(
        begun,  # type: ignore[arg-type]
        database,
        local.catalogue,
        local.store,
        Changes(database.sequences),
        Retention(database, local.store, 0),
        lambda _: quota,
        AdmissionSettings().cost_limits(),
    )


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
    assert (await database.newest(1, None))[0].cost == shown.cost
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
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=8)
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
    found = await database.get(created.id)
    assert found is not None
    assert found.estimated_end_time.ToNanoseconds() == expected


async def test_an_end_is_estimated_while_it_runs_and_never_in_the_past(
    local: LocalBackend, database: Database, everything: dict[str, EvaluationDescription]
) -> None:
    plan = _plan(local.catalogue, local.store, everything, battery={"preset": "quick"}, cases=8)
    audit = await _insert(database, plan, plan.cost)
    found = await database.get(audit.id)
    assert found is not None
    # Nothing is known yet.
    assert not found.HasField("estimated_end_time")
    async with AsyncSession(database.engine) as session, session.begin():
        await database.start(session, audit.id)
    ends = []
    for unit in plan.units:
        async with AsyncSession(database.engine) as session, session.begin():
            assert await database.record(session, audit.id, UnitDone(unit=unit.id), [Observation()], [])
        before = time.time_ns()
        found = await database.get(audit.id)
        assert found is not None
        ends.append(found.estimated_end_time.ToNanoseconds())
        assert ends[-1] >= before
    # All is done but the conclusion.
    assert ends[-1] <= time.time_ns()
    await database.cancel(audit.id)
    ended = await database.get(audit.id)
    assert ended is not None
    assert not ended.HasField("estimated_end_time")
