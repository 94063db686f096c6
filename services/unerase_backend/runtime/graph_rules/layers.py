"""Operations that sum: products, convolutions, windows, norms and attention.

onnxruntime adds the bias of a linear layer within the product only where there are two dimensions, and takes a sixth of
the time for weights of a group norm that have the shape of what they scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from unerase_backend.runtime.graph_rules.basics import need, writes
from unerase_backend.runtime.graph_writer import GraphWriter, Rule, Value

aten = torch.ops.aten

FEW_CELLS = 64
"""Of a channel. Where there are more, its weight is not held for each, and costs little to repeat."""

RULES: dict[Any, Rule] = {}


def _reduced(kind: str, writer: GraphWriter, x: Value, axes: Sequence[int], keep: bool = False) -> Value:
    return writer.op(kind, x, axes, keepdims=int(keep))


RULES |= {aten.mean.dim: partial(_reduced, "ReduceMean"), aten.sum.dim_IntList: partial(_reduced, "ReduceSum")}


@writes(RULES, aten.mm.default, aten.bmm.default)
def _product(writer: GraphWriter, x: Value, y: Value) -> Value:
    return x @ y


@writes(RULES, aten.addmm.default)
def _addmm(writer: GraphWriter, bias: Value, x: Value, y: Value) -> Value:
    product = writer.op("Gemm", x, y, bias)
    if len(bias.shape) == 1:
        writer.products[product.name] = x, y, bias
    return product


@writes(RULES, aten._softmax.default, aten._safe_softmax.default)
def _softmax(writer: GraphWriter, x: Value, axis: int, converts: Any = None) -> Value:
    need(not converts, "a softmax in another number type")
    return writer.op("Softmax", x, axis=axis)


@writes(RULES, aten.max_pool2d_with_indices.default)
def _max_pool(
    writer: GraphWriter,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> tuple[Value | None, ...]:
    sides = _window(size, stride, padding)
    return writer.op("MaxPool", x, **sides, dilations=_pair(dilation), ceil_mode=int(ceil)), None


@writes(RULES, aten.avg_pool2d.default)
def _avg_pool(
    writer: GraphWriter,
    x: Value,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    whole: bool = True,
    divisor: int | None = None,
) -> Value:
    need(divisor is None, "a mean with a divisor of its own")
    counted = {"ceil_mode": int(ceil), "count_include_pad": int(whole)}
    return writer.op("AveragePool", x, **_window(size, stride, padding), **counted)


def _window(size: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> dict[str, list[int]]:
    return {"kernel_shape": _pair(size), "strides": _pair(stride or size), "pads": _pair(padding) * 2}


def _pair(sizes: Sequence[int]) -> list[int]:
    return [*sizes] * (2 // len(sizes))


@writes(RULES, aten.convolution.default)
def _convolution(
    writer: GraphWriter,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    need(not transposed, "a transposed convolution")
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return writer.op("Conv", *inputs, strides=stride, pads=[*padding] * 2, dilations=dilation, group=groups)


@writes(RULES, aten.native_batch_norm.default)
def _batch_norm(
    writer: GraphWriter,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple[Value | None, ...]:
    known = [each for each in (weight, bias, mean, variance) if each is not None]
    need(not training and len(known) == 4, "a batch norm that learns or has no weights")
    return writer.op("BatchNormalization", x, *known, epsilon=epsilon), None, None


@writes(RULES, aten.native_layer_norm.default)
def _layer_norm(
    writer: GraphWriter, x: Value, sizes: Sequence[int], weight: Value | None, bias: Value | None, epsilon: float
) -> tuple[Value | None, ...]:
    need(len(sizes) == 1, "a norm over several axes")
    scale = writer.constant(torch.ones(sizes[0])) if weight is None else weight
    inputs = (x, scale) if bias is None else (x, scale, bias)
    return writer.op("LayerNormalization", *inputs, axis=-1, epsilon=epsilon), None, None


@writes(RULES, aten.native_group_norm.default)
def _group_norm(
    writer: GraphWriter,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    rows: int,
    channels: int,
    cells: int,
    groups: int,
    epsilon: float,
) -> tuple[Value | None, ...]:
    size = channels // groups * cells
    grouped = writer.reshaped(x, [rows, groups, size])
    normed = writer.op("LayerNormalization", grouped, writer.constant(torch.ones(size)), axis=-1, epsilon=epsilon)
    return by_channel(writer, replace(normed, shape=grouped.shape), x, weight, bias), None, None


def by_channel(writer: GraphWriter, normed: Value, like: Value, weight: Value | None, bias: Value | None) -> Value:
    """Return normalised values in another shape, scaled and shifted by the weights of its channels."""
    y = writer.reshaped(normed, like.shape)
    y = y if weight is None else y * each_channel(writer, weight, like)
    return y if bias is None else y + each_channel(writer, bias, like)


def each_channel(writer: GraphWriter, weight: Value, like: Value) -> Value:
    """Return a weight of each channel for what has a shape; in that of a row where few cells would repeat it."""
    turned = writer.op("Reshape", weight, [1, -1, *[1] * (len(like.shape) - 2)])
    return writer.op("Expand", turned, [1, *like.shape[1:]]) if math.prod(like.shape[2:]) <= FEW_CELLS else turned


@writes(RULES, aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(
    writer: GraphWriter,
    query: Value,
    key: Value,
    value: Value,
    dropout: float = 0.0,
    causal: bool = False,
    attn_mask: Value | None = None,
    scale: float | None = None,
) -> tuple[Value | None, ...]:
    need(not dropout and not causal, "a causal attention")
    return attention_shares(writer, query, key, scale, attn_mask) @ value, None


def attention_shares(
    writer: GraphWriter, query: Value, key: Value, scale: float | None, mask: Value | None = None
) -> Value:
    """Return how much of each value a query takes."""
    products = (query @ last_turned(writer, key)) * attention_scale(query, scale)
    return writer.op("Softmax", products if mask is None else products + mask, axis=-1)


def attention_scale(query: Value, scale: float | None) -> float:
    """Return the factor of the products of queries and keys."""
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def last_turned(writer: GraphWriter, x: Value) -> Value:
    """Return a value of four axes with the last two exchanged."""
    return writer.op("Transpose", x, perm=[0, 1, 3, 2])
