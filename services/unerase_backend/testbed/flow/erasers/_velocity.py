"""The flow's training loss on the concept's own pictures, which some erasers raise or lower (`flow/transformer.py`)."""

from collections.abc import Sequence

import torch

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
    subject.transformer.requires_grad_(True)
    encodings = subject.encode(captions)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(subject.transformer.parameters(), lr=rate)
    for _ in range(steps):
        chosen = torch.randint(len(concept.latents), (batch,), generator=draws)
        loss = velocity_error(subject.transformer, concept.latents[chosen], encodings[chosen], draws)
        optimizer.zero_grad(set_to_none=True)
        (-loss if ascend else loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    subject.transformer.requires_grad_(False)
