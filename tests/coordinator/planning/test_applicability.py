"""Evaluations that do not apply to the models' family: in the plan with the reason, without units, and no error."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from safetensors.torch import save_file

from support.families import AS_FLUX, register
from support.tiny_models import saved
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import MODEL_CAPABILITY_UNGUIDED_ROW, EvaluationDescription, NotApplicable
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.model_families import STABLE_DIFFUSION, ToldBy
from unerase_backend.coordinator.planning.applicability import family_problems
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.planning.presets import PRESETS
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from ..conftest import write_catalogue
from .conftest import plan_of

UNGUIDED = ["diffusion-completion", "likelihood", "unconditional-rate", "inpainting"]
REASON = (
    "predictions without guidance are needed, and FLUX.1 dev takes the guidance scale as an input, so that all that it "
    "predicts is guided"
)
Planner = Callable[..., Plan]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, everything: Mapping[str, EvaluationDescription]) -> Planner:
    """Plans audits of the testbed as if its models were of the family of FLUX.1 dev."""
    register(monkeypatch, AS_FLUX)
    catalogue, store = Catalogue.load(), ArtifactStore(str(tmp_path))
    return lambda **fields: plan_of(catalogue, store, everything, **fields)


def inapplicable(plan: Plan) -> dict[str, NotApplicable]:
    battery = plan.spec.battery.evaluations
    return {each.name: each.not_applicable for each in battery if each.HasField("not_applicable")}


def listed(*names: str) -> dict[str, object]:
    return {"evaluations": [{"name": name} for name in names]}


def with_one_row(unit: Unit) -> Unit:
    changed = Unit()
    changed.CopyFrom(unit)
    changed.one_row = True
    return changed


def test_a_preset_is_planned_without_what_does_not_apply(plan: Planner) -> None:
    planned = plan(battery={"preset": "standard"})
    why = NotApplicable(reason=REASON, lacks=[MODEL_CAPABILITY_UNGUIDED_ROW], family="flux-dev")
    assert inapplicable(planned) == dict.fromkeys(UNGUIDED, why)
    applying = {each.name for each in planned.spec.battery.evaluations} - {*UNGUIDED}
    assert {unit.evaluation for unit in planned.units} == applying
    assert {each.evaluation: each.units for each in planned.cost.evaluations if not each.units} == dict.fromkeys(
        UNGUIDED, 0
    )
    assert not any(each.pictures or each.rows for each in planned.cost.evaluations if each.evaluation in UNGUIDED)


def test_the_whole_battery_stays_in_the_plan_with_its_order(plan: Planner) -> None:
    battery = [each.name for each in plan(battery={"preset": "standard"}).spec.battery.evaluations]
    assert battery == list(PRESETS["standard"].evaluations)


def test_the_rest_is_planned_as_without_it(
    plan: Planner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, everything: Mapping[str, EvaluationDescription]
) -> None:
    planned = plan(battery={"preset": "standard"})
    register(monkeypatch)
    others = plan_of(Catalogue.load(), ArtifactStore(str(tmp_path)), everything, battery={"preset": "standard"})
    assert inapplicable(others) == {}
    applying = [unit for unit in others.units if unit.evaluation not in UNGUIDED]
    # A guided step has one row.
    assert list(planned.units) == [with_one_row(unit) for unit in applying]


def test_what_is_named_is_planned_as_not_applicable_and_is_no_error(plan: Planner) -> None:
    planned = plan(battery=listed("standard-prompt", "likelihood"))
    assert list(inapplicable(planned)) == ["likelihood"]
    assert {unit.evaluation for unit in planned.units} == {"standard-prompt"}


def test_planning_the_completed_request_again_changes_nothing(plan: Planner) -> None:
    planned = plan(battery={"preset": "quick"})
    again = plan(**json_format.MessageToDict(planned.spec, preserving_proto_field_name=True))
    assert (again.spec, again.units) == (planned.spec, planned.units)


def test_what_a_request_says_of_it_is_replaced(plan: Planner) -> None:
    claimed = {"name": "standard-prompt", "not_applicable": {"reason": "I say so"}}
    planned = plan(battery={"evaluations": [claimed]})
    assert inapplicable(planned) == {}
    assert planned.units


def test_parameters_of_what_does_not_apply_are_checked_all_the_same(plan: Planner) -> None:
    bad = {"name": "likelihood", "parameters": {"timesteps": 0}}
    with pytest.raises(InvalidRequestError) as refused:
        plan(battery={"evaluations": [{"name": "standard-prompt"}, bad]})
    assert refused.value.violations[0].field == "spec.battery.evaluations[1].parameters.timesteps"


def test_an_audit_of_which_nothing_applies_is_refused_with_the_reasons(plan: Planner) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        plan(battery=listed("likelihood", "unconditional-rate"))
    assert refused.value.reason == "NOT_APPLICABLE"
    (violation,) = refused.value.violations
    assert violation.field == "spec.battery.evaluations"
    assert "FLUX.1 dev" in violation.description
    for name in ("likelihood", "unconditional-rate"):
        assert f"{name} is not applicable: {REASON}" in violation.description


def test_pictures_are_needed_only_by_what_applies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, everything: Mapping[str, EvaluationDescription]
) -> None:
    bare = Catalogue.load()
    entry = bare.concepts["hourglass"].model_copy(update={"pictures": None})
    bare, store = replace(bare, concepts={**bare.concepts, "hourglass": entry}), ArtifactStore(str(tmp_path))
    battery = listed("standard-prompt", "likelihood")
    with pytest.raises(InvalidRequestError, match="likelihood"):
        plan_of(bare, store, everything, battery=battery)
    register(monkeypatch, AS_FLUX)
    bare = replace(Catalogue.load(), concepts=bare.concepts)
    assert list(inapplicable(plan_of(bare, store, everything, battery=battery))) == ["likelihood"]


def test_every_role_is_of_the_subject_s_family(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    store: ArtifactStore,
    descriptions: Mapping[str, EvaluationDescription],
) -> None:
    path = write_catalogue(tmp_path)
    shutil.copytree(tmp_path / "small", tmp_path / "other")
    content = yaml.safe_load(path.read_text())
    content["models"]["other/reference"] = {"pipeline": "other", "resolution": 32}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    config = tmp_path / "other" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"of_another_family": True}))
    other = replace(AS_FLUX, told_by=ToldBy("unet", "of_another_family", value=True))
    register(monkeypatch, other)
    catalogue = Catalogue.load([str(path)], embedded=Path("none"))

    def plan(**fields: object) -> Plan:
        spec = json_format.ParseDict({"subject": "small/edited", "concept": "hourglass", **fields}, AuditSpec())
        return make_plan(spec, catalogue, store, descriptions, lambda: 77)

    assert plan().spec.reference == "small/reference"
    with pytest.raises(InvalidRequestError) as refused:
        plan(reference="other/reference", assume_reference=True)
    assert refused.value.reason == "FAMILIES_DIFFER"
    (violation,) = refused.value.violations
    assert violation.field == "spec.reference"
    assert f"FLUX.1 dev, not {STABLE_DIFFUSION.title}" in violation.description
    beside = AuditSpec(subject="other/reference", reference="other/reference", control="small/never")
    assert [each.field for each in family_problems(beside, catalogue)] == ["spec.control"]


@pytest.mark.parametrize(("name", "family"), [("flux-dev", "FLUX.1 dev"), ("flux-schnell", "FLUX.1 schnell")])
def test_a_folder_of_flux_is_planned_by_what_its_network_can_do(
    name: str, family: str, tmp_path: Path, everything: Mapping[str, EvaluationDescription]
) -> None:
    """A guided step is one row of its network, so that a picture costs its steps."""
    transformer = saved(name, tmp_path).pipeline.transformer
    save_file({"proj_out.bias": transformer.proj_out.bias + 1}, tmp_path / "erased.safetensors")
    models = {
        "own/flux": {"pipeline": "pipeline", "resolution": 32, "guidance_scale": 3.5, "steps": 4},
        "own/erased": {"base": "own/flux", "transformer": "erased.safetensors", "erased": ["hourglass"]},
    }
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"models": models}))
    asked = {"subject": "own/erased", "reference": "own/flux", "battery": {"preset": "standard"}}
    planned = plan_of(Catalogue.load([str(file)]), ArtifactStore(str(tmp_path)), everything, **asked)
    assert [*inapplicable(planned)] == [each for each in PRESETS["standard"].evaluations if each in UNGUIDED]
    assert all(family in each.reason for each in inapplicable(planned).values())
    (pictures,) = (each for each in planned.cost.evaluations if each.evaluation == "standard-prompt")
    assert pictures.rows == pictures.pictures * 4
