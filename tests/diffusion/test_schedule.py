"""The schedule against diffusers' scheduler, the step against a scalar transcription of its formula."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.schedule import Schedule, noise_step, step_coefficients
from unerase_backend.runtime.errors import InvalidRequestError, PreconditionError

SD14 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@given(steps=st.integers(1, 999))
@settings(max_examples=40, deadline=None)
def test_timesteps_and_alphas_are_those_of_diffusers(steps: int) -> None:
    schedule, theirs = Schedule.from_config(SD14), DDIMScheduler.from_config(SD14)
    theirs.set_timesteps(steps)
    assert schedule.times(steps).tolist() == theirs.timesteps.tolist()
    level, reached = schedule.levels(steps)
    for index, timestep in enumerate(theirs.timesteps.tolist()):
        previous = timestep - 1000 // steps
        assert level.signal[index] == theirs.alphas_cumprod[timestep].double().sqrt()
        alpha = theirs.alphas_cumprod[max(previous, 0)]
        assert reached.signal[index] == alpha.double().sqrt()


@pytest.mark.parametrize("change", [{}, {"set_alpha_to_one": True}, {"timestep_spacing": "trailing"}])
def test_the_configuration_counts(change: dict[str, Any]) -> None:
    theirs = DDIMScheduler.from_config(SD14 | change)
    theirs.set_timesteps(7)
    schedule = Schedule.from_config(SD14 | change)
    assert schedule.times(7).tolist() == theirs.timesteps.tolist()
    assert schedule.levels(7)[1].signal[-1] == theirs.final_alpha_cumprod.double().sqrt()


def test_a_pipeline_of_diffusers_overrules_an_outdated_configuration_in_the_same_way(pipeline: Any) -> None:
    outdated = DDIMScheduler.from_config(SD14 | {"steps_offset": 0, "clip_sample": True})
    theirs = type(pipeline)(**pipeline.components | {"scheduler": outdated}, requires_safety_checker=False).scheduler
    theirs.set_timesteps(50)
    assert Schedule.from_config(outdated.config).times(50).tolist() == theirs.timesteps.tolist()


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    for steps in (1000, 1001):
        with pytest.raises(InvalidRequestError, match="steps"):
            Schedule.from_config(SD14).times(steps)


def test_a_schedule_that_cannot_be_followed_is_refused_by_key_and_value() -> None:
    with pytest.raises(PreconditionError, match=r'scheduler_config.json: prediction_type "sample" ') as caught:
        Schedule.from_config(SD14 | {"prediction_type": "sample"})
    assert caught.value.reason == "SCHEDULE_UNSUPPORTED"


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.01 + 0.0005 * index for index in range(20)], "num_train_timesteps": 20},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_the_betas_are_those_of_diffusers(change: dict[str, Any]) -> None:
    ours, theirs = Schedule.from_config(SD14 | change), DDIMScheduler.from_config(SD14 | change)
    assert torch.equal(ours.noise.values, theirs.alphas_cumprod)


@given(steps=st.integers(1, 999))
@settings(max_examples=40, deadline=None)
def test_trailing_timesteps_are_those_of_diffusers_and_as_many_as_asked_for(steps: int) -> None:
    config = SD14 | {"timestep_spacing": "trailing"}
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(steps)
    ours = Schedule.from_config(config).times(steps)
    assert (len(ours), ours[0].item()) == (steps, 999)
    assert ours.tolist() == theirs.timesteps[:steps].tolist()


def test_trailing_timesteps_that_diffusers_counts_wrong_stay_in_the_schedule() -> None:
    # diffusers' spacing has 62 timesteps for 61 steps, and the last is -1.
    assert Schedule.from_config(SD14 | {"timestep_spacing": "trailing"}).times(61).min().item() >= 0


@given(
    step=st.integers(0, 49),
    eta=st.floats(0, 2),
    scale=st.floats(0, 2),
    values=st.tuples(*[st.floats(-3, 3)] * 3),
)
@settings(max_examples=200, deadline=None)
def test_the_step_is_the_formula(step: int, eta: float, scale: float, values: tuple[float, float, float]) -> None:
    level, reached = (each[step : step + 1] for each in Schedule.from_config(SD14).levels(50))
    a_t, a_p = level.signal.item() ** 2, reached.signal.item() ** 2
    x_t, e, z = values
    x0 = (x_t - math.sqrt(1 - a_t) * e) / math.sqrt(a_t)
    s2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    expected = math.sqrt(a_p) * x0 + math.sqrt(abs(1 - a_p - eta**2 * s2)) * e + scale * eta * math.sqrt(s2) * z
    one = torch.ones(1, dtype=torch.float64)
    coefficients = step_coefficients(level, reached, eta * one, scale * one)
    shaped = [torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in values]
    assert noise_step(*shaped, coefficients).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("change", [{}, V, ZERO_SNR], ids=["epsilon", "v", "zero-snr"])
def test_the_step_is_that_of_diffusers(eta: float, change: dict[str, Any]) -> None:
    theirs = DDIMScheduler.from_config(SD14 | change)
    theirs.set_timesteps(50)
    schedule = Schedule.from_config(SD14 | change)
    level, reached = schedule.levels(50)
    eta_of_each, scale = torch.full_like(level.signal, eta), torch.ones_like(level.signal)
    coefficients = step_coefficients(level, reached, eta_of_each, scale, schedule.prediction).float()
    x_t, e, z = torch.randn((3, 50, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    ours = noise_step(x_t, e, z, coefficients)
    for index, timestep in enumerate(theirs.timesteps.tolist()):
        expected = theirs.step(e[index], timestep, x_t[index], eta=eta, variance_noise=z[index]).prev_sample
        if level.signal[index] == 0 and eta == 1:
            # No direction is left, whose square diffusers rounds below 0.
            assert bool(torch.isfinite(ours[index]).all())
            continue
        torch.testing.assert_close(ours[index], expected, rtol=1e-5, atol=2e-5)


def test_each_row_has_its_own_settings() -> None:
    levels = Schedule.from_config(SD14).levels(10)
    rows = step_coefficients(*levels, torch.linspace(0, 1.85, 10), torch.linspace(1, 1.04, 10))
    x_t, e, z = torch.randn((3, 10, 4, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = noise_step(x_t, e, z, rows)
    alone = [noise_step(x_t[i : i + 1], e[i : i + 1], z[i : i + 1], rows[i : i + 1]) for i in range(10)]
    assert torch.equal(together, torch.cat(alone))


def test_noising_is_that_of_diffusers(model: DiffusionModel) -> None:
    theirs = DDIMScheduler.from_config(SD14)
    latents, noise = torch.randn((2, 3, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([1, 500, 999])
    expected = theirs.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(model.schedule.level_at(timesteps).noised(latents, noise), expected)
