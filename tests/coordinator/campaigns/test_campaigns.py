"""The life of a campaign, seen by its owner."""

import io
import json
from collections import Counter
from collections.abc import Iterator

import grpc
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from support.errors_of import details_of
from support.simulated import begun, say, simulated_coordinator, unsay, until
from unerase.v1 import audits_pb2, campaigns_pb2, comparisons_pb2
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_CANCELLED,
    CAMPAIGN_STATE_SUCCEEDED,
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_PENDING,
    CELL_STATE_RUNNING,
    CELL_STATE_SUCCEEDED,
    Campaign,
    CampaignReport,
    CampaignReportContent,
    CampaignReportFormat,
)
from unerase.v1.gates_pb2 import GATE_OUTCOME_FAIL, GATE_OUTCOME_UNDECIDED

from .simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("campaigns")
    with simulated_coordinator(folder, catalogue_of_many(folder / "catalogue")) as running:
        yield Backend(folder, running)


def get(backend: Backend, campaign_id: str) -> Campaign:
    campaign: Campaign = backend.call("Campaign", "GetCampaign", campaigns_pb2.GetCampaignRequest(id=campaign_id))
    return campaign


def report(backend: Backend, campaign_id: str, form: str) -> tuple[str, bytes]:
    wanted = CampaignReportFormat.Value(f"CAMPAIGN_REPORT_FORMAT_{form}")
    request = campaigns_pb2.GetCampaignReportRequest(id=campaign_id, format=wanted)
    pieces = backend.call("Campaign", "GetCampaignReport", request)
    return pieces[0].media_type, b"".join(piece.chunk for piece in pieces)


