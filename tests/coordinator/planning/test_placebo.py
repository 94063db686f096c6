"""Concepts that no model knows stand in for a model that never learned the concept."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from PIL import Image

from support.backend import evaluations, local_backend
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import (
    CONTROL_KIND_PLACEBO,
    CONTROL_KIND_UNSPECIFIED,
    EVALUATION_CLASS_MEASURE,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
)
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.coordinator.execution.unit_cache import unit_key
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.planning.units import cases_up_to, evaluation_of, in_sequence
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError
from unerase_backend.verdict import conclude

from ..conftest import write_catalogue

PLACEBO = """
  thing:
    kind: object
    names: [thing]
    prompts: ["some {concept}"]
    held_out_prompts: ["such a {concept}"]
    labels: {clip: [a thing], first: [thing], second: [thing]}
    pictures: tiles.png
    placebo: true
"""
OTHERS = """
  unseen: {kind: object, names: [unseen], labels: {clip: [x], first: [x], second: [x]}, placebo: true}
  deaf: {kind: object, names: [deaf], labels: {clip: [x], first: [x]}, pictures: tiles.png, placebo: true}
  ring: {kind: object, names: [circle], labels: {clip: [x], first: [x], second: [x]}, pictures: tiles.png,
    placebo: true}
  wide: {kind: object, names: [wide], labels: {clip: [x], first: [y], second: [y]}, pictures: tiles.png, tile: 16,
    placebo: true}
  manner: {kind: style, names: [manner], labels: {clip: [x], first: [x], second: [x]}, pictures: tiles.png,
    placebo: true}
"""

Load = Callable[[str], Callable[..., Plan]]


@pytest.fixture
def load(tmp_path: Path, descriptions: Mapping[str, EvaluationDescription], store: ArtifactStore) -> Load:
    """Plan by the conftest's catalogue with more concepts."""

    def with_concepts(concepts: str) -> Callable[..., Plan]:
        Image.new("RGB", (64, 64)).save(tmp_path / "tiles.png")
        catalogue = Catalogue.load([str(write_catalogue(tmp_path, concepts))], embedded=Path("none"))

        def plan(**fields: object) -> Plan:
            spec = json_format.ParseDict({"subject": "small/edited", "concept": "circle", **fields}, AuditSpec())
            return make_plan(spec, catalogue, store, descriptions, lambda: 77)

        return plan

    return with_concepts


def _controlled(plan: Plan) -> set[str]:
    return {unit.evaluation for unit in plan.units if unit.control_kind == CONTROL_KIND_PLACEBO}


def test_every_evaluation_runs_on_the_subject_with_the_placebo(
    load: Load, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    plan = load(PLACEBO)()
    assert (plan.spec.control, plan.spec.placebo, plan.spec.placebos) == ("", "", ["thing"])
    # All but measures, and those in which the reference makes all that the model is given.
    assert _controlled(plan) == {
        name
        for name, each in descriptions.items()
        if each.evaluation_class != EVALUATION_CLASS_MEASURE and not each.reference_begins
    }
    assert {unit.control_kind for unit in plan.units if unit.role != MODEL_ROLE_CONTROL} == {CONTROL_KIND_UNSPECIFIED}
    units = {(unit.evaluation, unit.role): whole(unit, plan.parts) for unit in plan.units}
    subject = units["textual-inversion", MODEL_ROLE_SUBJECT]
    control = units["textual-inversion", MODEL_ROLE_CONTROL]
    assert (control.model, control.target.concept.name) == ("small/edited", "thing")
    assert len(control.target.concept.picture_digests) == 4
    assert control.target.judge.labels == ["thing"]
    assert {case.prompt for case in control.cases} == {"some thing"}
    assert {case.held_out_prompt for case in control.cases} == {"such a thing"}
    # Nothing but the concept is another: pairs.
    assert [(case.index, case.latent_seed, case.held_out_latent_seed) for case in control.cases] == [
        (case.index, case.latent_seed, case.held_out_latent_seed) for case in subject.cases
    ]
    for field in ("parameters", "steps", "guidance_scale", "seed_base", "reference", "others"):
        assert getattr(control, field) == getattr(subject, field)


def test_the_placebo_is_no_other_concept(load: Load) -> None:
    plan = load(PLACEBO)()
    units = [whole(unit, plan.parts) for unit in plan.units]
    assert any(unit.others for unit in units)
    assert not [unit for unit in units if "thing" in [other.concept.name for other in unit.others]]


def test_a_control_of_the_concepts_own_is_better(load: Load) -> None:
    plan = load(PLACEBO)
    own = plan(concept="hourglass")
    assert (own.spec.control, own.spec.placebos) == ("small/never", [])
    assert not _controlled(own)
    assert plan(control="small/never", assume_control=True).spec.placebos == []
    # A client of an earlier version names one.
    for named in ({"placebo": "thing"}, {"placebos": ["thing"]}, {"placebo": "thing", "placebos": ["thing"]}):
        asked = plan(concept="hourglass", **named)
        assert (asked.spec.control, asked.spec.placebo, asked.spec.placebos) == ("", "", ["thing"])
        assert "textual-inversion" in _controlled(asked)


def test_planning_what_was_planned_changes_nothing(load: Load) -> None:
    plan = load(PLACEBO)
    for fields in (
        {},
        {"concept": "hourglass", "placebo": "thing"},
        {"concept": "hourglass", "control_kind": "CONTROL_KIND_MODEL"},
        {"concept": "hourglass", "control_kind": "CONTROL_KIND_PLACEBO"},
        {"concept": "hourglass", "control_kind": "CONTROL_KIND_CONCEPT_FREE"},
        {"concept": "hourglass", "control_kind": "CONTROL_KIND_NONE"},
        {"control": "small/never", "assume_control": True},
    ):
        once = plan(**fields)
        again = json_format.MessageToDict(once.spec, preserving_proto_field_name=True)
        assert plan(**again) == once


def test_without_an_evaluation_that_takes_one_there_is_none(load: Load) -> None:
    plan = load(PLACEBO)(battery={"evaluations": [{"name": "likelihood"}, {"name": "diffusion-completion"}]})
    assert plan.spec.placebos == []
    assert not _controlled(plan)


def test_all_placebos_that_fit_are_taken_unasked(load: Load) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))
    assert plan().spec.placebos == ["thing", "item"]
    assert plan(placebo="item").spec.placebos == ["item"]


