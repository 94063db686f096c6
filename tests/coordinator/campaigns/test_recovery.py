"""Campaigns whose coordinators are killed: every cell once, and the same content as if nothing had happened."""

from collections import Counter
from pathlib import Path

import pytest
from google.protobuf import json_format

from support.postgres import Postgres
from support.simulated import say, simulated_coordinator, start_simulated, unsay, until
from unerase.v1 import audits_pb2, campaigns_pb2
from unerase.v1.campaigns_pb2 import CELL_STATE_RUNNING, CELL_STATE_SUCCEEDED, CampaignReport, CampaignSpec

from .simulation import EDITED, TEMPLATE, Backend, catalogue_of_many, spec_of

# These start coordinators of their own.
pytestmark = pytest.mark.backends


def wanted() -> CampaignSpec:
    gate = {"worstConclusion": "CONCLUSION_AVOIDED", "undecided": 2}
    template = TEMPLATE | {"seedBase": 2**62 + 1}
    return spec_of(EDITED[:5], ["hourglass", "circle"], template=template, window=3, gate=gate)


def content(backend: Backend, campaign_id: str) -> bytes:
    """Return the deterministic bytes of a report's content, once every cell was seen to run and end once."""
    events = backend.watch(campaign_id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    changes = [event.cell_changed for event in events if event.HasField("cell_changed")]
    assert Counter((cell.index, cell.state) for cell in changes) == {
        (index, state): 1 for index in range(10) for state in (CELL_STATE_RUNNING, CELL_STATE_SUCCEEDED)
    }
    cells = backend.cells(campaign_id)
    assert {(cell.state, cell.attempts) for cell in cells} == {(CELL_STATE_SUCCEEDED, 1)}
    assert len({cell.audit for cell in cells}) == 10
    pieces = backend.call("Campaign", "GetCampaignReport", campaigns_pb2.GetCampaignReportRequest(id=campaign_id))
    whole = json_format.Parse(b"".join(piece.chunk for piece in pieces), CampaignReport())
    return whole.content.SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    with simulated_coordinator(folder, catalogue_of_many(folder / "catalogue")) as running:
        backend = Backend(folder, running)
        return content(backend, backend.create("whole", wanted()).id)


def test_a_coordinator_that_is_killed_and_restarted_goes_on(tmp_path: Path, undisturbed: bytes) -> None:
    catalogue = catalogue_of_many(tmp_path / "catalogue")
    say(tmp_path, "hold-all")
    running = start_simulated(tmp_path, catalogue)
    campaign = Backend(tmp_path, running).create("whole", wanted())
    held = "all"
    try:
        # The campaign is in the middle whenever its coordinator dies, once before its first cell has ended.
        for model in EDITED[1:4]:
            running.end()
            running = start_simulated(tmp_path, catalogue)
            say(tmp_path, f"hold-{model}")
            unsay(tmp_path, f"hold-{held}")
            held, last = model, 2 * EDITED.index(model) - 1
            backend = Backend(tmp_path, running)
            until(lambda b=backend, p=last: b.cells(campaign.id)[p].state == CELL_STATE_SUCCEEDED)
        running.end()
        running = start_simulated(tmp_path, catalogue)
        unsay(tmp_path, f"hold-{held}")
        assert content(Backend(tmp_path, running), campaign.id) == undisturbed
    finally:
        running.end()


def test_another_coordinator_takes_over(tmp_path: Path, undisturbed: bytes, postgres: Postgres) -> None:
    catalogue, database = catalogue_of_many(tmp_path / "catalogue"), postgres.new_database()
    say(tmp_path, f"hold-{EDITED[2]}")
    coordinators = [
        start_simulated(tmp_path, catalogue, state=str(tmp_path / name), database_url=database) for name in "ab"
    ]
    first, second = (Backend(tmp_path, each) for each in coordinators)
    try:
        campaign = first.create("whole", wanted())
        until(lambda: second.cells(campaign.id)[3].state == CELL_STATE_SUCCEEDED)
        coordinators[0].end()
        unsay(tmp_path, f"hold-{EDITED[2]}")
        assert content(second, campaign.id) == undisturbed
    finally:
        for each in coordinators:
            each.end()


def test_a_campaign_is_removed_after_the_retention_period_with_its_audits(tmp_path: Path) -> None:
    catalogue = catalogue_of_many(tmp_path / "catalogue")
    with simulated_coordinator(tmp_path, catalogue) as running:
        backend = Backend(tmp_path, running)
        campaign = backend.create("expires", spec_of(EDITED[:2]))
        backend.watch(campaign.id)
    # What has expired is looked for when a coordinator starts.
    with simulated_coordinator(tmp_path, catalogue, retention_days=1e-9) as running:
        backend = Backend(tmp_path, running)
        campaigns, audits = campaigns_pb2.ListCampaignsRequest(), audits_pb2.ListAuditsRequest()
        until(lambda: not backend.call("Campaign", "ListCampaigns", campaigns).campaigns)
        until(lambda: not backend.call("Audit", "ListAudits", audits).audits)
