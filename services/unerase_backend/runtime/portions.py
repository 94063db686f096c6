"""Items of a stream that are sent together: Ray takes longer to pass an item on than most items are worth."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from math import inf
from typing import TypeVar

Item = TypeVar("Item")

MOST = 256
"""At most so many items in a portion."""

PAUSE_SECONDS = 0.5
"""Time between two portions, unless one is full."""


async def in_portions(
    items: AsyncIterator[Item], waited_for: Callable[[Item], bool], now: Callable[[], float] = time.monotonic
) -> AsyncGenerator[list[Item]]:
    """Yield the items in lists: each ends with an item that somebody waits for, or when it is full.

    Nobody waits for more than one in `PAUSE_SECONDS`: the others of that time come with the next portion.
    `Room.stream` yields the items of such a list one by one.
    """
    portion: list[Item] = []
    told = -inf
    async for item in items:
        portion.append(item)
        if len(portion) == MOST or (waited_for(item) and now() >= told + PAUSE_SECONDS):
            yield portion
            told = now()
            portion = []
    if portion:
        yield portion
