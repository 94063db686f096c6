"""Detectors' folders, options and catalogue entries for the tests."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from unerase_backend.catalogue.entries import JudgeEntry
from unerase_backend.classification.judges.detector import Detector
from unerase_backend.classification.registry import load_judge


def options_of(path: Path, **changes: Any) -> dict[str, Any]:
    """The least options of a file, with changes; None removes a key."""
    options = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "threshold": 0.5} | changes
    return {key: value for key, value in options.items() if value is not None}


def entry_of(path: Path, **changes: Any) -> JudgeEntry:
    """A catalogue's entry of a detector."""
    # Paths of entries are validated within their catalogue file, which there is none of here.
    return JudgeEntry.model_construct(kind="detector", path=path.parent, options=options_of(path, **changes))


def load(path: Path, *, batch_size: int = 4, **changes: Any) -> Detector:
    """A detector as the classification room loads it."""
    judge = load_judge("own/detector", entry_of(path, **changes), torch.device("cpu"), torch.float32, batch_size)
    assert isinstance(judge, Detector)
    return judge
