"""Which control an evaluation has, by what the request asks for and what there is."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_MODEL,
    CONTROL_KIND_NONE,
    CONTROL_KIND_PLACEBO,
    DECIDED_BY_BOTH,
    DECIDED_BY_JUDGE,
    EVALUATION_CLASS_ELICITING,
    EVALUATION_CLASS_INJECTING,
    EVALUATION_CLASS_MEASURE,
    EVALUATION_CLASS_PLAIN,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    ControlKind,
    EvaluationClass,
    EvaluationDescription,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.controls import control_kind
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from ..conftest import write_catalogue

MODEL, PLACEBO = CONTROL_KIND_MODEL, CONTROL_KIND_PLACEBO
FREE, NONE = CONTROL_KIND_CONCEPT_FREE, CONTROL_KIND_NONE
PLAIN, ELICITING = EVALUATION_CLASS_PLAIN, EVALUATION_CLASS_ELICITING
INJECTING, MEASURE = EVALUATION_CLASS_INJECTING, EVALUATION_CLASS_MEASURE
KINDS = [0, MODEL, PLACEBO, FREE, NONE]


def _kind(evaluation_class: EvaluationClass.ValueType, spec: AuditSpec, *, others: bool = True, **fields: bool) -> int:
    return control_kind(EvaluationDescription(evaluation_class=evaluation_class, **fields), spec, others=others)


@pytest.mark.parametrize(
    ("spec", "plain", "eliciting", "injecting", "measure"),
    [
        (AuditSpec(control="never"), MODEL, MODEL, MODEL, MODEL),
        (AuditSpec(placebos=["thing"]), PLACEBO, PLACEBO, PLACEBO, NONE),
        (AuditSpec(), FREE, FREE, NONE, NONE),
        (AuditSpec(control_kind=MODEL, control="never"), MODEL, MODEL, MODEL, MODEL),
        (AuditSpec(control_kind=PLACEBO, placebos=["thing"]), PLACEBO, PLACEBO, PLACEBO, NONE),
        (AuditSpec(control_kind=FREE), FREE, FREE, NONE, NONE),
        (AuditSpec(control_kind=NONE), NONE, NONE, NONE, NONE),
    ],
)
def test_each_class_has_the_best_that_it_can_have(
    spec: AuditSpec, plain: int, eliciting: int, injecting: int, measure: int
) -> None:
    assert _kind(PLAIN, spec) == plain
    assert _kind(ELICITING, spec) == eliciting
    assert _kind(INJECTING, spec) == injecting
    assert _kind(MEASURE, spec) == measure
    # What never runs on a control has none.
    assert _kind(MEASURE, spec, without_model=True) == NONE
    restricted = EvaluationDescription(evaluation_class=ELICITING, roles=[MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE])
    assert control_kind(restricted, spec, others=True) == NONE


def test_where_the_reference_begins_a_placebo_is_no_control() -> None:
    spec = AuditSpec(placebos=["thing"])
    assert _kind(INJECTING, spec, reference_begins=True) == NONE
    assert _kind(ELICITING, spec, reference_begins=True) == FREE
    assert _kind(ELICITING, spec, reference_begins=True, others=False) == NONE


@given(
    asked=st.sampled_from(KINDS),
    control=st.sampled_from(["", "never"]),
    placebos=st.sampled_from([[], ["thing"]]),
    others=st.booleans(),
    evaluation_class=st.sampled_from([PLAIN, ELICITING, INJECTING, MEASURE]),
    begins=st.booleans(),
)
def test_only_the_kind_asked_for_is_given(
    asked: int, control: str, placebos: list[str], others: bool, evaluation_class: int, begins: bool
) -> None:
    description = EvaluationDescription(evaluation_class=evaluation_class, reference_begins=begins)
    found = {
        kind: control_kind(description, AuditSpec(control=control, placebos=placebos, control_kind=kind), others=others)
        for kind in KINDS
    }
    assert found[asked] in (asked, NONE) or not asked
    # The best is the first kind that can be had when it alone is asked for.
    assert found[0] == next((kind for kind in (MODEL, PLACEBO, FREE) if found[kind] == kind), NONE)


@pytest.fixture
def plan(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> Callable[..., Plan]:
    def planned(**fields: object) -> Plan:
        spec = json_format.ParseDict({"subject": "small/edited", "concept": "hourglass", **fields}, AuditSpec())
        return make_plan(spec, catalogue, store, descriptions, lambda: 77)

    return planned


def test_a_unit_says_which_control_it_is(plan: Callable[..., Plan]) -> None:
    for asked, model in ((MODEL, "small/never"), (FREE, "small/edited")):
        planned = plan(control_kind=ControlKind.Name(asked))
        control = [unit for unit in planned.units if unit.role == MODEL_ROLE_CONTROL]
        assert control
        assert {(unit.control_kind, unit.model) for unit in control} == {(asked, model)}
        assert planned.spec.control_kind == asked
    assert not [unit for unit in plan(control_kind="CONTROL_KIND_NONE").units if unit.role == MODEL_ROLE_CONTROL]


def test_both_judges_decide_unless_one_is_asked_for(plan: Callable[..., Plan]) -> None:
    assert plan().spec.decided_by == DECIDED_BY_BOTH
    assert plan(decided_by="DECIDED_BY_JUDGE").spec.decided_by == DECIDED_BY_JUDGE


@pytest.mark.parametrize(
    ("fields", "problems", "reason"),
    [
        ({"control_kind": 9}, {"spec.control_kind": "no kind of control 9"}, "INVALID_REQUEST"),
        ({"decided_by": 9}, {"spec.decided_by": "no way to decide 9"}, "INVALID_REQUEST"),
        (
            {"control_kind": FREE, "control": "small/never"},
            {"spec.control": "must be empty: spec.control_kind asks for CONCEPT_FREE"},
            "INVALID_REQUEST",
        ),
        (
            {"control_kind": PLACEBO, "control": "small/never"},
            {
                "spec.control": "must be empty: spec.control_kind asks for PLACEBO",
                "spec.placebos": "the catalogue has none that fits",
            },
            "INVALID_REQUEST",
        ),
        ({"control_kind": PLACEBO}, {"spec.placebos": "the catalogue has none that fits"}, "CONTROL_MISSING"),
        (
            {"control_kind": MODEL, "concept": "circle"},
            {"spec.control": "the catalogue has no model for it that never learned the concept"},
            "CONTROL_MISSING",
        ),
        (
            {"control_kind": MODEL, "placebos": ["yeti"], "concept": "circle"},
            {"spec.placebos": "asks for MODEL", "spec.placebos[0]": "has no pictures", "spec.control": "must be given"},
            "INVALID_REQUEST",
        ),
        (
            {"control_kind": NONE, "control": "small/never", "placebos": ["yeti"], "subject": "nobody"},
            {
                "spec.subject": "no model 'nobody'",
                "spec.control": "asks for NONE",
                "spec.placebos": "asks for NONE",
                "spec.placebos[0]": "has no pictures",
            },
            "INVALID_REQUEST",
        ),
    ],
)
def test_what_contradicts_the_kind_is_named_at_once(
    plan: Callable[..., Plan], fields: dict[str, object], problems: dict[str, str], reason: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(**fields)
    assert {violation.field for violation in caught.value.violations} == problems.keys()
    for violation in caught.value.violations:
        assert problems[violation.field] in violation.description
    assert caught.value.reason == reason


def test_prompts_of_other_concepts_need_other_concepts(
    tmp_path: Path, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    # The catalogue's only other style has no labels for two of the judges.
    manner = "  manner: {kind: style, names: [manner], labels: {clip: [x], first: [x], second: [x]}}\n"
    catalogue = Catalogue.load([str(write_catalogue(tmp_path, manner))], embedded=Path("none"))
    spec = AuditSpec(subject="small/edited", concept="manner")
    planned = make_plan(spec, catalogue, store, descriptions, lambda: 77)
    assert not [unit for unit in planned.units if unit.role == MODEL_ROLE_CONTROL]
    spec.control_kind = FREE
    with pytest.raises(InvalidRequestError) as caught:
        make_plan(spec, catalogue, store, descriptions, lambda: 77)
    (violation,) = caught.value.violations
    assert violation.field == "spec.control_kind"
    assert "no other concept" in violation.description
    assert caught.value.reason == "CONTROL_MISSING"
