"""A coordinator's ModelService, and an allowed folder with the testbed's reference and an edit of it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.registering import Registrar, registrar, settings_of
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.settings import RoomSettings


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def settings(tmp_path: Path) -> RoomSettings:
    return settings_of(tmp_path)


@pytest.fixture
async def service(settings: RoomSettings, database: Database) -> AsyncIterator[Registrar]:
    async with registrar(settings, database) as service:
        yield service


@pytest.fixture
def folder(settings: RoomSettings) -> Path:
    """The allowed folder, with the testbed's reference in `plain` and what erased a concept from it."""
    root = Path(settings.model_roots[0])
    shutil.copytree(EMBEDDED.parent / "reference", root / "plain")
    shutil.copy(EMBEDDED.parent / "uce" / "unet.safetensors", root)
    return root
