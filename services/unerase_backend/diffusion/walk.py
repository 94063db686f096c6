"""What the steps of trajectories have in common, computed once: levels by the number of steps, factors by the noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unerase_backend.diffusion.path import Level
from unerase_backend.diffusion.prediction import Prediction
from unerase_backend.diffusion.schedule import Schedule, estimate_coefficients, step_coefficients

FACTORS_KEPT = 256
"""How many kinds of noise a walk keeps the factors of."""


@dataclass(frozen=True)
class Walk:
    """The way through so many steps."""

    times: Tensor
    """The times that the model is called with, (steps,)."""
    level: Level
    """Where each step begins, (steps,), float64."""
    reached: Level
    """Where each step ends, (steps,), float64."""
    rounded: Tensor
    """Signal and spread of `level`, (steps, 2), float32."""
    kept: Tensor
    """The factors of a picture and its noise after each step (`Schedule.kept_coefficients`), (steps, 2), float32."""
    prediction: Prediction
    """What the model's output is."""
    _factors: dict[tuple[float, float], Tensor] = field(default_factory=dict)

    @staticmethod
    def of(schedule: Schedule, steps: int) -> "Walk":
        """Return the way through `steps` steps; errors as in `Schedule.times`."""
        level, reached = schedule.levels(steps)
        rounded, kept = schedule.rounded_levels(steps).stacked(), schedule.kept_coefficients(steps).float()
        return Walk(schedule.times(steps), level, reached, rounded, kept, schedule.prediction)

    def coefficients(self, eta: float, variance_scale: float) -> Tensor:
        """Return each step's factors, (steps, 3), float32; see `schedule.step_coefficients`."""
        if (eta, variance_scale) not in self._factors:
            if len(self._factors) == FACTORS_KEPT:
                self._factors.clear()
            anew, scale = (torch.full_like(self.level.signal, value) for value in (eta, variance_scale))
            factors = step_coefficients(self.level, self.reached, anew, scale, self.prediction)
            self._factors[eta, variance_scale] = factors.float()
        return self._factors[eta, variance_scale]

    def estimate(self, step: int) -> Tensor:
        """Return the factors, (3,), float32, with which a step gives x0; see `schedule.estimate_coefficients`."""
        return estimate_coefficients(self.level[step], self.prediction).float()
