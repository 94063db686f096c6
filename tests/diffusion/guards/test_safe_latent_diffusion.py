"""Safe latent diffusion against the paper's formula in a slow loop, and against diffusers' own pipeline."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
from torch import Tensor

from diffusion.guards.conftest import GuardsOf, Run
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion import conditioning
from unerase_backend.diffusion.encoding import Encoding
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import UNGUARDED
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.schedule import Schedule

TrajectoryOf = Callable[..., Trajectory]
STRONG = {
    "kind": "safe-latent-diffusion",
    "text": "a hourglass",
    "guidance_scale": 2000.0,
    "warmup_steps": 2,
    "threshold": 0.025,
    "momentum_scale": 0.5,
    "momentum_beta": 0.7,
}


def start(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def slow(model: DiffusionModel, prompt: str, steps: int, scale: float, given: dict[str, Any]) -> np.ndarray:
    """The formula on predictions of noise, one element at a time, in double precision."""
    texts = [prompt, given["text"], ""]
    encodings = torch.stack(
        [each.states for each in conditioning.encode(model, [Conditioning(text=text) for text in texts])]
    )
    latents = start(9)[0].numpy().astype(float)
    momentum = np.zeros_like(latents)
    scheduler = model.schedule.noise.scheduler
    scheduler.set_timesteps(steps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    for step, timestep in enumerate(scheduler.timesteps):
        rows = torch.tensor(latents, dtype=torch.float32).repeat(3, 1, 1, 1)
        predicted = model.denoiser(rows, timestep, encoder_hidden_states=encodings).sample.numpy().astype(float)
        alpha = float(scheduler.alphas_cumprod[timestep])
        if velocity:
            # The noise is sqrt(1 - alpha) x + sqrt(alpha) v.
            predicted = (1 - alpha) ** 0.5 * latents + alpha**0.5 * predicted
        guided = np.zeros_like(latents)
        for place in np.ndindex(latents.shape):
            prompted, avoided, empty = (predicted[row][place] for row in range(3))
            mu = 0.0
            if prompted - avoided < given["threshold"]:
                mu = min(1.0, abs(given["guidance_scale"] * (prompted - avoided)))
            away = mu * (avoided - empty) + given["momentum_scale"] * momentum[place]
            momentum[place] = given["momentum_beta"] * momentum[place] + (1 - given["momentum_beta"]) * away
            applied = away if step >= given["warmup_steps"] else 0.0
            guided[place] = empty + scale * (prompted - empty - applied)
        if velocity:
            guided = (guided - (1 - alpha) ** 0.5 * latents) / alpha**0.5
        latents = scheduler.step(torch.tensor(guided), timestep, torch.tensor(latents)).prev_sample.numpy()
    return latents


def test_it_is_the_papers_formula(
    run: Run, guards_of: GuardsOf, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    (ours,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=6)], guards_of(STRONG), picture=False)
    expected = slow(model, "a picture of a hourglass", 6, 3.0, STRONG)
    np.testing.assert_allclose(ours.latents.numpy(), expected, rtol=1e-3, atol=1e-3)
    (plain,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=6)], UNGUARDED, picture=False)
    assert np.abs(plain.latents.numpy() - expected).max() > 0.1


def stepped(model: DiffusionModel, **changes: Any) -> DiffusionModel:
    """The testbed's reference with another scheduler configuration."""
    return dataclasses.replace(
        model, schedule=Schedule.from_config({**model.schedule.noise.scheduler.config, **changes})
    )


