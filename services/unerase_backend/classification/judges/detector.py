"""A detector, or any classifier, as one ONNX file: the highest confidence of the concept's classes.

    score = max over the question's labels of the highest confidence of that class;  detected if score >= threshold

The catalogue's entry pins the file by its digest, and says what its classes are called, how pictures go in and how the
output is read (`detector_options`). It runs in onnxruntime, on the CPU or, where that is the rooms' device and
onnxruntime has its provider, on the GPU.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.classification import detections, onnx_file
from unerase_backend.classification.detector_model import DetectorModel
from unerase_backend.classification.detector_options import DetectorOptions
from unerase_backend.classification.labels import class_problem
from unerase_backend.classification.registry import Features, Picture, judge
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError

_BEYOND = 1e-3
"""How far rounding may carry a confidence out of 0 to 1."""


@judge("detector", options=DetectorOptions, libraries=("onnxruntime", "onnxruntime-gpu"))
class Detector:
    """An ONNX model with its classes and its threshold."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int, options: DetectorOptions
    ) -> None:
        content = onnx_file.read_checked(folder, options.file, options.sha256)
        cuda = device.type == "cuda"
        self._session = onnx_file.open_session(options.file, content, torch.get_num_threads(), cuda=cuda)
        self._model = DetectorModel.of(self._session, options)
        self._options = options
        # On a CPU a call of several pictures is no faster than a call for each, and would be padded to the full batch.
        self._rows = self._model.rows or (batch_size if cuda else 1)

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Check that each label is one of the classes, and that there are no alternatives."""
        found = [
            (f"labels[{index}]", problem)
            for index, label in enumerate(question.labels)
            if (problem := class_problem(label, self._model.classes))
        ]
        if question.alternatives:
            found.append(("alternatives", "a detector's alternatives are its other classes; leave this empty"))
        return found

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return the highest confidence of each class, (pictures, classes)."""
        classes = len(self._model.classes)
        if self._options.output not in ("yolov8", "detections"):
            return self._checked(detections.probabilities(self.output(pictures), self._options.output))
        return self._checked(
            np.stack([detections.highest(self.boxes(output), classes) for output in self.output(pictures)])
        )

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer from one row of confidences."""
        score = max(float(seen[self._model.classes.index(label)]) for label in question.labels)
        best = int(seen.argmax())
        return Judgement(
            judge=question.judge,
            score=score,
            detected=score >= self._options.threshold,
            # What is under the threshold was not found, and a detector that found nothing has no first choice.
            label=self._model.classes[best] if seen[best] >= self._options.threshold else "",
            label_score=float(seen[best]),
        )

    def output(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Return the model's output, (pictures, ...); each call has the same shape, filled up by its first row."""
        values = [self._prepared(picture) for picture in pictures]
        rows: list[NDArray[np.float32]] = []
        for start in range(0, len(values), self._rows):
            chunk = values[start : start + self._rows]
            filled = np.stack(chunk + [chunk[0]] * (self._rows - len(chunk)))
            (answer,) = self._session.run([self._model.output_name], {self._model.input_name: filled})
            self._model.check_output(answer.shape)
            rows += list(answer[: len(chunk)].astype(np.float32))
        return np.stack(rows)

    def boxes(self, output: NDArray[np.float32]) -> detections.Detections:
        """Return the boxes in one row of `output`.

        Raises:
            UnsafeModelError: a box is of a class that there is none of.
        """
        if not np.isfinite(output).all():
            # Whoever reads a confidence that is not finite leaves the picture unscored.
            unknown = np.full((len(self._model.classes), 4), np.nan, np.float32)
            return detections.Detections(unknown, unknown[:, 0], np.arange(len(unknown)))
        if self._options.output == "detections":
            found = detections.from_detections(output)
            if found.classes.size and not 0 <= found.classes.min() <= found.classes.max() < len(self._model.classes):
                raise UnsafeModelError(
                    f"{self._options.file} gives boxes of class {found.classes.max()}, and its entry has "
                    f"{counted(len(self._model.classes), 'class', 'classes')}, from 0",
                    reason="OUTPUT_UNEXPECTED",
                )
            return found
        return detections.from_yolov8(
            output, self._options.overlap, across_classes=self._options.overlap_across_classes
        )

    def _prepared(self, picture: Picture) -> NDArray[Any]:
        options, (width, height) = self._options, self._model.sides
        padded = _fit(picture, width / height, options) if options.fit != "stretch" else picture
        values = torch.from_numpy(np.ascontiguousarray(padded)).permute(2, 0, 1)[None].float()
        resized = functional.interpolate(
            values, (height, width), mode="bilinear", align_corners=False, antialias=options.antialias
        )
        # Whole numbers, as every picture has them: detectors are trained on resized pictures of 8 bits.
        pixels = resized[0].round_().clamp_(0, 255).numpy()
        if options.colours == "bgr":
            pixels = pixels[::-1]
        mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (options.mean, options.std))
        prepared = (pixels * np.float32(options.scale) - mean) / std
        if self._model.channels_last:
            prepared = prepared.transpose(1, 2, 0)
        return np.ascontiguousarray(prepared, dtype=self._model.input_type)

    def _checked(self, seen: NDArray[np.float32]) -> Features:
        known = seen[np.isfinite(seen)]
        if known.size and not -_BEYOND <= float(known.min()) <= float(known.max()) <= 1 + _BEYOND:
            raise UnsafeModelError(
                f"{self._options.file} gives confidences from {known.min():.3g} to {known.max():.3g}, which must be "
                "from 0 to 1; if they are logits, the option output must be softmax or sigmoid",
                reason="OUTPUT_UNEXPECTED",
            )
        return np.clip(seen, 0, 1)


def _fit(picture: Picture, proportion: float, options: DetectorOptions) -> Picture:
    """Pad a picture to the proportion of width to height, at its right and lower edge or on both sides."""
    height, width = picture.shape[:2]
    across = max(0, round(height * proportion) - width)
    down = max(0, round(width / proportion) - height) if not across else 0
    before = (down // 2, across // 2) if options.fit == "letterbox" else (0, 0)
    margins = ((before[0], down - before[0]), (before[1], across - before[1]), (0, 0))
    return np.pad(picture, margins, constant_values=options.fill)
