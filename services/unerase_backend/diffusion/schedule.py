"""Which levels of its path a trajectory visits, and the factors of each step.

The timesteps of models with betas are those of diffusers' DDIMScheduler as StableDiffusionPipeline configures it: no
clipping of x0, and a steps offset of 1. `catalogue/schedules.py` says what is followed of a model's scheduler
configuration; `path.py` has the step.

Inpainting sets the latents outside the mask m (1 where the model paints) to the level (a', s') that each step reaches,
with the initial noise n and the picture's clean latents y; they are clean at the end:

    x' <- m x' + (1 - m) (a' y + s' n)

A picture that begins a trajectory is noised in the same way, with the initial noise: a' y + s' n.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue.schedules import ScheduleConfig, read_schedule, schedule_problems
from unerase_backend.diffusion.libraries import libraries
from unerase_backend.diffusion.path import Level, step_spreads
from unerase_backend.diffusion.prediction import Prediction, of_latents_and_output
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, PreconditionError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The training schedule of a model, what the model predicts, and the DDIM timesteps within the schedule."""

    config: ScheduleConfig
    scheduler: Any
    """DDIM over the same betas, as diffusers implements it."""
    alphas_cumprod: Tensor
    """Cumulative alphas by timestep, (training timesteps,), float32."""
    prediction: Prediction
    measured: Prediction
    """The prediction in which denoising errors are measured: the model's own, or that of the model compared with."""

    @property
    def training_timesteps(self) -> int:
        """How many timesteps the model was trained at."""
        return len(self.alphas_cumprod)

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
    def of(cls, config: ScheduleConfig) -> "Schedule":
        """Return the schedule of what was read from a scheduler configuration."""
        training, stepping = config.training, config.stepping
        scheduler = libraries().DDIMScheduler(
            num_train_timesteps=training.timesteps,
            beta_start=training.beta_start,
            beta_end=training.beta_end,
            beta_schedule=training.beta_schedule,
            trained_betas=None if training.trained_betas is None else list(training.trained_betas),
            rescale_betas_zero_snr=training.zero_snr,
            prediction_type=config.prediction,
            timestep_spacing=stepping.spacing,
            set_alpha_to_one=stepping.alpha_to_one,
            steps_offset=1,
            clip_sample=False,
        )
        prediction = Prediction(config.prediction)
        return cls(config, scheduler, scheduler.alphas_cumprod, prediction, prediction)

    def stepped_by(self, other: ScheduleConfig) -> "Schedule":
        """Return this schedule with the stepping of another, and denoising errors of the other's prediction."""
        stepped = Schedule.of(replace(self.config, stepping=other.stepping))
        return replace(stepped, measured=Prediction(other.prediction))

    def timesteps(self, steps: int) -> Tensor:
        """Return the timesteps visited in `steps` steps, descending, (steps,), int64.

        Raises:
            InvalidRequestError: the training schedule has fewer timesteps.
        """
        training = len(self.alphas_cumprod)
        if steps <= training:
            self.scheduler.set_timesteps(steps)
            # Trailing timesteps of some counts have one too many, below 0, by the rounding of diffusers' spacing.
            timesteps: Tensor = self.scheduler.timesteps[:steps]
            if int(timesteps.max()) < training:
                return timesteps
        raise InvalidRequestError.of(
            FieldViolation("steps", f"must be fewer: the model has a schedule of {training} timesteps")
        )

    def levels(self, steps: int) -> tuple[Level, Level]:
        """Return the levels at each of `steps` steps and those that they reach, (steps,), float64; errors as in
        `timesteps`.
        """
        timesteps = self.timesteps(steps)
        alphas = self.alphas_cumprod.double()
        previous = timesteps - len(alphas) // steps
        final = self.scheduler.final_alpha_cumprod.double()
        reached = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
        return Level.of_alphas(alphas[timesteps]), Level.of_alphas(reached)

    def level_at(self, timesteps: Tensor, dtype: torch.dtype = torch.float32) -> Level:
        """Return the levels of timesteps of the training schedule, in their shape and on their device."""
        return Level.of_alphas(self.alphas_cumprod.to(timesteps.device)[timesteps].to(dtype))

    def kept_coefficients(self, steps: int) -> Tensor:
        """Return the factors of y and n after each of `steps` steps, (steps, 2), float64; errors as in `timesteps`.

        As in diffusers' inpainting, the level is that of the next timestep that is visited, and clean after the last.
        """
        visited = self.levels(steps)[0]
        factors = torch.stack([visited.signal, visited.spread], dim=-1)
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
