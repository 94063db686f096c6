"""What each probe asks for: its trajectories, pictures and conditionings, against the page that it implements."""

from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probing.conftest import Recording
from support.backend import CONCEPT, NEVER, REFERENCE, LocalBackend
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse, MeasureDenoisingResponse
from unerase.internal.v1alpha1.trajectories_pb2 import Sample, Trajectory
from unerase.v1.types_pb2 import CONCEPT_KIND_COLOUR, CONCEPT_KIND_OBJECT, SAMPLE_STATUS_UNSCORED
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed

COLOURS = {"red", "green", "blue", "yellow"}


def seeds(trajectory: Trajectory) -> tuple[int, int]:
    return trajectory.latent_seed, trajectory.noise_seed


@pytest.mark.parametrize("evaluation", ["standard-prompt", "noise-based", "unconditional-rate", "interference"])
async def test_every_model_meets_the_same_trajectories(local: LocalBackend, evaluation: str) -> None:
    one, other = Recording(), Recording()
    await one.observe(local.unit(evaluation, REFERENCE))
    await other.observe(local.unit(evaluation, NEVER))
    assert [request.trajectories for request in one.generated] == [request.trajectories for request in other.generated]
    assert {request.model for request in other.generated} == {NEVER}


@pytest.mark.parametrize(
    "evaluation", ["standard-prompt", "noise-based", "diffusion-completion", "interference", "judge-quality"]
)
async def test_judgements_come_in_the_order_of_the_panel(
    local: LocalBackend, recording: Recording, evaluation: str
) -> None:
    seen = await recording.observe(local.unit(evaluation))
    judges = list(local.catalogue.default_judges())
    assert {tuple(judgement.judge for judgement in observation.judgements) for observation in seen} == {tuple(judges)}


