"""Steps along any Gaussian path: diffusers' schedulers, and marginals where the exact score is known."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.diffusion.path import Level, step_spreads
from unerase_backend.diffusion.prediction import Prediction, training_target
from unerase_backend.diffusion.schedule import noise_step, step_coefficients

VELOCITY = {"prediction_type": "v_prediction"}
DDIM = [
    {"prediction_type": prediction, "timestep_spacing": spacing}
    for prediction in ("epsilon", "v_prediction")
    for spacing in ("leading", "trailing")
] + [VELOCITY | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("config", DDIM, ids=lambda config: " ".join(map(str, config.values())))
def test_without_noise_a_step_is_ddims(config: dict[str, Any]) -> None:
    steps = 20
    theirs = DDIMScheduler(steps_offset=1, clip_sample=False, **config)
    theirs.set_timesteps(steps)
    prediction, timesteps = Prediction(config["prediction_type"]), theirs.timesteps
    alphas = theirs.alphas_cumprod.double()
    reached = [int(timestep) - 1000 // steps for timestep in timesteps]
    after = torch.stack([alphas[each] if each >= 0 else theirs.final_alpha_cumprod.double() for each in reached])
    level, none = Level.of_alphas(alphas[timesteps]), torch.zeros(steps, dtype=torch.float64)
    coefficients = step_coefficients(level, Level.of_alphas(after), none, none + 1, prediction)
    x, output, z = drawn(3, steps, 4, 2, 2)
    ours = noise_step(x, output, z, coefficients)
    for index, timestep in enumerate(timesteps.tolist()):
        expected = theirs.step(output[index], timestep, x[index], eta=0).prev_sample
        torch.testing.assert_close(ours[index], expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "given"),
    [({}, {}), ({"shift": 3.0}, {}), ({"use_dynamic_shifting": True}, {"mu": 0.9})],
    ids=["plain", "shift", "dynamic shift"],
)
def test_without_noise_a_step_on_a_flow_is_eulers(config: dict[str, Any], given: dict[str, float]) -> None:
    steps = 12
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    theirs.set_timesteps(steps, **given)
    sigmas, none = theirs.sigmas.double(), torch.zeros(steps, dtype=torch.float64)
    levels = Level.of_sigmas(sigmas)
    coefficients = step_coefficients(levels[:-1], levels[1:], none, none + 1, Prediction.FLOW)
    x, output, z = drawn(3, steps, 4, 2, 2)
    ours = noise_step(x, output, z, coefficients)
    for index, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(output[index].float(), timestep, x[index].float()).prev_sample
        torch.testing.assert_close(ours[index].float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_marginals_at_the_end_are_those_of_a_gaussian(prediction: Prediction, eta: float) -> None:
    """Of data with mean m and deviation d, E[x0 | x] = m + a d^2 (x - a m) / (a^2 d^2 + s^2), exactly."""
    mean, deviation, steps, samples = 0.7, 0.4, 400, 40_000
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if prediction is Prediction.FLOW:
        levels = Level.of_sigmas(sigmas)
    else:
        # From pure noise, which a model of the noise cannot be asked for, to the picture.
        levels = Level.of_alphas((1 - 0.9999 * sigmas**2).clamp(max=1))
    draw = torch.Generator().manual_seed(3)
    x = torch.randn((samples, 1, 1, 1), generator=draw, dtype=torch.float64)
    for step in range(steps):
        level, reached = levels[step : step + 1], levels[step + 1 : step + 2]
        a, s = level.signal, level.spread
        clean = mean + a * deviation**2 * (x - a * mean) / (a**2 * deviation**2 + s**2)
        output = training_target(prediction, clean, (x - a * clean) / s, level)
        z = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        coefficients = step_coefficients(level, reached, torch.full_like(a, eta), torch.ones_like(a), prediction)
        x = noise_step(x, output, z, coefficients.expand(samples, 3))
    # Four standard errors, and a part in a hundred for the steps, which are finite.
    assert abs(x.mean().item() - mean) < 4 * deviation / samples**0.5 + 0.005
    assert x.std().item() == pytest.approx(deviation, rel=4 / (2 * samples) ** 0.5 + 0.01)


@given(share=st.floats(1e-3, 0.999), further=st.floats(0.01, 1), flow=st.booleans())
@settings(max_examples=200, deadline=None)
def test_an_ancestral_step_keeps_the_spread_of_the_level_that_it_reaches(
    share: float, further: float, flow: bool
) -> None:
    """Of x' = a' x0 + d e + t z with e and z independent, the spread is sqrt(d^2 + t^2) = s'."""
    first, second = (torch.tensor([each], dtype=torch.float64) for each in (share, share + (1 - share) * further))
    of = (lambda each: Level.of_sigmas(1 - each)) if flow else Level.of_alphas
    level, reached = of(first), of(second)
    of_noise, of_drawn = step_spreads(level, reached, torch.ones_like(first))
    torch.testing.assert_close((of_noise**2 + of_drawn**2).sqrt(), reached.spread, atol=1e-9, rtol=1e-9)


def test_levels_are_of_rows_and_shape_themselves_to_latents() -> None:
    level = Level.of_sigmas(torch.tensor([0.0, 0.25, 1.0]))
    latents, noise = drawn(2, 3, 4, 2, 2).float()
    noised = level.noised(latents, noise)
    assert torch.equal(noised[0], latents[0])
    assert torch.equal(noised[2], noise[2])
    torch.testing.assert_close(noised[1], 0.75 * latents[1] + 0.25 * noise[1])
    assert torch.equal(level[1:].noised(latents[1:], noise[1:]), noised[1:])
