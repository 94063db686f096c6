"""Checks the detectors of a catalogue before anything computes: options, file, digest, shapes, labels. No torch."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from unerase_backend.catalogue import Catalogue, JudgeEntry
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.classification import onnx_file
from unerase_backend.classification.asked import labels_asked
from unerase_backend.classification.detector_model import DetectorModel
from unerase_backend.classification.detector_options import DetectorOptions
from unerase_backend.classification.labels import class_problem
from unerase_backend.classification.options import BadOptionsError, read_options
from unerase_backend.runtime.errors import UnsafeModelError


def detector_findings(catalogue: Catalogue, name: str, entry: JudgeEntry, folder: Path) -> Iterator[Finding]:
    """Yield what is wrong with a judge of kind detector in `folder`, and with the labels that concepts have for it."""
    try:
        options = read_options(entry.kind, DetectorOptions, entry.options)
        assert options is not None  # noqa: S101 - the kind has options
    except BadOptionsError as error:
        for key, why in error.problems:
            yield Finding(catalogue.place("judges", name, "options", *filter(None, [key])), why, "JUDGE_OPTIONS")
        yield from _unread_files(catalogue, name, entry, folder)
        return
    try:
        content = onnx_file.read_checked(folder, options.file, options.sha256)
        model = DetectorModel.of(onnx_file.open_session(options.file, content, threads=1), options)
    except UnsafeModelError as error:
        keys = ("options", "sha256") if error.reason == "WEIGHTS_CHANGED" else ("hub" if entry.hub else "path",)
        yield Finding(catalogue.place("judges", name, *keys), error.message, error.reason)
        return
    for place, labels in labels_asked(catalogue, name):
        for label in labels:
            if problem := class_problem(label, model.classes):
                yield Finding(place, problem, "LABEL_UNKNOWN")


def _unread_files(catalogue: Catalogue, name: str, entry: JudgeEntry, folder: Path) -> Iterator[Finding]:
    """Say what is known of the files although the options are bad: whether they are ONNX, and what would pin them."""
    for path in sorted(folder.glob("*.onnx")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            onnx_file.read_checked(folder, path.name, digest)
        except UnsafeModelError as error:
            place = catalogue.place("judges", name, "hub" if entry.hub else "path")
            yield Finding(place, error.message, error.reason)
        else:
            if "sha256" not in entry.options:
                place = catalogue.place("judges", name, "options", "sha256")
                yield Finding(place, f"of {path.name} is {digest}", "JUDGE_OPTIONS")
