"""The disk is full in the middle of an audit: what waits says so, and goes on once there is room."""

import errno
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from support.serving import Running, serving
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_RUNNING, AUDIT_STATE_SUCCEEDED

from .conftest import small_spec

pytestmark = [pytest.mark.backends, pytest.mark.timeout(600)]
SPEC = small_spec(seed_base=31, cases=16)
_SMALL = "mount -t tmpfs -o size=64m tmpfs"
_MOUNT = f'{_SMALL} "$0" && mkdir "$0"/artifacts && {_SMALL} "$0"/artifacts && exec "$@"'
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


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A backend with two small disks: one is its data folder, the other has its artefacts."""
    data = tmp_path_factory.mktemp("small")
    if not _namespaces_allowed(data):
        pytest.skip("this machine lets nobody mount a small file system of their own")
    with serving(data, prefix=[*_NAMESPACE, str(data)]) as running:
        yield running


@pytest.fixture(scope="module")
def client(small: Running) -> Iterator[Client]:
    with Client(small.address) as client:
        yield client


def test_an_audit_waits_for_room_for_its_pictures(small: Running, client: Client) -> None:
    disk = _Disk(small, small.data / "artifacts")
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


def test_an_audit_waits_for_room_for_its_database(small: Running, client: Client) -> None:
    disk = _Disk(small, small.data)
    waits = small.metric("unerase_full_disk_waits_total")
    audit = client.create_audit(small_spec(seed_base=32, cases=16))
    watched = client.watch(audit.id, timeout=240)
    while next(watched).WhichOneof("event") != "unit_done":
        pass
    disk.fill()
    another = _ask_without_room(client)
    assert client.get_audit(audit.id).state == AUDIT_STATE_RUNNING
    _await(lambda: small.metric("unerase_full_disk_waits_total") > waits)
    disk.empty()
    assert list(watched)[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
    _check(client, audit.id)
    if another is not None:
        assert list(client.watch(another, timeout=240))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED


def _ask_without_room(client: Client) -> str | None:
    """Ask for an audit: it is refused, unless the database has a page to spare, in which case it is not lost."""
    try:
        return client.create_audit(small_spec(seed_base=33)).id
    except UneraseError as refused:
        if (refused.code, refused.reason) != (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL"):
            raise
        return None


def _check(client: Client, audit_id: str) -> None:
    """Check that the report is that of an audit with room."""
    audit = client.get_audit(audit_id)
    assert audit.state == AUDIT_STATE_SUCCEEDED
    again = client.audit(audit.spec, timeout=240)
    assert client.report_message(audit_id).content == client.report_message(again.id).content


def _await(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
