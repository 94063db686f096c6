"""Writes a graph of onnxruntime while torch computes: every operation of torch becomes operations of the graph.

Torch computes once with real tensors. `Recorder` sees each operation below autograd, so those of a backward pass as
well, and has a rule write the same for the tensors that follow from inputs and weights. All others are constants. What
a tensor is changed to in place is a new value; its views from before are not.

The graph takes any number of rows. The recorded call has `ROWS` of them, a number that networks do not have among
their sizes: whatever is a multiple of it counts as rows. Where that is wrong, or where a rule writes something else
than torch computes, the graph's outputs for another number of rows show it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ROWS = 19
"""Rows of a recorded call. It divides few widths of networks, and no number of tokens 2 ** k or n * n + 1."""
OPSET = 18


class UnknownOperationError(Exception):
    """Torch computed what no rule can write."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; with numbers and others it is calculated as tensors are."""

    writer: GraphWriter
    name: str
    shape: tuple[int, ...] = ()
    """The shape of the tensor that torch computed, with `ROWS` rows; empty for what only the graph has."""

    def __add__(self, other: Value | float) -> Value:
        return self.writer.op("Add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.writer.op("Sub", self, other)

    def __rsub__(self, other: Value | float) -> Value:
        return self.writer.op("Sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return self.writer.op("Mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.writer.op("Div", self, other)

    def __matmul__(self, other: Value) -> Value:
        return self.writer.op("MatMul", self, other)


Rule = Callable[..., Any]
"""Takes a writer and an operation's arguments, and returns the value or values of its outputs, None for unknown ones.

Tensors among the arguments are values. The writer's `shape` is that of the operation's first output.
"""


class GraphWriter:
    """The nodes, weights and constants written so far."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.shape: tuple[int, ...] = ()
        self.kept: dict[str, Value] = {}
        """What a rule of a forward operation keeps for that of the backward one, by the name of an output."""
        self.products: dict[str, tuple[Value, Value, Value]] = {}
        """Of what is, in another shape, a product with a bias: the factors and the bias, by the name of the output."""
        self.first = Value(self, "")
        """The first input of the graph."""
        self._fixed: set[str] = set()
        self._sources: dict[str, Value] = {}
        self._rows: list[Value] = []
        self._numbers: dict[float, Value] = {}

    def op(self, kind: str, *inputs: Value | float | Sequence[int], **attributes: Any) -> Value:
        """Write a node, and return its output. Lists of integers are its constant inputs."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(
        self, kind: str, outputs: int, *inputs: Value | float | Sequence[int], **attributes: Any
    ) -> tuple[Value, ...]:
        """Write a node, and return its outputs."""
        from onnx import helper

        names = [f"v{len(self.nodes)}.{place}" for place in range(outputs)]
        read = [self._input(each) for each in inputs]
        self.nodes.append(helper.make_node(kind, [each.name for each in read], names, **attributes))
        if all(map(self.is_fixed, read)):
            self._fixed.update(names)
        return tuple(Value(self, name) for name in names)

    def constant(self, tensor: Tensor) -> Value:
        """Return a constant; if it has equal rows, only one of them."""
        for axis, size in enumerate(tensor.shape):
            if size and size % ROWS == 0:
                first = tensor.narrow(axis, 0, size // ROWS)
                if not torch.equal(torch.cat([first] * ROWS, axis), tensor):
                    raise UnknownOperationError("a constant has different rows")
                tensor = first
        name = f"c{len(self.constants)}"
        self.constants[name] = tensor.detach().contiguous().numpy().copy()
        return Value(self, name, tuple(tensor.shape))

    def reshaped(self, value: Value, sizes: Sequence[int]) -> Value:
        """Return a value with other sizes, one of which at most has to do with rows and is not as before."""
        source = self._sources.get(value.name, value)
        # No sizes may be those of a single number, or unknown ones.
        if sizes and source.shape == tuple(sizes):
            return source
        reshaped = replace(self.op("Reshape", source, self._open(source, sizes)), shape=tuple(sizes))
        self._sources[reshaped.name] = source
        return reshaped

    @staticmethod
    def _open(value: Value, sizes: Sequence[int]) -> list[int]:
        """Return sizes as a graph for any number of rows has them."""
        # 0 stands for the size that the axis has, so that onnxruntime knows that it is the same.
        before = (*value.shape, *[0] * len(sizes))
        kept = [bool(size) and size % ROWS == 0 and size == before[axis] for axis, size in enumerate(sizes)]
        open_sizes = [
            0 if same else -1 if size and size % ROWS == 0 else size for size, same in zip(sizes, kept, strict=True)
        ]
        if open_sizes.count(-1) > 1:
            raise UnknownOperationError(f"the sizes {tuple(sizes)} do not tell which is that of rows")
        return open_sizes

    def is_fixed(self, value: Value) -> bool:
        """Return whether a value follows from weights and constants alone, so that it may have one row for all."""
        return value.name in self.constants or value.name in self.weights or value.name in self._fixed

    def repeated(self, value: Value, shape: Sequence[int]) -> Value:
        """Return a fixed value with as many rows as a call has, along the axis of a shape that has to do with rows."""
        axes = [axis for axis, size in enumerate(shape) if size and size % ROWS == 0]
        if len(axes) != 1 or shape[axes[0]] != ROWS:
            return value
        if not self._rows:
            self._rows.append(self.op("Slice", self.op("Shape", self.first), [0], [1]))
        ones = [1] * len(shape)
        return self.op("Expand", value, self.op("Concat", ones[: axes[0]], *self._rows, ones[axes[0] + 1 :], axis=0))

    def _input(self, given: Value | float | Sequence[int]) -> Value:
        if isinstance(given, Value):
            return given
        if isinstance(given, int | float):
            if given not in self._numbers:
                self._numbers[given] = self.constant(torch.tensor(float(given)))
            return self._numbers[given]
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(given, np.int64)
        return Value(self, name)

    def model(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Value]) -> bytes:
        """Return the graph from inputs to outputs, by name, all with a row for each row of a call.

        The weights bear their names and hold nothing.
        """
        from onnx import TensorProto, helper, numpy_helper

        identities = [helper.make_node("Identity", [value.name], [name]) for name, value in outputs.items()]
        nodes, read = _leading_to(identities, self.nodes)
        initializers = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in read]
        for name, (shape, dtype) in self.weights.items():
            if name in read:
                initializers.append(TensorProto(name=name, dims=shape, data_type=_number_type(dtype)))
        graph = helper.make_graph(
            nodes,
            "graph",
            [
                helper.make_tensor_value_info(name, _number_type(each.dtype), ["rows", *each.shape[1:]])
                for name, each in inputs.items()
                if name in read
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return serialized(model)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, every operation on tensors of the graph is written."""

    def __init__(
        self,
        rules: Mapping[Any, Rule],
        constant: frozenset[Any],
        inputs: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        *,
        backwards: bool,
    ) -> None:
        """Take rules by operation, the operations whose outputs do not follow from any values, and named tensors.

        With `backwards` autograd computes, too, which needs tensors that nothing else holds; all live on then.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.writer = GraphWriter()
        self._rules, self._constant = rules, constant
        # Tensors are known by identity, by what gives each as long as it lives.
        self._known: dict[int, tuple[Callable[[], Tensor | None], Value]] = {}
        self._living: list[Tensor] | None = [] if backwards else None
        self._weights = {id(weight): (name, weight) for name, weight in weights.items()}
        for name, tensor in inputs.items():
            self._keep(tensor, Value(self.writer, name))
        self.writer.first = Value(self.writer, next(iter(inputs)))

    def value_of(self, tensor: Tensor) -> Value:
        """Return the value that a tensor has in the graph; a constant if it does not follow from any."""
        if self._knows(tensor):
            return self._known[id(tensor)][1]
        if id(tensor) in self._weights:
            name, weight = self._weights[id(tensor)]
            self.writer.weights[name] = weight.shape, weight.dtype
            return self._keep(weight, Value(self.writer, name))
        return self.writer.constant(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operation, and write it if it takes a tensor of the graph."""
        given = kwargs or {}
        computed = func(*args, **given)
        used: list[Tensor] = []
        tree_map(lambda each: used.append(each) if isinstance(each, Tensor) else None, (args, given))
        if func in self._constant or not any(self._knows(each) or id(each) in self._weights for each in used):
            return computed
        rule = self._rules.get(func)
        if func._schema.is_mutable:
            # In place: the first argument is the output, and had to be known before.
            rule = self._rules.get(_elsewhere(func)) if self._knows(args[0]) else None
        if rule is None:
            raise UnknownOperationError(f"no rule writes {func}")
        outputs = [computed] if isinstance(computed, Tensor) else computed
        self.writer.shape = tuple(outputs[0].shape)
        values = rule(self.writer, *tree_map(self._argument, args), **tree_map(self._argument, given))
        for tensor, value in zip(outputs, [values] if isinstance(values, Value) else values, strict=True):
            if tensor is not None:
                self._keep(tensor, value or Value(self.writer, "unknown"))
        return computed

    def _argument(self, given: Any) -> Any:
        return self.value_of(given) if isinstance(given, Tensor) else given

    def _keep(self, tensor: Tensor, value: Value) -> Value:
        kept = Value(self.writer, value.name, tuple(tensor.shape))
        self._known[id(tensor)] = weakref.ref(tensor), kept
        if self._living is not None:
            self._living.append(tensor)
        return kept

    def _knows(self, tensor: Tensor) -> bool:
        # Another tensor may have taken the place of one that has ended.
        return id(tensor) in self._known and self._known[id(tensor)][0]() is tensor


def serialized(graph: Any) -> bytes:
    """Return a graph's bytes.

    Raises:
        MemoryError: they do not fit into memory.
    """
    from google.protobuf.message import EncodeError

    try:
        content: bytes = graph.SerializeToString()
    except EncodeError as error:
        raise MemoryError("a graph cannot be written down") from error
    return content


def _elsewhere(in_place: Any) -> Any:
    """Return the operation that gives as a new tensor what one does in place; None if there is none."""
    name, _, overload = str(in_place).removeprefix("aten.").partition(".")
    plain = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(plain, overload, None)


def _leading_to(last: Sequence[Any], nodes: Sequence[Any]) -> tuple[list[Any], set[str]]:
    """Return the nodes that the last ones need, and they themselves, and the names that all of these read."""
    needed = list(last)[::-1]
    read = {name for node in last for name in node.input}
    for node in reversed(nodes):
        if not read.isdisjoint(node.output):
            needed.append(node)
            read.update(node.input)
    return needed[::-1], read


def _number_type(dtype: torch.dtype) -> int:
    from onnx import helper

    found: int = helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
    return found
