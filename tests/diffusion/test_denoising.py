"""Denoising errors against a slow loop with diffusers' own noising."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning
from unerase_backend.diffusion import pictures as autoencoding
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.runtime.seeds import derive_seed

PROMPTS = ["", "a picture of a hourglass"]
TIMESTEPS = [50, 500, 950]
DIGESTS = ["aa", "bb", "cc"]


def finish(generator: Generator[None, None, Any]) -> Any:
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    draws = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return list(draws.repeat(4, axis=1).repeat(4, axis=2))


def measure(
    model: DiffusionModel, pictures: list[np.ndarray], digests: list[str], timesteps: list[int], noise_seed: int = 7
) -> np.ndarray:
    conditionings = encode(model, [Conditioning(text=prompt) for prompt in PROMPTS])
    errors: np.ndarray = finish(
        measure_denoising(model, pictures, digests, conditionings, timesteps, noise_seed, batch_rows=8, decode_batch=2)
    )
    return errors


def test_the_errors_are_those_of_a_slow_loop(model: DiffusionModel, pipeline: Any, pictures: list[np.ndarray]) -> None:
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    errors = measure(model, pictures, DIGESTS, TIMESTEPS)
    assert errors.shape == (3, 2, 3)
    with torch.no_grad():
        for i, (picture, digest) in enumerate(zip(pictures, DIGESTS, strict=True)):
            values = pipeline.image_processor.preprocess(picture[None].astype(np.float32) / 255)
            latents = pipeline.vae.encode(values).latent_dist.mode() * pipeline.vae.config.scaling_factor
            for j, prompt in enumerate(PROMPTS):
                prompt_embeds, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
                for k, timestep in enumerate(TIMESTEPS):
                    generator = torch.Generator().manual_seed(derive_seed(7, digest, timestep))
                    noise = torch.randn((1, 4, 8, 8), generator=generator)
                    noised = scheduler.add_noise(latents, noise, torch.tensor([timestep]))
                    predicted = pipeline.unet(noised, timestep, prompt_embeds).sample
                    expected = torch.nn.functional.mse_loss(predicted, noise).item()
                    assert errors[i, j, k] == pytest.approx(expected, rel=1e-4)


def test_an_error_depends_on_its_picture_and_timestep_alone(model: DiffusionModel, pictures: list[np.ndarray]) -> None:
    errors = measure(model, pictures, DIGESTS, TIMESTEPS)
    again = measure(model, pictures[::-1], DIGESTS[::-1], TIMESTEPS[::-1])
    assert np.array_equal(again[::-1, :, ::-1], errors)
    assert np.array_equal(measure(model, pictures[1:2], DIGESTS[1:2], TIMESTEPS[2:])[0, :, 0], errors[1, :, 2])
    assert not np.array_equal(measure(model, pictures, DIGESTS, TIMESTEPS, noise_seed=8), errors)


def test_encoding_and_decoding_keep_the_fixed_shape_law(model: DiffusionModel, pictures: list[np.ndarray]) -> None:
    together = autoencoding.encode(model, pictures, 2)
    for index, picture in enumerate(pictures):
        assert torch.equal(autoencoding.encode(model, [picture], 2)[0], together[index])
    shown = autoencoding.decode(model, list(together), 2)
    assert np.array_equal(autoencoding.decode(model, [together[2]], 2)[0], shown[2])


def test_a_picture_that_is_not_finite_is_none_and_its_neighbour_is_there(model: DiffusionModel) -> None:
    latents = torch.zeros(2, 4, 8, 8)
    expected = autoencoding.decode(model, [latents[1]], 2)[0]
    latents[0] = float("nan")
    broken, whole = autoencoding.decode(model, list(latents), 2)
    assert broken is None
    assert np.array_equal(whole, expected)
