"""Prompts that a text encoder of the audit does not read to their end."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from .conftest import insert, plan_of


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def _with_prompts(catalogue: Catalogue, **fields: object) -> Catalogue:
    entry = catalogue.concepts["hourglass"].model_copy(update=fields)
    return replace(catalogue, concepts={**catalogue.concepts, "hourglass": entry})


def test_a_prompt_whose_name_no_encoder_reads_is_refused(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    far = "a picture of " + "very " * 100 + "{concept}"
    for field in ("prompts", "held_out_prompts"):
        cut = _with_prompts(catalogue, **{field: ("a {concept}", far)})
        with pytest.raises(InvalidRequestError) as refused:
            plan_of(cut, store, everything)
        assert refused.value.reason == "PROMPT_CUT"
        (violation, *_) = refused.value.violations
        assert violation.field == "spec.concept"
        for said in (f"{field}[1] of the concept 'hourglass'", "'a picture of very", "has 104 tokens", "the first 22"):
            assert said in violation.description
    # A case that never takes the prompt loses nothing by it.
    assert plan_of(_with_prompts(catalogue, prompts=("a {concept}", far)), store, everything, cases=1).notes == ()


def test_prompts_that_are_cut_after_the_name_are_noted(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    assert plan_of(catalogue, store, everything).notes == ()
    cut = _with_prompts(catalogue, prompts=("a {concept}", "a {concept} that is " + "very " * 30 + "red"))
    (note,) = plan_of(cut, store, everything, control="testbed/never").notes
    assert note.startswith("2 of the prompts of the cases of 'hourglass' have more than the 22 tokens")
    assert "that the text encoder of testbed/uce and testbed/reference and testbed/never reads" in note
    assert "the longest has 35" in note


def test_a_label_that_a_clip_judge_cuts_is_refused(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    long = "a picture of a hourglass " + "very " * 20
    labels = {**catalogue.concepts["hourglass"].labels, "testbed/clip": ("a hourglass", long)}
    with pytest.raises(InvalidRequestError) as refused:
        plan_of(_with_prompts(catalogue, labels=labels), store, everything)
    assert refused.value.reason == "LABEL_CUT"
    (violation,) = refused.value.violations
    assert violation.field == "spec.concept"
    assert "labels.testbed/clip[1] of the concept 'hourglass' has 25 tokens, and the judge reads 22" in (
        violation.description
    )


async def test_notes_are_kept_with_the_audit(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription], database: Database
) -> None:
    cut = _with_prompts(catalogue, prompts=("a {concept} that is " + "very " * 30,))
    plan = plan_of(cut, store, everything)
    kept = await database.audits.get((await insert(database, plan)).id)
    assert kept is not None
    assert tuple(kept.notes) == plan.notes != ()
    kept = await database.audits.get((await insert(database, plan_of(catalogue, store, everything))).id)
    assert kept is not None
    assert not kept.notes


def test_a_clip_judge_without_anything_to_weigh_a_label_against_is_refused(
    catalogue: Catalogue, store: ArtifactStore, everything: Mapping[str, EvaluationDescription]
) -> None:
    battery = {"evaluations": [{"name": "standard-prompt"}], "allow_incomplete": True}
    alone = replace(catalogue, concepts={"hourglass": catalogue.concepts["hourglass"]})
    with pytest.raises(InvalidRequestError) as refused:
        plan_of(alone, store, everything, battery=battery)
    (violation,) = refused.value.violations
    assert violation.field == "spec.selector"
    assert "give the concept alternatives" in violation.description
    given = _with_prompts(alone, alternatives={"testbed/clip": ("a picture of a heart",)})
    assert plan_of(given, store, everything, battery=battery).units
