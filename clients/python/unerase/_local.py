"""A backend of the command's own: a child process that serves as long as it is needed."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from unerase._errors import UneraseError

READY = "unerase listens on "
STOP_SECONDS = 60
BAD_INPUT = 2
"""The exit code of `unerase serve` whose settings or catalogue are wrong."""


@contextmanager
def local_backend(data_dir: Path | None = None, catalogues: Sequence[Path] = ()) -> Iterator[str]:
    """Start `unerase serve` on a free loopback port, yield its address, and end the process afterwards.

    Raises:
        UneraseError: the backend ended before it was ready, and its messages are on stderr; INVALID_ARGUMENT if its
            settings or its catalogue are wrong, and UNKNOWN otherwise.
    """
    command = [sys.executable, "-m", "unerase", "serve", "--port", "0"]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    for catalogue in catalogues:
        command += ["--catalogue", str(catalogue)]
    # The command is this interpreter and this package; each path is one argument that no shell interprets.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        yield _address(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: "subprocess.Popen[str]") -> str:
    if process.stdout is not None:
        for line in process.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
    bad_input = process.wait(STOP_SECONDS) == BAD_INPUT
    raise UneraseError(
        grpc.StatusCode.INVALID_ARGUMENT if bad_input else grpc.StatusCode.UNKNOWN,
        "the backend did not start",
        reason="BACKEND_DID_NOT_START",
    )
