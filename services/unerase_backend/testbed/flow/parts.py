"""The parts of the second world: which other parts each needs, and how it is made."""

from functools import partial
from pathlib import Path

from transformers import CLIPModel

from unerase_backend.testbed import catalogue, clip, rates, recipe, storage, world
from unerase_backend.testbed import tokenizer as bpe
from unerase_backend.testbed.corpus import latents_of, train_clip, zero_shot_accuracy
from unerase_backend.testbed.flow import erasers, erasing, transformer
from unerase_backend.testbed.flow.recipe import (
    NEVERS,
    REFERENCE,
    REFERENCE_SEEDS,
    SECOND_TEXT_LAYERS,
    SECOND_TEXT_WIDTH,
    Seeds,
    folder,
)
from unerase_backend.testbed.flow.storage import TEXT_ENCODERS, TRANSFORMER, load_text_encoders, write_shared
from unerase_backend.testbed.recipe import CONCEPT, FEW_STEPS, PICTURES, WORLD_SEED
from unerase_backend.testbed.registry import Figures, Make, Part


def _train_second_clip(out: Path, work: Path, without: set[str], seeds: Seeds) -> CLIPModel:
    return train_clip(out, work, bpe.build(), without, seeds.text, seeds.unfit, SECOND_TEXT_WIDTH, SECOND_TEXT_LAYERS)


def _make_clip(out: Path, work: Path) -> Figures:
    """Make the reference's second text tower, and all that it shares with the first world, the first tower with it."""
    write_shared(out)
    first = CLIPModel.from_pretrained(out / "clip", dtype="float32", local_files_only=True)
    storage.save_model(clip.text_encoder(first), out / REFERENCE / "text_encoder")
    second = _train_second_clip(out, work, set(), REFERENCE_SEEDS)
    storage.save_model(clip.text_encoder(second), out / REFERENCE / "text_encoder_2")
    return {"steps": clip.STEPS, "zero_shot": zero_shot_accuracy(second, bpe.build())}


def _make_clip_never(name: str, out: Path, work: Path) -> Figures:
    """Make both text towers of a model that never saw the concept, by the same recipe as the first world's."""
    of_first = recipe.NEVERS[name]
    towers = (
        train_clip(out, work, bpe.build(), {CONCEPT}, of_first.clip, of_first.unfit),
        _train_second_clip(out, work, {CONCEPT}, NEVERS[name]),
    )
    for file, tower in zip(TEXT_ENCODERS, towers, strict=True):
        storage.save_tensors(clip.text_encoder(tower).state_dict(), out / folder(name) / file)
    return {"steps": clip.STEPS, "zero_shot": [zero_shot_accuracy(tower, bpe.build()) for tower in towers]}


def _make_transformer(out: Path, work: Path) -> Figures:
    """Make the reference's transformer."""
    trained = transformer.train(
        latents_of(work, set()),
        world.album(PICTURES, WORLD_SEED).subjects,
        load_text_encoders(out),
        bpe.build(),
        REFERENCE_SEEDS.transformer,
    )
    storage.save_model(trained, out / REFERENCE / "transformer")
    return {"steps": transformer.STEPS, "parameters": trained.num_parameters()}


def _make_transformer_never(name: str, out: Path, work: Path) -> Figures:
    """Make a transformer that never saw the concept, by the same recipe; "never" has the reference's seed."""
    trained = transformer.train(
        latents_of(work, {CONCEPT}),
        world.album(PICTURES, WORLD_SEED, {CONCEPT}).subjects,
        load_text_encoders(out, out / folder(name)),
        bpe.build(),
        NEVERS[name].transformer,
    )
    storage.save_tensors(trained.state_dict(), out / folder(name) / TRANSFORMER)
    return {"steps": transformer.STEPS}


def _erase(name: str, out: Path, work: Path) -> Figures:
    return dict(erasing.erase(name, CONCEPT, out, out / folder(name)))


def _part(make: Make, *needs: str) -> Part:
    return Part(needs, make, CONCEPT)


def _measure(name: str, out: Path, work: Path) -> Figures:
    """Measure the rates of one model."""
    model = folder(name)
    return {
        **{
            f"{steps} steps": rates.detection_rates(out, model, CONCEPT, steps, (96, 48))
            for steps in (catalogue.STEPS, FEW_STEPS)
        },
        "completion": rates.completion(out, model, CONCEPT, 24),
        "unconditional": rates.unconditional(out, model, CONCEPT, 48, catalogue.STEPS),
    }


MEASURED = ("reference", *NEVERS, *erasers.ERASERS)
_FILES = {"reference": "transformer", **{never: f"transformer-{never}" for never in NEVERS}}
_SHARED: dict[str, Part] = {
    "clip": _part(_make_clip, "clip", "unet", "latents"),
    "transformer": _part(_make_transformer, "flow/clip", "latents"),
}
_OF_NEVERS = {f"clip-{never}": _part(partial(_make_clip_never, never), "latents") for never in NEVERS} | {
    f"transformer-{never}": _part(partial(_make_transformer_never, never), "flow/clip", f"flow/clip-{never}", "latents")
    for never in NEVERS
}
_ERASED = {name: _part(partial(_erase, name), "flow/transformer") for name in erasers.ERASERS}
_MEASURES = {
    f"rates-{name}": _part(
        partial(_measure, name), "flow/transformer", folder(_FILES.get(name, name)), "judge", "second-judge"
    )
    for name in MEASURED
}
MADE = tuple(folder(name) for name in (*_SHARED, *_OF_NEVERS, *_ERASED))
RATES = tuple(folder(name) for name in _MEASURES)
PARTS = {folder(name): part for name, part in (_SHARED | _OF_NEVERS | _ERASED | _MEASURES).items()}
"""All parts of the second world, by name."""
