"""Items of a stream that are sent together: Ray takes longer to pass an item on than most items are worth."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

Item = TypeVar("Item")

MOST = 256
"""At most so many items in a portion."""


async def in_portions(items: AsyncIterator[Item], waited_for: Callable[[Item], bool]) -> AsyncGenerator[list[Item]]:
    """Yield the items in lists: each ends with an item that somebody waits for, or when it is full.

    `Room.stream` yields the items of such a list one by one.
    """
    portion: list[Item] = []
    async for item in items:
        portion.append(item)
        if len(portion) == MOST or waited_for(item):
            yield portion
            portion = []
    if portion:
        yield portion
