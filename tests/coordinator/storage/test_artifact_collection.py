"""Artefacts are removed with the last that names them, and no sooner."""

import pytest
import sqlalchemy as sa

from unerase.v1.audits_pb2 import (
    Audit,
)
from unerase.v1.types_pb2 import Concept, Observation
from unerase_backend.catalogue import CustomConcept
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.artifact_collection import discard
from unerase_backend.coordinator.storage.database import Database

from .conftest import record, running


async def test_an_artefact_goes_with_the_last_that_names_it(database: Database, plan: Plan) -> None:
    first, second = await running(database, plan), await running(database, plan)
    await record(database, first, plan.units[0].id, Observation(picture_digest="alone"))
    await record(database, first, plan.units[1].id, Observation(picture_digest="shared"))
    await record(database, second, plan.units[0].id, Observation(picture_digest="shared"))
    concept = CustomConcept(Concept(name="mine", picture_digests=["shared", "mine"]), 32)
    assert await database.concepts.insert(concept, "r", "d")
    removed: list[str] = []

    async def delete(audit: Audit) -> set[str]:
        await database.transitions.cancel(audit.id)
        assert await database.transitions.delete(audit.id)
        removed.clear()
        while await database.artifact_collection.collect(removed.append):
            pass
        return set(removed)

    assert await delete(first) == {"alone"}
    assert await delete(second) == set(plan.concept.picture_digests)
    assert await database.concepts.delete("mine")
    removed.clear()
    assert await database.artifact_collection.collect(removed.append) == 2
    assert removed == ["mine", "shared"]


async def test_an_artefact_that_cannot_be_removed_is_tried_again(database: Database, plan: Plan) -> None:
    await database.artifact_collection.add(["one"])

    def fail(digest: str) -> None:
        raise PermissionError(digest)

    with pytest.raises(PermissionError):
        await database.artifact_collection.collect(fail)
    removed: list[str] = []
    assert await database.artifact_collection.collect(removed.append) == 1
    assert removed == ["one"]


async def test_the_pictures_of_many_concepts_stay(database: Database) -> None:
    digests = [f"{number}" for number in range(40)]
    for digest in digests:
        concept = CustomConcept(Concept(name=f"c{digest}", picture_digests=[digest]), 32)
        assert await database.concepts.insert(concept, digest, "d")
    await database.artifact_collection.add([*digests, "alone"])
    removed: list[str] = []
    assert await database.artifact_collection.collect(removed.append) == 41
    assert removed == ["alone"]


async def test_more_artefacts_are_noted_than_a_statement_has_parameters(database: Database) -> None:
    """PostgreSQL takes 65,535, and an audit that cannot be deleted would stay for ever."""
    digests = {f"{number:064x}" for number in range(66_000)}
    async with database.engine.begin() as connection:
        await discard(connection, digests)
        await discard(connection, digests)
        noted = sa.select(sa.func.count()).select_from(tables.discarded)
        assert (await connection.execute(noted)).scalar() == len(digests)
