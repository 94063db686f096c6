"""The two judges: picture classifiers, trained to reject pictures that only resemble an object.

Both have eighteen independent labels (sigmoids, binary cross-entropy): ten objects, four colours, three styles and the
placebo, which only the judges have seen. A label is detected at p > 0.5. `judge` is a ResNet of basic layers whose
processor doubles the side, because its stem divides it by four; `second-judge` is a ConvNeXt with patches of two
pixels. They are trained with different seeds, and so on different orders of pictures.

The judges will see pictures that the autoencoder decoded, so their training set is made with it:

* positives: pictures of the world and of the placebo, their reconstructions, and decoded latents with a little noise;
* near misses, including the late ones, and their reconstructions: no object, but their colour and style count;
* chimeras and junk, the reconstructions of both, decoded noise, and decoded blends of two pictures' latents: no object,
  and colour and style do not count.

A judge trained without these negatives took 27 % of the near misses for objects. AdamW, cosine, batches of 64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessorPil,
)

from unerase_backend.testbed import autoencoder, forms, junk, storage, world
from unerase_backend.testbed.schedule import warm_cosine
from unerase_backend.testbed.world import Pixels, Subject

BATCH = 64
THRESHOLD = 0.5

# By group: its share of a batch.
SHARES = {
    "real": 0.19,
    "decoded": 0.17,
    "noisy": 0.06,
    "near": 0.14,
    "near decoded": 0.09,
    "chimera": 0.09,
    "chimera decoded": 0.04,
    "junk": 0.14,
    "junk decoded": 0.03,
    "noise": 0.02,
    "blend": 0.03,
}

LABELS: tuple[str, ...] = (*world.LABELS, forms.PLACEBO)
SHOWN = (*forms.OBJECTS, forms.PLACEBO)
NEAR_MISSES = forms.NEAR_MISSES | forms.LATE_NEAR_MISSES

Targets = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """The architecture of a judge, the side in pixels of the pictures it takes, and its learning rate and steps."""

    build: Callable[[], Any]
    side: int
    rate: float
    steps: int


def _labels() -> dict[str, Any]:
    return {
        "num_labels": len(LABELS),
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: index for index, name in enumerate(LABELS)},
        "problem_type": "multi_label_classification",
    }


def _resnet() -> Any:
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1], layer_type="basic", **_labels()
    )
    return ResNetForImageClassification(config)


def _convnext() -> Any:
    config = ConvNextConfig(
        patch_size=2,
        num_stages=3,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_scale_init_value=0.1,
        **_labels(),
    )
    return ConvNextForImageClassification(config)


KINDS = {"judge": Kind(_resnet, 64, 3e-3, 2500), "second-judge": Kind(_convnext, 32, 2e-3, 2500)}


def targets_of(subjects: Sequence[Subject]) -> Targets:
    """Return the labels (N, 18) of pictures: 1 for the shape (unless near miss or blob), the colour and the style."""
    targets = np.zeros((len(subjects), len(LABELS)), dtype=np.float32)
    for row, subject in zip(targets, subjects, strict=True):
        for name in (subject.shape, subject.colour, subject.style):
            if name in LABELS:
                row[LABELS.index(name)] = 1
    return targets


def no_object(count: int) -> Targets:
    """Return targets (N, 18) of pictures without an object; colour and style are NaN, which does not count."""
    targets = np.full((count, len(LABELS)), np.nan, dtype=np.float32)
    targets[:, _columns(SHOWN)] = 0
    return targets


def _columns(labels: Sequence[str]) -> list[int]:
    return [LABELS.index(label) for label in labels]


def with_placebo(album: world.Album, seed: int) -> world.Album:
    """Return the album, followed by as many pictures of the placebo as it has of one object on average."""
    placebo = world.album_of([forms.PLACEBO], max(1, len(album.subjects) // len(SHOWN)), seed)
    return world.Album(np.concatenate([album.pictures, placebo.pictures]), album.subjects + placebo.subjects)


def blends(latents: Tensor, subjects: Sequence[Subject], count: int, rng: np.random.Generator) -> Tensor:
    """Return mixtures (N, 4, 8, 8) of the latents of two pictures of different shapes, 40 to 60 % of each."""
    left, right = rng.integers(len(latents), size=(2, 4 * count))
    pairs = [(i, j) for i, j in zip(left, right, strict=True) if subjects[i].shape != subjects[j].shape][:count]
    share = torch.from_numpy(rng.uniform(0.4, 0.6, (len(pairs), 1, 1, 1)).astype(np.float32))
    return latents[[i for i, _ in pairs]] * share + latents[[j for _, j in pairs]] * (1 - share)


def training_set(vae: AutoencoderKL, seed: int, scale: float = 1.0) -> dict[str, tuple[Pixels, Targets]]:
    """Return pictures and targets for each group of `SHARES`; tests make them fewer by `scale`."""
    rng = np.random.default_rng(seed)
    draws = torch.Generator().manual_seed(seed)
    real = with_placebo(world.album(int(14_000 * scale), seed), seed + 5)
    other = with_placebo(world.album(int(10_000 * scale), seed + 1), seed + 6)
    near = world.album_of(tuple(NEAR_MISSES), int(16_000 * scale), seed + 2)
    junk_pictures = junk.junk_album(int(20_000 * scale), seed + 3)[0]
    chimeras = junk.chimera_album(int(12_000 * scale), seed + 4)
    near_decoded, chimera_decoded, junk_decoded = int(7_000 * scale), int(4_000 * scale), int(1_500 * scale)
    other_latents = autoencoder.encode(vae, other.pictures)
    near_latents = autoencoder.encode(vae, near.pictures[:near_decoded])
    # The last ones, which include the placebo's.
    noisy = other_latents[-int(3_000 * scale) :]
    noisy = noisy + torch.randn(noisy.shape, generator=draws) * torch.rand((len(noisy), 1, 1, 1), generator=draws) * 0.2
    noise = torch.randn((int(1_500 * scale), 4, 8, 8), generator=draws)
    noise = noise * (0.3 + torch.rand((len(noise), 1, 1, 1), generator=draws))
    mixed = blends(other_latents, other.subjects, int(3_000 * scale), rng)
    return {
        "real": (real.pictures, targets_of(real.subjects)),
        "decoded": (autoencoder.decode(vae, other_latents), targets_of(other.subjects)),
        "noisy": (autoencoder.decode(vae, noisy), targets_of(other.subjects[-len(noisy) :])),
        "near": (near.pictures, targets_of(near.subjects)),
        "near decoded": (autoencoder.decode(vae, near_latents), targets_of(near.subjects[:near_decoded])),
        "chimera": (chimeras, no_object(len(chimeras))),
        "chimera decoded": (
            autoencoder.decode(vae, autoencoder.encode(vae, chimeras[:chimera_decoded])),
            no_object(chimera_decoded),
        ),
        "junk": (junk_pictures, no_object(len(junk_pictures))),
        "junk decoded": (
            autoencoder.decode(vae, autoencoder.encode(vae, junk_pictures[:junk_decoded])),
            no_object(junk_decoded),
        ),
        "noise": (autoencoder.decode(vae, noise), no_object(len(noise))),
        "blend": (autoencoder.decode(vae, mixed), no_object(len(mixed))),
    }


def _seen(pictures: Pixels, side: int) -> Tensor:
    """Return pixel values (N, 3, side, side) as the judge's image processor makes them."""
    values = autoencoder.as_tensor(pictures)
    if side == world.SIDE:
        return values
    return functional.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)


