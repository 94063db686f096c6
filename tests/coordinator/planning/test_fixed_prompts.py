"""Audits of a list of prompts: their cases, seeds, guidance and held-out prompts, their controls, and what is said."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format

from support.backend import LocalBackend
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    CONTROL_KIND_CONCEPT_FREE,
    CONTROL_KIND_PLACEBO,
    MODEL_ROLE_CONTROL,
    Case,
    EvaluationDescription,
)
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.runtime.seeds import derive_seed

from .conftest import plan_of

Descriptions = Mapping[str, EvaluationDescription]
LISTED = [
    {"prompt": "something that measures time with sand", "latentSeed": "21", "guidanceScale": 7, "id": "a"},
    {"prompt": "a red ((sandglass)) by Café artist", "latentSeed": str(2**64 - 1)},
    {"prompt": "a picture of a hourglass"},
]
REST = [
    {"prompt": "no name here", "latentSeed": "31"},
    {"prompt": "a drawing of the Hourglass, detailed", "latentSeed": "32"},
]
STANDARD = {"evaluations": [{"name": "standard-prompt"}]}


def planned(local: LocalBackend, everything: Descriptions, listed: list[dict[str, Any]], **fields: Any) -> Plan:
    asked = {"battery": STANDARD, "fixedPrompts": listed, "seedBase": "5"} | fields
    return plan_of(local.catalogue, local.store, everything, **asked)


def test_the_list_is_the_cases_in_its_order(local: LocalBackend, everything: Descriptions) -> None:
    plan = planned(local, everything, LISTED)
    assert plan.spec.cases == 3
    assert [case.prompt for case in plan.cases] == [each["prompt"] for each in LISTED]
    assert [case.latent_seed for case in plan.cases] == [21, 2**64 - 1, derive_seed(5, "latent", 2)]
    assert [case.guidance_scale if case.HasField("guidance_scale") else None for case in plan.cases] == [7, None, None]
    again = make_plan(plan.spec, local.catalogue, local.store, everything, lambda: 9)
    assert (again.spec, again.cases, again.units, again.notes) == (plan.spec, plan.cases, plan.units, plan.notes)


def test_a_number_of_cases_takes_the_first_and_holds_out_the_rest(
    local: LocalBackend, everything: Descriptions
) -> None:
    plan = planned(local, everything, LISTED + REST, cases=2)
    assert [case.prompt for case in plan.cases] == [each["prompt"] for each in LISTED[:2]]
    # Of the rest those that name the concept, with the list's seed when they are first used.
    assert [case.held_out_prompt for case in plan.cases] == [LISTED[2]["prompt"], REST[1]["prompt"]]
    assert [case.held_out_latent_seed for case in plan.cases] == [derive_seed(5, "held-out latent", 0), 32]


def test_without_a_rest_the_list_itself_is_held_out_at_other_seeds(
    local: LocalBackend, everything: Descriptions
) -> None:
    cases = planned(local, everything, LISTED).cases
    assert [case.held_out_prompt for case in cases] == [LISTED[2]["prompt"], LISTED[1]["prompt"], LISTED[2]["prompt"]]
    assert [case.held_out_latent_seed for case in cases] == [derive_seed(5, "held-out latent", n) for n in range(3)]


def test_a_list_without_names_leaves_the_concepts_own_held_out_prompts(
    local: LocalBackend, everything: Descriptions
) -> None:
    (case,) = planned(local, everything, LISTED[:1]).cases
    assert case.held_out_prompt == "a painting of a hourglass"


def test_all_models_run_the_list(local: LocalBackend, everything: Descriptions) -> None:
    plan = planned(local, everything, LISTED)
    for unit in (whole(unit, plan.parts) for unit in plan.units):
        assert list(unit.cases) == list(plan.cases)


def test_a_placebo_has_its_own_prompts_with_the_lists_seeds_and_guidance(
    local: LocalBackend, everything: Descriptions
) -> None:
    plan = planned(local, everything, LISTED, controlKind="CONTROL_KIND_PLACEBO")
    (control,) = (whole(unit, plan.parts) for unit in plan.units if unit.role == MODEL_ROLE_CONTROL)
    assert control.control_kind == CONTROL_KIND_PLACEBO
    assert all("fish" in case.prompt for case in control.cases)
    assert [numbers(case) for case in control.cases] == [numbers(case) for case in plan.cases]


def test_a_concept_free_control_keeps_the_words_around_the_name(local: LocalBackend, everything: Descriptions) -> None:
    plan = planned(local, everything, LISTED, controlKind="CONTROL_KIND_CONCEPT_FREE")
    (control,) = (whole(unit, plan.parts) for unit in plan.units if unit.role == MODEL_ROLE_CONTROL)
    assert control.control_kind == CONTROL_KIND_CONCEPT_FREE
    # The first has no name to replace, so it is a template of the concept.
    assert [case.prompt for case in control.cases] == [
        "a picture of a circle",
        "a red ((square)) by Café artist",
        "a picture of a triangle",
    ]
    assert [numbers(case) for case in control.cases] == [numbers(case) for case in plan.cases]


def numbers(case: Case) -> tuple[int, int, float, bool]:
    return case.index, case.latent_seed, case.guidance_scale, case.HasField("guidance_scale")


def test_guidance_of_a_case_counts_in_the_cost(local: LocalBackend, everything: Descriptions) -> None:
    unguided = planned(local, everything, [{"prompt": "a"}, {"prompt": "b"}], guidanceScale=1, steps=4)
    guided = planned(
        local, everything, [{"prompt": "a"}, {"prompt": "b", "guidanceScale": 7}], guidanceScale=1, steps=4
    )
    assert guided.cost.rows == 2 * unguided.cost.rows


def test_what_is_unexpected_is_noted(local: LocalBackend, everything: Descriptions) -> None:
    sized = [{**each, "width": 512, "height": 512 + 256 * n} for n, each in enumerate(LISTED[:2])]
    notes = planned(local, everything, [*sized, LISTED[2]]).notes
    assert notes == (
        "2 of 3 fixed prompts are published for pictures of 512 x 512, 512 x 768 pixels, and the models make 32 x 32 "
        "(case 0 = a, case 1): there the same seed is other noise, so that the pictures are not the published ones.",
        "1 of 3 fixed prompts is made with a guidance scale of the list's own, where the audit's is 3 (case 0 = a).",
        "1 of 3 fixed prompts is without a seed in the list: it follows from the seed base.",
        "1 of 3 fixed prompts is without a name of 'hourglass' (case 0 = a): an evaluation that puts something in the "
        "name's place leaves them as they are, or takes prompts that hold a name.",
    )
    fitting = [{"prompt": "a hourglass", "latentSeed": "1", "width": 32, "height": 32, "guidanceScale": 3}]
    assert planned(local, everything, fitting).notes == ()
    (repeated,) = planned(local, everything, [{**fitting[0], "latentSeed": str(n)} for n in range(3)]).notes
    assert repeated.startswith("3 fixed prompts are 1 distinct one:")


def test_a_listed_prompt_that_is_cut_is_noted_and_not_refused(local: LocalBackend, everything: Descriptions) -> None:
    """It was cut when it was published as well; a word learned in the name's place must be read."""
    long = {"prompt": "very " * 40 + "hourglass", "latentSeed": "1"}
    plan = planned(local, everything, [long, LISTED[2]], cases=1)
    assert any("tokens" in note for note in plan.notes)
    with pytest.raises(InvalidRequestError) as error:
        planned(local, everything, [long])
    assert [violation.field for violation in error.value.violations] == ["spec.fixed_prompts"]


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"prompt": " "}, "[0].prompt", "must not be empty"),
        ({"prompt": "x" * 4097}, "[0].prompt", "at most 4096 bytes"),
        ({"prompt": "a {concept}"}, "[0].prompt", "cannot hold {concept}"),
        ({"guidanceScale": 0.5}, "[0].guidance_scale", "must be from 1 to 50, not 0.5"),
        ({"guidanceScale": "NaN"}, "[0].guidance_scale", "not nan"),
        ({"guidanceScale": "Infinity"}, "[0].guidance_scale", "not inf"),
        ({"width": 512}, "[0].height", "must be given, because the other side is"),
        ({"id": "x" * 101}, "[0].id", "at most 100"),
        ({"prompt": LISTED[1]["prompt"], "latentSeed": LISTED[1]["latentSeed"]}, "[1]", "is fixed_prompts[0] again"),
    ],
)
def test_a_bad_prompt_is_refused_by_its_place(
    local: LocalBackend, everything: Descriptions, changes: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        planned(local, everything, [{**LISTED[0], **changes}, LISTED[1]])
    (violation,) = error.value.violations
    assert violation.field == f"spec.fixed_prompts{field}"
    assert said in violation.description


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cases": 4}, "spec.cases"),
        ({"fixedPrompts": [{"prompt": f"{n}"} for n in range(1025)]}, "spec.fixed_prompts"),
        ({"fixedPrompts": [{"prompt": str(n) * 1000} for n in range(300)]}, "spec.fixed_prompts"),
        ({"fixedPromptsSource": {"name": "a\nb"}}, "spec.fixed_prompts_source.name"),
        ({"fixedPromptsSource": {"digest": "12"}}, "spec.fixed_prompts_source.digest"),
        ({"fixedPrompts": [], "fixedPromptsSource": {"name": "a"}}, "spec.fixed_prompts_source"),
    ],
)
def test_a_bad_list_is_refused(
    local: LocalBackend, everything: Descriptions, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        planned(local, everything, LISTED, **fields)
    assert [violation.field for violation in error.value.violations] == [field]


def test_a_list_may_be_as_long_as_an_audit(local: LocalBackend, everything: Descriptions) -> None:
    plan = planned(local, everything, [{"prompt": f"a hourglass {n}"} for n in range(600)])
    assert plan.spec.cases == len(plan.cases) == 512
    assert plan.cases[0].held_out_prompt == "a hourglass 512"


IMPLICIT = ("something that measures time with sand, oil on canvas", "ancient timekeeping, two bulbs of glass")


def test_prompts_of_a_concept_that_have_no_slot_stand_as_they_are(
    local: LocalBackend, everything: Descriptions
) -> None:
    def plan(*prompts: str) -> Plan:
        entry = local.catalogue.concepts["hourglass"].model_copy(update={"prompts": prompts})
        catalogue = replace(local.catalogue, concepts={**local.catalogue.concepts, "hourglass": entry})
        return plan_of(catalogue, local.store, everything, battery=STANDARD, cases=6)

    assert [case.prompt for case in plan(*IMPLICIT).cases] == [*IMPLICIT] * 3
    mixed = [case.prompt for case in plan("a {concept}", IMPLICIT[0]).cases]
    # Every distinct prompt once before one repeats; the concept has two names.
    assert sorted(mixed[:3]) == ["a hourglass", "a sandglass", IMPLICIT[0]]
    assert mixed[3:] == mixed[:3]


def test_a_specification_with_a_list_is_plain_json(local: LocalBackend, everything: Descriptions) -> None:
    spec = planned(local, everything, LISTED).spec
    assert json_format.Parse(json_format.MessageToJson(spec), AuditSpec()) == spec
