"""The life of a campaign, seen by its owner."""

import io
import json
from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from support.simulated import begun, simulated_coordinator
from unerase.v1 import campaigns_pb2
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_SUCCEEDED,
    CELL_STATE_RUNNING,
    CELL_STATE_SUCCEEDED,
    Campaign,
    CampaignReportFormat,
)

from .simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of

BAD = "bad/model"


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
