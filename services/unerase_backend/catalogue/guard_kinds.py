"""The guards of a catalogue's models: their kinds, their entries in a file, and their digests.

A guard is what a deployed pipeline does beside its weights, as in a negative prompt or a safety checker. Its kind is a
class of `diffusion/guards/` or of a third party (entry point `unerase.guards`), registered by the decorator
`diffusion.guarding.guard`. An entry is checked with the kind's own parameters when its file is read, which is why
modules of guards import torch only where they compute.

    models:
      own/deployed: {base: own/model, guards: [{kind: negative-prompt, text: "an hourglass"}]}
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo

from unerase.v1.models_pb2 import Guard, WeightFile
from unerase_backend.catalogue import digests
from unerase_backend.catalogue.spelled import said_of
from unerase_backend.runtime.components import Components

MAX_GUARDS = 16


class GuardParameters(BaseModel):
    """The parameters of a kind of guard, as keys of its entry; unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GuardKind(Protocol):
    """What the catalogue needs to know of a kind of guard."""

    Parameters: ClassVar[type[GuardParameters]]
    single: ClassVar[bool]
    """A model may have only one guard of this kind."""
    rows: ClassVar[int]
    """Rows that it adds to each guided step."""
    needs_classifier_free: ClassVar[bool]
    """Whether it fits only models with classifier-free guidance."""
    families: ClassVar[tuple[str, ...]]
    """The families of models that it is for, as in "stable-diffusion"; none of them stands for all."""
    needs_unet: ClassVar[bool]
    """Whether `check_unet` looks at anything."""

    @classmethod
    def files(cls, parameters: Any, pipeline: Path) -> Sequence[Path]:
        """Return the files that it reads; `pipeline` is the model's folder."""

    @classmethod
    def parts(cls, parameters: Any) -> Sequence[str]:
        """Return the folders of the pipeline that it reads."""

    @classmethod
    def check_files(cls, parameters: Any, pipeline: Path) -> None:
        """Check its files by configurations and headers."""

    @classmethod
    def check_unet(cls, parameters: Any, unet: Any) -> None:
        """Check that it fits a UNet, which may be without memory."""


KINDS = Components[type[GuardKind]]("kind of guard", "unerase_backend.diffusion.guards", "unerase.guards")


def needs_family(kind: str, families: Sequence[str], family: str) -> str:
    """Return why a guard does not fit the models of a family that it is not for; empty if it does."""
    if not families or family in families:
        return ""
    return f"the guard {kind} does not fit the model: it is for {' and '.join(families)}, not for {family}"


def needs_rows(kind: str, family: str) -> str:
    """Return why a guard does not fit the models of a family without classifier-free guidance."""
    what = "it acts on the rows of classifier-free guidance"
    return f"the guard {kind} does not fit the model: {what}, and {family} predicts one row, under the prompt"


@dataclass(frozen=True)
class GuardEntry:
    """One guard of a model's entry."""

    kind: str
    parameters: GuardParameters


def read_guards(value: object, info: ValidationInfo) -> tuple[GuardEntry, ...]:
    """Return the guards of an entry of a catalogue file.

    Raises:
        ValueError: it is no list, or one of them has no known kind, or bad parameters; the message names each.
    """
    if isinstance(value, tuple) and all(isinstance(each, GuardEntry) for each in value):
        return value
    if not isinstance(value, list) or len(value) > MAX_GUARDS:
        raise ValueError(f"must be a list of at most {MAX_GUARDS} guards, each with its kind")
    entries = [_read(index, each, info) for index, each in enumerate(value)]
    if problem := repeated(entries):
        raise ValueError(problem)
    return tuple(entries)


def added_rows(entries: Iterable[GuardEntry]) -> int:
    """Return how many rows of the UNet guards add to each guided step."""
    return sum(KINDS.all()[entry.kind].rows for entry in entries)


def repeated(entries: Iterable[GuardEntry]) -> str:
    """Return what is wrong with the guards of one model together; empty if nothing is."""
    seen: set[str] = set()
    for entry in entries:
        if entry.kind in seen and KINDS.all()[entry.kind].single:
            return f"a model may have one guard of the kind {entry.kind}, its base's included"
        seen.add(entry.kind)
    return ""


def _read(index: int, value: object, info: ValidationInfo) -> GuardEntry:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        raise ValueError(f"[{index}]: must be a mapping with its kind")
    known = KINDS.all()
    if kind not in known:
        broken = "".join(f"; {each}" for each in KINDS.broken().values())
        raise ValueError(f"[{index}].kind: there is no guard {kind!r}, but {', '.join(known)}{broken}")
    given = {key: each for key, each in value.items() if key != "kind"}
    try:
        return GuardEntry(kind, known[kind].Parameters.model_validate(given, context=info.context))
    except ValidationError as error:
        problems = [
            f"{'.'.join([f'[{index}]', *(str(key) for key in problem['loc'])])} of {kind}: "
            f"{said_of(problem, known[kind].Parameters.model_fields)}"
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise ValueError("; ".join(problems)) from None


def describe_guards(entries: Iterable[GuardEntry], pipeline: Path, digest: digests.Digest) -> list[Guard]:
    """Return guards with the digests of their files; `pipeline` is the model's folder.

    Raises:
        UnsafeModelError: a folder is missing or has no safetensors.
    """
    return [_described(entry, pipeline, digest) for entry in entries]


def files_of(entry: GuardEntry, pipeline: Path) -> Sequence[Path]:
    """Return the files that a guard reads; `pipeline` is the model's folder. Raises as `describe_guards`."""
    return KINDS.all()[entry.kind].files(entry.parameters, pipeline)


def guarded_digest(weights_digest: str, guards: Iterable[Guard]) -> str:
    """Return the digest of a model with guards, over that of its weights; without guards it is the weights' own."""
    described = [guard.SerializeToString(deterministic=True) for guard in guards]
    if not described:
        return weights_digest
    parts = [hashlib.sha256(each).hexdigest() for each in described]
    return hashlib.sha256("\0".join(["guards", weights_digest, *parts]).encode()).hexdigest()


def named_files(parameters: GuardParameters) -> list[Path]:
    """Return the files that parameters name."""
    named = [getattr(parameters, name) for name in type(parameters).model_fields]
    return [value for value in named if isinstance(value, Path) and value.is_file()]


def _described(entry: GuardEntry, pipeline: Path, digest: digests.Digest) -> Guard:
    parameters, kind = Struct(), KINDS.all()[entry.kind]
    given: dict[str, Any] = {}
    for name in type(entry.parameters).model_fields:
        value = getattr(entry.parameters, name)
        if value is not None:
            given[name] = value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    json_format.ParseDict(given, parameters)
    files = [digests.hash_file(path.parent.name, path, digest) for path in kind.files(entry.parameters, pipeline)]
    hashed = [WeightFile(component=each.component, digest=each.digest, size_bytes=each.size_bytes) for each in files]
    return Guard(kind=entry.kind, parameters=parameters, files=hashed)
