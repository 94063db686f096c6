"""Webhooks that wait for an end, and those that are due: what has to be sent is written with the end itself.

So nothing is lost between an end and its webhook, and nothing is sent for an end that was not committed. A coordinator
claims a webhook for the time of one attempt; if it ends in the middle, another one tries again once the claim runs out.
"""

import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.audits_pb2 import Audit, AuditState
from unerase.v1.campaigns_pb2 import Campaign, CampaignState
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.coordinator.storage.engine import Engine, Within, nothing_more
from unerase_backend.coordinator.storage.tables import campaigns, webhooks

AUDIT = "audit"
CAMPAIGN = "campaign"
_NANOSECONDS = 10**9


class WebhookState(IntEnum):
    """How far a webhook is."""

    WAITING = 0
    """For the end of what it is about."""
    DUE = 1
    DELIVERED = 2
    GIVEN_UP = 3


@dataclass(frozen=True)
class DueWebhook:
    """A webhook that was claimed for one attempt."""

    id: str
    """The same with every attempt."""
    kind: str
    about: str
    tenant: str
    url: str
    body: bytes
    attempt: int
    """From 1."""


async def expect(connection: AsyncConnection, kind: str, about: str, tenant: str, url: str) -> None:
    """Note a webhook for the end of an audit or campaign, within the transaction that creates it."""
    row = {"id": f"msg_{uuid.uuid4().hex}", "kind": kind, "about": about, "tenant": tenant, "url": url}
    await connection.execute(sa.insert(webhooks).values(**row, state=WebhookState.WAITING, changed=time.time_ns()))


async def tell_again(connection: AsyncConnection, kind: str, about: str) -> None:
    """Note the webhook of a campaign for its next end, within the transaction that lets it run again."""
    which = webhooks.c.kind == kind, webhooks.c.about == about
    last = sa.select(webhooks.c.tenant, webhooks.c.url).where(*which).order_by(webhooks.c.changed.desc()).limit(1)
    row = (await connection.execute(last)).first()
    if row is not None:
        await expect(connection, kind, about, row.tenant, row.url)


async def ended(connection: AsyncConnection, kind: str, about: str, body: Callable[[], bytes]) -> None:
    """Make the webhook of an audit or campaign due, if there is one, within the transaction that ends it."""
    waiting = sa.and_(webhooks.c.kind == kind, webhooks.c.about == about, webhooks.c.state == WebhookState.WAITING)
    if (await connection.execute(sa.select(webhooks.c.id).where(waiting))).first() is not None:
        now = time.time_ns()
        due = {"state": WebhookState.DUE, "due": now, "changed": now, "body": body()}
        await connection.execute(sa.update(webhooks).where(waiting).values(**due))


