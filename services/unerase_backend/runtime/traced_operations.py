"""Operations as a graph of onnxruntime computes them in the least time, put in the place of torch's while it is traced.

onnxruntime adds the bias of a linear layer within the product only where there are two dimensions; it takes a sixth of
the time for weights of a group norm that have the shape of what they scale; the halves of a linear layer's output are
copied if they are cut out of it; and attention whose scale is a number is one product less.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class TracedOperations(TorchFunctionMode):
    """While it is entered, calls of linear layers, group norms and attention are computed by other operations."""

    def __init__(self) -> None:
        """Take the place of nothing yet."""
        super().__init__()
        # The output of the last linear layer of more than two dimensions, its input, weight and bias.
        self._linear: tuple[Tensor, ...] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a call of torch's, or what stands for it."""
        del types
        named = kwargs or {}
        if func is functional.linear:
            return self._of_linear(*args, **named)
        if func is functional.group_norm:
            return _group_norm(*args, **named)
        if func is functional.scaled_dot_product_attention:
            return _attention(*args, **named)
        if func is Tensor.chunk and self._linear is not None and args[0] is self._linear[0]:
            return _chunks(self._linear, *args, **named)
        return func(*args, **named)

    def _of_linear(self, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None or given.dim() <= 2:
            return functional.linear(given, weight, bias)
        output = _flat_linear(given, weight, bias)
        self._linear = output, given, weight, bias
        return output


def _chunks(linear: tuple[Tensor, ...], output: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    _, given, weight, bias = linear
    if dim not in (-1, output.dim() - 1) or len(weight) % chunks:
        return output.chunk(chunks, dim)
    parts = zip(weight.chunk(chunks), bias.chunk(chunks), strict=True)
    return tuple(_flat_linear(given, *part) for part in parts)


def _flat_linear(given: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = functional.linear(given.reshape(-1, given.shape[-1]), weight, bias)
    return flat.reshape(*given.shape[:-1], len(weight))


def _group_norm(
    given: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    normed = functional.group_norm(given, num_groups, None, None, eps)
    # Numbers, so that they are not read from each input.
    shape = [int(size) for size in given.shape[1:]]
    scale, shift = (
        None if each is None else each.reshape(-1, *[1] * (len(shape) - 1)).expand(shape) for each in (weight, bias)
    )
    scaled = normed if scale is None else normed * scale
    return scaled if shift is None else scaled + shift


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None or is_causal or dropout_p or enable_gqa:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    factor = int(query.shape[-1]) ** -0.5 if scale is None else scale
    weights = query @ (key.transpose(-1, -2) * factor)
    return torch.softmax(weights, -1) @ value
