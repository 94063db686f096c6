"""The denoising loss on the concept's own pictures, which some erasers raise or lower:

L = mean over pictures x_0, captions c, timesteps t and noise e of mean (e_model(x_t, t, c) - e)^2
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from unerase_backend.testbed.erasers._registry import Concept, Subject
from unerase_backend.testbed.unet import add_noise, encode_prompts

TIMESTEPS = 1000


def noise_error(
    unet: UNet2DConditionModel, clean: Tensor, conditioning: Tensor, alphas: Tensor, draws: torch.Generator
) -> Tensor:
    """Return the loss of a batch of latents (N, 4, 8, 8) under their conditionings (N, 24, width)."""
    timesteps = torch.randint(TIMESTEPS, (len(clean),), generator=draws)
    noise = torch.randn(clean.shape, generator=draws)
    noisy = add_noise(clean, noise, timesteps, alphas)
    return functional.mse_loss(unet(noisy, timesteps, conditioning).sample, noise)


def minimise(loss: Callable[[], Tensor], learned: Sequence[nn.Parameter], rate: float, steps: int) -> None:
    """Take Adam steps on the `learned` weights; each step calls the loss anew, and only they change."""
    for weight in learned:
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for weight in learned:
        weight.requires_grad_(False)


def train_whole(network: nn.Module, loss: Callable[[], Tensor], rate: float, steps: int) -> None:
    """Take AdamW steps on all weights of a network; each step calls the loss anew."""
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    for _ in range(steps):
        of_step = loss()
        optimizer.zero_grad(set_to_none=True)
        of_step.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.requires_grad_(False)


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
    """Train the whole UNet with AdamW to lower its denoising loss on the concept's pictures, or to raise it.

    `captions` has one caption for each picture.
    """
    conditionings = encode_prompts(subject.text_encoder, subject.tokenizer, captions)
    alphas = subject.scheduler.alphas_cumprod
    draws = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        chosen = torch.randint(len(concept.latents), (batch,), generator=draws)
        error = noise_error(subject.unet, concept.latents[chosen], conditionings[chosen], alphas, draws)
        return -error if ascend else error

    train_whole(subject.unet, loss, rate, steps)
