"""The gradients of operations as graphs of onnxruntime have them, beside the operations themselves (`graph_rules`).

Weights are frozen: no rule writes the gradient of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from unerase_backend.runtime import graph_rules
from unerase_backend.runtime.graph_rules.basics import LAST, need, writes
from unerase_backend.runtime.graph_rules.layers import (
    attention_scale,
    attention_shares,
    by_channel,
    each_channel,
    last_turned,
)
from unerase_backend.runtime.graph_rules.places import whole_factors
from unerase_backend.runtime.graph_writer import GraphWriter, Rule, Value

aten = torch.ops.aten

RULES: dict[Any, Rule] = dict(graph_rules.RULES)
"""What writes an operation or its gradient, by the operation."""


@writes(RULES, aten.silu_backward.default)
def _silu_backward(writer: GraphWriter, gradient: Value, x: Value) -> Value:
    # With s = sigmoid(x) and y = x s: dy/dx = s + x s (1 - s) = y + s (1 - y).
    share = writer.op("Sigmoid", x)
    y = x * share
    return gradient * (y + share * (1.0 - y))


def _normal_share(writer: GraphWriter, x: Value) -> Value:
    """Return the standard normal distribution function, (1 + erf(x / sqrt 2)) / 2."""
    return writer.op("Erf", x * math.sqrt(0.5)) * 0.5 + 0.5


@writes(RULES, aten.gelu.default)
def _gelu(writer: GraphWriter, x: Value, approximate: str = "none") -> Value:
    need(approximate == "none", "an approximate GELU")
    return x * _normal_share(writer, x)


@writes(RULES, aten.gelu_backward.default)
def _gelu_backward(writer: GraphWriter, gradient: Value, x: Value, approximate: str = "none") -> Value:
    # With P the normal distribution function and p its density: d (x P(x)) / dx = P(x) + x p(x).
    need(approximate == "none", "an approximate GELU")
    density = writer.op("Exp", x * x * -0.5) * math.sqrt(0.5 / math.pi)
    return gradient * (_normal_share(writer, x) + x * density)


@writes(RULES, aten.upsample_nearest2d_backward.default)
def _upsample_backward(
    writer: GraphWriter, gradient: Value, size: Sequence[int], original: Sequence[int], *scales: Any
) -> Value:
    # The sum over each cell's copies.
    high, wide = whole_factors(size, original)
    mean = writer.op("AveragePool", gradient, kernel_shape=[high, wide], strides=[high, wide])
    return mean * (high * wide)


@writes(RULES, aten.convolution_backward.default)
def _convolution_backward(
    writer: GraphWriter,
    gradient: Value,
    x: Value,
    weight: Value,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    need(not transposed and groups == 1 and list(mask) == [True, False, False], "such a gradient of a convolution")
    reach = [by * (size - 1) for by, size in zip(dilation, weight.shape[2:], strict=True)]
    if all(step == 1 for step in stride):
        # A convolution with the mirrored kernel, its channels exchanged; onnxruntime computes that once.
        axes = [axis for axis in range(2, len(weight.shape)) if weight.shape[axis] > 1]
        turned = writer.op("Transpose", weight, perm=[1, 0, *range(2, len(weight.shape))])
        if axes:
            turned = writer.op("Slice", turned, [-1] * len(axes), [-LAST] * len(axes), axes, [-1] * len(axes))
        pads = [far - pad for far, pad in zip(reach, padding, strict=True)]
        return writer.op("Conv", gradient, turned, pads=pads * 2, dilations=dilation), None, None
    sides = zip(x.shape[2:], gradient.shape[2:], stride, padding, reach, strict=True)
    more = [large - ((small - 1) * step - 2 * pad + far + 1) for large, small, step, pad, far in sides]
    sized = {"strides": stride, "pads": [*padding] * 2, "dilations": dilation, "output_padding": more}
    return writer.op("ConvTranspose", gradient, weight, **sized), None, None


# Norms. The mean and the deviation of a forward pass are outputs of torch's operations, which backward ones take; the
# normalised values are kept here under the name of the deviation's inverse.


def _normalised(writer: GraphWriter, x: Value, size: int, epsilon: float) -> tuple[Value, Value, Value]:
    """Return values normalised over the last axis of that size, their mean, and the inverse of their deviation."""
    ones = writer.constant(torch.ones(size))
    hat, mean, inverse = writer.ops("LayerNormalization", 3, x, ones, axis=-1, epsilon=epsilon)
    writer.kept[inverse.name] = hat
    return hat, mean, inverse


def _through_norm(writer: GraphWriter, gradient: Value, inverse: Value) -> Value:
    # With h the normalised values and d their deviation: (g - mean(g) - h mean(g h)) / d, over the last axis.
    hat = writer.kept[inverse.name]
    mean, along = (writer.op("ReduceMean", each, [-1], keepdims=1) for each in (gradient, gradient * hat))
    return (gradient - mean - hat * along) * inverse


@writes(RULES, aten.native_layer_norm.default)
def _layer_norm(
    writer: GraphWriter, x: Value, sizes: Sequence[int], weight: Value | None, bias: Value | None, epsilon: float
) -> tuple[Value, ...]:
    need(len(sizes) == 1, "a norm over several axes")
    y, mean, inverse = _normalised(writer, x, sizes[0], epsilon)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, inverse


@writes(RULES, aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    writer: GraphWriter,
    gradient: Value,
    x: Value,
    sizes: Sequence[int],
    mean: Value,
    inverse: Value,
    weight: Value | None,
    bias: Value | None,
    mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    need(list(mask) == [True, False, False], "the gradient of a norm's weights")
    return _through_norm(writer, gradient if weight is None else gradient * weight, inverse), None, None


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
) -> tuple[Value, ...]:
    size = channels // groups * cells
    hat, mean, inverse = _normalised(writer, writer.reshaped(x, [rows, groups, size]), size, epsilon)
    return by_channel(writer, hat, x, weight, bias), mean, inverse


@writes(RULES, aten.native_group_norm_backward.default)
def _group_norm_backward(
    writer: GraphWriter,
    gradient: Value,
    x: Value,
    mean: Value,
    inverse: Value,
    weight: Value | None,
    rows: int,
    channels: int,
    cells: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Value | None, ...]:
    need(list(mask) == [True, False, False], "the gradient of a norm's weights")
    weighted = gradient if weight is None else gradient * each_channel(writer, weight, x)
    grouped = writer.reshaped(weighted, [rows, groups, channels // groups * cells])
    return writer.reshaped(_through_norm(writer, grouped, inverse), x.shape), None, None


@writes(RULES, aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(
    writer: GraphWriter,
    gradient: Value,
    query: Value,
    key: Value,
    value: Value,
    output: Value,
    log_sums: Value,
    dropout: float,
    causal: bool,
    attn_mask: Value | None = None,
    scale: float | None = None,
) -> tuple[Value, ...]:
    # With p the shares, each row's sum 1: the gradient at the products is p (g - sum(g p)), for g = dp.
    need(attn_mask is None, "the gradient of a masked attention")
    shares = attention_shares(writer, query, key, scale)
    of_shares = gradient @ last_turned(writer, value)
    total = writer.op("ReduceSum", of_shares * shares, [-1], keepdims=1)
    of_products = shares * (of_shares - total) * attention_scale(query, scale)
    at_key = last_turned(writer, of_products) @ query
    return of_products @ key, at_key, last_turned(writer, shares) @ gradient
