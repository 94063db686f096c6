from collections.abc import Callable, Mapping

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from support.backend import own_evaluations
from unerase.v1.audits_pb2 import AuditSpec, Battery, Tolerances
from unerase.v1.types_pb2 import (
    CONTROL_KIND_UNSPECIFIED,
    DECIDED_BY_BOTH,
    EVALUATION_CLASS_ELICITING,
    EVALUATION_CLASS_MEASURE,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
    EvaluationRequest,
)
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.parts import descriptions_of, whole
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.coordinator.planning.units import evaluation_of, in_sequence
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.evaluation.units import MAX_CASES
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.verdict.decision import DEFAULT_CASES

Planner = Callable[[AuditSpec], Plan]
Descriptions = Mapping[str, EvaluationDescription]


@pytest.fixture(scope="session")
def plan(catalogue: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]) -> Planner:
    return lambda spec: make_plan(spec, catalogue, store, descriptions, lambda: 77)


def _spec(**fields: object) -> AuditSpec:
    return json_format.ParseDict({"subject": "small/edited", "concept": "hourglass", **fields}, AuditSpec())


def test_every_default_is_filled_in(plan: Planner) -> None:
    spec = plan(_spec()).spec
    assert spec.reference == "small/reference"
    assert spec.control == "small/never"
    assert (spec.selector, spec.judge, spec.second_judge) == ("clip", "first", "second")
    assert spec.cases == PRESETS["standard"].cases
    assert (spec.steps, spec.guidance_scale, spec.seed_base) == (40, 3.0, 77)
    assert spec.battery.preset == "standard"
    assert (spec.control_kind, spec.decided_by) == (CONTROL_KIND_UNSPECIFIED, DECIDED_BY_BOTH)
    assert spec.tolerances == Tolerances(
        excess=0.10, excess_of_one_draw=0.08, destruction=0.10, general_damage=0.25, interference=0.15
    )
    assert spec.battery.evaluations[0].parameters["steps"] == 250


def test_the_reference_of_a_chain_is_its_root(plan: Planner) -> None:
    assert plan(_spec(subject="small/again")).spec.reference == "small/reference"
    itself = _spec(subject="small/reference", reference="small/reference", assume_reference=True)
    assert plan(itself).spec.reference == "small/reference"


def test_the_quick_preset_sets_steps_which_the_request_may_change(plan: Planner) -> None:
    assert plan(_spec(battery={"preset": "quick"})).spec.steps == 10
    assert plan(_spec(battery={"preset": "quick"}, steps=7)).spec.steps == 7


def test_cases_are_those_of_the_preset(plan: Planner) -> None:
    for name, preset in PRESETS.items():
        assert plan(_spec(battery={"preset": name})).spec.cases == preset.cases
        assert plan(_spec(battery={"preset": name}, cases=5)).spec.cases == 5
    assert plan(_spec(battery={"evaluations": [{"name": "noise-based"}]})).spec.cases == DEFAULT_CASES


def test_an_evaluation_of_the_request_replaces_the_presets(plan: Planner) -> None:
    asked = {"name": "textual-inversion", "parameters": {"steps": 3}}
    spec = plan(_spec(battery={"preset": "quick", "evaluations": [asked]})).spec
    steps = [request.parameters["steps"] for request in spec.battery.evaluations if request.name == "textual-inversion"]
    assert steps == [3]
    assert len(spec.battery.evaluations) == 8


def test_every_preset_holds_what_is_required_and_full_whatever_there_is(
    catalogue: Catalogue, store: ArtifactStore, descriptions: dict[str, EvaluationDescription]
) -> None:
    """A third party's evaluations are described like ours."""
    theirs = {
        "their-required": EvaluationDescription(
            name="their-required", evaluation_class=EVALUATION_CLASS_ELICITING, required=True
        ),
        "their-own": EvaluationDescription(name="their-own", evaluation_class=EVALUATION_CLASS_ELICITING),
    }

    def battery(preset: str) -> set[str]:
        spec = _spec(battery={"preset": preset})
        planned = make_plan(spec, catalogue, store, {**descriptions, **theirs}, lambda: 5)
        assert "their-required" in {one.name for one in descriptions_of(planned.parts)}
        return {request.name for request in planned.spec.battery.evaluations}

    assert "their-required" in battery("quick") & battery("standard")
    assert "their-own" not in battery("quick") | battery("standard")
    assert battery("full") == {*descriptions, *theirs}


