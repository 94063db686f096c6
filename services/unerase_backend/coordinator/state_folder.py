"""The folder that belongs to one coordinator at a time: its lock, its identity and, by default, its databases."""

import asyncio
import fcntl
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from unerase._files import write_whole
from unerase_backend.runtime.errors import UnavailableError

_LOCK_SECONDS = 60.0
_TRY_SECONDS = 0.2


@dataclass(frozen=True)
class StateFolder:
    """A state folder that this process has locked; the lock ends with the process, even if the process is killed."""

    path: Path
    identity: str
    """The folder's permanent identity, 32 hexadecimal digits."""
    _lock: IO[Any]

    @classmethod
    async def locked(cls, path: Path) -> Self:
        """Create the folder if it is missing, and lock it.

        Raises:
            UnavailableError: another coordinator has locked it.
        """
        lock = _lock_file(path)
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise UnavailableError(
                        "another coordinator is using this state folder", reason="STATE_IN_USE"
                    ) from None
                await asyncio.sleep(_TRY_SECONDS)
            else:
                return cls(path, _identity(path / "executor"), lock)

    def unlock(self) -> None:
        """Unlock the folder, so that another coordinator can use it."""
        self._lock.close()


def _lock_file(path: Path) -> IO[Any]:
    path.mkdir(parents=True, exist_ok=True)
    return (path / "lock").open("w")


def _identity(file: Path) -> str:
    if not file.exists():
        write_whole(file, uuid.uuid4().hex)
    return file.read_text().strip()
