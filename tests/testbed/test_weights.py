"""The shipped weights are those that the manifest lists, and few."""

import hashlib
import json
from pathlib import Path

import unerase_backend.testbed

WEIGHTS = Path(unerase_backend.testbed.__file__).parent / "weights"


def test_the_weights_are_those_of_the_manifest() -> None:
    manifest = json.loads((WEIGHTS / "manifest.json").read_text())
    there = {
        str(path.relative_to(WEIGHTS)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in WEIGHTS.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert there == manifest["sha256"]


def test_the_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 30e6
