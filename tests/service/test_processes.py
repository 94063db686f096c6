"""The processes of a backend as the system sees them."""

import psutil
import pytest

from support.serving import Running


@pytest.mark.parametrize("room", ["coordinator", "generation", "attack", "classification", "probing"])
def test_a_room_is_one_process_of_the_backend_s_own_niceness(backend: Running, room: str) -> None:
    (process,) = backend.replicas(room)
    assert process.nice() == psutil.Process(backend.process.pid).nice()


def test_replicas_are_copies_of_one_process(backend: Running) -> None:
    rooms = ("coordinator", "generation", "attack", "classification", "probing")
    parents = {process.ppid() for room in rooms for process in backend.replicas(room)}
    assert [psutil.Process(parent).ppid() for parent in parents] == [backend.process.pid]


def test_nothing_runs_that_has_nothing_to_do(backend: Running) -> None:
    """Ray's monitors of a cluster and of logs, and its dashboard."""
    running = [" ".join(each.cmdline()) for each in psutil.Process(backend.process.pid).children(recursive=True)]
    assert not [each for each in running if "monitor.py" in each or "dashboard.py" in each]
