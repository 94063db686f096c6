"""Operations that move elements: other shapes, orders, parts and copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unerase_backend.runtime.graph_rules.basics import LAST, need, writes
from unerase_backend.runtime.graph_writer import ROWS, GraphWriter, Rule, Value

aten = torch.ops.aten

RULES: dict[Any, Rule] = {}


@writes(RULES, aten.detach.default, aten.alias.default, aten.clone.default)
def _same(writer: GraphWriter, x: Value, **layout: Any) -> Value:
    return x


@writes(RULES, aten._to_copy.default)
def _to_copy(writer: GraphWriter, x: Value, dtype: torch.dtype | None = None, **layout: Any) -> Value:
    from onnx import TensorProto

    need(dtype == torch.float32, f"a conversion to {dtype}")
    return writer.op("Cast", x, to=TensorProto.FLOAT)


@writes(RULES, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim)
def _view(writer: GraphWriter, x: Value, sizes: Any) -> Value:
    if x.shape == writer.shape:
        return x
    seen = writer.reshaped(x, writer.shape)
    if x.name in writer.products and x.shape[-1] == writer.shape[-1]:
        writer.products[seen.name] = writer.products[x.name]
    return seen


@writes(RULES, aten.expand.default)
def _expand(writer: GraphWriter, x: Value, sizes: Sequence[int]) -> Value:
    if x.shape == writer.shape:
        return x
    added = len(writer.shape) - len(x.shape)
    # The size 1 leaves an axis as it is. What the operations that read it repeat has one row for all.
    same = [added <= axis and x.shape[axis - added] == size for axis, size in enumerate(writer.shape)]
    sizes = [1 if kept or size % ROWS == 0 else size for kept, size in zip(same, writer.shape, strict=True)]
    expanded = x if set(sizes) == {1} and not added else writer.op("Expand", x, sizes)
    return writer.repeated(expanded, writer.shape) if writer.is_fixed(x) else expanded


@writes(RULES, aten.permute.default)
def _permuted(writer: GraphWriter, x: Value, order: Sequence[int]) -> Value:
    return writer.op("Transpose", x, perm=[axis % len(order) for axis in order])


@writes(RULES, aten.transpose.int, aten.t.default)
def _transpose(writer: GraphWriter, x: Value, one: int = 0, other: int = 1) -> Value:
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return writer.op("Transpose", x, perm=order)


@writes(RULES, aten.repeat.default)
def _repeat(writer: GraphWriter, x: Value, times: Sequence[int]) -> Value:
    pairs = zip((1,) * (len(times) - len(x.shape)) + x.shape, times, strict=True)
    need(all(count == 1 or (size == 1 and count == ROWS) for size, count in pairs), "such a repetition")
    repeated: Value = _expand(writer, x, times)
    return repeated


@writes(RULES, aten.cat.default)
def _cat(writer: GraphWriter, parts: Sequence[Value], axis: int = 0) -> Value:
    whole = [writer.repeated(each, writer.shape) if writer.is_fixed(each) else each for each in parts]
    fixed = all(map(writer.is_fixed, parts))
    return writer.op("Concat", *(parts if fixed else whole), axis=axis)


@writes(RULES, aten.stack.default)
def _stack(writer: GraphWriter, parts: Sequence[Value], axis: int = 0) -> Value:
    place = axis % len(writer.shape)
    sizes = [*writer.shape[:place], 1, *writer.shape[place + 1 :]]
    return writer.op("Concat", *(writer.reshaped(each, sizes) for each in parts), axis=axis)


@writes(RULES, aten.select.int)
def _select(writer: GraphWriter, x: Value, axis: int, index: int) -> Value:
    place = index % x.shape[axis]
    return writer.reshaped(writer.op("Slice", x, [place], [place + 1], [axis]), writer.shape)


@writes(RULES, aten.unbind.int)
def _unbind(writer: GraphWriter, x: Value, axis: int = 0) -> tuple[Value, ...]:
    return tuple(_select(writer, x, axis, index) for index in range(x.shape[axis]))


@writes(RULES, aten.constant_pad_nd.default)
def _pad(writer: GraphWriter, x: Value, sides: Sequence[int], value: float = 0) -> Value:
    # Torch's sides begin with the last axis.
    before, after = ([0] * (len(x.shape) - len(sides) // 2) + list(sides[end::2])[::-1] for end in (0, 1))
    return writer.op("Pad", x, before + after, float(value))


@writes(RULES, aten.pixel_shuffle.default)
def _pixel_shuffle(writer: GraphWriter, x: Value, factor: int) -> Value:
    return writer.op("DepthToSpace", x, blocksize=factor, mode="CRD")


@writes(RULES, aten.embedding.default)
def _embedding(writer: GraphWriter, weight: Value, places: Value, *padding: Any) -> Value:
    return writer.op("Gather", weight, places, axis=0)


@writes(RULES, aten.slice.Tensor)
def _slice(writer: GraphWriter, x: Value, axis: int = 0, start: int = 0, end: int = LAST, step: int = 1) -> Value:
    return x if x.shape == writer.shape else writer.op("Slice", x, [start or 0], [end], [axis], [step])


@writes(RULES, aten.split.Tensor)
def _split(writer: GraphWriter, x: Value, size: int, axis: int = 0) -> tuple[Value, ...]:
    whole = x.shape[axis]
    sizes = [min(size, whole - begin) for begin in range(0, whole, size)]
    parts: tuple[Value, ...] = _split_with_sizes(writer, x, sizes, axis)
    return parts


@writes(RULES, aten.split_with_sizes.default)
def _split_with_sizes(writer: GraphWriter, x: Value, sizes: Sequence[int], axis: int = 0) -> tuple[Value, ...]:
    if x.name not in writer.products or axis % len(x.shape) != len(x.shape) - 1:
        return writer.ops("Split", len(sizes), x, list(sizes), axis=axis)
    # As products of their own the parts need not be copied out of one.
    given, weight, bias = writer.products[x.name]
    weights, biases = (writer.ops("Split", len(sizes), each, list(sizes), axis=-1) for each in (weight, bias))
    parts = [writer.op("Gemm", given, *part) for part in zip(weights, biases, strict=True)]
    return tuple(writer.reshaped(each, [*x.shape[:-1], size]) for each, size in zip(parts, sizes, strict=True))


@writes(RULES, aten.upsample_nearest2d.default)
def _upsample(writer: GraphWriter, x: Value, size: Sequence[int], *scales: Any) -> Value:
    factors = torch.tensor([1, 1, *whole_factors(size, x.shape)], dtype=torch.float32)
    return writer.op(
        "Resize",
        x,
        writer.constant(torch.tensor([], dtype=torch.float32)),
        writer.constant(factors),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def whole_factors(size: Sequence[int], original: Sequence[int]) -> list[int]:
    """Return by how much height and width are enlarged to a size, from a shape."""
    pairs = list(zip(size, original[2:], strict=True))
    need(all(large % small == 0 for large, small in pairs), "an enlargement by no whole factor")
    return [large // small for large, small in pairs]
