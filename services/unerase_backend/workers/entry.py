"""What Ray runs for a new worker: it hands arguments, environment and output to the template, and ends.

It stands alone, because it runs for every worker: it imports nothing of the backend.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys

SOCKET = "UNERASE_WORKER_TEMPLATE"
"""The variable that holds the name of the template's socket, in Linux's abstract namespace."""
WORKER = "UNERASE_RAY_WORKER"
"""The variable that holds the path of Ray's own script of a worker."""

_SECONDS = 45
"""Ray waits a minute for a worker."""


def request() -> bytes:
    """Return what the template must know of this process, as JSON: what a worker inherits of it."""
    known = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom_score": _oom_score(),
        "blocked_signals": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    return json.dumps(known).encode()


def same_user(connection: socket.socket) -> bool:
    """Whether the other side of a local connection is a process of the same user.

    For the side that connects, the other one is whoever has begun to listen.
    """
    credentials = struct.Struct("3i")
    _, user, _ = credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return bool(user == os.getuid())


def _oom_score() -> str:
    try:
        with open("/proc/self/oom_score_adj") as file:
            return file.read().strip()
    except OSError:
        return ""


def main() -> None:
    """Have the template make the worker; without a template that answers, become it."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as template:
            template.settimeout(_SECONDS)
            template.connect("\0" + os.environ[SOCKET])
            if not same_user(template):
                raise ConnectionRefusedError
            socket.send_fds(template, [b"w"], [0, 1, 2])
            template.sendall(request())
            template.shutdown(socket.SHUT_WR)
            if template.recv(1):
                return
    except (KeyError, OSError):
        pass
    os.execv(sys.executable, [sys.executable, os.environ[WORKER], *sys.argv[1:]])  # noqa: S606 - what Ray runs otherwise


if __name__ == "__main__":
    main()
