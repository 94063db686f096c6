"""The levels of a rectified flow: 1 - sigma of the picture and sigma of the noise, at the sigmas that diffusers visits.

The model is called with the time sigma N, N the number of its training timesteps, which is not a whole number. Which
sigmas n steps visit depends on the scheduler, on how a family's pipeline calls it, and with a dynamic shift on the
image's size:

    scheduler                        sigmas given   first ... last sigma, in even steps before the shift h
    FlowMatchEulerDiscreteScheduler  none           1 ... h_N(1 / N), the least of training (Stable Diffusion 3)
    FlowMatchEulerDiscreteScheduler  even           1 ... 1 / n                             (FLUX)
    DPMSolverMultistepScheduler      none           1 - 1 / N ... (1 - 1 / N) / n           (Sana)

h_N is h, or no shift at all where h is dynamic. So the last sigma of the first row is shifted twice, as in diffusers.
After the last sigma comes 0. Times are sigma N, which DPM-Solver cuts to whole numbers.

Training timesteps are 0 to N - 1, as those of betas are, with little noise first: t has the sigma h_N((t + 1) / N) and
the time N h_N((t + 1) / N). These are the scheduler's own sigmas and timesteps before it is told the number of steps,
the last one first, from which diffusers' training scripts draw.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from unerase_backend.catalogue.flow_schedules import (
    DPM_SOLVER,
    LEAST_SHIFT,
    MAX_SHIFT,
    DynamicShift,
    FlowStepping,
    FlowTraining,
)
from unerase_backend.catalogue.schedule_problems import FILE
from unerase_backend.diffusion.beta_levels import too_many
from unerase_backend.diffusion.libraries import library_class
from unerase_backend.diffusion.path import Level
from unerase_backend.runtime.errors import PreconditionError


class SigmasGiven(StrEnum):
    """The sigmas that a family's pipeline gives to `set_timesteps`."""

    NONE = "none"
    """None, as StableDiffusion3Pipeline and SanaPipeline do: the scheduler takes its own."""
    EVEN = "even"
    """`np.linspace(1, 1 / steps, steps)`, as FluxPipeline does, except to schedulers with `use_flow_sigmas`."""


@dataclass(frozen=True)
class PipelineCall:
    """How a family's pipeline calls its scheduler."""

    sigmas: SigmasGiven = SigmasGiven.NONE
    image_tokens: int | None = None
    """Tokens of an image in the model, of which a dynamic shift depends; None if the pipeline does not tell it."""


class FlowLevels:
    """The levels of noise of one flow."""

    time_type = torch.float32
    """The number type of the times that the model is called with."""

    def __init__(self, training: FlowTraining, stepping: FlowStepping, call: PipelineCall) -> None:
        """Read the sigmas of training, and how diffusers visits others."""
        self.training, self.stepping, self.call = training, stepping, call
        shift = 1.0 if isinstance(stepping.shift, DynamicShift) else stepping.shift
        trained = library_class("diffusers", "FlowMatchEulerDiscreteScheduler")(
            num_train_timesteps=training.timesteps, shift=shift
        )
        self.values: Tensor = trained.sigmas.flip(0)
        """Sigmas by training timestep, (training timesteps,), float32."""
        self.trained_times: Tensor = trained.timesteps.flip(0)
        self.identity = f"{stepping} {call} ".encode() + self.values.numpy().tobytes()

    def times(self, steps: int) -> Tensor:
        """Return the times that the model is called with, (steps,), float32."""
        return self._visit(steps)[0]

    def visited(self, steps: int) -> Tensor:
        """Return the training timesteps whose sigmas are nearest to those visited, (steps,), int64."""
        sigmas = self._visit(steps)[1][:-1]
        return (sigmas[:, None] - self.values[None]).abs().argmin(1)

    def levels(self, steps: int) -> tuple[Level, Level]:
        """Return the levels at each step and those that it reaches, float64."""
        levels = Level.of_sigmas(self._visit(steps)[1].double())
        return levels[:-1], levels[1:]

    def rounded_levels(self, steps: int) -> Level:
        """Return the levels at each step, float32."""
        return self.levels(steps)[0].to(torch.float32)

    def times_at(self, timesteps: Tensor) -> Tensor:
        """Return the times of training timesteps, float32."""
        return self.trained_times.to(timesteps.device)[timesteps]

    def level_at(self, timesteps: Tensor, dtype: torch.dtype) -> Level:
        """Return the levels of training timesteps."""
        return Level.of_sigmas(self.values.to(timesteps.device)[timesteps].to(dtype))

    def _visit(self, steps: int) -> tuple[Tensor, Tensor]:
        if not 1 <= steps <= self.training.timesteps:
            raise too_many(self.training.timesteps)
        times, sigmas = _visited(self.training, self.stepping, self.call, steps)
        # Steps too small for float32 would end where they begin.
        if not bool((sigmas.diff() < 0).all()):
            raise too_many(self.training.timesteps)
        return times, sigmas


def mu_of(shift: DynamicShift, call: PipelineCall) -> float:
    """Return the number that a pipeline gives to a scheduler with a dynamic shift.

    Raises:
        PreconditionError: the pipeline gives none, or one that is no shift.
    """
    if call.image_tokens is None:
        what = "cannot be followed: this family's pipeline does not tell its scheduler the size of the image"
        raise _unsupported(f"{what}; set it to false, and shift to a number")
    mu = shift.mu(call.image_tokens)
    least, most = (LEAST_SHIFT, MAX_SHIFT) if not shift.exponential else (math.log(LEAST_SHIFT), math.log(MAX_SHIFT))
    if not least <= mu <= most:
        what = f"cannot be followed: for an image of {call.image_tokens} tokens it gives {mu:g}"
        raise _unsupported(f"{what}, which must be from {least:g} to {most:g}; correct base_shift and max_shift")
    return mu


def _unsupported(what: str) -> PreconditionError:
    return PreconditionError(f"{FILE}: use_dynamic_shifting true {what}", reason="SCHEDULE_UNSUPPORTED")


@lru_cache(maxsize=64)
def _visited(training: FlowTraining, stepping: FlowStepping, call: PipelineCall, steps: int) -> tuple[Tensor, Tensor]:
    """Return the times of the steps, (steps,), and their sigmas with the 0 that they reach, (steps + 1,), float32."""
    shift, timesteps = stepping.shift, training.timesteps
    if stepping.solver == DPM_SOLVER:
        solver = library_class("diffusers", "DPMSolverMultistepScheduler")(
            num_train_timesteps=timesteps, use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
        )
        solver.set_timesteps(steps)
        return solver.timesteps.float(), solver.sigmas
    even = np.linspace(1.0, 1 / steps, steps) if call.sigmas is SigmasGiven.EVEN else None
    if isinstance(shift, DynamicShift):
        euler = library_class("diffusers", "FlowMatchEulerDiscreteScheduler")(
            num_train_timesteps=timesteps,
            use_dynamic_shifting=True,
            time_shift_type="exponential" if shift.exponential else "linear",
        )
        euler.set_timesteps(None if even is not None else steps, sigmas=even, mu=mu_of(shift, call))
    else:
        euler = library_class("diffusers", "FlowMatchEulerDiscreteScheduler")(
            num_train_timesteps=timesteps, shift=shift
        )
        euler.set_timesteps(None if even is not None else steps, sigmas=even)
    return euler.timesteps, euler.sigmas
