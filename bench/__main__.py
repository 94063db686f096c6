"""`python -m bench [NAME ...] [--strict]`: measures what is named (see `BENCHES`) or everything that needs no network.

It prints each figure beside its target (bench/bench.json) and writes build/bench.json. With --strict it ends with 1 if
a figure misses its target. It finds the tests' simulated rooms by PYTHONPATH=tests.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import audit, campaigns, clone, hostile, sampler, serving, start, suite
from bench.figures import held, table

OUT = Path("build/bench.json")
BENCHES = {
    "start": start.measure,
    "audit": audit.measure,
    "sampler": sampler.measure,
    "serving": serving.measure,
    "suite": suite.measure,
    "hostile": hostile.measure,
    "campaigns": campaigns.measure,
    "clone": clone.measure,
}
ONLY_NAMED = {"clone"}
"""What needs a network."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write build/bench.json; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("benches", nargs="*", help=f"{', '.join(BENCHES)}; all but clone where none is named")
    parser.add_argument("--strict", action="store_true", help="end with 1 if a figure misses its target")
    options = parser.parse_args(arguments)
    named = options.benches or [name for name in BENCHES if name not in ONLY_NAMED]
    if unknown := sorted(set(named) - BENCHES.keys()):
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    figures = [figure for name in named for figure in BENCHES[name]()]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    return int(options.strict and any(held(figure) is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
