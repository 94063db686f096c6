"""The prompt pack of an audit: the concept's or the request's, and what its controls get in its place."""

from collections.abc import Mapping
from typing import Any

import pytest

from support.backend import LocalBackend
from unerase.internal.v1alpha1.trajectories_pb2 import Target
from unerase.v1.types_pb2 import MODEL_ROLE_CONTROL, MODEL_ROLE_SUBJECT, Concept, EvaluationDescription, PromptPack
from unerase_backend.coordinator.planning.packs import concept_free_pack, placebo_pack
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import Plan
from unerase_backend.runtime.errors import InvalidRequestError

from .conftest import plan_of

Descriptions = Mapping[str, EvaluationDescription]
GIVEN = {
    "kinds": [
        {"name": "synonym", "prompts": ["a red sandglass", "a Hourglass!"]},
        {"name": "language-de", "prompts": ["eine Sanduhr"]},
    ],
    "source": {"name": "own.yaml"},
}


def planned(local: LocalBackend, everything: Descriptions, **fields: Any) -> Plan:
    asked = {"battery": {"evaluations": [{"name": "paraphrase", "parameters": {"draws": 3}}]}, "cases": 4, "steps": 5}
    return plan_of(local.catalogue, local.store, everything, **(asked | fields))


def of_role(plan: Plan, role: int) -> Target:
    return next(whole(unit, plan.parts).target for unit in plan.units if unit.role == role)


def said(pack: PromptPack) -> dict[str, list[str]]:
    return {kind.name: list(kind.prompts) for kind in pack.kinds}


def test_a_request_brings_its_own_pack(local: LocalBackend, everything: Descriptions) -> None:
    own = planned(local, everything)
    assert own.concept.pack == local.target().concept.pack
    plan = planned(local, everything, pack=GIVEN)
    assert (
        said(plan.concept.pack)
        == said(of_role(plan, MODEL_ROLE_SUBJECT).concept.pack)
        == {
            "synonym": ["a red sandglass", "a Hourglass!"],
            "language-de": ["eine Sanduhr"],
        }
    )
    # A model as the control gets the same prompts.
    assert of_role(plan, MODEL_ROLE_CONTROL) == of_role(plan, MODEL_ROLE_SUBJECT)


def test_the_cost_counts_its_kinds(local: LocalBackend, everything: Descriptions) -> None:
    assert planned(local, everything, pack=GIVEN).cost.pictures == 3 * 4 * 2 * 3
    assert planned(local, everything, pack=GIVEN).cost.rows == 3 * 4 * 2 * 3 * 5 * 2
    assert planned(local, everything, concept="circle", controlKind="CONTROL_KIND_NONE").cost.pictures == 0


def test_a_placebo_has_its_templates(local: LocalBackend, everything: Descriptions) -> None:
    plan = planned(local, everything, pack=GIVEN, controlKind="CONTROL_KIND_PLACEBO")
    assert said(of_role(plan, MODEL_ROLE_CONTROL).concept.pack) == {
        "synonym": ["a picture of a fish", "a plain green fish"],
        "language-de": ["a picture of a fish"],
    }


def test_a_placebos_own_kind_goes_before_its_templates() -> None:
    pack = PromptPack(kinds=[{"name": "typo", "prompts": ["a", "b"]}, {"name": "synonym", "prompts": ["c", "d", "e"]}])
    placebo = Concept(names=["fish", "trout"], prompts=["one {concept}"])
    placebo.pack.kinds.add(name="typo", prompts=["a fihs"])
    assert said(placebo_pack(pack, placebo)) == {"typo": ["a fihs"], "synonym": ["one fish", "one trout"]}


def test_the_concept_free_control_has_other_names_in_the_same_words() -> None:
    concept = Concept(names=["hourglass", "sandglass"], prompts=["the {concept}"])
    pack = PromptPack(kinds=GIVEN["kinds"])
    assert said(concept_free_pack(pack, concept, ["moon", "arrow"])) == {
        "synonym": ["a red moon", "a arrow!"],
        "language-de": ["the moon"],
    }


def test_a_pack_that_is_cut_is_noted(local: LocalBackend, everything: Descriptions) -> None:
    long = {"kinds": [{"name": "typo", "prompts": ["hourglas " * 40]}]}
    (note,) = planned(local, everything, pack=long).notes
    assert "One of the prompts of the pack of 'hourglass'" in note


@pytest.mark.parametrize(
    ("pack", "field"),
    [
        ({"source": {"name": "a"}}, "spec.pack.kinds"),
        ({"kinds": [{"name": "German prompts", "prompts": ["a"]}]}, "spec.pack.kinds[0].name"),
        ({"kinds": [{"name": "a", "prompts": ["a"]}, {"name": "a", "prompts": ["b"]}]}, "spec.pack.kinds[0].name"),
        ({"kinds": [{"name": "a"}]}, "spec.pack.kinds[0].prompts"),
        ({"kinds": [{"name": "a", "prompts": ["b", "b"]}]}, "spec.pack.kinds[0].prompts"),
        ({"kinds": [{"name": "a", "prompts": ["b", " "]}]}, "spec.pack.kinds[0].prompts[1]"),
        ({"kinds": [{"name": "a", "prompts": ["a {concept}"]}]}, "spec.pack.kinds[0].prompts[0]"),
        ({"kinds": [{"name": "a", "prompts": [*map(str, range(30)), "{concept}"]}]}, "spec.pack.kinds[0].prompts[30]"),
        ({**GIVEN, "source": {"digest": "x"}}, "spec.pack.source.digest"),
        ({"kinds": [{"name": "a", "prompts": [str(n) * 2000 for n in range(200)]}]}, "spec.pack"),
    ],
)
def test_a_bad_pack_is_refused(local: LocalBackend, everything: Descriptions, pack: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        planned(local, everything, pack=pack)
    assert error.value.violations[0].field == field
