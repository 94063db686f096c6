"""ESD-x: Erased Stable Diffusion, cross-attention variant (Gandikota, Materzynska, Fiotto-Kaufman, Bau, ICCV 2023,
arXiv 2303.07345, equation 7).

The edited model's prediction under the concept's prompt c is taught the frozen reference's, guided away from c:

    target = e_ref(x_t, empty) - eta * (e_ref(x_t, c) - e_ref(x_t, empty)),      loss = mean (e(x_t, c) - target)^2

x_t is made by the edited model itself: a DDIM run under c with guidance, stopped at a random step. Only the
cross-attention layers learn (the "x"), with Adam. The published settings for Stable Diffusion are eta 1, guidance 3,
50 steps, rate 1e-5, 1,000 iterations of one sample; here 20 steps, batches of eight, a larger rate and fewer
iterations. The prompts name the concept alone: prompts that name a colour too drive the model away from the colour.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional

from unerase_backend.testbed.erasers._registry import Concept, Subject, eraser
from unerase_backend.testbed.unet import encode_prompts

ITERATIONS = 300
BATCH = 8
RATE = 1e-3
NEGATIVE_GUIDANCE = 1.0
SAMPLING_GUIDANCE = 3.0
SAMPLING_STEPS = 20
SEED = 7


def negative_target(empty: Tensor, conditional: Tensor, eta: float) -> Tensor:
    """The reference's prediction guided away from the prompt: ``empty - eta * (conditional - empty)``."""
    return empty - eta * (conditional - empty)


@torch.no_grad()
def partial_sample(subject: Subject, conditioning: Tensor, empty: Tensor, latents: Tensor, stop: int) -> Tensor:
    """The latents (N, 4, 8, 8) after ``stop`` of the scheduler's steps under the conditioning (N, 24, width), with
    guidance.
    """
    both = torch.cat([empty, conditioning])
    for timestep in subject.scheduler.timesteps[:stop]:
        free, guided = subject.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        noise = free + SAMPLING_GUIDANCE * (guided - free)
        latents = subject.scheduler.step(noise, timestep, latents).prev_sample
    return latents


@eraser("esd-x")
def erase_esd_x(subject: Subject, concept: Concept, iterations: int = ITERATIONS) -> None:
    """Trains the cross-attention layers."""
    reference = copy.deepcopy(subject.unet).eval().requires_grad_(False)
    learned = [weight for name, weight in subject.unet.named_parameters() if ".attn2." in name]
    for weight in learned:
        weight.requires_grad_(True)
    prompts = [template.format(name) for template in concept.plain_templates for name in concept.names]
    conditionings = encode_prompts(subject.text_encoder, subject.tokenizer, prompts)
    empty = encode_prompts(subject.text_encoder, subject.tokenizer, [""]).expand(BATCH, -1, -1)
    subject.scheduler.set_timesteps(SAMPLING_STEPS)
    draws = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(learned, lr=RATE)
    for _ in range(iterations):
        conditioning = conditionings[torch.randint(len(prompts), (BATCH,), generator=draws)]
        stop = int(torch.randint(SAMPLING_STEPS, (), generator=draws))
        latents = torch.randn((BATCH, 4, 8, 8), generator=draws)
        noisy = partial_sample(subject, conditioning, empty, latents, stop)
        timestep = subject.scheduler.timesteps[stop]
        with torch.no_grad():
            target = negative_target(
                reference(noisy, timestep, empty).sample,
                reference(noisy, timestep, conditioning).sample,
                NEGATIVE_GUIDANCE,
            )
        loss = functional.mse_loss(subject.unet(noisy, timestep, conditioning).sample, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    subject.unet.requires_grad_(False)
