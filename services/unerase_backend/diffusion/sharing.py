"""Lets models of one process share the weights that they have in common.

A subject, its reference and its control differ in part of one module: a partial change of a UNet is 5 % of it. Each
weight that is equal to one of a model in memory, bit for bit, takes that model's storage. So models are held as one
base and the differences. Frozen weights are never written to; whoever trains weights copies them first.
"""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from unerase_backend.diffusion.model import DiffusionModel

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def share_weights(model: DiffusionModel, others: Iterable[DiffusionModel]) -> int:
    """Let a model take the storage of equal weights of other models, and return the bytes that this freed."""
    freed = 0
    for other in others:
        for part in model.backbone.modules.keys() & other.backbone.modules.keys():
            theirs = dict(_tensors(other.backbone.modules[part]))
            for name, own in _tensors(model.backbone.modules[part]):
                if (like := theirs.get(name)) is not None and _same_bits(own, like):
                    own.data = like.data
                    freed += own.numel() * own.element_size()
    return freed


def _tensors(module: torch.nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _same_bits(own: Tensor, like: Tensor) -> bool:
    if own.data_ptr() == like.data_ptr():
        return False
    forms = [(each.shape, each.stride(), each.dtype, each.device) for each in (own, like)]
    if forms[0] != forms[1]:
        return False
    # As integers, because 0 and -0 are equal numbers of different bits.
    bits = _BITS[own.element_size()]
    return torch.equal(own.view(bits), like.view(bits))
