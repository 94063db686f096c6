"""The flow's training loss on the concept's own pictures, which some erasers raise or lower (`flow/transformer.py`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unerase_backend.testbed.erasers._denoising import train_whole
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject
from unerase_backend.testbed.flow.transformer import velocity_error


def descend(
    subject: Subject,
    concept: Concept,
    captions: Sequence[str],
    rate: float,
    steps: int,
    batch: int,
    seed: int,
    ascend: bool = False,
) -> None:
    """Train the whole transformer with AdamW to lower its loss on the concept's pictures, or to raise it.

    `captions` has one caption for each picture.
    """
    encodings = subject.encode(captions)
    draws = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        chosen = torch.randint(len(concept.latents), (batch,), generator=draws)
        error = velocity_error(subject.transformer, concept.latents[chosen], encodings[chosen], draws)
        return -error if ascend else error

    train_whole(subject.transformer, loss, rate, steps)
