"""The description of a model of the catalogue: the digests of everything that it is made of."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unerase.v1.models_pb2 import Model, WeightFile
from unerase_backend.catalogue import configs, digests, guard_kinds, model_files
from unerase_backend.catalogue.backbone_kinds import BackboneKind, Role, denoiser_of, of_role
from unerase_backend.catalogue.digests import Digest, HashedFile
from unerase_backend.catalogue.entries import ModelEntry
from unerase_backend.catalogue.families import family_of_folder
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
    files, weights = [*files, *added, *_settings(entry, folder)], [*weights, *parts]
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


def _settings(entry: ModelEntry, folder: Path | None) -> list[HashedFile]:
    """Return what makes other models of the same files, where it is not as the files themselves have it.

    These are the resolution, the length of prompts, and what model_index.json sets.
    """
    if folder is None:
        return []
    index = configs.parse(folder / "model_index.json")
    index, kind = index if isinstance(index, dict) else {}, family_of_folder(folder)
    found = dict(kind.index_settings(index))
    given = entry.max_sequence_length if kind.default_sequence_length else None
    length = kind.sequence_length_of(index) if given is None else given
    if length != kind.default_sequence_length:
        found["max_sequence_length"] = length
    if entry.resolution != _trained_resolution(kind, folder):
        found["resolution"] = entry.resolution
    return [HashedFile("setting", f"{key} {value}", "", 0) for key, value in found.items()]


def _trained_resolution(kind: type[BackboneKind], folder: Path) -> int | None:
    """Return the resolution of which the denoiser's configuration says the latents' side; None if it says none."""
    (vae,) = of_role(kind.parts, Role.AUTOENCODER)
    of_vae, of_denoiser = (configs.parse(folder / part / "config.json") for part in (vae, denoiser_of(kind.parts)))
    if not (isinstance(of_vae, dict) and isinstance(of_denoiser, dict)):
        return None
    side = of_denoiser.get("sample_size")
    blocks = of_vae.get("block_out_channels", of_vae.get("encoder_block_out_channels"))
    if not (isinstance(side, int) and isinstance(blocks, list)):
        return None
    return side * int(2 ** min(max(len(blocks) - 1, 0), 64))


def loaded_by_entry(entry: ModelEntry, folder: Path | None, findings: Findings) -> dict[str, Sequence[Path]]:
    """Return the files of an entry's folder and of what replaces parts of its base, by part."""
    loaded: dict[str, Sequence[Path]] = {}
    if folder is not None:
        loaded |= model_files.loaded_files(folder, None if entry.hub else folder, findings)
    return loaded | model_files.replacing_files(entry.replacing, findings)
