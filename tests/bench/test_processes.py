"""What a bench reads of a backend's processes: their rooms by title, the cores that they may use."""

import os
import subprocess
import sys

import psutil

from bench.processes import cpu_seconds, on

REPLICA = "ray::ServeReplica:generation:generation.tick"
BUSY = "sum(i * i for i in range(3_000_000)); print('done', flush=True); input()"


def test_a_replica_counts_for_its_room() -> None:
    with subprocess.Popen(
        [REPLICA, "-c", BUSY],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONHOME": sys.base_prefix},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        spent = cpu_seconds(psutil.Process())
        child.communicate(b"\n")
    assert set(spent) == {"generation", "other"}
    assert spent["generation"] > 0
    # This process itself is no room.
    assert spent["other"] > 0


def test_a_child_may_use_the_given_cores_alone() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with on([one]):
        said = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
    assert said.strip() == str({one})
    assert os.sched_getaffinity(0) == before
