"""Checks the judges of a catalogue without loading their weights: kinds, files, labels, the lengths of texts.

Nothing here imports torch, so that `unerase serve` can say within seconds what is wrong.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from unerase_backend.catalogue import Catalogue, JudgeEntry, hub
from unerase_backend.catalogue.digests import judge_paths
from unerase_backend.catalogue.file_findings import Finding
from unerase_backend.catalogue.judge_files import DETECTOR
from unerase_backend.catalogue.text_reach import CLIP_TOKENS
from unerase_backend.classification.asked import guard_findings, labels_asked
from unerase_backend.classification.detector_check import detector_findings
from unerase_backend.classification.labels import label_problem, label_table
from unerase_backend.classification.options import GROUP
from unerase_backend.classification.weights import checked_weights
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def judge_findings(catalogue: Catalogue) -> list[Finding]:
    """Return what is wrong with the judges of a catalogue, and with what its concepts and guards ask them."""
    found = list(guard_findings(catalogue))
    for name, entry in catalogue.judges.items():
        if problem := _kind_problem(entry.kind):
            found.append(Finding(catalogue.place("judges", name, "kind"), problem, "JUDGE_KIND_UNKNOWN"))
            continue
        found += _folder_findings(catalogue, name, entry)
    return found


def own_kinds() -> set[str]:
    """Return the kinds of the backend's own judges: each is the name of a module, which is not imported."""
    package = importlib.import_module("unerase_backend.classification.judges")
    return {module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__)}


def _kind_problem(kind: str) -> str:
    known = own_kinds()
    theirs = {point.name for point in entry_points(group=GROUP)}
    if kind in known | theirs:
        return ""
    if theirs:
        # A package may register more kinds than it has entry points; only importing it tells.
        from unerase_backend.classification.registry import kinds

        known |= kinds().keys()
    if kind in known:
        return ""
    named = ", ".join(sorted(known | theirs))
    return f"there is no kind of judge {kind!r}, but {named}; a package can add one by the entry point {GROUP}"


def _folder_findings(catalogue: Catalogue, name: str, entry: JudgeEntry) -> Iterator[Finding]:
    place = catalogue.place("judges", name, "hub" if entry.hub else "path")
    folder = entry.path or hub.fetched(str(entry.hub), str(entry.revision))
    if folder is None:
        description = f"{entry.hub} is not here yet and will be fetched when first needed, so it was not checked"
        yield Finding(place, description, "NOT_FETCHED", problem=False)
        return
    if entry.kind == DETECTOR:
        yield from detector_findings(catalogue, name, entry, folder)
        return
    if entry.kind in _CHECKS:
        for key in entry.options:
            options = catalogue.place("judges", name, "options", key)
            yield Finding(options, f"judges of kind {entry.kind!r} take no options", "JUDGE_OPTIONS")
    try:
        root = None if entry.hub else folder
        check = _CHECKS.get(entry.kind)
        if check:
            checked_weights(folder, root)
        judge_paths(folder, root)
        found = list(check(catalogue, name, folder)) if check else []
    except UnsafeModelError as error:
        yield Finding(place, error.message, error.reason)
    except OSError as error:
        yield Finding(place, f"{Path(error.filename or '').name} cannot be read: {error.strerror}", "FILE_UNREADABLE")
    else:
        yield from found


def _classifier_findings(catalogue: Catalogue, name: str, folder: Path) -> Iterator[Finding]:
    """Yield each label of a concept that the classifier's configuration does not have."""
    config = _json(folder, "config.json")
    _check_processor(folder)
    labels = _labels(config)
    table = label_table(labels)
    for place, asked in labels_asked(catalogue, name):
        for label in asked:
            if problem := label_problem(label, labels, table):
                yield Finding(place, problem, "LABEL_UNKNOWN")


def _clip_findings(catalogue: Catalogue, name: str, folder: Path) -> Iterator[Finding]:
    """Yield each text of a concept that is longer than the judge reads, or has nothing to be compared with."""
    config = _json(folder, "config.json")
    _check_processor(folder)
    text = config.get("text_config")
    given = text.get("max_position_embeddings", CLIP_TOKENS) if isinstance(text, dict) else CLIP_TOKENS
    length = given if isinstance(given, int) else CLIP_TOKENS
    tokenizer = _tokenizer(folder)
    for place, texts in labels_asked(catalogue, name):
        for text in texts:
            tokens = len(tokenizer.encode(text).ids) if tokenizer is not None else 0
            if tokens > length:
                shown = text if len(text) <= 60 else f"{text[:60]}..."
                description = f"{shown!r} has {tokens} tokens, more than the {length} that the judge reads"
                yield Finding(place, description, "LABEL_TOO_LONG")
        if len(set(texts)) < len(texts):
            yield Finding(place, "a text occurs twice", "LABEL_TWICE")
    for concept, entry in catalogue.concepts.items():
        if entry.labels.get(name) and not _alternatives(catalogue, concept, name):
            description = (
                "the judge needs texts of what else a picture may show: add other concepts of this kind with labels "
                "for it, or it cannot be asked about this one"
            )
            place = catalogue.place("concepts", concept, "labels", name)
            yield Finding(place, description, "LABELS_ALONE", problem=False)


_CHECKS: dict[str, Callable[[Catalogue, str, Path], Iterator[Finding]]] = {
    "classifier": _classifier_findings,
    "clip": _clip_findings,
}


def _alternatives(catalogue: Catalogue, concept: str, judge: str) -> bool:
    try:
        return bool(catalogue.question(concept, judge).alternatives)
    except PreconditionError:
        return False


def _labels(config: dict[str, Any]) -> list[str]:
    """Return the labels of a classifier by class, as transformers reads them."""
    given = config.get("id2label")
    if not isinstance(given, dict):
        # What transformers calls the classes of a configuration that does not name them.
        count = config.get("num_labels", 2)
        return [f"LABEL_{index}" for index in range(count if isinstance(count, int) else 2)]
    try:
        by_class = {int(index): str(label) for index, label in given.items()}
        return [by_class[index] for index in range(len(by_class))]
    except (ValueError, KeyError):
        message = "config.json has an id2label that does not name the classes 0, 1 and so on"
        raise UnsafeModelError(message, reason="JUDGE_INCOMPLETE") from None


def _tokenizer(folder: Path) -> Tokenizer | None:
    """Return the fast tokenizer of a folder; None if it has only the older files, which transformers converts."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return None
        message = "has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
        raise UnsafeModelError(message, reason="JUDGE_INCOMPLETE")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # The library raises no narrower error.
    except Exception:
        raise UnsafeModelError("tokenizer.json is not a tokenizer", reason="JUDGE_INCOMPLETE") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"has no {name}, which a judge of its kind needs; there are {_listing(folder)}"
        raise UnsafeModelError(message, reason="JUDGE_INCOMPLETE") from None
    except (ValueError, RecursionError):
        raise UnsafeModelError(f"{name} is not JSON", reason="JUDGE_INCOMPLETE") from None
    if not isinstance(content, dict):
        raise UnsafeModelError(f"{name} is not a JSON object", reason="JUDGE_INCOMPLETE")
    return content


def _check_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _PROCESSORS):
        message = f"has no {_PROCESSORS[0]}, which says how a picture is scaled; there are {_listing(folder)}"
        raise UnsafeModelError(message, reason="JUDGE_INCOMPLETE")


def _listing(folder: Path, most: int = 6) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
