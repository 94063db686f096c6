"""How evaluations are found: by decorator and by entry point."""

from importlib.metadata import EntryPoint

import pytest

from unerase.v1.types_pb2 import EVALUATION_CLASS_PLAIN, Observation
from unerase_backend.evaluation import registry as module
from unerase_backend.evaluation.registry import Registry, parameter

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


def test_a_name_is_taken_once(registry: Registry) -> None:
    registry.register("a", **DESCRIBED)(nothing)
    with pytest.raises(ValueError, match="twice"):
        registry.register("a", **DESCRIBED)(nothing)


def test_third_parties_come_by_entry_point(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Registering(EntryPoint):
        def load(self) -> None:
            loaded.append(self.group)
            registry.register(self.name, **DESCRIBED)(nothing)

    monkeypatch.setattr(module, "entry_points", lambda group: [Registering("theirs", "somewhere", group)])
    assert list(registry.all()) == list(registry.all()) == ["theirs"]
    assert loaded == ["unerase.test"]


def test_a_parameter_without_bounds_has_none() -> None:
    described = parameter("etas", "Values of eta.", [1.0, 1.5])
    assert (described.list, described.integer) == (True, False)
    assert not described.HasField("minimum")
    assert not described.HasField("maximum")
    assert [value.number_value for value in described.default_value.list_value.values] == [1.0, 1.5]
