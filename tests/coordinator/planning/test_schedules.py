"""Subject, reference and control are stepped by the reference's schedule, and what cannot be compared is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from support.small_files import write_weights
from unerase.v1.audits_pb2 import AuditSpec
from unerase.v1.types_pb2 import MODEL_ROLE_CONTROL, EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError

from ..conftest import write_catalogue

Planner = Callable[..., Plan]

BETAS = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BATTERY = {"evaluations": [{"name": "standard-prompt"}], "allow_incomplete": True}
CONFIGS: dict[str, dict[str, Any] | None] = {
    "small": BETAS,
    "pndm": BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "trailing": BETAS | {"timestep_spacing": "trailing"},
    "velocity": BETAS | {"prediction_type": "v_prediction"},
    "default-betas": {"_class_name": "DDIMScheduler"},
    "shorter": BETAS | {"num_train_timesteps": 500},
    "zero-snr-velocity": BETAS | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "zero-snr": BETAS | {"rescale_betas_zero_snr": True},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "unreadable": None,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A pipeline for each configuration, its weights all alike, and two controls of which one names trailing."""
    folder = tmp_path_factory.mktemp("schedules")
    path = write_catalogue(folder)
    content = yaml.safe_load(path.read_text())
    for name in CONFIGS:
        if name != "small":
            shutil.copytree(folder / "small", folder / name)
            content["models"][name] = {"pipeline": name, "resolution": 32}
            content["models"][f"{name}/edited"] = {"base": name, "unet": "edited.safetensors"}
    never = {"base": "trailing", "unet": "never-2.safetensors", "never_learned": ["hourglass"]}
    content["models"]["trailing/never"] = never
    write_weights(folder / "never-2.safetensors", "never-2")
    for name, config in CONFIGS.items():
        content_of = "{" if config is None else json.dumps(config)
        (folder / name / "scheduler" / "scheduler_config.json").write_text(content_of)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Catalogue.load([str(path)], embedded=Path("none"))


@pytest.fixture(scope="module")
def plan(whole: Catalogue, store: ArtifactStore, descriptions: Mapping[str, EvaluationDescription]) -> Planner:
    def planned(subject: str, **fields: object) -> Plan:
        asked = {"subject": f"{subject}/edited", "concept": "hourglass", "reference": "small/reference", **fields}
        return make_plan(json_format.ParseDict(asked, AuditSpec()), whole, store, descriptions, lambda: 77)

    return planned


def refused(plan: Planner, subject: str, **fields: object) -> tuple[str, str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        plan(subject, **fields)
    (violation,) = caught.value.violations
    return violation.field, caught.value.reason, violation.description


def stepped(plan: Plan) -> dict[str, set[str]]:
    """By model, the models by whose schedules its units are stepped."""
    found: dict[str, set[str]] = {}
    for unit in plan.units:
        found.setdefault(unit.model, set()).add(unit.schedule_of)
    return found


@pytest.mark.parametrize("subject", ["small", "pndm"])
@pytest.mark.parametrize("own", [False, True])
def test_where_schedules_do_not_differ_nothing_is_said(plan: Planner, subject: str, own: bool) -> None:
    planned = plan(subject, own_schedules=own)
    assert not planned.spec.own_schedules
    assert all(steps == {""} for steps in stepped(planned).values())


@pytest.mark.parametrize("subject", ["trailing", "velocity"])
def test_a_model_with_another_schedule_is_stepped_by_the_references(plan: Planner, subject: str) -> None:
    planned = plan(subject)
    assert stepped(planned) == {
        f"{subject}/edited": {"small/reference"},
        "small/reference": {""},
        "small/never": {""},
        # Of a measure that has no model.
        "": {""},
    }
    again = json_format.MessageToDict(planned.spec)
    subject_again = again.pop("subject").removesuffix("/edited")
    assert plan(subject_again, **again).spec == planned.spec


def test_a_control_is_stepped_by_the_references_too(plan: Planner) -> None:
    planned = plan("small", control="trailing/never")
    assert stepped(planned)["trailing/never"] == {"small/reference"}
    assert stepped(planned)["small/edited"] == {""}
    # Where other prompts are the control, its model is the subject.
    free = plan("trailing", control_kind="CONTROL_KIND_CONCEPT_FREE", battery=BATTERY)
    units = [unit for unit in free.units if unit.role == MODEL_ROLE_CONTROL]
    assert {(unit.model, unit.schedule_of) for unit in units} == {("trailing/edited", "small/reference")}


def test_each_is_stepped_by_its_own_if_asked(plan: Planner) -> None:
    planned = plan("trailing", own_schedules=True)
    assert planned.spec.own_schedules
    assert all(steps == {""} for steps in stepped(planned).values())


@pytest.mark.parametrize("subject", ["default-betas", "zero-snr-velocity"])
def test_other_betas_are_refused_unless_asked_for(plan: Planner, subject: str) -> None:
    field, reason, said = refused(plan, subject)
    assert (field, reason) == ("spec.subject", "SCHEDULES_DIFFER")
    assert f"the model '{subject}/edited' has other betas than the reference: 1000 " in said
    assert "not 1000 scaled_linear betas from 0.00085 to 0.012; mend" in said
    planned = plan(subject, own_schedules=True)
    assert planned.spec.own_schedules
    assert all(steps == {""} for steps in stepped(planned).values())


def test_another_number_of_timesteps_is_refused_in_any_case(plan: Planner) -> None:
    for own in (False, True):
        field, reason, said = refused(plan, "shorter", own_schedules=own)
        assert (field, reason) == ("spec.subject", "SCHEDULE_UNSUPPORTED")
        assert said.endswith("scheduler_config.json: num_train_timesteps 500 is not 1000")


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("flow", '_class_name "FlowMatchEulerDiscreteScheduler" is of another model: take'),
        ("zero-snr", 'rescale_betas_zero_snr true cannot be followed with prediction_type "epsilon"'),
    ],
)
def test_what_cannot_be_followed_is_refused_in_every_role(plan: Planner, subject: str, said: str) -> None:
    expected = f"cannot be sampled: scheduler_config.json: {said}"
    for edited, fields, at in ((subject, {}, "spec.subject"), ("small", {"reference": subject}, "spec.reference")):
        field, reason, description = refused(plan, edited, **fields)
        assert (field, reason) == (at, "SCHEDULE_UNSUPPORTED")
        assert expected in description


@pytest.mark.parametrize("own", [False, True])
def test_a_configuration_that_cannot_be_read_is_refused_as_a_file(plan: Planner, own: bool) -> None:
    field, reason, said = refused(plan, "unreadable", own_schedules=own)
    assert (field, reason) == ("spec.subject", "MODEL_INCOMPLETE")
    assert "scheduler_config.json is not JSON" in said
