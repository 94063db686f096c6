"""Workers are copies of the template, in all that Ray gives to a worker of its own; without one they are their own."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from unerase_backend.workers import entry
from unerase_backend.workers.starting import ENTRY, Template

# In place of Ray's own worker.
WORKER = """
import gc, json, os, resource, signal, sys
from threading import Thread
threads = len(os.listdir("/proc/self/task"))
drawn = []
def draw():
    if "ray" in sys.modules:
        from ray import ObjectRef, WorkerID
        drawn.extend((WorkerID.from_random().hex(), ObjectRef.from_random().hex()))
draw()
beside = Thread(target=draw)
beside.start()
beside.join()
drawn += [sys.modules["numpy"].random.random()] if "numpy" in sys.modules else []
drawn += [sys.modules["torch"].rand(1).item()] if "torch" in sys.modules else []
print(json.dumps({
    "drawn": drawn, "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "process": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "arguments": sys.argv[1:],
    "greeting": os.environ.get("GREETING"), "folder": os.getcwd(), "niceness": os.getpriority(os.PRIO_PROCESS, 0),
    "threads": threads, "main": __name__, "beside": sys.path[0],
    "garbage": gc.isenabled(),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "imported": [name for name in ("diffusers", "ray.serve", "torch", "transformers") if name in sys.modules],
}))
print("to stderr", file=sys.stderr)
if sys.argv[1:] == ["stay"]:
    sys.stdout.flush()
    signal.pause()
"""


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template() as started:
        yield started


@pytest.fixture
def environment(template: Template, tmp_path: Path) -> dict[str, str]:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    raylet = {"RAY_RAYLET_PID": str(os.getpid())}
    return {**os.environ, **template.environment, **raylet, entry.WORKER: str(worker), "GREETING": "hello"}


def run(environment: Mapping[str, str], *arguments: str, **options: Any) -> dict[str, Any]:
    """What a worker says of itself."""
    command = [sys.executable, ENTRY, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("to stderr\n")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_worker_is_a_copy_with_what_the_entry_had(environment: Mapping[str, str], tmp_path: Path) -> None:
    # The first one may have less of the libraries.
    run(environment)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def prepare() -> None:
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, most))
        # As Ray does.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

    said = run(environment, "--name=a b", "c", cwd=tmp_path, preexec_fn=prepare)
    assert said["open_files"] == [1000, most]
    assert said["arguments"] == ["--name=a b", "c"]
    assert (said["greeting"], said["folder"], said["main"]) == ("hello", str(tmp_path), "__main__")
    assert said["beside"] == str(tmp_path)
    assert said["niceness"] == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert said["group"] == said["process"]
    assert said["threads"] == 1
    assert said["interrupt"]
    assert said["garbage"]
    assert said["blocked"] == [signal.SIGINT]
    assert said["imported"] == ["diffusers", "ray.serve", "torch", "transformers"]


def test_copies_are_of_one_process_and_not_of_each_other(environment: Mapping[str, str]) -> None:
    # The first one may have less of the libraries.
    run(environment)
    first, second = run(environment), run(environment)
    assert first["process"] != second["process"]
    # Of Ray's core, in two threads, of NumPy and of torch.
    assert len(first["drawn"]) == 6
    assert len({*first["drawn"], *second["drawn"]}) == 12
    parents = {each["parent"] for each in (first, second)}
    assert len(parents) == 1
    assert psutil.Process(parents.pop()).ppid() == os.getpid()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({entry.SOCKET: "nobody"}, id="no template"),
        # Ray's core knows its raylet from its import.
        pytest.param({"RAY_RAYLET_PID": "1"}, id="another raylet"),
    ],
)
def test_without_a_template_the_entry_becomes_the_worker(
    environment: dict[str, str], change: Mapping[str, str]
) -> None:
    run(environment)
    said = run({**environment, **change}, "c")
    assert said["imported"] == []
    assert said["arguments"] == ["c"]


def test_a_copy_that_cannot_take_over_says_so_by_saying_nothing(environment: dict[str, str]) -> None:
    """The entry then becomes the worker."""
    run(environment)
    like = json.loads(entry.request()) | {"environment": environment, "folder": "/nowhere"}
    with socket.socket(socket.AF_UNIX) as template, open(os.devnull) as nothing:
        template.settimeout(60)
        template.connect("\0" + environment[entry.SOCKET])
        socket.send_fds(template, [b"w"], [nothing.fileno()])
        template.sendall(json.dumps(like).encode())
        template.shutdown(socket.SHUT_WR)
        assert template.recv(1) == b""
    run(environment)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_another_user_s_template_is_told_nothing(environment: dict[str, str]) -> None:
    """Whoever binds the name of a template that has ended."""
    thief = """
import os, socket, sys
os.setuid(65534)
listening = socket.socket(socket.AF_UNIX)
listening.bind("\\0" + sys.argv[1])
listening.listen()
print("listens", flush=True)
print(listening.accept()[0].recv(1 << 16))
"""
    name = "unerase-test-of-another-user"
    with subprocess.Popen([sys.executable, "-c", thief, name], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "listens\n"
        assert run({**environment, entry.SOCKET: name})["imported"] == []
        assert other.stdout.readline() == "b''\n"


def test_the_template_ends_with_the_process_that_started_it_and_its_copies_do_not(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    start = """
import json, os, signal
from unerase_backend.workers.starting import Template
template = Template()
print(json.dumps([template._process.pid, dict(template.environment)]), flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        number, given = json.loads(owner.stdout.readline())
        template = psutil.Process(number)
        environment = {**os.environ, **given, entry.WORKER: str(worker), "RAY_RAYLET_PID": "1"}
        with subprocess.Popen(
            [sys.executable, ENTRY, "stay"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as asking:
            assert asking.stdout is not None
            copy = psutil.Process(json.loads(asking.stdout.readline())["process"])
            owner.send_signal(signal.SIGKILL)
            assert psutil.wait_procs([template], timeout=30)[1] == []
            assert copy.is_running()
            copy.kill()
