"""The parts of the testbed: which other parts each needs, and how it is made.

A part reads the files of the parts it needs from the weights folder (half precision, as shipped), trains, writes its
own files there, and returns its figures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unerase_backend.testbed import (
    autoencoder,
    catalogue,
    clip,
    erasers,
    erasing,
    forms,
    judges,
    rates,
    recipe,
    storage,
    unet,
    world,
)
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.recipe import (
    CLIP_SEED,
    CONCEPT,
    FAMILIES,
    FAMILIES_FOLDER,
    FEW_STEPS,
    HELD_OUT_SEED,
    JUDGE_SEED,
    JUDGE_SET_SEED,
    NEVERS,
    PICTURES,
    SECOND_JUDGE_SEED,
    SHIPPED,
    UNET_SEED,
    UNFIT_SEED,
    VAE_PICTURES_SEED,
    VAE_SEED,
    WORLD_SEED,
    Family,
    part_name,
)

LATENTS = "latents.pt"
JUDGE_SET = "judge-set.npz"
WORK_FILES = {"latents": LATENTS, "judge-set": JUDGE_SET}
"""What a part leaves in the work folder for others."""

Figures = dict[str, Any]
Make = Callable[[Path, Path], Figures]


@dataclass(frozen=True)
class Part:
    """One part of the testbed."""

    needs: tuple[str, ...]
    """The parts whose files it reads."""
    make: Make
    """Makes it, given the weights folder and the work folder, and returns its figures."""
    concept: str | None
    """The concept of its family; None for a part that all families share."""


PARTS: dict[str, Part] = {}


def part(name: str, *needs: str, concept: str | None = None) -> Callable[[Make], Make]:
    """Register the function that makes a part."""

    def register(make: Make) -> Make:
        PARTS[name] = Part(needs, make, concept)
        return make

    return register


@part("vae")
def make_vae(out: Path, work: Path) -> Figures:
    """Make the shared autoencoder, trained without the concept."""
    vae = autoencoder.train(autoencoder.training_pictures(PICTURES, VAE_PICTURES_SEED, {CONCEPT}), VAE_SEED)
    storage.save_model(vae, out / storage.REFERENCE / "vae")
    vae = storage.load_vae(out)
    psnr = {
        name: round(autoencoder.reconstruction_psnr(vae, world.album_of([name], 200, HELD_OUT_SEED).pictures), 2)
        for name in (*forms.OBJECTS, forms.BLOB)
    }
    return {"steps": autoencoder.STEPS, "scaling_factor": vae.config.scaling_factor, "psnr_db": psnr}


@part("latents", "vae")
def make_latents(out: Path, work: Path) -> Figures:
    """Make the scaled latents of the training pictures, which every UNet and CLIP is trained with; a work file."""
    latents = autoencoder.encode(storage.load_vae(out), world.album(PICTURES, WORLD_SEED).pictures)
    torch.save(latents, work / LATENTS)
    return {"pictures": len(latents)}


def _latents(work: Path, without: set[str]) -> Tensor:
    """Return the scaled latents (N, 4, 8, 8) of `world.album(PICTURES, WORLD_SEED, without)`."""
    subjects = world.album(PICTURES, WORLD_SEED).subjects
    kept = [index for index, subject in enumerate(subjects) if subject.shape not in without]
    latents: Tensor = torch.load(work / LATENTS, weights_only=True)[kept]
    return latents


def _zero_shot_accuracy(model: Any, tokenizer: Any) -> dict[str, float]:
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


def _train_clip(
    out: Path, work: Path, tokenizer: Any, without: set[str], seed: int = CLIP_SEED, unfit_seed: int = UNFIT_SEED
) -> Any:
    album = world.album(PICTURES, WORLD_SEED, without)
    unfit = clip.unfit_pictures(storage.load_vae(out), _latents(work, without), unfit_seed, without)
    return clip.train(album, unfit, tokenizer, seed)


@part("clip", "latents")
def make_clip(out: Path, work: Path) -> Figures:
    """Make the tokenizer, the selector, and the reference's text tower."""
    tokenizer = bpe.build()
    model = _train_clip(out, work, tokenizer, set())
    storage.rounded(model)
    tokenizer.save_pretrained(out / storage.REFERENCE / "tokenizer")
    storage.save_model(clip.text_tower(model), out / storage.REFERENCE / "text_encoder")
    storage.save_model(model, out / "clip")
    clip.save_processor(out / "clip", tokenizer)
    return {"steps": clip.STEPS, "tokens": len(tokenizer), "zero_shot": _zero_shot_accuracy(model, tokenizer)}


