"""Streams artefacts in pieces."""

from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from unerase_backend.coordinator.fair_queue import FairQueue

CHUNK_BYTES = 64 * 1024

Piece = TypeVar("Piece")


async def in_turn(pieces: Iterator[Piece], threads: FairQueue) -> AsyncIterator[Piece]:
    """Take each piece, in a thread, when it is asked for, so that a slow caller holds only one of them in memory."""
    while (piece := await threads.run(next, pieces, None)) is not None:
        yield piece
