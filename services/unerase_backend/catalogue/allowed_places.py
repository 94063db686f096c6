"""The places from which models may be registered: folders and fsspec prefixes that the operator allows, and hub ids of
organisations that it allows.

Every process checks each place against its own settings, when a model is registered and when it is read.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from unerase_backend.catalogue.places import check_exists, check_printable, resolved


class Remote(Protocol):
    """What brings files of other file systems here (`remote_files.py`)."""

    def local(self, url: str, files: Mapping[str, str] | None) -> Path:
        """Return the local copy of a file or folder; with `files`, of these with their digests and no others.

        Raises:
            ValueError: it does not exist, or holds too much.
            UnavailableError: it cannot be fetched.
        """


class AllowedPlaces:
    """The places that an operator allows; a value within one of them is a path or URL that begins with it."""

    def __init__(self, roots: Sequence[str] = (), organisations: Sequence[str] = (), remote: Remote | None = None):
        self.roots = tuple(roots)
        self.organisations = tuple(organisations)
        self._remote = remote

    def inside(self, value: object, files: Mapping[str, str] | None = None) -> Path:
        """Return the local file or folder that a value names; as `Places.inside`."""
        if not isinstance(value, str) or not value:
            raise ValueError("must be a path or a URL")
        check_printable(value)
        root = self._root_of(value)
        if "://" in value:
            assert self._remote is not None  # noqa: S101 - a URL is allowed only where something can fetch it
            return self._remote.local(value, files)
        path = resolved(Path(value))
        if not path.is_relative_to(Path(root).resolve()):
            raise ValueError("is a link that leads out of the place that the operator allows")
        check_exists(path)
        return path

    def named(self, path: Path) -> str:
        """Return the file's own name, which says nothing of where it lies."""
        return path.name

    def check_organisation(self, organisation: str) -> None:
        """Check that the operator allows the organisation; as `Places.check_organisation`."""
        if organisation not in self.organisations:
            allowed = ", ".join(self.organisations) or "none"
            raise ValueError(f"the operator does not allow the organisation {organisation!r}, but {allowed}")

    def _root_of(self, value: str) -> str:
        """Return the root that a value lies in, by its text alone."""
        # Without looking at the file system: what lies elsewhere must not be told from what does not exist.
        # "::" would make fsspec read one place by way of another.
        beyond = "\\" in value or "::" in value or any(part in (".", "..") for part in value.split("/"))
        within = [root for root in self.roots if (value + "/").startswith(root.rstrip("/") + "/")]
        if beyond or not within or ("://" in value and self._remote is None):
            allowed = ", ".join(self.roots) or "none"
            raise ValueError(f"must lie in a place that the operator allows: {allowed}")
        return max(within, key=len)


class ModelPlaces:
    """The places of one model: within those that are allowed, and remembered as the entry names them."""

    def __init__(self, allowed: AllowedPlaces, files: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._allowed = allowed
        self._files = files
        self.seen: dict[str, Path] = {}
        """The local path of each place that was asked for."""

    def inside(self, value: object) -> Path:
        """Return the local file or folder that a value names; as `Places.inside`."""
        files = None if self._files is None or not isinstance(value, str) else self._files.get(value, {})
        path = self._allowed.inside(value, files)
        self.seen[str(value)] = path
        return path

    def named(self, path: Path) -> str:
        """Return the file's own name."""
        return self._allowed.named(path)

    def check_organisation(self, organisation: str) -> None:
        """Check that the operator allows the organisation; as `Places.check_organisation`."""
        self._allowed.check_organisation(organisation)


def links_out(folder: Path) -> Path | None:
    """Return the first link in a folder that leads out of it, or to itself, at any depth; None if none does."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            path = Path(parent) / name
            if path.is_symlink() and not _leads_into(root, path):
                return path
    return None


def _leads_into(root: Path, link: Path) -> bool:
    try:
        return resolved(link).is_relative_to(root)
    except ValueError:
        return False
