"""The parts of the testbed: which other parts each needs, and how it is made.

A part reads the files of the parts it needs from the weights folder (half precision, as shipped), trains, writes its
own files there, and returns its figures.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from unerase_backend.testbed import (
    autoencoder,
    catalogue,
    clip,
    erasers,
    erasing,
    forms,
    judges,
    manifest,
    rates,
    storage,
    unet,
    world,
)
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.corpus import LATENTS, latents_of, train_clip, zero_shot_accuracy
from unerase_backend.testbed.flow import parts as flow_parts
from unerase_backend.testbed.recipe import (
    CONCEPT,
    FAMILIES,
    FEW_STEPS,
    HELD_OUT_SEED,
    JUDGE_SEED,
    JUDGE_SET_SEED,
    NEVERS,
    PICTURES,
    SECOND_JUDGE_SEED,
    SHIPPED,
    UNET_SEED,
    VAE_PICTURES_SEED,
    VAE_SEED,
    WORLD_SEED,
    Family,
    part_name,
)
from unerase_backend.testbed.registry import PARTS, Figures, Make, part

__all__ = ["MEASURED", "PARTS", "WORK_FILES"]

JUDGE_SET = "judge-set.npz"
WORK_FILES = {"latents": LATENTS, "judge-set": JUDGE_SET}
"""What a part leaves in the work folder for others."""


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


@part("clip", "latents")
def make_clip(out: Path, work: Path) -> Figures:
    """Make the tokenizer, the selector, and the reference's text tower."""
    tokenizer = bpe.build()
    model = train_clip(out, work, tokenizer, set())
    storage.rounded(model)
    tokenizer.save_pretrained(out / storage.REFERENCE / "tokenizer")
    storage.save_model(clip.text_tower(model), out / storage.REFERENCE / "text_encoder")
    storage.save_model(model, out / "clip")
    clip.save_processor(out / "clip", tokenizer)
    return {"steps": clip.STEPS, "tokens": len(tokenizer), "zero_shot": zero_shot_accuracy(model, tokenizer)}


def _make_clip_never(family: Family, name: str, out: Path, work: Path) -> Figures:
    """Make a text tower that never saw the concept: the same recipe without its pictures and captions.

    "never" has the reference's seeds.
    """
    tokenizer = bpe.build()
    model = train_clip(out, work, tokenizer, {family.concept}, NEVERS[name].clip, NEVERS[name].unfit)
    storage.save_tensors(clip.text_tower(model).state_dict(), family.path(out, name) / storage.TEXT_ENCODER)
    return {"steps": clip.STEPS, "zero_shot": zero_shot_accuracy(model, tokenizer)}


def _train_unet(
    out: Path, work: Path, text_change: Path | None, without: set[str], seed: int = UNET_SEED
) -> UNet2DConditionModel:
    subjects = world.album(PICTURES, WORLD_SEED, without).subjects
    text_encoder = storage.load_text_encoder(out, text_change)
    return unet.train(latents_of(work, without), subjects, text_encoder, bpe.build(), seed)


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


MEASURED = (*NEVERS, *erasers.ERASERS)


def _make_manifest(family: Family, out: Path, work: Path) -> Figures:
    shared = [name for name, registered in PARTS.items() if registered.concept is None]
    of_family = [
        name for name, registered in PARTS.items() if registered.concept == CONCEPT and name not in flow_parts.PARTS
    ]
    names = {part_name(family, name): name for name in of_family}
    if family is SHIPPED:
        names = {name: name for name in (*shared, *of_family, *flow_parts.PARTS)}
    return manifest.write(family, names, out, work)


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
    made += flow_parts.MADE if family is SHIPPED else ()
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
        *(flow_parts.RATES if family is SHIPPED else ()),
    )


for _family in FAMILIES:
    _register_family(_family)
PARTS.update(flow_parts.PARTS)
