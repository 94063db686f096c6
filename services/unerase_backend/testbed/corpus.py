"""What text towers, UNets and transformers are trained on: the pictures of the world, their latents, and captions."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel

from unerase_backend.testbed import clip, forms, storage, world
from unerase_backend.testbed.recipe import CLIP_SEED, HELD_OUT_SEED, PICTURES, UNFIT_SEED, WORLD_SEED

LATENTS = "latents.pt"
"""The work file with the scaled latents of all training pictures."""


def latents_of(work: Path, without: Collection[str]) -> Tensor:
    """Return the scaled latents (N, 4, 8, 8) of `world.album(PICTURES, WORLD_SEED, without)`."""
    subjects = world.album(PICTURES, WORLD_SEED).subjects
    kept = [index for index, subject in enumerate(subjects) if subject.shape not in without]
    latents: Tensor = torch.load(work / LATENTS, weights_only=True)[kept]
    return latents


def train_clip(
    out: Path,
    work: Path,
    tokenizer: Any,
    without: Collection[str],
    seed: int = CLIP_SEED,
    unfit_seed: int = UNFIT_SEED,
    width: int = clip.WIDTH,
    text_layers: int = clip.TEXT_LAYERS,
) -> CLIPModel:
    """Return a CLIP trained on the training pictures that show nothing in `without`."""
    album = world.album(PICTURES, WORLD_SEED, without)
    unfit = clip.unfit_pictures(storage.load_vae(out), latents_of(work, without), unfit_seed, without)
    return clip.train(album, unfit, tokenizer, seed, width=width, text_layers=text_layers)


def zero_shot_accuracy(model: Any, tokenizer: Any) -> dict[str, float]:
    """Return the share of held-out pictures whose shape, colour and style the model names correctly."""
    album = world.album_of(forms.OBJECTS, 400, HELD_OUT_SEED + 1)
    accuracy = {}
    for kind, names, template in (
        ("shape", forms.OBJECTS, "a picture of a {}"),
        ("colour", tuple(world.COLOURS), "a picture of a {} shape"),
        ("style", world.STYLES, "a picture of a {} shape"),
    ):
        best = clip.zero_shot(model, tokenizer, album.pictures, [template.format(name) for name in names])
        right = [
            names[int(index)] == getattr(subject, kind) for index, subject in zip(best, album.subjects, strict=True)
        ]
        accuracy[kind] = round(float(np.mean(right)), 4)
    return accuracy
