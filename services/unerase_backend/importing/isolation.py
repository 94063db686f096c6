"""What the process that reads a foreign file gives up before it reads it.

| what | how |
| --- | --- |
| the network | user and network namespaces of its own (Linux) |
| memory, processor time, the size of written files | resource limits; the wall clock is watched from outside |
| programs, sockets, deleting, code of other files | an audit hook of Python, for what Python code does |
| new rights | `PR_SET_NO_NEW_PRIVS` |

It is no sandbox for machine code: whoever finds a fault in torch or Python that runs some may read what the user reads.
"""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path

from unerase_backend.runtime.errors import UnsafeModelError

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 1, 38, 4
_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.kill",
    "pty.",
    "shutil.",
    "ctypes.dlopen",
    "ctypes.call_function",
    "pickle.find_class",
    "urllib.",
    "webbrowser.",
)


def leave_network() -> str:
    """Move this process, which must have one thread, into namespaces without a network; return why not, or nothing."""
    if sys.platform != "linux":
        return "network namespaces exist only on Linux"
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC):
        return f"this machine does not let it have a network namespace ({os.strerror(ctypes.get_errno())})"
    # Without a map the user could not create files.
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return ""


def give_up_rights() -> None:
    """Keep this process from gaining rights, from dumping its memory, and from outliving its parent."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        # A change of namespace would undo it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit(memory: int, seconds: int, written: int) -> None:
    """Bound what this process takes from now on: bytes of memory, seconds of a processor, bytes of a written file."""
    used = 0
    with suppress(OSError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, seconds + int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def is_shortage(error: Exception) -> bool:
    """Whether an error, of torch or safetensors as it may be, says that memory was short."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


def forbid(folder: Path) -> None:
    """Let Python code start nothing, connect nowhere, delete nothing, and write only below `folder`; for good."""
    allowed = os.path.realpath(folder) + os.sep

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise UnsafeModelError(f"the file asks for {event}, which is not done")
        if event == "open" and _writes(arguments) and not os.path.realpath(str(arguments[0])).startswith(allowed):
            raise UnsafeModelError("the file asks to write another file, which is not done")

    sys.addaudithook(refuse)


def _writes(arguments: tuple[object, ...]) -> bool:
    path, mode, flags = (*arguments, None, None, None)[:3]
    if isinstance(path, int):
        return False
    written = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return written or (isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
