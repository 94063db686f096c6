"""`python -m bench`: measures everything, prints it and writes build/bench.json."""

import json
from pathlib import Path

from bench import sampler, serving

OUT = Path("build/bench.json")


def main() -> None:
    """Measure, print, write."""
    text = json.dumps([*sampler.measure(), *serving.measure()], indent=2)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
