"""Diffusion written out by hand with diffusers' parts, one picture at a time, without the backend's sampler."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from support.backend import LocalBackend
from unerase_backend.runtime.pictures import decode_picture

PipelineOf = Callable[[str], Any]


def noise(seed: int, draws: int = 1) -> list[torch.Tensor]:
    """Return standard normal latents, in the order in which the sampler draws them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((4, 8, 8), generator=generator)[None] for _ in range(draws)]


@torch.no_grad()
def embed(pipeline: Any, prompt: str) -> torch.Tensor:
    """Return a prompt's hidden states."""
    return pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


@torch.no_grad()
def predict(pipeline: Any, latents: torch.Tensor, timestep: int, prompt: str, guidance_scale: float) -> torch.Tensor:
    """Return the noise prediction, guided unless the scale is 1."""
    conditional = pipeline.unet(latents, timestep, embed(pipeline, prompt)).sample
    if guidance_scale == 1:
        return conditional
    unconditional = pipeline.unet(latents, timestep, embed(pipeline, "")).sample
    return unconditional + guidance_scale * (conditional - unconditional)


@torch.no_grad()
def picture(pipeline: Any, latents: torch.Tensor) -> np.ndarray:
    """Return the picture that the latents decode to, in whole levels of 0 to 255."""
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)


def difference(local: LocalBackend, digest: str, expected: np.ndarray) -> int:
    """Return the largest difference between a stored picture and another, in levels."""
    return int(np.abs(decode_picture(local.store.get(digest)).astype(int) - expected).max())
