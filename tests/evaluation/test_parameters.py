"""Parameters: defaults, bounds, and errors that name the field."""

import math

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.evaluation.parameters import parameters_struct, resolve_parameters
from unerase_backend.evaluation.registry import parameter
from unerase_backend.runtime.errors import InvalidRequestError

DESCRIPTION = EvaluationDescription(
    name="example",
    parameters=[
        parameter("steps", "", 250, minimum=1, maximum=1000, integer=True),
        parameter("rate", "", 0.02, minimum=0.001, maximum=1.0),
        parameter("etas", "", [1.0, 1.17], minimum=0.0, maximum=2.0),
        parameter("counts", "", [1, 2], minimum=1, integer=True),
    ],
)


def struct(**values: object) -> Struct:
    return json_format.ParseDict(values, Struct())


def test_defaults_have_their_types() -> None:
    parameters = resolve_parameters(DESCRIPTION, Struct())
    assert parameters == {"steps": 250, "rate": 0.02, "etas": [1.0, 1.17], "counts": [1, 2]}
    assert isinstance(parameters["steps"], int)
    assert isinstance(parameters["rate"], float)
    assert [type(count) for count in parameters["counts"]] == [int, int]


@given(
    st.integers(1, 1000),
    st.floats(0.001, 1.0),
    st.lists(st.floats(0, 2), min_size=1, max_size=64),
    st.integers(1, 10**6),
)
def test_what_is_resolved_resolves_to_itself(steps: int, rate: float, etas: list[float], count: int) -> None:
    given_ = struct(steps=steps, rate=rate, etas=etas, counts=[count])
    parameters = resolve_parameters(DESCRIPTION, given_)
    assert parameters == {"steps": steps, "rate": rate, "etas": etas, "counts": [count]}
    assert resolve_parameters(DESCRIPTION, parameters_struct(parameters)) == parameters


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 0, "at least 1"),
        ("steps", 1001, "at most 1000"),
        ("steps", 2.5, "whole"),
        ("steps", "250", "number"),
        ("steps", True, "number"),
        ("steps", None, "number"),
        ("steps", [1], "number"),
        ("rate", -1, "at least"),
        ("rate", {"a": 1}, "number"),
        ("etas", 1.0, "list"),
        ("etas", [], "1 to 64"),
        ("etas", [1.0] * 65, "1 to 64"),
        ("etas", [1.0, "x"], "item 1"),
        ("etas", [1.0, 2.5], "item 1 must be at most 2"),
        ("counts", [1, 1.5], "item 1 must be a whole"),
        ("step", 3, "did you mean 'steps'"),
        ("zzz", 3, "counts, etas, rate, steps"),
    ],
)
def test_bad_values_name_their_field(name: str, value: object, words: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        resolve_parameters(DESCRIPTION, struct(**{name: value}), field="spec.battery.evaluations[1].parameters")
    (violation,) = error.value.violations
    assert violation.field == f"spec.battery.evaluations[1].parameters.{name}"
    assert words in violation.description


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    for name in ("steps", "rate"):
        given_ = Struct()
        given_.fields[name].number_value = number
        with pytest.raises(InvalidRequestError, match="finite"):
            resolve_parameters(DESCRIPTION, given_)


def test_every_bad_field_is_named_at_once() -> None:
    with pytest.raises(InvalidRequestError) as error:
        resolve_parameters(DESCRIPTION, struct(steps=0, rate=9, unknown=1))
    assert {violation.field for violation in error.value.violations} == {
        "unit.parameters.steps",
        "unit.parameters.rate",
        "unit.parameters.unknown",
    }
