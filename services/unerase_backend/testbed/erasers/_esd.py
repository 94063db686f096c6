"""The shared parts of the variants of Erased Stable Diffusion and of methods built on it (Gandikota, Materzynska,
Fiotto-Kaufman, Bau, ICCV 2023, arXiv 2303.07345, equation 7).

The edited model learns to predict, under a conditioning c, a target computed from a frozen model's predictions:

    loss = mean (e(x_t, c) - target(x_t, t, c))^2
    target = e_ref(x_t, empty) - eta * (e_ref(x_t, c) - e_ref(x_t, empty))

The edited model itself makes x_t: a DDIM run under c with guidance, stopped at a random step. The published
settings for Stable Diffusion are eta 1, guidance 3, 50 steps, Adam at a rate of 1e-5, 1,000 iterations of one sample;
here 20 steps and batches of eight, and each variant has its own rate and iterations. The prompts name only the
concept: prompts that also name a colour drive the model away from the colour.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from unerase_backend.testbed.erasers._registry import Concept, Subject
from unerase_backend.testbed.unet import encode_prompts

BATCH = 8
NEGATIVE_GUIDANCE = 1.0
SAMPLING_GUIDANCE = 3.0
SAMPLING_STEPS = 20
SEED = 7

Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of latents (N, 4, 8, 8), a timestep and a conditioning (N, 24, width): what the edited model learns to
predict, or a further loss."""


def negative_target(empty: Tensor, conditional: Tensor, eta: float) -> Tensor:
    """Return the reference's prediction guided away from the prompt: `empty - eta * (conditional - empty)`."""
    return empty - eta * (conditional - empty)


def away_from(subject: Subject, reference: UNet2DConditionModel) -> Target:
    """Return the target of equation 7 with eta 1: the frozen reference, guided away from the conditioning."""
    empty = encode_prompts(subject.text_encoder, subject.tokenizer, [""])

    def target(noisy: Tensor, timestep: Tensor, conditioning: Tensor) -> Tensor:
        return negative_target(
            reference(noisy, timestep, empty.expand(len(noisy), -1, -1)).sample,
            reference(noisy, timestep, conditioning).sample,
            NEGATIVE_GUIDANCE,
        )

    return target


def frozen_copy(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the UNet that is not trained."""
    copied: UNet2DConditionModel = copy.deepcopy(unet).eval().requires_grad_(False)
    return copied


def prompts_of(subject: Subject, concept: Concept) -> Tensor:
    """Return the conditionings (P, 24, width) of every plain template with every name of the concept."""
    prompts = [template.format(name) for template in concept.plain_templates for name in concept.names]
    return encode_prompts(subject.text_encoder, subject.tokenizer, prompts)


@torch.no_grad()
def partial_sample(subject: Subject, conditioning: Tensor, empty: Tensor, latents: Tensor, stop: int) -> Tensor:
    """Return latents (N, 4, 8, 8) after `stop` of the scheduler's steps, guided by a conditioning (N, 24, width)."""
    both = torch.cat([empty, conditioning])
    for timestep in subject.scheduler.timesteps[:stop]:
        free, guided = subject.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        noise = free + SAMPLING_GUIDANCE * (guided - free)
        latents = subject.scheduler.step(noise, timestep, latents).prev_sample
    return latents


def teach(
    subject: Subject,
    learned: Sequence[nn.Parameter],
    conditionings: Tensor,
    target: Target,
    rate: float,
    iterations: int,
    seed: int = SEED,
    sampling_steps: int = SAMPLING_STEPS,
    drift: Target | None = None,
) -> None:
    """Train the `learned` weights of the UNet to predict the target under the conditionings (P, 24, width).

    `drift`, if given, returns a further loss.
    """
    for weight in learned:
        weight.requires_grad_(True)
    empty = encode_prompts(subject.text_encoder, subject.tokenizer, [""]).expand(BATCH, -1, -1)
    subject.scheduler.set_timesteps(sampling_steps)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(learned, lr=rate)
    for _ in range(iterations):
        conditioning = conditionings[torch.randint(len(conditionings), (BATCH,), generator=draws)]
        stop = int(torch.randint(sampling_steps, (), generator=draws))
        latents = torch.randn((BATCH, 4, 8, 8), generator=draws)
        noisy = partial_sample(subject, conditioning, empty, latents, stop)
        timestep = subject.scheduler.timesteps[stop]
        with torch.no_grad():
            wanted = target(noisy, timestep, conditioning)
        loss = functional.mse_loss(subject.unet(noisy, timestep, conditioning).sample, wanted)
        if drift is not None:
            loss = loss + drift(noisy, timestep, conditioning)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    subject.unet.requires_grad_(False)
