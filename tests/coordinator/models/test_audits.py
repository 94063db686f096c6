"""Audits of registered models: the same as of the operator's, by the tenant's names, and whole whatever is deleted."""

import shutil
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from support.backend import LocalBackend, local_backend, without_processes
from support.registering import REGISTERED, Registrar, refused, registrar, whole
from unerase.internal.v1alpha1.units_pb2 import UnitResult
from unerase.v1.audits_pb2 import Audit, AuditSpec, ReportContent
from unerase.v1.models_pb2 import CheckModelRequest
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.catalogue.definitions import is_registered
from unerase_backend.coordinator.execution.conclusion import Conclusion
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.planning.registered import models_named, plan_registered
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.coordinator.storage.evidence import Evidence
from unerase_backend.runtime.errors import InvalidRequestError, UnsafeModelError
from unerase_backend.runtime.settings import RoomSettings

BATTERY = [{"name": "standard-prompt"}, {"name": "textual-inversion", "parameters": {"steps": 2}}]
OWN = {"subject": "own/edited", "reference": "own/base", "control": "own/never"}
OPERATORS = {"subject": "testbed/uce", "reference": "testbed/reference", "control": "testbed/never"}


@dataclass
class Bench:
    """Rooms in this process, and what a coordinator uses of them."""

    local: LocalBackend
    service: Registrar
    units: Units
    metrics: Metrics

    async def plan(self, tenant: str = "", **fields: Any) -> Plan:
        """Plan an audit as the coordinator does."""
        given = {"concept": "hourglass", "cases": 2, "steps": 3, "battery": {"evaluations": BATTERY}, **fields}
        spec = json_format.ParseDict(given, AuditSpec())
        named = models_named(spec, self.local.catalogue)
        models = await self.service.database.models.definitions(named, tenant)
        descriptions = await self.units.descriptions()
        return plan_registered(
            models, spec, self.local.catalogue, self.local.store, descriptions, lambda: 991, await self.units.broken()
        )

    async def accept(self, plan: Plan) -> Audit:
        """Accept an audit."""
        audit = Audit(id=uuid.uuid4().hex, spec=plan.spec, create_time=timestamp(time.time_ns()))
        audit.request_id = audit.id
        assert await self.service.database.transitions.insert(audit, "digest", plan)
        return audit

    async def results(self, audit: Audit, plan: Plan) -> list[UnitResult]:
        """Compute all units."""
        return [await self.units.compute(audit.id, unit) for unit in plan.units]

    def found(self) -> float:
        """How many units were found in the unit cache."""
        samples = self.metrics.units_kept.collect()[0].samples
        return sum(sample.value for sample in samples if sample.name.endswith("_total"))


@pytest.fixture
async def bench(database: Database, settings: RoomSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    given = settings.model_dump(include={"model_roots", "digests"})
    async with local_backend(Path(settings.artifacts), **given) as local, registrar(settings, database) as service:
        without_processes(local, monkeypatch)
        metrics = Metrics()
        notifications = Notifications(database.audits.sequences)
        estimates = Estimates(database.engine, 6)
        units = Units(database, local.catalogue, local.store, metrics, notifications, estimates)
        yield Bench(local, service, units, metrics)


@pytest.fixture
async def registered(bench: Bench, folder: Path) -> Bench:
    """The bench with the testbed's reference, its edit and its control as models of the caller's own."""
    (folder / "never").mkdir()
    for part in ("unet", "text_encoder"):
        shutil.copy(EMBEDDED.parent / "never" / f"{part}.safetensors", folder / "never")
    figures = {"guidance_scale": 3.0}
    changes = {
        "own/base": whole(folder, **figures),
        "own/edited": {"base": "own/base", "unet": str(folder / "unet.safetensors"), "erased": ["hourglass"]},
        "own/never": {
            "base": "own/base",
            "unet": str(folder / "never" / "unet.safetensors"),
            "text_encoder": str(folder / "never" / "text_encoder.safetensors"),
            "never_learned": ["hourglass"],
        },
    }
    for name, entry in changes.items():
        assert (await bench.service.register(name, entry)).state == REGISTERED
    return bench


def renamed(result: UnitResult) -> UnitResult:
    """A result with the operator's names in place of the tenant's."""
    names = dict(zip(OWN.values(), OPERATORS.values(), strict=True))
    for each in (*result.observations, *result.findings):
        each.model = names.get(each.model, each.model)
    return result


async def test_an_audit_is_that_of_the_operators_models(registered: Bench) -> None:
    own, operators = await registered.plan(**OWN), await registered.plan(**OPERATORS)
    assert [getattr(own.spec, role) for role in OWN] == list(OWN.values())
    assert all(is_registered(unit.model) and is_registered(unit.reference) for unit in own.units)
    # The base is the default reference of what was made of it.
    assert (await registered.plan(subject="own/edited")).spec.reference == "own/base"
    audit, other = await registered.accept(own), await registered.accept(operators)
    theirs = await registered.results(other, operators)
    results = await registered.results(audit, own)
    assert {each.model for result in results for each in result.observations} == {*OWN.values()}
    assert list(map(renamed, results)) == theirs
    # The pictures are those of the same weights, and are made once.
    observations = [each for result in await registered.results(audit, own) for each in result.observations]
    evidence = Evidence(audit, own.concept, list(own.cases), observations, [])
    local = registered.local
    conclusion = Conclusion(registered.service.database, local.catalogue, local.store, registered.units)
    _, reports = await conclusion.conclude(evidence, time.time_ns())
    content = ReportContent.FromString(local.store.get(reports.content))
    assert [(model.name, model.base) for model in content.manifest.models] == [
        ("own/edited", "own/base"),
        ("own/base", ""),
        ("own/never", "own/base"),
    ]
    described = local.catalogue.describe_model("testbed/uce")
    assert content.manifest.models[0].digest == described.digest
    assert b"model:" not in content.SerializeToString()


async def test_the_same_model_by_another_name_is_found_in_the_unit_cache(registered: Bench, folder: Path) -> None:
    plan = await registered.plan(**OWN)
    await registered.results(await registered.accept(plan), plan)
    assert registered.found() == 0
    edited = {"base": "own/base", "unet": str(folder / "unet.safetensors"), "erased": ["hourglass"]}
    await registered.service.register("mine", edited, labels={"release": "2"})
    again = await registered.plan(subject="mine", control="own/never")
    audit = await registered.accept(again)
    models = {each.model for result in await registered.results(audit, again) for each in result.observations}
    assert models == {"mine", "own/base", "own/never"}
    assert registered.found() == len(again.units)


async def test_an_audit_in_flight_outlives_its_models(registered: Bench, folder: Path) -> None:
    database, store = registered.service.database, registered.local.store
    plan = await registered.plan(**OWN)
    audit = await registered.accept(plan)
    definitions = {each.definition for each in await database.models.of_audit(audit.id)}
    assert len(definitions) == 3
    for name in ("own/edited", "own/never", "own/base"):
        await registered.service.delete(name)
    while await database.artifact_collection.collect(store.remove):
        pass
    assert all(map(store.contains, definitions))
    # Even a store that lost them gets them back.
    for digest in definitions:
        store.remove(digest)
    # What is registered under the name now is another model.
    await registered.service.register("own/edited", whole(folder, steps=9))
    results = await registered.results(audit, plan)
    assert {each.model for result in results for each in result.observations} == {*OWN.values()}
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)
    while await database.artifact_collection.collect(store.remove):
        pass
    assert not any(map(store.contains, definitions))


