"""The description of a model of the catalogue: the digests of everything that it is made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unerase.v1.models_pb2 import Model, WeightFile
from unerase_backend.catalogue import digests, guard_kinds, model_files
from unerase_backend.catalogue.digests import Digest
from unerase_backend.catalogue.entries import ModelEntry
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_parts import added_files
from unerase_backend.catalogue.schedules import describe_schedule

if TYPE_CHECKING:
    from unerase_backend.catalogue.catalogue import Catalogue


def described_by_entry(name: str, entry: ModelEntry) -> Model:
    """Return a model's description as far as its entry gives it."""
    return Model(
        name=name,
        base=entry.base or "",
        guidance_scale=entry.guidance_scale,
        steps=entry.steps,
        resolution=entry.resolution,
        erased=entry.erased,
        never_learned=entry.never_learned,
        method=entry.method,
        labels=entry.labels,
    )


def describe(catalogue: "Catalogue", name: str, digest: Digest) -> Model:
    """Return a model with the digests of its weight files, its base's included.

    Raises as `Catalogue.describe_model`.
    """
    entry = catalogue.model(name)
    base = catalogue.describe_model(entry.base) if entry.base else Model()
    findings = Findings(name)
    folder = entry.folder
    loaded = loaded_by_entry(entry, folder, findings)
    if folder is not None and (schedule := describe_schedule(folder)) is not None:
        base.schedule.CopyFrom(schedule)
    findings.conclude().raise_any()
    files = digests.hash_files(loaded, digest)
    digests.check_pinned(files, entry.sha256)
    weights = [
        WeightFile(component=file.component.split()[0], digest=file.digest, size_bytes=file.size_bytes)
        for file in files
        if file.weights
    ]
    added, parts = added_files(entry, digest)
    files, weights = [*files, *added], [*weights, *parts]
    base_digest = base.weights_digest or base.digest
    # Guards alone leave the weights as they are, so that their pictures are shared with the base.
    only_guards = bool(entry.guards) and not files
    weights_digest = base_digest if only_guards else digests.combined_digest(files, base_digest)
    pipeline = catalogue.guard_folder(name) if catalogue.guards(name) else Path()
    guards = guard_kinds.describe_guards(catalogue.guards(name), pipeline, digest)
    described = described_by_entry(name, entry)
    described.MergeFrom(
        Model(
            digest=guard_kinds.guarded_digest(weights_digest, guards),
            files=[*base.files, *weights],
            schedule=base.schedule if base.HasField("schedule") else None,
            guards=guards,
            weights_digest=weights_digest if guards else "",
        )
    )
    return described


def loaded_by_entry(entry: ModelEntry, folder: Path | None, findings: Findings) -> dict[str, Sequence[Path]]:
    """Return the files of an entry's folder and of what replaces parts of its base, by part."""
    loaded: dict[str, Sequence[Path]] = {}
    if folder is not None:
        loaded |= model_files.loaded_files(folder, None if entry.hub else folder, findings)
    return loaded | model_files.replacing_files(entry.replacing, findings)
