"""Files that several processes share: each is replaced as a whole, and changed by one process at a time."""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PRIVATE = 0o600


def write_whole(path: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Replace a file's content in one step and flush it to the disk: readers see the old content or the new.

    An existing file keeps its permissions and owner, and a link still leads to it. A new file gets `mode`, or what the
    umask leaves. Anything but a plain file, such as a terminal or a pipe, is written to directly.

    Raises:
        OSError: the file cannot be written, or its owner cannot be kept; the file is unchanged.
    """
    written = content.encode() if isinstance(content, str) else content
    with replaced(path, mode=mode) as opened:
        opened.write(written)


@contextmanager
def replaced(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Open a file whose content replaces another's in one step, as `write_whole` does, once the context ends well.

    Raises:
        OSError: the file cannot be written, or its owner cannot be kept; the file is unchanged.
    """
    path = resolved(path)
    try:
        with _replaced(path, mode) as opened:
            yield opened
    except OSError as error:
        # Name the requested file, not the temporary one.
        raise type(error)(error.errno, error.strerror, str(path)) from None


@contextmanager
def _replaced(path: Path, mode: int | None) -> Iterator[BinaryIO]:
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        with path.open("wb") as opened:
            yield opened
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
            yield opened
            opened.flush()
            os.fsync(descriptor)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file against other processes that lock it before they change it; the file need not exist.

    The lock is on a file beside it, `.NAME.lock`, because the file itself is replaced. The lock ends with its process,
    however that ends. The lock file is never removed, because another process may be waiting for it.

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
            # For example on a network file system without locks.
            raise type(error)(error.errno, f"it cannot be locked: {error.strerror}", str(path)) from None
        yield
    finally:
        os.close(descriptor)


def resolved(path: Path) -> Path:
    """Return a path with its links resolved.

    Raises:
        OSError: the links form a loop.
    """
    try:
        return path.resolve()
    except RuntimeError:
        # Python up to 3.12 raises this for a loop.
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def check_writable(path: Path) -> None:
    """Check that a file can be written later; leave nothing behind.

    Raises:
        OSError: the file cannot be written.
    """
    path = resolved(path)
    if path.exists() and not path.is_file():
        # A terminal or a pipe must not be opened early; a folder cannot be written at all.
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
    # Some file systems, such as Windows shares, cannot do this; the file is in place anyway.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
