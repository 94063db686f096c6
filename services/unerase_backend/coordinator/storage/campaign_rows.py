"""The rows of a new campaign and its cells, and what a cell becomes once its audit has ended."""

import json
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.audits_pb2 import AUDIT_STATE_CANCELLED, AUDIT_STATE_FAILED, AUDIT_STATE_SUCCEEDED
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_PENDING,
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_PENDING,
    CELL_STATE_SUCCEEDED,
    Campaign,
    CampaignSpec,
    CellState,
)
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator.states import ACTIVE_CAMPAIGN
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.audits import Origin
from unerase_backend.coordinator.storage.quotas import RETRY_SECONDS
from unerase_backend.coordinator.storage.tables import deterministic, own
from unerase_backend.runtime.errors import ExhaustedError

MAX_ACTIVE = 100
"""The most campaigns of one tenant that have not ended."""
AUDIT_DELETED = "AUDIT_DELETED"
"""The reason of a cell whose audit was removed before it had ended."""

_INTO_CELLS = "INSERT INTO unerase_cells (campaign, position, subject, concept, state) "
_INSERT_CELLS = {
    "sqlite": sa.text(
        _INTO_CELLS + "SELECT :campaign, subject.key * :width + concept.key, subject.value, concept.value, :state "
        "FROM json_each(:subjects) AS subject CROSS JOIN json_each(:concepts) AS concept"
    ),
    "postgresql": sa.text(
        _INTO_CELLS + "SELECT CAST(:campaign AS varchar), (subject.place - 1) * CAST(:width AS integer) + concept.place"
        " - 1, subject.value, concept.value, CAST(:state AS integer) "
        "FROM json_array_elements_text(CAST(:subjects AS json)) WITH ORDINALITY AS subject (value, place) "
        "CROSS JOIN json_array_elements_text(CAST(:concepts AS json)) WITH ORDINALITY AS concept (value, place)"
    ),
}
_CELL_STATES: dict[int, CellState.ValueType] = {
    AUDIT_STATE_SUCCEEDED: CELL_STATE_SUCCEEDED,
    AUDIT_STATE_FAILED: CELL_STATE_FAILED,
    AUDIT_STATE_CANCELLED: CELL_STATE_CANCELLED,
}


async def check_active(connection: AsyncConnection, tenant: str) -> None:
    """Check that a tenant may have another campaign in flight.

    Raises:
        ExhaustedError: it has `MAX_ACTIVE` of them.
    """
    columns = tables.campaigns.c
    mine = columns.tenant == tenant, columns.state.in_(ACTIVE_CAMPAIGN)
    active = (await connection.execute(sa.select(sa.func.count()).where(*mine))).scalar_one()
    if active >= MAX_ACTIVE:
        raise ExhaustedError(
            f"{active} campaigns are in flight, the most that a tenant may have; wait for one to end, or cancel one",
            reason="CAMPAIGNS_FULL",
            metadata={"limit": str(MAX_ACTIVE), "used": str(active)},
            retry_after_seconds=RETRY_SECONDS,
        )


def row_of(campaign: Campaign, request_digest: str, origin: Origin) -> dict[str, Any]:
    """Return the row of a new campaign."""
    names = CampaignSpec(subjects=campaign.spec.subjects, concepts=campaign.spec.concepts)
    spec = CampaignSpec()
    spec.CopyFrom(campaign.spec)
    spec.ClearField("subjects")
    spec.ClearField("concepts")
    return {
        "id": campaign.id,
        "request_id": own(origin.tenant, campaign.request_id),
        "request_digest": request_digest,
        "tenant": origin.tenant,
        "asked_as": campaign.request_id,
        "spec": deterministic(spec),
        "names": deterministic(names),
        "labels": deterministic(Campaign(labels=campaign.labels)) if campaign.labels else None,
        "sealed": origin.sealed,
        "state": CAMPAIGN_STATE_PENDING,
        "cells_total": campaign.cells_total,
        "round": 0,
        "create_time": campaign.create_time.ToNanoseconds(),
        "traceparent": origin.traceparent,
    }


async def insert_cells(connection: AsyncConnection, campaign_id: str, spec: CampaignSpec) -> None:
    """Insert the cells of a campaign in their order: each subject with every concept.

    The database makes the rows from the names, because a statement with hundreds of thousands of parameters takes
    minutes.
    """
    given = {
        "campaign": campaign_id,
        "state": CELL_STATE_PENDING,
        "subjects": json.dumps(list(spec.subjects)),
        "concepts": json.dumps(list(spec.concepts)),
        "width": len(spec.concepts),
    }
    await connection.execute(_INSERT_CELLS[connection.dialect.name], given)


def outcome_of(row: Any) -> dict[str, Any]:
    """Return what a running cell becomes once its audit has ended."""
    if row.audit_state is None:
        message = "the cell's audit was removed before it had ended; run the cell again"
        ended = {"end_time": time.time_ns(), "error_reason": AUDIT_DELETED, "error_message": message}
        return {"state": CELL_STATE_FAILED, **ended}
    found = {
        "state": _CELL_STATES[row.audit_state],
        "end_time": row.audit_end,
        "error_reason": row.audit_reason,
        "error_message": row.audit_message,
    }
    if row.audit_state == AUDIT_STATE_SUCCEEDED:
        whole = Verdict.FromString(row.figures)
        told = Verdict(
            conclusion=whole.conclusion,
            statement=whole.statement,
            summary=whole.summary,
            damaged=whole.damaged,
            access=whole.access,
        )
        found |= {
            "verdict": deterministic(told),
            "conclusion": whole.conclusion,
            "content_digest": row.audit_content,
        }
    return found
