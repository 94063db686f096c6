"""Registrations end whatever happens to the coordinators that check them, and each ends once."""

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.registering import (
    CHECKING,
    REFUSED,
    REGISTERED,
    examine_here,
    refused,
    registrar,
    struct,
    whole,
)
from unerase.v1.models_pb2 import ImportStatusRequest, NewModel
from unerase_backend.catalogue.definitions import Definition
from unerase_backend.checking.process import Registrable, register_in_process
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.errors import UnavailableError
from unerase_backend.runtime.settings import RoomSettings


async def test_another_coordinator_ends_what_one_leaves(
    settings: RoomSettings, database: Database, folder: Path
) -> None:
    hangs = asyncio.Event()

    async def hanging(name: str, entry: Mapping[str, Any]) -> Registrable:
        hangs.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with registrar(settings, database, home="other") as other:
        async with registrar(settings, database, examine=hanging, home="one") as dying:
            await dying.begin("own/one", whole(folder))
            await hangs.wait()
            await other.registrations.begin_left()
            assert (await other.ended("own/one")).state == CHECKING
            # Its lease runs out, and it cannot give anything up.
            held = await database.models.get("own/one")
            assert held is not None
        await other.registrations.begin_left()
        assert (await other.ended("own/one")).state == REGISTERED


async def test_a_coordinator_that_died_writes_nothing_any_more(
    settings: RoomSettings, database: Database, folder: Path
) -> None:
    goes_on, checks = asyncio.Event(), asyncio.Event()

    async def late(name: str, entry: Mapping[str, Any]) -> Registrable:
        checks.set()
        await goes_on.wait()
        return Registrable(reason="LATE", message="found by a coordinator that was taken for dead")

    async with registrar(settings, database, examine=late, home="one") as one:
        await one.begin("own/one", whole(folder))
        await checks.wait()
        # A coordinator with the same home ends the lease of the one before.
        async with registrar(settings, database, home="one") as two:
            await two.registrations.begin_left()
            assert (await two.ended("own/one")).state == REGISTERED
            goes_on.set()
            assert (await one.ended("own/one")).state == REGISTERED


async def test_what_is_deleted_meanwhile_stays_deleted(
    settings: RoomSettings, database: Database, folder: Path
) -> None:
    goes_on, checks = asyncio.Event(), asyncio.Event()

    async def slow(name: str, entry: Mapping[str, Any]) -> Registrable:
        checks.set()
        await goes_on.wait()
        return await examine_here(settings, name, entry)

    async with registrar(settings, database, examine=slow) as service:
        await service.begin("own/one", whole(folder))
        await checks.wait()
        await service.delete("own/one")
        goes_on.set()
        await service.registrations.idle()
        gone = await refused(service.call("ImportStatus", ImportStatusRequest(name="own/one")))
        assert gone.reason == "MODEL_NOT_FOUND"


async def test_what_cannot_be_fetched_is_tried_again(settings: RoomSettings, database: Database, folder: Path) -> None:
    tries: list[str] = []

    async def down(name: str, entry: Mapping[str, Any]) -> Registrable:
        tries.append(name)
        if len(tries) < 3:
            raise UnavailableError("the bucket does not answer", reason="PLACE_UNAVAILABLE")
        return await examine_here(settings, name, entry)

    async with registrar(settings, database, examine=down) as service:
        assert (await service.register("own/one", whole(folder))).state == REGISTERED
    assert len(tries) == 3
    tries.clear()
    async with registrar(settings, database, examine=down, retry_seconds=0.0) as service:
        found = await service.register("own/two", whole(folder))
        assert (found.state, found.error_reason, len(tries)) == (REFUSED, "PLACE_UNAVAILABLE", 1)


async def test_tenants_take_turns(settings: RoomSettings, database: Database) -> None:
    order: list[str] = []
    begins = asyncio.Event()

    async def noted(name: str, entry: Mapping[str, Any]) -> Registrable:
        await begins.wait()
        order.append(name)
        return Registrable(reason="WEIGHTS_MISSING", message="nothing is there")

    async with registrar(settings, database, examine=noted) as service:
        for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")):
            await database.models.insert(NewModel(name=name, entry=struct({})), name, name, tenant=tenant)
        service.registrations.begin()
        begins.set()
        await service.registrations.idle()
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_several_are_checked_at_once_and_no_more(settings: RoomSettings, database: Database) -> None:
    waves, seen, inside, most = asyncio.Barrier(3), [], 0, 0

    async def met(name: str, entry: Mapping[str, Any]) -> Registrable:
        nonlocal inside, most
        seen.append(name)
        inside += 1
        most = max(most, inside)
        # Without three at once, this is refused as an unexpected error.
        async with asyncio.timeout(30):
            await waves.wait()
        inside -= 1
        return Registrable(reason="WEIGHTS_MISSING", message="nothing is there")

    async with registrar(settings, database, examine=met, at_once=3) as service:
        for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")):
            await database.models.insert(NewModel(name=name, entry=struct({})), name, name, tenant=tenant)
        service.registrations.begin()
        await service.registrations.idle()
    assert most == 3
    assert (sorted(seen[:3]), sorted(seen[3:])) == (["a1", "b1", "c1"], ["a2", "a3", "b2"])
    for name in ("a1", "a2", "a3"):
        ended = await database.models.get(name, "a")
        assert ended is not None
        assert ended.message.error_reason == "WEIGHTS_MISSING"


async def test_what_comes_meanwhile_takes_a_free_place(settings: RoomSettings, database: Database) -> None:
    second = asyncio.Event()

    async def waits_for_the_second(name: str, entry: Mapping[str, Any]) -> Registrable:
        second.set() if name == "second" else await second.wait()
        return Registrable(reason="WEIGHTS_MISSING", message="nothing is there")

    async with registrar(settings, database, examine=waits_for_the_second, at_once=2) as service:
        for name in ("first", "second"):
            await database.models.insert(NewModel(name=name, entry=struct({})), name, name)
            await service.registrations.begin_left()
        async with asyncio.timeout(60):
            await service.registrations.idle()
        assert {(await database.models.get(name)).message.state for name in ("first", "second")} == {REFUSED}  # type: ignore[union-attr]


async def test_a_process_of_its_own_registers(settings: RoomSettings, database: Database, folder: Path) -> None:
    async def examine(name: str, entry: Mapping[str, Any]) -> Registrable:
        return await register_in_process(settings, name, entry)

    async with registrar(settings, database, examine=examine) as service:
        found = await service.register("own/one", whole(folder))
        assert found.state == REGISTERED, found.error_message
        (folder / "plain" / "vae" / "config.json").unlink()
        other = await service.register("own/two", whole(folder))
        assert (other.state, other.error_reason) == (REFUSED, "MODEL_INCOMPLETE")
        registered = await database.models.get("own/one")
        assert registered is not None
        # The definition is in the store under its digest, and names no tenant's words.
        content = service.store.get(registered.definition)
        assert content == registered.content
        definition = Definition.from_bytes(content)
        assert (
            definition.files[str(folder / "plain")]["unet/diffusion_pytorch_model.safetensors"]
            == hashlib.sha256(
                (folder / "plain" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
            ).hexdigest()
        )
        assert b"own/one" not in content
