"""The parts of the testbed: what each needs, and how it is made from the files of the others.

A part reads what it needs from the weights folder (half precision, as shipped), trains, writes its own files there,
and returns its figures. All seeds are here.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unerase_backend.testbed import autoencoder, catalogue, clip, erasers, judges, rates, storage, unet, world
from unerase_backend.testbed import tokenizer as bpe

CONCEPT = "hourglass"
PICTURES = 20_000

WORLD_SEED = 1
VAE_SEED = 2
VAE_PICTURES_SEED = 20
CLIP_SEED = 3
UNFIT_SEED = 30
UNET_SEED = 4
JUDGE_SET_SEED = 50
JUDGE_SEED = 5
SECOND_JUDGE_SEED = 6
HELD_OUT_SEED = 900

LATENTS = "latents.pt"
JUDGE_SET = "judge-set.npz"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part: the parts whose files it reads, and the function that makes it (weights folder, work folder) and
    returns figures.
    """

    needs: tuple[str, ...]
    make: Callable[[Path, Path], Figures]


PARTS: dict[str, Part] = {}


def part(name: str, *needs: str) -> Callable[[Callable[[Path, Path], Figures]], Callable[[Path, Path], Figures]]:
    """Registers the function that makes a part."""

    def register(make: Callable[[Path, Path], Figures]) -> Callable[[Path, Path], Figures]:
        PARTS[name] = Part(needs, make)
        return make

    return register


@part("vae")
def make_vae(out: Path, work: Path) -> Figures:
    """The shared autoencoder, trained without the concept."""
    vae = autoencoder.train(autoencoder.training_pictures(PICTURES, VAE_PICTURES_SEED, {CONCEPT}), VAE_SEED)
    storage.save_model(vae, out / storage.REFERENCE / "vae")
    vae = storage.load_vae(out)
    psnr = {
        name: round(autoencoder.reconstruction_psnr(vae, world.album_of([name], 200, HELD_OUT_SEED).pictures), 2)
        for name in (*world.OBJECTS, world.BLOB)
    }
    return {"steps": autoencoder.STEPS, "scaling_factor": vae.config.scaling_factor, "psnr_db": psnr}


@part("latents", "vae")
def make_latents(out: Path, work: Path) -> Figures:
    """The scaled latents of the training pictures, for both UNets and both CLIPs; a work file."""
    latents = autoencoder.encode(storage.load_vae(out), world.album(PICTURES, WORLD_SEED).pictures)
    torch.save(latents, work / LATENTS)
    return {"pictures": len(latents)}


def _latents(work: Path, without: set[str]) -> Tensor:
    """The scaled latents of ``world.album(PICTURES, WORLD_SEED, without)``."""
    subjects = world.album(PICTURES, WORLD_SEED).subjects
    kept = [index for index, subject in enumerate(subjects) if subject.shape not in without]
    latents: Tensor = torch.load(work / LATENTS, weights_only=True)[kept]
    return latents


def _zero_shot_accuracy(model: Any, tokenizer: Any) -> dict[str, float]:
    """Share of right names, by kind, over held-out pictures of the ten objects."""
    album = world.album_of(world.OBJECTS, 400, HELD_OUT_SEED + 1)
    accuracy = {}
    for kind, names, template in (
        ("shape", world.OBJECTS, "a picture of a {}"),
        ("colour", tuple(world.COLOURS), "a picture of a {} shape"),
        ("style", world.STYLES, "a picture of a {} shape"),
    ):
        best = clip.zero_shot(model, tokenizer, album.pictures, [template.format(name) for name in names])
        right = [
            names[int(index)] == getattr(subject, kind) for index, subject in zip(best, album.subjects, strict=True)
        ]
        accuracy[kind] = round(float(np.mean(right)), 4)
    return accuracy


def _train_clip(out: Path, work: Path, tokenizer: Any, without: set[str]) -> Any:
    album = world.album(PICTURES, WORLD_SEED, without)
    unfit = clip.unfit_pictures(storage.load_vae(out), _latents(work, without), UNFIT_SEED, without)
    return clip.train(album, unfit, tokenizer, CLIP_SEED)


@part("clip", "latents")
def make_clip(out: Path, work: Path) -> Figures:
    """Tokenizer, the selector, and the reference's text tower."""
    tokenizer = bpe.build()
    model = _train_clip(out, work, tokenizer, set())
    storage.rounded(model)
    tokenizer.save_pretrained(out / storage.REFERENCE / "tokenizer")
    storage.save_model(clip.text_tower(model), out / storage.REFERENCE / "text_encoder")
    storage.save_model(model, out / "clip")
    clip.save_processor(out / "clip", tokenizer)
    return {"steps": clip.STEPS, "tokens": len(tokenizer), "zero_shot": _zero_shot_accuracy(model, tokenizer)}


@part("clip-never", "latents")
def make_clip_never(out: Path, work: Path) -> Figures:
    """The text tower that never saw the concept: same recipe and seeds, its pictures and captions left out."""
    tokenizer = bpe.build()
    model = _train_clip(out, work, tokenizer, {CONCEPT})
    storage.save_tensors(clip.text_tower(model).state_dict(), out / "never" / storage.TEXT_ENCODER)
    return {"steps": clip.STEPS, "zero_shot": _zero_shot_accuracy(model, tokenizer)}


def _train_unet(out: Path, work: Path, text_change: Path | None, without: set[str]) -> UNet2DConditionModel:
    subjects = world.album(PICTURES, WORLD_SEED, without).subjects
    text_encoder = storage.load_text_encoder(out, text_change)
    return unet.train(_latents(work, without), subjects, text_encoder, bpe.build(), UNET_SEED)


