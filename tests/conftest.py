"""What several rooms' tests share."""

from collections.abc import AsyncIterator

import pytest

from backend import LocalBackend, local_backend


@pytest.fixture(scope="session")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    """The backend in this process, over the embedded testbed and one store."""
    async with local_backend(tmp_path_factory.mktemp("local")) as backend:
        yield backend
