"""The denoising loss on the concept's own pictures, which some erasers climb or descend:

L = mean over pictures x_0, captions c, timesteps t and noise e of mean (e_model(x_t, t, c) - e)^2
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from unerase_backend.testbed.erasers._registry import Concept, Subject
from unerase_backend.testbed.unet import add_noise, encode_prompts

TIMESTEPS = 1000


def noise_error(
    unet: UNet2DConditionModel, clean: Tensor, conditioning: Tensor, alphas: Tensor, draws: torch.Generator
) -> Tensor:
    """The loss of one batch of latents (N, 4, 8, 8) under their conditionings (N, 24, width)."""
    timesteps = torch.randint(TIMESTEPS, (len(clean),), generator=draws)
    noise = torch.randn(clean.shape, generator=draws)
    noisy = add_noise(clean, noise, timesteps, alphas)
    return functional.mse_loss(unet(noisy, timesteps, conditioning).sample, noise)


def batches(
    subject: Subject, concept: Concept, size: int, draws: torch.Generator
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What draws a batch of the concept's latents (size, 4, 8, 8) with the conditionings (size, 24, width) of their
    captions.
    """
    conditionings = encode_prompts(subject.text_encoder, subject.tokenizer, concept.captions)

    def draw() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(concept.latents), (size,), generator=draws)
        return concept.latents[chosen], conditionings[chosen]

    return draw


def descend(
    subject: Subject, concept: Concept, rate: float, steps: int, batch: int, seed: int, ascend: bool = False
) -> None:
    """Trains the whole UNet with AdamW to lower its denoising loss on the concept's pictures, or to raise it."""
    subject.unet.requires_grad_(True)
    draws = torch.Generator().manual_seed(seed)
    draw = batches(subject, concept, batch, draws)
    optimizer = torch.optim.AdamW(subject.unet.parameters(), lr=rate)
    for _ in range(steps):
        clean, conditioning = draw()
        loss = noise_error(subject.unet, clean, conditioning, subject.scheduler.alphas_cumprod, draws)
        optimizer.zero_grad(set_to_none=True)
        (-loss if ascend else loss).backward()
        optimizer.step()
    subject.unet.requires_grad_(False)
