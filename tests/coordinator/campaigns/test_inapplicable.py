"""Audits and campaigns of models to whose family not everything applies, against a real coordinator."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import json_format

from support.errors_of import details_of
from support.simulated import begun, say, simulated_coordinator, start_simulated, unsay, until
from support.small_files import write_pipeline, write_weights
from unerase.v1 import audits_pb2, campaigns_pb2
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit, AuditSpec, Report
from unerase.v1.campaigns_pb2 import CELL_STATE_FAILED, CELL_STATE_SUCCEEDED
from unerase.v1.types_pb2 import MODEL_CAPABILITY_UNGUIDED_ROW
from unerase.v1.verdicts_pb2 import Conclusion, Outcome

from ..conftest import write_catalogue
from .simulation import TEMPLATE, Backend, spec_of

BOTH = {"evaluations": [{"name": "standard-prompt"}, {"name": "unguided"}]}
UNGUIDED = {"evaluations": [{"name": "unguided"}]}
REASON = (
    "predictions without guidance are needed, and FLUX.1 dev takes the guidance scale as an input, so that all that it "
    "predicts is guided"
)


def catalogue_of_two_families(folder: Path) -> Path:
    """Write a catalogue whose models "flux/..." are of another family."""
    folder.mkdir()
    path = write_catalogue(folder)
    config = write_pipeline(folder / "flux", "flux") / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"as_flux": True}))
    for name in ("flux-edited", "flux-never"):
        write_weights(folder / f"{name}.safetensors", name)
    content = yaml.safe_load(path.read_text())
    content["models"] |= {
        "flux/reference": {"pipeline": "flux", "resolution": 32},
        "flux/edited": {"base": "flux/reference", "unet": "flux-edited.safetensors", "erased": ["hourglass"]},
        "flux/never": {"base": "flux/reference", "unet": "flux-never.safetensors", "never_learned": ["hourglass"]},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def create(backend: Backend, request_id: str, battery: dict[str, Any], **more: Any) -> Audit:
    spec = {"subject": "flux/edited", "concept": "hourglass", "cases": 24, "steps": 3, "battery": battery}
    request = audits_pb2.CreateAuditRequest(
        request_id=request_id, spec=json_format.ParseDict(spec, AuditSpec()), **more
    )
    audit: Audit = backend.call("Audit", "CreateAudit", request)
    return audit


def get(backend: Backend, audit_id: str) -> Audit:
    audit: Audit = backend.call("Audit", "GetAudit", audits_pb2.GetAuditRequest(id=audit_id))
    return audit


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("families")
    say(folder, "families")
    with simulated_coordinator(folder, catalogue_of_two_families(folder / "catalogue")) as running:
        yield Backend(folder, running)


def test_an_audit_is_planned_with_the_reason(backend: Backend) -> None:
    planned = create(backend, "planned", BOTH, validate_only=True)
    (unguided,) = (each for each in planned.spec.battery.evaluations if each.name == "unguided")
    assert unguided.not_applicable.reason == REASON
    assert list(unguided.not_applicable.lacks) == [MODEL_CAPABILITY_UNGUIDED_ROW]
    assert {each.evaluation: each.units for each in planned.cost.evaluations} == {"standard-prompt": 3, "unguided": 0}
    assert planned.units_total == 3
    # The concept's own control is of the other family.
    assert planned.spec.control == "flux/never"


def test_an_audit_of_which_nothing_applies_is_refused(backend: Backend) -> None:
    with pytest.raises(grpc.RpcError) as error:
        create(backend, "nothing", UNGUIDED)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    reason, fields = details_of(error.value)
    assert reason == "NOT_APPLICABLE"
    assert REASON in fields["spec.battery.evaluations"]


def test_a_campaign_of_two_families_asks_each_subject_what_applies_to_it(backend: Backend) -> None:
    template = TEMPLATE | {"battery": BOTH}
    campaign = backend.create("both", spec_of(["small/edited", "flux/edited"], template=template))
    backend.watch(campaign.id)
    cells = backend.cells(campaign.id)
    assert [cell.state for cell in cells] == [CELL_STATE_SUCCEEDED] * 2
    whole, lacking = (get(backend, cell.audit).verdict for cell in cells)
    assert not whole.not_applicable
    assert [one.name for one in lacking.not_applicable] == ["unguided"]
    assert {one.outcome for one in lacking.evaluations if one.name == "unguided"} == {Outcome.OUTCOME_NOT_APPLICABLE}
    pieces = backend.call("Campaign", "GetCampaignReport", campaigns_pb2.GetCampaignReportRequest(id=campaign.id))
    report = json_format.Parse(b"".join(piece.chunk for piece in pieces), campaigns_pb2.CampaignReport())
    assert [len(cell.verdict.not_applicable) for cell in report.content.cells] == [0, 1]


def test_a_cell_of_which_nothing_applies_says_so_and_the_others_run(backend: Backend) -> None:
    template = TEMPLATE | {"battery": UNGUIDED | {"allowIncomplete": True}}
    campaign = backend.create("some", spec_of(["flux/edited", "small/edited"], template=template))
    backend.watch(campaign.id)
    lacking, whole = backend.cells(campaign.id)
    assert (lacking.state, lacking.error_reason) == (CELL_STATE_FAILED, "NOT_APPLICABLE")
    assert REASON in lacking.error_message
    assert whole.state == CELL_STATE_SUCCEEDED


def test_a_campaign_of_which_nothing_applies_is_refused(backend: Backend) -> None:
    template = TEMPLATE | {"battery": UNGUIDED}
    with pytest.raises(grpc.RpcError) as error:
        backend.create("none", spec_of(["flux/edited"], template=template))
    reason, fields = details_of(error.value)
    assert reason == "NOT_APPLICABLE"
    assert REASON in fields["spec.template.battery.evaluations"]


@pytest.mark.backends
def test_a_coordinator_that_is_killed_in_the_middle_concludes_the_same(tmp_path: Path) -> None:
    catalogue = catalogue_of_two_families(tmp_path / "catalogue")
    say(tmp_path, "families")
    say(tmp_path, "hold-all")
    running = start_simulated(tmp_path, catalogue)
    try:
        audit = create(Backend(tmp_path, running), "whole", BOTH)
        until(lambda: begun(tmp_path))
        running.end()
        running = start_simulated(tmp_path, catalogue)
        unsay(tmp_path, "hold-all")
        backend = Backend(tmp_path, running)
        until(lambda: get(backend, audit.id).state == AUDIT_STATE_SUCCEEDED)
        ended = get(backend, audit.id)
        pieces = backend.call("Audit", "GetReport", audits_pb2.GetReportRequest(id=audit.id))
        report = json_format.Parse(b"".join(piece.chunk for piece in pieces), Report())
    finally:
        running.end()
    assert {unit[3] for unit in begun(tmp_path)} == {"standard-prompt"}
    assert ended.spec == audit.spec
    assert ended.units_done == ended.units_total == 3
    assert ended.verdict.conclusion == Conclusion.CONCLUSION_INCONCLUSIVE
    assert f"unguided is not applicable, and nothing is called removed without it: {REASON}" in ended.verdict.statement
    assert report.content.verdict == ended.verdict
    assert [one.why.reason for one in report.content.verdict.not_applicable] == [REASON]
