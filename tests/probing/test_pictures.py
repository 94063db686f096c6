"""What the probes make, against transcriptions by hand: diffusers' parts, one picture at a time, nothing of ours."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from support.backend import CONCEPT, NEVER, REFERENCE, LocalBackend
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed

PipelineOf = Callable[[str], Any]
STEPS = 6


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(seed: int, draws: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((4, 8, 8), generator=generator)[None] for _ in range(draws)]


def embed(pipeline: Any, prompt: str) -> torch.Tensor:
    return pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


def predict(pipeline: Any, latents: torch.Tensor, timestep: int, prompt: str, guidance_scale: float) -> torch.Tensor:
    conditional = pipeline.unet(latents, timestep, embed(pipeline, prompt)).sample
    if guidance_scale == 1:
        return conditional
    unconditional = pipeline.unet(latents, timestep, embed(pipeline, "")).sample
    return unconditional + guidance_scale * (conditional - unconditional)


def picture(pipeline: Any, latents: torch.Tensor) -> np.ndarray:
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(int)


def difference(local: LocalBackend, digest: str, expected: np.ndarray) -> int:
    return int(np.abs(decode_picture(local.store.get(digest)).astype(int) - expected).max())


async def test_noise_is_the_papers_formula(local: LocalBackend, pipeline_of: PipelineOf) -> None:
    etas, scales = [1.0, 1.85], [1.0, 1.04]
    grid = {"etas": etas, "variance_scales": scales}
    unit = local.unit("noise-based", cases=1, steps=STEPS, parameters=grid)
    seen = await local.observe(unit)
    pipeline, case = pipeline_of(REFERENCE), unit.cases[0]
    pipeline.scheduler.set_timesteps(STEPS)
    alphas = pipeline.scheduler.alphas_cumprod.double()
    for observation in seen[:4]:
        eta, scale = etas[observation.variant // 2], scales[observation.variant % 2]
        (latents,) = noise(case.latent_seed)
        fresh = noise(derive_seed(unit.seed_base, "noise-based", 0, observation.variant), STEPS)
        for timestep, z in zip(pipeline.scheduler.timesteps.tolist(), fresh, strict=True):
            earlier = timestep - 1000 // STEPS
            a, b = float(alphas[timestep]), float(alphas[earlier] if earlier >= 0 else alphas[0])
            e = predict(pipeline, latents, timestep, case.prompt, unit.guidance_scale)
            x0 = (latents - math.sqrt(1 - a) * e) / math.sqrt(a)
            s2 = (1 - b) / (1 - a) * (1 - a / b)
            latents = (
                math.sqrt(b) * x0 + math.sqrt(abs(1 - b - eta**2 * s2)) * e + scale * eta * math.sqrt(s2) * z
            ).float()
        assert observation.noise_seed == derive_seed(unit.seed_base, "noise-based", 0, observation.variant)
        assert difference(local, observation.picture_digest, picture(pipeline, latents)) <= 2
    # Every option and every seed has its effect.
    assert len({observation.picture_digest for observation in seen}) == 8


@pytest.mark.parametrize("fraction", [0.2, 0.4])
async def test_completion_is_one_pipeline_going_on_where_another_stopped(
    local: LocalBackend, pipeline_of: PipelineOf, fraction: float
) -> None:
    unit = local.unit("diffusion-completion", NEVER, cases=1, steps=STEPS, parameters={"resume_fractions": [fraction]})
    prompted, empty = await local.observe(unit)
    case, reference, never = unit.cases[0], pipeline_of(REFERENCE), pipeline_of(NEVER)
    scheduler = reference.scheduler
    scheduler.set_timesteps(STEPS)
    k = max(1, round(fraction * STEPS))
    (latents,) = noise(case.latent_seed)
    for timestep in scheduler.timesteps[:k]:
        e = predict(reference, latents, timestep, case.prompt, unit.guidance_scale)
        latents = scheduler.step(e, timestep, latents).prev_sample
    for observation, prompt, guidance in ((prompted, case.prompt, unit.guidance_scale), (empty, "", 1.0)):
        resumed = latents
        for timestep in scheduler.timesteps[k:]:
            resumed = scheduler.step(predict(never, resumed, timestep, prompt, guidance), timestep, resumed).prev_sample
        assert difference(local, observation.picture_digest, picture(never, resumed)) <= 2
    assert prompted.picture_digest != empty.picture_digest


async def test_a_model_that_completes_its_own_beginning_makes_its_own_picture(local: LocalBackend) -> None:
    unit = local.unit("diffusion-completion", REFERENCE, steps=STEPS)
    completed = {each.case_index: each for each in await local.observe(unit) if each.arm == "prompt@0.2"}
    plain = await local.observe(local.unit("standard-prompt", REFERENCE, steps=STEPS))
    assert [completed[each.case_index].picture_digest for each in plain] == [each.picture_digest for each in plain]


async def test_likelihood_is_a_mean_over_a_loop(local: LocalBackend, pipeline_of: PipelineOf) -> None:
    parameters = {"timesteps": 4, "pictures": 2, "other_pictures": 1}
    unit = local.unit("likelihood", NEVER, parameters=parameters)
    seen = await local.observe(unit)
    pipeline = pipeline_of(NEVER)
    alphas, seed = pipeline.scheduler.alphas_cumprod, derive_seed(unit.seed_base, "likelihood")
    for observation in (seen[1], seen[-1]):
        pixels = torch.from_numpy(decode_picture(local.store.get(observation.picture_digest)).copy())
        pixels = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        for measure, prompt in (("loss_empty", ""), ("loss_prompt", f"a picture of a {observation.concept}")):
            errors = []
            for t in (125, 375, 625, 875):
                (eps,) = noise(derive_seed(seed, observation.picture_digest, t))
                noised = alphas[t].sqrt() * latents + (1 - alphas[t]).sqrt() * eps
                errors.append(float((eps - predict(pipeline, noised, t, prompt, 1)).square().mean()))
            assert observation.measures[measure] == pytest.approx(sum(errors) / 4, rel=1e-4)


async def test_likelihood_tells_what_was_never_learned(local: LocalBackend) -> None:
    parameters = {"timesteps": 5, "pictures": 8, "other_pictures": 2}
    rises = {}
    reference = await local.observe(local.unit("likelihood", REFERENCE, parameters=parameters))
    never = await local.observe(local.unit("likelihood", NEVER, parameters=parameters))
    for arm in ("concept", "other"):
        rises[arm] = np.mean(
            [
                math.log(one.measures["loss_empty"] / other.measures["loss_empty"])
                for one, other in zip(never, reference, strict=True)
                if one.arm == arm
            ]
        )
    assert rises["concept"] > 0.5
    assert abs(rises["other"]) < 0.2


async def test_the_judges_know_what_is_known(local: LocalBackend) -> None:
    seen = await local.observe(local.unit("judge-quality", parameters={"other_pictures": 8}))
    for position in (1, 2):
        rates = {
            arm: np.mean([each.judgements[position].detected for each in seen if each.arm == arm])
            for arm in ("concept", "other", "near-miss")
        }
        assert rates["concept"] >= 0.9
        assert rates["other"] <= 0.05
        assert rates["near-miss"] <= 0.1
    assert {each.concept for each in seen if each.arm != "other"} == {CONCEPT}
