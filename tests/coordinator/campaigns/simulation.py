"""Campaigns against real coordinators whose rooms are simulated."""

from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from support.coordinators import Coordinator
from support.small_files import write_weights
from unerase.v1.audits_pb2_grpc import AuditServiceStub
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignEvent,
    CampaignSpec,
    Cell,
    CreateCampaignRequest,
    ListCellsRequest,
    WatchCampaignRequest,
)
from unerase.v1.campaigns_pb2_grpc import CampaignServiceStub

from ..conftest import CATALOGUE, write_catalogue

EDITED = [f"edited/{number}" for number in range(6)]
TEMPLATE: dict[str, Any] = {
    "cases": 4,
    "steps": 3,
    "battery": {"evaluations": [{"name": "standard-prompt"}], "allowIncomplete": True},
}


def catalogue_of_many(folder: Path) -> Path:
    """Write a catalogue with six edited models and two concepts that they can be audited for."""
    folder.mkdir(parents=True, exist_ok=True)
    models = "".join(
        f"  {name}: {{base: small/reference, unet: {name.replace('/', '-')}.safetensors, erased: [hourglass]}}\n"
        for name in EDITED
    )
    for name in EDITED:
        write_weights(folder / f"{name.replace('/', '-')}.safetensors", name)
    return write_catalogue(folder, content=CATALOGUE.replace("judges:\n", f"{models}judges:\n"))


def spec_of(subjects: list[str], concepts: list[str] | None = None, **more: Any) -> CampaignSpec:
    """Return the request for a small campaign."""
    whole = {"subjects": subjects, "concepts": concepts or ["hourglass"], "template": TEMPLATE, **more}
    return json_format.ParseDict(whole, CampaignSpec())


class Backend:
    """A coordinator's services, as a caller with `token` reaches them."""

    def __init__(self, folder: Path, running: Coordinator, token: str = "") -> None:
        self.folder = folder
        self.running = running
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.channel = grpc.insecure_channel(running.address, options=[("grpc.enable_http_proxy", 0)])
        self._stubs = {"Campaign": CampaignServiceStub(self.channel), "Audit": AuditServiceStub(self.channel)}

    def call(self, service: str, method: str, request: Any) -> Any:
        """Call a method of `service`, "Campaign" or "Audit"; a list for a stream."""
        answer: Any = getattr(self._stubs[service], method)(request, timeout=120, metadata=self.metadata)
        return list(answer) if isinstance(answer, grpc.Call) and hasattr(answer, "__next__") else answer

    def create(self, request_id: str, spec: CampaignSpec, **more: Any) -> Campaign:
        """Create a campaign."""
        request = CreateCampaignRequest(request_id=request_id, spec=spec, **more)
        campaign: Campaign = self.call("Campaign", "CreateCampaign", request)
        return campaign

    def watch(self, campaign_id: str, after: int = 0) -> list[CampaignEvent]:
        """Return the events until the campaign ends."""
        request = WatchCampaignRequest(id=campaign_id, after_sequence=after)
        events: list[CampaignEvent] = self.call("Campaign", "WatchCampaign", request)
        return events

    def cells(self, campaign_id: str) -> list[Cell]:
        """Return all cells, in pages of three."""
        found: list[Cell] = []
        token = ""
        while True:
            request = ListCellsRequest(id=campaign_id, page_size=3, page_token=token)
            page = self.call("Campaign", "ListCells", request)
            found += page.cells
            token = page.next_page_token
            if not token:
                return found
