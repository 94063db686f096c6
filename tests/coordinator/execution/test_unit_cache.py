"""A kept unit is found again by everything that may change its result, and by nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from support.backend import LocalBackend, evaluations
from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase.v1.types_pb2 import MODEL_ROLE_CONTROL, EvaluationDescription, Finding, Observation
from unerase_backend.coordinator.execution import unit_cache
from unerase_backend.runtime.artifacts import ArtifactStore

Change = Callable[[Unit], object]


def _key(local: LocalBackend, unit: Unit, profile: str = "profile", source: str = "") -> str:
    description = EvaluationDescription()
    description.CopyFrom(evaluations()[unit.evaluation].description)
    description.source_digest = source or description.source_digest
    return unit_cache.unit_key(unit, description, local.catalogue, profile)


def test_the_id_does_not_matter(local: LocalBackend) -> None:
    unit = local.unit("noise-based")
    other = local.unit("noise-based")
    other.id = "another/audit/0"
    assert _key(local, unit) == _key(local, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: setattr(unit, "role", MODEL_ROLE_CONTROL),
        lambda unit: setattr(unit, "model", "testbed/uce"),
        lambda unit: setattr(unit, "reference", "testbed/never"),
        lambda unit: setattr(unit, "steps", 5),
        lambda unit: setattr(unit, "guidance_scale", 4.0),
        lambda unit: setattr(unit, "seed_base", 2),
        lambda unit: unit.parameters.update({"etas": [1.0]}),
        lambda unit: unit.cases.pop(),
        lambda unit: unit.target.concept.names.append("sandglass"),
        lambda unit: unit.target.judge.labels.append("moon"),
        lambda unit: setattr(unit.target.judge, "judge", "testbed/second-judge"),
        lambda unit: setattr(unit, "evaluation", "standard-prompt"),
    ],
)
def test_whatever_may_change_the_result_changes_the_key(local: LocalBackend, change: Change) -> None:
    unit = local.unit("noise-based")
    before = _key(local, unit)
    change(unit)
    assert _key(local, unit) != before


def test_numerics_source_and_third_parties_judges_change_the_key(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = local.unit("noise-based")
    keys = [_key(local, unit), _key(local, unit, profile="other"), _key(local, unit, source="0" * 64)]
    monkeypatch.setattr(unit_cache, "registered_digest", lambda group: f"other packages of {group}")
    keys.append(_key(local, unit))
    assert len(set(keys)) == len(keys)


def test_a_judge_of_another_kind_changes_the_key(local: LocalBackend) -> None:
    unit = local.unit("noise-based")
    entry = local.catalogue.judges["testbed/judge"].model_copy(update={"kind": "another"})
    other = replace(local.catalogue, judges={**local.catalogue.judges, "testbed/judge": entry})
    description = evaluations()[unit.evaluation].description
    keys = {unit_cache.unit_key(unit, description, catalogue, "profile") for catalogue in (local.catalogue, other)}
    assert len(keys) == 2


def test_a_result_is_found_with_its_artefacts_alone(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    picture, weights = store.put(b"picture"), store.put(b"weights")
    result = UnitResult(
        observations=[Observation(picture_digest=picture), Observation()], findings=[Finding(weights_digest=weights)]
    )
    key = "ab" * 32
    assert unit_cache.find(store, key) is None
    unit_cache.keep(store, key, result)
    assert unit_cache.find(store, key) == result
    (tmp_path / "artifacts" / weights[:2] / weights).unlink()
    assert unit_cache.find(store, key) is None
