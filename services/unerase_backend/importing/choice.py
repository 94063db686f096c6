"""Decides how a file is imported: by its kind if one is asked for, else by the layout of its names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unerase_backend.catalogue.layouts import COMPVIS_MODEL, EMBEDDING, PIPELINE, Layout, recognise
from unerase_backend.importing import reading, weights
from unerase_backend.importing.architecture import Architecture
from unerase_backend.importing.importers.embedding import import_words
from unerase_backend.importing.registry import Imported, Importer, Source
from unerase_backend.importing.weights import WORD
from unerase_backend.runtime.errors import UnsafeModelError

# A file with several parts can also be asked for one of them.
_PARTS_OF_WHOLE = ("unet", "text-encoder")


def imported(job: Mapping[str, Any], registered: Mapping[str, Importer]) -> tuple[dict[str, Tensor], Imported, str]:
    """Return the tensors that the job's files hold, what becomes of them, and the title of their layout.

    Raises:
        UnsafeModelError: a file cannot be read, its kind is not the one asked for, or nothing is known of it.
    """
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    held: Any = None
    metadata: dict[str, str] = {}
    for file in job["files"]:
        held, metadata = reading.read(Path(file))
        found, said = weights.state_dict(held, job["select"])
        if both := sorted(set(found) & set(tensors)):
            raise UnsafeModelError(f"two files hold {both[0]!r}", reason="WEIGHTS_UNREADABLE")
        tensors |= found
        notes += said
    words = {name.removeprefix(WORD): tensors.pop(name) for name in list(tensors) if name.startswith(WORD)}
    architecture = Architecture(job["architecture"])
    learned = import_words(words, architecture, job["token"])
    if words and not tensors:
        return words, Imported(learned, notes), EMBEDDING.title
    layout = _layout(tensors, metadata)
    kind = job["kind"] or layout.import_as
    chosen = _checked_kind(kind, layout, job)
    source = Source(
        tensors=tensors,
        layout=layout,
        metadata=metadata,
        held=held,
        beside=job["beside"],
        architecture=architecture,
        complete=job["complete"],
        token=job["token"],
    )
    result = registered[chosen](source)
    result.files |= learned
    result.notes = [*notes, *result.notes]
    return tensors, result, layout.title


def _layout(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Layout:
    if any(name.startswith("string_to_param.") for name in tensors):
        return EMBEDDING
    return recognise(tensors, metadata)


def _checked_kind(kind: str | None, layout: Layout, job: Mapping[str, Any]) -> str:
    # A part of a pipeline's folder is what the folder says, and its names are checked against its configuration.
    if kind is not None and (job["complete"] or (layout in (COMPVIS_MODEL, PIPELINE) and kind in _PARTS_OF_WHOLE)):
        return kind
    if layout.import_as is None:
        message = f"it holds {layout.title}, which is not imported"
        raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
    if kind != layout.import_as:
        message = f"it holds {layout.title}: import it --as {layout.import_as}, not --as {kind}"
        raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
    return kind
