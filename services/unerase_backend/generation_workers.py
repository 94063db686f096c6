"""How many processes make pictures on a CPU, each with how many threads: a function of cores, memory and model.

A small model's calls gain little from a second thread, so each process has one, and the cores decide how many there
are: with one or two cores one process each; with more, one core is left to attacks, judges and the coordinator. A large
model's calls use many threads, and its memory is dear, so its processes are few: one for every eight of these cores,
which they divide among their threads. No more processes start than the free memory holds, the models of each counted,
and one always does. `docs/operations.md` states the rule for operators.
"""

from dataclasses import dataclass

from unerase_backend.runtime.counting import counted

MOST_REPLICAS = 16
"""An audit has too few units at a time to keep more busy."""
THREADS_OF_LARGE = 8
"""The least threads of a large model's process where there are several."""


@dataclass(frozen=True)
class Workers:
    """The processes that make pictures, and the threads of each."""

    replicas: int
    threads: int
    reason: str
    """Why there are so many, for the operator."""


def picture_cores(cores: int) -> int:
    """Return how many of the cores make pictures: one or two all, of more all but one."""
    return cores if cores <= 2 else cores - 1


def small_model_workers(
    cores: int, free_bytes: float, replica_bytes: float, replicas: int | None = None, threads: int | None = None
) -> Workers:
    """Return the workers for small models; `replicas` and `threads` that are given stand.

    Args:
        cores: At least 1.
        free_bytes: What all replicas together may take.
        replica_bytes: What one of them takes, its models included; positive.
    """
    each = threads or 1
    found, reason = _replicas(cores, each, int(free_bytes / replica_bytes), replicas)
    return Workers(found, each, reason)


def large_model_workers(
    cores: int, free_bytes: float, replica_bytes: float, replicas: int | None = None, threads: int | None = None
) -> Workers:
    """Return the workers for large models; arguments as in `small_model_workers`."""
    found, reason = _replicas(cores, threads or THREADS_OF_LARGE, int(free_bytes / replica_bytes), replicas)
    return Workers(found, threads or max(1, picture_cores(cores) // found), reason)


def _replicas(cores: int, threads: int, by_memory: int, given: int | None) -> tuple[int, str]:
    if given is not None:
        return given, "as set"
    there = picture_cores(cores)
    wanted = max(1, there // threads)
    every = "each" if threads == 1 else f"every {threads}"
    by_cores = f"one for {every} of {counted(there, 'core')} that may make pictures"
    if by_memory < min(wanted, MOST_REPLICAS):
        return max(1, by_memory), f"the memory holds {max(0, by_memory)}; {by_cores}"
    if wanted > MOST_REPLICAS:
        return MOST_REPLICAS, f"the most that start; {by_cores}"
    return wanted, by_cores
