"""Starts and ends the template, and names the script that Ray runs for its workers then."""

import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from unerase_backend.workers import entry

_logger = logging.getLogger(__name__)

ENTRY = entry.__file__
"""The script for Ray to run for a worker."""


class Template:
    """A context in which a template runs beside this process; it ends with it at the latest."""

    def __init__(self) -> None:
        """Start it; it begins to import at once."""
        name = f"unerase-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind("\0" + name)
            # Whoever asks before the imports are done waits.
            listening.listen(64)
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                # Without the working folder among the places that it imports from.
                [sys.executable, "-P", "-m", "unerase_backend.workers.template", str(listening.fileno())],
                # It ends when its input does, and that is when this process ends, however it does.
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                env={**os.environ, **_at_import(os.environ)},
            )
        self._ending = False
        threading.Thread(target=self._await_end, daemon=True).start()
        self.environment: Mapping[str, str] = {entry.SOCKET: name, entry.WORKER: _ray_worker()}
        """What `entry` must find in its environment."""

    def __enter__(self) -> "Template":
        """Return it; it runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it. The workers that are copies of it go on."""
        self._ending = True
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _await_end(self) -> None:
        code = self._process.wait()
        if not self._ending:
            _logger.warning("the template of Ray's workers ended (%d); new workers import for themselves", code)


def _at_import(given: Mapping[str, str]) -> dict[str, str]:
    """Return what libraries must find in the environment when they are imported."""
    return {
        # As Ray sets it for its workers.
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS", "1"),
        # More would be threads of its own, which no copy has.
        "OPENBLAS_NUM_THREADS": "1",
        # A worker that takes tasks of any job.
        "RAY_JOB_ID": "ffffffff",
    }


def _ray_worker() -> str:
    # Found without importing Ray, which the caller has not yet.
    ray = find_spec("ray")
    if ray is None or ray.origin is None:
        raise RuntimeError("Ray is not installed")
    return str(Path(ray.origin).parent / "_private" / "workers" / "default_worker.py")