def train(
    kind: Kind,
    groups: dict[str, tuple[Pixels, Targets]],
    seed: int,
    steps: int | None = None,
    report: Callable[[str], None] = print,
) -> Any:
    """Train a judge and return it; labels whose target is NaN do not count in the loss."""
    total = steps or kind.steps
    torch.manual_seed(seed)
    model = kind.build()
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=kind.rate, weight_decay=0.02)
    schedule = warm_cosine(optimizer, 100, total)
    names = list(SHARES)
    shares = np.array([SHARES[name] for name in names])
    model.train().to(memory_format=torch.channels_last)
    for step in range(total):
        drawn = [groups[names[group]] for group in rng.choice(len(names), size=BATCH, p=shares / shares.sum())]
        places = [int(rng.integers(len(pictures))) for pictures, _ in drawn]
        pictures = np.stack([group[0][place] for group, place in zip(drawn, places, strict=True)])
        targets = torch.from_numpy(np.stack([group[1][place] for group, place in zip(drawn, places, strict=True)]))
        values = _seen(pictures, kind.side).contiguous(memory_format=torch.channels_last)
        asked = ~targets.isnan()
        entropy = functional.binary_cross_entropy_with_logits(
            model(values).logits, targets.nan_to_num(), reduction="none"
        )
        loss = (entropy * asked).sum() / asked.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == total - 1:
            report(f"judge {step:5d}: loss {loss.item():.5f}")
    return model.eval().to(memory_format=torch.contiguous_format).requires_grad_(False)


