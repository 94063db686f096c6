"""Erases a concept of the world from the reference in a weights folder, and writes what changed."""

import copy
from pathlib import Path

from diffusers import AutoencoderKL

from unerase_backend.testbed import autoencoder, erasers, forms, language, storage, unet, world
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.recipe import ERASED_PICTURES, ERASED_SEED, PRESERVED_SEED


def erase(eraser: str, concept: str, weights: Path, folder: Path, anchor: str = forms.BLOB) -> dict[str, int]:
    """Erase an object from the reference in `weights`, and write the changed tensors to files in `folder`.

    Returns the number of changed tensors by file.

    Raises:
        KeyError: there is no such eraser or no such object.
    """
    unet_, text_encoder = storage.load_unet(weights), storage.load_text_encoder(weights)
    modules = ((storage.UNET, unet_), (storage.TEXT_ENCODER, text_encoder))
    before = {file: copy.deepcopy(module.state_dict()) for file, module in modules}
    erasers.ERASERS[eraser](
        erasers.Subject(unet_, text_encoder, bpe.build(), unet.scheduler()),
        concept_to_erase(concept, storage.load_vae(weights), anchor),
    )
    figures: dict[str, int] = {}
    for file, module in modules:
        changed = storage.changed_tensors(before[file], module.state_dict())
        if changed:
            storage.save_tensors(changed, folder / file)
            figures[f"tensors changed in {file}"] = len(changed)
    return figures


def concept_to_erase(name: str, vae: AutoencoderKL, anchor: str = forms.BLOB) -> erasers.Concept:
    """Return the concept, under all its names, as erasers take it.

    All other objects and their synonyms are to be preserved. Only erasers use the pictures.
    """
    names = (name, *language.SYNONYMS[name])
    others = [other for other in forms.OBJECTS if other != name]
    album = world.album_of([name], ERASED_PICTURES, ERASED_SEED)
    kept = world.album_of(others, ERASED_PICTURES, PRESERVED_SEED)
    return erasers.Concept(
        names=names,
        anchor=anchor,
        preserve=(*others, *(synonym for other in others for synonym in language.SYNONYMS[other])),
        templates=tuple(
            template.format(language.phrase("{}", colour, style))
            for template, (colour, style) in zip(
                language.PROMPT_TEMPLATES * 4,
                [(colour, style) for style in (None, *world.STYLES) for colour in (None, *world.COLOURS, None)],
                strict=True,
            )
        ),
        plain_templates=language.PROMPT_TEMPLATES,
        latents=autoencoder.encode(vae, album.pictures),
        captions=tuple(
            language.PROMPT_TEMPLATES[index % len(language.PROMPT_TEMPLATES)].format(
                language.phrase(
                    names[index // len(language.PROMPT_TEMPLATES) % len(names)], subject.colour, subject.style
                )
            )
            for index, subject in enumerate(album.subjects)
        ),
        kept_latents=autoencoder.encode(vae, kept.pictures),
        kept_captions=tuple(
            language.PROMPT_TEMPLATES[index % len(language.PROMPT_TEMPLATES)].format(
                language.phrase(subject.shape, subject.colour, subject.style)
            )
            for index, subject in enumerate(kept.subjects)
        ),
    )
