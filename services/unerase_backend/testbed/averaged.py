"""The training that UNet and flow transformer have in common: AdamW with an average of the weights.

AdamW (0.9, 0.99), weight decay 0.01, warm-up, then cosine; gradients clipped at norm 1; the exponential moving average
of the weights is what is kept. One caption in ten is empty, which is what classifier-free guidance (Ho and Salimans
2022) needs; three in ten have filler words, so that pictures stay intact when a prompt holds meaningless tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unerase_backend.testbed import language
from unerase_backend.testbed.schedule import warm_cosine
from unerase_backend.testbed.world import Subject

WARM_UP = 100
AVERAGE = 0.998
EMPTY_SHARE = 0.1
FILLER_SHARE = 0.3

Loss = Callable[[NDArray[np.int64], list[str]], Tensor]
"""Returns the loss of a batch: the pictures chosen, (batch,), and a caption for each."""


@dataclass(frozen=True)
class Training:
    """How long and how fast a network is trained; `name` stands in its reports."""

    name: str
    steps: int
    batch: int
    rate: float
    seed: int


def train_averaged(
    network: nn.Module, subjects: Sequence[Subject], loss_of: Loss, training: Training, report: Callable[[str], None]
) -> None:
    """Train a network in place and give it the averaged weights; every step draws pictures and new captions."""
    averaged = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    rng = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = warm_cosine(optimizer, WARM_UP, training.steps)
    network.train()
    running = 0.0
    for step in range(training.steps):
        chosen = rng.integers(len(subjects), size=training.batch)
        captions = [
            "" if rng.random() < EMPTY_SHARE else language.caption(subjects[i], rng, bool(rng.random() < FILLER_SHARE))
            for i in chosen
        ]
        loss = loss_of(chosen, captions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                averaged[name].lerp_(tensor, 1 - decay)
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if step % 200 == 0 or step == training.steps - 1:
            report(f"{training.name} {step:5d}: loss {running:.4f}")
    network.load_state_dict(averaged)
