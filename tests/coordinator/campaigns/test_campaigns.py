"""The life of a campaign, seen by its owner."""

from collections.abc import Iterator

import pytest

from support.simulated import simulated_coordinator
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_SUCCEEDED,
    CELL_STATE_SUCCEEDED,
    GetCampaignRequest,
)

from .simulation import EDITED, Backend, catalogue_of_many, spec_of


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("campaigns")
    with simulated_coordinator(folder, catalogue_of_many(folder / "catalogue")) as running:
        yield Backend(folder, running)


def test_a_campaign_from_its_beginning_to_its_end(backend: Backend) -> None:
    campaign = backend.create("whole", spec_of(EDITED[:3], ["hourglass", "yeti"]))
    assert campaign.cells_total == 6
    events = backend.watch(campaign.id)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    ended = backend.call("Campaign", "GetCampaign", GetCampaignRequest(id=campaign.id))
    assert ended.state == CAMPAIGN_STATE_SUCCEEDED
    cells = backend.cells(campaign.id)
    assert [cell.state for cell in cells] == [CELL_STATE_SUCCEEDED] * 6, cells
