"""Likelihood: which pictures are measured at which timesteps, and the errors by hand."""

import math

import numpy as np
import pytest
import torch

from support.backend import CONCEPT, NEVER, REFERENCE, LocalBackend
from support.diffusion_by_hand import PipelineOf, noise, predict
from support.recording import Recording
from unerase.internal.v1alpha1.generation_pb2 import (
    MeasureDenoisingResponse,
)
from unerase.v1.types_pb2 import (
    SAMPLE_STATUS_UNSCORED,
)
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture
from unerase_backend.runtime.seeds import derive_seed


async def test_likelihood_measures_the_second_halves(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("likelihood", parameters={"timesteps": 4, "pictures": 20, "other_pictures": 4})
    seen = await recording.observe(unit)
    assert len(recording.measured) == 10
    every = {target.concept.name: list(target.concept.picture_digests) for target in [unit.target, *unit.others]}
    for request in recording.measured:
        assert list(request.timesteps) == [125, 375, 625, 875]
        empty, prompt = request.prompts
        name = prompt.removeprefix("a picture of a ")
        assert empty == ""
        assert set(request.picture_digests) <= set(every[name][32:])
        assert len(set(request.picture_digests)) == (20 if name == CONCEPT else 4)
        if name != CONCEPT:
            assert list(request.picture_digests) == every[name][32::8]
    assert {request.noise_seed for request in recording.measured} == {derive_seed(1, "likelihood")}
    assert [observation.case_index for observation in seen] == list(range(20 + 9 * 4))
    assert [observation.arm for observation in seen] == ["concept"] * 20 + ["other"] * 36
    for position, observation in enumerate(seen[:20]):
        # Means over the grid of what `Recording` answers.
        assert dict(observation.measures) == {"loss_empty": position + 500, "loss_prompt": position + 500.5}


async def test_an_error_that_is_not_finite_is_unscored(local: LocalBackend, recording: Recording) -> None:
    whole = recording.measure

    async def broken(request) -> MeasureDenoisingResponse:
        response = await whole(request)
        response.errors[3].errors[0] = float("inf")
        return response

    recording.measure = broken
    parameters = {"timesteps": 2, "pictures": 4, "other_pictures": 2}
    seen = await recording.observe(local.unit("likelihood", parameters=parameters))
    unscored = [observation for observation in seen if observation.status == SAMPLE_STATUS_UNSCORED]
    assert [observation.case_index for observation in unscored][:2] == [1, 5]
    assert all(observation.reason and not observation.measures for observation in unscored)


async def test_likelihood_needs_pictures(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("likelihood")
    del unit.target.concept.picture_digests[:]
    with pytest.raises(InvalidRequestError) as caught:
        await recording.observe(unit)
    assert [violation.field for violation in caught.value.violations] == ["unit.target.concept.picture_digests"]


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
