"""Coordinators in processes of their own: one is killed while it registers, the next goes on, audits use the model."""

import shutil
from pathlib import Path

from support.coordinators import Coordinator
from support.registering import whole
from support.simulated import begun, simulated_coordinator, until
from unerase import Client
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Battery, ReportFormat
from unerase.v1.campaigns_pb2 import CAMPAIGN_STATE_SUCCEEDED, CampaignSpec
from unerase.v1.models_pb2 import (
    REGISTRATION_STATE_CHECKING,
    REGISTRATION_STATE_REGISTERED,
    ModelRegistration,
)
from unerase.v1.types_pb2 import EvaluationRequest
from unerase_backend.catalogue import EMBEDDED
from unerase_backend.catalogue.definitions import is_registered

BATTERY = Battery(evaluations=[EvaluationRequest(name="standard-prompt")], allow_incomplete=True)


def ended(client: Client, name: str) -> ModelRegistration:
    def found() -> ModelRegistration | None:
        registration = client.import_status(name)
        return None if registration.state == REGISTRATION_STATE_CHECKING else registration

    registration: ModelRegistration = until(found, 120.0)
    return registration


def client_of(coordinator: Coordinator) -> Client:
    return Client(coordinator.address)


def test_a_registration_outlives_its_coordinator(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(EMBEDDED.parent / "reference", models / "plain")
    shutil.copy(EMBEDDED.parent / "uce" / "unet.safetensors", models)
    given = {"model_roots": [str(models)], "digests": str(tmp_path / "digests")}
    with simulated_coordinator(tmp_path, **given) as first, client_of(first) as client:
        begun_there = client.register_model("own/base", whole(models), wait=False, request_id="one")
        assert begun_there.state == REGISTRATION_STATE_CHECKING
    with simulated_coordinator(tmp_path, **given) as second, client_of(second) as client:
        info = client.server_info()
        assert list(info.model_roots) == given["model_roots"]
        assert "model-registration" in info.features
        again = client.register_model("own/base", whole(models), request_id="one")
        assert again.create_time == begun_there.create_time
        base = ended(client, "own/base")
        assert base.state == REGISTRATION_STATE_REGISTERED, base.error_message
        entry = {"base": "own/base", "unet": f"{models}/unet.safetensors", "erased": ["hourglass"]}
        edited = client.register_model("own/edited", entry, labels={"release": "2"})
        assert edited.state == REGISTRATION_STATE_REGISTERED, edited.error_message
        assert not client.check_model("own/edited", timeout=120).problems
        audit = client.audit(AuditSpec(subject="own/edited", concept="hourglass", cases=2, steps=2, battery=BATTERY))
        assert audit.state == AUDIT_STATE_SUCCEEDED, audit.error_message
        report = client.report(audit.id, ReportFormat.REPORT_FORMAT_JSON).decode()
        assert "own/base" in report
        assert "model:" not in report
        assert all(is_registered(model) for model, role, *_ in begun(tmp_path) if role != "control")
        spec = CampaignSpec(subject_filter='labels.release = "2"', concepts=["hourglass"])
        spec.template.CopyFrom(AuditSpec(cases=2, steps=2, battery=BATTERY))
        campaign = client.create_campaign(spec)
        events = list(client.watch_campaign(campaign.id))
        assert events[-1].state_changed.state == CAMPAIGN_STATE_SUCCEEDED
        cells = list(client.cells(campaign.id))
        assert [cell.subject for cell in cells] == ["own/edited"]
