"""The kinds of judge, by the name that a catalogue entry gives.

A kind is a class with the three methods of `Judge`, registered by a decorator; third parties register through the entry
points `unerase.judges`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.runtime.components import Components

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

        A row depends only on its picture, bit for bit, whatever the other pictures are.
        """

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer a question about one picture from one row of `look`, all of whose values are finite."""


@runtime_checkable
class Embeds(Protocol):
    """A judge that also gives an embedding of each picture."""

    def embedding(self, seen: Features) -> Features:
        """Return the picture's embedding of length 1, (width,), from one row of `look`."""


Load = Callable[[Path, torch.device, torch.dtype, int], Judge]
"""Loads a judge: its folder, the device and dtype of its weights, the batch shape to which every call is padded."""

_KINDS = Components[Load]("kind of judge", "unerase_backend.classification.judges", "unerase.judges")


def judge(kind: str) -> Callable[[Load], Load]:
    """Register the decorated class (or function) as the loader of judges of `kind`.

    Raises:
        RegistrationError: the kind is taken.
    """

    def decorate(load: Load) -> Load:
        _KINDS.add(kind, load, load.__module__)
        return load

    return decorate


def kinds() -> dict[str, Load]:
    """Return every kind of judge by name, including those of third parties."""
    return _KINDS.all()


def broken() -> dict[str, str]:
    """Return the entry points that cannot be used, by name, each with its distribution and the reason."""
    return _KINDS.broken()
