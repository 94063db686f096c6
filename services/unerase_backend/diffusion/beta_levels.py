"""The levels of a model with betas: the variance preserving path, at the timesteps of diffusers' DDIMScheduler.

The scheduler is as StableDiffusionPipeline configures it: no clipping of x0, and a steps offset of 1.
"""

from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue.schedules import Stepping, TrainingSchedule
from unerase_backend.diffusion.libraries import library_class
from unerase_backend.diffusion.path import Level
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError


class BetaLevels:
    """The levels of noise of one schedule of betas. The model is called with the training timestep itself."""

    time_type = torch.int64
    """The number type of the times that the model is called with."""

    def __init__(self, training: TrainingSchedule, stepping: Stepping, prediction: str) -> None:
        """Read the betas, and how DDIM steps over them."""
        self.scheduler: Any = library_class("diffusers", "DDIMScheduler")(
            num_train_timesteps=training.timesteps,
            beta_start=training.beta_start,
            beta_end=training.beta_end,
            beta_schedule=training.beta_schedule,
            trained_betas=None if training.trained_betas is None else list(training.trained_betas),
            rescale_betas_zero_snr=training.zero_snr,
            prediction_type=prediction,
            timestep_spacing=stepping.spacing,
            set_alpha_to_one=stepping.alpha_to_one,
            steps_offset=1,
            clip_sample=False,
        )
        self.values: Tensor = self.scheduler.alphas_cumprod
        """Cumulative alphas by timestep, (training timesteps,), float32."""
        self.identity: bytes = self.values.numpy().tobytes()

    def times(self, steps: int) -> Tensor:
        """Return the timesteps visited, (steps,), int64."""
        training = len(self.values)
        if steps <= training:
            self.scheduler.set_timesteps(steps)
            # Trailing timesteps of some counts have one too many, below 0, by the rounding of diffusers' spacing.
            timesteps: Tensor = self.scheduler.timesteps[:steps]
            if int(timesteps.max()) < training:
                return timesteps
        raise too_many(training)

    def visited(self, steps: int) -> Tensor:
        """Return the timesteps visited, (steps,), int64."""
        return self.times(steps)

    def levels(self, steps: int) -> tuple[Level, Level]:
        """Return the levels at each step and those that it reaches, float64."""
        timesteps = self.times(steps)
        alphas = self.values.double()
        previous = timesteps - len(alphas) // steps
        final = self.scheduler.final_alpha_cumprod.double()
        reached = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
        return Level.of_alphas(alphas[timesteps]), Level.of_alphas(reached)

    def rounded_levels(self, steps: int) -> Level:
        """Return the levels at each step, float32."""
        return self.level_at(self.times(steps), torch.float32)

    def times_at(self, timesteps: Tensor) -> Tensor:
        """Return the training timesteps as they are."""
        return timesteps

    def level_at(self, timesteps: Tensor, dtype: torch.dtype) -> Level:
        """Return the levels of training timesteps."""
        return Level.of_alphas(self.values.to(timesteps.device)[timesteps].to(dtype))


def too_many(training: int) -> InvalidRequestError:
    """Return the error of more steps than a schedule has."""
    return InvalidRequestError.of(
        FieldViolation("steps", f"must be fewer: the model has a schedule of {training} timesteps")
    )