def _make_clip_never(family: Family, name: str, out: Path, work: Path) -> Figures:
    """Make a text tower that never saw the concept: the same recipe without its pictures and captions.

    "never" has the reference's seeds.
    """
    tokenizer = bpe.build()
    model = _train_clip(out, work, tokenizer, {family.concept}, NEVERS[name].clip, NEVERS[name].unfit)
    storage.save_tensors(clip.text_tower(model).state_dict(), family.path(out, name) / storage.TEXT_ENCODER)
    return {"steps": clip.STEPS, "zero_shot": _zero_shot_accuracy(model, tokenizer)}


def _train_unet(
    out: Path, work: Path, text_change: Path | None, without: set[str], seed: int = UNET_SEED
) -> UNet2DConditionModel:
    subjects = world.album(PICTURES, WORLD_SEED, without).subjects
    text_encoder = storage.load_text_encoder(out, text_change)
    return unet.train(_latents(work, without), subjects, text_encoder, bpe.build(), seed)


@part("unet", "clip", "latents")
def make_unet(out: Path, work: Path) -> Figures:
    """Make the reference's UNet, its scheduler and the pipeline's index."""
    trained = _train_unet(out, work, None, set())
    storage.save_model(trained, out / storage.REFERENCE / "unet")
    unet.scheduler().save_pretrained(out / storage.REFERENCE / "scheduler")
    storage.write_index(out)
    return {"steps": unet.STEPS}


def _make_unet_never(family: Family, name: str, out: Path, work: Path) -> Figures:
    """Make a UNet that never saw the concept, by the same recipe; "never" has the reference's seed."""
    folder = family.path(out, name)
    trained = _train_unet(out, work, folder / storage.TEXT_ENCODER, {family.concept}, NEVERS[name].unet)
    storage.save_tensors(trained.state_dict(), folder / storage.UNET)
    return {"steps": unet.STEPS}


@part("judge-set", "vae")
def make_judge_set(out: Path, work: Path) -> Figures:
    """Make the training pictures of the judges; a work file."""
    groups = judges.training_set(storage.load_vae(out), JUDGE_SET_SEED)
    arrays: dict[str, Any] = {
        f"{kind} {name}": array for name, pair in groups.items() for kind, array in zip(("x", "y"), pair, strict=True)
    }
    np.savez(work / JUDGE_SET, **arrays)
    return {name: len(pictures) for name, (pictures, _) in groups.items()}


def _make_judge(name: str, seed: int, out: Path, work: Path) -> Figures:
    kind = judges.KINDS[name]
    with np.load(work / JUDGE_SET) as arrays:
        groups = {group: (arrays[f"x {group}"], arrays[f"y {group}"]) for group in judges.SHARES}
    model = judges.train(kind, groups, seed)
    judges.save(model, kind, out / name)
    return {"steps": kind.steps, **judges.judge_figures(model, kind.side, storage.load_vae(out), HELD_OUT_SEED + 10)}


@part("judge", "judge-set")
def make_judge(out: Path, work: Path) -> Figures:
    """Make the judge whose detections an audit counts."""
    return _make_judge("judge", JUDGE_SEED, out, work)


@part("second-judge", "judge-set")
def make_second_judge(out: Path, work: Path) -> Figures:
    """Make the second judge, whose agreement with the first is measured."""
    return _make_judge("second-judge", SECOND_JUDGE_SEED, out, work)


def _erase(family: Family, name: str, out: Path, work: Path) -> Figures:
    return erasing.erase(name, family.concept, out, family.path(out, name))


