"""The disk is full in the middle of an audit: what waits says so, and goes on once there is room."""

import errno
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from serving import Running, serving
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_RUNNING, AUDIT_STATE_SUCCEEDED

from .conftest import small_spec

SPEC = small_spec(seed_base=31, cases=16)
_MOUNT = 'mount -t tmpfs -o size=64m tmpfs "$0" && exec "$@"'
_NAMESPACE = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT]


def _namespaces_allowed(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_NAMESPACE, str(folder), "true"], capture_output=True, check=False).returncode == 0


class _Disk:
    """The file system of 64 MB that the backend sees in a folder of its own."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._filler = Path(f"/proc/{running.process.pid}/root{folder}/filler")

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        self._filler.unlink()


@contextmanager
def _on_small_disk(data: Path, folder: Path) -> Iterator[tuple[Running, _Disk]]:
    folder.mkdir(exist_ok=True)
    if not _namespaces_allowed(folder):
        pytest.skip("this machine lets nobody mount a small file system of their own")
    with serving(data, prefix=[*_NAMESPACE, str(folder)]) as running:
        yield running, _Disk(running, folder)


def test_an_audit_waits_for_room_for_its_pictures(tmp_path: Path) -> None:
    with _on_small_disk(tmp_path, tmp_path / "artifacts") as (running, disk), Client(running.address) as client:
        disk.fill()
        with pytest.raises(UneraseError) as refused:
            client.create_audit(SPEC)
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert refused.value.retry_after
        disk.empty()
        audit = client.create_audit(SPEC)
        reasons, filled = [], False
        for event in client.watch(audit.id, timeout=240):
            if event.WhichOneof("event") == "unit_done" and not filled:
                disk.fill()
                filled = True
            if event.WhichOneof("event") == "delayed":
                if not reasons:
                    disk.empty()
                reasons.append(event.delayed.reason)
        _check(client, audit.id)
    assert set(reasons) == {"STORAGE_FULL"}


def test_an_audit_waits_for_room_for_its_database(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with _on_small_disk(data, data) as (running, disk), Client(running.address) as client:
        audit = client.create_audit(SPEC)
        watched = client.watch(audit.id, timeout=240)
        while next(watched).WhichOneof("event") != "unit_done":
            pass
        disk.fill()
        with pytest.raises(UneraseError) as refused:
            client.create_audit(small_spec(seed_base=32))
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert client.get_audit(audit.id).state == AUDIT_STATE_RUNNING
        _await(lambda: running.metric("unerase_full_disk_waits_total") > 0)
        disk.empty()
        assert list(watched)[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
        _check(client, audit.id)


def _check(client: Client, audit_id: str) -> None:
    """Check that the report is that of an audit with room."""
    assert client.get_audit(audit_id).state == AUDIT_STATE_SUCCEEDED
    again = client.audit(SPEC, timeout=240)
    assert client.report_message(audit_id).content == client.report_message(again.id).content


def _await(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
