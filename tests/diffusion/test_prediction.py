"""What follows from a model's output: closed forms, round trips, and diffusers' own scheduler."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.diffusion.prediction import (
    LEAST_SIGNAL,
    Prediction,
    error_ratio,
    of_noise_change,
    parts,
    training_target,
)
from unerase_backend.diffusion.schedule import Schedule, add_noise, estimate_coefficients, noise_step, step_coefficients

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


def alpha_of(share: float) -> torch.Tensor:
    return torch.tensor([share], dtype=torch.float64)


@given(clean=values, noise=values, share=shares, prediction=st.sampled_from(Prediction))
@settings(max_examples=200, deadline=None)
def test_a_perfect_output_gives_back_both_parts(
    clean: float, noise: float, share: float, prediction: Prediction
) -> None:
    alpha = alpha_of(share)
    noised = add_noise(one(clean), one(noise), alpha)
    target = training_target(prediction, one(clean), one(noise), alpha)
    found = parts(prediction, target, noised, alpha)
    torch.testing.assert_close(torch.stack(found).flatten(), alpha_of(clean).new_tensor([clean, noise]))


@given(output=values, noised=values, share=shares, prediction=st.sampled_from(Prediction))
@settings(max_examples=200, deadline=None)
def test_the_parts_of_any_output_make_up_the_noised_latents(
    output: float, noised: float, share: float, prediction: Prediction
) -> None:
    alpha = alpha_of(share)
    clean, noise = parts(prediction, one(output), one(noised), alpha)
    torch.testing.assert_close(add_noise(clean, noise, alpha), one(noised))
    torch.testing.assert_close(training_target(prediction, clean, noise, alpha), one(output))


@given(output=values, noised=values, noise=values, share=shares, further=st.floats(0.01, 1), eta=st.floats(0, 2))
@settings(max_examples=200, deadline=None)
def test_a_step_is_the_same_in_either_prediction(
    output: float, noised: float, noise: float, share: float, further: float, eta: float
) -> None:
    alpha = alpha_of(share)
    reached = alpha + (1 - alpha) * further
    clean, e = parts(Prediction.V, one(output), one(noised), alpha)
    stepped, estimated = [], []
    for prediction in Prediction:
        given_output = training_target(prediction, clean, e, alpha)
        coefficients = step_coefficients(alpha, reached, alpha.new_tensor([eta]), alpha.new_ones(1), prediction)
        stepped.append(noise_step(one(noised), given_output, one(noise), coefficients))
        estimated.append(noise_step(one(noised), given_output, one(noise), estimate_coefficients(alpha, prediction)))
    torch.testing.assert_close(stepped[0], stepped[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimated[0], clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimated[1], clean)


@given(output=values, noised=values, share=st.floats(LEAST_SIGNAL**2 * 1.01, 0.999), change=values)
@settings(max_examples=200, deadline=None)
def test_a_changed_noise_leaves_the_noised_latents(output: float, noised: float, share: float, change: float) -> None:
    alpha = alpha_of(share)
    _, before = parts(Prediction.V, one(output), one(noised), alpha)
    changed = one(output) + of_noise_change(Prediction.V, alpha).item() * change
    clean, after = parts(Prediction.V, changed, one(noised), alpha)
    torch.testing.assert_close(after, before + change)
    torch.testing.assert_close(add_noise(clean, after, alpha), one(noised))


def test_pure_noise_takes_no_change() -> None:
    alphas = torch.tensor([0.0, LEAST_SIGNAL**2 * 0.9, 0.25])
    assert of_noise_change(Prediction.V, alphas).tolist() == [0.0, 0.0, 2.0]
    assert of_noise_change(Prediction.EPSILON, alphas).tolist() == [1.0, 1.0, 1.0]


@given(share=shares, clean=values, noise=values, miss=values)
@settings(max_examples=100, deadline=None)
def test_an_error_of_one_prediction_is_that_of_the_other(share: float, clean: float, noise: float, miss: float) -> None:
    alpha = alpha_of(share)
    noised = add_noise(one(clean), one(noise), alpha)
    velocity = training_target(Prediction.V, one(clean), one(noise), alpha)
    _, predicted = parts(Prediction.V, velocity + miss, noised, alpha)
    of_noise = (predicted - one(noise)).square().flatten()
    torch.testing.assert_close(miss**2 * error_ratio(Prediction.V, Prediction.EPSILON, alpha), of_noise)
    torch.testing.assert_close(of_noise * error_ratio(Prediction.EPSILON, Prediction.V, alpha), alpha * 0 + miss**2)
    assert error_ratio(Prediction.V, Prediction.V, alpha).item() == 1


@pytest.mark.parametrize("config", [BETAS, BETAS | {"prediction_type": "v_prediction"}, ZERO_SNR])
def test_estimate_and_target_are_those_of_diffusers(config: dict[str, Any]) -> None:
    schedule, theirs = Schedule.from_config(config), DDIMScheduler.from_config(config, clip_sample=False)
    theirs.set_timesteps(20)
    x, output, clean, noise = torch.randn((4, 20, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    timesteps = schedule.timesteps(20)
    alphas = schedule.alphas_cumprod[timesteps]
    ours = noise_step(x, output, noise, estimate_coefficients(alphas, schedule.prediction))
    for index, timestep in enumerate(timesteps.tolist()):
        step = theirs.step(output[index], timestep, x[index])
        torch.testing.assert_close(ours[index], step.pred_original_sample, rtol=1e-5, atol=2e-5)
    if schedule.prediction is Prediction.V:
        expected = theirs.get_velocity(clean, noise, timesteps)
        torch.testing.assert_close(training_target(Prediction.V, clean, noise, alphas), expected)


def test_the_last_timestep_of_zero_terminal_snr_is_pure_noise_and_can_be_stepped_from() -> None:
    schedule = Schedule.from_config(ZERO_SNR)
    alpha, reached = schedule.alphas(10)
    assert alpha[0] == 0
    for eta in (0.0, 1.0, 1.85):
        coefficients = step_coefficients(
            alpha, reached, torch.full_like(alpha, eta), torch.ones_like(alpha), Prediction.V
        )
        assert bool(torch.isfinite(coefficients).all())
    # x_T is e, and the output -x0: eta 0 goes on with both.
    of_latents, of_output, _ = step_coefficients(alpha, reached, alpha * 0, torch.ones_like(alpha), Prediction.V)[0]
    torch.testing.assert_close(torch.stack([of_latents, -of_output]), torch.stack([1 - reached[0], reached[0]]).sqrt())
