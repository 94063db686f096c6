"""The part of the scripted server that answers about campaigns, registered models and the server itself."""

# Methods have the names of the RPCs.
# ruff: noqa: N802

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty

from unerase.v1 import campaigns_pb2_grpc, server_pb2_grpc
from unerase.v1.audits_pb2 import GetReportResponse
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignEvent,
    CampaignReport,
    CampaignReportFormat,
    CampaignState,
    Cell,
    CellState,
    ListCampaignsResponse,
    ListCellsResponse,
)
from unerase.v1.comparisons_pb2 import AuditComparison, CampaignComparison, CellComparison, Change, CompareResponse
from unerase.v1.gates_pb2 import GateOutcome, GateResult
from unerase.v1.models_pb2 import Model, ModelRegistration, RegistrationState
from unerase.v1.server_pb2 import ServerInfo
from unerase.v1.verdicts_pb2 import Conclusion

if TYPE_CHECKING:
    from support.scripted_server import Script

CAMPAIGN_ID = "c1"
SUBJECTS, CONCEPTS = ("testbed/uce", "testbed/reference"), ("hourglass", "heart")
CELLS = [(subject, concept) for subject in SUBJECTS for concept in CONCEPTS]
CAMPAIGN_EVENTS = 2 + 2 * len(CELLS)
FORMS = {
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_HTML: (b"<!doctype html>" * 9, "text/html"),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_PARQUET: (b"PAR1" * 9, "application/vnd.apache.parquet"),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_CELLS_CSV: (b"cell,subject\n0,testbed/uce\n", "text/csv"),
    CampaignReportFormat.CAMPAIGN_REPORT_FORMAT_OBSERVATIONS_PARQUET: (b"PAR2" * 9, "application/vnd.apache.parquet"),
}


def cell(index: int, state: CellState.ValueType = CellState.CELL_STATE_SUCCEEDED) -> Cell:
    """A cell of the campaign; the last one fails in the end, the others are avoided or not erased."""
    subject, concept = CELLS[index]
    found = Cell(index=index, subject=subject, concept=concept, state=state, audit=f"a{index}", attempts=1)
    if state == CellState.CELL_STATE_SUCCEEDED and index == len(CELLS) - 1:
        found.state = CellState.CELL_STATE_FAILED
        found.error_reason, found.error_message = "DATA_LOSS", "an artefact is damaged"
    elif state == CellState.CELL_STATE_SUCCEEDED:
        names = ("AVOIDED", "NOT_ERASED", "REMOVED")
        found.verdict.conclusion = Conclusion.Value(f"CONCLUSION_{names[index % 3]}")
        found.verdict.statement = f"{concept} is {names[index % 3].lower()}."
    return found


def ended_campaign() -> Campaign:
    """The campaign after its end."""
    campaign = Campaign(id=CAMPAIGN_ID, state=CampaignState.CAMPAIGN_STATE_SUCCEEDED, cells_total=len(CELLS))
    campaign.cells.succeeded, campaign.cells.failed = len(CELLS) - 1, 1
    campaign.spec.subjects.extend(SUBJECTS)
    campaign.spec.concepts.extend(CONCEPTS)
    for index in range(len(CELLS) - 1):
        campaign.conclusions.add(conclusion=cell(index).verdict.conclusion, cells=1)
    return campaign


def campaign_event(sequence: int) -> CampaignEvent:
    """An event of the campaign: running, each cell running and ended, the end."""
    if sequence == 1:
        running = Campaign(id=CAMPAIGN_ID, state=CampaignState.CAMPAIGN_STATE_RUNNING, cells_total=len(CELLS))
        running.cells.pending = len(CELLS)
        return CampaignEvent(sequence=1, state_changed=running)
    if sequence == CAMPAIGN_EVENTS:
        return CampaignEvent(sequence=sequence, state_changed=ended_campaign())
    index, ends = divmod(sequence - 2, 2)
    state = CellState.CELL_STATE_SUCCEEDED if ends else CellState.CELL_STATE_RUNNING
    return CampaignEvent(sequence=sequence, cell_changed=cell(index, state))


@dataclass
class CampaignScript:
    """What the server says of campaigns, of registered models and of itself."""

    ended: Campaign = field(default_factory=ended_campaign)
    after_cancel: CampaignState.ValueType = CampaignState.CAMPAIGN_STATE_CANCELLED
    after_retry: CampaignState.ValueType = CampaignState.CAMPAIGN_STATE_RUNNING
    cells: list[Cell] = field(default_factory=lambda: [cell(index) for index in range(len(CELLS))])
    campaigns: list[Campaign] = field(default_factory=lambda: [Campaign(id=f"c{index}") for index in range(5)])
    report: CampaignReport = field(
        default_factory=lambda: CampaignReport(schema_version="1.0", campaign_id=CAMPAIGN_ID)
    )
    gate: GateResult = field(default_factory=lambda: GateResult(outcome=GateOutcome.GATE_OUTCOME_PASS))
    audits_compared: AuditComparison = field(default_factory=AuditComparison)
    compared: list[CellComparison] = field(default_factory=list)
    whole: CampaignComparison = field(default_factory=CampaignComparison)
    # How often a registration is still being checked, and how it ends.
    checking: int = 2
    registered: ModelRegistration = field(
        default_factory=lambda: ModelRegistration(state=RegistrationState.REGISTRATION_STATE_REGISTERED)
    )
    info: ServerInfo | None = None


