"""The files that guards read: fetched with the model that they guard, and checked by configurations and headers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unerase_backend.catalogue import hub
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.guard_kinds import KINDS, GuardEntry, needs_family
from unerase_backend.catalogue.model_files import SUFFIX
from unerase_backend.catalogue.tensors import UNREADABLE, read_header
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

PART = "guard"
"""What a problem names as its part."""


def fetch(hub_id: str, revision: str, entries: Iterable[GuardEntry], pipeline: Path) -> None:
    """Fetch the parts of a hub's pipeline that guards read, once; `pipeline` is its local folder.

    Raises:
        UnavailableError: they are not in the local cache and cannot be fetched.
    """
    parts = {part for entry in _lacking(entries, pipeline) for part in _parts(entry)}
    if parts:
        hub.fetch_folders(hub_id, revision, sorted(parts))


def to_be_fetched(entries: Iterable[GuardEntry], pipeline: Path) -> list[GuardEntry]:
    """Return those guards whose parts of a hub's pipeline are not in its local folder."""
    return [entry for entry in _lacking(entries, pipeline) if _parts(entry)]


def find_problems(entries: Iterable[GuardEntry], pipeline: Path, findings: Findings) -> None:
    """Find what is wrong with the files of guards, without loading them."""
    for entry in entries:
        if (error := _problem(entry, pipeline)) is not None:
            findings.problem(PART, error.reason, f"the guard {entry.kind}: {error.message}")


def find_strangers(entries: Iterable[GuardEntry], family: str, findings: Findings) -> None:
    """Find which guards are for other families of models."""
    for entry in entries:
        if problem := needs_family(entry.kind, KINDS.all()[entry.kind].families, family):
            findings.problem(PART, "GUARD_UNFIT", problem)


def find_misfits(entries: Iterable[GuardEntry], unet: Any, family: str, findings: Findings) -> None:
    """Find which guards do not fit a UNet, which may be without memory; those whose files are wrong, or that are for
    other families, are left out.
    """
    for entry in entries:
        kind = KINDS.all()[entry.kind]
        if needs_family(entry.kind, kind.families, family):
            continue
        try:
            kind.check_unet(entry.parameters, unet)
        except PreconditionError as error:
            findings.problem(PART, error.reason, error.message)
        except UnsafeModelError:
            continue


def needs_unet(entries: Iterable[GuardEntry]) -> bool:
    """Return whether `find_misfits` has anything to look at."""
    return any(KINDS.all()[entry.kind].needs_unet for entry in entries)


def _lacking(entries: Iterable[GuardEntry], pipeline: Path) -> list[GuardEntry]:
    return [entry for entry in entries if _problem(entry, pipeline) is not None]


def _parts(entry: GuardEntry) -> tuple[str, ...]:
    return tuple(KINDS.all()[entry.kind].parts(entry.parameters))


def _problem(entry: GuardEntry, pipeline: Path) -> UnsafeModelError | None:
    kind = KINDS.all()[entry.kind]
    try:
        for path in kind.files(entry.parameters, pipeline):
            if path.suffix == SUFFIX:
                _check_header(path)
        kind.check_files(entry.parameters, pipeline)
    except UnsafeModelError as error:
        return error
    return None


def _check_header(path: Path) -> None:
    try:
        read_header(path)
    except UNREADABLE:
        message = f"{shown(path.name)} is cut off, damaged, or no safetensors file"
        raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE") from None
