"""Merges catalogue files into one set of entries, and checks what their entries say about each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unerase_backend.catalogue.entries import (
    GUIDANCE_SCALE,
    STEPS,
    ConceptEntry,
    JudgeEntry,
    ModelEntry,
    problems_of_concept,
)
from unerase_backend.catalogue.guard_kinds import repeated
from unerase_backend.catalogue.part_names import DENOISERS
from unerase_backend.catalogue.reading import CatalogueFile, read_file
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError
from unerase_backend.runtime.spelling import share_a_word

MAX_BASES = 50
"""The most models between an entry and the pipeline that it changes."""


@dataclass
class Merged:
    """The entries of several files by name, in the order of the files."""

    models: dict[str, ModelEntry] = field(default_factory=dict)
    judges: dict[str, JudgeEntry] = field(default_factory=dict)
    concepts: dict[str, ConceptEntry] = field(default_factory=dict)
    files: dict[tuple[str, str], str] = field(default_factory=dict)
    """The name of the file that holds an entry, by the entry's section and name."""


def merge_files(paths: Sequence[Path]) -> Merged:
    """Read the files, and fill in what their entries leave out: a model's figures, a concept's control.

    Raises:
        InvalidRequestError: a file holds a bad field, two entries have one name, or an entry names one that is missing.
    """
    files, violations = _read(paths)
    if violations:
        raise InvalidRequestError.of(*violations)
    merged = Merged()
    for path, file in files:
        for section in ("models", "judges", "concepts"):
            entries: dict[str, Any] = getattr(merged, section)
            for name, entry in getattr(file, section).items():
                if name in entries:
                    violations.append(_violation(path, section, name, "is already in the catalogue"))
                    continue
                entries[name] = entry
                merged.files[section, name] = path.name
    for path, file in files:
        violations += _dangling(path, file, merged)
    if violations:
        raise InvalidRequestError.of(*violations)
    merged.models = {name: _inherited(name, merged.models) for name in merged.models}
    merged.concepts = {name: _controlled(name, merged) for name in merged.concepts}
    return merged


def _read(paths: Sequence[Path]) -> tuple[list[tuple[Path, CatalogueFile]], list[FieldViolation]]:
    """Return each file with its content, and the violations of all of them."""
    files: list[tuple[Path, CatalogueFile]] = []
    violations: list[FieldViolation] = []
    for path in paths:
        try:
            files.append((path, read_file(path)))
        except InvalidRequestError as error:
            violations += error.violations
    return files, violations


def _violation(path: Path, section: str, key: str, description: str) -> FieldViolation:
    return FieldViolation(f"{path.name}: {section}.{key}", description)


def _dangling(path: Path, file: CatalogueFile, merged: Merged) -> list[FieldViolation]:
    violations = []
    for name in file.models:
        for key, description in problems_of_model(name, merged.models):
            violations.append(_violation(path, "models", f"{name}.{key}", description))
    for name, concept in file.concepts.items():
        for keys, description in problems_of_concept(name, concept, merged.models, merged.judges):
            violations.append(_violation(path, "concepts", ".".join((name, *keys)), description))
    return violations


def problems_of_model(name: str, models: Mapping[str, ModelEntry]) -> list[tuple[str, str]]:
    """Return the contradictions between a model's entry and those of its bases: a key of the entry, and a description.

    `models` has the model itself.
    """
    model, chain = models[name], [name]
    problems: list[tuple[str, str]] = []
    while (base := models[chain[-1]].base) is not None:
        if base not in models:
            problems.append(("base", f"there is no model {base!r}"))
            break
        if base in chain:
            problems.append(("base", "leads back to itself"))
            break
        if len(chain) > MAX_BASES:
            problems.append(("base", f"leads over more than {MAX_BASES} models"))
            break
        chain.append(base)
    if model.base is not None and model.resolution:
        problems.append(("resolution", "is the base's and cannot be changed"))
    of_chain = [guard for each in reversed(chain) for guard in models[each].guards]
    if model.guards and (problem := repeated(of_chain)):
        problems.append(("guards", problem))
    if learned := _inherited_knowledge(model, models):
        description = f"names {learned!r}, but the denoiser is the base's, which is not said to have never learned it"
        problems.append(("never_learned", description))
    return problems


def _inherited_knowledge(model: ModelEntry, models: Mapping[str, ModelEntry]) -> str:
    """Return the first concept that a model claims it never learned but its UNet may have; empty if there is none."""
    if not model.replacing.keys().isdisjoint(DENOISERS) or model.base is None or model.base not in models:
        return ""
    # The same rule applies to the base itself.
    return min(set(model.never_learned) - set(models[model.base].never_learned), default="")


def _controlled(name: str, merged: Merged) -> ConceptEntry:
    """Return a concept's entry; its default control is the first model of all files that never learned the concept."""
    entry = merged.concepts[name]
    if entry.control is not None:
        return entry
    words = (name, *entry.names)
    control = next((model for model, given in merged.models.items() if share_a_word(words, given.never_learned)), None)
    return entry.model_copy(update={"control": control})


def _inherited(name: str, models: Mapping[str, ModelEntry]) -> ModelEntry:
    entry = models[name]
    return with_figures(entry, _inherited(entry.base, models) if entry.base else None)


def with_figures(entry: ModelEntry, base: ModelEntry | None) -> ModelEntry:
    """Return an entry with the figures that it leaves out; `base` has all of its own."""
    figures = (base.guidance_scale, base.steps, base.resolution) if base else (GUIDANCE_SCALE, STEPS, entry.resolution)
    return entry.model_copy(
        update={
            "guidance_scale": entry.guidance_scale or figures[0],
            "steps": entry.steps or figures[1],
            "resolution": figures[2],
        }
    )
