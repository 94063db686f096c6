"""`make audit` in a fresh clone of this repository, installation included; it needs the packages' registry."""

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.figures import figure

ROOT = Path(__file__).parents[1]


def measure() -> list[dict[str, Any]]:
    """Return the figure `clone.audit_seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        begun = time.perf_counter()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)  # noqa: S603, S607
        subprocess.run(["make", "audit"], cwd=clone, check=True, stdout=subprocess.DEVNULL)  # noqa: S607
        seconds = time.perf_counter() - begun
    return [figure("clone.audit_seconds", round(seconds))]
