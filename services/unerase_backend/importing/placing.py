"""Where an import works, and how what it wrote gets to its place, also after an import that was killed.

An import works in a folder of its own in the folder that is written to, and moves what it wrote, the entry last. One
that was killed leaves its folder, or weights without an entry: the next one removes the first, and takes the place of
the second if its bytes are the same.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from unerase_backend.catalogue.kept_digests import file_digest

_PREFIX = ".importing-"


@contextmanager
def work_folder(out: Path, notes: list[str]) -> Iterator[Path]:
    """Make a folder in `out` that vanishes at the end, after removing those of imports that were killed.

    Raises:
        OSError: something cannot be read or written; of what is in the folder it names `out`, which is the user's.
    """
    try:
        with _work_folder(out, notes) as work:
            yield work
    except OSError as error:
        if _PREFIX not in str(error.filename):
            raise
        raise OSError(error.errno, error.strerror, str(out)) from error


@contextmanager
def _work_folder(out: Path, notes: list[str]) -> Iterator[Path]:
    out.mkdir(parents=True, exist_ok=True)
    for left in sorted(out.glob(f"{_PREFIX}*")):
        with _locked(left) as alone:
            if alone:
                shutil.rmtree(left, ignore_errors=True)
                notes.append(f"removed what an import that was killed left behind ({left.name})")
    with tempfile.TemporaryDirectory(dir=out, prefix=_PREFIX) as work, _locked(Path(work)):
        yield Path(work)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Say whether nobody works in a folder, and keep others from it; it counts as used where that cannot be known."""
    held = -1
    try:
        with suppress(OSError):
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = opened
            finally:
                if held < 0:
                    os.close(opened)
        yield held >= 0
    finally:
        if held >= 0:
            os.close(held)


def check_free(entry: Path, folder: Path) -> None:
    """Check that neither the entry nor the folder of a model is there already.

    Raises:
        ValueError: one is.
    """
    if entry.exists():
        raise ValueError(f"{entry}: exists already; choose another --name")
    if folder.exists():
        raise ValueError(f"{folder}: exists already, {_without(entry)}")


def place(moves: Mapping[Path, Path], entry: Path) -> None:
    """Move files and folders to their places, in their order; the last of them is `entry`.

    Raises:
        ValueError: something else is there.
    """
    for source, target in moves.items():
        if target.exists() and not (target.is_file() and file_digest(target) == file_digest(source)):
            raise ValueError(f"{target}: exists already, {_without(entry)}")
    for source, target in moves.items():
        shutil.move(source, target)


def _without(entry: Path) -> str:
    return f"without {entry.name}: an import was killed, or it is of something else; remove it or choose another --name"