async def test_standard_prompt_is_one_plain_picture_a_case(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("standard-prompt", cases=3)
    seen = await recording.observe(unit)
    (request,) = recording.generated
    for case, trajectory, observation in zip(unit.cases, request.trajectories, seen, strict=True):
        assert (trajectory.conditioning.text, trajectory.latent_seed) == (case.prompt, case.latent_seed)
        assert (trajectory.eta, trajectory.variance_scale, trajectory.steps) == (0, 1, unit.steps)
        assert trajectory.guidance_scale == unit.guidance_scale
        assert (observation.case_index, observation.prompt) == (case.index, case.prompt)
        assert observation.picture_digest == f"0/{case.index}"


async def test_noise_is_24_draws_of_the_grid_and_as_many_plain_seeds(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("noise-based", cases=2, seed_base=5)
    seen = await recording.observe(unit)
    (request,) = recording.generated
    draws = list(zip(seen, request.trajectories, strict=True))
    assert [observation.picture_digest for observation in seen] == [f"0/{index}" for index in range(96)]
    grid = list(product((1, 1.17, 1.34, 1.51, 1.68, 1.85), (1, 1.02, 1.03, 1.04)))
    for case in unit.cases:
        noise = {o.variant: t for o, t in draws if (o.case_index, o.arm) == (case.index, "noise")}
        assert [(noise[variant].eta, noise[variant].variance_scale) for variant in range(24)] == grid
        assert {trajectory.latent_seed for trajectory in noise.values()} == {case.latent_seed}
        for variant, trajectory in noise.items():
            assert trajectory.noise_seed == derive_seed(5, "noise-based", case.index, variant)
        plain = {o.variant: t for o, t in draws if (o.case_index, o.arm) == (case.index, "plain-seeds")}
        assert [(plain[variant].eta, plain[variant].variance_scale) for variant in range(24)] == [(0, 1)] * 24
        for variant, trajectory in plain.items():
            assert trajectory.latent_seed == derive_seed(5, "plain-seeds", case.index, variant)
    assert len({seeds(trajectory) for trajectory in request.trajectories}) == 96
    assert {trajectory.conditioning.text for trajectory in request.trajectories} == {case.prompt for case in unit.cases}


async def test_the_unconditional_rate_asks_for_nothing(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("unconditional-rate", cases=2, seed_base=5, parameters={"draws": 3})
    seen = await recording.observe(unit)
    (request,) = recording.generated
    expected = [(case.index, variant) for case in unit.cases for variant in range(3)]
    assert [(o.case_index, o.variant) for o in seen] == expected
    assert {(o.arm, o.prompt) for o in seen} == {("empty", "")}
    for (case, variant), trajectory in zip(expected, request.trajectories, strict=True):
        assert trajectory.latent_seed == derive_seed(5, "unconditional-rate", case, variant)
        assert (trajectory.conditioning.text, trajectory.guidance_scale) == ("", 1)
        assert (trajectory.eta, trajectory.variance_scale, trajectory.steps) == (0, 1, unit.steps)


@given(
    etas=st.lists(st.floats(0, 10), min_size=1, max_size=8),
    scales=st.lists(st.floats(0, 10), min_size=1, max_size=8),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_grid_is_drawn_whole(local: LocalBackend, etas: list[float], scales: list[float]) -> None:
    recording = Recording()
    seen = await recording.observe(
        local.unit("noise-based", cases=1, parameters={"etas": etas, "variance_scales": scales})
    )
    (request,) = recording.generated
    count = len(etas) * len(scales)
    assert [(observation.arm, observation.variant) for observation in seen] == [
        (arm, variant) for arm in ("noise", "plain-seeds") for variant in range(count)
    ]
    drawn = [(trajectory.eta, trajectory.variance_scale) for trajectory in request.trajectories]
    assert drawn == list(product(etas, scales)) + [(0, 1)] * count
    assert len({seeds(trajectory) for trajectory in request.trajectories}) == 2 * count


async def test_a_grid_that_no_request_could_hold_is_refused(local: LocalBackend, recording: Recording) -> None:
    grid = {"etas": [1.0] * 17, "variance_scales": [1.0] * 16}
    with pytest.raises(InvalidRequestError) as caught:
        await recording.observe(local.unit("noise-based", parameters=grid))
    assert [violation.field for violation in caught.value.violations] == ["unit.parameters.etas"]


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


async def test_interference_draws_the_other_objects(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("interference", parameters={"draws": 3}, seed_base=4)
    seen = await recording.observe(unit)
    others = {name for name, entry in local.catalogue.concepts.items() if entry.kind == "object" and not entry.placebo}
    others -= {CONCEPT}
    assert {observation.concept for observation in seen} == others
    assert [observation.case_index for observation in seen] == list(range(3 * len(others)))
    for request in recording.generated:
        labels = request.questions[1].labels
        assert len(labels) == 1
        for draw, trajectory in enumerate(request.trajectories):
            assert labels[0] in trajectory.conditioning.text.split()
            assert trajectory.latent_seed == derive_seed(4, "interference", labels[0], draw)
        assert len({trajectory.conditioning.text for trajectory in request.trajectories}) == 3


async def test_what_an_erased_colour_costs_is_looked_for_in_colours_and_objects(
    local: LocalBackend, recording: Recording
) -> None:
    unit = local.unit("interference", parameters={"draws": 1})
    unit.target.CopyFrom(local.target("red"))
    del unit.others[:]
    unit.others.extend(local.target(name) for name in local.catalogue.concepts if name != "red")
    concepts = {observation.concept for observation in await recording.observe(unit)}
    kinds = {other.concept.kind for other in unit.others if other.concept.name in concepts}
    assert kinds == {CONCEPT_KIND_OBJECT, CONCEPT_KIND_COLOUR}
    assert concepts & COLOURS == COLOURS - {"red"}
    assert CONCEPT in concepts


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


async def test_judges_are_shown_all_that_is_known(local: LocalBackend, recording: Recording) -> None:
    unit = local.unit("judge-quality", parameters={"other_pictures": 5})
    unit.model = ""
    seen = await recording.observe(unit)
    (request,) = recording.classified
    concept = unit.target.concept
    assert list(request.questions) == [unit.target.selector, unit.target.judge, unit.target.second_judge]
    assert list(request.picture_digests) == [observation.picture_digest for observation in seen]
    shown = {
        arm: [each.picture_digest for each in seen if each.arm == arm] for arm in ("concept", "other", "near-miss")
    }
    assert shown["concept"] == list(concept.picture_digests)
    assert shown["near-miss"] == list(concept.near_miss_digests)
    assert len(shown["other"]) == 9 * 5
    assert not set(shown["other"]) & set(concept.picture_digests)
    assert {observation.model for observation in seen} == {""}
