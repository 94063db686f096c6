"""How many rows a call of an attack has: as few as leave every bit of the cases in it as in a full call.

Rows are independent, and a row's bits do not depend on its neighbours, but they may depend on the number of rows: it
decides which kernel computes them, and in which order that kernel adds. Whether it does is a matter of the device, the
model and the library, not of the values. So the first step that could do with fewer rows is computed in both shapes.
If all bits are equal, later steps have fewer rows; if one differs, all steps have full calls.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MULTIPLE = 4
"""Calls have a multiple of so many rows: on a CPU, those of one to three rows often have bits of their own."""


class Padding:
    """What one unit has found out about its calls."""

    def __init__(self) -> None:
        # By the numbers of rows of the smaller and of the full call.
        self._alike: dict[tuple[int, int], bool] = {}

    def call(self, compute: Callable[[int], tuple[Tensor, ...]], needed: int, rows: int) -> tuple[Tensor, ...]:
        """Return the first `needed` rows of each tensor of `compute(rows)`, from a smaller call if that is the same.

        `compute` takes the number of rows and changes nothing.
        """
        fewer = min(-(-needed // MULTIPLE) * MULTIPLE, rows)
        shapes = fewer, rows
        if fewer == rows or self._alike.get(shapes):
            return _first(compute(fewer), needed)
        full = _first(compute(rows), needed)
        if shapes not in self._alike:
            part = _first(compute(fewer), needed)
            self._alike[shapes] = all(map(torch.equal, full, part))
        return full


def _first(tensors: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    return tuple(tensor[:count] for tensor in tensors)
