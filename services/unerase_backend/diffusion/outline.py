"""Modules without memory for their weights, and what a library computes for them that no file holds.

A module on PyTorch's meta device has names and shapes alone. That is enough for a check, and bounded whatever a
configuration says. Some classes also compute tensors when they are made, such as the frequencies of rotary positions,
and store them nowhere: to be filled, such a module is made again with these alone on the CPU, so that they are the
library's own values. One parameter can have several names, as the token embedding of T5 has; it is stored and filled
once, under the first.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MOST_COMPUTED = 2**25
"""The most numbers that a part may compute; PixArt's positions at 2048 pixels are 19 million."""
# Parameters are made by these, and overwritten by files; what no file holds cannot be random.
_WITHOUT_MEMORY = frozenset({torch.empty, torch.rand, torch.randn})

Make = Callable[[], Any]


def outline(make: Make) -> Any:
    """Return the module that `make` returns, without memory."""
    with torch.device("meta"):
        return make()


def fillable(module: Any, make: Make) -> Any:
    """Return a module without memory as it is to be filled: with what is computed and stored nowhere.

    `module` is the outline of `make`, whose parameters have the shapes of tensors in files.
    """
    if not computed(module):
        return module
    with _WithoutWeights():
        return make()


def computed(module: Any) -> dict[str, Tensor]:
    """Return the tensors of a module that its `state_dict` lacks, by name: buffers, and attributes that are neither."""
    stored = module.state_dict()
    found = {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name not in stored}
    for name, owner in module.named_modules():
        held = ((key, value) for key, value in vars(owner).items() if isinstance(value, Tensor))
        found |= {f"{name}.{key}".lstrip("."): value for key, value in held}
    return found


def second_names(module: Any) -> dict[str, str]:
    """Return the further names of parameters that have several, with the first name of each."""
    first: dict[int, str] = {}
    names = ((name, id(parameter)) for name, parameter in module.named_parameters(remove_duplicate=False))
    return {name: first[key] for name, key in names if first.setdefault(key, name) != name}


def weights_of(module: Any) -> dict[str, Tensor]:
    """Return the tensors that files hold of a module, each once."""
    second = second_names(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name not in second}


def cast(module: Any, dtype: torch.dtype) -> None:
    """Round the weights of a module to a number type; what it computes stays as its library has it."""
    kept = computed(module)
    for name, tensor in {**dict(module.named_buffers()), **dict(module.named_parameters())}.items():
        if tensor.is_floating_point() and name not in kept:
            tensor.data = tensor.data.to(type_of(module, name, dtype))


def type_of(module: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the number type of a parameter in a module of `dtype`: what would overflow in half precision is float32,
    as the libraries load it.
    """
    high = getattr(module, "_keep_in_fp32_modules", None) or ()
    return torch.float32 if dtype == torch.float16 and not set(high).isdisjoint(name.split(".")) else dtype


class _WithoutWeights(TorchFunctionMode):
    """Sends what parameters are made of to the meta device."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if function in _WITHOUT_MEMORY:
            given["device"] = "meta"
        return function(*args, **given)
