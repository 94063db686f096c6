"""The kinds of judge, by the name that a catalogue entry gives.

A kind is a class with the three methods of `Judge`, registered by a decorator; third parties register through the entry
points `unerase.judges`. A kind that needs more of a catalogue entry than a folder names a class of options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.catalogue.entries import JudgeEntry
from unerase_backend.classification.options import GROUP, BadOptionsError, JudgeOptions, read_options
from unerase_backend.runtime.components import Components
from unerase_backend.runtime.errors import PreconditionError, UneraseError
from unerase_backend.runtime.onnx_runtime import installed

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


Load = Callable[..., Judge]
"""Loads a judge: its folder, the device and dtype of its weights, the batch shape to which every call is padded and, if
its kind has options, those of the entry."""

AnyLoad = TypeVar("AnyLoad", bound=Load)


@dataclass(frozen=True)
class Kind:
    """A kind of judge: what loads one, and the options that its catalogue entry may have."""

    load: Load
    options: type[JudgeOptions] | None
    libraries: tuple[str, ...]
    module: str

    @cached_property
    def provider(self) -> str:
        """The distribution that brings the kind and the libraries that run it, with their versions."""
        first = ("unerase", metadata.version("unerase"))
        for entry_point in metadata.entry_points(group=GROUP):
            if entry_point.dist is not None and self.module == entry_point.module:
                first = (entry_point.dist.name, entry_point.dist.version)
        versions = [first, *((name, installed(name)) for name in self.libraries)]
        return ", ".join(f"{name} {version}" for name, version in versions if version)


_KINDS = Components[Kind]("kind of judge", "unerase_backend.classification.judges", GROUP)


def judge(
    kind: str, *, options: type[JudgeOptions] | None = None, libraries: Sequence[str] = ("torch", "transformers")
) -> Callable[[AnyLoad], AnyLoad]:
    """Register the decorated class (or function) as the loader of judges of `kind`.

    With a class of `options`, an entry's options are read into it and passed as the last argument; without one, an
    entry may have none. `libraries` are the distributions that decide what its judges answer; reports give their
    versions.

    Raises:
        RegistrationError: the kind is taken.
    """

    def decorate(load: AnyLoad) -> AnyLoad:
        _KINDS.add(kind, Kind(load, options, tuple(libraries), load.__module__), load.__module__)
        return load

    return decorate


def kinds() -> dict[str, Kind]:
    """Return every kind of judge by name, including those of third parties."""
    return _KINDS.all()


def broken() -> dict[str, str]:
    """Return the entry points that cannot be used, by name, each with its distribution and the reason."""
    return _KINDS.broken()


def load_judge(name: str, entry: JudgeEntry, device: torch.device, dtype: torch.dtype, batch_size: int) -> Judge:
    """Load the judge of a catalogue entry; `batch_size` is the number of pictures in every call.

    Raises:
        PreconditionError: no such kind is installed, or the options are not the kind's.
        UneraseError: the kind refuses the files; the message begins with the judge's name.
    """
    kind = kinds().get(entry.kind)
    if kind is None:
        why = "; ".join([f"no judge of kind {entry.kind!r} is installed", *broken().values()])
        raise PreconditionError(f"{name}: {why}", reason="JUDGE_KIND_UNKNOWN", metadata={"judge": name})
    try:
        options = read_options(entry.kind, kind.options, entry.options)
        given = () if options is None else (options,)
        return kind.load(entry.folder, device, dtype, batch_size, *given)
    except BadOptionsError as error:
        raise PreconditionError(f"{name}: {error}", reason="JUDGE_OPTIONS", metadata={"judge": name}) from None
    except UneraseError as error:
        raise error.prefixed(name, judge=name) from error
