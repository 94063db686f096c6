"""Diffusion completion: what the reference begins, what the model finishes, and the same by hand."""

import pytest

from support.backend import NEVER, REFERENCE, LocalBackend
from support.diffusion_by_hand import PipelineOf, difference, noise, picture, predict
from support.recording import Recording
from unerase.internal.v1alpha1.generation_pb2 import (
    GenerateRequest,
    GenerateResponse,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.v1.types_pb2 import (
    SAMPLE_STATUS_UNSCORED,
)
from unerase_backend.runtime.errors import InvalidRequestError

STEPS = 6


@pytest.mark.parametrize(("steps", "taken"), [(50, [5, 10]), (10, [1, 2]), (2, [1, 1])])
async def test_completion_resumes_from_what_the_reference_began(
    local: LocalBackend, recording: Recording, steps: int, taken: list[int]
) -> None:
    unit = local.unit("diffusion-completion", NEVER, cases=2, steps=steps)
    seen = await recording.observe(unit)
    begun, finished = recording.generated
    assert (begun.model, begun.latents, list(begun.questions)) == (REFERENCE, True, [])
    assert [trajectory.stop_step for trajectory in begun.trajectories] == taken * 2
    for trajectory, case in zip(begun.trajectories, [case for case in unit.cases for _ in taken], strict=True):
        assert (trajectory.conditioning.text, trajectory.latent_seed) == (case.prompt, case.latent_seed)
        assert (trajectory.guidance_scale, trajectory.eta, trajectory.steps) == (unit.guidance_scale, 0, steps)
    assert finished.model == NEVER
    assert [observation.arm for observation in seen] == ["prompt@0.1", "empty@0.1", "prompt@0.2", "empty@0.2"] * 2
    for position, (trajectory, observation) in enumerate(zip(finished.trajectories, seen, strict=True)):
        assert trajectory.resumption.latents.values == f"0/{position // 2}".encode()
        assert trajectory.resumption.step == begun.trajectories[position // 2].stop_step
        assert (trajectory.steps, trajectory.stop_step, trajectory.eta) == (steps, 0, 0)
        prompted = observation.arm.startswith("prompt")
        prompt = unit.cases[position // 4].prompt if prompted else ""
        assert trajectory.conditioning.text == observation.prompt == prompt
        assert trajectory.conditioning.HasField("text")
        assert trajectory.guidance_scale == (unit.guidance_scale if prompted else 1)


async def test_fractions_that_read_the_same_are_one_arm(local: LocalBackend, recording: Recording) -> None:
    fractions = {"resume_fractions": [0.1, 0.2, 0.1, 0.1000000001]}
    seen = await recording.observe(local.unit("diffusion-completion", cases=1, parameters=fractions))
    assert len({(observation.arm, observation.variant) for observation in seen}) == len(seen) == 4


async def test_completion_needs_a_step_for_each(local: LocalBackend, recording: Recording) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await recording.observe(local.unit("diffusion-completion", steps=1))
    assert [violation.field for violation in caught.value.violations] == ["unit.steps"]


async def test_what_the_reference_could_not_begin_is_unscored(local: LocalBackend, recording: Recording) -> None:
    whole = recording.generate

    async def failing(request: GenerateRequest):
        async for response in whole(request):
            failed = Sample(status=SAMPLE_STATUS_UNSCORED, reason="no luck")
            yield GenerateResponse(index=1, sample=failed) if request.latents and response.index == 1 else response

    recording.generate = failing
    seen = await recording.observe(local.unit("diffusion-completion", cases=2))
    unscored = [observation for observation in seen if observation.status == SAMPLE_STATUS_UNSCORED]
    assert [(observation.case_index, observation.arm) for observation in unscored] == [
        (0, "prompt@0.2"),
        (0, "empty@0.2"),
    ]
    assert {observation.reason for observation in unscored} == {"the reference's first steps failed: no luck"}
    scored = [observation.picture_digest for observation in seen if observation not in unscored]
    assert scored == [f"1/{index}" for index in range(6)]


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
