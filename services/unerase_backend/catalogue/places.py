"""The places that an entry may name: files and folders inside a catalogue file's folder, and hub ids of organisations.

`allowed_places.py` has those of a registered model.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Places(Protocol):
    """What an entry may name; it is the context of the entry's validation."""

    def inside(self, value: object) -> Path:
        """Return the file or folder that `value` names, links followed.

        Raises:
            ValueError: it may not be named, or does not exist.
        """

    def named(self, path: Path) -> str:
        """Return how a message names a path of `inside`: never by a path that the entry's author did not write."""

    def check_organisation(self, organisation: str) -> None:
        """Check that the entry may name a hub id of an organisation.

        Raises:
            ValueError: it may not.
        """


@dataclass(frozen=True)
class FilePlaces:
    """The places of a catalogue file: what its own folder holds."""

    root: Path
    organisations: Collection[str] = ()

    def inside(self, value: object) -> Path:
        """Return `value` below the file's folder; as `Places.inside`."""
        if not isinstance(value, str) or not value:
            raise ValueError("must be a path relative to the catalogue file")
        check_printable(value)
        if Path(value).is_absolute() or ".." in Path(value).parts or "\\" in value:
            raise ValueError("must stay inside the catalogue file's folder")
        path = resolved(self.root / value)
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(
                "is a link that leads out of the catalogue file's folder; copy what it leads to into that folder"
            )
        check_exists(path)
        return path

    def named(self, path: Path) -> str:
        """Return a path relative to the file's folder, in which the commands of messages work."""
        return path.relative_to(self.root.resolve()).as_posix()

    def check_organisation(self, organisation: str) -> None:
        """Check that the file names the organisation; as `Places.check_organisation`."""
        if organisation not in self.organisations:
            raise ValueError(f"the organisation {organisation!r} is not among this file's hub_organisations")


def resolved(path: Path) -> Path:
    """Return a path with its links followed.

    Raises:
        ValueError: its links lead back to themselves.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise ValueError("is a link that leads to itself") from None


def check_printable(value: str) -> None:
    """Check that a path can be shown in a message.

    Raises:
        ValueError: it has control or invisible characters.
    """
    if not value.isprintable():
        raise ValueError("must have no control and no invisible characters")


def check_exists(path: Path) -> None:
    """Check that a file or folder exists.

    Raises:
        ValueError: it does not, or cannot be looked at.
    """
    try:
        path.stat()
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