class Webhooks:
    """The webhooks of all tenants, for what delivers them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def telling(self, kind: str, tenant: str, url: str) -> Callable[[str], Within]:
        """Return what notes a webhook for an id; with an empty URL it notes none."""

        def within(about: str) -> Within:
            return partial(expect, kind=kind, about=about, tenant=tenant, url=url) if url else nothing_more

        return within

    async def due(self, now: int, per_tenant: int) -> list[tuple[str, str]]:
        """Return ids and tenants of webhooks that are due, in nanoseconds since 1970: the earliest few of each."""
        rank = sa.func.row_number().over(partition_by=webhooks.c.tenant, order_by=(webhooks.c.due, webhooks.c.id))
        ranked = (
            sa.select(webhooks.c.id, webhooks.c.tenant, webhooks.c.due, rank.label("place"))
            .where(webhooks.c.state == WebhookState.DUE, webhooks.c.due <= now)
            .subquery()
        )
        query = sa.select(ranked.c.id, ranked.c.tenant).where(ranked.c.place <= per_tenant).order_by(ranked.c.due)
        async with self._engine.connect() as connection:
            return [(row.id, row.tenant) for row in await connection.execute(query)]

    async def claim(self, webhook_id: str, now: int, until: int) -> DueWebhook | None:
        """Claim a webhook for one attempt; None if another coordinator did, or if it is no longer due."""
        statement = (
            sa.update(webhooks)
            .where(webhooks.c.id == webhook_id, webhooks.c.state == WebhookState.DUE, webhooks.c.due <= now)
            .values(due=until, attempts=webhooks.c.attempts + 1)
            .returning(*webhooks.c)
        )
        async with self._engine.begin() as connection:
            row = (await connection.execute(statement)).first()
        if row is None:
            return None
        return DueWebhook(row.id, row.kind, row.about, row.tenant, row.url, row.body, row.attempts)

    async def again(self, webhook: DueWebhook, due: int) -> None:
        """Try a webhook again later, unless another attempt has begun."""
        mine = sa.and_(webhooks.c.id == webhook.id, webhooks.c.attempts == webhook.attempt)
        statement = sa.update(webhooks).where(mine, webhooks.c.state == WebhookState.DUE)
        async with self._engine.begin() as connection:
            await connection.execute(statement.values(due=due))

    async def settle(self, webhook: DueWebhook, state: WebhookState) -> None:
        """End a webhook; its body is not kept, and its URL only for a campaign that may run again."""
        values: dict[str, Any] = {"state": state, "changed": time.time_ns(), "body": None}
        if webhook.kind == AUDIT:
            values["url"] = ""
        async with self._engine.begin() as connection:
            await connection.execute(sa.update(webhooks).where(webhooks.c.id == webhook.id).values(**values))

    async def forget(self, before: int) -> None:
        """Remove the records of webhooks that were settled before a time, in nanoseconds since 1970.

        Those of a campaign stay as long as the campaign, which may run again.
        """
        settled = webhooks.c.state.in_((WebhookState.DELIVERED, WebhookState.GIVEN_UP))
        gone = sa.or_(webhooks.c.kind == AUDIT, webhooks.c.about.not_in(sa.select(campaigns.c.id)))
        async with self._engine.begin() as connection:
            await connection.execute(sa.delete(webhooks).where(settled, webhooks.c.changed < before, gone))

    async def states(self, kind: str, about: Collection[str]) -> dict[str, WebhookState]:
        """Return how far the webhooks of audits or campaigns are, by their ids."""
        query = sa.select(webhooks.c.about, webhooks.c.state).where(
            webhooks.c.kind == kind, webhooks.c.about.in_(about)
        )
        async with self._engine.connect() as connection:
            return {row.about: WebhookState(row.state) for row in await connection.execute(query)}


def audit_body(audit: Audit) -> bytes:
    """Return what a webhook says of an audit that has ended."""
    return _body(
        "audit.ended",
        audit.end_time.ToJsonString(),
        {
            "id": audit.id,
            "request_id": audit.request_id,
            "state": AuditState.Name(audit.state).removeprefix("AUDIT_STATE_"),
            "subject": audit.spec.subject,
            "concept": audit.spec.concept,
            "conclusion": _conclusion(audit),
            "error_reason": audit.error_reason,
            "create_time": audit.create_time.ToJsonString(),
            "end_time": audit.end_time.ToJsonString(),
            "labels": dict(audit.labels),
        },
    )


def campaign_body(campaign: Campaign) -> bytes:
    """Return what a webhook says of a campaign that has ended."""
    outcome = campaign.gate_result.outcome
    cells = campaign.cells
    return _body(
        "campaign.ended",
        campaign.end_time.ToJsonString(),
        {
            "id": campaign.id,
            "request_id": campaign.request_id,
            "state": CampaignState.Name(campaign.state).removeprefix("CAMPAIGN_STATE_"),
            "cells_total": campaign.cells_total,
            "cells": {"succeeded": cells.succeeded, "failed": cells.failed, "cancelled": cells.cancelled},
            "conclusions": {_name(each.conclusion): each.cells for each in campaign.conclusions},
            "gate": GateOutcome.Name(outcome).removeprefix("GATE_OUTCOME_") if outcome else "",
            "error_reason": campaign.error_reason,
            "create_time": campaign.create_time.ToJsonString(),
            "end_time": campaign.end_time.ToJsonString(),
            "labels": dict(campaign.labels),
        },
    )


def _body(kind: str, time: str, content: Mapping[str, object]) -> bytes:
    return json.dumps({"type": kind, "timestamp": time, "data": content}, sort_keys=True).encode()


def _conclusion(audit: Audit) -> str:
    return _name(audit.verdict.conclusion) if audit.verdict.conclusion else ""


def _name(conclusion: Conclusion.ValueType) -> str:
    return Conclusion.Name(conclusion).removeprefix("CONCLUSION_")
