"""The sampler on rectified flows: diffusers' schedulers stepped by hand, with the testbed's UNet in a flow's place.

The UNet was trained to predict noise; here its output is taken for the flow, and its time is that of the flow, which is
not a whole number. That makes no picture, but every step depends on the time and on the step before.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch.nn.functional import logsigmoid, mse_loss

from unerase.internal.v1alpha1.trajectories_pb2 import (
    ClassifierGuidance,
    Conditioning,
    Inpainting,
    Resumption,
    Trajectory,
)
from unerase_backend.diffusion import pictures as autoencoding
from unerase_backend.diffusion.classifier import LatentClassifier, new_classifier
from unerase_backend.diffusion.conditioning import encode
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.flow_levels import PipelineCall, SigmasGiven
from unerase_backend.diffusion.loading import DiffusionModel
from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.sampler import Given, Sampler
from unerase_backend.diffusion.schedule import Schedule
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed

TrajectoryOf = Callable[..., Trajectory]
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
SHIFTED = FLOW | {"shift": 3.0}
SANA = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}
TOKENS = 1024
PROMPT = "a red heart"
STEPS = 6


def on_flow(model: DiffusionModel, config: dict[str, Any], call: PipelineCall | None = None) -> DiffusionModel:
    schedule = Schedule.from_config(config).called(call or PipelineCall())
    return dataclasses.replace(model, schedule=schedule)


@pytest.fixture(scope="module")
def subject(model: DiffusionModel) -> DiffusionModel:
    return on_flow(model, SHIFTED)


@pytest.fixture(scope="module")
def sampler(subject: DiffusionModel) -> Sampler:
    return Sampler(subject, batch_rows=4, decode_batch=1)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)


def start(seed: int) -> torch.Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def stable_diffusion_3() -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    return scheduler


def flux() -> FlowMatchEulerDiscreteScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=calculate_shift(TOKENS))
    return scheduler


def sana() -> DPMSolverMultistepScheduler:
    scheduler = DPMSolverMultistepScheduler.from_config(SANA, solver_order=1)
    scheduler.set_timesteps(STEPS)
    return scheduler


def predicted(pipeline: Any, x: torch.Tensor, time: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """The output of diffusers' own UNet, guided."""
    prompted, empty = pipeline.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=True)
    with torch.no_grad():
        output: torch.Tensor = pipeline.unet(x, time, prompted).sample
        if guidance_scale == 1:
            return output
        free: torch.Tensor = pipeline.unet(x, time, empty).sample
    return free + guidance_scale * (output - free)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("config", "call", "scheduler"),
    [
        (SHIFTED, PipelineCall(), stable_diffusion_3),
        (FLOW | {"use_dynamic_shifting": True}, PipelineCall(SigmasGiven.EVEN, TOKENS), flux),
        (SANA, PipelineCall(), sana),
    ],
    ids=["sd3", "flux", "sana"],
)
def test_a_trajectory_is_what_diffusers_makes_of_it(
    model: DiffusionModel,
    pipeline: Any,
    trajectory_of: TrajectoryOf,
    config: dict[str, Any],
    call: PipelineCall,
    scheduler: Callable[[], Any],
    guidance_scale: float,
) -> None:
    trajectory = trajectory_of(PROMPT, steps=STEPS, latent_seed=9, guidance_scale=guidance_scale)
    (ours,) = Sampler(on_flow(model, config, call), batch_rows=2).run([trajectory], picture=False)
    theirs, x = scheduler(), start(9)
    for time in theirs.timesteps:
        x = theirs.step(predicted(pipeline, x, time, guidance_scale), time, x).prev_sample
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.5, 1.0, 1.34])
def test_drawn_noise_is_that_of_the_formula(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf, eta: float
) -> None:
    trajectory = trajectory_of(
        PROMPT, steps=STEPS, latent_seed=9, noise_seed=8, guidance_scale=1.0, eta=eta, variance_scale=0.9
    )
    (ours,) = sampler.run([trajectory], picture=False)
    theirs, x, drawn = stable_diffusion_3(), start(9), torch.Generator().manual_seed(8)
    for time, s, s_next in zip(theirs.timesteps, theirs.sigmas, theirs.sigmas[1:], strict=False):
        v = predicted(pipeline, x, time, 1.0)
        z = torch.randn((4, 8, 8), generator=drawn)
        tau2 = s_next**2 * (1 - ((1 - s) * s_next) ** 2 / ((1 - s_next) * s) ** 2)
        e = x + (1 - s) * v
        x = (1 - s_next) * (x - s * v) + (s_next**2 - eta**2 * tau2).abs().sqrt() * e + 0.9 * eta * tau2.sqrt() * z
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_resuming_is_never_having_stopped(sampler: Sampler, trajectory_of: TrajectoryOf, eta: float) -> None:
    whole, first = sampler.run(
        [trajectory_of(steps=STEPS, eta=eta), trajectory_of(steps=STEPS, eta=eta, stop_step=2)], picture=False
    )
    resumption = Resumption(step=2, latents=to_message(first.latents))
    (resumed,) = sampler.run([trajectory_of(steps=STEPS, eta=eta, resumption=resumption)], picture=False)
    assert torch.equal(resumed.latents, whole.latents)