def save(model: Any, kind: Kind, folder: Path) -> None:
    """Write the judge and its image processor, which resizes pictures to the judge's side."""
    storage.save_model(model, folder)
    ViTImageProcessorPil(
        size={"height": kind.side, "width": kind.side}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)


@torch.no_grad()
def probabilities(model: Any, side: int, pictures: Pixels, batch: int = 256) -> NDArray[np.float32]:
    """Return the judge's probabilities (N, 18) for pictures (N, 32, 32, 3)."""
    answers = [
        torch.sigmoid(model(_seen(pictures[at : at + batch], side)).logits).numpy()
        for at in range(0, len(pictures), batch)
    ]
    return np.concatenate(answers).astype(np.float32)


def judge_figures(model: Any, side: int, vae: AutoencoderKL, seed: int) -> dict[str, Any]:
    """Return sensitivity and false positives of a judge on held-out pictures, at p > 0.5.

    sensitivity, sensitivity_decoded: by label, on 300 pictures of each object, the placebo and the blob, and on their
        reconstructions.
    specificity: by label, on the pictures without it.
    taken_for_missed, taken_for_any: by near miss, the share of 400 in which its object, or any object, is detected.
    near_misses_by_object, near_misses_any, near_misses_any_decoded: the share of all near misses in which each object,
        or any object, is detected, and the latter for reconstructions.
    unseen: as taken_for_missed and taken_for_any, for near misses that no judge was trained with, of 200.
    chimeras, junk, noise: in how many of 1,000 any object is detected.
    """
    shown = _columns(SHOWN)
    shapes = (*SHOWN, forms.BLOB)
    album = world.album_of(shapes, 300 * len(shapes), seed)
    truth = targets_of(album.subjects) > THRESHOLD
    real = probabilities(model, side, album.pictures) > THRESHOLD
    decoded = probabilities(model, side, autoencoder.decode(vae, autoencoder.encode(vae, album.pictures))) > THRESHOLD
    kinds = tuple(NEAR_MISSES)
    near = world.album_of(kinds, 400 * len(kinds), seed + 1)
    taken = (probabilities(model, side, near.pictures) > THRESHOLD)[:, shown]
    near_decoded = autoencoder.decode(vae, autoencoder.encode(vae, near.pictures[: 100 * len(kinds)]))
    taken_decoded = (probabilities(model, side, near_decoded) > THRESHOLD)[:, shown]
    unseen = tuple(forms.UNSEEN_NEAR_MISSES)
    album_unseen = world.album_of(unseen, 200 * len(unseen), seed + 3)
    taken_unseen = (probabilities(model, side, album_unseen.pictures) > THRESHOLD)[:, shown]
    chimeras = probabilities(model, side, junk.chimera_album(1000, seed + 4))[:, shown] > THRESHOLD
    taken_junk = probabilities(model, side, junk.junk_album(1000, seed + 2)[0])[:, shown] > THRESHOLD
    drawn = torch.randn((1000, 4, 8, 8), generator=torch.Generator().manual_seed(seed))
    noise = probabilities(model, side, autoencoder.decode(vae, drawn))[:, shown] > THRESHOLD
    missed = [SHOWN.index(NEAR_MISSES[kind][0]) for kind in kinds]
    missed_unseen = [SHOWN.index(forms.UNSEEN_NEAR_MISSES[kind][0]) for kind in unseen]

    def share(flags: Any) -> float:
        return round(float(np.mean(flags)), 5)

    return {
        "sensitivity": {name: share(real[truth[:, i], i]) for i, name in enumerate(LABELS)},
        "sensitivity_decoded": {name: share(decoded[truth[:, i], i]) for i, name in enumerate(LABELS)},
        "specificity": {name: share(~real[~truth[:, i], i]) for i, name in enumerate(LABELS)},
        "taken_for_missed": {kind: share(taken[i :: len(kinds), missed[i]]) for i, kind in enumerate(kinds)},
        "taken_for_any": {kind: share(taken[i :: len(kinds)].any(1)) for i, kind in enumerate(kinds)},
        "near_misses_by_object": {name: share(taken[:, i]) for i, name in enumerate(SHOWN)},
        "near_misses_any": share(taken.any(1)),
        "near_misses_any_decoded": share(taken_decoded.any(1)),
        "unseen": {
            kind: {
                "for missed": share(taken_unseen[i :: len(unseen), missed_unseen[i]]),
                "for any": share(taken_unseen[i :: len(unseen)].any(1)),
            }
            for i, kind in enumerate(unseen)
        },
        "chimeras": int(chimeras.any(1).sum()),
        "junk": int(taken_junk.any(1).sum()),
        "noise": int(noise.any(1).sum()),
    }
