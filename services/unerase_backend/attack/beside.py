"""Work that goes on beside an attack's search, as the pictures that the search does not read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def beside() -> AsyncIterator[asyncio.TaskGroup]:
    """Give a group of tasks that all have ended when the context ends.

    The first error, of a task or of the context itself, cancels the rest and comes alone, as it would without tasks.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
