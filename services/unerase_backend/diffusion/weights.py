"""Reads tensors of safetensors files into modules, one at a time: never more than one beside the module's own."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unerase_backend.catalogue.tensors import StoredTensor
from unerase_backend.diffusion.model_check import COMPUTED
from unerase_backend.runtime.errors import UnsafeModelError

# A file is opened again after so many bytes: pages of it that were read count as the process's memory until then.
_OPEN_BYTES = 256 * 2**20


def fill(module: Any, tensors: Mapping[str, StoredTensor], dtype: torch.dtype) -> None:
    """Give a module without memory the tensors of files, checked before (`model_check`), as `dtype` on the CPU.

    Raises:
        UnsafeModelError: a file has changed since it was checked, and cannot be read.
    """
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state = {name: tensor.to(dtype, copy=True).view(shapes[name]) for name, tensor in _read(tensors)}
    module.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        if name.endswith(COMPUTED):
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._buffers[last] = torch.arange(buffer.shape[-1]).expand(buffer.shape)


@torch.no_grad()
def replace(module: Any, tensors: Mapping[str, StoredTensor]) -> None:
    """Overwrite tensors of a module with those of files, in the module's number type; errors as in `fill`."""
    state = module.state_dict()
    for name, tensor in _read(tensors):
        state[name].copy_(tensor.view(state[name].shape))


def not_finite(tensors: Mapping[str, StoredTensor]) -> str:
    """Return the name of a tensor that holds NaN or infinity; empty if none does. Errors as in `fill`."""
    return next((name for name, tensor in _read(tensors) if not bool(torch.isfinite(tensor).all())), "")


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