def test_an_audit_keeps_the_descriptions_that_its_verdict_rests_on(
    catalogue: Catalogue, store: ArtifactStore, descriptions: dict[str, EvaluationDescription]
) -> None:
    required = EvaluationDescription(name="their-required", evaluation_class=EVALUATION_CLASS_ELICITING, required=True)
    spec = _spec(battery={"evaluations": [{"name": "noise-based"}, {"name": "standard-prompt"}]})
    planned = make_plan(spec, catalogue, store, {**descriptions, "their-required": required}, lambda: 5)
    assert descriptions_of(planned.parts) == [descriptions["standard-prompt"], descriptions["noise-based"], required]


def test_an_evaluation_without_a_model_is_run_once_whatever_its_name(
    catalogue: Catalogue, store: ArtifactStore
) -> None:
    known = EvaluationDescription(name="known", evaluation_class=EVALUATION_CLASS_MEASURE, without_model=True)
    planned = make_plan(_spec(battery={"evaluations": [{"name": "known"}]}), catalogue, store, {"known": known}, int)
    assert [(unit.id, unit.model) for unit in planned.units] == [("known/reference/0", "")]


def test_a_battery_without_preset_is_what_it_names(plan: Planner) -> None:
    spec = plan(_spec(battery={"evaluations": [{"name": "noise-based"}]})).spec
    assert [request.name for request in spec.battery.evaluations] == ["noise-based"]


@given(cases=st.integers(0, 60), seed=st.integers(0, 2**64 - 1), preset=st.sampled_from(["", "quick", "standard"]))
def test_planning_what_was_planned_changes_nothing(plan: Planner, cases: int, seed: int, preset: str) -> None:
    once = plan(_spec(cases=cases, seed_base=seed, battery={"preset": preset, "evaluations": []}))
    assert plan(once.spec) == once


def test_cases_are_distinct_for_as_long_as_the_concept_has_prompts(plan: Planner) -> None:
    cases = plan(_spec(cases=12)).cases
    assert [case.index for case in cases] == list(range(12))
    # Three templates and two names.
    assert len({case.prompt for case in cases[:6]}) == 6
    assert {case.prompt for case in cases[6:]} == {case.prompt for case in cases[:6]}
    seeds = [seed for case in cases for seed in (case.latent_seed, case.held_out_latent_seed)]
    assert len(set(seeds)) == 24
    assert {case.held_out_prompt for case in cases} == {"this hourglass", "that hourglass"}


def test_more_cases_keep_the_first_ones(plan: Planner) -> None:
    assert plan(_spec(cases=20, seed_base=3)).cases[:5] == plan(_spec(cases=5, seed_base=3)).cases


def test_units_cover_every_case_of_every_role_once(plan: Planner) -> None:
    planned = plan(_spec(cases=24))
    roles: dict[str, dict[int, list[int]]] = {}
    for unit in planned.units:
        cases = roles.setdefault(unit.evaluation, {}).setdefault(unit.role, [])
        cases += [case.index for case in unit.cases]
    everyone = {MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL}
    assert roles.keys() == {request.name for request in planned.spec.battery.evaluations}
    assert set(roles["noise-based"]) == set(roles["likelihood"]) == everyone
    assert set(roles["interference"]) == everyone - {MODEL_ROLE_CONTROL}
    assert set(roles["judge-quality"]) == {MODEL_ROLE_REFERENCE}
    assert all(cases == list(range(24)) for of_role in roles.values() for cases in of_role.values())
    assert len({unit.id for unit in planned.units}) == len(planned.units)
    assert [len(unit.cases) for unit in planned.units if unit.id.startswith("noise-based/subject/")] == [10, 10, 4]


