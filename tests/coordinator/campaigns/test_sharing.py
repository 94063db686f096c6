"""Campaigns beside others: quotas, what comes first when several want the rooms, and units that audits share."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format

from support.errors_of import details_of
from support.simulated import begun, say, simulated_coordinator, unsay, until
from unerase.v1 import audits_pb2, campaigns_pb2
from unerase.v1.campaigns_pb2 import CELL_STATE_RUNNING
from unerase_backend.runtime import tokens
from unerase_backend.runtime.access import SCOPES

from .simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    """Three tenants of a backend that runs one unit at a time; "narrow" may have two audits and eight pictures."""
    folder = tmp_path_factory.mktemp("sharing")
    file = folder / "tokens.json"
    made = {name: tokens.create(file, name, name, list(SCOPES), 1) for name in ("large", "small", "narrow")}
    known = json.loads(file.read_text())
    known["quotas"] = {"narrow": {"audits": 1, "pictures_per_day": 100}}
    file.write_text(json.dumps(known))
    catalogue = catalogue_of_many(folder / "catalogue")
    with simulated_coordinator(folder, catalogue, tokens=str(file), concurrent_units=1) as running:
        yield {name: Backend(folder, running, token) for name, token in made.items()}


def audit_of(subject: str, request_id: str, seed: int) -> audits_pb2.CreateAuditRequest:
    spec = json_format.ParseDict(TEMPLATE | {"subject": subject, "concept": "hourglass"}, audits_pb2.AuditSpec())
    spec.seed_base = seed
    return audits_pb2.CreateAuditRequest(request_id=request_id, spec=spec)


@pytest.mark.parametrize("whose", ["small", "large"])
def test_a_single_audit_does_not_wait_behind_a_campaign(tenants: dict[str, Backend], whose: str) -> None:
    """Neither another tenant's nor the campaign's own tenant's."""
    campaigner, single = tenants["large"], tenants[whose]
    folder = campaigner.folder
    say(folder, "hold-all")
    try:
        campaign = campaigner.create(f"beside-{whose}", spec_of(EDITED[:5]))
        until(lambda: [cell.state for cell in campaigner.cells(campaign.id)] == [CELL_STATE_RUNNING] * 5)
        audit = single.call("Audit", "CreateAudit", audit_of(EDITED[5], f"single-{whose}", len(begun(folder))))
        watched = campaigner.call("Campaign", "GetCampaign", campaigns_pb2.GetCampaignRequest(id=campaign.id))
        assert watched.cells.running == 5
        ask = audits_pb2.GetAuditRequest(id=audit.id)
        until(lambda: single.call("Audit", "GetAudit", ask).state == audits_pb2.AUDIT_STATE_RUNNING)
        before = len(begun(folder))
    finally:
        unsay(folder, "hold-all")
    single.call("Audit", "WatchAudit", audits_pb2.WatchAuditRequest(id=audit.id))
    campaigner.watch(campaign.id)
    order = [model == EDITED[5] for model, role, *_ in begun(folder)[before:] if role == "subject"]
    assert any(order)
    # The campaign's subjects alternate with the single audit's, so that most of them come after its last.
    last = max(position for position, mine in enumerate(order) if mine)
    assert order[: last + 1].count(False) < order[last:].count(False) + order.count(True)


def test_a_campaign_waits_for_its_quota_and_says_so(tenants: dict[str, Backend]) -> None:
    backend = tenants["narrow"]
    campaign = backend.create("narrow", spec_of(EDITED[:3], template=TEMPLATE | {"cases": 2}))
    events = backend.watch(campaign.id)
    running = most = 0
    for event in events:
        if event.HasField("cell_changed"):
            running += 1 if event.cell_changed.state == CELL_STATE_RUNNING else -1
            most = max(most, running)
    assert most == 1
    delays = [event.delayed for event in events if event.HasField("delayed")]
    assert delays
    assert {delay.reason for delay in delays} == {"QUOTA_AUDITS"}
    ended = backend.call("Campaign", "GetCampaign", campaigns_pb2.GetCampaignRequest(id=campaign.id))
    assert (ended.cells.succeeded, ended.HasField("delayed")) == (3, False)


def test_a_cell_that_no_waiting_helps_is_refused_at_once(tenants: dict[str, Backend]) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        tenants["narrow"].create("never", spec_of(EDITED[:2], template=TEMPLATE | {"cases": 100}))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(refused.value)[0] == "QUOTA_PICTURES"


def test_a_tenant_sees_only_its_own(tenants: dict[str, Backend]) -> None:
    mine = tenants["small"].create("mine", spec_of(EDITED[:1]))
    tenants["small"].watch(mine.id)
    other = tenants["large"]
    for method, request in (
        ("GetCampaign", campaigns_pb2.GetCampaignRequest(id=mine.id)),
        ("ListCells", campaigns_pb2.ListCellsRequest(id=mine.id)),
        ("WatchCampaign", campaigns_pb2.WatchCampaignRequest(id=mine.id)),
        ("CancelCampaign", campaigns_pb2.CancelCampaignRequest(id=mine.id)),
        ("RetryCampaign", campaigns_pb2.RetryCampaignRequest(id=mine.id)),
        ("DeleteCampaign", campaigns_pb2.DeleteCampaignRequest(id=mine.id)),
        ("GetCampaignReport", campaigns_pb2.GetCampaignReportRequest(id=mine.id)),
        ("EvaluateGate", campaigns_pb2.EvaluateGateRequest(id=mine.id)),
    ):
        with pytest.raises(grpc.RpcError) as hidden:
            other.call("Campaign", method, request)
        assert details_of(hidden.value)[0] == "CAMPAIGN_NOT_FOUND", method
    listed = other.call("Campaign", "ListCampaigns", campaigns_pb2.ListCampaignsRequest())
    assert mine.id not in {campaign.id for campaign in listed.campaigns}
    # Another tenant may take the same request id.
    assert other.create("mine", spec_of(EDITED[:1])).id != mine.id


def test_a_unit_that_another_audit_computes_waits_without_a_place(tmp_path: Path) -> None:
    """While one audit has the reference's unit computed, the places are for what the others can begin."""
    catalogue = catalogue_of_many(tmp_path / "catalogue")
    say(tmp_path, "hold-small/reference")
    with simulated_coordinator(tmp_path, catalogue, concurrent_units=2) as running:
        backend = Backend(tmp_path, running)
        campaign = backend.create("shared", spec_of(EDITED[:3]))
        until(lambda: {model for model, *_ in begun(tmp_path)} >= set(EDITED[:3]))
        unsay(tmp_path, "hold-small/reference")
        backend.watch(campaign.id)
    made = [tuple(unit) for unit in begun(tmp_path) if unit[1] == "reference"]
    assert len(made) == len(set(made)) > 0
