"""Operations on each element for itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from unerase_backend.runtime.graph_rules.basics import writes
from unerase_backend.runtime.graph_writer import GraphWriter, Rule, Value

aten = torch.ops.aten

RULES: dict[Any, Rule] = {}


def _of_two(kind: str, writer: GraphWriter, x: Value, other: Value | float) -> Value:
    return writer.op(kind, x, other)


def _of_one(kind: str, writer: GraphWriter, x: Value) -> Value:
    return writer.op(kind, x)


for _name in ("add", "sub", "mul", "div"):
    RULES |= {getattr(aten, _name).Tensor: partial(_of_two, _name.capitalize())}
    RULES |= {getattr(aten, _name).Scalar: partial(_of_two, _name.capitalize())}
for _name in ("sin", "cos", "exp", "neg", "sigmoid", "relu", "sqrt", "tanh"):
    RULES |= {getattr(aten, _name).default: partial(_of_one, _name.capitalize())}


@writes(RULES, aten.rsub.Scalar)
def _rsub(writer: GraphWriter, x: Value, other: float) -> Value:
    return other - x


@writes(RULES, aten.pow.Tensor_Scalar)
def _pow(writer: GraphWriter, x: Value, exponent: float) -> Value:
    return x if exponent == 1 else writer.op("Pow", x, exponent)


@writes(RULES, aten.rsqrt.default)
def _rsqrt(writer: GraphWriter, x: Value) -> Value:
    return writer.op("Reciprocal", writer.op("Sqrt", x))


@writes(RULES, aten.hardtanh.default)
def _hardtanh(writer: GraphWriter, x: Value, least: float = -1.0, most: float = 1.0) -> Value:
    return writer.op("Clip", x, least, most)


@writes(RULES, aten.silu.default)
def _silu(writer: GraphWriter, x: Value) -> Value:
    return x * writer.op("Sigmoid", x)


@writes(RULES, aten.gelu.default)
def _gelu(writer: GraphWriter, x: Value, approximate: str = "none") -> Value:
    if approximate == "none":
        # As onnxruntime knows it for one operation.
        return x * (writer.op("Erf", x / math.sqrt(2)) + 1.0) * 0.5
    return x * (writer.op("Tanh", (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) * 0.5 + 0.5)
