"""What a model's output means: the noise e, the velocity v or the flow, and what follows from each.

Noised latents are x = a x0 + s e (`path`). A model predicts the noise e (Ho et al., arXiv 2006.11239), the velocity
v = a e - s x0 (Salimans and Ho, arXiv 2202.00512, section 4; a^2 + s^2 = 1), or the flow e - x0 (Liu et al., arXiv
2209.03003; a + s = 1). From its output o and x follow both parts of x:

    prediction   x0              e
    epsilon      (x - s o) / a   o
    v            a x - s o       s x + a o
    flow         x - s o         x + a o

With v and flow nothing is divided by a, so pure noise, where a = 0 (Lin et al., arXiv 2305.08891), is a level like the
others. Classifier-free guidance is a weighted mean of outputs. It gives the same x0 and e in every prediction, because
both are linear in the output and the weights sum to one.
"""

from enum import StrEnum

import torch
from torch import Tensor

from unerase_backend.catalogue.schedules import EPSILON, V_PREDICTION
from unerase_backend.diffusion.path import Level

LEAST_SIGNAL = 0.02
"""The least a at which a gradient of log p changes a velocity or flow: do = de / a, and pure noise has no gradient."""


class Prediction(StrEnum):
    """What a model predicts, by the name that scheduler configurations use."""

    EPSILON = EPSILON
    V = V_PREDICTION
    FLOW = "flow_prediction"


def training_target(prediction: Prediction, latents: Tensor, noise: Tensor, level: Level) -> Tensor:
    """Return what the model is trained to predict, of the latents' shape; each row has its own level, (rows,)."""
    match prediction:
        case Prediction.EPSILON:
            return noise
        case Prediction.V:
            shaped = level.over(noise)
            return shaped.signal * noise - shaped.spread * latents
        case Prediction.FLOW:
            return noise - latents


def parts(prediction: Prediction, output: Tensor, noised: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Return x0 and e, both of the latents' shape, of the model's output at noised latents; each row has its own level.

    x0 of a model that predicts e is not finite where a is 0.
    """
    shaped = level.over(noised)
    signal, spread = shaped.signal, shaped.spread
    match prediction:
        case Prediction.EPSILON:
            return (noised - spread * output) / signal, output
        case Prediction.V:
            return signal * noised - spread * output, spread * noised + signal * output
        case Prediction.FLOW:
            return noised - spread * output, noised + signal * output


def of_latents_and_output(prediction: Prediction, level: Level) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the factors of x and of the output in x0, and those in e, each of the level's shape."""
    signal, spread = level.signal, level.spread
    one, none = torch.ones_like(signal), torch.zeros_like(signal)
    match prediction:
        case Prediction.EPSILON:
            return (1 / signal, -spread / signal), (none, one)
        case Prediction.V:
            return (signal, -spread), (spread, signal)
        case Prediction.FLOW:
            return (one, -spread), (one, signal)


def of_noise_change(prediction: Prediction, level: Level) -> Tensor:
    """Return by how much the output changes, (...), where e changes by 1 and x does not; 0 for v and flow if
    a < LEAST_SIGNAL.

    From x = a x0 + s e follows v = (e - s x) / a, and e - x0 = (e - x) / a.
    """
    if prediction is Prediction.EPSILON:
        return torch.ones_like(level.signal)
    signal = level.signal
    return torch.where(signal < LEAST_SIGNAL, torch.zeros_like(signal), 1 / signal.clamp(min=LEAST_SIGNAL))


def error_ratio(prediction: Prediction, wanted: Prediction, level: Level) -> Tensor:
    """Return the factors, (...), that turn squared errors of one prediction into those of another on the same path:
    (e error)^2 is a^2 times (v error)^2 or (flow error)^2.
    """
    if (prediction is Prediction.EPSILON) == (wanted is Prediction.EPSILON):
        return torch.ones_like(level.signal)
    squared = level.signal**2
    return squared if wanted is Prediction.EPSILON else 1 / squared