async def test_a_file_that_is_swapped_after_the_check(registered: Bench, folder: Path) -> None:
    plan = await registered.plan(**OWN)
    audit = await registered.accept(plan)
    shutil.copy(folder / "never" / "unet.safetensors", folder / "unet.safetensors")
    subject = next(unit for unit in plan.units if unit.id.startswith("standard-prompt/subject"))
    with pytest.raises(UnsafeModelError) as caught:
        await registered.units.compute(audit.id, subject)
    assert caught.value.reason == "WEIGHTS_CHANGED"
    assert caught.value.message.startswith("the subject: the model 'own/edited' is not as it was registered")
    assert caught.value.metadata["model"] == "own/edited"
    with pytest.raises(InvalidRequestError) as violated:
        await registered.plan(**OWN)
    assert violated.value.reason == "WEIGHTS_CHANGED"
    assert "own/edited" in violated.value.message
    check = await registered.service.call("CheckModel", CheckModelRequest(name="own/edited"))
    assert [problem.reason for problem in check.problems] == ["WEIGHTS_CHANGED"]
    assert "model:" not in str(check)


async def test_a_file_that_is_added_after_the_check(registered: Bench, folder: Path) -> None:
    """The library would read it in place of another, whose digest is still the same."""
    await registered.plan(**OWN)
    (folder / "plain" / "tokenizer" / "added_tokens.json").write_text('{"hourglass": 7}')
    with pytest.raises(InvalidRequestError, match=r"added_tokens.json is new"):
        await registered.plan(**OWN)


async def test_a_room_goes_by_its_own_settings(registered: Bench, settings: RoomSettings, folder: Path) -> None:
    plan = await registered.plan(**OWN)
    name = plan.units[0].model
    shutil.rmtree(folder / "never")
    for roots, said in (((), "must lie in a place"), (settings.model_roots, "does not exist")):
        async with local_backend(Path(settings.artifacts), model_roots=roots) as other:
            control = next(unit.model for unit in plan.units if "control" in unit.id)
            with pytest.raises(UnsafeModelError, match=said) as caught:
                other.catalogue.model(control)
            assert caught.value.reason == "PLACE_UNUSABLE"
            assert str(folder) not in caught.value.message.replace(f"allows: {folder}", "")
    assert registered.local.catalogue.model(name).steps == 12


async def test_names_that_only_rooms_know_are_refused(registered: Bench) -> None:
    plan = await registered.plan(**OWN)
    internal = plan.units[0].model
    assert is_registered(internal)
    with pytest.raises(InvalidRequestError) as caught:
        await registered.plan(subject=internal)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(InvalidRequestError) as caught:
        await registered.plan("another", **OWN)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    error = await refused(registered.service.begin("own/x", {"base": internal}))
    assert [violation.field for violation in error.violations] == ["model.entry.base"]