def test_neighbours_with_other_numbers_of_steps_change_no_bit(sampler: Sampler, trajectory_of: TrajectoryOf) -> None:
    trajectories = [trajectory_of(steps=STEPS), trajectory_of(steps=3, eta=1.0), trajectory_of(PROMPT, steps=9)]
    together = sampler.run(trajectories, picture=False)
    for each, one in zip(together, trajectories, strict=True):
        assert torch.equal(sampler.run([one], picture=False)[0].latents, each.latents)


def test_the_estimate_is_the_picture_that_the_flow_comes_from(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf
) -> None:
    trajectory = trajectory_of(PROMPT, steps=STEPS, latent_seed=9, guidance_scale=1.0, estimate=True, stop_step=1)
    (ours,) = sampler.run([trajectory], picture=False)
    theirs = stable_diffusion_3()
    expected = start(9) - theirs.sigmas[0] * predicted(pipeline, start(9), theirs.timesteps[0], 1.0)
    torch.testing.assert_close(ours.latents, expected[0], rtol=1e-4, atol=1e-4)


def test_around_the_mask_the_picture_has_the_noise_of_the_next_step(
    sampler: Sampler, subject: DiffusionModel, pipeline: Any, trajectory_of: TrajectoryOf, picture: Picture
) -> None:
    """As StableDiffusion3InpaintPipeline: the picture is noised to the next timestep, and clean after the last."""
    trajectory = trajectory_of(
        PROMPT,
        steps=STEPS,
        latent_seed=9,
        guidance_scale=1.0,
        inpainting=Inpainting(picture_digest="p", mask_share=0.5),
    )
    (ours,) = sampler.run([trajectory], picture=False, given=[Given(picture=picture)])
    clean, noise = autoencoding.encode(subject, [picture], 1)[None][0], start(9)
    theirs, x = stable_diffusion_3(), noise
    painted = torch.zeros((1, 1, 8, 8), dtype=torch.bool)
    painted[..., 2:6, 2:6] = True
    for index, time in enumerate(theirs.timesteps):
        x = theirs.step(predicted(pipeline, x, time, 1.0), time, x).prev_sample
        around = clean
        if index + 1 < STEPS:
            around = stable_diffusion_3().scale_noise(clean, theirs.timesteps[index + 1 : index + 2], noise)
        x = torch.where(painted, x, around)
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)


