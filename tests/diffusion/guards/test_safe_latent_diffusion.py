"""Safe latent diffusion against the paper's formula in a slow loop, and against diffusers' own pipeline."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe

from diffusion.guards.conftest import GuardsOf, Run
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Trajectory
from unerase_backend.diffusion import conditioning
from unerase_backend.diffusion.guarding import UNGUARDED
from unerase_backend.diffusion.loading import DiffusionModel

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
    """The formula, one element at a time, in double precision."""
    texts = [prompt, given["text"], ""]
    encodings = torch.stack(conditioning.encode(model, [Conditioning(text=text) for text in texts]))
    latents = start(9)[0].numpy().astype(float)
    momentum = np.zeros_like(latents)
    scheduler = model.schedule.scheduler
    scheduler.set_timesteps(steps)
    for step, timestep in enumerate(scheduler.timesteps):
        rows = torch.tensor(latents, dtype=torch.float32).repeat(3, 1, 1, 1)
        predicted = model.unet(rows, timestep, encoder_hidden_states=encodings).sample.numpy().astype(float)
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
        noise = torch.tensor(guided)
        latents = scheduler.step(noise, timestep, torch.tensor(latents)).prev_sample.numpy()
    return latents


def test_it_is_the_papers_formula(
    run: Run, guards_of: GuardsOf, model: DiffusionModel, trajectory_of: TrajectoryOf
) -> None:
    (ours,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=6)], guards_of(STRONG), picture=False)
    expected = slow(model, "a picture of a hourglass", 6, 3.0, STRONG)
    np.testing.assert_allclose(ours.latents.numpy(), expected, rtol=1e-3, atol=1e-3)
    (plain,) = run([trajectory_of("a picture of a hourglass", latent_seed=9, steps=6)], UNGUARDED, picture=False)
    assert np.abs(plain.latents.numpy() - expected).max() > 0.1


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
