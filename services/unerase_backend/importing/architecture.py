"""The names and shapes that a model's parts have, from their configurations; no weights are made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from unerase_backend.catalogue.tensor_names import fits
from unerase_backend.runtime.errors import UnsafeModelError

Part = Literal["unet", "vae", "text_encoder"]

# Older checkpoints store these tensors, which today's code computes.
BUFFERS = ("position_ids",)
_PROJECTING = "CLIPTextModelWithProjection"


@dataclass
class Architecture:
    """A model's configurations by part; a part that is missing is not checked."""

    configurations: Mapping[str, Mapping[str, Any]]
    _shapes: dict[str, dict[str, torch.Size]] = field(default_factory=dict)

    def configuration(self, part: Part, why: str) -> Mapping[str, Any]:
        """Return a part's configuration.

        Raises:
            UnsafeModelError: none is given; `why` says what it is needed for.
        """
        if part not in self.configurations:
            message = f"{why}: give the model that the file changes, by --base or --config"
            raise UnsafeModelError(message, reason="MODEL_INCOMPLETE")
        return self.configurations[part]

    @property
    def projects(self) -> bool:
        """Whether the model is known to read its text encoder's projection, as that of Stable Diffusion 3 does."""
        named = self.configurations.get("text_encoder", {}).get("architectures")
        return isinstance(named, list) and _PROJECTING in named

    def shapes(self, part: str) -> dict[str, torch.Size] | None:
        """Return the shape of every tensor of a part; None without its configuration.

        Raises:
            UnsafeModelError: the configuration is of no such part.
        """
        if part not in self.configurations:
            return None
        if part not in self._shapes:
            self._shapes[part] = _shapes(part, dict(self.configurations[part]))
        return self._shapes[part]

    def check(self, part: Part, tensors: Mapping[str, Tensor], *, complete: bool = False) -> None:
        """Check names and shapes of a part's tensors; with `complete` none may be missing.

        Raises:
            UnsafeModelError: a tensor is unknown, of another shape or missing.
        """
        shapes = self.shapes(part)
        if shapes is None:
            return
        if unknown := sorted(name for name in tensors if name not in shapes):
            raise _unfit(f"the {part} of the model has no {_named(unknown)}", "WEIGHTS_UNKNOWN_TENSOR")
        for name, tensor in tensors.items():
            if not fits(tuple(tensor.shape), tuple(shapes[name])):
                message = f"{name!r} of the {part} has the shape {tuple(shapes[name])}, not {tuple(tensor.shape)}"
                raise _unfit(message, "WEIGHTS_WRONG_SHAPE")
        missing = sorted(name for name in shapes if name not in tensors and not name.endswith(BUFFERS))
        if complete and missing:
            raise _unfit(f"the {part} lacks {_named(missing)}", "WEIGHTS_INCOMPLETE")


def classes() -> tuple[Any, Any, Any, Any]:
    """Import the parts' classes, which takes some seconds: files whose architecture is not known do without."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return AutoencoderKL, UNet2DConditionModel, CLIPTextConfig, CLIPTextModel


def _shapes(part: str, configuration: dict[str, Any]) -> dict[str, torch.Size]:
    AutoencoderKL, UNet2DConditionModel, CLIPTextConfig, CLIPTextModel = classes()
    try:
        with torch.device("meta"):
            if part == "text_encoder":
                module: Any = CLIPTextModel(CLIPTextConfig.from_dict(configuration))
            else:
                kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
                module = kind.from_config(configuration)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        message = f"the configuration of the {part} is not one that is known here"
        raise UnsafeModelError(message, reason="MODEL_UNSUPPORTED") from error
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    others = f" and {len(listed) - 1} more" if len(listed) > 1 else ""
    return f"tensor {listed[0]!r}{others}"


def _unfit(message: str, reason: str) -> UnsafeModelError:
    return UnsafeModelError(message, reason=reason)
