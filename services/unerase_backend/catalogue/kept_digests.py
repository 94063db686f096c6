"""SHA-256 of files, kept in a folder, so that gigabytes of weights are hashed once and not by every process.

Without a folder they are kept in the memory of the process.

A kept digest counts as long as the file is the same one by device, inode, size and both times of change. A file that
changed within the last seconds is hashed anew each time: a file system's clock may be too coarse to show that it
changed again.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_RECENT_SECONDS = 3.0


def file_digest(path: Path) -> str:
    """Return SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class KeptDigests:
    """The digests of files; each is read from `folder` if an earlier process left it there.

    Processes share the folder without a lock, because each digest is a file of its own that appears whole. A folder
    that cannot be written to only costs time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, Any]] = {}

    def __call__(self, path: Path) -> str:
        """Return SHA-256 of a file, hexadecimal."""
        place = path.resolve()
        before = _identity(place)
        kept = self._read(place, before)
        if kept:
            return kept
        digest = file_digest(place)
        changed = max(before["mtime_ns"], before["ctime_ns"]) / 1e9
        if _identity(place) == before and changed < time.time() - _RECENT_SECONDS:
            self._write(place, {**before, "path": str(place), "sha256": digest})
        return digest

    def _read(self, path: Path, identity: dict[str, int]) -> str:
        try:
            if self._folder is None:
                content = dict(self._known[path])
            else:
                content = json.loads(self._file(self._folder, path).read_text(encoding="utf-8"))
            digest = content.pop("sha256")
            same = content == {**identity, "path": str(path)} and len(digest) == 64
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            return ""
        return str(digest) if same else ""

    def _write(self, path: Path, content: dict[str, int | str]) -> None:
        if self._folder is None:
            self._known[path] = content
            return
        file = self._file(self._folder, path)
        new = file.with_name(f"{file.name}.{uuid4().hex}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(content), encoding="utf-8")
            new.replace(file)
        except OSError:
            with suppress(OSError):
                new.unlink()

    @staticmethod
    def _file(folder: Path, path: Path) -> Path:
        return folder / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def _identity(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }
