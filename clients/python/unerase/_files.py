"""Files that more than one process reads or writes: replaced as a whole, and changed by one at a time."""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PRIVATE = 0o600


def write_whole(path: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Put a file's whole content in place at once, on the disk: whoever reads it sees the old one or the new one.

    A file that is there keeps its permissions and its owner, and a link keeps leading to it. A new one gets `mode`, or
    what the umask leaves. What is no plain file, as a terminal or a pipe, is written to.

    Raises:
        OSError: it cannot be written, or the owner cannot be kept; the file is as it was.
    """
    written = content.encode() if isinstance(content, str) else content
    path = resolved(path)
    try:
        _write_whole(path, written, mode)
    except OSError as error:
        # Named by the file that was asked for, not by the one that was to become it.
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _write_whole(path: Path, written: bytes, mode: int | None) -> None:
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        path.write_bytes(written)
        return
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            if before is not None:
                mine = os.fstat(descriptor)
                if (before.st_uid, before.st_gid) != (mine.st_uid, mine.st_gid):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            else:
                os.fchmod(descriptor, _usual_mode() if mode is None else mode)
            opened.write(written)
            opened.flush()
            os.fsync(descriptor)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that ask the same from changing a file; it need not be there.

    The lock is on a file beside it, `.NAME.lock`, since the file itself is replaced. It ends with its process, however
    that ends, and is never removed: somebody may wait for it.

    Raises:
        OSError: the folder cannot be written.
    """
    path = resolved(path)
    try:
        descriptor = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # As on a network's file system that has no locks.
            raise type(error)(error.errno, f"it cannot be locked: {error.strerror}", str(path)) from None
        yield
    finally:
        os.close(descriptor)


def resolved(path: Path) -> Path:
    """Return where a path leads.

    Raises:
        OSError: nowhere, links lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError:
        # Python's, up to 3.12.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def check_writable(path: Path) -> None:
    """Find out now whether a file could be written later; nothing is left behind.

    Raises:
        OSError: it could not.
    """
    path = resolved(path)
    if path.exists() and not path.is_file():
        # A terminal or a pipe must not be opened before its time; a folder never.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _usual_mode() -> int:
    # The umask can only be read by setting it.
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    # Some file systems, as those of Windows' shares, cannot do this; the file is in place all the same.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
