"""Steering: a direction is added to, or removed from, the output of a module of the UNet in every step.

    add:     x <- x + strength * d
    ablate:  x <- x - strength * (x . u) u,    u = d / |d|

with d a vector over the features of the module's output: the channels of (rows, channels, height, width), the width of
(rows, tokens, width). This is how features of a sparse autoencoder are steered: d is then a column of its decoder.
All rows of the trajectory are steered, those of the empty prompt included.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from unerase_backend.catalogue.entries import Weights
from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.catalogue.tensors import UNREADABLE, read_header
from unerase_backend.diffusion.guarding import Guard, guard
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unerase_backend.diffusion.loading import DiffusionModel


class SteeringParameters(GuardParameters):
    """`module` by its name in the UNet; `direction`, a safetensors file, and its `tensor`, a vector; what to do."""

    module: Annotated[str, Field(min_length=1, max_length=200)]
    direction: Weights
    tensor: Annotated[str, Field(min_length=1, max_length=200)] = "direction"
    operation: Literal["add", "ablate"] = "ablate"
    strength: Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)] = 1.0


@guard("steering")
class Steering(Guard):
    """Steers the output of one module."""

    Parameters = SteeringParameters

    def __init__(self, parameters: SteeringParameters, pipeline: Path, device: torch.device) -> None:
        super().__init__(parameters, pipeline, device)
        self.module = parameters.module
        self._direction = _vector(parameters).to(device)

    @classmethod
    def check_files(cls, parameters: SteeringParameters, pipeline: Path) -> None:
        """Check that the direction is there, and a vector."""
        del pipeline
        try:
            tensor = read_header(parameters.direction).tensors.get(parameters.tensor)
        except UNREADABLE:
            tensor = None
        if tensor is None:
            raise _unread(parameters)
        if len(tensor.shape) != 1 or not tensor.parameters:
            raise _no_vector(parameters)

    def check(self, model: DiffusionModel) -> None:
        """Check that the module exists, and that its output has as many features as the direction."""
        if self.module not in dict(model.unet.named_modules()):
            raise _unfit(f"the UNet has no module {self.module!r}")
        shapes = _shapes(model, self.module)
        width = len(self._direction)
        if len(shapes) != 1 or len(shapes[0]) not in (3, 4) or shapes[0][0] != 1:
            raise _unfit(f"the output of {self.module!r} is not one tensor with a row for each of the batch")
        features = shapes[0][1] if len(shapes[0]) == 4 else shapes[0][2]
        if features != width:
            raise _unfit(f"the output of {self.module!r} has {features} features, and the direction {width}")

    def steer(self, output: Tensor) -> Tensor:
        """Return the output with the direction added or removed."""
        at = 1 if output.ndim == 4 else -1
        shape = (-1, 1, 1) if output.ndim == 4 else (-1,)
        direction, strength = self._direction.to(output), self.parameters.strength
        if self.parameters.operation == "add":
            added: Tensor = output + strength * direction.view(shape)
            return added
        unit = (direction / direction.norm()).view(shape)
        rest: Tensor = output - strength * (output * unit).sum(at, keepdim=True) * unit
        return rest


def _vector(parameters: SteeringParameters) -> Tensor:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(parameters.direction, "pt") as file:
            vector: Tensor = file.get_tensor(parameters.tensor).float()
    except (OSError, SafetensorError) as error:
        raise _unread(parameters) from error
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise _no_vector(parameters)
    return vector


def _unread(parameters: SteeringParameters) -> UnsafeModelError:
    message = f"{parameters.direction.name} has no tensor {parameters.tensor!r} that can be read"
    return UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")


def _no_vector(parameters: SteeringParameters) -> UnsafeModelError:
    message = f"{parameters.tensor!r} of {parameters.direction.name} must be a finite vector, not of zeros alone"
    return UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")


def _shapes(model: DiffusionModel, name: str) -> list[tuple[int, ...]]:
    """Return the shapes of a module's outputs when the UNet computes one row."""
    import torch

    shapes: list[tuple[int, ...]] = []

    def see(module: object, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes.append(tuple(first.shape) if torch.is_tensor(first) else ())

    hook = model.unet.get_submodule(name).register_forward_hook(see)
    latents = torch.zeros((1, *model.latent_shape), device=model.device, dtype=model.dtype)
    prompts = torch.zeros((1, model.prompt_length, model.prompt_width), device=model.device, dtype=model.dtype)
    try:
        with torch.inference_mode():
            model.unet(latents, 1, encoder_hidden_states=prompts)
    finally:
        hook.remove()
    return shapes


def _unfit(problem: str) -> PreconditionError:
    return PreconditionError(f"the guard steering does not fit the model: {problem}", reason="GUARD_UNFIT")
