"""The processes of a backend as the system sees them."""

import psutil
import pytest

from support.serving import Running


@pytest.mark.parametrize("room", ["coordinator", "generation", "attack", "classification", "probing"])
def test_a_room_is_one_process_of_the_backend_s_own_niceness(backend: Running, room: str) -> None:
    (process,) = backend.replicas(room)
    assert process.nice() == psutil.Process(backend.process.pid).nice()
