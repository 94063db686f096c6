"""A process that computes does not fetch the same memory from the system again and again."""

import platform
import subprocess
import sys

import pytest

# A step takes 48 MiB in blocks of 2 MiB, in a thread as the sampler's, and frees all of them at its end.
_STEPS = """
import resource, threading
import torch
from unerase_backend.runtime.allocation import keep_freed_memory

def step():
    blocks = [torch.ones(2**19) for _ in range(24)]

def count():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(10):
        step()
    print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

{called}
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


def faults(called: str) -> int:
    """Page faults of ten steps, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _STEPS.format(called=called)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_repeated_step_takes_its_memory_from_what_it_freed() -> None:
    # A step touches 12,288 pages.
    assert faults("") > 5_000
    assert faults("assert keep_freed_memory()") < 100
