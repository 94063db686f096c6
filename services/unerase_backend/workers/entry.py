"""What Ray runs for a new worker: it hands arguments, environment and output to the template, and ends.

It stands alone, because it runs for every worker: it imports nothing of the backend.
"""

import json
import os
import resource
import socket
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
    }
    return json.dumps(known).encode()


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
