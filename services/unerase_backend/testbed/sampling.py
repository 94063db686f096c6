"""DDIM sampling (Song, Meng, Ermon 2021, eta 0) with classifier-free guidance, for the testbed's own measurements.

Unlike a pipeline it can start and stop at any step, which measuring completion needs:

    e = e(x, empty) + guidance * (e(x, prompt) - e(x, empty)),      x <- scheduler step of e

Guidance 0 is the unguided model under the empty prompt. A test compares it with diffusers' StableDiffusionPipeline.
"""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from unerase_backend.testbed.unet import encode_prompts

BATCH = 64


def initial_latents(seeds: Sequence[int]) -> Tensor:
    """Return standard normal latents (N, 4, 8, 8), each from a generator with its own seed."""
    return torch.stack([torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    latents: Tensor,
    guidance: float,
    steps: int,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """Return latents (N, 4, 8, 8) at step `stop` of `steps` from those at step `start`, each under its own prompt.

    Without `stop` they are the latents at the end.
    """
    scheduler, unet = pipeline.scheduler, pipeline.unet
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[start:stop]
    empty = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, [""])
    finished = []
    for at in range(0, len(latents), BATCH):
        x = latents[at : at + BATCH]
        none = empty.expand(len(x), -1, -1)
        both = torch.cat([none, encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts[at : at + BATCH])])
        for timestep in timesteps:
            if guidance == 0:
                noise = unet(x, timestep, none).sample
            else:
                free, conditional = unet(torch.cat([x, x]), timestep, both).sample.chunk(2)
                noise = free + guidance * (conditional - free)
            x = scheduler.step(noise, timestep, x).prev_sample
        finished.append(x)
    return torch.cat(finished)
