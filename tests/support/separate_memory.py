"""A device of its own memory, computed on the CPU: it refuses what a GPU would refuse.

Tensors on it are wrapped, so that torch sees another device. An operation that mixes them with tensors in main memory
fails as it would on a GPU: a sum of both, an index on the device into a tensor in main memory, numbers drawn there by a
generator of the CPU, a conversion to NumPy. Everything else runs on the CPU, with the same bits. Numbers without
dimensions and copies may cross, and indices in main memory may pick from a tensor on the device, as on a GPU. Mixed
dtypes fail as on any device.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from unerase_backend.diffusion.model import DiffusionModel

# Torch then knows the device, its guards and its current index; what it computes is below.
_setup_privateuseone_for_python_backend("separate")
DEVICE = torch.device("separate", 0)

_COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
_PICKS = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index")


class Held(torch.Tensor):
    """A tensor on the device; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Held":
        # A wrapper that is itself an inference tensor cannot be the result of a view.
        with torch.inference_mode(False):
            return torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=DEVICE,
            )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        """Return the values, which a GPU copies for that."""
        return self.inner.tolist()

    def __repr__(self, **_: object) -> str:
        return f"Held({self.inner!r})"


class _OnDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


@contextmanager
def separate_memory() -> Iterator[None]:
    """Let tensors be made on, and moved to, the device."""
    # As fake tensors do: `torch.tensor(..., device=...)` then moves the tensor in a call that can be seen.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _OnDevice():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def on_device(model: DiffusionModel) -> DiffusionModel:
    """Return a copy of a model whose weights are on the device."""
    moved = {part: _moved(module) for part, module in model.backbone.modules.items()}
    return replace(model, backbone=model.backbone.with_modules(moved), device=DEVICE)


def _moved(module: Any) -> Any:
    whole = copy.deepcopy(module)
    for each in whole.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = torch.nn.Parameter(Held(parameter.data), parameter.requires_grad)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = Held(buffer)
    return whole


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    held = [each for each in flat if isinstance(each, Held)]
    devices = [each for each in flat if isinstance(each, torch.device)]
    made_here = any(each.type == DEVICE.type for each in devices)
    if not held and not made_here:
        return func(*args, **kwargs)
    name = func._schema.name
    _check(name, args, kwargs, flat, bool(held))
    wrappers = {id(each.inner): each for each in held}

    def unwrap(each: Any) -> Any:
        if isinstance(each, torch.device):
            return torch.device("cpu")
        return each.inner if isinstance(each, Held) else each

    result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    if name == "aten::copy_" and not isinstance(args[0], Held):
        return args[0]
    if name in _COPIES and devices and not made_here:
        return result
    return tree_map(lambda each: wrappers.get(id(each), Held(each)) if isinstance(each, torch.Tensor) else each, result)


def _check(name: str, args: Any, kwargs: dict[str, Any], flat: list[Any], computes: bool) -> None:
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator):
        raise RuntimeError(f"{name}: expected a generator of the device, found one of {generator.device}")
    if name in _COPIES or not computes:
        return
    crossing = [each for each in flat if isinstance(each, torch.Tensor) and not isinstance(each, Held) and each.dim()]
    if name in _PICKS:
        if not isinstance(args[0], Held):
            raise RuntimeError(f"{name}: indices should be in main memory, as the indexed tensor is")
        indices = {id(each) for each in args[1] if each is not None}
        crossing = [each for each in crossing if id(each) not in indices]
    if crossing:
        shapes = ", ".join(str(tuple(each.shape)) for each in crossing)
        raise RuntimeError(f"{name}: expected all tensors on the device, found {shapes} in main memory")


Loader = Callable[..., DiffusionModel]


def loading_onto_device(load: Loader) -> Loader:
    """Return a loader like `load_model` that puts its models on the device."""

    def loaded(catalogue: Any, name: str, _: torch.device, dtype: torch.dtype, **named: Any) -> DiffusionModel:
        return on_device(load(catalogue, name, torch.device("cpu"), dtype, **named))

    return loaded
