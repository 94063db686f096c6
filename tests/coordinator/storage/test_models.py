"""Registrations in the database: one coordinator checks each, and each ends once."""

import asyncio
from dataclasses import replace

import pytest

from unerase.v1.models_pb2 import (
    REGISTRATION_STATE_CHECKING,
    REGISTRATION_STATE_REFUSED,
    REGISTRATION_STATE_REGISTERED,
    Model,
    ModelCheck,
    NewModel,
)
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.leases import Leases
from unerase_backend.coordinator.storage.models import NamedDefinition, Registration
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError

from .conftest import insert


async def lease(database: Database, home: str) -> str:
    leases = Leases(database.engine, home, 60.0)
    await leases.begin()
    return leases.id


async def begin(database: Database, name: str, *, tenant: str = "", base: str = "", most: int = 0) -> bool:
    new = NewModel(name=name)
    return await database.models.insert(new, f"{name} by {base}", "digest", tenant=tenant, base=base, most=most)


async def end(database: Database, store: ArtifactStore, found: Registration, checker: str) -> bool:
    async def keep(content: bytes) -> str:
        return store.put(content)

    name, content = found.message.name, f"definition of {found.message.name}".encode()
    described = Model(name=name, digest=name)
    return await database.models.register(
        found, checker, content=content, described=described, check=ModelCheck(name=name), keep=keep
    )


async def registered(database: Database, store: ArtifactStore, name: str, **options: str) -> None:
    checker = await lease(database, f"of {name}")
    assert await begin(database, name, **options)  # type: ignore[arg-type]
    found = await database.models.claim(options.get("tenant", ""), checker)
    assert found is not None
    assert await end(database, store, found, checker)


async def test_one_coordinator_claims_a_registration(database: Database, store: ArtifactStore) -> None:
    checkers = [await lease(database, home) for home in ("a", "b", "c")]
    assert await begin(database, "one")
    claims = await asyncio.gather(*(database.models.claim("", checker) for checker in checkers))
    (winner,) = [checker for checker, found in zip(checkers, claims, strict=True) if found is not None]
    (found,) = [each for each in claims if each is not None]
    others = [checker for checker in checkers if checker != winner]
    assert [await database.models.waiting(checker) for checker in others] == [[], []]
    assert not await end(database, store, found, others[0])
    assert await end(database, store, found, winner)
    # It has ended, whoever comes with what else.
    assert not await database.models.refuse(found, winner, reason="LATE", message="late")
    ended = await database.models.get("one")
    assert ended is not None
    assert (ended.message.state, ended.message.model.digest) == (REGISTRATION_STATE_REGISTERED, "one")
    assert store.get(ended.definition) == ended.content == b"definition of one"


async def test_a_coordinator_claims_one_after_the_other(database: Database) -> None:
    checker, other = await lease(database, "a"), await lease(database, "b")
    assert await begin(database, "one")
    assert await begin(database, "two")
    running: list[str] = []
    for name in ("one", "two"):
        found = await database.models.claim("", checker, running)
        assert found is not None
        assert found.message.name == name
        running.append(found.request_key)
    assert await database.models.claim("", checker, running) is None
    assert await database.models.waiting(checker, running) == []
    # What it began and does not know of any more is its own to begin again, and nobody else's.
    assert await database.models.waiting(checker, running[1:]) == [""]
    assert await database.models.waiting(other) == []


async def test_what_a_dead_coordinator_held_is_claimed(database: Database, store: ArtifactStore) -> None:
    dead = await lease(database, "a")
    assert await begin(database, "one")
    held = await database.models.claim("", dead)
    assert held is not None
    # A coordinator with the same home ends the lease of the one before.
    living = await lease(database, "a")
    assert await database.models.waiting(living) == [""]
    taken = await database.models.claim("", living)
    assert taken is not None
    assert not await database.models.holds(held, dead)
    assert not await end(database, store, held, dead)
    await database.models.release(taken, living, after_seconds=3600)
    assert await database.models.waiting(living) == []
    await database.models.release(held, dead)
    assert await database.models.counts() == {REGISTRATION_STATE_CHECKING: 1}


async def test_names_belong_to_tenants(database: Database, store: ArtifactStore) -> None:
    for tenant in ("", "a", "b"):
        await registered(database, store, "same", tenant=tenant)
        assert not await begin(database, "same", tenant=tenant)
    assert not await database.models.insert(NewModel(name="same"), "another", "digest")
    assert await database.models.names("a") == ["same"]
    assert await database.models.names("c") == []
    assert [each.message.name for each in await database.models.named(["same", "other", "a\0b"], "b")] == ["same"]
    assert await database.models.delete("same", "a")
    assert not await database.models.delete("same", "a")
    assert not await database.models.delete("a\0b", "a")
    assert await database.models.get("same", "b") is not None


async def test_a_chain_of_definitions(database: Database, store: ArtifactStore) -> None:
    await registered(database, store, "one")
    await registered(database, store, "two", base="one")
    await registered(database, store, "three", base="two")
    await registered(database, store, "other")
    found = {each.called for each in await database.models.definitions(["three", "nothing"])}
    assert found == {"one", "two", "three"}
    with pytest.raises(PreconditionError) as caught:
        await database.models.delete("two")
    assert (caught.value.reason, caught.value.metadata["used_by"]) == ("MODEL_IN_USE", "three")
    with pytest.raises(PreconditionError) as caught:
        await begin(database, "four", base="nothing")
    assert caught.value.reason == "MODEL_DELETED"
    with pytest.raises(ExhaustedError) as full:
        await begin(database, "four", most=4)
    assert full.value.reason == "QUOTA_MODELS"


async def test_a_refused_name_is_free_again(database: Database, store: ArtifactStore) -> None:
    checker = await lease(database, "a")
    assert await begin(database, "one")
    first = await database.models.claim("", checker)
    assert first is not None
    message = "holds a NUL \0 and half a character \udc80"
    assert await database.models.refuse(first, checker, reason="R" * 100, message=message)
    refused = await database.models.get("one")
    assert refused is not None
    assert refused.message.state == REGISTRATION_STATE_REFUSED
    assert refused.message.HasField("end_time")
    assert await database.models.insert(NewModel(name="one"), "again", "digest")
    assert await database.models.by_request("one by ") is None
    again = await database.models.by_request("again")
    assert again is not None
    assert again.message.state == REGISTRATION_STATE_CHECKING
    # The first check, were it still under way, has no say in the second registration.
    assert await database.models.claim("", checker) is not None
    assert not await end(database, store, first, checker)


async def test_definitions_stay_while_something_names_them(
    database: Database, store: ArtifactStore, plan: Plan
) -> None:
    await registered(database, store, "one")
    (definition,) = await database.models.definitions(["one"])
    audit = await insert(database, replace(plan, models=(definition,)))
    assert await database.models.of_audit(audit.id) == [
        NamedDefinition("one", definition.definition, definition.content)
    ]
    assert await database.models.delete("one")
    while await database.artifact_collection.collect(store.remove):
        pass
    assert store.contains(definition.definition)
    await database.transitions.cancel(audit.id)
    assert await database.transitions.delete(audit.id)
    assert await database.models.of_audit(audit.id) == []
    while await database.artifact_collection.collect(store.remove):
        pass
    assert not store.contains(definition.definition)
