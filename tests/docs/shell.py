"""A newcomer's shell: the commands of a page, one after the other, as they stand."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_LISTENS = "unerase listens on "
_BIN = Path(sys.prefix) / "bin"


class Shell:
    """Commands in one folder; the variables that one sets the next one has; servers run until the shell is closed."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        # What tells a backend or a client something here is no part of what a reader types.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("UNERASE_")}
        self.environment = {
            **inherited,
            "PATH": os.pathsep.join([str(_BIN), os.environ["PATH"]]),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "no_proxy": "localhost,127.0.0.1",
            **(environment or {}),
        }
        self._servers: list[tuple[subprocess.Popen[str], str]] = []

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command and return its process."""
        return subprocess.Popen(
            ["bash", "-c", f"set -euo pipefail\n{command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, *, code: int = 0, timeout: float = 900) -> str:
        """Run a command, which must end with `code`, and return what it printed."""
        exported = self.folder / ".exported"
        ended = subprocess.run(
            ["bash", "-c", f"set -aeuo pipefail\n{command}\nenv -0 > '{exported}'"],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        told = f"{command}\nended with {ended.returncode}, not {code}\n{ended.stdout}\n{ended.stderr}"
        assert ended.returncode == code, told
        assert "Traceback" not in ended.stderr, told
        if exported.exists():
            pairs = (each.split("=", 1) for each in exported.read_text().split("\0") if "=" in each)
            self.environment = {name: value for name, value in pairs if name not in ("_", "SHLVL", "PWD", "OLDPWD")}
            exported.unlink()
        return ended.stdout

    def serve(self, command: str) -> str:
        """Start a backend as a command says, and return its address once it listens."""
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._servers.append((process, command))
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(_LISTENS):
                # What else it says is read, that it need not wait for a reader.
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return line.removeprefix(_LISTENS).strip()
        raise AssertionError(f"{command}\nended before it listened\n{''.join(said)}")

    def stop(self) -> None:
        """End the servers as Ctrl-C does; each must end well."""
        while self._servers:
            process, command = self._servers.pop()
            process.send_signal(signal.SIGINT)
            assert process.wait(90) == 0, f"{command}\ndid not end well"

    def close(self) -> None:
        """End what still runs, however."""
        for process, _ in self._servers:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def shell(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Shell]:
    """Open a shell in a folder, and end its servers afterwards."""
    opened = Shell(folder, environment)
    try:
        yield opened
        opened.stop()
    finally:
        opened.close()


@contextmanager
def forwarded(port: int, target: str | tuple[str, int]) -> Iterator[None]:
    """Let a port of the loopback lead to `target`, a socket's file or another host and port.

    Raises:
        OSError: somebody else has the port, and keeps it for two minutes: another run of these tests would not.
    """
    with _listener(port) as listener:
        threading.Thread(target=_accept, args=(listener, target), daemon=True).start()
        yield
        # It wakes who waits for a connection.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _listener(port: int) -> socket.socket:
    deadline = time.monotonic() + 120
    while True:
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _accept(listener: socket.socket, target: str | tuple[str, int]) -> None:
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        far = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
        try:
            far.connect(target)
        except OSError:
            near.close()
            far.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        # One of them is gone, and so is the other.
        pass
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
