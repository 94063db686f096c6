"""Flows are stepped by the reference's shift, and compared with flows alone."""

import json
from pathlib import Path

import pytest
import yaml

from unerase.v1.audits_pb2 import AuditSpec
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.planning.model_checks import Problem
from unerase_backend.coordinator.planning.schedule_checks import schedule_refusals, stepped_otherwise

BETAS = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
FLOWS: dict[str, dict[str, object]] = {
    "reference": FLOW,
    "same": FLOW | {"num_train_timesteps": 1000},
    "shifted": FLOW | {"shift": 1.0},
    "dynamic": FLOW | {"use_dynamic_shifting": True},
    "shorter": FLOW | {"num_train_timesteps": 500},
    "betas": BETAS,
    "karras": FLOW | {"use_karras_sigmas": True},
}


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Folders without a UNet, of which nothing but the scheduler's configuration is read here."""
    folder = tmp_path_factory.mktemp("flows")
    for name, config in FLOWS.items():
        (folder / name / "scheduler").mkdir(parents=True)
        (folder / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    models = {name: {"pipeline": name, "resolution": 32} for name in FLOWS}
    (folder / "catalogue.yaml").write_text(yaml.safe_dump({"models": models}))
    return Catalogue.load([str(folder / "catalogue.yaml")], embedded=Path("none"))


def problems(flows: Catalogue, subject: str, reference: str = "reference", *, own: bool = False) -> list[Problem]:
    spec = AuditSpec(subject=subject, reference=reference, own_schedules=own)
    return list(schedule_refusals(spec, flows))


@pytest.mark.parametrize(("subject", "otherwise"), [("same", False), ("shifted", True), ("dynamic", True)])
def test_a_flow_is_stepped_by_the_shift_of_the_reference(flows: Catalogue, subject: str, otherwise: bool) -> None:
    assert problems(flows, subject) == []
    spec = AuditSpec(subject=subject, reference="reference")
    assert dict(stepped_otherwise(spec, flows)) == ({subject: "reference"} if otherwise else {})
    own = AuditSpec(subject=subject, reference="reference", own_schedules=True)
    assert list(schedule_refusals(own, flows)) == []
    assert own.own_schedules == otherwise


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("subject", "reference", "said"),
    [
        ("betas", "reference", "the model 'betas' is a model with betas, and the reference a rectified flow: "),
        ("shifted", "betas", "the model 'shifted' is a rectified flow, and the reference a model with betas: "),
    ],
)
def test_a_flow_and_a_model_with_betas_are_not_compared(
    flows: Catalogue, subject: str, reference: str, said: str, own: bool
) -> None:
    (problem,) = problems(flows, subject, reference, own=own)
    assert (problem.field, problem.reason) == ("spec.subject", "SCHEDULES_DIFFER")
    assert problem.description.startswith(said)
    assert problem.description.endswith("not versions of one model; name the reference that it was made from")


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ("karras", "cannot be sampled: scheduler_config.json: use_karras_sigmas true cannot be followed"),
        ("shorter", "cannot be audited: scheduler_config.json: num_train_timesteps 500 is not 1000"),
    ],
)
def test_a_flow_that_cannot_be_followed_is_refused(flows: Catalogue, subject: str, said: str) -> None:
    (problem,) = problems(flows, subject)
    assert (problem.field, problem.reason) == ("spec.subject", "SCHEDULE_UNSUPPORTED")
    assert said in problem.description
