"""`python -m tools.real_size [--out DIR]`: files of real size, made, imported, checked, served and audited.

The weights are random: no picture means anything, and every verdict is about the path alone. What is real is the
architecture (Stable Diffusion 1.4: 860 million parameters), the forms of the files (a partial `.pt` of a subject, a LoRA
of another one), the judges' sizes (CLIP ViT-B/32 and two ResNet-50) and the commands, which are those of a user. The
audits are as small as they can be: one case, one step, every evaluation of the standard battery at its least. The
command prints peak memory by room and the minutes of each part; `--make-only` writes the files and stops.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tools.real_size_files import LORA, PARTIAL, make_files

CONCEPT = "mine/hourglass"
# Every evaluation of the standard battery, with the fewest steps that it takes.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "standard-prompt": {},
    "noise-based": {"etas": [1], "scales": [1]},
    "diffusion-completion": {"steps": [1]},
    "textual-inversion": {"steps": 1, "batch_size": 1, "tokens": 1},
    "unlearn-diff-atk": {"timesteps": 1, "iterations": 1, "tokens": 1, "rows": 1},
    "interference": {},
    "likelihood": {"timesteps": [500], "pictures": 2},
    "judge-quality": {},
    "unconditional-rate": {},
    "inpainting": {},
    "alternatives": {},
}


class Memory:
    """The peak of the proportional set size of each process below this one, by the name of its room."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(2):
            now: dict[str, int] = {}
            for process in psutil.Process().children(recursive=True):
                try:
                    room = _room(process.cmdline())
                    now[room] = now.get(room, 0) + process.memory_full_info().pss
                except psutil.Error:
                    continue
            for room, size in (*now.items(), ("all together", sum(now.values()))):
                self.peaks[room] = max(self.peaks.get(room, 0), size)


def main(arguments: Sequence[str]) -> int:
    """Run everything and print the table; the exit code of the first command that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/real-size"), help="folder of the files")
    parser.add_argument("--make-only", action="store_true", help="write the files and stop")
    options = parser.parse_args(arguments)
    taken: dict[str, float] = {}
    with _timed("files written", taken):
        catalogue = make_files(options.out)
    if options.make_only:
        return 0
    out: Path = options.out
    with Memory() as memory:
        with _timed("imported", taken):
            _run(["import", str(out / PARTIAL), "--as", "unet", "--out", str(out), "--base", "sd/1.4", "--name", "sd/partial"])
            _run(["import", str(out / LORA), "--as", "lora", "--out", str(out), "--base", "sd/1.4", "--name", "sd/lora"])
        with _timed("checked", taken):
            _run(["check", "--catalogue", str(catalogue)])
        with _serving(catalogue, out, taken) as address:
            for subject in ("sd/partial", "sd/lora"):
                with _timed(f"audited {subject}", taken):
                    _audit(subject, address, out)
    print("\n| part | minutes |\n| --- | --- |")
    for part, seconds in taken.items():
        print(f"| {part} | {seconds / 60:.1f} |")
    print("\n| processes | peak memory, GB |\n| --- | --- |")
    for room, peak in sorted(memory.peaks.items(), key=lambda item: -item[1]):
        print(f"| {room} | {peak / 1e9:.1f} |")
    return 0