def test_a_picture_begins_a_trajectory_at_the_noise_of_the_next_step(
    sampler: Sampler, subject: DiffusionModel, pipeline: Any, trajectory_of: TrajectoryOf, picture: Picture
) -> None:
    resumption = Resumption(step=2, picture_digest="p")
    trajectory = trajectory_of(PROMPT, steps=STEPS, latent_seed=9, guidance_scale=1.0, resumption=resumption)
    (ours,) = sampler.run([trajectory], picture=False, given=[Given(beginning=picture)])
    theirs = stable_diffusion_3()
    clean = autoencoding.encode(subject, [picture], 1)[None][0]
    x = stable_diffusion_3().scale_noise(clean, theirs.timesteps[2:3], start(9))
    for time in theirs.timesteps[2:]:
        x = theirs.step(predicted(pipeline, x, time, 1.0), time, x).prev_sample
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)


def test_the_denoising_error_is_that_of_training(model: DiffusionModel, pipeline: Any, picture: Picture) -> None:
    """As diffusers' training scripts: noised by sigma, the target is noise minus picture."""
    subject, timesteps = on_flow(model, SHIFTED), [0, 100, 999]
    conditionings = encode(subject, [Conditioning(text=PROMPT)])
    measuring = measure_denoising(subject, [picture], ["aa"], conditionings, timesteps, 7, batch_rows=2, decode_batch=1)
    while True:
        try:
            next(measuring)
        except StopIteration as stop:
            errors = stop.value[0, 0]
            break
    (latents,) = autoencoding.encode(model, [picture], 1)[None]
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for timestep, error in zip(timesteps, errors.tolist(), strict=True):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(derive_seed(7, "aa", timestep)))
        time = theirs.timesteps[999 - timestep]
        output = predicted(pipeline, theirs.scale_noise(latents, time[None], noise), time, 1.0)
        assert error == pytest.approx(mse_loss(output, noise - latents).item(), rel=1e-4)


def test_a_classifier_guides_the_noise_where_there_is_a_picture(
    sampler: Sampler, pipeline: Any, trajectory_of: TrajectoryOf
) -> None:
    """Written out in noise and picture: e <- e - s scale grad log p, x0 from the new e, then Euler's step."""
    classifier: LatentClassifier = new_classifier("mlp", (4, 8, 8), torch.Generator().manual_seed(0))
    classifier.eval().requires_grad_(False)
    guidance = ClassifierGuidance(classifier_digest="c", scale=20.0)
    trajectory = trajectory_of(PROMPT, steps=STEPS, latent_seed=9, guidance_scale=1.0, classifier_guidance=guidance)
    (ours,) = sampler.run([trajectory], picture=False, given=[Given(classifier=classifier)])
    theirs, x = stable_diffusion_3(), start(9)
    for time, s, s_next in zip(theirs.timesteps, theirs.sigmas, theirs.sigmas[1:], strict=False):
        v = predicted(pipeline, x, time, 1.0)
        e, x0 = x + (1 - s) * v, x - s * v
        if 1 - s >= 0.02:
            rows = x.clone().requires_grad_()
            logsigmoid(classifier(rows, Level.of_sigmas(s[None]))).sum().backward()
            assert rows.grad is not None
            e = e - s * 20.0 * rows.grad
            x0 = (x - s * e) / (1 - s)
        x = (1 - s_next) * x0 + s_next * e
    torch.testing.assert_close(ours.latents, x[0], rtol=1e-3, atol=1e-3)
    (unguided,) = sampler.run([trajectory_of(PROMPT, steps=STEPS, latent_seed=9, guidance_scale=1.0)], picture=False)
    assert not torch.allclose(unguided.latents, ours.latents, atol=1e-2)


def test_more_steps_than_the_flow_has_timesteps_are_refused(model: DiffusionModel, trajectory_of: TrajectoryOf) -> None:
    sampler = Sampler(on_flow(model, SHIFTED | {"num_train_timesteps": 5}), batch_rows=2)
    sampler.admit("five", trajectory_of(steps=5))
    with pytest.raises(InvalidRequestError, match="a schedule of 5 timesteps"):
        sampler.admit("six", trajectory_of(steps=6))
