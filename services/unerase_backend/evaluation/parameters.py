"""Checks an evaluation's parameters against its description and fills in the defaults.

The functions are pure. The coordinator uses them to refuse a bad request before it plans anything, and the rooms to
read a unit, so both follow the same rules.
"""

import difflib
import math
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value

from unerase.v1.types_pb2 import EvaluationDescription, EvaluationRequest, ParameterDescription
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

MAX_LIST_LENGTH = most_items(EvaluationRequest, "parameters")
"""The most numbers that a list parameter may hold, and the most parameters of an evaluation."""
_MAX_NAME = 100

Parameters = dict[str, Any]
"""Values by name: `int`, `float`, or a list of either, as the description says."""


def resolve_parameters(
    description: EvaluationDescription, given: Struct, *, field: str = "unit.parameters"
) -> Parameters:
    """Return every parameter of the evaluation by name: the given value, or else the default.

    Whole-number parameters are `int`, others `float`, and list parameters lists of either.

    Raises:
        InvalidRequestError: with one violation `<field>.<name>` for each parameter that is unknown, of the wrong type,
            not whole, not finite, or out of its bounds.
    """
    if len(given.fields) > MAX_LIST_LENGTH:
        problem = f"must be at most {MAX_LIST_LENGTH}, not {len(given.fields)}"
        raise InvalidRequestError.of(FieldViolation(field, problem))
    described = {parameter.name: parameter for parameter in description.parameters}
    names = list(described)
    violations = [
        FieldViolation(f"{field}.{name}", _unknown(description.name, name, names))
        for name in sorted(given.fields)
        if name not in described
    ]
    parameters: Parameters = {}
    for name, parameter in described.items():
        value = given.fields.get(name, parameter.default_value)
        if problem := _problem(parameter, value):
            violations.append(FieldViolation(f"{field}.{name}", problem))
        else:
            parameters[name] = _read(parameter, value)
    if violations:
        raise InvalidRequestError.of(*violations)
    return parameters


def parameters_struct(parameters: Parameters) -> Struct:
    """Return parameters as the message that a unit holds."""
    struct = Struct()
    json_format.ParseDict(parameters, struct)
    return struct


def _read(parameter: ParameterDescription, value: Value) -> int | float | list[int] | list[float]:
    if parameter.list:
        numbers = [item.number_value for item in value.list_value.values]
        return [round(number) for number in numbers] if parameter.integer else numbers
    return round(value.number_value) if parameter.integer else value.number_value


def _problem(parameter: ParameterDescription, value: Value) -> str:
    kind = value.WhichOneof("kind")
    if not parameter.list:
        return "must be a number" if kind != "number_value" else _number_problem(parameter, value.number_value)
    if kind != "list_value":
        return "must be a list of numbers"
    items = value.list_value.values
    if not 1 <= len(items) <= MAX_LIST_LENGTH:
        return f"must hold 1 to {MAX_LIST_LENGTH} numbers, not {len(items)}"
    for position, item in enumerate(items):
        if item.WhichOneof("kind") != "number_value":
            return f"item {position} must be a number"
        problem = _number_problem(parameter, item.number_value)
        if problem:
            return f"item {position} {problem}"
    return ""


def _number_problem(parameter: ParameterDescription, number: float) -> str:
    if not math.isfinite(number):
        return "must be finite"
    if parameter.integer and number != math.floor(number):
        return f"must be a whole number, not {number:g}"
    if parameter.HasField("minimum") and number < parameter.minimum:
        return f"must be at least {parameter.minimum:g}, not {number:g}"
    if parameter.HasField("maximum") and number > parameter.maximum:
        return f"must be at most {parameter.maximum:g}, not {number:g}"
    return ""


def _unknown(evaluation: str, name: str, names: Sequence[str]) -> str:
    # A text much longer than any name matches none of them, and takes long to compare.
    near = difflib.get_close_matches(name, names, n=1) if len(name) <= _MAX_NAME else []
    if near:
        return f"{evaluation} has no such parameter; did you mean {near[0]!r}?"
    return f"{evaluation} has no such parameter; it has {', '.join(sorted(names)) or 'none'}"
