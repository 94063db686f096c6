"""Euler's sampling of a rectified flow with classifier-free guidance, for the testbed's own measurements.

Unlike a pipeline it can start and stop at any step, which measuring completion needs:

    v = v(x, empty) + guidance * (v(x, prompt) - v(x, empty)),      x <- x + (sigma' - sigma) v

Guidance 0 is the unguided model under the empty prompt. A test compares it with diffusers' StableDiffusion3Pipeline.
"""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from unerase_backend.testbed.flow.transformer import encode_prompts, predict

BATCH = 64


@torch.no_grad()
def sample(
    pipeline: StableDiffusion3Pipeline,
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
    scheduler, transformer = pipeline.scheduler, pipeline.transformer
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    empty = encode_prompts(encoders, pipeline.tokenizer, [""])
    finished = []
    for at in range(0, len(latents), BATCH):
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(start)
        x = latents[at : at + BATCH]
        none = empty.expand(len(x))
        both = none.beside(encode_prompts(encoders, pipeline.tokenizer, prompts[at : at + BATCH]))
        for timestep in scheduler.timesteps[start:stop]:
            if guidance == 0:
                velocity = predict(transformer, x, timestep, none)
            else:
                free, conditional = predict(transformer, torch.cat([x, x]), timestep, both).chunk(2)
                velocity = free + guidance * (conditional - free)
            x = scheduler.step(velocity, timestep, x).prev_sample
        finished.append(x)
    return torch.cat(finished)
