"""The messages of campaigns and cells, as their rows say."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.campaigns_pb2 import (
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_PENDING,
    CELL_STATE_RUNNING,
    CELL_STATE_SUCCEEDED,
    Campaign,
    CampaignDelayed,
    CampaignReportCell,
    CampaignSpec,
    Cell,
    CellCounts,
)
from unerase.v1.gates_pb2 import GateResult
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.audits import timestamp

_COUNTS = {
    CELL_STATE_PENDING: "pending",
    CELL_STATE_RUNNING: "running",
    CELL_STATE_SUCCEEDED: "succeeded",
    CELL_STATE_FAILED: "failed",
    CELL_STATE_CANCELLED: "cancelled",
}


async def read_campaign(connection: AsyncConnection, row: Any) -> Campaign:
    """Return the message of a campaign's row, with its names if the row has them."""
    return campaign_of(row, (await counted_cells(connection, [row.id]))[row.id])


async def counted_cells(connection: AsyncConnection, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Return for each campaign how many of its cells have which state and conclusion."""
    columns = tables.cells.c
    query = (
        sa.select(columns.campaign, columns.state, columns.conclusion, sa.func.count().label("cells"))
        .where(columns.campaign.in_(ids))
        .group_by(columns.campaign, columns.state, columns.conclusion)
        .order_by(columns.conclusion)
    )
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in await connection.execute(query) if ids else ():
        found[row.campaign].append(row)
    return found


def campaign_of(row: Any, counted: Sequence[Any]) -> Campaign:
    """Return the message of a campaign's row; `counted` are its cells by state and conclusion."""
    campaign = Campaign(
        id=row.id,
        request_id=row.asked_as or row.request_id,
        spec=whole_spec_of(row),
        state=row.state,
        cells_total=row.cells_total,
        cells=CellCounts(),
        create_time=timestamp(row.create_time),
        error_reason=row.error_reason,
        error_message=row.error_message,
    )
    if row.sealed:
        campaign.spec.template.ClearField("seed_base")
    for each in counted:
        name = _COUNTS[each.state]
        setattr(campaign.cells, name, getattr(campaign.cells, name) + each.cells)
        if each.conclusion:
            campaign.conclusions.add(conclusion=each.conclusion, cells=each.cells)
    if row.labels is not None:
        campaign.MergeFromString(row.labels)
    if row.end_time:
        campaign.end_time.CopyFrom(timestamp(row.end_time))
    if row.gate_result is not None:
        campaign.gate_result.CopyFrom(GateResult.FromString(row.gate_result))
    if row.delayed is not None:
        campaign.delayed.CopyFrom(CampaignDelayed.FromString(row.delayed))
    return campaign


def brief(campaign: Campaign) -> Campaign:
    """Leave out of a campaign what can be large: its subjects and concepts, and the findings of its gate."""
    campaign.spec.ClearField("subjects")
    campaign.spec.ClearField("concepts")
    if campaign.HasField("gate_result"):
        campaign.gate_result.ClearField("findings")
    return campaign


def cell_of(row: Any) -> Cell:
    """Return the message of a cell's row."""
    cell = Cell(
        index=row.position,
        subject=row.subject,
        concept=row.concept,
        state=row.state,
        audit=row.audit,
        attempts=row.attempts,
        error_reason=row.error_reason,
        error_message=row.error_message,
        content_digest=row.content_digest,
    )
    if row.end_time:
        cell.end_time.CopyFrom(timestamp(row.end_time))
    if row.verdict is not None:
        cell.verdict.ParseFromString(row.verdict)
    return cell


def whole_spec_of(row: Any) -> CampaignSpec:
    """Return the specification of a campaign's row, with its names if the row has them."""
    spec = CampaignSpec.FromString(row.spec)
    # A list reads the campaigns without their names.
    spec.MergeFromString(getattr(row, "names", b""))
    return spec


def report_cell_of(row: Any) -> CampaignReportCell:
    """Return a cell as a report has it, with the whole verdict if its audit is still there."""
    cell = CampaignReportCell(
        index=row.position,
        subject=row.subject,
        concept=row.concept,
        state=row.state,
        error_reason=row.error_reason,
        error_message=row.error_message,
        content_digest=row.content_digest,
    )
    if row.state == CELL_STATE_SUCCEEDED:
        cell.verdict.CopyFrom(Verdict.FromString(row.figures or row.verdict))
        cell.comparability_digest = row.comparability_digest or ""
        cell.subject_digest = row.subject_digest or ""
    return cell
