"""Diffusion completion: what begins a case, which beginnings are admitted, what is finished, and the same by hand."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from support.backend import NEVER, REDIRECTED, REFERENCE, LocalBackend, blind_to_estimates
from support.diffusion_by_hand import PipelineOf, difference, noise, picture, predict
from support.recording import Recording
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    SAMPLE_STATUS_EXCLUDED,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Observation,
)
from unerase_backend.evaluation.known_pictures import held_out, held_out_by_case
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.pictures import decode_picture

NAME, STEPS = "diffusion-completion", 6


@dataclass
class Known(Recording):
    """Answers that are given: by position, which beginnings and estimates fail, and the judges that see an estimate."""

    failed: dict[str, set[int]] = field(default_factory=dict)
    shown: dict[int, set[int]] = field(default_factory=dict)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        kind = "estimate" if request.trajectories[0].estimate else "beginning" if request.latents else ""
        async for response in super().generate(request):
            if response.index in self.failed.get(kind, set()):
                response.sample.Clear()
                response.sample.status, response.sample.reason = SAMPLE_STATUS_UNSCORED, "no luck"
            elif kind == "estimate":
                for place in self.shown.get(response.index, set()):
                    response.sample.judgements[place].detected = True
            yield response


def without_pictures(unit: Unit) -> Unit:
    """The unit with the arms that the reference begins alone."""
    unit.target.concept.ClearField("picture_digests")
    return unit


@torch.no_grad()
def encoded(pipeline: Any, shown: np.ndarray) -> torch.Tensor:
    pixels = torch.tensor(shown).permute(2, 0, 1)[None].float() / 127.5 - 1
    return pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor


def of(seen: list[Observation], *arms: str) -> list[Observation]:
    return [observation for observation in seen if observation.arm in arms]


@pytest.mark.parametrize(("steps", "taken"), [(50, [5, 10]), (10, [1, 2]), (2, [1, 1])])
async def test_completion_resumes_from_what_the_reference_began(
    local: LocalBackend, recording: Recording, steps: int, taken: list[int]
) -> None:
    unit = without_pictures(local.unit(NAME, NEVER, cases=2, steps=steps))
    seen = await recording.observe(unit)
    begun, estimated, finished = recording.generated
    assert (begun.model, begun.latents, list(begun.questions)) == (REFERENCE, True, [])
    assert [trajectory.stop_step for trajectory in begun.trajectories] == taken * 2
    for trajectory, case in zip(begun.trajectories, [case for case in unit.cases for _ in taken], strict=True):
        assert (trajectory.conditioning.text, trajectory.latent_seed) == (case.prompt, case.latent_seed)
        assert (trajectory.guidance_scale, trajectory.eta, trajectory.steps) == (unit.guidance_scale, 0, steps)
        assert not trajectory.estimate
    # The reference says what each beginning holds, unguided and one step further.
    assert estimated.model == REFERENCE
    for position, trajectory in enumerate(estimated.trajectories):
        assert trajectory.resumption.latents.values == f"0/{position}".encode()
        assert (trajectory.conditioning.text, trajectory.guidance_scale, trajectory.estimate) == ("", 1, True)
        assert trajectory.resumption.step == begun.trajectories[position].stop_step == trajectory.stop_step - 1
    assert finished.model == NEVER
    made = of(seen, "prompt@0.1", "empty@0.1", "prompt@0.2", "empty@0.2")
    assert [observation.arm for observation in made] == ["prompt@0.1", "empty@0.1", "prompt@0.2", "empty@0.2"] * 2
    for position, (trajectory, observation) in enumerate(zip(finished.trajectories, made, strict=True)):
        assert trajectory.resumption.latents.values == f"0/{position // 2}".encode()
        assert trajectory.resumption.step == begun.trajectories[position // 2].stop_step
        assert (trajectory.steps, trajectory.stop_step, trajectory.eta, trajectory.estimate) == (steps, 0, 0, False)
        prompted = observation.arm.startswith("prompt")
        prompt = unit.cases[position // 4].prompt if prompted else ""
        assert trajectory.conditioning.text == observation.prompt == prompt
        assert trajectory.conditioning.HasField("text")
        assert trajectory.guidance_scale == (unit.guidance_scale if prompted else 1)
    estimates = [observation for observation in seen if observation not in made]
    assert [observation.arm for observation in estimates] == ["beginning@0.1", "beginning@0.2"] * 2
    assert [observation.picture_digest for observation in estimates] == [f"1/{index}" for index in range(4)]


async def test_completion_begins_from_held_out_pictures_too(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit(NAME, NEVER, cases=2, steps=10)
    seen = await recording.observe(unit)
    _, estimated, finished = recording.generated
    begun = [trajectory for trajectory in estimated.trajectories if trajectory.resumption.picture_digest]
    resumed = [trajectory for trajectory in finished.trajectories if trajectory.resumption.picture_digest]
    digests = [digest for _, digest in held_out_by_case(unit)]
    assert len(set(digests)) == 2
    assert set(digests) < set(held_out(unit.target.concept, 1000))
    assert [each.resumption.picture_digest for each in begun] == [digest for digest in digests for _ in (1, 2)]
    assert [each.resumption.step for each in begun] == [1, 2, 1, 2]
    for place, trajectory in enumerate(resumed):
        case = unit.cases[place // 4]
        assert trajectory.resumption == begun[place // 2].resumption
        assert trajectory.latent_seed == begun[place // 2].latent_seed == case.latent_seed
        expected = ("", 1.0) if place % 2 else (case.prompt, unit.guidance_scale)
        assert (trajectory.conditioning.text, trajectory.guidance_scale) == expected
    assert [observation.arm for observation in seen if observation.arm.startswith("picture")] == [
        *[f"picture-{what}@{fraction}" for fraction in ("0.1", "0.2") for what in ("prompt", "empty")] * 2,
        *[f"picture-beginning@{fraction}" for fraction in ("0.1", "0.2")] * 2,
    ]


async def test_a_placebo_begins_from_its_pictures_alone(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit(NAME, REDIRECTED, cases=2, control_kind=CONTROL_KIND_PLACEBO)
    seen = await recording.observe(unit)
    estimated, finished = recording.generated
    assert (estimated.model, finished.model) == (REFERENCE, REDIRECTED)
    begun = {trajectory.resumption.picture_digest for trajectory in [*estimated.trajectories, *finished.trajectories]}
    assert begun == {digest for _, digest in held_out_by_case(unit)} < set(unit.target.concept.picture_digests)
    assert all(observation.arm.startswith("picture-") for observation in seen)
    assert {observation.concept for observation in seen} == {"fish"}
    assert {trajectory.conditioning.text for trajectory in finished.trajectories} == {
        "",
        *[case.prompt for case in unit.cases],
    }


async def test_a_placebo_without_pictures_is_refused(local: LocalBackend, recording: Recording) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await recording.observe(without_pictures(local.unit(NAME, control_kind=CONTROL_KIND_PLACEBO)))
    assert [violation.field for violation in caught.value.violations] == ["unit.target.concept.picture_digests"]


def test_a_case_has_its_picture_however_cases_are_divided(local: LocalBackend) -> None:
    unit = local.unit(NAME, cases=600)
    whole = {case.index: digest for case, digest in held_out_by_case(unit)}
    pictures = held_out(unit.target.concept, 1000)
    assert {whole[index] for index in range(len(pictures))} == set(pictures)
    assert whole[len(pictures)] == whole[0]
    del unit.cases[:7]
    assert all(whole[case.index] == digest for case, digest in held_out_by_case(unit))
    assert [digest for _, digest in held_out_by_case(local.unit(NAME, cases=9, seed_base=2))] != list(whole.values())[
        :9
    ]


async def test_a_beginning_that_shows_the_concept_is_left_out(local: LocalBackend) -> None:
    # The selector's answer alone counts for nothing.
    known = Known(shown={0: {0}, 1: {1}, 2: {0, 2}, 3: {1, 2}})
    unit = without_pictures(local.unit(NAME, cases=2))
    seen = await known.observe(unit)
    judge, second = unit.target.judge.judge, unit.target.second_judge.judge
    expected = {
        (0, "0.2"): f"detected by {judge}",
        (1, "0.1"): f"detected by {second}",
        (1, "0.2"): f"detected by {judge} and {second}",
    }
    for observation in of(seen, "prompt@0.1", "empty@0.1", "prompt@0.2", "empty@0.2"):
        reason = expected.get((observation.case_index, observation.arm.split("@")[1]))
        if reason is None:
            assert (observation.status, observation.reason) == (SAMPLE_STATUS_SCORED, "")
        else:
            assert observation.status == SAMPLE_STATUS_EXCLUDED
            assert observation.reason == f"the beginning already shows the concept: it is {reason}"
            assert not observation.judgements
            assert not observation.picture_digest
    # The estimates themselves are scored, and what is excluded is never made.
    assert {each.status for each in of(seen, "beginning@0.1", "beginning@0.2")} == {SAMPLE_STATUS_SCORED}
    assert len(known.generated[-1].trajectories) == 2


async def test_where_every_beginning_shows_the_concept_the_model_makes_nothing(local: LocalBackend) -> None:
    known = Known(shown={place: {1} for place in range(4)})
    seen = await known.observe(without_pictures(local.unit(NAME, cases=2)))
    assert len(known.generated) == 2
    assert sum(observation.status == SAMPLE_STATUS_EXCLUDED for observation in seen) == 8


async def test_fractions_that_read_the_same_are_one_arm(local: LocalBackend, recording: Recording) -> None:
    fractions = {"resume_fractions": [0.1, 0.2, 0.1, 0.1000000001]}
    seen = await recording.observe(local.unit(NAME, cases=1, parameters=fractions))
    assert len({(observation.arm, observation.variant) for observation in seen}) == len(seen) == 12


async def test_completion_needs_a_step_for_each(local: LocalBackend, recording: Recording) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await recording.observe(local.unit(NAME, steps=1))
    assert [violation.field for violation in caught.value.violations] == ["unit.steps"]


@pytest.mark.parametrize(
    ("kind", "draws", "estimate"),
    [
        ("beginning", "the reference's first steps failed: no luck", "the reference's first steps failed: no luck"),
        ("estimate", "the beginning could not be judged: no luck", "no luck"),
    ],
)
async def test_what_was_not_begun_or_judged_is_unscored(
    local: LocalBackend, kind: str, draws: str, estimate: str
) -> None:
    seen = await Known(failed={kind: {1}}).observe(without_pictures(local.unit(NAME, cases=2)))
    unscored = [observation for observation in seen if observation.status == SAMPLE_STATUS_UNSCORED]
    assert [(observation.case_index, observation.arm, observation.reason) for observation in unscored] == [
        (0, "prompt@0.2", draws),
        (0, "empty@0.2", draws),
        (0, "beginning@0.2", estimate),
    ]
    scored = [observation.picture_digest for observation in seen if observation not in unscored]
    estimates = [0, 1, 2] if kind == "beginning" else [0, 2, 3]
    assert scored == [*[f"2/{index}" for index in range(6)], *[f"1/{index}" for index in estimates]]


@pytest.mark.parametrize("fraction", [0.2, 0.4])
async def test_completion_is_one_pipeline_going_on_where_another_stopped(
    local: LocalBackend, pipeline_of: PipelineOf, fraction: float
) -> None:
    unit = local.unit(NAME, NEVER, cases=1, steps=STEPS, parameters={"resume_fractions": [fraction]})
    seen = {
        observation.arm.split("@")[0]: observation
        for observation in await local.observe(unit, blind_to_estimates(local.models))
    }
    case, reference, never = unit.cases[0], pipeline_of(REFERENCE), pipeline_of(NEVER)
    scheduler = reference.scheduler
    scheduler.set_timesteps(STEPS)
    k = max(1, round(fraction * STEPS))
    (n,) = noise(case.latent_seed)
    latents = n
    for timestep in scheduler.timesteps[:k]:
        e = predict(reference, latents, timestep, case.prompt, unit.guidance_scale)
        latents = scheduler.step(e, timestep, latents).prev_sample
    ((_, digest),) = held_out_by_case(unit)
    noised = scheduler.add_noise(encoded(reference, decode_picture(local.store.get(digest))), n, scheduler.timesteps[k])
    for prefix, begun in (("", latents), ("picture-", noised)):
        e = predict(reference, begun, scheduler.timesteps[k], "", 1.0)
        x0 = scheduler.step(e, scheduler.timesteps[k], begun).pred_original_sample
        assert difference(local, seen[f"{prefix}beginning"].picture_digest, picture(reference, x0)) <= 2
        for arm, prompt, guidance in (("prompt", case.prompt, unit.guidance_scale), ("empty", "", 1.0)):
            resumed = begun
            for timestep in scheduler.timesteps[k:]:
                e = predict(never, resumed, timestep, prompt, guidance)
                resumed = scheduler.step(e, timestep, resumed).prev_sample
            assert difference(local, seen[f"{prefix}{arm}"].picture_digest, picture(never, resumed)) <= 2
    assert len({observation.picture_digest for observation in seen.values()}) == 6


async def test_a_model_that_completes_its_own_beginning_makes_its_own_picture(local: LocalBackend) -> None:
    unit = local.unit(NAME, REFERENCE, steps=STEPS)
    seen = await local.observe(unit, blind_to_estimates(local.models))
    completed = {each.case_index: each for each in of(seen, "prompt@0.2")}
    plain = await local.observe(local.unit("standard-prompt", REFERENCE, steps=STEPS))
    assert [completed[each.case_index].picture_digest for each in plain] == [each.picture_digest for each in plain]
