"""The artefact store: bytes under their SHA-256, and small records under a key, on any fsspec file system.

A write goes to a temporary name and is moved into place, so that a file under its final name is always complete.
What is read is checked against its digest; bytes that do not match are removed, so that they can be made again.
"""

import errno
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import IO

import fsspec

from unerase_backend.runtime.errors import DataLossError, ExhaustedError, NotFoundError
from unerase_backend.runtime.identifiers import DIGEST

STORAGE_FULL = "STORAGE_FULL"
"""The reason of the error when the disk is full; work waits until there is room again."""

LOST = ("ARTIFACT_NOT_FOUND", "ARTIFACT_DAMAGED")
"""The reasons of the errors when an artefact is missing or damaged."""

PIECE_BYTES = 1024 * 1024
"""How much of a large artefact is read at once."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY_SECONDS = 10.0


class ArtifactStore:
    """Content-addressed artefacts and keyed records below one root, as in `/var/lib/unerase` or `s3://bucket/unerase`."""

    def __init__(self, root: str) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(root)
        self._filesystem.makedirs(self._root, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Store `content` and return its SHA-256 (hexadecimal); bytes that are there already are only looked up.

        Raises:
            ExhaustedError: there is no room left.
        """
        digest = hashlib.sha256(content).hexdigest()
        # A file that was cut short is written again.
        if self.size(digest) != len(content):
            self._write(self._path("artifacts", digest), content)
        return digest

    def put_file(self, file: IO[bytes]) -> str:
        """As `put`, for the bytes of a file from its beginning, which are read in pieces."""
        whole = hashlib.sha256()
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            whole.update(piece)
        digest, size = whole.hexdigest(), file.tell()
        if self.size(digest) != size:
            file.seek(0)
            self._write(self._path("artifacts", digest), file)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            NotFoundError: there is no such artefact, or `digest` is not 64 hexadecimal digits.
            DataLossError: the stored bytes are not what the digest says; the broken file is removed.
        """
        if not DIGEST.fullmatch(digest):
            raise NotFoundError("the digest must be 64 hexadecimal digits in lower case", reason="ARTIFACT_NOT_FOUND")
        path = self._path("artifacts", digest)
        try:
            content: bytes = self._filesystem.cat_file(path)
        except FileNotFoundError:
            raise NotFoundError(f"no artefact has the digest {digest}", reason="ARTIFACT_NOT_FOUND") from None
        if hashlib.sha256(content).hexdigest() != digest:
            self.remove(digest)
            raise DataLossError(f"the artefact {digest} is damaged", reason="ARTIFACT_DAMAGED")
        return content

    def pieces(self, digest: str, piece_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return the size of `digest` in bytes, and its bytes in pieces, at least one.

        Only the pieces that are taken are read. The last piece comes after all bytes were checked against the digest.

        Raises:
            NotFoundError: as `get`.
            DataLossError: in place of the last piece.
        """
        size = self.size(digest) if DIGEST.fullmatch(digest) else None
        if size is None:
            raise NotFoundError("no artefact has this digest", reason="ARTIFACT_NOT_FOUND")
        return size, self._pieces(self._path("artifacts", digest), digest, piece_bytes)

    def _pieces(self, path: str, digest: str, piece_bytes: int) -> Iterator[bytes]:
        whole = hashlib.sha256()
        try:
            file = self._filesystem.open(path, "rb")
        except FileNotFoundError:
            raise DataLossError(f"the artefact {digest} was removed meanwhile", reason="ARTIFACT_NOT_FOUND") from None
        with file:
            piece = file.read(piece_bytes)
            while following := file.read(piece_bytes):
                whole.update(piece)
                yield piece
                piece = following
        whole.update(piece)
        if whole.hexdigest() != digest:
            self.remove(digest)
            raise DataLossError(f"the artefact {digest} is damaged", reason="ARTIFACT_DAMAGED")
        yield piece

    def contains(self, digest: str) -> bool:
        """Return whether the artefact exists, without reading it."""
        return bool(DIGEST.fullmatch(digest)) and bool(self._filesystem.exists(self._path("artifacts", digest)))

    def whole(self, digest: str) -> bool:
        """Return whether the artefact exists and matches its digest."""
        if not DIGEST.fullmatch(digest):
            return False
        try:
            for _ in self._pieces(self._path("artifacts", digest), digest, PIECE_BYTES):
                pass
        except DataLossError:
            return False
        return True

    def size(self, digest: str) -> int | None:
        """Return an artefact's size in bytes, without reading it; None if it does not exist."""
        try:
            size: int = self._filesystem.size(self._path("artifacts", digest))
        except FileNotFoundError:
            return None
        return size

    def remove(self, digest: str) -> None:
        """Remove an artefact, if it exists."""
        with suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path("artifacts", digest))

    def older(self, before: datetime) -> Iterator[str]:
        """Yield the digests of the artefacts that were written before a time."""
        yield from (path.rsplit("/", 1)[1] for path in self._older("artifacts", before))

    def remove_interrupted(self, before: datetime) -> None:
        """Remove the temporary files of writes that were interrupted before a time."""
        for kind in ("artifacts", "records"):
            self._remove_older(kind, before, partial=True)

    def remove_records(self, before: datetime) -> None:
        """Remove the records that were written before a time; the work that they saved is then done again."""
        self._remove_older("records", before)

    def put_record(self, key: str, content: bytes) -> None:
        """Store a small record under `key` (64 hexadecimal digits), with a checksum; the last writer wins.

        Raises:
            ExhaustedError: there is no room left.
        """
        self._write(self._path("records", key), hashlib.sha256(content).digest() + content)

    def get_record(self, key: str) -> bytes | None:
        """Return the record under `key`; None if there is none or if it is damaged."""
        try:
            stored: bytes = self._filesystem.cat_file(self._path("records", key))
        except FileNotFoundError:
            return None
        content = stored[32:]
        return content if hashlib.sha256(content).digest() == stored[:32] else None

    def _path(self, kind: str, name: str) -> str:
        return f"{self._root}/{kind}/{name[:2]}/{name}"

    def _older(self, kind: str, before: datetime, *, partial: bool = False) -> Iterator[str]:
        for path in self._filesystem.find(f"{self._root}/{kind}"):
            if path.endswith(".partial") != partial:
                continue
            with suppress(FileNotFoundError):
                if _aware(self._filesystem.modified(path)) < before:
                    yield path

    def _remove_older(self, kind: str, before: datetime, *, partial: bool = False) -> None:
        for path in list(self._older(kind, before, partial=partial)):
            with suppress(FileNotFoundError):
                self._filesystem.rm_file(path)

    def _write(self, path: str, content: bytes | IO[bytes]) -> None:
        folder = path.rsplit("/", 1)[0]
        partial = f"{folder}/.{uuid.uuid4().hex}.partial"
        with _room():
            self._filesystem.makedirs(folder, exist_ok=True)
            try:
                if isinstance(content, bytes):
                    self._filesystem.pipe_file(partial, content)
                else:
                    with self._filesystem.open(partial, "wb") as target:
                        shutil.copyfileobj(content, target, PIECE_BYTES)
                self._filesystem.mv(partial, path)
            except BaseException:
                with suppress(Exception):
                    self._filesystem.rm_file(partial)
                raise


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ExhaustedError(
            "the artefact store is full; free some space there, and waiting work continues by itself",
            reason=STORAGE_FULL,
            retry_after_seconds=_RETRY_SECONDS,
        ) from None


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