def _make_catalogue(family: Family, out: Path, work: Path) -> Figures:
    if family is SHIPPED:
        catalogue.write(out, family.concept)
        return {"concepts": len(judges.LABELS)}
    catalogue.write_family(out / family.folder, family.concept)
    return {}


def _measure(family: Family, name: str, out: Path, work: Path) -> Figures:
    """Measure the rates of one model.

    Families that are not shipped are measured in ten steps only, since rates in fifty steps hardly differ.
    """
    model, concept = family.model(name), family.concept
    steps = (catalogue.STEPS, FEW_STEPS) if family is SHIPPED else (FEW_STEPS,)
    return {
        **{f"{count} steps": rates.detection_rates(out, model, concept, count, (96, 48)) for count in steps},
        "completion": rates.completion(out, model, concept, 24),
        "unconditional": rates.unconditional(out, model, concept, 48, catalogue.STEPS),
    }


def _make_manifest(family: Family, out: Path, work: Path) -> Figures:
    """Write `manifest.json`: digests of all files, seeds, library versions, and figures and minutes of all parts.

    For a part that was not made again it keeps the earlier figures.
    """
    root = out / family.folder
    path = root / "manifest.json"
    earlier: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept: dict[str, Figures] = {key: earlier.get(key, {}) for key in ("figures", "minutes", "cpu_minutes")}
    names = {
        part_name(family, name) if of_family else name: name
        for of_family, listed in ((False, _SHARED_PARTS if family is SHIPPED else ()), (True, _FAMILY_PARTS))
        for name in listed
    }
    told: dict[str, Figures] = {key: {} for key in kept}
    for name, short in names.items():
        if (work / f"{name}.json").exists():
            figures: Figures = json.loads((work / f"{name}.json").read_text())
            minutes = {key: figures.pop(key) for key in ("minutes", "cpu_minutes")}
            for key, value in {"figures": figures, **minutes}.items():
                told[key][short] = value
        elif short in kept["figures"]:
            for key, values in kept.items():
                told[key][short] = values[short]
    files = sorted(
        file
        for file in root.rglob("*")
        if file.is_file() and file.name != "manifest.json" and FAMILIES_FOLDER not in file.relative_to(root).parts
    )
    manifest = {
        "concept": family.concept,
        "seeds": recipe.SEEDS,
        "pictures": PICTURES,
        "minutes": told["minutes"],
        "cpu_minutes": told["cpu_minutes"],
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "safetensors")
        },
        "figures": told["figures"],
        "sha256": {str(file.relative_to(root)): storage.digest(file) for file in files},
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    return {"bytes": sum(file.stat().st_size for file in files)}


_SHARED_PARTS = tuple(PARTS)
MEASURED = (*NEVERS, *erasers.ERASERS)


def _register_family(family: Family) -> None:
    def name(short: str) -> str:
        return part_name(family, short)

    def register(short: str, make: Make, *needs: str) -> None:
        part(name(short), *needs, concept=family.concept)(make)

    for never in NEVERS:
        register(f"clip-{never}", partial(_make_clip_never, family, never), "latents")
        register(f"unet-{never}", partial(_make_unet_never, family, never), name(f"clip-{never}"), "latents")
    for eraser in erasers.ERASERS:
        register(eraser, partial(_erase, family, eraser), "unet")
    unets = {never: f"unet-{never}" for never in NEVERS}
    made = [name(short) for short in (*unets.values(), *erasers.ERASERS)]
    register("catalogue", partial(_make_catalogue, family), "unet", *made)
    measured = [*(("reference",) if family is SHIPPED else ()), *MEASURED]
    for model in measured:
        files = [] if model == "reference" else [name(unets.get(model, model))]
        register(
            f"rates-{model}",
            partial(_measure, family, model),
            *("unet", "judge", "second-judge", *files),
        )
    register(
        "manifest",
        partial(_make_manifest, family),
        *("clip", name("catalogue"), *(name(f"rates-{model}") for model in measured)),
    )


for _family in FAMILIES:
    _register_family(_family)

_FAMILY_PARTS = tuple(name for name, registered in PARTS.items() if registered.concept == CONCEPT)
