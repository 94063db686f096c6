"""What every registered evaluation is run on: the testbed, two cases, few steps, the least of every budget."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from support.backend import LocalBackend, evaluations, local_backend
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_PLACEBO,
    EVALUATION_CLASS_INJECTING,
    EVALUATION_CLASS_MEASURE,
    ControlKind,
)
from unerase_backend.evaluation.parameters import Parameters, resolve_parameters

STEPS = 3


def small(evaluation: str) -> Parameters:
    """Two of whatever is counted, one and two where a list counts, else the first and the last of every list."""
    description = evaluations()[evaluation].description
    parameters = resolve_parameters(description, Struct())
    for parameter in description.parameters:
        value = parameters[parameter.name]
        if parameter.list and parameter.integer:
            parameters[parameter.name] = [1, 2]
        elif parameter.list:
            parameters[parameter.name] = list(dict.fromkeys([value[0], value[-1]]))
        elif parameter.integer:
            parameters[parameter.name] = max(min(value, 2), int(parameter.minimum))
    return parameters


def units_of_controls() -> list[tuple[str, ControlKind.ValueType]]:
    """Every evaluation with each kind of control that runs on the subject and that it can have."""
    found: list[tuple[str, ControlKind.ValueType]] = []
    for name, evaluation in sorted(evaluations().items()):
        description = evaluation.description
        if description.evaluation_class == EVALUATION_CLASS_MEASURE:
            continue
        if not description.reference_begins:
            found.append((name, CONTROL_KIND_PLACEBO))
        if description.evaluation_class != EVALUATION_CLASS_INJECTING:
            found.append((name, CONTROL_KIND_CONCEPT_FREE))
    return found


def small_unit(backend: LocalBackend, evaluation: str, model: str = "testbed/uce", **changes: Any) -> Unit:
    """A unit of seconds."""
    return backend.unit(evaluation, model, parameters=small(evaluation), **{"steps": STEPS} | changes)


@pytest.fixture(scope="session")
async def fresh(tmp_path_factory: pytest.TempPathFactory, catalogues: tuple[str, ...]) -> AsyncIterator[LocalBackend]:
    """A second backend with a store of its own: nothing is remembered from the first."""
    async with local_backend(tmp_path_factory.mktemp("fresh"), catalogues=catalogues) as backend:
        yield backend


@pytest.fixture(scope="session")
async def crowded(tmp_path_factory: pytest.TempPathFactory, catalogues: tuple[str, ...]) -> AsyncIterator[LocalBackend]:
    """A third one, whose batches are shared with other units."""
    async with local_backend(tmp_path_factory.mktemp("crowded"), catalogues=catalogues) as backend:
        yield backend
