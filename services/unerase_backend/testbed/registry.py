"""The registry of the testbed's parts: which other parts each needs, and how it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Make = Callable[[Path, Path], Figures]


@dataclass(frozen=True)
class Part:
    """One part of the testbed."""

    needs: tuple[str, ...]
    """The parts whose files it reads."""
    make: Make
    """Makes it, given the weights folder and the work folder, and returns its figures."""
    concept: str | None
    """The concept of its family; None for a part that all families share."""


PARTS: dict[str, Part] = {}


def part(name: str, *needs: str, concept: str | None = None) -> Callable[[Make], Make]:
    """Register the function that makes a part."""

    def register(make: Make) -> Make:
        PARTS[name] = Part(needs, make, concept)
        return make

    return register