class Campaigns(campaigns_pb2_grpc.CampaignServiceServicer):
    """CampaignService."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def CreateCampaign(self, request, context):
        self._script.begin("CreateCampaign", request, context)
        campaign = Campaign(spec=request.spec, labels=request.labels, cells_total=len(CELLS))
        if request.validate_only:
            campaign.cost.CopyFrom(self._script.cost)
        else:
            campaign.id, campaign.request_id = CAMPAIGN_ID, request.request_id
        return campaign

    def GetCampaign(self, request, context):
        self._script.begin("GetCampaign", request, context)
        return self._script.campaign.ended

    def ListCampaigns(self, request, context):
        self._script.begin("ListCampaigns", request, context)
        page, token = _page(request, self._script.campaign.campaigns)
        return ListCampaignsResponse(campaigns=page, next_page_token=token)

    def ListCells(self, request, context):
        self._script.begin("ListCells", request, context)
        page, token = _page(request, self._script.campaign.cells)
        return ListCellsResponse(cells=page, next_page_token=token)

    def WatchCampaign(self, request, context):
        self._script.begin("WatchCampaign", request, context)
        script = self._script
        start, stop = request.after_sequence + 1, CAMPAIGN_EVENTS + 1
        breaks = script.breaks.pop(0) if script.breaks else None
        if breaks is not None:
            stop = min(stop, start + breaks)
        for sequence in range(max(1, start - script.repeated) + script.skipped, stop):
            yield campaign_event(sequence)
        if breaks is not None and script.after_break is not None:
            script.after_break(context)

    def CancelCampaign(self, request, context):
        self._script.begin("CancelCampaign", request, context)
        return Campaign(id=request.id, state=self._script.campaign.after_cancel)

    def RetryCampaign(self, request, context):
        self._script.begin("RetryCampaign", request, context)
        return Campaign(id=request.id, state=self._script.campaign.after_retry)

    def DeleteCampaign(self, request, context):
        self._script.begin("DeleteCampaign", request, context)
        return Empty()

    def GetCampaignReport(self, request, context):
        self._script.begin("GetCampaignReport", request, context)
        report = json_format.MessageToJson(self._script.campaign.report).encode()
        content, media_type = FORMS.get(request.format, (report, "application/json"))
        for at in range(0, len(content), 16):
            if at and self._script.report_breaks:
                self._script.report_breaks -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            first = {"media_type": media_type, "size_bytes": len(content)} if at == 0 else {}
            yield GetReportResponse(chunk=content[at : at + 16], **first)
            if self._script.truncate:
                return

    def Compare(self, request, context):
        self._script.begin("Compare", request, context)
        if request.HasField("audits"):
            if not self._script.truncate:
                yield CompareResponse(audits=self._script.campaign.audits_compared)
            return
        for each in self._script.campaign.compared:
            if not (request.campaigns.changed_only and each.audits.change == Change.CHANGE_SAME):
                yield CompareResponse(cell=each)
        if not self._script.truncate:
            yield CompareResponse(campaigns=self._script.campaign.whole)

    def EvaluateGate(self, request, context):
        self._script.begin("EvaluateGate", request, context)
        return self._script.campaign.gate


class Server(server_pb2_grpc.ServerServiceServicer):
    """ServerService; a backend without `info` is an older one, which has no such service."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def GetServerInfo(self, request, context):
        self._script.begin("GetServerInfo", request, context)
        if self._script.campaign.info is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        return self._script.campaign.info


def registration(script: Script, name: str, request_id: str = "") -> ModelRegistration:
    """Return how far a registration is: checked a few times, then ended."""
    if script.campaign.checking > 0:
        script.campaign.checking -= 1
        return ModelRegistration(name=name, request_id=request_id, state=RegistrationState.REGISTRATION_STATE_CHECKING)
    ended = ModelRegistration(name=name, request_id=request_id)
    ended.MergeFrom(script.campaign.registered)
    if ended.state == RegistrationState.REGISTRATION_STATE_REGISTERED:
        ended.model.MergeFrom(Model(name=name, registered=True, digest="d" * 64))
    return ended


def _page(request, items: Iterable) -> tuple[list, str]:
    """Return a page of two, and the token of the next."""
    found = list(items)
    first = int(request.page_token or 0)
    last = min(first + 2, len(found))
    return found[first:last], str(last) if last < len(found) else ""
