"""`python -m tools.real_size [--out DIR] [--subject NAME ...]`: files of real size, from their import to a report.

The weights are random: no picture means anything, and a verdict says only that the path is whole. What is real is the
architecture (Stable Diffusion 1.4: 860 million parameters), the forms of the files (a partial `.pt` of one subject, a
LoRA of another), the judges' sizes (CLIP ViT-B/32 and two ResNet-50) and the commands, which are those of a user. The
audits are as small as they can be: one case, two steps, every evaluation of the standard battery at its least. The
command prints the minutes of each part and the peak memory of each process. `--make-only` writes the files and stops.
"""

import argparse
import json
import os
import shutil
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

UNERASE = (sys.executable, "-m", "unerase")
SUBJECTS = {"sd/partial": PARTIAL, "sd/lora": LORA}
# Every evaluation of the standard battery, with the least that each takes.
EVALUATIONS: dict[str, dict[str, Any]] = {
    "standard-prompt": {},
    "noise-based": {"etas": [1], "variance_scales": [1]},
    "diffusion-completion": {"resume_fractions": [0.4]},
    "textual-inversion": {"steps": 1, "batch_size": 1, "tokens": 1},
    "unlearn-diff-atk": {"timesteps": 1, "iterations": 1, "tokens": 1},
    "interference": {"draws": 1},
    "likelihood": {"timesteps": 1, "pictures": 2, "other_pictures": 1},
    "judge-quality": {"other_pictures": 1},
    "unconditional-rate": {"draws": 1},
    "inpainting": {"mask_shares": [0.5]},
    "alternatives": {"draws": 1},
}
# The smallest shapes, and both of two cores: generation and attack seldom compute at once.
SERVED = (
    "--batch-rows",
    "2",
    "--decode-batch",
    "1",
    "--gradient-rows",
    "1",
    "--judge-batch",
    "4",
    "--generation-threads",
    "2",
    "--torch-threads",
    "2",
)


class PeakMemory:
    """The peak of the proportional set size of the processes below this one, by what they do."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
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
                    what = _what(" ".join(process.cmdline()))
                    now[what] = now.get(what, 0) + process.memory_full_info().pss
                except psutil.Error:
                    continue
            for what, size in (*now.items(), ("all together", sum(now.values()))):
                self.peaks[what] = max(self.peaks.get(what, 0), size)


def main(arguments: Sequence[str]) -> int:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/real-size"), help="folder of the files")
    parser.add_argument("--subject", choices=SUBJECTS, action="append", help="audit only this one; may be repeated")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the service")
    parser.add_argument("--make-only", action="store_true", help="write the files and stop")
    options = parser.parse_args(arguments)
    subjects: list[str] = options.subject or list(SUBJECTS)
    out: Path = options.out.resolve()
    taken: dict[str, float] = {}
    with _timed("files written", taken):
        catalogue = make_files(out)
    if options.make_only:
        return 0
    with PeakMemory() as memory:
        catalogues = [catalogue]
        for name in subjects:
            with _timed(f"{SUBJECTS[name]} imported", taken):
                catalogues.append(_imported(name, catalogue, out))
        named = [argument for path in catalogues for argument in ("--catalogue", str(path))]
        with _timed("checked", taken):
            _run("check", "--device-memory", "24", *named)
        with _serving([*named, "--dtype", options.dtype], out, taken) as address:
            for name in subjects:
                with _timed(f"{name} audited", taken):
                    _audit(name, address, out)
    _print_table("part", "minutes", {part: seconds / 60 for part, seconds in taken.items()})
    _print_table("processes", "peak memory, GB", {what: peak / 1e9 for what, peak in memory.peaks.items()})
    return 0


def _imported(name: str, catalogue: Path, out: Path) -> Path:
    given = ("--base", "sd/1.4", "--catalogue", str(catalogue), "--name", name, "--erased", "hourglass")
    # Import never writes over a file.
    folder = out / "imported" / name.replace("/", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run("import", str(out / SUBJECTS[name]), "--out", str(folder), *given)
    return folder / f"{name.replace('/', '-')}.yaml"


@contextmanager
def _serving(options: Sequence[str], out: Path, taken: dict[str, float]) -> Iterator[str]:
    """Serve until the block ends, and yield the address; the lines that the server prints are shown."""
    command = [*UNERASE, "serve", "--port", "0", "--data-dir", str(out / "data"), *SERVED, *options]
    with _timed("started", taken):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())  # noqa: S603
        assert process.stdout is not None  # noqa: S101 - it is piped
        first = process.stdout.readline()
        if not first.startswith("unerase listens on "):
            raise SystemExit(f"the server did not start: it ended with {process.wait()}")
    threading.Thread(target=lambda: sys.stdout.writelines(process.stdout or ()), daemon=True).start()
    try:
        yield first.split()[-1]
    finally:
        process.terminate()
        process.wait()


def _audit(name: str, address: str, out: Path) -> None:
    evaluations = [
        argument
        for evaluation, parameters in EVALUATIONS.items()
        for argument in ("--evaluation", f"{evaluation}={json.dumps(parameters)}")
    ]
    _run(
        *("audit", name, "--concept", "mine/hourglass", "--address", address, "--battery", "", *evaluations),
        *("--cases", "1", "--steps", "2", "--seed", "14", "--control-kind", "none"),
        *("--html", str(out / f"{name.replace('/', '-')}.html")),
    )


def _run(*arguments: str) -> None:
    print("$ unerase", *arguments, flush=True)
    ended = subprocess.run([*UNERASE, *arguments], check=False, env=_environment())  # noqa: S603
    if ended.returncode:
        raise SystemExit(f"unerase {arguments[0]} ended with {ended.returncode}")


def _environment() -> dict[str, str]:
    # Ray starts its workers at nice 15 otherwise, where other work starves them.
    return {"RAY_worker_niceness": "0"} | os.environ


@contextmanager
def _timed(part: str, taken: dict[str, float]) -> Iterator[None]:
    begin = time.monotonic()
    yield
    taken[part] = time.monotonic() - begin


def _what(command: str) -> str:
    """Return what a process does, from its command line; Ray names a replica after its application."""
    if "ServeReplica:" in command:
        return command.partition("ServeReplica:")[2].partition(":")[0]
    if "unerase" in command:
        words = command.split()
        return next((f"unerase {word}" for word in ("import", "check", "serve", "audit") if word in words), "others")
    return "Ray" if "ray" in command else "others"


def _print_table(what: str, unit: str, figures: dict[str, float]) -> None:
    print(f"\n| {what} | {unit} |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
