"""A campaign in a storm: every cell once, and the content of its report as if nothing had happened."""

import json
import uuid

from google.protobuf import json_format

from chaos.insistence import SETTINGS, insist
from unerase import Client
from unerase.v1.campaigns_pb2 import CAMPAIGN_STATE_SUCCEEDED, CELL_STATE_SUCCEEDED, CampaignEvent, CampaignSpec


def campaign_spec() -> CampaignSpec:
    """Return a campaign of four cells that last some seconds each, two of them at a time."""
    whole = {
        "subjects": ["testbed/uce", "testbed/redirected"],
        "concepts": ["hourglass", "cross"],
        "window": 2,
        "template": {
            "cases": 4,
            "steps": 4,
            "seedBase": 9,
            "battery": {"evaluations": [{"name": "standard-prompt"}], "allowIncomplete": True},
        },
    }
    return json_format.ParseDict(whole, CampaignSpec())


def calm_campaign(address: str) -> bytes:
    """Run the campaign undisturbed and return the content of its report."""
    return content_of(address, follow_campaign(address)[0])


def follow_campaign(address: str) -> tuple[str, list[CampaignEvent]]:
    """Ask for the campaign and watch it to its end; the client itself refuses a gap between events."""
    request_id = uuid.uuid4().hex
    with Client(address, settings=SETTINGS) as client:
        campaign_id = insist(lambda: client.create_campaign(campaign_spec(), request_id=request_id).id)
        return campaign_id, list(client.watch_campaign(campaign_id))


def lost_of(address: str, campaign_id: str, events: list[CampaignEvent]) -> str:
    """Return what the campaign lost or did twice; empty if nothing."""
    with Client(address, settings=SETTINGS) as client:
        campaign = insist(lambda: client.get_campaign(campaign_id))
        cells = insist(lambda: list(client.cells(campaign_id)))
    ended = [event.cell_changed.index for event in events if event.cell_changed.state == CELL_STATE_SUCCEEDED]
    whole = (
        campaign.state == CAMPAIGN_STATE_SUCCEEDED
        and all(cell.state == CELL_STATE_SUCCEEDED and cell.attempts == 1 for cell in cells)
        and sorted(ended) == [cell.index for cell in cells] == list(range(campaign.cells_total))
    )
    told = [f"{cell.index}: {cell.state}, {cell.attempts} attempts, {cell.error_message}" for cell in cells]
    return "" if whole else f"campaign in state {campaign.state}, cells ended {ended}: {'; '.join(told)}"


def content_of(address: str, campaign_id: str) -> bytes:
    """Return the part of a campaign's report that is the same in two runs of it."""
    with Client(address, settings=SETTINGS) as client:
        report = insist(lambda: client.campaign_report_json(campaign_id))
    return json.dumps(report["content"], sort_keys=True).encode()
