"""DDIM: the timesteps that a trajectory visits, and the step from one to the next.

Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502, equations 12 and 16, with the noise beyond
DDPM's (eta > 1) and the variance scale v of Lu et al., arXiv 2505.17013. With a_t the cumulative alpha at t, a_p the
same at the next (earlier) timestep, e the noise prediction after guidance and z Gaussian noise:

    x0      = (x_t - sqrt(1 - a_t) e) / sqrt(a_t)
    s_t^2   = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    x_{t-1} = sqrt(a_p) x0 + sqrt(abs(1 - a_p - eta^2 s_t^2)) e + v eta s_t z

Inpainting sets the latents outside the mask m (1 where the model paints) to the noise level that each step reaches,
with the initial noise n and the picture's clean latents y; they are clean at the end:

    x_{t-1} <- m x_{t-1} + (1 - m) (sqrt(a_p) y + sqrt(1 - a_p) n)

A picture that begins a trajectory is noised in the same way, with the initial noise: sqrt(a_p) y + sqrt(1 - a_p) n.

The timesteps are those of diffusers' DDIMScheduler as StableDiffusionPipeline configures it: no clipping of x0, and a
steps offset of 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, PreconditionError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The training schedule of a model, and the DDIM timesteps within it."""

    scheduler: Any
    alphas_cumprod: Tensor
    """Cumulative alphas by timestep, (training timesteps,), float32."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Schedule":
        """Return the schedule for a pipeline's scheduler configuration, whatever scheduler it names.

        Raises:
            PreconditionError: the model does not predict noise, or its scheduler thresholds samples.
        """
        scheduler = DDIMScheduler.from_config({**config, "steps_offset": 1, "clip_sample": False})
        if scheduler.config.prediction_type != "epsilon" or scheduler.config.thresholding:
            raise PreconditionError("only models that predict noise can be sampled", reason="MODEL_UNSUPPORTED")
        return cls(scheduler, scheduler.alphas_cumprod)

    def timesteps(self, steps: int) -> Tensor:
        """Return the timesteps visited in `steps` steps, descending, (steps,), int64.

        Raises:
            InvalidRequestError: the training schedule has fewer timesteps.
        """
        training = len(self.alphas_cumprod)
        if steps <= training:
            self.scheduler.set_timesteps(steps)
            timesteps: Tensor = self.scheduler.timesteps
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


def step_coefficients(alpha: Tensor, alpha_previous: Tensor, eta: Tensor, variance_scale: Tensor) -> Tensor:
    """Return the step's factors of x_t, e and z, (..., 3), from a_t, a_p, eta and v, each (...), in their precision."""
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    of_latents = (alpha_previous / alpha).sqrt()
    direction = (1 - alpha_previous - eta**2 * variance).abs().sqrt()
    of_prediction = direction - of_latents * (1 - alpha).sqrt()
    return torch.stack([of_latents, of_prediction, variance_scale * eta * variance.sqrt()], dim=-1)


def estimate_coefficients(alpha: Tensor) -> Tensor:
    """Return the factors of x_t, e and z, (..., 3), with which `noise_step` gives x0, from a_t, (...)."""
    return torch.stack([alpha.rsqrt(), -((1 - alpha) / alpha).sqrt(), torch.zeros_like(alpha)], dim=-1)


def noise_step(latents: Tensor, noise_prediction: Tensor, noise: Tensor, coefficients: Tensor) -> Tensor:
    """Return x_{t-1} of latents x_t, (rows, channels, height, width), each row with its own factors, (rows, 3).

    `noise_prediction` is e after guidance, `noise` is z; both have the latents' shape.
    """
    of_latents, of_prediction, of_noise = coefficients[:, :, None, None, None].unbind(1)
    return of_latents * latents + of_prediction * noise_prediction + of_noise * noise


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, each row with its own a_t, (rows,)."""
    alphas = alphas[:, None, None, None]
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
