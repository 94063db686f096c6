"""Coordinators in processes of their own, beside the rooms of a running backend, on one PostgreSQL database."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SCRIPT = """
import asyncio, sys, ray
from unerase_backend.coordinator.deployment import Coordinator
from unerase_backend.coordinator.settings import CoordinatorSettings

async def main():
    coordinator = Coordinator.__new__(Coordinator)
    await coordinator.__init__(CoordinatorSettings.model_validate_json(sys.argv[2]))
    print("up", flush=True)
    await asyncio.Event().wait()

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
asyncio.run(main())
"""


@dataclass(frozen=True)
class Coordinator:
    """A coordinator that Serve does not restart."""

    process: subprocess.Popen[str]
    address: str

    def end(self) -> None:
        """Kill the process, if it still runs."""
        self.process.kill()
        self.process.wait()


def ray_address(backend: psutil.Process) -> str:
    """Return the address of a backend's Ray cluster."""
    for process in backend.children(recursive=True):
        for argument in process.cmdline():
            if argument.startswith("--gcs-address="):
                return argument.split("=")[1]
    raise LookupError("the backend has no Ray cluster")


@contextmanager
def coordinator(ray: str, folder: Path, **settings: Any) -> Iterator[Coordinator]:
    """Start a coordinator with `folder` as its state folder, and kill it in the end."""
    running = start_coordinator(ray, folder, **settings)
    try:
        yield running
    finally:
        running.end()


def start_coordinator(ray: str, folder: Path, **settings: Any) -> Coordinator:
    """Start a coordinator and return once it listens."""
    port = settings.setdefault("port", free_port())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, ray, json.dumps({"state": str(folder), **settings})],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        )
    assert process.stdout is not None
    if process.stdout.readline() != "up\n":
        process.kill()
        raise RuntimeError((folder / "log").read_text())
    return Coordinator(process, f"127.0.0.1:{port}")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
