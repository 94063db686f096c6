"""Any image classifier of transformers: the probability of the concept's labels among all its labels.

The model's configuration says which question it was trained to answer:

    multi_label_classification:  p(label) = sigmoid(logit);  the concept's score is the greatest p, detected if over 0.5
    otherwise:                   p = softmax(logits);  the score is the sum of the concept's p, detected if the most
                                 probable of all labels is one of the concept's

`labels` says which texts mean which label.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageClassification

from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.types_pb2 import Judgement
from unerase_backend.classification.batches import Batches
from unerase_backend.classification.labels import label_problem, label_table
from unerase_backend.classification.pretrained import load_image_processor, load_model
from unerase_backend.classification.records import MULTI_LABEL_THRESHOLD
from unerase_backend.classification.registry import Features, Picture, judge


@judge("classifier")
class Classifier:
    """An image classifier in the layout of microsoft/resnet-50."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        model = load_model(AutoModelForImageClassification, folder, device, dtype)
        self._logits = Batches(_Logits(model), device, dtype, batch_size)
        self._process = load_image_processor(folder)
        config = model.config
        self._multi_label: bool = config.problem_type == "multi_label_classification"
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        self._table = label_table(self._labels)

    def problems(self, question: Question) -> list[tuple[str, str]]:
        """Check that each label is one of the model's and means one class, and that there are no alternatives."""
        found = [
            (f"labels[{index}]", problem)
            for index, label in enumerate(question.labels)
            if (problem := label_problem(label, self._labels, self._table))
        ]
        if question.alternatives:
            found.append(("alternatives", "a classifier's alternatives are its other labels; leave this empty"))
        return found

    def look(self, pictures: Sequence[Picture]) -> Features:
        """Return logits, (pictures, labels)."""

        return self._logits([self._process(picture) for picture in pictures]).numpy()

    def answer(self, seen: Features, question: Question) -> Judgement:
        """Answer from one row of logits."""
        probabilities = (_sigmoid if self._multi_label else _softmax)(seen.astype(np.float64))
        classes = sorted({self._table[label][0] for label in question.labels})
        of_concept = probabilities[classes]
        best = int(probabilities.argmax())
        score = float(of_concept.max()) if self._multi_label else min(1.0, float(of_concept.sum()))
        return Judgement(
            judge=question.judge,
            score=score,
            detected=score > MULTI_LABEL_THRESHOLD if self._multi_label else best in classes,
            label=self._labels[best],
            label_score=float(probabilities[best]),
        )


class _Logits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    odds = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = odds / odds.sum()
    return probabilities


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp gets only negative numbers, so it cannot overflow.
    small = np.exp(-np.abs(logits))
    probabilities: NDArray[np.float64] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities
