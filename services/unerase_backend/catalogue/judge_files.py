"""The files of a judge that decide what it says, and digests over them and over its options."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unerase_backend.catalogue import digests
from unerase_backend.catalogue.entries import JudgeEntry
from unerase_backend.catalogue.kept_digests import file_digest
from unerase_backend.runtime.errors import UnsafeModelError

DETECTOR = "detector"
"""The kind of judge that is one ONNX file, which its options name and pin."""


def files_of(entry: JudgeEntry, digest: digests.Digest = file_digest) -> list[digests.HashedFile]:
    """Return a detector's one file, or all files of another judge's folder.

    Raises:
        UnsafeModelError: there are no weights, or they lead out of the folder.
        UnavailableError: the folder cannot be fetched from the hub.
    """
    folder = entry.folder
    if entry.kind != DETECTOR:
        return digests.judge_files(folder, None if entry.hub else folder, digest)
    return [digests.hash_file("judge", detector_path(entry, folder), digest)]


def detector_path(entry: JudgeEntry, folder: Path) -> Path:
    """Return the path of a detector's file.

    Raises:
        UnsafeModelError: the options do not name a file of the folder.
    """
    name = entry.options.get("file")
    if not isinstance(name, str) or not name.endswith(".onnx") or Path(name).name != name:
        raise UnsafeModelError("options.file must name an .onnx file in the judge's folder", reason="JUDGE_OPTIONS")
    path = folder / name
    if not path.is_file():
        found = ", ".join(sorted(each.name for each in folder.glob("*.onnx"))[:5]) or "none"
        raise UnsafeModelError(f"{name} is missing; .onnx files in its folder: {found}", reason="WEIGHTS_MISSING")
    if not entry.hub and not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeModelError(f"{name} is a link that leads out of its folder", reason="PATH_ESCAPES")
    return path


def digest_of(entry: JudgeEntry, digest: digests.Digest = file_digest) -> str:
    """Return SHA-256 over a judge's files and its options: with another threshold it is another judge.

    Raises as `files_of`.
    """
    over_files = digests.combined_digest(files_of(entry, digest))
    if not entry.options:
        return over_files
    options = json.dumps(plain(entry.options), sort_keys=True)
    return hashlib.sha256(f"{over_files}\0{options}".encode()).hexdigest()


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON has them: a date that YAML has read, for example, as text."""
    read: dict[str, Any] = json.loads(json.dumps(dict(options), default=str))
    return read


def weight_files_of(entry: JudgeEntry, digest: digests.Digest = file_digest) -> dict[str, str]:
    """Return SHA-256 of each file of weights by its name.

    Raises as `files_of`.
    """
    files = files_of(entry, digest)
    return {file.name: file.digest for file in files if file.weights or entry.kind == DETECTOR}


def weights_of(entry: JudgeEntry, digest: digests.Digest = file_digest) -> str:
    """Return SHA-256 over a judge's weights only; judges of different configurations may have the same weights.

    Raises as `files_of`.
    """
    if entry.kind == DETECTOR:
        return files_of(entry, digest)[0].digest
    folder = entry.folder
    files = digests.folder_files("judge", folder, None if entry.hub else folder, digest)
    return digests.combined_digest(digests.nameless(file) for file in files if file.weights)