def test_cases_take_the_placebos_in_turn(load: Load) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))(cases=23)
    assert len({unit.id for unit in plan.units}) == len(plan.units)
    for evaluation, most in (("noise-based", 10), ("textual-inversion", 23)):
        units = [unit for unit in plan.units if unit.evaluation == evaluation and unit.role == MODEL_ROLE_CONTROL]
        assert {evaluation_of(unit.id) for unit in units} == {evaluation}
        assert all(len(unit.cases) <= most for unit in units)
        taken = {
            case.index: (case.prompt, unit.target.concept.name)
            for unit in (whole(unit, plan.parts) for unit in units)
            for case in unit.cases
        }
        assert taken == {index: (f"some {name}", name) for index, name in enumerate((["thing", "item"] * 12)[:23])}
    # As few units as one placebo would have: 23 cases in units of 10.
    assert sum(unit.id.startswith("noise-based/control/") for unit in plan.units) == 4


def test_what_is_looked_at_together_holds_all_roles_of_its_cases(
    load: Load, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))(cases=8, sequential=True)
    units = {unit.id: unit for unit in plan.units}
    shards = in_sequence(units, descriptions)["noise-based"]
    assert [len(ids) for ids in shards] == [4, 4, 4]
    for shard, ids in enumerate(shards):
        cases = {
            role: sorted(case.index for each in ids if units[each].role == role for case in units[each].cases)
            for role in (MODEL_ROLE_SUBJECT, MODEL_ROLE_REFERENCE, MODEL_ROLE_CONTROL)
        }
        assert set(map(tuple, cases.values())) == {tuple(range(3 * shard, min(3 * shard + 3, 8)))}
        assert cases_up_to(units[each] for each in ids) == min(3 * shard + 3, 8)


def test_more_placebos_than_cases_are_left_unused(load: Load) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))(cases=1)
    control = [unit for unit in plan.units if unit.control_kind == CONTROL_KIND_PLACEBO]
    assert {whole(unit, plan.parts).target.concept.name for unit in control} == {"thing"}


def test_the_same_subject_and_placebo_share_the_controls_units(
    load: Load, descriptions: Mapping[str, EvaluationDescription], catalogue: Catalogue
) -> None:
    """Whatever concept the audit is about: the placebo is another, and so are its pictures and prompts."""
    plan = load(PLACEBO)
    keys = [
        {
            unit_key(whole(unit, planned.parts), descriptions[unit.evaluation], catalogue, "profile")
            for unit in planned.units
            if unit.control_kind == CONTROL_KIND_PLACEBO
        }
        for planned in (plan(concept="circle"), plan(concept="hourglass", placebos=["thing"]))
    ]
    assert keys[0] == keys[1] != set()


