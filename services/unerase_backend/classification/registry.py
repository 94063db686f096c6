"""The kinds of judge, by the name that a catalogue entry gives.

A kind is a class with the three methods of `Judge`, registered by a decorator; third parties register through the entry
points `unerase.judges`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement

Picture = NDArray[np.uint8]
Features = NDArray[np.float32]


class Judge(Protocol):
    """A judge with its weights loaded.

    It looks at a batch of pictures once, and then answers any number of questions about each picture from what it saw.
    """

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Return what is wrong with a question: pairs of a field within it, as in "labels[0]", and a description."""

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return what it sees, (pictures, features).

        A row depends on its picture alone, bit for bit, whatever the other pictures are.
        """

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer a question about one picture from one row of `look`, all of whose values are finite."""


@runtime_checkable
class Embeds(Protocol):
    """A judge that knows where a picture stands among all others, beside what it answers."""

    def embedding(self, seen: Features) -> Features:
        """Return the picture's embedding of length 1, (width,), from one row of `look`."""


Load = Callable[[Path, torch.device, torch.dtype, int], Judge]
"""Loads a judge: its folder, the device and dtype of its weights, the batch shape to which every call is padded."""

_KINDS: dict[str, Load] = {}
_loaded = False


def judge(kind: str) -> Callable[[Load], Load]:
    """Register the decorated class (or function) as what loads judges of `kind`."""

    def decorate(load: Load) -> Load:
        if kind in _KINDS:
            raise ValueError(f"the kind of judge {kind!r} is registered twice")
        _KINDS[kind] = load
        return load

    return decorate


def kinds() -> dict[str, Load]:
    """Return every kind of judge by name, those of third parties included."""
    global _loaded  # noqa: PLW0603 - modules are imported once a process
    if not _loaded:
        package = importlib.import_module("unerase_backend.classification.judges")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
        for entry_point in entry_points(group="unerase.judges"):
            entry_point.load()
        _loaded = True
    return dict(sorted(_KINDS.items()))
