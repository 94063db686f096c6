"""What a denoiser's linear layers make of encodings, such as the keys and values of prompts.

It is the same in every call that reads a prompt, so that it is computed once, and put in the place of those layers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from unerase_backend.diffusion.encoding import Encoding

_Key = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Projections:
    """The linear layers of a denoiser whose input is a tensor of the encoding, in the order of their calls."""

    layers: Mapping[_Key, tuple[Tensor, Tensor | None]]
    """Weight and bias by the name of the tensor and the identity of the weight."""

    @staticmethod
    def found(call: Callable[[], object], encoding: Encoding) -> "Projections":
        """Return the layers in a call of the denoiser with an encoding."""
        layers: dict[_Key, tuple[Tensor, Tensor | None]] = {}

        def compute(name: str, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            layers[name, id(weight)] = weight, bias
            return functional.linear(input, weight, bias)

        with _Instead(encoding, compute):
            call()
        return Projections(layers)

    def prepared(self, encoding: Encoding) -> Encoding:
        """Return an encoding with the layers' outputs as further tensors; the encoding itself if it has them."""
        if not self.layers or _name(0) in encoding.tensors:
            return encoding
        outputs = dict(encoding.tensors)
        for each in self._together:
            whole = functional.linear(encoding.tensors[each.tensor], each.weight, each.bias)
            outputs |= dict(zip(each.names, torch.split(whole, each.sizes, -1), strict=True))
        return Encoding(outputs)

    def replaced(self, prepared: Encoding) -> TorchFunctionMode:
        """Return a context in which the layers' outputs are those of a prepared encoding."""
        outputs = {key: prepared.tensors[_name(number)] for number, key in enumerate(self.layers)}

        def read(name: str, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found = outputs.get((name, id(weight)))
            return functional.linear(input, weight, bias) if found is None else found

        return _Instead(prepared, read)

    @cached_property
    def _together(self) -> list["_Layers"]:
        """The layers of each tensor, with and without bias, as one."""
        kinds: dict[tuple[str, bool], list[tuple[str, Tensor, Tensor | None]]] = {}
        for number, ((tensor, _), (weight, bias)) in enumerate(self.layers.items()):
            kinds.setdefault((tensor, bias is not None), []).append((_name(number), weight, bias))
        found = []
        for (tensor, _), layers in kinds.items():
            names, weights, biases = zip(*layers, strict=True)
            bias = None if biases[0] is None else torch.cat(biases)
            found.append(_Layers(tensor, names, list(map(len, weights)), torch.cat(weights), bias))
        return found


@dataclass(frozen=True, eq=False)
class _Layers:
    """Layers of the same input, as one."""

    tensor: str
    names: tuple[str, ...]
    sizes: list[int]
    weight: Tensor
    bias: Tensor | None


def _name(number: int) -> str:
    return f"projected.{number}"


class _Instead(TorchFunctionMode):
    """Calls a function in the place of linear layers whose input is a tensor of an encoding."""

    def __init__(self, encoding: Encoding, of_layer: Callable[..., Tensor]) -> None:
        super().__init__()
        self._encoding, self._of_layer = encoding, of_layer

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        if func is functional.linear:
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
            for name, tensor in self._encoding.tensors.items():
                if named["input"] is tensor:
                    return self._of_layer(name, **named)
        return func(*args, **(kwargs or {}))
