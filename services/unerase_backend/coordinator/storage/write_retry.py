"""Repeats reads and writes after transient errors of the database (`errors.py` says which they are)."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

from unerase_backend.coordinator.storage.errors import is_full, is_transient

_logger = logging.getLogger(__name__)

# After this long a caller is told to try again later.
_CALLER_SECONDS = 3.0

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def waits(first: float = 0.5, longest: float = 10.0) -> Iterator[float]:
    """Yield the seconds to wait between attempts, each twice the one before."""
    while True:
        yield first
        first = min(first * 2, longest)


async def until_answered(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return the result of an attempt, repeated for as long as the database is unavailable."""
    for wait in waits():
        try:
            return await attempt()
        except Exception as error:
            if not is_transient(error):
                raise
            _logger.warning("trying the database again in %.1f s", wait, exc_info=True)
        await asyncio.sleep(wait)
    raise AssertionError


def repeated(write: Callable[Parameters, Awaitable[Result]]) -> Callable[Parameters, Awaitable[Result]]:
    """Repeat a write for some seconds while transient errors occur; the error of a full disk is raised at once.

    A commit whose answer was lost is repeated as well, so the write must handle that it was done before.
    """

    @functools.wraps(write)
    async def attempts(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        give_up = time.monotonic() + _CALLER_SECONDS
        for wait in waits(0.05, 1.0):
            try:
                return await write(*args, **kwargs)
            except Exception as error:
                if not is_transient(error) or is_full(error) or time.monotonic() + wait > give_up:
                    raise
                _logger.warning("trying %s again in %.2f s", write.__qualname__, wait, exc_info=True)
            await asyncio.sleep(wait)
        raise AssertionError

    return attempts