def test_a_unit_knows_its_model_and_the_other_concepts(plan: Planner) -> None:
    planned = plan(_spec())
    units = {unit.id: whole(unit, planned.parts) for unit in planned.units}
    assert units["noise-based/control/0"].model == "small/never"
    assert units["noise-based/subject/0"].model == "small/edited"
    assert units["judge-quality/reference/0"].model == ""
    assert not units["noise-based/subject/0"].others
    # Those without labels for the three judges cannot be judged, and a placebo is nothing to lose.
    assert [other.concept.name for other in units["interference/subject/0"].others] == ["circle"]


def test_without_a_control_no_unit_has_one(plan: Planner) -> None:
    planned = plan(_spec(concept="circle", control_kind="CONTROL_KIND_NONE"))
    assert all(unit.role != MODEL_ROLE_CONTROL for unit in planned.units)


def test_a_sequential_audit_has_smaller_units_of_what_may_stop(plan: Planner, descriptions: Descriptions) -> None:
    whole, planned = plan(_spec(cases=24)), plan(_spec(cases=24, sequential=True))
    assert planned.spec.sequential
    sizes = {}
    for unit in planned.units:
        sizes.setdefault(unit.evaluation, set()).add(len(unit.cases))
    assert sizes.pop("noise-based") == {3}
    # The others are one unit each, and what learns once over all cases stays so.
    assert sizes == {name: {24} for name in sizes}
    observed = [case for unit in planned.units if unit.evaluation == "noise-based" for case in unit.cases]
    expected = [case for unit in whole.units if unit.evaluation == "noise-based" for case in unit.cases]
    assert observed == expected
    assert plan(planned.spec) == planned
    # Nothing can be settled without a control.
    alone = plan(_spec(cases=24, control_kind="CONTROL_KIND_NONE", sequential=True)).units
    assert [len(unit.cases) for unit in alone if unit.id.startswith("noise-based/subject/")] == [10, 10, 4]
    assert in_sequence([unit.id for unit in alone], descriptions) == {}


def test_shards_are_run_in_the_order_of_their_cases(plan: Planner, descriptions: Descriptions) -> None:
    planned = plan(_spec(cases=24, sequential=True))
    sequences = in_sequence([unit.id for unit in planned.units], descriptions)
    assert sequences.keys() == {"noise-based"}
    units = {unit.id: unit for unit in planned.units}
    for shard, ids in enumerate(sequences["noise-based"]):
        assert ids == [f"noise-based/{role}/{shard}" for role in ("subject", "reference", "control")]
        assert {case.index for unit_id in ids for case in units[unit_id].cases} == set(range(3 * shard, 3 * shard + 3))
    assert len(sequences["noise-based"]) == 8
    assert evaluation_of("group/name/subject/0") == "group/name"


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"subject": ""}, "spec.subject", "INVALID_REQUEST"),
        ({"subject": "small/edeted"}, "spec.subject", "MODEL_NOT_FOUND"),
        ({"subject": "x" * 1_000_000}, "spec.subject", "INVALID_REQUEST"),
        ({"concept": ""}, "spec.concept", "INVALID_REQUEST"),
        ({"concept": "hourglasses"}, "spec.concept", "CONCEPT_NOT_FOUND"),
        ({"concept": "unlabelled"}, "spec.judge", "JUDGES_MISSING"),
        ({"concept": "unlabelled", "judge": "first", "second_judge": "second"}, "spec.judge", "INVALID_REQUEST"),
        ({"reference": "nobody"}, "spec.reference", "MODEL_NOT_FOUND"),
        ({"reference": "large/reference"}, "spec.subject", "INVALID_REQUEST"),
        ({"control": "large/reference"}, "spec.control", "INVALID_REQUEST"),
        ({"judge": "nobody"}, "spec.judge", "JUDGE_NOT_FOUND"),
        ({"judge": "second", "second_judge": "second"}, "spec.second_judge", "INVALID_REQUEST"),
        ({"cases": MAX_CASES + 1}, "spec.cases", "INVALID_REQUEST"),
        ({"cases": 2**32 - 1}, "spec.cases", "INVALID_REQUEST"),
        ({"steps": 1001}, "spec.steps", "INVALID_REQUEST"),
        ({"guidance_scale": 0.5}, "spec.guidance_scale", "INVALID_REQUEST"),
        ({"guidance_scale": "NaN"}, "spec.guidance_scale", "INVALID_REQUEST"),
        ({"tolerances": {"excess": 0}}, "spec.tolerances.excess", "INVALID_REQUEST"),
        ({"tolerances": {"excess": 1.5}}, "spec.tolerances.excess", "INVALID_REQUEST"),
        ({"tolerances": {"destruction": "NaN"}}, "spec.tolerances.destruction", "INVALID_REQUEST"),
        ({"tolerances": {"interference": -0.1}}, "spec.tolerances.interference", "INVALID_REQUEST"),
        ({"battery": {"preset": "quik"}}, "spec.battery.preset", "INVALID_REQUEST"),
        (
            {"battery": {"evaluations": [{"name": "noise-based"}, {"name": "nose-based"}]}},
            "spec.battery.evaluations[1].name",
            "EVALUATION_NOT_FOUND",
        ),
        ({"battery": {"evaluations": [{"name": ""}]}}, "spec.battery.evaluations[0].name", "INVALID_REQUEST"),
        (
            {"battery": {"evaluations": [{"name": "noise-based"}] * 2}},
            "spec.battery.evaluations[1].name",
            "INVALID_REQUEST",
        ),
        (
            {"battery": {"evaluations": [{"name": "noise-based", "parameters": {"etas": [5.0]}}]}},
            "spec.battery.evaluations[0].parameters.etas",
            "INVALID_REQUEST",
        ),
        (
            {"battery": {"evaluations": [{"name": "noise-based", "parameters": {"eta": 1}}]}},
            "spec.battery.evaluations[0].parameters.eta",
            "INVALID_REQUEST",
        ),
    ],
)
def test_a_bad_field_is_named(plan: Planner, fields: dict[str, object], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(_spec(**fields))
    assert field in [violation.field for violation in caught.value.violations]
    assert caught.value.reason == reason
    assert all(len(violation.description) < 300 for violation in caught.value.violations)


def test_all_bad_fields_come_at_once(plan: Planner) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(AuditSpec(subject="nobody", concept="nothing", cases=9999, battery=Battery(preset="none")))
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"spec.subject", "spec.concept", "spec.cases", "spec.battery.preset"}
    assert caught.value.reason == "INVALID_REQUEST"


