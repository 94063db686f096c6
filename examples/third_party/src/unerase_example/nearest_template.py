"""Nearest template: a picture is what its silhouette is most like, by the cosine with each label's mean silhouette.

    silhouette(picture) = how far each pixel is from the background's colour, moved so that its centre of mass is the
                          picture's centre, and scaled to length 1
    p = softmax(SHARPNESS * cosines);  detected if the most like label is one of the concept's

A judge's folder holds `templates.safetensors`, (labels, pixels), and `labels.json`; `write_templates` makes it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.classification.registry import Features, Picture, judge

SHARPNESS = 40.0


@judge("nearest-template")
class NearestTemplate:
    """A judge that learns from a few dozen pictures of each label, and computes on the CPU."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self._templates = load_file(folder / "templates.safetensors")["templates"]
        self._labels: list[str] = json.loads((folder / "labels.json").read_text())

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Each label must be one of the templates'."""
        return [
            (f"labels[{index}]", f"there is no template {label!r}")
            for index, label in enumerate(question.labels)
            if label not in self._labels
        ]

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return cosines, (pictures, labels); picture by picture, so that a row's bits depend on nothing else."""
        return np.stack([self._templates @ silhouette(picture) for picture in pictures])

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer from one row of cosines."""
        odds = np.exp(SHARPNESS * (seen.astype(np.float64) - seen.max()))
        probabilities = odds / odds.sum()
        best = int(probabilities.argmax())
        return Judgement(
            judge=question.judge,
            score=min(1.0, sum(float(probabilities[self._labels.index(label)]) for label in set(question.labels))),
            detected=self._labels[best] in question.labels,
            label=self._labels[best],
            label_score=float(probabilities[best]),
        )


def silhouette(picture: Picture) -> NDArray[np.float32]:
    """Return the silhouette of a picture as a vector of length 1; zeros where nothing stands out."""
    pixels = picture.astype(np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.abs(pixels - np.median(border, axis=0)).max(axis=2)
    mass = np.minimum(2 * distance, distance.max())
    rows, columns = np.indices(mass.shape)
    total = max(float(mass.sum()), 1e-6)
    centre = (float((mass * rows).sum()) / total, float((mass * columns).sum()) / total)
    shift = [round((side - 1) / 2 - at) for side, at in zip(mass.shape, centre, strict=True)]
    vector = np.roll(mass, shift, axis=(0, 1)).ravel()
    unit: NDArray[np.float32] = (vector / max(float(np.linalg.norm(vector)), 1e-6)).astype(np.float32)
    return unit


def write_templates(folder: Path, pictures: Mapping[str, Sequence[Picture]]) -> None:
    """Write a judge's folder from pictures of each label."""
    means = np.stack([np.mean([silhouette(picture) for picture in shown], axis=0) for shown in pictures.values()])
    folder.mkdir(parents=True)
    save_file({"templates": means / np.linalg.norm(means, axis=1, keepdims=True)}, folder / "templates.safetensors")
    (folder / "labels.json").write_text(json.dumps(list(pictures)))
