"""What a model's output means: the noise e or the velocity v, and what follows from either.

With a_t the cumulative alpha, a = sqrt(a_t) and s = sqrt(1 - a_t), noised latents are x = a x0 + s e. A model predicts
the noise e (Ho et al., arXiv 2006.11239) or the velocity v = a e - s x0 (Salimans and Ho, arXiv 2202.00512, section 4).
From its output and x follow both parts of x:

    prediction   x0              e
    epsilon e    (x - s e) / a   e
    v            a x - s v       s x + a v

With v nothing is divided by a, so the last timestep of a schedule with zero terminal SNR, where a = 0 (Lin et al.,
arXiv 2305.08891), is a timestep like the others. Classifier-free guidance is a weighted mean of outputs. It gives the
same x0 and e in either prediction, because both are linear in the output and the weights sum to one.
"""

from enum import StrEnum

import torch
from torch import Tensor

from unerase_backend.catalogue.schedules import EPSILON, V_PREDICTION

LEAST_SIGNAL = 0.02
"""The least a at which a gradient of log p changes a velocity: dv = de / a, and pure noise has no gradient."""


class Prediction(StrEnum):
    """What a model predicts, by the name that scheduler configurations use."""

    EPSILON = EPSILON
    V = V_PREDICTION


def training_target(prediction: Prediction, latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Return what the model is trained to predict, of the latents' shape; each row has its own a_t, (rows,)."""
    if prediction is Prediction.EPSILON:
        return noise
    signal, spread = _factors(alphas, noise)
    return signal * noise - spread * latents


def parts(prediction: Prediction, output: Tensor, noised: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Return x0 and e, both of the latents' shape, of the model's output at noised latents; alphas as above.

    x0 of a model that predicts e is not finite where a_t is 0.
    """
    signal, spread = _factors(alphas, noised)
    if prediction is Prediction.EPSILON:
        return (noised - spread * output) / signal, output
    return signal * noised - spread * output, spread * noised + signal * output


def of_noise_change(prediction: Prediction, alphas: Tensor) -> Tensor:
    """Return by how much the output changes, (...), where e changes by 1 and x does not; 0 for v if a < LEAST_SIGNAL.

    From x = a x0 + s e follows v = (e - s x) / a.
    """
    if prediction is Prediction.EPSILON:
        return torch.ones_like(alphas)
    signal = alphas.sqrt()
    return torch.where(signal < LEAST_SIGNAL, torch.zeros_like(signal), 1 / signal.clamp(min=LEAST_SIGNAL))


def error_ratio(prediction: Prediction, wanted: Prediction, alphas: Tensor) -> Tensor:
    """Return the factors, (...), that turn squared errors of one prediction into those of another: (e error)^2 is
    a_t (v error)^2.
    """
    if prediction is wanted:
        return torch.ones_like(alphas)
    return alphas if wanted is Prediction.EPSILON else 1 / alphas


def _factors(alphas: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    shaped = alphas.reshape(-1, *(1,) * (like.dim() - 1))
    return shaped.sqrt(), (1 - shaped).sqrt()
