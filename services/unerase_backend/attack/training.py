"""Trains a copy of a model's denoiser with AdamW (Loshchilov and Hutter, arXiv 1711.05101), always in float32.

A model that computes in 16 bits cannot hold the small steps of training. Its copy computes in 16 bits, and AdamW moves
float32 weights in main memory, of which the copy takes the rounded values after each step (Micikevicius et al., "Mixed
Precision Training", arXiv 1710.03740, section 3.1). The device then holds weights and gradients in 16 bits alone, a
quarter of the 16 bytes a parameter that float32 with both moments takes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class TrainedDenoiser:
    """A copy of a denoiser whose weights are trained; the denoiser itself does not change.

    The copy is in evaluation mode: without dropout.
    """

    def __init__(self, denoiser: Any, learning_rate: float) -> None:
        self.denoiser = copy.deepcopy(denoiser).requires_grad_()
        self.weights: list[Tensor] = list(self.denoiser.parameters())
        """The weights for which `step` takes gradients, in the model's dtype."""
        self._rounded = any(weight.dtype != torch.float32 for weight in self.weights)
        self._trained = [weight.detach().to("cpu", torch.float32) for weight in self.weights] if self._rounded else []
        self._optimiser = torch.optim.AdamW(self._trained or self.weights, learning_rate)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step with the gradient of each of `weights`."""
        if not self._rounded:
            for weight, gradient in zip(self.weights, gradients, strict=True):
                weight.grad = gradient
            self._optimiser.step()
            return
        for trained, gradient in zip(self._trained, gradients, strict=True):
            trained.grad = gradient.to("cpu", torch.float32)
        self._optimiser.step()
        self._optimiser.zero_grad()
        for weight, trained in zip(self.weights, self._trained, strict=True):
            weight.copy_(trained)

    def state(self) -> Mapping[str, Tensor]:
        """Return the copy's tensors by name, in the model's dtype."""
        state: Mapping[str, Tensor] = self.denoiser.state_dict()
        return state
