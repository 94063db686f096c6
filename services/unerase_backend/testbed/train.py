"""Train the whole testbed from scratch: `python -m unerase_backend.testbed.train [--out DIR] [--concepts NAME ...]
[--parts NAME ...]`.

The parts form an acyclic graph (`parts.py`). Each runs in a process of its own with one thread, as many at a time as
there are cores: with models this small, two processes of one thread each use two cores, while one process of two
threads uses about 1.3. Seeds are fixed.

The figures of a part go to `<work>/<part>.json` and its log to `<work>/<part>.log`. At the end the command prints the
minutes taken and a table of detection rates.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def run_part(name: str, out: Path, work: Path) -> None:
    """Make one part in this process and write its figures and minutes."""
    import torch

    from unerase_backend.testbed.parts import PARTS

    torch.set_num_threads(1)
    started, cpu_started = time.monotonic(), time.process_time()
    figures = PARTS[name].make(out, work)
    minutes = {
        "minutes": round((time.monotonic() - started) / 60, 2),
        "cpu_minutes": round((time.process_time() - cpu_started) / 60, 2),
    }
    (work / f"{name}.json").parent.mkdir(parents=True, exist_ok=True)
    (work / f"{name}.json").write_text(json.dumps({**minutes, **figures}, indent=2) + "\n")


def run_all(names: list[str], out: Path, work: Path, at_once: int) -> None:
    """Make the named parts, each after the parts it needs, `at_once` at a time.

    Raises:
        RuntimeError: a part failed; its log says why.
    """
    from unerase_backend.testbed.parts import PARTS

    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    waiting, running, done = list(names), dict[Future[int], str](), set[str]()
    with ThreadPoolExecutor(at_once) as processes:
        while waiting or running:
            for name in list(waiting):
                ready = all(need in done or need not in names for need in PARTS[name].needs)
                if ready and len(running) < at_once:
                    running[processes.submit(_run_apart, name, out, work, environment)] = name
                    waiting.remove(name)
                    print(f"{name}: started", flush=True)
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(ended)
                if ended.result() != 0:
                    raise RuntimeError(f"part {name} failed, see {work / name}.log")
                done.add(name)
                print(f"{name}: {json.loads((work / f'{name}.json').read_text())['minutes']} minutes", flush=True)


def _run_apart(name: str, out: Path, work: Path, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", __spec__.name, "--run", name, "--out", str(out), "--work", str(work)]
    (work / f"{name}.log").parent.mkdir(parents=True, exist_ok=True)
    with (work / f"{name}.log").open("wb") as log:
        # The command is this interpreter with this module; nothing in it comes from outside.
        return subprocess.run(  # noqa: S603
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="weights folder")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "unerase-testbed", help="logs and figures"
    )
    parser.add_argument("--parts", nargs="*", help="only these parts; what they need must be in the weights folder")
    parser.add_argument("--concepts", nargs="*", help="only the families of these concepts, and what all share")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes at a time, 300 MB each")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.run:
        run_part(arguments.run, arguments.out, arguments.work)
        return
    from unerase_backend.testbed.flow import parts as flow_parts
    from unerase_backend.testbed.flow.recipe import folder
    from unerase_backend.testbed.parts import MEASURED, PARTS, WORK_FILES
    from unerase_backend.testbed.recipe import CONCEPT, FAMILIES, part_name

    concepts = [family.concept for family in FAMILIES]
    wanted = concepts if arguments.concepts is None else arguments.concepts
    if unknown := set(wanted) - set(concepts):
        parser.error(f"no family of {', '.join(sorted(unknown))}; there are {', '.join(concepts)}")
    of_concepts = [name for name, part in PARTS.items() if part.concept is None or part.concept in wanted]
    chosen = arguments.parts or of_concepts
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for name in chosen:
        for need in set(PARTS[name].needs) - set(chosen):
            if need in WORK_FILES and not (arguments.work / WORK_FILES[need]).exists():
                parser.error(f"{name} needs {WORK_FILES[need]} in {arguments.work}: name the part {need} as well")
    started = time.monotonic()
    run_all(chosen, arguments.out, arguments.work, arguments.at_once)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")
    for family in FAMILIES:
        measured = {name: part_name(family, f"rates-{name}") for name in ("reference", *MEASURED)}
        print_rates(measured, arguments.work, family.concept)
    print_rates({folder(name): folder(f"rates-{name}") for name in flow_parts.MEASURED}, arguments.work, CONCEPT)


def print_rates(parts: dict[str, str], work: Path, concept: str) -> None:
    """Print tables of what parts measured, by the names of their models; parts that were not made are left out."""
    from unerase_backend.testbed.rates import table

    paths = {name: work / f"{part}.json" for name, part in parts.items()}
    measured = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    for steps in ("50 steps", "10 steps"):
        rates = {name: figures[steps] for name, figures in measured.items() if steps in figures}
        if rates:
            print(f"\n{concept}, {steps}\n\n{table(rates, concept)}")


if __name__ == "__main__":
    main()