def test_a_battery_has_its_limit(plan: Planner) -> None:
    with pytest.raises(InvalidRequestError, match="at most 64"):
        plan(_spec(battery={"evaluations": [{"name": f"e{index}"} for index in range(65)]}))


def test_a_near_name_is_suggested(plan: Planner) -> None:
    with pytest.raises(InvalidRequestError, match="did you mean 'small/edited'"):
        plan(_spec(subject="small/edted"))


def test_the_request_itself_is_left_as_it_is(plan: Planner) -> None:
    spec = _spec(battery={"evaluations": [{"name": "noise-based"}]})
    before = AuditSpec()
    before.CopyFrom(spec)
    plan(spec)
    assert spec == before
    assert spec.battery.evaluations[0] == EvaluationRequest(name="noise-based")


def test_presets_have_parameters_of_their_own_for_models_of_real_size() -> None:
    """The papers' figures for Stable Diffusion 1.4, as the modules of the attacks give them."""
    descriptions = {name: evaluation.description for name, evaluation in own_evaluations().items()}
    for name, preset in PRESETS.items():
        small, large = (
            {request.name: request.parameters for request in preset.requests(descriptions, side)} for side in (255, 256)
        )
        assert small.keys() == large.keys()
        for evaluation, parameters in large.items():
            resolve_parameters(descriptions[evaluation], parameters)
        assert large["textual-inversion"]["batch_size"] == 4
        if name != "quick":
            assert large["textual-inversion"]["steps"] == 3000
    paper = {request.name: request.parameters for request in PRESETS["paper"].requests(descriptions, 512)}
    assert dict(paper["unlearn-diff-atk"]) == {"timesteps": 50, "iterations": 40, "tokens": 3}
    assert paper["p4d"]["iterations"] == paper["ring-a-bell"]["generations"] == 3000
    assert (PRESETS["quick"].steps_for(32), PRESETS["quick"].steps_for(512)) == (10, 20)
    assert PRESETS["standard"].steps_for(512) == 0
