"""The operations of UNets and of their gradients at the prompts' encodings, as graphs of onnxruntime have them.

Weights are frozen: no rule writes the gradient of one. An operation without a rule, or with arguments that its rule
does not know, leaves the module to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from unerase_backend.diffusion.graph_writer import ROWS, GraphWriter, Rule, UnknownOperationError, Value

aten = torch.ops.aten
_LAST = 2**63 - 1

RULES: dict[Any, Rule] = {}
"""What writes an operation (`graph_writer.Rule`), by the operation."""

CONSTANT = frozenset({aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.new_zeros.default})
"""The operations of which only the sizes of their arguments count."""


def _rule(*operations: Any) -> Callable[[Rule], Rule]:
    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, rule))
        return rule

    return add


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise UnknownOperationError(f"no rule writes {what}")


# Elements.


def _of_two(kind: str, writer: GraphWriter, x: Value, other: Value | float) -> Value:
    return writer.op(kind, x, other)


def _of_one(kind: str, writer: GraphWriter, x: Value) -> Value:
    return writer.op(kind, x)


for _name in ("add", "sub", "mul", "div"):
    RULES |= {getattr(aten, _name).Tensor: partial(_of_two, _name.capitalize())}
    RULES |= {getattr(aten, _name).Scalar: partial(_of_two, _name.capitalize())}
for _name in ("sin", "cos", "exp", "neg", "sigmoid"):
    RULES |= {getattr(aten, _name).default: partial(_of_one, _name.capitalize())}


@_rule(aten.rsub.Scalar)
def _rsub(writer: GraphWriter, x: Value, other: float) -> Value:
    return other - x


@_rule(aten.pow.Tensor_Scalar)
def _pow(writer: GraphWriter, x: Value, exponent: float) -> Value:
    return x if exponent == 1 else writer.op("Pow", x, exponent)


@_rule(aten.silu.default)
def _silu(writer: GraphWriter, x: Value) -> Value:
    return x * writer.op("Sigmoid", x)


@_rule(aten.silu_backward.default)
def _silu_backward(writer: GraphWriter, gradient: Value, x: Value) -> Value:
    # With s = sigmoid(x) and y = x s: dy/dx = s + x s (1 - s) = y + s (1 - y).
    share = writer.op("Sigmoid", x)
    y = x * share
    return gradient * (y + share * (1.0 - y))


def _normal_share(writer: GraphWriter, x: Value) -> Value:
    """Return the standard normal distribution function, (1 + erf(x / sqrt 2)) / 2."""
    return writer.op("Erf", x * math.sqrt(0.5)) * 0.5 + 0.5


@_rule(aten.gelu.default)
def _gelu(writer: GraphWriter, x: Value, approximate: str = "none") -> Value:
    _need(approximate == "none", "an approximate GELU")
    return x * _normal_share(writer, x)


@_rule(aten.gelu_backward.default)
def _gelu_backward(writer: GraphWriter, gradient: Value, x: Value, approximate: str = "none") -> Value:
    # With P the normal distribution function and p its density: d (x P(x)) / dx = P(x) + x p(x).
    _need(approximate == "none", "an approximate GELU")
    density = writer.op("Exp", x * x * -0.5) * math.sqrt(0.5 / math.pi)
    return gradient * (_normal_share(writer, x) + x * density)


# Places.


@_rule(aten.detach.default, aten.alias.default, aten.clone.default)
def _same(writer: GraphWriter, x: Value, **layout: Any) -> Value:
    return x


@_rule(aten._to_copy.default)
def _to_copy(writer: GraphWriter, x: Value, dtype: torch.dtype | None = None, **layout: Any) -> Value:
    from onnx import TensorProto

    _need(dtype == torch.float32, f"a conversion to {dtype}")
    return writer.op("Cast", x, to=TensorProto.FLOAT)


@_rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim)
def _view(writer: GraphWriter, x: Value, sizes: Any) -> Value:
    return x if x.shape == writer.shape else writer.reshaped(x, writer.shape)


@_rule(aten.expand.default)
def _expand(writer: GraphWriter, x: Value, sizes: Sequence[int]) -> Value:
    if x.shape == writer.shape:
        return x
    added = len(writer.shape) - len(x.shape)
    # The size 1 leaves an axis as it is. What is the same for all rows, the operations that read it repeat.
    same = [added <= axis and x.shape[axis - added] == size for axis, size in enumerate(writer.shape)]
    sizes = [1 if kept or size % ROWS == 0 else size for kept, size in zip(same, writer.shape, strict=True)]
    return x if set(sizes) == {1} and not added else writer.op("Expand", x, sizes)


@_rule(aten.permute.default)
def _permuted(writer: GraphWriter, x: Value, order: Sequence[int]) -> Value:
    return writer.op("Transpose", x, perm=[axis % len(order) for axis in order])


@_rule(aten.transpose.int, aten.t.default)
def _transpose(writer: GraphWriter, x: Value, one: int = 0, other: int = 1) -> Value:
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return writer.op("Transpose", x, perm=order)


@_rule(aten.cat.default)
def _cat(writer: GraphWriter, parts: Sequence[Value], axis: int = 0) -> Value:
    return writer.op("Concat", *parts, axis=axis)


@_rule(aten.slice.Tensor)
def _slice(writer: GraphWriter, x: Value, axis: int = 0, start: int = 0, end: int = _LAST, step: int = 1) -> Value:
    return x if x.shape == writer.shape else writer.op("Slice", x, [start or 0], [end], [axis], [step])


@_rule(aten.split.Tensor)
def _split(writer: GraphWriter, x: Value, size: int, axis: int = 0) -> tuple[Value, ...]:
    whole = x.shape[axis]
    sizes = [min(size, whole - begin) for begin in range(0, whole, size)]
    return writer.ops("Split", len(sizes), x, sizes, axis=axis)


@_rule(aten.upsample_nearest2d.default)
def _upsample(writer: GraphWriter, x: Value, size: Sequence[int], *scales: Any) -> Value:
    factors = torch.tensor([1, 1, *_factors(size, x.shape)], dtype=torch.float32)
    return writer.op(
        "Resize",
        x,
        writer.constant(torch.tensor([], dtype=torch.float32)),
        writer.constant(factors),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@_rule(aten.upsample_nearest2d_backward.default)
def _upsample_backward(
    writer: GraphWriter, gradient: Value, size: Sequence[int], original: Sequence[int], *scales: Any
) -> Value:
    # The sum over each cell's copies.
    high, wide = _factors(size, original)
    mean = writer.op("AveragePool", gradient, kernel_shape=[high, wide], strides=[high, wide])
    return mean * (high * wide)


def _factors(size: Sequence[int], original: Sequence[int]) -> list[int]:
    pairs = list(zip(size, original[2:], strict=True))
    _need(all(large % small == 0 for large, small in pairs), "an enlargement by no whole factor")
    return [large // small for large, small in pairs]


# Sums and products.


def _reduced(kind: str, writer: GraphWriter, x: Value, axes: Sequence[int], keep: bool = False) -> Value:
    return writer.op(kind, x, axes, keepdims=int(keep))


RULES |= {aten.mean.dim: partial(_reduced, "ReduceMean"), aten.sum.dim_IntList: partial(_reduced, "ReduceSum")}


@_rule(aten.mm.default, aten.bmm.default)
def _product(writer: GraphWriter, x: Value, y: Value) -> Value:
    return x @ y


@_rule(aten.addmm.default)
def _addmm(writer: GraphWriter, bias: Value, x: Value, y: Value) -> Value:
    return writer.op("Gemm", x, y, bias)


@_rule(aten.convolution.default)
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
    _need(not transposed, "a transposed convolution")
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return writer.op("Conv", *inputs, strides=stride, pads=[*padding] * 2, dilations=dilation, group=groups)


@_rule(aten.convolution_backward.default)
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
    _need(not transposed and groups == 1 and list(mask) == [True, False, False], "such a gradient of a convolution")
    reach = [by * (size - 1) for by, size in zip(dilation, weight.shape[2:], strict=True)]
    if all(step == 1 for step in stride):
        # A convolution with the mirrored kernel, its channels exchanged; onnxruntime computes that once.
        axes = [axis for axis in range(2, len(weight.shape)) if weight.shape[axis] > 1]
        turned = writer.op("Transpose", weight, perm=[1, 0, *range(2, len(weight.shape))])
        if axes:
            turned = writer.op("Slice", turned, [-1] * len(axes), [-_LAST] * len(axes), axes, [-1] * len(axes))
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


@_rule(aten.native_layer_norm.default)
def _layer_norm(
    writer: GraphWriter, x: Value, sizes: Sequence[int], weight: Value | None, bias: Value | None, epsilon: float
) -> tuple[Value, ...]:
    _need(len(sizes) == 1, "a norm over several axes")
    y, mean, inverse = _normalised(writer, x, sizes[0], epsilon)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, inverse


@_rule(aten.native_layer_norm_backward.default)
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
    _need(list(mask) == [True, False, False], "the gradient of a norm's weights")
    return _through_norm(writer, gradient if weight is None else gradient * weight, inverse), None, None


@_rule(aten.native_group_norm.default)
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
    y = writer.reshaped(hat, x.shape)
    y = y if weight is None else y * _each_channel(writer, weight, x)
    return y if bias is None else y + _each_channel(writer, bias, x), mean, inverse


@_rule(aten.native_group_norm_backward.default)
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
    _need(list(mask) == [True, False, False], "the gradient of a norm's weights")
    weighted = gradient if weight is None else gradient * _each_channel(writer, weight, x)
    grouped = writer.reshaped(weighted, [rows, groups, channels // groups * cells])
    return writer.reshaped(_through_norm(writer, grouped, inverse), x.shape), None, None


def _each_channel(writer: GraphWriter, weight: Value, like: Value) -> Value:
    turned = writer.op("Reshape", weight, [1, -1, *[1] * (len(like.shape) - 2)])
    return writer.op("Expand", turned, [1, *like.shape[1:]])


# Attention.


@_rule(aten._scaled_dot_product_flash_attention_for_cpu.default)
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
    _need(not dropout and not causal and attn_mask is None, "a masked attention")
    return _shares(writer, query, key, scale) @ value, None


@_rule(aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
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
    shares = _shares(writer, query, key, scale)
    of_shares = gradient @ _turned(writer, value)
    total = writer.op("ReduceSum", of_shares * shares, [-1], keepdims=1)
    of_products = shares * (of_shares - total) * _scale(query, scale)
    at_key = _turned(writer, of_products) @ query
    return of_products @ key, at_key, _turned(writer, shares) @ gradient


def _shares(writer: GraphWriter, query: Value, key: Value, scale: float | None) -> Value:
    return writer.op("Softmax", (query @ _turned(writer, key)) * _scale(query, scale), axis=-1)


def _scale(query: Value, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _turned(writer: GraphWriter, x: Value) -> Value:
    return writer.op("Transpose", x, perm=[0, 1, 3, 2])