def test_a_campaign_from_its_beginning_to_its_end(backend: Backend) -> None:
    gate = {"worstConclusion": "CONCLUSION_REMOVED"}
    campaign = backend.create("whole", spec_of([*EDITED[:2], "small/again"], ["hourglass", "circle"], gate=gate))
    assert (campaign.cells_total, campaign.spec.window, campaign.spec.sequential) == (6, 64, True)
    events = backend.watch(campaign.id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert backend.watch(campaign.id, after=events[-3].sequence) == events[-2:]
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states == [1, 2, CAMPAIGN_STATE_SUCCEEDED]
    of_cells = [event.cell_changed for event in events if event.HasField("cell_changed")]
    for index in range(6):
        assert [cell.state for cell in of_cells if cell.index == index] == [CELL_STATE_RUNNING, CELL_STATE_SUCCEEDED]
    cells = backend.cells(campaign.id)
    names = [(cell.subject, cell.concept) for cell in cells]
    assert names == [(s, c) for s in (*EDITED[:2], "small/again") for c in ("hourglass", "circle")]
    assert {cell.state for cell in cells} == {CELL_STATE_SUCCEEDED}
    assert all(cell.verdict.statement and not cell.verdict.evaluations for cell in cells)
    ended = get(backend, campaign.id)
    assert (ended.cells.succeeded, ended.cells.pending, ended.cells.running) == (6, 0, 0)
    assert sum(each.cells for each in ended.conclusions) == 6
    assert ended.gate_result.failed + ended.gate_result.undecided == 6
    media_type, content = report(backend, campaign.id, "JSON")
    whole = json.loads(content)
    assert media_type == "application/json"
    assert [cell.get("subject") for cell in whole["content"]["cells"]] == [cell.subject for cell in cells]
    assert whole["audits"] == [cell.audit for cell in cells]
    assert report(backend, campaign.id, "HTML")[1].startswith(b"<!doctype html>")
    table = pq.read_table(io.BytesIO(report(backend, campaign.id, "CELLS_PARQUET")[1]))
    assert set(table.column("cell").to_pylist()) == set(range(6))
    observed = pq.read_table(io.BytesIO(report(backend, campaign.id, "OBSERVATIONS_PARQUET")[1]))
    assert set(observed.column("cell").to_pylist()) == set(range(6))
    assert report(backend, campaign.id, "CELLS_CSV")[1].count(b"\r\n") == len(table) + 1


def test_what_the_reference_and_controls_show_is_made_once(backend: Backend) -> None:
    before = len(begun(backend.folder))
    campaign = backend.create("once", spec_of(EDITED[:4], template=TEMPLATE | {"seedBase": 77}))
    backend.watch(campaign.id)
    roles = Counter(role for _, role, *_ in begun(backend.folder)[before:])
    assert roles["subject"] == 4 * roles["reference"] == 4 * roles["control"] > 0


def test_a_failed_cell_has_its_reason_and_is_retried_under_another_audit(backend: Backend) -> None:
    say(backend.folder, f"fail-{EDITED[1]}")
    campaign = backend.create("fails", spec_of(EDITED[:3], template=TEMPLATE | {"seedBase": 81}))
    events = backend.watch(campaign.id)
    cells = backend.cells(campaign.id)
    assert [cell.state for cell in cells] == [CELL_STATE_SUCCEEDED, CELL_STATE_FAILED, CELL_STATE_SUCCEEDED]
    assert (cells[1].error_reason, cells[1].attempts) == ("MODEL_INCOMPLETE", 1)
    assert "the unet is not there" in cells[1].error_message
    ended = get(backend, campaign.id)
    assert (ended.state, ended.cells.failed) == (CAMPAIGN_STATE_SUCCEEDED, 1)
    failed = json.loads(report(backend, campaign.id, "JSON")[1])["content"]["cells"][1]
    assert failed["error_reason"] == "MODEL_INCOMPLETE"
    unsay(backend.folder, f"fail-{EDITED[1]}")
    again = backend.call("Campaign", "RetryCampaign", campaigns_pb2.RetryCampaignRequest(id=campaign.id))
    assert (again.state, again.cells.pending + again.cells.running + again.cells.succeeded) == (2, 3)
    later = backend.watch(campaign.id, after=events[-1].sequence)
    assert [event.sequence for event in later] == list(range(len(events) + 1, len(events) + len(later) + 1))
    after = backend.cells(campaign.id)
    assert {cell.state for cell in after} == {CELL_STATE_SUCCEEDED}
    assert [cell.attempts for cell in after] == [1, 2, 1]
    assert (after[0], after[2]) == (cells[0], cells[2])
    assert after[1].audit not in ("", cells[1].audit)
    assert len(backend.call("Audit", "ListAudits", listed(campaign.id)).audits) == 4
    assert not json.loads(report(backend, campaign.id, "JSON")[1])["content"]["cells"][1]["error_reason"]
    # Nothing is left to be done.
    same = backend.call("Campaign", "RetryCampaign", campaigns_pb2.RetryCampaignRequest(id=campaign.id))
    assert same == get(backend, campaign.id)
    assert same.state == CAMPAIGN_STATE_SUCCEEDED


def listed(campaign_id: str) -> audits_pb2.ListAuditsRequest:
    return audits_pb2.ListAuditsRequest(filter=f'campaign = "{campaign_id}"', view="AUDIT_VIEW_FULL")


def test_a_window_of_audits_exists_and_a_cancelled_campaign_takes_its_audits_along(backend: Backend) -> None:
    say(backend.folder, "hold-all")
    try:
        campaign = backend.create("cancelled", spec_of(EDITED, window=2, template=TEMPLATE | {"seedBase": 91}))
        until(lambda: get(backend, campaign.id).cells.running == 2)
        waiting = backend.cells(campaign.id)
        assert [cell.state for cell in waiting] == [CELL_STATE_RUNNING] * 2 + [CELL_STATE_PENDING] * 4
        audits = backend.call("Audit", "ListAudits", listed(campaign.id)).audits
        assert {audit.id for audit in audits} == {cell.audit for cell in waiting[:2]}
        refused = {
            "DeleteCampaign": campaigns_pb2.DeleteCampaignRequest(id=campaign.id),
            "GetCampaignReport": campaigns_pb2.GetCampaignReportRequest(id=campaign.id),
            "EvaluateGate": campaigns_pb2.EvaluateGateRequest(id=campaign.id),
        }
        for method, request in refused.items():
            with pytest.raises(grpc.RpcError) as early:
                backend.call("Campaign", method, request)
            assert early.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert details_of(early.value)[0] == "CAMPAIGN_NOT_ENDED"
        cancel = campaigns_pb2.CancelCampaignRequest(id=campaign.id)
        cancelled = backend.call("Campaign", "CancelCampaign", cancel)
        assert (cancelled.state, cancelled.cells.cancelled) == (CAMPAIGN_STATE_CANCELLED, 6)
        assert {audit.state for audit in backend.call("Audit", "ListAudits", listed(campaign.id)).audits} == {5}
        assert {cell.state for cell in backend.cells(campaign.id)} == {CELL_STATE_CANCELLED}
        assert backend.call("Campaign", "CancelCampaign", cancel) == cancelled
        events = backend.watch(campaign.id)
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        assert events[-1].state_changed.state == CAMPAIGN_STATE_CANCELLED
    finally:
        unsay(backend.folder, "hold-all")
    assert [cell["state"] for cell in json.loads(report(backend, campaign.id, "JSON")[1])["content"]["cells"]] == [
        "CELL_STATE_CANCELLED"
    ] * 6
    backend.call("Campaign", "RetryCampaign", campaigns_pb2.RetryCampaignRequest(id=campaign.id))
    backend.watch(campaign.id, after=events[-1].sequence)
    assert {cell.state for cell in backend.cells(campaign.id)} == {CELL_STATE_SUCCEEDED}


def test_two_campaigns_are_compared_and_the_second_takes_the_seeds_of_the_first(backend: Backend) -> None:
    first = backend.create("first", spec_of(EDITED[:2]))
    backend.watch(first.id)
    seed = get(backend, first.id).spec.template.seed_base
    # `small/reference` shows the concept in every picture; an edited model shows it in none.
    gate = {"noWorseThan": first.id}
    spec = spec_of([EDITED[0], EDITED[3]], comparedWith=first.id, gate=gate)
    second = backend.create("second", spec)
    # Its owner knows the seeds already.
    assert second.spec.template.seed_base == seed
    backend.watch(second.id)
    assert get(backend, second.id).gate_result.outcome == GATE_OUTCOME_UNDECIDED
    pair = comparisons_pb2.CampaignPair(first=first.id, second=second.id)
    parts = backend.call("Campaign", "Compare", comparisons_pb2.CompareRequest(campaigns=pair))
    assert [part.WhichOneof("part") for part in parts] == ["cell", "cell", "campaigns"]
    same, new, whole = parts[0].cell, parts[1].cell, parts[2].campaigns
    assert (same.subject, same.problem, same.replaced) == (EDITED[0], "", False)
    assert all(each.difference.value == 0 for each in same.audits.evaluations)
    assert (new.subject, new.problem) == (EDITED[3], "the first campaign has no such cell")
    assert list(whole.only_in_second) == [f"{EDITED[3]} x hourglass"]
    assert list(whole.only_in_first) == [f"{EDITED[1]} x hourglass"]
    told = json.loads(report(backend, second.id, "JSON")[1])
    assert (told["comparison"]["first_campaign"], told["comparison"]["compared"]) == (first.id, 1)
    audits = [cell.audit for cell in backend.cells(first.id)]
    two = comparisons_pb2.AuditPair(first=audits[0], second=audits[1])
    (answer,) = backend.call("Campaign", "Compare", comparisons_pb2.CompareRequest(audits=two))
    assert (answer.audits.first_subject, answer.audits.second_subject) == (EDITED[0], EDITED[1])
    assert not answer.audits.incomparable


def test_a_gate_can_be_another_than_the_campaigns_own(backend: Backend) -> None:
    campaign = backend.create("gates", spec_of(EDITED[:1]))
    backend.watch(campaign.id)
    request = campaigns_pb2.EvaluateGateRequest(id=campaign.id)
    with pytest.raises(grpc.RpcError) as none:
        backend.call("Campaign", "EvaluateGate", request)
    assert details_of(none.value)[0] == "GATE_MISSING"
    request.gate.excess = 0.01
    held = backend.call("Campaign", "EvaluateGate", request)
    assert held.outcome in (GATE_OUTCOME_UNDECIDED, GATE_OUTCOME_FAIL)
    request.gate.concepts.append("circle")
    with pytest.raises(grpc.RpcError) as bad:
        backend.call("Campaign", "EvaluateGate", request)
    assert list(details_of(bad.value)[1]) == ["gate.concepts[0]"]


def test_two_runs_of_one_campaign_have_the_same_content(backend: Backend) -> None:
    def content(request_id: str) -> CampaignReportContent:
        spec = spec_of(EDITED[:3], ["hourglass", "circle"], template=TEMPLATE | {"seedBase": 7}, gate={"excess": 0.2})
        campaign = backend.create(request_id, spec)
        backend.watch(campaign.id)
        whole = json_format.Parse(report(backend, campaign.id, "JSON")[1], CampaignReport())
        assert [cell.content_digest for cell in backend.cells(campaign.id)] == [
            cell.content_digest for cell in whole.content.cells
        ]
        return whole.content

    assert content("one").SerializeToString(deterministic=True) == content("two").SerializeToString(deterministic=True)


def test_a_deleted_campaign_is_gone_with_its_audits(backend: Backend) -> None:
    spec = spec_of(EDITED[:2])
    campaign = backend.create("deleted", spec)
    backend.watch(campaign.id)
    audits = [cell.audit for cell in backend.cells(campaign.id)]
    report(backend, campaign.id, "HTML")
    backend.call("Campaign", "DeleteCampaign", campaigns_pb2.DeleteCampaignRequest(id=campaign.id))
    with pytest.raises(grpc.RpcError) as gone:
        get(backend, campaign.id)
    assert (gone.value.code(), details_of(gone.value)[0]) == (grpc.StatusCode.NOT_FOUND, "CAMPAIGN_NOT_FOUND")
    for audit in audits:
        with pytest.raises(grpc.RpcError) as no_audit:
            backend.call("Audit", "GetAudit", audits_pb2.GetAuditRequest(id=audit))
        assert no_audit.value.code() == grpc.StatusCode.NOT_FOUND
    # The request id is free again.
    assert backend.create("deleted", spec).id != campaign.id


def test_lists_are_filtered_and_paged(backend: Backend) -> None:
    for number, team in enumerate(("a", "b", "a")):
        campaign = backend.create(f"list-{number}", spec_of(EDITED[:2]), labels={"list": team})
        backend.watch(campaign.id)
    request = campaigns_pb2.ListCampaignsRequest(filter='labels.list = "a" AND state = SUCCEEDED', page_size=1)
    first = backend.call("Campaign", "ListCampaigns", request)
    request.page_token = first.next_page_token
    second = backend.call("Campaign", "ListCampaigns", request)
    assert [one.request_id for page in (first, second) for one in page.campaigns] == ["list-2", "list-0"]
    assert second.next_page_token == ""
    assert not first.campaigns[0].spec.subjects
    assert first.campaigns[0].labels == {"list": "a"}
    cells = campaigns_pb2.ListCellsRequest(id=campaign.id, filter=f'subject = "{EDITED[1]}" AND state = SUCCEEDED')
    (cell,) = backend.call("Campaign", "ListCells", cells).cells
    assert cell.index == 1
