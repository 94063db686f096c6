"""Steering: a direction is added to, or removed from, the output of a module of the UNet in every step.

    add:     x <- x + strength * d
    ablate:  x <- x - strength * (x . u) u,    u = d / |d|

with d a vector over the features of the module's output: the channels of (rows, channels, height, width), the width of
(rows, tokens, width). This is how features of a sparse autoencoder are steered: d is then a column of its decoder.
All rows of the trajectory are steered, those of the empty prompt included.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unerase_backend.catalogue.entries import Weights
from unerase_backend.catalogue.guard_kinds import GuardParameters
from unerase_backend.catalogue.tensors import FLOATS, UNREADABLE, read_header
from unerase_backend.diffusion.guarding import Guard, guard
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import PreconditionError, UnsafeModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unerase_backend.diffusion.model import DiffusionModel

# More than any module of a UNet has.
_MOST_FEATURES = 1 << 20


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
    needs_unet = True
    # `check_unet` calls the UNet as these are called.
    families = ("stable-diffusion",)

    def __init__(self, parameters: SteeringParameters, pipeline: Path, device: torch.device) -> None:
        import torch

        super().__init__(parameters, pipeline, device)
        self.module = parameters.module
        self._direction = torch.from_numpy(_direction(parameters)).to(device)

    @classmethod
    def check_files(cls, parameters: SteeringParameters, pipeline: Path) -> None:
        """Check that the direction is there, and a finite vector, not of zeros alone."""
        del pipeline
        _direction(parameters)

    @classmethod
    def check_unet(cls, parameters: SteeringParameters, unet: Any) -> None:
        """Check that the module exists, and that its output has as many features as the direction."""
        module = parameters.module
        if module not in (known := dict(unet.named_modules())):
            near = difflib.get_close_matches(module, known, n=3)
            raise _unfit(f"the UNet has no module {module!r}{'; there is ' * bool(near)}{', '.join(near)}")
        shapes, width = _shapes(unet, module), len(_direction(parameters))
        if len(shapes) != 1 or len(shapes[0]) not in (3, 4) or shapes[0][0] != 1:
            raise _unfit(f"the output of {module!r} is not one tensor with a row for each of the batch")
        features = shapes[0][1] if len(shapes[0]) == 4 else shapes[0][2]
        if features != width:
            raise _unfit(f"the output of {module!r} has {counted(features, 'feature')}, and the direction {width}")

    def check(self, model: DiffusionModel) -> None:
        """Check the module and its features, as `check_unet`."""
        self.check_unet(self.parameters, model.denoiser)

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


def _direction(parameters: SteeringParameters) -> NDArray[np.float32]:
    """Return the direction, read without torch: its values are checked where nothing computes."""
    try:
        header = read_header(parameters.direction)
        tensor = header.tensors.get(parameters.tensor)
        if tensor is None or tensor.dtype not in FLOATS:
            raise _unread(parameters)
        if len(tensor.shape) != 1 or not 0 < tensor.parameters <= _MOST_FEATURES:
            raise _no_vector(parameters)
        vector = _values(parameters.direction, parameters.tensor)
    except UNREADABLE as error:
        raise _unread(parameters) from error
    if not np.isfinite(vector).all() or not vector.any():
        raise _no_vector(parameters)
    return vector


def _values(path: Path, name: str) -> NDArray[np.float32]:
    """Return a tensor as float32; numpy knows no bfloat16, which is the upper half of a float32."""
    with path.open("rb") as stream:
        stored = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))[name]
        begin, end = stored["data_offsets"]
        stream.seek(begin, 1)
        content = stream.read(end - begin)
    if stored["dtype"] == "BF16":
        return (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4").astype(np.float32)
    with np.errstate(over="ignore"):
        return np.frombuffer(content, f"<f{FLOATS[stored['dtype']]}").astype(np.float32)


def _unread(parameters: SteeringParameters) -> UnsafeModelError:
    message = f"{parameters.direction.name} has no tensor {parameters.tensor!r} that can be read"
    return UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")


def _no_vector(parameters: SteeringParameters) -> UnsafeModelError:
    message = f"{parameters.tensor!r} of {parameters.direction.name} must be a finite vector, not of zeros alone"
    return UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")


def _shapes(unet: Any, name: str) -> list[tuple[int, ...]]:
    """Return the shapes of a module's outputs when the UNet computes one row, of the least height and width."""
    import torch

    shapes: list[tuple[int, ...]] = []

    def see(module: object, inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes.append(tuple(first.shape) if torch.is_tensor(first) else ())

    config, given = unet.config, {"device": unet.device, "dtype": unet.dtype}
    side = 2 ** (len(config.block_out_channels) - 1)
    hook = unet.get_submodule(name).register_forward_hook(see)
    try:
        with torch.inference_mode():
            latents = torch.zeros((1, config.in_channels, side, side), **given)
            unet(latents, 1, encoder_hidden_states=torch.zeros((1, 2, config.cross_attention_dim), **given))
    finally:
        hook.remove()
    return shapes


def _unfit(problem: str) -> PreconditionError:
    return PreconditionError(f"the guard steering does not fit the model: {problem}", reason="GUARD_UNFIT")