def test_the_cost_counts_every_unit_of_the_control(
    load: Load, descriptions: Mapping[str, EvaluationDescription]
) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))
    # These descriptions have no formulas, so each case counts the same.
    none = plan(control_kind="CONTROL_KIND_NONE").cost
    one, two = plan(placebos=["thing"]).cost, plan(placebos=["thing", "item"]).cost
    noise = [next(each for each in cost.evaluations if each.evaluation == "noise-based") for cost in (none, one, two)]
    assert noise[1].pictures == noise[2].pictures == noise[0].pictures * 3 // 2
    assert two.stored_bytes > one.stored_bytes > none.stored_bytes
    assert two.units > one.units > none.units


def test_one_that_cannot_serve_does_not_count(load: Load) -> None:
    assert load(PLACEBO + OTHERS)().spec.placebos == ["thing"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"placebo": "nothing"}, "there is no concept 'nothing'"),
        ({"placebo": "hourglass"}, "the catalogue does not say that no model knows it"),
        ({"placebo": "unseen"}, "has no pictures"),
        ({"placebo": "deaf"}, "has no labels for the judge 'second'"),
        ({"placebo": "manner"}, "is of the kind style"),
        ({"placebo": "wide"}, "its pictures have 16 pixels a side"),
        ({"placebo": "thing", "concept": "thing"}, "is the concept itself"),
        ({"placebo": "ring"}, "is the concept itself under another name"),
        ({"placebo": "thing", "control": "small/never"}, "names spec.control"),
        ({"placebo": "thing", "placebos": ["else"]}, "must be empty where spec.placebos names others"),
        ({"placebo": "thing", "control_kind": "CONTROL_KIND_NONE"}, "must be empty: spec.control_kind asks for NONE"),
    ],
)
def test_a_placebo_that_cannot_serve_is_refused(load: Load, fields: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load(PLACEBO + OTHERS)(**fields)
    (violation,) = [each for each in caught.value.violations if each.field == "spec.placebo"]
    assert said in violation.description


@pytest.mark.parametrize(
    ("placebos", "field", "said"),
    [
        (["thing", "thing"], "spec.placebos[1]", "is named twice"),
        (["thing", "stuff"], "spec.placebos[1]", "is the placebo 'thing' under another name"),
        (["thing", ""], "spec.placebos[1]", "must name a concept"),
        (["nothing", "thing"], "spec.placebos[0]", "there is no concept 'nothing'"),
        (["thing"] * 17, "spec.placebos", "must be at most 16, not 17"),
    ],
)
def test_placebos_must_be_distinct(load: Load, placebos: list[str], field: str, said: str) -> None:
    stuff = PLACEBO.replace("  thing:", "  stuff:").replace("a thing", "stuff")
    with pytest.raises(InvalidRequestError) as caught:
        load(PLACEBO + stuff)(placebos=placebos)
    (violation,) = caught.value.violations
    assert (violation.field, said in violation.description) == (field, True)


async def test_a_real_audit_is_held_against_its_placebo(tmp_path: Path) -> None:
    """The testbed's moon, under another name: every model knows it, so that as a placebo it must come back."""
    shutil.copy(EMBEDDED.parent / "pictures" / "moon.png", tmp_path)
    concept = yaml.safe_load(EMBEDDED.read_text())["concepts"]["moon"] | {"placebo": True, "pictures": "moon.png"}
    del concept["near_misses"]
    file = tmp_path / "catalogue.yaml"
    file.write_text(yaml.safe_dump({"concepts": {"crescent": concept | {"tile": 32}}}))
    descriptions = {name: each.description for name, each in evaluations().items()}
    asked = {"name": "textual-inversion", "parameters": {"steps": 2}}
    fields = {"battery": {"evaluations": [asked, {"name": "standard-prompt"}], "allow_incomplete": True}}
    async with local_backend(tmp_path / "store", catalogues=[str(file)]) as backend:
        spec = json_format.ParseDict(
            {
                "subject": "testbed/never",
                "concept": "hourglass",
                "placebo": "crescent",
                "cases": 2,
                "steps": 3,
                **fields,
            },
            AuditSpec(),
        )
        plan = make_plan(spec, backend.catalogue, backend.store, descriptions, lambda: 11)
        observed = [
            observation for unit in plan.units for observation in await backend.observe(whole(unit, plan.parts))
        ]
    seen = {(each.evaluation, each.role): each for each in observed}
    control = seen["textual-inversion", MODEL_ROLE_CONTROL]
    assert (control.model, control.concept) == ("testbed/never", "crescent")
    assert seen["textual-inversion", MODEL_ROLE_REFERENCE].concept == "hourglass"
    assert seen["standard-prompt", MODEL_ROLE_CONTROL].concept == "crescent"
    requested = plan.spec.battery.evaluations
    verdict = conclude(observed, list(descriptions.values()), requested, plan.spec)
    inversion, standard = verdict.evaluations
    assert (inversion.controlled, inversion.placebo) == (True, True)
    assert (standard.controlled, standard.placebo) == (True, True)
