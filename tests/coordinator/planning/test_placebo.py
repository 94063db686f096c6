"""A concept that no model knows stands in for a model that never learned the concept."""

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
    EVALUATION_CLASS_INJECTING,
    MODEL_ROLE_CONTROL,
    MODEL_ROLE_REFERENCE,
    MODEL_ROLE_SUBJECT,
    EvaluationDescription,
)
from unerase_backend.catalogue import EMBEDDED, Catalogue
from unerase_backend.coordinator.planning.parts import whole
from unerase_backend.coordinator.planning.plan import Plan, make_plan
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
    return {unit.evaluation for unit in plan.units if unit.role == MODEL_ROLE_CONTROL}


def test_injecting_evaluations_run_on_the_subject_with_the_placebo(load: Load) -> None:
    plan = load(PLACEBO)()
    assert (plan.spec.control, plan.spec.placebo) == ("", "thing")
    assert _controlled(plan) == {"textual-inversion"}
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
    assert (plan(concept="hourglass").spec.control, plan(concept="hourglass").spec.placebo) == ("small/never", "")
    assert plan(control="small/never", assume_control=True).spec.placebo == ""
    asked = plan(concept="hourglass", placebo="thing")
    assert (asked.spec.control, asked.spec.placebo) == ("", "thing")
    assert _controlled(asked) == {"textual-inversion"}


def test_planning_what_was_planned_changes_nothing(load: Load) -> None:
    plan = load(PLACEBO)
    for fields in (
        {},
        {"concept": "hourglass", "placebo": "thing"},
        {"control": "small/never", "assume_control": True},
    ):
        once = plan(**fields)
        again = json_format.MessageToDict(once.spec, preserving_proto_field_name=True)
        assert plan(**again) == once


def test_without_an_injecting_evaluation_there_is_none(load: Load) -> None:
    plan = load(PLACEBO)(battery={"evaluations": [{"name": "noise-based"}, {"name": "diffusion-completion"}]})
    assert plan.spec.placebo == ""
    assert not _controlled(plan)


def test_of_several_placebos_none_is_taken_unasked(load: Load) -> None:
    plan = load(PLACEBO + PLACEBO.replace("thing", "item"))
    assert plan().spec.placebo == ""
    assert plan(placebo="item").spec.placebo == "item"


def test_one_that_cannot_serve_does_not_count(load: Load) -> None:
    assert load(PLACEBO + OTHERS)().spec.placebo == "thing"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"placebo": "nothing"}, "there is no concept 'nothing'"),
        ({"placebo": "hourglass"}, "the catalogue does not say that no model knows it"),
        ({"placebo": "unseen"}, "has no pictures"),
        ({"placebo": "deaf"}, "has no labels for the judge 'second'"),
        ({"placebo": "manner"}, "is of the kind style"),
        ({"placebo": "thing", "concept": "thing"}, "is the concept itself"),
        ({"placebo": "ring"}, "is the concept itself under another name"),
        ({"placebo": "thing", "control": "small/never"}, "names spec.control"),
    ],
)
def test_a_placebo_that_cannot_serve_is_refused(load: Load, fields: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        load(PLACEBO + OTHERS)(**fields)
    (violation,) = [each for each in caught.value.violations if each.field == "spec.placebo"]
    assert said in violation.description


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
    assert ("standard-prompt", MODEL_ROLE_CONTROL) not in seen
    requested = plan.spec.battery.evaluations
    verdict = conclude(observed, list(descriptions.values()), requested, plan.spec)
    inversion, standard = verdict.evaluations
    assert (inversion.controlled, inversion.placebo) == (True, True)
    assert (standard.controlled, standard.placebo) == (False, False)
    assert descriptions["textual-inversion"].evaluation_class == EVALUATION_CLASS_INJECTING