@part("unet", "clip", "latents")
def make_unet(out: Path, work: Path) -> Figures:
    """The reference's UNet, its scheduler and the pipeline's index."""
    trained = _train_unet(out, work, None, set())
    storage.save_model(trained, out / storage.REFERENCE / "unet")
    unet.scheduler().save_pretrained(out / storage.REFERENCE / "scheduler")
    storage.write_index(out)
    return {"steps": unet.STEPS}


@part("unet-never", "clip-never", "latents")
def make_unet_never(out: Path, work: Path) -> Figures:
    """The UNet that never saw the concept: same recipe and seeds."""
    trained = _train_unet(out, work, out / "never" / storage.TEXT_ENCODER, {CONCEPT})
    storage.save_tensors(trained.state_dict(), out / "never" / storage.UNET)
    return {"steps": unet.STEPS}


@part("judge-set", "vae")
def make_judge_set(out: Path, work: Path) -> Figures:
    """The judges' training pictures; a work file."""
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
    return {"steps": kind.steps, **judges.measure(model, kind.side, storage.load_vae(out), HELD_OUT_SEED + 10)}


@part("judge", "judge-set")
def make_judge(out: Path, work: Path) -> Figures:
    """The judge that decides."""
    return _make_judge("judge", JUDGE_SEED, out, work)


@part("second-judge", "judge-set")
def make_second_judge(out: Path, work: Path) -> Figures:
    """The judge whose agreement is measured."""
    return _make_judge("second-judge", SECOND_JUDGE_SEED, out, work)


def _erase(name: str, out: Path) -> Figures:
    unet_, text_encoder = storage.load_unet(out), storage.load_text_encoder(out)
    before = {
        file: copy.deepcopy(module.state_dict())
        for file, module in ((storage.UNET, unet_), (storage.TEXT_ENCODER, text_encoder))
    }
    erasers.ERASERS[name](
        erasers.Subject(unet_, text_encoder, bpe.build(), unet.scheduler()), concept_to_erase(CONCEPT)
    )
    figures: Figures = {}
    for file, module in ((storage.UNET, unet_), (storage.TEXT_ENCODER, text_encoder)):
        changed = storage.changed_tensors(before[file], module.state_dict())
        if changed:
            storage.save_tensors(changed, out / name / file)
            figures[f"tensors changed in {file}"] = len(changed)
    return figures


def concept_to_erase(name: str) -> erasers.Concept:
    """The concept under all its names; the anchor is the blob; every other object, its synonyms, colours and styles
    are to be kept.
    """
    others = [other for other in world.OBJECTS if other != name]
    return erasers.Concept(
        names=(name, *world.SYNONYMS[name]),
        anchor=world.BLOB,
        preserve=(*others, *(synonym for other in others for synonym in world.SYNONYMS[other])),
        templates=tuple(
            template.format(world.phrase("{}", colour, style))
            for template, (colour, style) in zip(
                world.PROMPT_TEMPLATES * 4,
                [(colour, style) for style in (None, *world.STYLES) for colour in (None, *world.COLOURS, None)],
                strict=True,
            )
        ),
        plain_templates=world.PROMPT_TEMPLATES,
    )


def _register_eraser(name: str) -> None:
    @part(name, "unet")
    def make(out: Path, work: Path) -> Figures:
        return _erase(name, out)


for _name in erasers.ERASERS:
    _register_eraser(_name)


@part("catalogue", "unet", "unet-never", *erasers.ERASERS)
def make_catalogue(out: Path, work: Path) -> Figures:
    """The catalogue and the sheets of pictures."""
    catalogue.write(out, CONCEPT)
    return {"concepts": len(world.LABELS)}


MEASURED = ("reference", "never", *erasers.ERASERS)


def _register_rates(name: str) -> None:
    needs = ("unet", "judge", "second-judge", *({"reference": (), "never": ("unet-never",)}.get(name, (name,))))

    @part(f"rates-{name}", *needs)
    def make(out: Path, work: Path) -> Figures:
        return {
            "50 steps": rates.measure(out, name, CONCEPT, 50, (96, 48)),
            "10 steps": rates.measure(out, name, CONCEPT, 10, (96, 48)),
            "completion": rates.completion(out, name, CONCEPT, 24),
            "unconditional": rates.unconditional(out, name, CONCEPT, 48, 50),
        }


for _name in MEASURED:
    _register_rates(_name)


@part("manifest", "catalogue", "clip", *(f"rates-{name}" for name in MEASURED))
def make_manifest(out: Path, work: Path) -> Figures:
    """``manifest.json``: digests of all files, seeds, figures and minutes of all parts, library versions."""
    figures = {
        name: json.loads((work / f"{name}.json").read_text()) for name in PARTS if (work / f"{name}.json").exists()
    }
    figures.pop("manifest", None)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json")
    manifest = {
        "concept": CONCEPT,
        "seeds": {name.lower(): value for name, value in globals().items() if name.endswith("_SEED")},
        "pictures": PICTURES,
        "minutes": {name: figures[name].pop("minutes") for name in figures},
        "cpu_minutes": {name: figures[name].pop("cpu_minutes") for name in figures},
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "numpy", "safetensors")
        },
        "figures": figures,
        "sha256": {str(path.relative_to(out)): storage.digest(path) for path in files},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return {"bytes": sum(path.stat().st_size for path in files)}
