"""Merges a LoRA into the layers of a module (Hu et al., ICLR 2022, arXiv 2106.09685, section 4.1).

    W <- W + scale * alpha / r * up @ down

A layer's weight W is (out, in), or (out, in, height, width) of a convolution, whose factors are `down`
(r, in, height, width) and `up` (out, r, 1, 1): the product of the factors, flattened behind their first axes, has W's
shape. All of it in float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unerase_backend.catalogue import lora
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import UnsafeModelError


@dataclass(frozen=True, eq=False)
class Factors:
    """A layer's share of a LoRA."""

    down: Tensor
    up: Tensor
    strength: float
    """alpha / r"""


def read(path: Path) -> dict[str, dict[str, Factors]]:
    """Return the factors of a safetensors file by part and by the layer's name without dots (`lora.flat`).

    Raises:
        UnsafeModelError: the file cannot be read, holds other tensors too, or has a layer without one of its factors.
    """
    parsed, metadata = lora.read_keys(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UnsafeModelError("the LoRA cannot be read as safetensors", reason="WEIGHTS_UNREADABLE") from error
    return collect(parsed, tensors, metadata)


def collect(
    parsed: Mapping[str, lora.LoraKey], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, dict[str, Factors]]:
    """Return the factors by part and by the layer's name without dots; `parsed` says what each tensor is.

    Raises:
        UnsafeModelError: an alpha is not one finite number, every alpha is 0, or factors have no common rank or are
            whole numbers.
    """
    strength = lora.strengths(metadata)
    grouped: dict[tuple[str, str], dict[str, str]] = {}
    for key, each in parsed.items():
        grouped.setdefault((each.part, lora.flat(each.module)), {})[each.role] = key
    found: dict[str, dict[str, Factors]] = {}
    for (part, name), keys in grouped.items():
        down, up = tensors[keys["down"]], tensors[keys["up"]]
        rank = down.shape[0] if down.dim() >= 2 else 0
        if not (down.is_floating_point() and up.is_floating_point()):
            message = f"{keys['down']!r} of the LoRA or its other factor is not of floating point with 16 bits or more"
            raise UnsafeModelError(message, reason="WEIGHTS_WRONG_TYPE")
        if not (rank and up.dim() >= 2 and up.shape[1] == rank and up[0].numel() == rank):
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            message = f"{keys['down']!r} of the LoRA and its other factor have the shapes {shapes}, with no common rank"
            raise UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")
        share = strength(parsed[keys["down"]], rank)
        if "alpha" in keys:
            share = _alpha(keys["alpha"], tensors[keys["alpha"]]) / rank
        found.setdefault(part, {})[name] = Factors(down, up, share)
    if not any(each.strength for factors in found.values() for each in factors.values()):
        message = "each alpha of the LoRA is 0, so that it changes nothing"
        raise UnsafeModelError(message, reason="WEIGHTS_INCOMPLETE")
    return found


def merge(part: str, module: Any, factors: Mapping[str, Factors], scale: float) -> None:
    """Add a LoRA's `factors` times `scale` to the weights of a module in place; the weights must be float32.

    Raises:
        UnsafeModelError: the module has no such layer, or a layer of another shape.
    """
    state = module.state_dict()
    names = {flat: f"{name}.weight" for flat, name in lora.layers_of(state).items()}
    if missing := sorted(set(factors) - set(names)):
        message = f"the {part} lacks {counted(len(missing), 'layer')} that the LoRA changes, {missing[0]!r} among them"
        raise UnsafeModelError(message, reason="WEIGHTS_UNKNOWN_TENSOR")
    for name in sorted(factors):
        weight, given = state[names[name]], factors[name]
        down, up = given.down.float().flatten(1), given.up.float().flatten(1)
        if weight.dim() < 2 or weight.flatten(1).shape != (up.shape[0], down.shape[1]):
            message = (
                f"{names[name]!r} of the {part} has the shape {tuple(weight.shape)}, "
                f"and the LoRA's factors have {tuple(given.up.shape)} and {tuple(given.down.shape)}"
            )
            raise UnsafeModelError(message, reason="WEIGHTS_WRONG_SHAPE")
        with torch.no_grad():
            weight.add_((up @ down).reshape(weight.shape), alpha=scale * given.strength)


def _alpha(key: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or not bool(torch.isfinite(tensor).all()):
        raise UnsafeModelError(f"{key!r} of the LoRA must be one finite number", reason="WEIGHTS_WRONG_SHAPE")
    return float(tensor)
