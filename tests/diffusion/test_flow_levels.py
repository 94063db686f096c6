"""Times and levels of rectified flows against diffusers' schedulers, called as diffusers' own pipelines call them."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux import pipeline_flux
from diffusers.pipelines.sana import pipeline_sana
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.catalogue.schedules import read_schedule
from unerase_backend.diffusion.flow_levels import PipelineCall, SigmasGiven
from unerase_backend.diffusion.prediction import Prediction
from unerase_backend.diffusion.schedule import Schedule, noise_step, step_coefficients
from unerase_backend.runtime.errors import InvalidRequestError, PreconditionError

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = FLOW | {"use_dynamic_shifting": True, "shift": 3.0}
SANA = {
    "_class_name": "DPMSolverMultistepScheduler",
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}
BETAS = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def same_as(schedule: Schedule, theirs: Any, times: torch.Tensor) -> None:
    """Bit for bit: the times of a pipeline, and the sigmas of its scheduler with the one that the last step reaches."""
    steps = len(times)
    ours = schedule.times(steps)
    assert ours.dtype == schedule.time_type == torch.float32
    assert torch.equal(ours, times.float())
    level, reached = schedule.levels(steps)
    assert torch.equal(level.spread, theirs.sigmas[:-1].double())
    assert torch.equal(reached.spread, theirs.sigmas[1:].double())
    for each in (level, reached):
        assert torch.equal(each.signal, 1 - each.spread)
    rounded = schedule.rounded_levels(steps)
    assert torch.equal(rounded.spread, theirs.sigmas[:-1])


@pytest.mark.parametrize("steps", [1, 4, 28, 50, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.3])
def test_stable_diffusion_3_visits_its_schedulers_own_sigmas(shift: float, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    times, _ = pipeline_stable_diffusion_3.retrieve_timesteps(theirs, steps)
    same_as(Schedule.from_config(FLOW | {"shift": shift}), theirs, times)


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 9216])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_stable_diffusion_3_with_a_dynamic_shift(kind: str, tokens: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    mu = pipeline_stable_diffusion_3.calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    times, _ = pipeline_stable_diffusion_3.retrieve_timesteps(theirs, 20, mu=mu)
    schedule = Schedule.from_config(DYNAMIC | {"time_shift_type": kind})
    same_as(schedule.called(PipelineCall(image_tokens=tokens)), theirs, times)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 1.0},
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "shift": 3.0},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.3, "max_shift": 4.0},
        {"use_dynamic_shifting": True, "base_image_seq_len": 1024, "max_image_seq_len": 6400},
    ],
    ids=["schnell", "shift", "dev", "linear", "lengths"],
)
@pytest.mark.parametrize("tokens", [256, 4096])
def test_flux_visits_even_sigmas_shifted(config: dict[str, Any], tokens: int, steps: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    # As FluxPipeline calls it, whether or not the shift is dynamic.
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = pipeline_flux.calculate_shift(tokens, *(theirs.config[key] for key in keys))
    sigmas = np.linspace(1.0, 1 / steps, steps)
    times, _ = pipeline_flux.retrieve_timesteps(theirs, steps, sigmas=sigmas, mu=mu)
    call = PipelineCall(SigmasGiven.EVEN, tokens)
    same_as(Schedule.from_config(FLOW | config).called(call), theirs, times)


@pytest.mark.parametrize("steps", [1, 2, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.5])
def test_sana_visits_the_sigmas_of_its_solver_and_is_told_whole_times(shift: float, steps: int) -> None:
    theirs = DPMSolverMultistepScheduler.from_config(SANA | {"flow_shift": shift})
    times, _ = pipeline_sana.retrieve_timesteps(theirs, steps)
    schedule = Schedule.from_config(SANA | {"flow_shift": shift})
    # FluxPipeline gives no sigmas to a scheduler of flow sigmas.
    for call in (PipelineCall(), PipelineCall(SigmasGiven.EVEN, 1024)):
        same_as(schedule.called(call), theirs, times)
    assert torch.equal(schedule.times(steps), schedule.times(steps).round())


@pytest.mark.parametrize(
    ("config", "call", "theirs"),
    [
        (FLOW | {"shift": 3.0}, PipelineCall(), FlowMatchEulerDiscreteScheduler(shift=3.0)),
        (DYNAMIC, PipelineCall(SigmasGiven.EVEN, 1024), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
        # Of the first order, DPM-Solver++ is DDIM's step, and on a flow Euler's.
        (SANA, PipelineCall(), DPMSolverMultistepScheduler.from_config(SANA, solver_order=1)),
    ],
    ids=["sd3", "flux", "sana"],
)
def test_a_whole_trajectory_is_that_of_diffusers(config: dict[str, Any], call: PipelineCall, theirs: Any) -> None:
    steps = 12
    schedule = Schedule.from_config(config).called(call)
    if call.sigmas is SigmasGiven.EVEN:
        mu = pipeline_flux.calculate_shift(call.image_tokens)
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        theirs.set_timesteps(steps)
    level, reached = schedule.levels(steps)
    none = torch.zeros(steps, dtype=torch.float64)
    coefficients = step_coefficients(level, reached, none, none + 1, schedule.prediction).float()
    ours = expected = torch.randn((1, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    for index, (time, own) in enumerate(zip(theirs.timesteps, schedule.times(steps), strict=True)):
        # What a model might say, which depends on the time and on the latents.
        def model(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return torch.sin(3 * x) * (1 + time / 500) - x

        expected = theirs.step(model(expected, time), time, expected).prev_sample
        ours = noise_step(ours, model(ours, own), torch.zeros_like(ours), coefficients[index : index + 1])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (FLOW, {}),
        (FLOW | {"shift": 3.0}, {"shift": 3.0}),
        (FLOW | {"shift": 3.0, "num_train_timesteps": 200}, {"shift": 3.0, "num_train_timesteps": 200}),
        (DYNAMIC, {"use_dynamic_shifting": True}),
        (SANA, {"shift": 3.0}),
    ],
    ids=["plain", "shift", "shorter", "dynamic", "sana"],
)
def test_timesteps_of_training_have_the_sigmas_and_times_of_diffusers_scheduler(
    config: dict[str, Any], made: dict[str, Any]
) -> None:
    theirs, schedule = FlowMatchEulerDiscreteScheduler(**made), Schedule.from_config(config)
    timesteps = torch.arange(schedule.training_timesteps)
    assert torch.equal(schedule.times_at(timesteps), theirs.timesteps.flip(0))
    level = schedule.level_at(timesteps)
    assert torch.equal(level.spread, theirs.sigmas.flip(0))
    x, noise = torch.randn((2, 5, 4, 2, 2), generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([0, 7, 100, 180, 199])
    expected = theirs.scale_noise(x, schedule.times_at(chosen), noise)
    torch.testing.assert_close(schedule.level_at(chosen).noised(x, noise), expected)
    exact = schedule.level_at(chosen, torch.float64)
    assert exact.spread.dtype == torch.float64
    assert torch.equal(exact.spread.float(), schedule.level_at(chosen).spread)
    # Any shape, and a timestep alone.
    assert schedule.times_at(chosen.reshape(5, 1)).shape == (5, 1)
    assert float(schedule.times_at(torch.tensor(7))) == pytest.approx(float(schedule.times_at(chosen)[1]))


configs = st.one_of(
    st.floats(0.05, 20).map(lambda shift: FLOW | {"shift": shift}),
    st.floats(0.05, 20).map(lambda shift: SANA | {"flow_shift": shift}),
    st.floats(0.1, 2).map(lambda most: DYNAMIC | {"max_shift": most}),
)


@given(config=configs, steps=st.integers(1, 60), even=st.booleans(), tokens=st.integers(16, 5000))
@settings(max_examples=100, deadline=None)
def test_every_step_goes_towards_the_picture_and_the_last_one_arrives(
    config: dict[str, Any], steps: int, even: bool, tokens: int
) -> None:
    call = PipelineCall(SigmasGiven.EVEN if even else SigmasGiven.NONE, tokens)
    schedule = Schedule.from_config(config).called(call)
    level, reached = schedule.levels(steps)
    assert bool((level.spread > reached.spread).all())
    assert torch.equal(level.spread[1:], reached.spread[:-1])
    assert (reached.signal[-1].item(), reached.spread[-1].item()) == (1.0, 0.0)
    torch.testing.assert_close(level.signal + level.spread, torch.ones(steps, dtype=torch.float64))
    # Times are told in thousandths of a sigma, cut to whole ones for DPM-Solver.
    torch.testing.assert_close(schedule.times(steps).double(), 1000 * level.spread, rtol=0, atol=1.001)
    kept = schedule.kept_coefficients(steps)
    assert torch.equal(kept[:-1, 0], reached.signal[:-1])
    assert kept[-1].tolist() == [1.0, 0.0]
    nearest = schedule.visited(steps)
    assert nearest.dtype == torch.int64
    assert nearest.tolist() == sorted(nearest.tolist(), reverse=True)
    trained = schedule.level_at(torch.arange(1000)).spread
    misses = (trained[nearest] - schedule.rounded_levels(steps).spread).abs()
    assert torch.equal(misses, (trained[None] - schedule.rounded_levels(steps).spread[:, None]).abs().amin(1))


def test_a_flow_visits_the_timesteps_of_training_that_its_steps_are() -> None:
    # Of 1000 even sigmas, the steps of 10 are every hundredth, the first the one of the most noise.
    schedule = Schedule.from_config(FLOW).called(PipelineCall(SigmasGiven.EVEN))
    assert schedule.visited(10).tolist() == list(range(999, 0, -100))
    assert torch.equal(schedule.times_at(schedule.visited(10)), schedule.times(10))


def test_timesteps_with_betas_are_whole_and_their_own_times() -> None:
    schedule = Schedule.from_config(BETAS)
    assert schedule.times(10).dtype == schedule.time_type == torch.int64
    assert schedule.visited(10).tolist() == schedule.times(10).tolist()
    at = torch.tensor([3, 700])
    assert schedule.times_at(at) is at
    rounded, exact = schedule.rounded_levels(10), schedule.level_at(schedule.times(10))
    assert torch.equal(rounded.signal, exact.signal)
    assert torch.equal(rounded.spread, exact.spread)
    # How a pipeline calls its scheduler is a matter of flows.
    called = schedule.called(PipelineCall(SigmasGiven.EVEN, 4096))
    assert torch.equal(called.times(10), schedule.times(10))


def test_more_steps_than_training_had_timesteps_are_refused() -> None:
    schedule = Schedule.from_config(FLOW | {"num_train_timesteps": 200})
    assert len(schedule.times(200)) == 200
    for refused in (schedule.times, schedule.levels, schedule.visited, schedule.kept_coefficients):
        with pytest.raises(InvalidRequestError, match="steps"):
            refused(201)


def test_steps_that_end_where_they_begin_are_refused() -> None:
    # Half of all even sigmas are within 1e-6 of 1 after such a shift.
    schedule = Schedule.from_config(FLOW | {"shift": 1000.0, "num_train_timesteps": 100_000})
    assert len(schedule.times(10)) == 10
    with pytest.raises(InvalidRequestError, match="steps: must be fewer"):
        schedule.called(PipelineCall(SigmasGiven.EVEN)).times(90_000)


def test_a_dynamic_shift_needs_a_pipeline_that_tells_the_size_of_the_image() -> None:
    schedule = Schedule.from_config(DYNAMIC)
    # What no step depends on is known.
    assert schedule.level_at(torch.tensor([999])).spread.item() == 1
    for refused in (lambda: schedule.called(PipelineCall()), lambda: schedule.times(4)):
        with pytest.raises(PreconditionError, match=r"use_dynamic_shifting true .* does not tell") as caught:
            refused()
        assert caught.value.reason == "SCHEDULE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("change", "tokens", "said"),
    [
        (
            {"time_shift_type": "linear", "base_shift": -0.5},
            256,
            "for an image of 256 tokens it gives -0.5, which must",
        ),
        ({"max_shift": 9.0}, 4096, "gives 9, which must be from -6.90776 to 6.90776; correct base_shift and max_shift"),
        ({"max_shift": 1000.0}, 10**6, "correct base_shift and max_shift"),
    ],
)
def test_a_dynamic_shift_that_is_none_for_the_image_is_refused(change: dict[str, Any], tokens: int, said: str) -> None:
    with pytest.raises(PreconditionError, match="use_dynamic_shifting true cannot be followed") as caught:
        Schedule.from_config(DYNAMIC | change).called(PipelineCall(image_tokens=tokens))
    assert said in str(caught.value)


def test_a_flow_takes_the_shift_of_another_and_its_own_pipelines_call() -> None:
    call = PipelineCall(SigmasGiven.EVEN, 1024)
    schnell = Schedule.from_config(FLOW).called(call)
    dev, sana = read_schedule(DYNAMIC), read_schedule(SANA)
    stepped = schnell.stepped_by(dev)
    assert torch.equal(stepped.times(8), Schedule.from_config(DYNAMIC).called(call).times(8))
    assert not torch.equal(stepped.times(8), schnell.times(8))
    assert (stepped.call, stepped.measured, stepped.prediction) == (call, Prediction.FLOW, Prediction.FLOW)
    # So both are measured at the same levels of noise.
    at, shifted = torch.tensor([10, 500]), Schedule.from_config(SANA)
    assert torch.equal(schnell.stepped_by(sana).level_at(at).spread, shifted.level_at(at).spread)
    assert torch.equal(schnell.stepped_by(sana).times(8), shifted.times(8))
    assert schnell.stepped_by(schnell.config).identity == schnell.identity
    assert len({each.identity for each in (schnell, stepped, shifted, Schedule.from_config(FLOW))}) == 4
    # A loader says at last how the pipeline calls it.
    late = Schedule.from_config(FLOW).stepped_by(dev)
    assert torch.equal(late.called(call).times(8), stepped.times(8))
    with pytest.raises(PreconditionError, match="use_dynamic_shifting"):
        late.times(8)


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (FLOW, BETAS, "a rectified flow cannot be stepped by the schedule of a model with betas"),
        (BETAS, FLOW, "a model with betas cannot be stepped by the schedule of a rectified flow"),
    ],
)
def test_a_flow_and_betas_do_not_step_each_other(own: dict[str, Any], other: dict[str, Any], said: str) -> None:
    with pytest.raises(PreconditionError, match=said) as caught:
        Schedule.from_config(own).stepped_by(read_schedule(other))
    assert caught.value.reason == "SCHEDULES_DIFFER"
