"""The path from a picture to noise: how much of each there is in noised latents, and one step along the path.

Noised latents are x = a x0 + s e, with the picture's latents x0 and Gaussian noise e. A path gives a, the signal, and
s, the spread, at each time:

    path                   a                 s
    variance preserving    sqrt(alpha_t)     sqrt(1 - alpha_t)     Ho et al., arXiv 2006.11239
    rectified flow         1 - sigma         sigma                 Liu et al., arXiv 2209.03003

One step goes from (a, s) to (a', s'), with x0 and e of the model's output (`prediction`), z Gaussian noise, eta and a
scale v of its variance:

    tau^2 = s'^2 (1 - (a s')^2 / (a' s)^2)
    x'    = a' x0 + sqrt(abs(s'^2 - eta^2 tau^2)) e + v eta tau z

tau is the spread of x' that is left once x and x0 are known, if the path is a Markov chain: with eta = 1 the step is
ancestral, and with eta = 0 nothing is drawn. On the variance preserving path these are DDIM's s_t and step (Song, Meng,
Ermon, arXiv 2010.02502, equations 12 and 16), since a^2 + s^2 = 1; eta > 1 and v are those of Lu et al., arXiv
2505.17013. On a rectified flow eta = 0 is Euler's step: x' = x + (s' - s) (e - x0).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Level:
    """A signal a and a spread s for each of some rows: two tensors of one shape, (rows,) or any other."""

    signal: Tensor
    spread: Tensor

    @classmethod
    def of_alphas(cls, alphas: Tensor) -> "Level":
        """Return the level of cumulative alphas on the variance preserving path."""
        return cls(alphas.sqrt(), (1 - alphas).sqrt())

    @classmethod
    def of_sigmas(cls, sigmas: Tensor) -> "Level":
        """Return the level of a rectified flow's sigmas."""
        return cls(1 - sigmas, sigmas)

    def stacked(self) -> Tensor:
        """Return signal and spread in one tensor, (..., 2)."""
        return torch.stack([self.signal, self.spread], dim=-1)

    def __getitem__(self, place: object) -> "Level":
        """Return the level of some rows."""
        return Level(self.signal[place], self.spread[place])  # type: ignore[index]

    def to(self, *args: object) -> "Level":
        """Return the level on another device, or in another number type, as a tensor's `to`."""
        return Level(self.signal.to(*args), self.spread.to(*args))  # type: ignore[call-overload]

    def over(self, latents: Tensor) -> "Level":
        """Return the level, (rows,), shaped so that it multiplies latents, (rows, ...)."""
        shape = (-1, *(1,) * (latents.dim() - 1))
        return Level(self.signal.reshape(shape), self.spread.reshape(shape))

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return a x0 + s e, of the latents' shape, each row at its own level."""
        level = self.over(latents)
        return level.signal * latents + level.spread * noise


def step_spreads(level: Level, reached: Level, eta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of e and of z in a step, the latter without the variance's scale."""
    share = (level.signal * reached.spread) ** 2 / (reached.signal * level.spread) ** 2
    variance = reached.spread**2 * (1 - share)
    return (reached.spread**2 - eta**2 * variance).abs().sqrt(), eta * variance.clamp(min=0).sqrt()
