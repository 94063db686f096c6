"""The time of each operation of `bench.published_loop`, on given cores, with nothing else running.

The operations take turns, each a few times, in a process of its own that may use these cores alone, and the median
counts. The testbed's reference stands for every model: all have its architecture.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

MODEL, CONCEPT, CLIP = "testbed/reference", "hourglass", "testbed/clip"
ROUNDS = 4
# Short operations are timed several in a row.
AT_ONCE = {"attacked": 20, "inverted": 10, "error": 40}
PICTURES = 8


def loop_seconds(cores: Collection[int]) -> dict[str, list[float]]:
    """Return the seconds of each operation, once for each round."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(_timed, tuple(cores)).result()


def medians(*rounds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds of each operation over all rounds."""
    return {name: statistics.median(value for each in rounds for value in each[name]) for name in rounds[0]}


def _timed(cores: Collection[int]) -> dict[str, list[float]]:
    # Before the libraries are loaded, whose threads then have the same cores.
    os.sched_setaffinity(0, cores)
    # Imported here, so that the process that measures a backend stays light.
    import torch
    import transformers

    from bench.published_loop import OPERATIONS, PublishedLoop
    from unerase_backend.catalogue import Catalogue

    torch.set_num_threads(len(cores))
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        loop = PublishedLoop.of_catalogue(Catalogue.load(), MODEL, CONCEPT, CLIP, Path(folder), pictures=PICTURES)
    # The first calls allocate.
    for operation in OPERATIONS:
        loop.run(operation, 0)
    seconds: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
    index = 0
    for _ in range(ROUNDS):
        for operation in OPERATIONS:
            times = AT_ONCE.get(operation, 1)
            begun = time.perf_counter()
            for _ in range(times):
                loop.run(operation, index)
                index += 1
            seconds[operation].append((time.perf_counter() - begun) / times)
    return seconds
