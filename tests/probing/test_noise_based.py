"""Noise-based probing: which draws are asked for, and the paper's formula by hand."""

import math
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.backend import REFERENCE, LocalBackend
from support.diffusion_by_hand import PipelineOf, difference, noise, picture, predict
from support.recording import Recording
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed

STEPS = 6


def seeds(trajectory: Trajectory) -> tuple[int, int]:
    return trajectory.latent_seed, trajectory.noise_seed


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
