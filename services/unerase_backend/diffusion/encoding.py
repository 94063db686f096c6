"""What a denoiser reads of prompts: a bundle of named tensors, with a row for each prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STATES = "states"
"""The name of the hidden states of the text encoders, (prompts, tokens, width), which every family has."""
POOLED = "pooled"
"""The name of what text encoders say of whole prompts, (prompts, width)."""
MASK = "mask"
"""The name of what is 1 where a token of `states` counts, and else 0, (prompts, tokens)."""
GUIDANCE = "guidance"
"""The name of the guidance scale where the denoiser reads it (`Backbone.guidance`), (prompts,), float32."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """Tensors by name, each with one row for each prompt, or without rows for a single prompt.

    Every family has `states`, and some have `pooled`, `mask` or `guidance`; a family may add others.
    """

    tensors: Mapping[str, Tensor]

    @property
    def states(self) -> Tensor:
        """The hidden states, (prompts, tokens, width)."""
        return self.tensors[STATES]

    @property
    def pooled(self) -> Tensor:
        """What the text encoders say of whole prompts, (prompts, width)."""
        return self.tensors[POOLED]

    @property
    def mask(self) -> Tensor:
        """1 where a token of the hidden states counts, and else 0, (prompts, tokens)."""
        return self.tensors[MASK]

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.states)

    def __getitem__(self, rows: Any) -> "Encoding":
        """Return the encoding of some prompts, chosen as rows of a tensor are; a number gives a single prompt's."""
        return self.each(lambda tensor: tensor[rows])

    def __setitem__(self, rows: Any, other: "Encoding") -> None:
        """Overwrite the rows of some prompts by those of another encoding."""
        for name, tensor in self.tensors.items():
            tensor[rows] = other.tensors[name].to(tensor)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Encoding":
        """Return the encoding with every tensor changed."""
        return Encoding({name: change(tensor) for name, tensor in self.tensors.items()})

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def clone(self) -> "Encoding":
        """Return a copy."""
        return self.each(torch.clone)

    def guided(self, scale: float) -> "Encoding":
        """Return the encoding with another guidance scale, where the denoiser reads one."""
        if GUIDANCE not in self.tensors:
            return self
        return Encoding({**self.tensors, GUIDANCE: torch.full_like(self.tensors[GUIDANCE], scale)})

    def zeros(self, rows: int) -> "Encoding":
        """Return an encoding of `rows` prompts like this single one, of zeros."""
        return self.each(lambda tensor: tensor.new_zeros((rows, *tensor.shape)))

    @staticmethod
    def stack(single: Sequence["Encoding"]) -> "Encoding":
        """Return the encodings of single prompts as one."""
        return Encoding({name: torch.stack([each.tensors[name] for each in single]) for name in single[0].tensors})

    def bytes(self) -> bytes:
        """Return the values as float32, tensor after tensor in the order of names."""
        return b"".join(self.tensors[name].float().cpu().numpy().tobytes() for name in sorted(self.tensors))
