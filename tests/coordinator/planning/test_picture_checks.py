"""Evaluations that cannot run without pictures: refused before anything is computed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from .conftest import plan_of


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def changed(catalogue: Catalogue, **fields: object) -> Catalogue:
    entry = catalogue.concepts["hourglass"].model_copy(update=fields)
    return replace(catalogue, concepts={**catalogue.concepts, "hourglass": entry})


def test_what_needs_pictures_is_named_at_once(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    bare = changed(catalogue, pictures=None)
    with pytest.raises(InvalidRequestError) as refused:
        plan_of(bare, store, everything)
    assert refused.value.reason == "PICTURES_MISSING"
    (violation,) = refused.value.violations
    assert violation.field == "spec.concept"
    for name in ("textual-inversion", "unlearn-diff-atk", "likelihood"):
        assert name in violation.description
    assert "has 0 pictures" in violation.description
    # Without those that need pictures, nothing is missing.
    needless = [{"name": name} for name in ("standard-prompt", "noise-based", "ring-a-bell")]
    plan = plan_of(bare, store, everything, battery={"evaluations": needless, "allow_incomplete": True})
    assert plan.units


def test_a_classifier_needs_another_concept_with_pictures(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    battery = {"evaluations": [{"name": "classifier-guidance"}], "allow_incomplete": True}
    assert plan_of(catalogue, store, everything, battery=battery).units
    weighed = changed(catalogue, alternatives={"testbed/clip": ("a picture of a heart",)})
    lone = replace(catalogue, concepts={"hourglass": weighed.concepts["hourglass"]})
    with pytest.raises(InvalidRequestError) as refused:
        plan_of(lone, store, everything, battery=battery)
    (violation,) = refused.value.violations
    assert violation.description.startswith("classifier-guidance compare")
