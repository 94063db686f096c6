"""How evaluations describe themselves; how they are found is in tests/runtime/test_components.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unerase.v1.types_pb2 import (
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_PLAIN,
    MODEL_CAPABILITY_UNGUIDED_ROW,
    MODEL_ROLE_SUBJECT,
    RESULT_KIND_TRACING,
    Observation,
    ParameterDescription,
    ResultKind,
)
from unerase_backend.attack.registry import ATTACKS
from unerase_backend.evaluation.registry import Registry, parameter
from unerase_backend.probing.registry import PROBES
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
        ({"without_model": True}, "only a measure may be without a model"),
        ({"result": RESULT_KIND_TRACING}, "only a measure may have a result of its own kind"),
        (
            {"evaluation_class": EVALUATION_CLASS_MEASURE, "without_model": True, "roles": [MODEL_ROLE_SUBJECT]},
            "it names roles, and no model",
        ),
        ({"needs": [99]}, "there is no model capability 99"),
        ({"needs": [0]}, "there is no model capability 0"),
        (
            {
                "evaluation_class": EVALUATION_CLASS_MEASURE,
                "without_model": True,
                "needs": [MODEL_CAPABILITY_UNGUIDED_ROW],
            },
            "it needs something of a model, and has none",
        ),
        ({"parameters": [ParameterDescription(name="steps")]}, "the default of steps must be a number"),
        ({"parameters": [parameter("steps", "Steps.", 3, minimum=4)]}, "the default of steps must be at least 4"),
        ({"parameters": [parameter("a", "A.", 1), parameter("a", "A.", 1)]}, "the parameter 'a' occurs twice"),
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


def test_a_third_party_has_no_result_of_our_kinds(tmp_path: Path) -> None:
    """Its measure is a table; a second likelihood would leave open which one the verdict reads."""
    (tmp_path / "their_measures.py").write_text(
        """
from unerase.v1.types_pb2 import EVALUATION_CLASS_MEASURE, RESULT_KIND_LIKELIHOOD
from unerase_backend.probing.registry import PROBES

async def run(unit, models, parameters):
    return []

described = {"title": "T", "summary": "S.", "evaluation_class": EVALUATION_CLASS_MEASURE}
PROBES.register("their-likelihood", **described, result=RESULT_KIND_LIKELIHOOD)(run)
"""
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unerase.probes]\ntheir-likelihood = their_measures\n")
    script = "from unerase_backend.probing.registry import PROBES; print(PROBES.broken(), 'likelihood' in PROBES.all())"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "of a kind that only our own measures have" in ended.stdout
    assert ended.stdout.endswith("True\n")


def test_each_kind_of_result_is_one_measures() -> None:
    kinds = [each.description.result for each in PROBES.all().values() if each.description.result]
    kinds += [each.description.result for each in ATTACKS.all().values() if each.description.result]
    assert sorted(kinds) == sorted(set(ResultKind.values()) - {ResultKind.RESULT_KIND_UNSPECIFIED})
