"""`python -m bench [NAME ...]`: measures what is named (see `BENCHES`) or everything; prints and writes it.

It finds the tests' simulated rooms by PYTHONPATH=tests.
"""

import argparse
import json
from pathlib import Path

from bench import campaigns, hostile, sampler, serving, suite

OUT = Path("build/bench.json")
BENCHES = {
    "sampler": sampler.measure,
    "serving": serving.measure,
    "suite": suite.measure,
    "hostile": hostile.measure,
    "campaigns": campaigns.measure,
}


def main() -> None:
    """Measure, print, write build/bench.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("benches", nargs="*", help=f"{', '.join(BENCHES)}; all where none is named")
    named = parser.parse_args().benches or list(BENCHES)
    if unknown := sorted(set(named) - BENCHES.keys()):
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    text = json.dumps([figure for name in named for figure in BENCHES[name]()], indent=2)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
