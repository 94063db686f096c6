"""What a detector's output says, in numpy: confidences by class, after overlapping boxes were dropped."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST = 0.01
"""Boxes with less confidence are left out: a class without a box has the confidence 0."""

Array = NDArray[np.float32]


class Detections(NamedTuple):
    """The boxes that remain, the most confident first."""

    boxes: Array
    """(boxes, 4): centre x, centre y, width and height, in pixels of the model's input."""
    confidences: Array
    classes: NDArray[np.int64]


def from_yolov8(output: Array, overlap: float, *, across_classes: bool) -> Detections:
    """Return the boxes of one picture's output, (4 + classes, boxes), each with its most confident class.

    Of boxes whose intersection is more than the share `overlap` of their union, only the most confident one remains
    (greedy non-maximum suppression), within each class or `across_classes`. A box is dropped only by more confident
    ones, so the least confidence that is looked at changes nothing above it.
    """
    boxes, scores = output[:4].T, output[4:].T
    classes = scores.argmax(axis=1)
    confidences = scores[np.arange(len(scores)), classes]
    order = np.argsort(-confidences, kind="stable")
    order = order[confidences[order] >= LEAST]
    boxes, confidences, classes = boxes[order], confidences[order], classes[order]
    remaining = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if remaining[index]:
            dropped = _shares(boxes[index], boxes[index + 1 :]) > overlap
            if not across_classes:
                dropped &= classes[index + 1 :] == classes[index]
            remaining[index + 1 :] &= ~dropped
    return Detections(boxes[remaining], confidences[remaining], classes[remaining])


def from_detections(output: Array) -> Detections:
    """Return the boxes of one picture's output, (boxes, 6): corners x1, y1, x2, y2, confidence and class."""
    order = np.argsort(-output[:, 4], kind="stable")
    output = output[order][output[order, 4] >= LEAST]
    low, high = output[:, :2], output[:, 2:4]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1)
    return Detections(boxes, output[:, 4], output[:, 5].round().astype(np.int64))


def highest(detections: Detections, classes: int) -> Array:
    """Return the highest confidence of each class, (classes,); 0 where there is no box."""
    best = np.zeros(classes, np.float32)
    # A confidence that is not finite stays so: the picture cannot be judged.
    with np.errstate(invalid="ignore"):
        np.maximum.at(best, detections.classes, detections.confidences)
    return best


def probabilities(logits: Array, kind: str) -> Array:
    """Return a classifier's output, (pictures, classes), as probabilities; `kind` as in the option `output`."""
    if kind == "softmax":
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)
    if kind == "sigmoid":
        # exp gets only negative numbers, so it cannot overflow.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1 / (1 + small), small / (1 + small)), np.float32)
    return logits


def _shares(box: Array, others: Array) -> Array:
    """Return the intersection over union of one box with each of the others."""
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    lows, highs = others[:, :2] - others[:, 2:] / 2, others[:, :2] + others[:, 2:] / 2
    sides = np.clip(np.minimum(high, highs) - np.maximum(low, lows), 0, None)
    common = sides.prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - common
    return np.asarray(common / np.maximum(union, np.finfo(np.float32).tiny), np.float32)
