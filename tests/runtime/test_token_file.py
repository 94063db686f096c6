"""Several commands on one file of tokens at once, each a process of its own, while a backend reads it."""

import errno
import fcntl
import multiprocessing
import os
import stat
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest

from unerase._files import write_whole
from unerase_backend.runtime import access, tokens
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.errors import UnauthenticatedError

CREATORS, EACH = 8, 4
_PROCESSES = multiprocessing.get_context("spawn")


def _create(file: Path, start: Barrier, number: int) -> None:
    start.wait(60)
    for again in range(EACH):
        tokens.create(file, f"token-{number}-{again}", "acme", ["audit:read"], 1)


def _revoke(file: Path, start: Barrier, names: list[str]) -> None:
    start.wait(60)
    for name in names:
        tokens.revoke(file, name)


def _read(file: Path, ended: Event, bearer: str) -> None:
    """Look at every moment; an exception is the process's exit code."""
    access._LOOK_SECONDS = 0.0
    gate = Gate(file)
    while not ended.is_set():
        # Raises where a half file is there.
        access.read_tokens(file)
        gate.admit(bearer)


def test_commands_at_once_lose_nothing_and_bring_nothing_back(file: Path) -> None:
    kept = tokens.create(file, "kept", "acme", ["audit:read"], 1)
    revoked = {f"admin-{index}": tokens.create(file, f"admin-{index}", "acme", ["admin"], 1) for index in range(EACH)}
    start, ended = _PROCESSES.Barrier(CREATORS + 1), _PROCESSES.Event()
    reader = _PROCESSES.Process(target=_read, args=(file, ended, f"Bearer {kept}"))
    writers = [_PROCESSES.Process(target=_create, args=(file, start, number)) for number in range(CREATORS)]
    writers.append(_PROCESSES.Process(target=_revoke, args=(file, start, list(revoked))))
    for process in (reader, *writers):
        process.start()
    for process in writers:
        process.join(120)
    ended.set()
    reader.join(60)
    assert [process.exitcode for process in (*writers, reader)] == [0] * (CREATORS + 2)
    made = {f"token-{number}-{again}" for number in range(CREATORS) for again in range(EACH)}
    assert {entry.id for entry in tokens.listed(file)} == made | {"kept"}
    gate = Gate(file)
    gate.admit(f"Bearer {kept}")
    for token in revoked.values():
        with pytest.raises(UnauthenticatedError):
            gate.admit(f"Bearer {token}")


def test_commands_at_once_make_the_file(file: Path) -> None:
    start = _PROCESSES.Barrier(4)
    writers = [_PROCESSES.Process(target=_create, args=(file, start, number)) for number in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * 4
    assert len(tokens.listed(file)) == 4 * EACH


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def test_a_file_keeps_its_permissions_and_its_link(tmp_path: Path) -> None:
    """A group that reads it goes on reading it; a file that a link leads to is the one that changes."""
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "tokens.json", tmp_path / "tokens.json"
    tokens.create(real, "first", "acme", ["audit:read"], 1)
    real.chmod(0o640)
    link.symlink_to(real)
    tokens.create(link, "second", "acme", ["audit:read"], 1)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [entry.id for entry in tokens.listed(real)] == ["first", "second"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(file: Path) -> None:
    """`sudo unerase tokens create` must leave the file to the backend's user."""
    tokens.create(file, "first", "acme", ["audit:read"], 1)
    os.chown(file, 12345, 23456)
    tokens.create(file, "second", "acme", ["audit:read"], 1)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_a_write_that_fails_leaves_the_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.html"
    write_whole(path, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unerase._files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_plain_file_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_system_without_locks_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="cannot be locked") as refused:
        tokens.create(tmp_path / "tokens.json", "one", "acme", ["audit:read"], 1)
    assert refused.value.filename == str(tmp_path / "tokens.json")


def test_links_that_lead_in_a_circle_are_an_error_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.symlink_to(file)
    with pytest.raises(OSError, match="symbolic links") as refused:
        tokens.create(file, "one", "acme", ["audit:read"], 1)
    assert refused.value.filename == str(file)
