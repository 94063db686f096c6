"""Erases a concept of the world from the flow's reference in a weights folder, and writes what changed."""

import copy
from pathlib import Path

from unerase_backend.testbed import forms, storage
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.erasing import concept_to_erase
from unerase_backend.testbed.flow import erasers, transformer
from unerase_backend.testbed.flow.storage import TEXT_ENCODERS, TRANSFORMER, load_text_encoders, load_transformer


def erase(eraser: str, concept: str, weights: Path, folder: Path, anchor: str = forms.BLOB) -> dict[str, int]:
    """Erase an object from the flow's reference in `weights`, and write the changed tensors to files in `folder`.

    Returns the number of changed tensors by file.

    Raises:
        KeyError: there is no such eraser or no such object.
    """
    model, encoders = load_transformer(weights), load_text_encoders(weights)
    modules = dict(zip((TRANSFORMER, *TEXT_ENCODERS), (model, *encoders), strict=True))
    before = {file: copy.deepcopy(module.state_dict()) for file, module in modules.items()}
    erasers.ERASERS[eraser](
        erasers.Subject(model, encoders, bpe.build(), transformer.scheduler()),
        concept_to_erase(concept, storage.load_vae(weights), anchor),
    )
    figures: dict[str, int] = {}
    for file, module in modules.items():
        changed = storage.changed_tensors(before[file], module.state_dict())
        if changed:
            storage.save_tensors(changed, folder / file)
            figures[f"tensors changed in {file}"] = len(changed)
    return figures
