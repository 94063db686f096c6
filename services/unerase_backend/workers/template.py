"""`python -P -m unerase_backend.workers.template FD`: the process that each worker is a copy of.

FD is a listening socket. For each connection it copies itself; the copy takes over arguments, environment, folder and
output of the `entry` that asked, and runs Ray's own script of a worker.

What is imported before the first copy must leave two things alone. A copy has only the thread that made it, so nothing
may start another one. And a copy would draw the same numbers as all others from a generator that has been drawn from.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from unerase_backend.diffusion.libraries import prepared_libraries
from unerase_backend.workers.entry import WORKER, same_user

_COMPUTING = (
    "unerase_backend.attack.engine",
    "unerase_backend.classification.engine",
    "unerase_backend.generation.engine",
)
"""What the rooms compute with, without Ray."""
_SERVING = (
    "ray.serve",
    "ray.serve._private.controller",
    "ray.serve._private.replica",
    "unerase_backend.attack.deployment",
    "unerase_backend.classification.deployment",
    "unerase_backend.coordinator.deployment",
    "unerase_backend.generation.deployment",
    "unerase_backend.probing.deployment",
)
"""What every worker runs on, beside Ray's core."""
_OF_RAYLET = "RAY_RAYLET_PID"
_READ_SECONDS = 10.0
_THREADS = Path("/proc/self/task")


@dataclass
class Asked:
    """What a copy shall be."""

    connection: socket.socket
    """To the `entry` that asked: it becomes the worker itself unless the copy says that it is."""
    like: dict[str, Any]
    """What `entry.request` says."""
    descriptors: list[int]
    """Its input, output and error output."""


@dataclass
class Copier:
    """Copies this process for whoever asks."""

    listening: socket.socket
    raylet: str = ""
    """The process id of the raylet that the copies belong to; empty until the first one is asked for."""
    copies: set[int] = field(default_factory=set)

    def until_one(self) -> Asked | None:
        """Import, and copy this process for whoever asks, until its own input ends; in a copy, return what it shall be.

        The first worker is made between imports: it is Serve's controller, whose start all others wait for, and which
        needs the least.
        """
        imports = deque(_imports())
        asked = None
        while asked is None:
            ready, _, _ = select.select([self.listening, sys.stdin], [], [], 0 if imports else None)
            if sys.stdin in ready:
                return None
            if ready and not (imports and self.raylet):
                asked = self._copy()
            elif imports:
                imports.popleft()()
        return asked

    def forget(self, *_: object) -> None:
        """Have the system forget the copies that have ended."""
        for copy in list(self.copies):
            with contextlib.suppress(ChildProcessError):
                if not os.waitpid(copy, os.WNOHANG)[0]:
                    continue
            self.copies.discard(copy)

    def _copy(self) -> Asked | None:
        """Accept a connection and copy this process; return what the copy shall be, and None in the template.

        A connection that ends without an answer leaves it to the `entry` to become the worker.
        """
        connection, _ = self.listening.accept()
        connection.settimeout(_READ_SECONDS)
        descriptors: list[int] = []
        try:
            if same_user(connection):
                _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
                like: dict[str, Any] = json.loads(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
                self._import_ray(like["environment"][_OF_RAYLET])
                # What is there now is not looked at for garbage, which would make it the copy's own memory.
                gc.freeze()
                copy = os.fork()
                if not copy:
                    return Asked(connection, like, descriptors)
                self.copies.add(copy)
        except (OSError, ValueError, KeyError) as error:
            _say(f"{type(error).__name__}: {error}")
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _import_ray(self, raylet: str) -> None:
        """Import Ray, once: its core reads the raylet's process id at its import, and at no other time.

        Raises:
            ValueError: it is imported already, for another raylet.
            SystemExit: something has started a thread.
        """
        if not self.raylet:
            os.environ[_OF_RAYLET] = raylet
            with _untouched_generator():
                for name in _SERVING:
                    importlib.import_module(name)
            self.raylet = raylet
        if self.raylet != raylet:
            raise ValueError("a worker of another raylet")
        if len(list(_THREADS.iterdir())) > 1:
            _say("what was imported has started a thread")
            sys.exit(1)


def main() -> None:
    """Copy this process for whoever asks, until its own input ends."""
    # An eighth of the imports' time would be the search for garbage, and next to nothing is.
    gc.disable()
    copier = Copier(socket.socket(fileno=int(sys.argv[1])))
    # Of the terminal's whole group; the process that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, copier.forget)
    asked = copier.until_one()
    if asked is not None:
        copier.listening.close()
        _become(asked)


def _imports() -> Iterator[Callable[[], object]]:
    """Yield what is imported for the rooms, step by step: what they compute with, and what models are built of."""
    for name in _COMPUTING:
        yield partial(importlib.import_module, name)
    yield _hide_progress
    yield from prepared_libraries()


def _hide_progress() -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()


@contextlib.contextmanager
def _untouched_generator() -> Iterator[None]:
    """Meanwhile classes of actors, which Serve has, get ids from the system and not from the generator of Ray's core.

    That one is then seeded in each copy by itself, and the ids of its calls and objects are its own.
    """
    from ray import actor

    class_id = actor.ActorClassID

    class FromTheSystem:
        @staticmethod
        def from_random() -> Any:
            return class_id(os.urandom(class_id.size()))

    actor.ActorClassID = FromTheSystem
    try:
        yield
    finally:
        actor.ActorClassID = class_id


def _say(why: str) -> None:
    print(f"a worker of Ray imports for itself, because it cannot be a copy: {why}", file=sys.stderr, flush=True)


def _become(asked: Asked) -> None:
    """Become the worker that was asked for; end where that fails or who asked has gone."""
    try:
        _take_over(asked)
        with asked.connection as connection:
            connection.sendall(b"w")
    except (OSError, ValueError) as error:
        _say(f"{type(error).__name__}: {error}")
        os._exit(1)
    script = os.environ[WORKER]
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *asked.like["arguments"]]
    runpy.run_path(script, run_name="__main__")


def _take_over(asked: Asked) -> None:
    """Take over what a process has of the one that starts it, and draw random numbers of its own."""
    for place, descriptor in enumerate(asked.descriptors):
        os.dup2(descriptor, place)
        os.close(descriptor)
    # As Ray's own workers: a group of its own.
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked.like["blocked_signals"])
    os.chdir(asked.like["folder"])
    os.environ.clear()
    os.environ.update(asked.like["environment"])
    os.setpriority(os.PRIO_PROCESS, 0, asked.like["niceness"])
    resource.setrlimit(resource.RLIMIT_NOFILE, asked.like["open_files"])
    if asked.like["oom_score"]:
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(asked.like["oom_score"])
    gc.enable()
    # Python's own generator is seeded anew by every fork.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


if __name__ == "__main__":
    main()
