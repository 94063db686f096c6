"""What a denoiser's linear layers make of encodings, such as the keys and values of prompts.

It is the same in every call that reads a prompt, so that it is computed once, and put in the place of those layers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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

        def compute(name: str, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            layers[name, id(weight)] = weight, bias
            return functional.linear(given, weight, bias)

        with _Instead(encoding, compute):
            call()
        return Projections(layers)

    def prepared(self, encoding: Encoding) -> Encoding:
        """Return an encoding with the layers' outputs as further tensors; the encoding itself if it has them."""
        if f"projected.{len(self.layers) - 1}" in encoding.tensors:
            return encoding
        outputs = {
            f"projected.{number}": functional.linear(encoding.tensors[name], weight, bias)
            for number, ((name, _), (weight, bias)) in enumerate(self.layers.items())
        }
        return Encoding({**encoding.tensors, **outputs})

    def replaced(self, prepared: Encoding) -> TorchFunctionMode:
        """Return a context in which the layers' outputs are those of a prepared encoding."""
        outputs = {key: prepared.tensors[f"projected.{number}"] for number, key in enumerate(self.layers)}

        def read(name: str, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found = outputs.get((name, id(weight)))
            return functional.linear(given, weight, bias) if found is None else found

        return _Instead(prepared, read)


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
            for name, tensor in self._encoding.tensors.items():
                if args[0] is tensor:
                    return self._of_layer(name, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
