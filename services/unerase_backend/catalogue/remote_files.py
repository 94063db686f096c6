"""Local copies of models on other file systems, as in s3://bucket/models, by fsspec.

What is registered is copied whole, and hashed. A process that reads a registered model fetches the files that the
definition names and no others, each checked against its digest before it has its name. A copy lies in a folder that is
named after its digests, so that it never changes, and processes share it without a lock.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec

from unerase_backend.catalogue.configs import parse
from unerase_backend.catalogue.kept_digests import file_digest
from unerase_backend.catalogue.model_files import is_index
from unerase_backend.runtime.errors import UnavailableError, UneraseError, UnsafeModelError

MAX_FILES = 4096
MAX_BYTES = 256 * 2**30
"""The most files of a place, and their most bytes together."""
_READ = (".safetensors", ".json", ".txt")
# Whoever loads no weights takes files of configurations, vocabularies and learned words.
_SMALL_BYTES = 32 * 2**20
_PIECE_BYTES = 8 * 2**20
_LEFT_SECONDS = 86400.0


class RemoteFiles:
    """The copies in one folder; without `weights`, large files are empty in them."""

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        self._folder = folder
        self._weights = weights

    def local(self, url: str, files: Mapping[str, str] | None) -> Path:
        """Return the local copy of a file or folder, as `allowed_places.Remote.local`."""
        return _asked(url, lambda: self._survey(url) if files is None else self._pinned(url, files))

    def keep(self, url: str, path: Path, files: Mapping[str, str]) -> None:
        """Make the copy of a place that was surveyed the one of its definition's files."""
        target = self._place(url, files)
        if target.exists() or not files:
            return
        new = self._new()
        for relative in files:
            source = path if not relative else _within(path, relative)
            target_file = _below(new / target.name, relative)
            target_file.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target_file)
        _publish(new, target.parent)

    def _pinned(self, url: str, files: Mapping[str, str]) -> Path:
        target = self._place(url, files)
        wanted = {relative: _below(target, relative) for relative in files}
        if files and all(path.is_file() for path in wanted.values()):
            return target
        system, root = fsspec.core.url_to_fs(url)
        new = self._new()
        try:
            for relative, digest in files.items():
                source = _remote(root, relative)
                path = _below(new / target.name, relative)
                path.parent.mkdir(parents=True, exist_ok=True)
                if self._weights or system.size(source) <= _SMALL_BYTES:
                    _copy(system, source, path)
                    if file_digest(path) != digest:
                        name = PurePosixPath(source).name
                        message = f"{name} of the model's place is not the file that was registered"
                        raise UnsafeModelError(message, reason="WEIGHTS_CHANGED")
                else:
                    path.touch()
            if not files:
                raise FileNotFoundError(url)
            # A copy that lost a file is made anew.
            if target.parent.exists():
                shutil.rmtree(target.parent, ignore_errors=True)
            _publish(new, target.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return target

    def _survey(self, url: str) -> Path:
        """Copy what a place holds: what may be read as it is, and of everything else the names."""
        system, root = fsspec.core.url_to_fs(url)
        new = self._new()
        path = new / PurePosixPath(root).name
        if system.isfile(root):
            _copy(system, root, path)
            for shard in _shards(path):
                _copy(system, _remote(root, shard), path.with_name(shard))
            return path
        listed: Mapping[str, Any] = system.find(root, detail=True)
        if not listed:
            raise FileNotFoundError(url)
        if len(listed) > MAX_FILES or sum(int(each.get("size") or 0) for each in listed.values()) > MAX_BYTES:
            raise ValueError(f"holds more than {MAX_FILES} files or {MAX_BYTES} bytes")
        for source in listed:
            file = _below(path, PurePosixPath(source).relative_to(root).as_posix())
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in _READ:
                _copy(system, source, file)
            else:
                file.touch()
        return path

    def _place(self, url: str, files: Mapping[str, str]) -> Path:
        lines = "".join(sorted(f"{relative}\0{digest}\n" for relative, digest in files.items()))
        digest = hashlib.sha256(lines.encode()).hexdigest()
        return self._folder / (digest if self._weights else f"{digest}-small") / PurePosixPath(url).name

    def _new(self) -> Path:
        """Return a new folder; remove those that were left behind by processes that ended."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("new-*"):
            with suppress(OSError):
                if left.stat().st_mtime < time.time() - _LEFT_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        new = self._folder / f"new-{uuid4().hex}"
        new.mkdir()
        return new


class RemoteNames:
    """What a place is called, without its content: enough to check an entry; stubs lie in a folder of the caller's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def local(self, url: str, files: Mapping[str, str] | None) -> Path:
        """Return an empty file or folder of the place's name, as `allowed_places.Remote.local`."""
        return _asked(url, lambda: self._stub(url))

    def _stub(self, url: str) -> Path:
        system, root = fsspec.core.url_to_fs(url)
        folder = system.info(root)["type"] == "directory"
        stub = self._folder / uuid4().hex / PurePosixPath(root).name
        stub.parent.mkdir(parents=True)
        stub.mkdir() if folder else stub.touch()
        return stub


def _asked(url: str, ask: Callable[[], Path]) -> Path:
    try:
        return ask()
    except FileNotFoundError:
        raise ValueError("does not exist") from None
    except (UneraseError, ValueError):
        raise
    except Exception as error:
        # Each file system has errors of its own; their texts may hold what the operator keeps secret.
        scheme = url.partition("://")[0]
        message = f"a place at {scheme}:// cannot be read now: {type(error).__name__}"
        raise UnavailableError(message, reason="PLACE_UNAVAILABLE", retry_after_seconds=30) from error


def _copy(system: Any, source: str, path: Path) -> None:
    with system.open(source, "rb") as remote, path.open("wb") as local:
        shutil.copyfileobj(remote, local, _PIECE_BYTES)


def _remote(root: str, relative: str) -> str:
    if not relative:
        return root
    name = PurePosixPath(root).name
    _check(relative)
    return f"{root.rpartition('/')[0]}/{relative}" if is_index(name) else f"{root}/{relative}"


def _below(path: Path, relative: str) -> Path:
    if not relative:
        return path
    _check(relative)
    return _within(path, relative)


def _within(path: Path, relative: str) -> Path:
    return path.parent / relative if is_index(path.name) else path / relative


def _check(relative: str) -> None:
    parts = relative.split("/")
    if not relative.isprintable() or "\\" in relative or any(part in ("", ".", "..") for part in parts):
        raise ValueError("holds a file whose name cannot be used")


def _shards(path: Path) -> Iterable[str]:
    """Return the files that an index names beside it; what else is wrong with it, its check says."""
    content = parse(path) if is_index(path.name) else None
    named = content.get("weight_map") if isinstance(content, dict) else None
    values = set(named.values()) if isinstance(named, dict) else set()
    return sorted(each for each in values if isinstance(each, str) and each.endswith(_READ[0]) and "/" not in each)


def _publish(new: Path, target: Path) -> None:
    """Give a finished copy its name, unless another process was first."""
    try:
        new.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(new, ignore_errors=True)
