"""Which levels of its path a trajectory visits, and the factors of each step.

There are two kinds of schedules: of betas (`beta_levels.py`), and of rectified flows (`flow_levels.py`).
`catalogue/schedules.py` says what is followed of a model's scheduler configuration; `path.py` has the step. Two words:

* a *timestep* is a whole number from 0 to the training timesteps, with more noise the greater it is. Attacks and the
  likelihood draw timesteps, and each has a level;
* a *time* is what the model is called with. With betas it is the timestep. On a flow it is sigma times the number of
  training timesteps, float32, and a trajectory visits times that no timestep has.

Inpainting sets the latents outside the mask m (1 where the model paints) to the level (a', s') that each step reaches,
with the initial noise n and the picture's clean latents y; they are clean at the end:

    x' <- m x' + (1 - m) (a' y + s' n)

A picture that begins a trajectory is noised in the same way, with the initial noise: a' y + s' n.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue.flow_schedules import DynamicShift, FlowStepping, FlowTraining
from unerase_backend.catalogue.schedules import ScheduleConfig, read_schedule, schedule_problems
from unerase_backend.diffusion.beta_levels import BetaLevels
from unerase_backend.diffusion.flow_levels import FlowLevels, PipelineCall, mu_of
from unerase_backend.diffusion.path import Level, step_spreads
from unerase_backend.diffusion.prediction import Prediction, of_latents_and_output
from unerase_backend.runtime.errors import PreconditionError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The training schedule of a model, what the model predicts, and the levels that are visited."""

    config: ScheduleConfig
    noise: BetaLevels | FlowLevels
    prediction: Prediction
    measured: Prediction
    """The prediction in which denoising errors are measured: the model's own, or that of the model compared with."""
    call: PipelineCall = field(default_factory=PipelineCall)

    @property
    def training_timesteps(self) -> int:
        """How many timesteps the model was trained at."""
        return self.config.training.timesteps

    @property
    def time_type(self) -> torch.dtype:
        """The number type of times: int64 with betas, float32 on a flow."""
        return self.noise.time_type

    @property
    def identity(self) -> bytes:
        """What tells the levels of a schedule from those of another."""
        return self.noise.identity

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Return the schedule for a pipeline's scheduler configuration, whatever scheduler it names.

        Raises:
            PreconditionError: it cannot be followed; the message names each key with its value.
        """
        if problems := schedule_problems(config):
            raise PreconditionError("; ".join(map(str, problems)), reason="SCHEDULE_UNSUPPORTED")
        return cls.of(read_schedule(config))

    @classmethod
    def of(cls, config: ScheduleConfig, call: PipelineCall | None = None) -> "Schedule":
        """Return the schedule of what was read from a scheduler configuration, and of how a pipeline calls it."""
        prediction, call = Prediction(config.prediction), call or PipelineCall()
        training, stepping = config.training, config.stepping
        if isinstance(training, FlowTraining) or isinstance(stepping, FlowStepping):
            assert isinstance(training, FlowTraining)  # noqa: S101 - both are of a flow, or neither is
            assert isinstance(stepping, FlowStepping)  # noqa: S101
            return cls(config, FlowLevels(training, stepping, call), prediction, prediction, call)
        return cls(config, BetaLevels(training, stepping, config.prediction), prediction, prediction, call)

    def called(self, call: PipelineCall) -> "Schedule":
        """Return this schedule as a family's pipeline calls its scheduler, which matters on a flow alone.

        Raises:
            PreconditionError: the shift depends on the size of the image, and the pipeline does not tell it.
        """
        if not isinstance(self.noise, FlowLevels):
            return replace(self, call=call)
        if isinstance(self.noise.stepping.shift, DynamicShift):
            mu_of(self.noise.stepping.shift, call)
        return replace(Schedule.of(self.config, call), measured=self.measured)

    def stepped_by(self, other: ScheduleConfig) -> "Schedule":
        """Return this schedule with the stepping of another, and denoising errors of the other's prediction.

        Raises:
            PreconditionError: one is of a flow, and the other of betas.
        """
        if self.config.flow != other.flow:
            message = f"{self.config.kind} cannot be stepped by the schedule of {other.kind}: they have other levels"
            raise PreconditionError(message, reason="SCHEDULES_DIFFER")
        stepped = Schedule.of(replace(self.config, stepping=other.stepping), self.call)
        return replace(stepped, measured=Prediction(other.prediction))

    def times(self, steps: int) -> Tensor:
        """Return the times that the model is called with in `steps` steps, descending, (steps,), of the time's type.

        Raises:
            InvalidRequestError: the training schedule has fewer timesteps.
            PreconditionError: the shift of a flow depends on the size of the image, which is not known.
        """
        return self.noise.times(steps)

    def visited(self, steps: int) -> Tensor:
        """Return the timesteps visited in `steps` steps, or the nearest ones, descending, (steps,), int64; errors as in
        `times`.
        """
        return self.noise.visited(steps)

    def levels(self, steps: int) -> tuple[Level, Level]:
        """Return the levels at each of `steps` steps and those that they reach, (steps,), float64; errors as in
        `times`.
        """
        return self.noise.levels(steps)

    def rounded_levels(self, steps: int) -> Level:
        """Return the levels at each of `steps` steps, (steps,), float32; errors as in `times`."""
        return self.noise.rounded_levels(steps)

    def times_at(self, timesteps: Tensor) -> Tensor:
        """Return the times of timesteps, in their shape and on their device, of the time's type."""
        return self.noise.times_at(timesteps)

    def level_at(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Return the levels of timesteps, in their shape and on their device."""
        return self.noise.level_at(timesteps, dtype)

    def kept_coefficients(self, steps: int) -> Tensor:
        """Return the factors of y and n after each of `steps` steps, (steps, 2), float64; errors as in `times`.

        As in diffusers' inpainting, the level is that of the next step, and clean after the last.
        """
        factors = self.levels(steps)[0].stacked()
        return torch.cat([factors[1:], torch.tensor([[1.0, 0.0]], dtype=torch.float64)])


def step_coefficients(
    level: Level, reached: Level, eta: Tensor, variance_scale: Tensor, prediction: Prediction = Prediction.EPSILON
) -> Tensor:
    """Return the step's factors of x, the model's output and z, (..., 3), in the precision of the levels.

    Args:
        level: Where the step begins, (...).
        reached: Where it ends, (...).
        eta: How much of the noise is drawn anew, (...).
        variance_scale: A factor of that noise, (...).
        prediction: What the model's output is.
    """
    of_noise, drawn = step_spreads(level, reached, eta)
    (clean_of_latents, clean_of_output), (noise_of_latents, noise_of_output) = of_latents_and_output(prediction, level)
    return torch.stack(
        [
            reached.signal * clean_of_latents + of_noise * noise_of_latents,
            reached.signal * clean_of_output + of_noise * noise_of_output,
            variance_scale * drawn,
        ],
        dim=-1,
    )


def estimate_coefficients(level: Level, prediction: Prediction = Prediction.EPSILON) -> Tensor:
    """Return the factors of x, the output and z, (..., 3), with which `noise_step` gives x0, from a level, (...)."""
    of_latents, of_output = of_latents_and_output(prediction, level)[0]
    return torch.stack([of_latents, of_output, torch.zeros_like(of_latents)], dim=-1)


def noise_step(latents: Tensor, output: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
    """Return x' of latents x, (rows, channels, height, width), each row with its own factors, (rows, 3).

    `output` is the model's output after guidance, `noise` is z; both have the latents' shape.
    """
    of_latents, of_output, of_noise = coefficients[:, :, None, None, None].unbind(1)
    return of_latents * latents + of_output * output + of_noise * noise