def test_it_acts_on_the_noise_of_a_model_that_predicts_the_velocity(
    guards_of: GuardsOf, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    predicting = stepped(model, prediction_type="v_prediction")
    sampler, trajectory = Sampler(predicting, batch_rows=3), trajectory_of("a picture of a hourglass", latent_seed=9)
    (ours,) = sampler.run([trajectory], given=[Given(guards=guards_of(STRONG))], picture=False)
    expected = slow(predicting, "a picture of a hourglass", 4, 3.0, STRONG)
    np.testing.assert_allclose(ours.latents.numpy(), expected, rtol=1e-3, atol=1e-3)
    (plain,) = sampler.run([trajectory], picture=False)
    assert np.abs(plain.latents.numpy() - expected).max() > 0.1


@torch.inference_mode()
def slow_on_a_flow(model: DiffusionModel, prompt: str, steps: int, given: dict[str, Any]) -> Tensor:
    """The formula on the noise x + a v, where there is a picture: a is the signal."""
    texts = [prompt, given["text"], ""]
    encodings = Encoding.stack(conditioning.encode(model, [Conditioning(text=text) for text in texts])).states
    theirs, x, momentum = FlowMatchEulerDiscreteScheduler(shift=3.0), start(9), torch.zeros(1, 4, 8, 8)
    theirs.set_timesteps(steps)
    for step, (time, sigma) in enumerate(zip(theirs.timesteps, theirs.sigmas, strict=False)):
        flows = model.denoiser(x.repeat(3, 1, 1, 1), time, encoder_hidden_states=encodings).sample
        guided = flows[2:] + 3.0 * (flows[:1] - flows[2:])
        if (signal := 1 - sigma) >= 0.02:
            prompted, avoided, empty = (x + signal * flows).split(1)
            mu = (given["guidance_scale"] * (prompted - avoided)).abs().clamp(max=1)
            mu = torch.where(prompted - avoided < given["threshold"], mu, 0.0)
            away = mu * (avoided - empty) + given["momentum_scale"] * momentum
            momentum = given["momentum_beta"] * momentum + (1 - given["momentum_beta"]) * away
            if step >= given["warmup_steps"]:
                guided = (empty + 3.0 * (prompted - empty - away) - x) / signal
        x = theirs.step(guided, time, x).prev_sample
    return x


def test_it_acts_on_the_noise_of_a_flow(
    guards_of: GuardsOf, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    flow = Schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    predicting = dataclasses.replace(model, schedule=flow)
    sampler, trajectory = Sampler(predicting, batch_rows=3), trajectory_of(latent_seed=9, steps=6)
    (ours,) = sampler.run([trajectory], given=[Given(guards=guards_of(STRONG))], picture=False)
    expected = slow_on_a_flow(predicting, "a picture of a hourglass", 6, STRONG)
    torch.testing.assert_close(ours.latents, expected[0], rtol=1e-3, atol=1e-3)
    (plain,) = sampler.run([trajectory], picture=False)
    assert (plain.latents - expected).abs().max() > 0.1


def test_it_changes_nothing_where_there_is_no_signal(
    guards_of: GuardsOf, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    zero = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    sampler = Sampler(stepped(model, **zero), batch_rows=3)
    guarded = [Given(guards=guards_of(STRONG | {"warmup_steps": 0}))] * 2
    trajectories = [trajectory_of(latent_seed=9), trajectory_of(latent_seed=9, stop_step=1)]
    whole, first = sampler.run(trajectories, given=guarded, picture=False)
    plain, unguarded = sampler.run(trajectories, picture=False)
    torch.testing.assert_close(first.latents, unguarded.latents)
    assert whole.latents.isfinite().all()
    assert (whole.latents - plain.latents).abs().max() > 0.01


def test_it_is_the_safe_pipeline_of_diffusers(
    run: Run, guards_of: GuardsOf, pipeline: Any, trajectory_of: TrajectoryOf
) -> None:
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    safe = StableDiffusionPipelineSafe(
        **parts,
        scheduler=DDIMScheduler.from_config(pipeline.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    safe.set_progress_bar_config(disable=True)
    safe.safety_concept = "a hourglass"
    theirs = safe(
        "a picture of a hourglass",
        num_inference_steps=6,
        guidance_scale=3.0,
        latents=start(9),
        output_type="np",
        sld_guidance_scale=2000.0,
        sld_warmup_steps=2,
        sld_threshold=0.025,
        sld_momentum_scale=0.5,
        sld_mom_beta=0.7,
    ).images
    (ours,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=6)], guards_of(STRONG))
    assert ours.picture is not None
    assert np.abs(ours.picture.astype(float) - 255 * theirs[0]).max() <= 1.5


@pytest.mark.parametrize("change", [{"guidance_scale": 0.0}, {"warmup_steps": 6}])
def test_without_strength_or_within_the_warm_up_it_is_plain_guidance(
    run: Run, guards_of: GuardsOf, trajectory_of: TrajectoryOf, change: dict[str, Any]
) -> None:
    trajectory = trajectory_of(steps=6)
    (guarded,), (plain,) = run([trajectory], guards_of(STRONG | change)), run([trajectory], UNGUARDED)
    torch.testing.assert_close(guarded.latents, plain.latents, rtol=1e-5, atol=1e-5)
