"""Models that predict the velocity, zero terminal SNR and trailing timesteps, against diffusers' own pipeline."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.nn.functional import logsigmoid, mse_loss

from unerase.internal.v1alpha1.trajectories_pb2 import ClassifierGuidance, Conditioning, Resumption, Trajectory
from unerase_backend.diffusion import pictures as autoencoding
from unerase_backend.diffusion.classifier import LatentClassifier, new_classifier
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.sampler import Given, Sampler
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.seeds import derive_seed

TrajectoryOf = Callable[..., Trajectory]
TRAILING = {"timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = V | TRAILING | {"rescale_betas_zero_snr": True}
SCHEDULES = {"trailing": TRAILING, "linspace": {"timestep_spacing": "linspace"}, "v": V, "zero-snr": ZERO_SNR}
PROMPT = "a red heart"


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def config(request: Any, pipeline: Any) -> dict[str, Any]:
    """The testbed's scheduler configuration, changed; the weights are used as if they had been trained by it."""
    return {**pipeline.scheduler.config, **request.param}


def changed(model: DiffusionModel, config: dict[str, Any]) -> DiffusionModel:
    return dataclasses.replace(model, schedule=Schedule.from_config(config))


def start(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def made(pipeline: Any, config: dict[str, Any], **options: Any) -> torch.Tensor:
    """The latents that diffusers' pipeline reaches from `start(9)`."""
    own, pipeline.scheduler = pipeline.scheduler, DDIMScheduler.from_config(config)
    try:
        latents: torch.Tensor = pipeline(PROMPT, latents=start(9), output_type="latent", **options).images[0]
    finally:
        pipeline.scheduler = own
    return latents


@pytest.mark.parametrize(("guidance_scale", "eta", "steps"), [(3.0, 0.0, 10), (1.0, 0.0, 4), (3.0, 1.0, 5)])
def test_a_trajectory_is_what_diffusers_makes_of_it(
    model: DiffusionModel,
    pipeline: Any,
    config: dict[str, Any],
    trajectory_of: TrajectoryOf,
    guidance_scale: float,
    eta: float,
    steps: int,
) -> None:
    sampler = Sampler(changed(model, config), batch_rows=2)
    given = {"guidance_scale": guidance_scale, "eta": eta}
    (ours,) = sampler.run([trajectory_of(PROMPT, steps=steps, latent_seed=9, **given)], picture=False)
    generator = torch.Generator().manual_seed(2)
    theirs = made(pipeline, config, num_inference_steps=steps, generator=generator, **given)
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-4, atol=1e-4)


def test_resuming_is_never_having_stopped(
    model: DiffusionModel, config: dict[str, Any], trajectory_of: TrajectoryOf
) -> None:
    sampler = Sampler(changed(model, config), batch_rows=2)
    whole, first = sampler.run([trajectory_of(), trajectory_of(stop_step=1)], picture=False)
    resumption = Resumption(latents=to_message(first.latents), step=1)
    (rest,) = sampler.run([trajectory_of(resumption=resumption)], picture=False)
    assert torch.equal(rest.latents, whole.latents)


def test_the_estimate_is_that_of_diffusers(
    model: DiffusionModel, pipeline: Any, config: dict[str, Any], trajectory_of: TrajectoryOf
) -> None:
    sampler = Sampler(changed(model, config), batch_rows=2)
    first = trajectory_of(PROMPT, steps=5, latent_seed=9, guidance_scale=1.0, stop_step=1, estimate=True)
    (ours,) = sampler.run([first], picture=False)
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(5)
    timestep = int(scheduler.timesteps[0])
    with torch.no_grad():
        encoded, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
        output = pipeline.unet(start(9), timestep, encoded).sample
    expected = scheduler.step(output, timestep, start(9)).pred_original_sample[0]
    torch.testing.assert_close(ours.latents, expected, rtol=1e-4, atol=1e-4)


def test_the_denoising_error_is_that_of_training(model: DiffusionModel, pipeline: Any, config: dict[str, Any]) -> None:
    scheduler, subject = DDIMScheduler.from_config(config), changed(model, config)
    picture = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    conditionings = encode(subject, [Conditioning(text=PROMPT)])
    times = [100, 999]
    measuring = measure_denoising(subject, [picture], ["aa"], conditionings, times, 7, batch_rows=2, decode_batch=1)
    while True:
        try:
            next(measuring)
        except StopIteration as stop:
            errors = stop.value[0, 0]
            break
    (latents,) = autoencoding.encode(model, [picture], 1)[None]
    encoded, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    for timestep, error in zip(times, errors.tolist(), strict=True):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(derive_seed(7, "aa", timestep)))
        at = torch.tensor([timestep])
        v = config["prediction_type"] == "v_prediction"
        target = scheduler.get_velocity(latents, noise, at) if v else noise
        with torch.no_grad():
            output = pipeline.unet(scheduler.add_noise(latents, noise, at), timestep, encoded).sample
        assert error == pytest.approx(mse_loss(output, target).item(), rel=1e-4)


@pytest.fixture(scope="module")
def classifier() -> LatentClassifier:
    return new_classifier("mlp", (4, 8, 8), torch.Generator().manual_seed(0)).eval().requires_grad_(False)


@pytest.mark.parametrize("change", [V, ZERO_SNR], ids=["v", "zero-snr"])
def test_a_classifier_guides_the_noise(
    model: DiffusionModel,
    pipeline: Any,
    classifier: LatentClassifier,
    trajectory_of: TrajectoryOf,
    change: dict[str, Any],
) -> None:
    """Written out in noise and picture: e <- e - s scale grad log p, x0 from the new e, then DDIM's equation 12."""
    config = {**pipeline.scheduler.config, **change}
    guidance = ClassifierGuidance(classifier_digest="c", scale=20.0)
    trajectory = trajectory_of(PROMPT, steps=4, latent_seed=9, guidance_scale=1.0, classifier_guidance=guidance)
    sampler = Sampler(changed(model, config), batch_rows=2)
    (ours,) = sampler.run([trajectory], picture=False, given=[Given(classifier=classifier)])
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(4)
    encoded, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    x = start(9)
    for timestep in scheduler.timesteps.tolist():
        alpha = scheduler.alphas_cumprod[timestep]
        previous = timestep - 250
        reached = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod
        with torch.no_grad():
            v = pipeline.unet(x, timestep, encoded).sample
        e = (1 - alpha).sqrt() * x + alpha.sqrt() * v
        x0 = alpha.sqrt() * x - (1 - alpha).sqrt() * v
        if alpha.sqrt() >= 0.02:
            rows = x.clone().requires_grad_()
            logsigmoid(classifier(rows, Level.of_alphas(alpha[None]))).sum().backward()
            assert rows.grad is not None
            e = e - (1 - alpha).sqrt() * 20.0 * rows.grad
            x0 = (x - (1 - alpha).sqrt() * e) / alpha.sqrt()
        x = reached.sqrt() * x0 + (1 - reached).sqrt() * e
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)
    (unguided,) = sampler.run([trajectory_of(PROMPT, steps=4, latent_seed=9, guidance_scale=1.0)], picture=False)
    assert not torch.allclose(unguided.latents, ours.latents, atol=1e-2)
