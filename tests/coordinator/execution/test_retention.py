"""What is removed, seen from the connections that it takes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.storage.connections import Connections
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore


async def test_many_who_delete_hold_one_connection(
    tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait for it without one: a store far away takes its time."""
    database = Database(Connections(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    await database.artifact_collection.add([f"{number:064x}" for number in range(3)])
    collect, at_once, most, taken = database.artifact_collection.collect, 0, 0, 0

    async def counted(remove: Callable[[str], None]) -> int:
        nonlocal at_once, most, taken
        at_once += 1
        most = max(most, at_once)
        number = await collect(remove)
        taken += number
        at_once -= 1
        return number

    monkeypatch.setattr(database.artifact_collection, "collect", counted)
    retention = Retention(database, store, 0)
    await asyncio.gather(*(retention.collect() for _ in range(8)))
    assert (most, taken) == (1, 3)
    await database.close()
