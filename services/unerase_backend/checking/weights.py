"""Reads the weights of a model for values with which it could not be loaded."""

from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from unerase_backend.catalogue import Catalogue, model_check
from unerase_backend.catalogue.configs import shown
from unerase_backend.catalogue.findings import Findings
from unerase_backend.catalogue.model_check import ModelSource
from unerase_backend.catalogue.shared_findings import SharedFindings
from unerase_backend.catalogue.tensors import UNREADABLE, StoredTensor
from unerase_backend.diffusion.weights import not_finite
from unerase_backend.runtime.errors import UnsafeModelError


def find_infinite(
    catalogue: Catalogue, name: str, findings: Findings, shared: SharedFindings | None = None, *, own: bool = False
) -> None:
    """Find a weight that is not finite in each part of a model, and in each file that changes weights of it.

    With `own`, the files of its bases are left out. Nothing is found where a check finds no files; learned words are
    read by each check (`diffusion/embeddings.read`).

    Raises:
        UnsafeModelError: a file was changed meanwhile.
    """
    shared = shared or SharedFindings()
    source = model_check.examine(catalogue, name, Findings(name), shared)
    if source is None:
        return
    for key, part, tensors in _files(catalogue, name, source, own):
        shared.examined(("finite", part, key), findings, partial(_find, part, tensors))
    for entry in source.loras:
        if not own or entry in catalogue.model(name).lora:
            shared.examined(("finite", "lora", entry.file), findings, partial(_find_in_lora, entry.file))


def _files(
    catalogue: Catalogue, name: str, source: ModelSource, own: bool
) -> Iterator[tuple[Hashable, str, Mapping[str, StoredTensor]]]:
    """Give what is read of a model: what it is, its part and its tensors."""
    model = catalogue.model(name)
    if not (own and model.base):
        yield from ((source.folder, part, tensors) for part, tensors in source.tensors.items())
    for part, changes in source.changes.items():
        for change in changes:
            if isinstance(change, Path) and not (own and change not in model.replacing.values()):
                yield change, part, source.replacing[change]


def _find(part: str, tensors: Mapping[str, StoredTensor], findings: Findings) -> None:
    if key := not_finite(tensors):
        what = f"{key!r} of the {part} holds NaN or infinity"
        findings.problem(part, "WEIGHTS_NOT_FINITE", what, found=shown(tensors[key].file.name))


def _find_in_lora(path: Path, findings: Findings) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            key = next((each for each in file.keys() if not bool(torch.isfinite(file.get_tensor(each)).all())), "")  # noqa: SIM118
    except UNREADABLE as error:
        message = f"{shown(path.name)} cannot be read any more; it was changed while it was checked"
        raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE") from error
    if key:
        findings.problem("lora", "WEIGHTS_NOT_FINITE", f"{shown(key)} holds NaN or infinity", found=shown(path.name))
