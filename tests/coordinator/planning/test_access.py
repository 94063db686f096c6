"""Plans of subjects with guards: which units there are for which access, and what is refused."""

from collections import Counter
from pathlib import Path

import pytest
from google.protobuf import json_format

from coordinator.conftest import CATALOGUE, write_catalogue
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    MODEL_ACCESS_BOTH,
    MODEL_ACCESS_DEPLOYED,
    MODEL_ACCESS_OPEN_WEIGHTS,
    MODEL_ACCESS_UNSPECIFIED,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

GUARDED = """
  small/filtered: {base: small/edited, guards: [{kind: prompt-filter, words: [hourglass]}]}
  small/safe: {base: small/reference, guards: [{kind: safe-latent-diffusion, text: hourglass}]}
  small/checked: {base: small/edited, guards: [{kind: judge-checker, judge: second, labels: [hourglass]}]}
judges:"""

Descriptions = dict[str, EvaluationDescription]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    path = write_catalogue(tmp_path_factory.mktemp("guarded"), content=CATALOGUE.replace("\njudges:", GUARDED))
    return Catalogue.load([str(path)], embedded=Path("none"))


def planned(
    catalogue: Catalogue, store: ArtifactStore, descriptions: Descriptions, subject: str, **fields: object
) -> Plan:
    spec = json_format.ParseDict({"subject": subject, "concept": "hourglass", **fields}, AuditSpec())
    return make_plan(spec, catalogue, store, descriptions, lambda: 7)


def test_a_subject_with_guards_is_audited_as_both_unless_asked(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    descriptions = dict(descriptions)
    weights_only = EvaluationDescription()
    weights_only.CopyFrom(descriptions["likelihood"])
    weights_only.weights_only = True
    descriptions["likelihood"] = weights_only
    plan = planned(guarded, store, descriptions, "small/filtered")
    assert plan.spec.access == MODEL_ACCESS_BOTH
    assert len({unit.id for unit in plan.units}) == len(plan.units)
    of_subject = Counter((unit.evaluation, unit.access) for unit in plan.units if unit.role == MODEL_ROLE_SUBJECT)
    for evaluation in {evaluation for evaluation, _ in of_subject}:
        accesses = {access for name, access in of_subject if name == evaluation}
        both = {MODEL_ACCESS_OPEN_WEIGHTS, MODEL_ACCESS_DEPLOYED}
        assert accesses == ({MODEL_ACCESS_UNSPECIFIED} if evaluation == "likelihood" else both)
    assert not any(unit.access for unit in plan.units if unit.role != MODEL_ROLE_SUBJECT)
    assert {unit.access == MODEL_ACCESS_DEPLOYED for unit in plan.units} == {
        "@deployed" in unit.id for unit in plan.units
    }


@pytest.mark.parametrize("access", [MODEL_ACCESS_DEPLOYED, MODEL_ACCESS_OPEN_WEIGHTS])
def test_one_access_has_one_set_of_units(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions, access: int
) -> None:
    plan = planned(guarded, store, descriptions, "small/filtered", access=access)
    plain = planned(guarded, store, descriptions, "small/edited")
    assert len(plan.units) == len(plain.units)
    assert {unit.access for unit in plan.units if unit.role == MODEL_ROLE_SUBJECT} == {access}


@pytest.mark.parametrize("access", [MODEL_ACCESS_UNSPECIFIED, MODEL_ACCESS_OPEN_WEIGHTS, MODEL_ACCESS_BOTH])
def test_without_guards_a_plan_is_what_it_was(
    guarded: Catalogue, catalogue: Catalogue, store: ArtifactStore, descriptions: Descriptions, access: int
) -> None:
    asked = planned(guarded, store, descriptions, "small/edited", access=access)
    before = planned(catalogue, store, descriptions, "small/edited")
    assert asked.spec == before.spec
    assert [unit.SerializeToString(deterministic=True) for unit in asked.units] == [
        unit.SerializeToString(deterministic=True) for unit in before.units
    ]
    assert asked.cost == before.cost
    assert not any(unit.access or unit.guard_rows for unit in asked.units)


def test_a_subject_without_guards_cannot_be_audited_as_deployed(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    with pytest.raises(InvalidRequestError, match="no guards") as refused:
        planned(guarded, store, descriptions, "small/edited", access="MODEL_ACCESS_DEPLOYED")
    assert refused.value.reason == "GUARDS_MISSING"
    assert [violation.field for violation in refused.value.violations] == ["spec.access"]


def test_guards_on_the_references_own_weights_are_an_audit_of_guards(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    plan = planned(guarded, store, descriptions, "small/safe")
    assert (plan.spec.reference, plan.spec.access) == ("small/reference", MODEL_ACCESS_BOTH)
    with pytest.raises(InvalidRequestError, match="same weights") as refused:
        planned(guarded, store, descriptions, "small/safe", access="MODEL_ACCESS_OPEN_WEIGHTS")
    assert refused.value.reason == "REFERENCE_UNFIT"


def test_the_rows_of_guards_are_counted(guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions) -> None:
    (description,) = [each for each in descriptions.values() if each.name == "standard-prompt"]
    counted = EvaluationDescription()
    counted.CopyFrom(description)
    counted.pictures, counted.rows = "unit.cases", "unit.cases * unit.steps * unit.guided"
    battery = {"evaluations": [{"name": "standard-prompt"}], "allow_incomplete": True}
    fields = {"battery": battery, "cases": 6, "steps": 10, "control_kind": "CONTROL_KIND_NONE"}
    known = {**descriptions, "standard-prompt": counted}
    plan = planned(guarded, store, known, "small/safe", **fields)
    # Reference and weights two rows a guided step, the deployed model three.
    assert plan.cost.rows == 6 * 10 * (2 + 2 + 3)
    assert plan.cost.pictures == 3 * 6
    assert planned(guarded, store, known, "small/safe", guidance_scale=1.0, **fields).cost.rows == 6 * 10 * 3


def test_a_judge_that_withholds_may_not_decide(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    with pytest.raises(InvalidRequestError, match="would see nothing of what it detects") as refused:
        planned(guarded, store, descriptions, "small/checked")
    assert [violation.field for violation in refused.value.violations] == ["spec.second_judge"]
    assert planned(guarded, store, descriptions, "small/checked", access="MODEL_ACCESS_OPEN_WEIGHTS").units


def test_a_search_that_both_accesses_share_is_counted_once(
    guarded: Catalogue, store: ArtifactStore, descriptions: Descriptions
) -> None:
    attack = EvaluationDescription()
    attack.CopyFrom(next(each for each in descriptions.values() if each.name == "standard-prompt"))
    attack.name, attack.attack, attack.pictures, attack.rows = "search", True, "unit.cases", "100 * unit.searches"
    battery = {"evaluations": [{"name": "search"}], "allow_incomplete": True}
    fields = {"battery": battery, "cases": 6, "control_kind": "CONTROL_KIND_NONE"}
    known = {**descriptions, "search": attack}
    both = planned(guarded, store, known, "small/filtered", **fields)
    assert {unit.id for unit in both.units if unit.search_shared} == {"search/subject@deployed/0"}
    # The reference's search and that of the subject's weights.
    assert both.cost.rows == 200
    alone = planned(guarded, store, known, "small/filtered", access="MODEL_ACCESS_DEPLOYED", **fields)
    assert alone.cost.rows == 200
    assert not any(unit.search_shared for unit in alone.units)
