"""Trying again what met an error of the database that passes by itself (`errors.py`)."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

from unerase_backend.coordinator.storage.errors import is_full, is_transient

_logger = logging.getLogger(__name__)

# A caller who waits longer is told when to try again, in place of an answer.
_CALLER_SECONDS = 3.0

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def waits(first: float = 0.5, longest: float = 10.0) -> Iterator[float]:
    """Yield the seconds to wait between attempts, each twice the one before."""
    while True:
        yield first
        first = min(first * 2, longest)


async def until_answered(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what the database answers, as soon as it does."""
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
    """Repeat a caller's write for some seconds while it meets passing errors; a full disk is told at once.

    A commit whose answer was lost is repeated as well: the write must say what it does where it was done before.
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
