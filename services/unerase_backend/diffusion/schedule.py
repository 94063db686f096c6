"""DDIM: the timesteps that a trajectory visits, and the step from one to the next.

Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502, equations 12 and 16, with the noise beyond
DDPM's (eta > 1) and the variance scale of Lu et al., arXiv 2505.17013. With a_t the cumulative alpha at t, a_p the
same at the next (earlier) timestep, x0 and e what follows from the model's output after guidance (`prediction`) and z
Gaussian noise:

    s_t^2   = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    x_{t-1} = sqrt(a_p) x0 + sqrt(abs(1 - a_p - eta^2 s_t^2)) e + variance_scale eta s_t z

Inpainting sets the latents outside the mask m (1 where the model paints) to the noise level that each step reaches,
with the initial noise n and the picture's clean latents y; they are clean at the end:

    x_{t-1} <- m x_{t-1} + (1 - m) (sqrt(a_p) y + sqrt(1 - a_p) n)

A picture that begins a trajectory is noised in the same way, with the initial noise: sqrt(a_p) y + sqrt(1 - a_p) n.

The timesteps are those of diffusers' DDIMScheduler as StableDiffusionPipeline configures it: no clipping of x0, and a
steps offset of 1. `catalogue/schedules.py` says what is followed of a model's scheduler configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unerase_backend.catalogue.schedules import ScheduleConfig, read_schedule, schedule_problems
from unerase_backend.diffusion.libraries import libraries
from unerase_backend.diffusion.prediction import Prediction
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

    def alphas(self, steps: int) -> tuple[Tensor, Tensor]:
        """Return a_t and a_p at each of `steps` steps, both (steps,), float64; errors as in `timesteps`."""
        timesteps = self.timesteps(steps)
        alphas = self.alphas_cumprod.double()
        previous = timesteps - len(alphas) // steps
        final = self.scheduler.final_alpha_cumprod.double()
        return alphas[timesteps], torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)

    def kept_coefficients(self, steps: int) -> Tensor:
        """Return the factors of y and n after each of `steps` steps, (steps, 2), float64; errors as in `timesteps`.

        As in diffusers' inpainting, a_p is read at the next timestep that is visited, and is 1 after the last step.
        """
        reached = torch.cat([self.alphas(steps)[0][1:], torch.ones(1, dtype=torch.float64)])
        return torch.stack([reached.sqrt(), (1 - reached).sqrt()], dim=-1)


def step_coefficients(
    alpha: Tensor,
    alpha_previous: Tensor,
    eta: Tensor,
    variance_scale: Tensor,
    prediction: Prediction = Prediction.EPSILON,
) -> Tensor:
    """Return the step's factors of x_t, the model's output and z, (..., 3), from a_t, a_p, eta and the variance scale.

    Each of these is (...); the factors have their precision.
    """
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    direction = (1 - alpha_previous - eta**2 * variance).abs().sqrt()
    if prediction is Prediction.EPSILON:
        of_latents = (alpha_previous / alpha).sqrt()
        of_output = direction - of_latents * (1 - alpha).sqrt()
    else:
        signal, spread, reached = alpha.sqrt(), (1 - alpha).sqrt(), alpha_previous.sqrt()
        of_latents = reached * signal + direction * spread
        of_output = direction * signal - reached * spread
    return torch.stack([of_latents, of_output, variance_scale * eta * variance.sqrt()], dim=-1)


def estimate_coefficients(alpha: Tensor, prediction: Prediction = Prediction.EPSILON) -> Tensor:
    """Return the factors of x_t, the output and z, (..., 3), with which `noise_step` gives x0, from a_t, (...)."""
    if prediction is Prediction.EPSILON:
        return torch.stack([alpha.rsqrt(), -((1 - alpha) / alpha).sqrt(), torch.zeros_like(alpha)], dim=-1)
    return torch.stack([alpha.sqrt(), -(1 - alpha).sqrt(), torch.zeros_like(alpha)], dim=-1)


def noise_step(latents: Tensor, output: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
    """Return x_{t-1} of latents x_t, (rows, channels, height, width), each row with its own factors, (rows, 3).

    `output` is the model's output after guidance, `noise` is z; both have the latents' shape.
    """
    of_latents, of_output, of_noise = coefficients[:, :, None, None, None].unbind(1)
    return of_latents * latents + of_output * output + of_noise * noise


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, each row with its own a_t, (rows,)."""
    alphas = alphas[:, None, None, None]
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
