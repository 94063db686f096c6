"""The artefact store: bytes under their SHA-256, and small records under a key, on any fsspec file system.

A write goes to a temporary name and is moved into place, so that no half file ever stands under a final name. What is
read is checked against its digest.
"""

import hashlib
import re
import uuid
from collections.abc import Iterator

import fsspec

from unerase_backend.runtime.errors import DataLossError, NotFoundError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """Content-addressed artefacts and keyed records below one root, as in `/var/lib/unerase` or `s3://bucket/unerase`."""

    def __init__(self, root: str) -> None:
        self._filesystem, self._root = fsspec.core.url_to_fs(root)
        self._filesystem.makedirs(self._root, exist_ok=True)

    def put(self, content: bytes) -> str:
        """Store `content` and return its SHA-256 (hexadecimal); storing the same bytes again costs one look."""
        digest = hashlib.sha256(content).hexdigest()
        path = self._path("artifacts", digest)
        if not self._filesystem.exists(path):
            self._write(path, content)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`.

        Raises:
            NotFoundError: there is no such artefact, or `digest` is not 64 hexadecimal digits.
            DataLossError: the stored bytes are not what the digest says; the broken file is removed.
        """
        if not _DIGEST.fullmatch(digest):
            raise NotFoundError("the digest must be 64 hexadecimal digits in lower case", reason="ARTIFACT_NOT_FOUND")
        path = self._path("artifacts", digest)
        try:
            content: bytes = self._filesystem.cat_file(path)
        except FileNotFoundError:
            raise NotFoundError(f"no artefact has the digest {digest}", reason="ARTIFACT_NOT_FOUND") from None
        if hashlib.sha256(content).hexdigest() != digest:
            self._filesystem.rm_file(path)
            raise DataLossError(f"the artefact {digest} is damaged", reason="ARTIFACT_DAMAGED")
        return content

    def pieces(self, digest: str, piece_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return the size of `digest` in bytes, and its bytes piece by piece, one piece at least.

        Only the pieces that are taken are read. The last one comes once all are known to be what the digest says.

        Raises:
            NotFoundError: as `get`.
            DataLossError: in place of the last piece.
        """
        path = self._path("artifacts", digest)
        if not self.contains(digest):
            raise NotFoundError("no artefact has this digest", reason="ARTIFACT_NOT_FOUND")
        return int(self._filesystem.size(path)), self._pieces(path, digest, piece_bytes)

    def _pieces(self, path: str, digest: str, piece_bytes: int) -> Iterator[bytes]:
        whole = hashlib.sha256()
        with self._filesystem.open(path, "rb") as file:
            piece = file.read(piece_bytes)
            while following := file.read(piece_bytes):
                whole.update(piece)
                yield piece
                piece = following
        whole.update(piece)
        if whole.hexdigest() != digest:
            self._filesystem.rm_file(path)
            raise DataLossError(f"the artefact {digest} is damaged", reason="ARTIFACT_DAMAGED")
        yield piece

    def contains(self, digest: str) -> bool:
        """Say whether the artefact is there, without reading it."""
        return bool(_DIGEST.fullmatch(digest)) and bool(self._filesystem.exists(self._path("artifacts", digest)))

    def put_record(self, key: str, content: bytes) -> None:
        """Store a small record under `key` (64 hexadecimal digits), with its own check sum; the last writer wins."""
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

    def _write(self, path: str, content: bytes) -> None:
        folder = path.rsplit("/", 1)[0]
        self._filesystem.makedirs(folder, exist_ok=True)
        partial = f"{folder}/.{uuid.uuid4().hex}.partial"
        self._filesystem.pipe_file(partial, content)
        self._filesystem.mv(partial, path)
