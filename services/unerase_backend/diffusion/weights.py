"""Reads tensors of safetensors files into modules, one at a time: never more than one beside the module's own."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unerase_backend.catalogue.tensors import StoredTensor
from unerase_backend.diffusion.outline import second_names, type_of
from unerase_backend.runtime.errors import UnsafeModelError

# A file is opened again after so many bytes: pages of it that were read count as the process's memory until then.
_OPEN_BYTES = 256 * 2**20


def fill(module: Any, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Give a module without memory the tensors of files, checked before (`model_check`), as `dtype` on the CPU.

    Raises:
        UnsafeModelError: a file has changed since it was checked, and cannot be read, or one tensor has two values.
    """
    _check_twins(tensors)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    state: dict[str, Tensor] = {}
    for name, tensor in _read(tensors):
        own = tensor.to(type_of(module, name, dtype), copy=True).view(shapes[name])
        # A parameter is assigned as it is, under each of its names.
        state[name] = nn.Parameter(own, parameters[name].requires_grad) if name in parameters else own
    state |= {second: state[first] for second, first in second_names(module).items()}
    module.load_state_dict(state, strict=True, assign=True)


@torch.no_grad()
def replace(module: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Overwrite tensors of a module with those of files, in the module's number type; errors as in `fill`."""
    _check_twins(tensors)
    state = module.state_dict()
    for name, tensor in _read(tensors):
        state[name].copy_(tensor.view(state[name].shape))


def not_finite(tensors: Mapping[str, StoredTensor]) -> str:
    """Return the name of a tensor that holds NaN or infinity; empty if none does. Errors as in `fill`."""
    return next((name for name, tensor in _read(tensors) if not bool(torch.isfinite(tensor).all())), "")


def _check_twins(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise if a tensor that is stored under two names has two values."""
    for stored in tensors.values():
        if (twin := stored.twin) is None:
            continue
        own, other = (next(_read({each.name: each}))[1] for each in (stored, twin))
        if not torch.equal(own, other):
            file = stored.file.name
            message = f"{file}: {stored.name!r} and {twin.name!r} are one tensor of the model, and differ"
            raise UnsafeModelError(message, reason="WEIGHTS_AMBIGUOUS", metadata={"file_found": file})


def _read(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Give tensors in the order of their files, which may be open only until the next is asked for."""
    ordered = sorted(tensors.items(), key=lambda item: (str(item[1].file), item[1].name))
    for file, group in groupby(ordered, key=lambda item: item[1].file):
        left = list(group)
        try:
            while left:
                size = 0
                with safe_open(file, framework="pt") as opened:
                    while left and size < _OPEN_BYTES:
                        name, stored = left.pop()
                        size += stored.bytes
                        yield name, opened.get_tensor(stored.name)
        except (OSError, ValueError, SafetensorError) as error:
            message = f"{file.name} cannot be read any more; it was changed while it was loaded"
            raise UnsafeModelError(message, reason="WEIGHTS_UNREADABLE", metadata={"file_found": file.name}) from error
