"""Digests that outlive a process: used as long as the file is the same, and never afterwards."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from unerase_backend.catalogue.kept_digests import KeptDigests, file_digest

LONG_AGO = 1_000_000_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the digest of `weights`, as if the file had been written an hour before it was hashed."""
    later = weights.stat().st_ctime + 3600
    monkeypatch.setattr("unerase_backend.catalogue.kept_digests.time.time", lambda: later)
    assert KeptDigests(tmp_path / "digests")(weights) == sha256(b"weights")
    return tmp_path / "digests"


def forge(folder: Path, digest: str) -> None:
    """Replace the kept digest, so that it shows whether it is used."""
    (kept,) = folder.iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "sha256": digest}))


def test_a_kept_digest_is_used_by_the_next_process(folder: Path, weights: Path) -> None:
    forge(folder, "f" * 64)
    assert KeptDigests(folder)(weights) == "f" * 64
    # A link is the file that it leads to.
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert KeptDigests(folder)(link) == "f" * 64


@pytest.mark.parametrize("change", ["content", "time", "replaced"])
def test_a_file_that_changed_is_hashed_anew(folder: Path, weights: Path, change: str) -> None:
    forge(folder, "f" * 64)
    before = weights.stat()
    match change:
        case "content":
            weights.write_bytes(b"WEIGHTS")
            # The old time and size: only the time of the inode's own change tells.
            os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "time":
            os.utime(weights, (LONG_AGO, LONG_AGO))
        case "replaced":
            other = weights.with_name("other")
            other.write_bytes(b"another")
            other.replace(weights)
    assert KeptDigests(folder)(weights) == sha256(weights.read_bytes())


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"sha256": 7}', '{"sha256": "ff"}', "\x00"])
def test_a_damaged_entry_is_made_again(folder: Path, weights: Path, damage: str) -> None:
    (kept,) = folder.iterdir()
    kept.write_text(damage)
    assert KeptDigests(folder)(weights) == sha256(b"weights")
    assert json.loads(kept.read_text())["sha256"] == sha256(b"weights")


def test_a_file_of_this_moment_is_not_kept(tmp_path: Path, weights: Path) -> None:
    """It may change again without a sign, within what the file system's clock can tell."""
    assert KeptDigests(tmp_path / "digests")(weights) == file_digest(weights)
    assert not (tmp_path / "digests").exists()


def test_a_folder_that_cannot_be_written_costs_only_time(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = weights.stat().st_ctime + 3600
    monkeypatch.setattr("unerase_backend.catalogue.kept_digests.time.time", lambda: later)
    assert KeptDigests(weights)(weights) == sha256(b"weights")
    assert KeptDigests(None)(weights) == sha256(b"weights")


def test_without_a_folder_a_process_keeps_them_itself(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return file_digest(path)

    monkeypatch.setattr("unerase_backend.catalogue.kept_digests.file_digest", counted)
    digest = KeptDigests()
    assert digest(weights) == digest(weights) == sha256(b"weights")
    assert len(hashed) == 1
    weights.write_bytes(b"others!")
    assert digest(weights) == digest(weights) == sha256(b"others!")
    assert len(hashed) == 2
