"""How evaluations describe themselves; how they are found is in tests/runtime/test_components.py."""

import pytest

from unerase.v1.types_pb2 import EVALUATION_CLASS_PLAIN, MODEL_ROLE_SUBJECT, Observation, ParameterDescription
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.evaluation.registry import Registry, parameter
from unerase_backend.runtime import source
from unerase_backend.runtime.components import RegistrationError

DESCRIBED = {"title": "Nothing", "summary": "Nothing.", "evaluation_class": EVALUATION_CLASS_PLAIN}


async def nothing(*_: object) -> list[Observation]:
    return []


@pytest.fixture
def registry() -> Registry:
    return Registry("unerase_backend.attack.attacks", "unerase.test")


def test_what_is_registered_is_found_by_name_and_described(registry: Registry) -> None:
    steps = parameter("steps", "Steps.", 3, minimum=1, maximum=9, integer=True)
    registry.register("b", **DESCRIBED, parameters=[steps], deciding_arms=["x"], required=True, cases_per_unit=2)(
        nothing
    )
    registry.register("a", **DESCRIBED)(nothing)
    assert list(registry.all()) == ["a", "b"]
    evaluation = registry.all()["b"]
    assert evaluation.run is nothing
    description = evaluation.description
    assert (description.name, description.title, description.required) == ("b", "Nothing", True)
    assert (list(description.parameters), list(description.deciding_arms)) == ([steps], ["x"])
    assert description.cases_per_unit == 2


def test_the_source_of_all_that_computes_is_described(registry: Registry) -> None:
    assert {evaluation.description.source_digest for evaluation in ATTACKS.all().values()} == {source.RESULTS}
    registry.register("a", **DESCRIBED)(nothing)
    assert registry.all()["a"].description.source_digest == source.component_digest(nothing.__module__)
    assert source.component_digest(nothing.__module__) != source.RESULTS


def test_a_name_is_taken_once(registry: Registry) -> None:
    registry.register("a", **DESCRIBED)(nothing)
    with pytest.raises(ValueError, match="twice"):
        registry.register("a", **DESCRIBED)(nothing)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"evaluation_class": 0}, "there is no evaluation class 0"),
        ({"evaluation_class": 99}, "there is no evaluation class 99"),
        ({"title": ""}, "it has no title"),
        ({"summary": ""}, "it has no summary"),
        ({"roles": [MODEL_ROLE_SUBJECT]}, "only a measure may name the roles"),
        ({"parameters": [ParameterDescription(name="steps")]}, "the default of steps must be a number"),
        ({"parameters": [parameter("steps", "Steps.", 3, minimum=4)]}, "the default of steps must be at least 4"),
        ({"parameters": [parameter("a", "A.", 1), parameter("a", "A.", 1)]}, "the parameter 'a' is there twice"),
    ],
)
def test_a_bad_description_is_refused(registry: Registry, change: dict, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        registry.register("bad", **DESCRIBED | change)(nothing)
    assert "bad" not in registry.all()


@pytest.mark.parametrize("name", ["", "Upper", "two words", "a/b", "a--b", "ünder"])
def test_a_bad_name_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(RegistrationError, match="its name must be"):
        registry.register(name, **DESCRIBED)(nothing)


def test_only_an_async_function_is_an_evaluation(registry: Registry) -> None:
    with pytest.raises(RegistrationError, match="must be an async function"):
        registry.register("bad", **DESCRIBED)(lambda *_: [])


def test_a_parameter_without_bounds_has_none() -> None:
    described = parameter("etas", "Values of eta.", [1.0, 1.5])
    assert (described.list, described.integer) == (True, False)
    assert not described.HasField("minimum")
    assert not described.HasField("maximum")
    assert [value.number_value for value in described.default_value.list_value.values] == [1.0, 1.5]
