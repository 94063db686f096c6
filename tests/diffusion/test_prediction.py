"""What follows from a model's output: closed forms, round trips, and diffusers' own scheduler."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.prediction import (
    LEAST_SIGNAL,
    Prediction,
    error_ratio,
    of_noise_change,
    parts,
    training_target,
)
from unerase_backend.diffusion.schedule import Schedule, estimate_coefficients, noise_step, step_coefficients

BETAS = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
}
ZERO_SNR = BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
values = st.floats(-3, 3)
shares = st.floats(1e-4, 1 - 1e-4)


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


def level_of(share: float, prediction: Prediction) -> Level:
    """Return a level of the path that models of this prediction have."""
    one = torch.tensor([share], dtype=torch.float64)
    return Level.of_sigmas(1 - one) if prediction is Prediction.FLOW else Level.of_alphas(one)


@given(clean=values, noise=values, share=shares, prediction=st.sampled_from(Prediction))
@settings(max_examples=200, deadline=None)
def test_a_perfect_output_gives_back_both_parts(
    clean: float, noise: float, share: float, prediction: Prediction
) -> None:
    level = level_of(share, prediction)
    noised = level.noised(one(clean), one(noise))
    target = training_target(prediction, one(clean), one(noise), level)
    found = parts(prediction, target, noised, level)
    torch.testing.assert_close(torch.stack(found).flatten(), one(0).new_tensor([clean, noise]))


@given(output=values, noised=values, share=shares, prediction=st.sampled_from(Prediction))
@settings(max_examples=200, deadline=None)
def test_the_parts_of_any_output_make_up_the_noised_latents(
    output: float, noised: float, share: float, prediction: Prediction
) -> None:
    level = level_of(share, prediction)
    clean, noise = parts(prediction, one(output), one(noised), level)
    torch.testing.assert_close(level.noised(clean, noise), one(noised))
    torch.testing.assert_close(training_target(prediction, clean, noise, level), one(output))


@given(
    output=values,
    noised=values,
    noise=values,
    share=shares,
    further=st.floats(0.01, 1),
    eta=st.floats(0, 2),
    other=st.sampled_from([Prediction.V, Prediction.FLOW]),
)
@settings(max_examples=200, deadline=None)
def test_a_step_is_the_same_in_each_prediction_of_a_path(
    output: float, noised: float, noise: float, share: float, further: float, eta: float, other: Prediction
) -> None:
    level, reached = (level_of(each, other) for each in (share, share + (1 - share) * further))
    clean, e = parts(other, one(output), one(noised), level)
    stepped, estimated = [], []
    for prediction in (Prediction.EPSILON, other):
        given_output = training_target(prediction, clean, e, level)
        eta_of_row = torch.tensor([eta], dtype=torch.float64)
        coefficients = step_coefficients(level, reached, eta_of_row, torch.ones_like(eta_of_row), prediction)
        stepped.append(noise_step(one(noised), given_output, one(noise), coefficients))
        estimated.append(noise_step(one(noised), given_output, one(noise), estimate_coefficients(level, prediction)))
    torch.testing.assert_close(stepped[0], stepped[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimated[0], clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimated[1], clean)


@given(
    output=values,
    noised=values,
    share=st.floats(LEAST_SIGNAL * 1.01, 0.999),
    change=values,
    prediction=st.sampled_from([Prediction.V, Prediction.FLOW]),
)
@settings(max_examples=200, deadline=None)
def test_a_changed_noise_leaves_the_noised_latents(
    output: float, noised: float, share: float, change: float, prediction: Prediction
) -> None:
    level = level_of(share, prediction)
    _, before = parts(prediction, one(output), one(noised), level)
    changed = one(output) + of_noise_change(prediction, level).item() * change
    clean, after = parts(prediction, changed, one(noised), level)
    torch.testing.assert_close(after, before + change)
    torch.testing.assert_close(level.noised(clean, after), one(noised))


def test_pure_noise_takes_no_change() -> None:
    for level, prediction in (
        (Level.of_alphas(torch.tensor([0.0, LEAST_SIGNAL**2 * 0.9, 0.25])), Prediction.V),
        (Level.of_sigmas(torch.tensor([1.0, 1 - LEAST_SIGNAL * 0.9, 0.5])), Prediction.FLOW),
    ):
        assert of_noise_change(prediction, level).tolist() == [0.0, 0.0, 2.0]
        assert of_noise_change(Prediction.EPSILON, level).tolist() == [1.0, 1.0, 1.0]


@given(
    share=shares, clean=values, noise=values, miss=values, prediction=st.sampled_from([Prediction.V, Prediction.FLOW])
)
@settings(max_examples=100, deadline=None)
def test_an_error_of_one_prediction_is_that_of_the_other(
    share: float, clean: float, noise: float, miss: float, prediction: Prediction
) -> None:
    level = level_of(share, prediction)
    noised = level.noised(one(clean), one(noise))
    output = training_target(prediction, one(clean), one(noise), level)
    _, predicted = parts(prediction, output + miss, noised, level)
    of_noise = (predicted - one(noise)).square().flatten()
    torch.testing.assert_close(miss**2 * error_ratio(prediction, Prediction.EPSILON, level), of_noise)
    of_output = of_noise * error_ratio(Prediction.EPSILON, prediction, level)
    torch.testing.assert_close(of_output, torch.full_like(of_output, miss**2))
    assert error_ratio(prediction, prediction, level).item() == 1


@pytest.mark.parametrize("config", [BETAS, BETAS | {"prediction_type": "v_prediction"}, ZERO_SNR])
def test_estimate_and_target_are_those_of_diffusers(config: dict[str, Any]) -> None:
    schedule, theirs = Schedule.from_config(config), DDIMScheduler.from_config(config, clip_sample=False)
    theirs.set_timesteps(20)
    x, output, clean, noise = torch.randn((4, 20, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    timesteps = schedule.times(20)
    level = schedule.level_at(timesteps)
    ours = noise_step(x, output, noise, estimate_coefficients(level, schedule.prediction))
    for index, timestep in enumerate(timesteps.tolist()):
        step = theirs.step(output[index], timestep, x[index])
        torch.testing.assert_close(ours[index], step.pred_original_sample, rtol=1e-5, atol=2e-5)
    if schedule.prediction is Prediction.V:
        expected = theirs.get_velocity(clean, noise, timesteps)
        torch.testing.assert_close(training_target(Prediction.V, clean, noise, level), expected)


def test_the_last_timestep_of_zero_terminal_snr_is_pure_noise_and_can_be_stepped_from() -> None:
    schedule = Schedule.from_config(ZERO_SNR)
    level, reached = schedule.levels(10)
    one_each = torch.ones(10, dtype=torch.float64)
    assert level.signal[0] == 0
    for eta in (0.0, 1.0, 1.85):
        coefficients = step_coefficients(level, reached, eta * one_each, one_each, Prediction.V)
        assert bool(torch.isfinite(coefficients).all())
    # x_T is e, and the output -x0: eta 0 goes on with both.
    of_latents, of_output, _ = step_coefficients(level, reached, 0 * one_each, one_each, Prediction.V)[0]
    torch.testing.assert_close(
        torch.stack([of_latents, -of_output]), torch.stack([reached.spread[0], reached.signal[0]])
    )
