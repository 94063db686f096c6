"""Changes the states of campaigns and their cells, together with the events that are written in the same transaction.

Only this module changes them. A campaign's row decides: every write to a campaign in flight first locks that row, and
only if the campaign has not ended. So two coordinators may work on one campaign without harm: a cell begins once for
each attempt, and ends once. Sequence numbers have no gaps, because a transaction that fails takes none.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_CANCELLED,
    CAMPAIGN_STATE_FAILED,
    CAMPAIGN_STATE_PENDING,
    CAMPAIGN_STATE_RUNNING,
    CAMPAIGN_STATE_SUCCEEDED,
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_PENDING,
    CELL_STATE_RUNNING,
    Campaign,
    CampaignDelayed,
    CampaignEvent,
    CampaignState,
    Cell,
    CellState,
)
from unerase.v1.gates_pb2 import GateResult
from unerase_backend.coordinator.states import ACTIVE_CAMPAIGN, ENDED_CAMPAIGN, OPEN_CELL
from unerase_backend.coordinator.storage import tables, webhooks
from unerase_backend.coordinator.storage.artifact_collection import discard
from unerase_backend.coordinator.storage.audits import NOBODY, Origin
from unerase_backend.coordinator.storage.campaign_messages import brief, cell_of, read_campaign
from unerase_backend.coordinator.storage.campaign_rows import check_active, insert_cells, outcome_of, row_of
from unerase_backend.coordinator.storage.campaigns import ended_audits
from unerase_backend.coordinator.storage.engine import Engine, Within, alone, insert_all, nothing_more
from unerase_backend.coordinator.storage.tables import MAX_REASON, deterministic, storable
from unerase_backend.coordinator.storage.transitions import Transitions
from unerase_backend.coordinator.storage.write_retry import repeated


class CampaignEndedError(Exception):
    """The campaign has ended or was deleted, or the cell has begun elsewhere, so nothing more can be written to it."""


class CampaignTransitions:
    """Changes the states of campaigns and of their cells."""

    def __init__(self, engine: Engine, transitions: Transitions) -> None:
        self._engine = engine
        self._transitions = transitions

    @repeated
    async def insert(
        self, campaign: Campaign, request_digest: str, origin: Origin = NOBODY, within: Within = nothing_more
    ) -> bool:
        """Insert a campaign with its cells and its first event; False if the request id is taken.

        The origin's `sealed` says that the backend drew the seed base. `within` writes more in the same transaction.

        Raises:
            ExhaustedError: the tenant has too many campaigns in flight.
        """
        row = row_of(campaign, request_digest, origin)
        try:
            async with self._engine.begin() as connection:
                await alone(connection, f"tenant {origin.tenant}")
                same = sa.select(tables.campaigns.c.id).where(tables.campaigns.c.request_id == row["request_id"])
                if (await connection.execute(same)).first() is not None:
                    return False
                await check_active(connection, origin.tenant)
                await connection.execute(sa.insert(tables.campaigns).values(row))
                labels = [{"campaign": campaign.id, "key": key, "value": of} for key, of in campaign.labels.items()]
                await insert_all(connection, tables.campaign_labels, labels)
                await insert_cells(connection, campaign.id, campaign.spec)
                await within(connection)
                await self._tell_state(connection, campaign.id)
        except sa.exc.IntegrityError:
            return False
        return True

    @repeated
    async def start(self, campaign_id: str) -> bool:
        """Change a pending campaign to running; False if it is not pending."""
        async with self._engine.begin() as connection:
            if await self._lock(connection, campaign_id, (CAMPAIGN_STATE_PENDING,)) is None:
                return False
            return await self._change(connection, campaign_id, state=CAMPAIGN_STATE_RUNNING)

    async def begin_cell(self, connection: AsyncConnection, campaign_id: str, position: int, audit_id: str) -> None:
        """Let a pending cell run, within the transaction that inserts its audit.

        Raises:
            CampaignEndedError: the campaign has ended, or the cell is no longer pending.
        """
        locked = await self._lock(connection, campaign_id)
        begun = await self._change_cell(
            connection,
            campaign_id,
            position,
            CELL_STATE_PENDING,
            state=CELL_STATE_RUNNING,
            audit=audit_id,
            attempts=tables.cells.c.attempts + 1,
        )
        if locked is None or begun is None:
            raise CampaignEndedError(campaign_id)
        if locked.delayed is not None:
            await self._set(connection, campaign_id, delayed=None)
        await self._append(connection, campaign_id, [CampaignEvent(cell_changed=begun)])

    @repeated
    async def fail_cell(self, campaign_id: str, position: int, reason: str, message: str) -> bool:
        """End a pending cell for which no audit could begin; False if it is no longer pending."""
        async with self._engine.begin() as connection:
            if await self._lock(connection, campaign_id) is None:
                return False
            failed = await self._change_cell(
                connection,
                campaign_id,
                position,
                CELL_STATE_PENDING,
                state=CELL_STATE_FAILED,
                attempts=tables.cells.c.attempts + 1,
                end_time=time.time_ns(),
                error_reason=storable(reason)[:MAX_REASON],
                error_message=storable(message),
            )
            if failed is not None:
                await self._append(connection, campaign_id, [CampaignEvent(cell_changed=failed)])
            return failed is not None

    @repeated
    async def settle(self, campaign_id: str, limit: int = 64) -> list[Cell]:
        """End the running cells whose audits have ended, at most `limit`; return them."""
        async with self._engine.begin() as connection:
            if await self._lock(connection, campaign_id) is None:
                return []
            return await self._settle(connection, campaign_id, limit)

    @repeated
    async def delay(self, campaign_id: str, delayed: CampaignDelayed) -> bool:
        """Tell watchers what the campaign waits for, unless they were told before."""
        async with self._engine.begin() as connection:
            locked = await self._lock(connection, campaign_id)
            if locked is None:
                return False
            if locked.delayed is not None and CampaignDelayed.FromString(locked.delayed).reason == delayed.reason:
                return False
            await self._set(connection, campaign_id, delayed=deterministic(delayed))
            await self._append(connection, campaign_id, [CampaignEvent(delayed=delayed)])
        return True

    @repeated
    async def finish(
        self, campaign_id: str, gate: GateResult | None, content_digest: str, reports: Mapping[str, str]
    ) -> bool:
        """End a campaign whose cells have all ended; False if it has ended before, or a cell has not ended.

        `reports` are the artefacts of what belongs to its report, by name.
        """
        async with self._engine.begin() as connection:
            if await self._lock(connection, campaign_id, (CAMPAIGN_STATE_RUNNING,)) is None:
                return False
            mine = tables.cells.c.campaign == campaign_id, tables.cells.c.state.in_(OPEN_CELL)
            if (await connection.execute(sa.select(tables.cells.c.position).where(*mine).limit(1))).first():
                return False
            rows = [{"campaign": campaign_id, "form": form, "digest": digest} for form, digest in reports.items()]
            await insert_all(connection, tables.campaign_reports, rows)
            return await self._end(
                connection,
                campaign_id,
                CAMPAIGN_STATE_SUCCEEDED,
                gate_result=None if gate is None else deterministic(gate),
                content_digest=content_digest,
            )

    @repeated
    async def fail(self, campaign_id: str, reason: str, message: str) -> list[str] | None:
        """End a campaign with an error, and cancel what has not ended, as `cancel`."""
        told = {"error_reason": storable(reason)[:MAX_REASON], "error_message": storable(message)}
        return await self._stop(campaign_id, CAMPAIGN_STATE_FAILED, **told)

    @repeated
    async def cancel(self, campaign_id: str) -> list[str] | None:
        """Cancel a campaign with its audits, and return the audits that this cancelled.

        None if the campaign has ended before or does not exist. Cells that had not begun are cancelled without an event
        of their own.
        """
        return await self._stop(campaign_id, CAMPAIGN_STATE_CANCELLED)

    @repeated
    async def retry(self, campaign_id: str) -> int | None:
        """Let the failed and cancelled cells of a campaign that has ended wait for their turn again.

        Returns the campaign's new round; None if nothing is to be done. Each cell goes back without an event of its
        own.
        """
        columns = tables.cells.c
        again = columns.campaign == campaign_id, columns.state.in_((CELL_STATE_FAILED, CELL_STATE_CANCELLED))
        async with self._engine.begin() as connection:
            locked = await self._lock(connection, campaign_id, ENDED_CAMPAIGN)
            if locked is None:
                return None
            # The audit and the attempts stay, so that the next attempt has a number of its own.
            reset = {"state": CELL_STATE_PENDING, "error_reason": "", "error_message": "", "end_time": 0}
            changed = (await connection.execute(sa.update(tables.cells).where(*again).values(**reset))).rowcount
            if not changed and locked.state == CAMPAIGN_STATE_SUCCEEDED:
                return None
            await self._drop_reports(connection, campaign_id, locked.content_digest)
            await webhooks.tell_again(connection, webhooks.CAMPAIGN, campaign_id)
            await self._change(
                connection,
                campaign_id,
                state=CAMPAIGN_STATE_RUNNING,
                round=tables.campaigns.c.round + 1,
                end_time=0,
                gate_result=None,
                content_digest="",
                error_reason="",
                error_message="",
            )
            return int(locked.round) + 1

    @repeated
    async def keep_content(self, campaign_id: str, digest: str) -> None:
        """Note the artefact of a report's content that was made again, or that of a campaign that was cancelled."""
        columns = tables.campaigns.c
        which = columns.id == campaign_id, columns.state.in_(ENDED_CAMPAIGN)
        async with self._engine.begin() as connection:
            await connection.execute(sa.update(tables.campaigns).where(*which).values(content_digest=digest))

    @repeated
    async def keep_report(self, campaign_id: str, form: str, digest: str, content_digest: str) -> None:
        """Note the artefact of one form of a report, unless the campaign has other content meanwhile."""
        table = tables.campaign_reports
        async with self._engine.begin() as connection:
            locked = await self._lock(connection, campaign_id, ENDED_CAMPAIGN)
            if locked is None or locked.content_digest != content_digest:
                await discard(connection, {digest})
                return
            await connection.execute(sa.delete(table).where(table.c.campaign == campaign_id, table.c.form == form))
            await connection.execute(sa.insert(table).values(campaign=campaign_id, form=form, digest=digest))

    @repeated
    async def hide(self, campaign_id: str) -> bool:
        """Begin to delete a campaign that has ended: from now on nobody sees it. False if there is none."""
        columns = tables.campaigns.c
        which = columns.id == campaign_id, columns.state.in_(ENDED_CAMPAIGN), ~columns.deleted
        # Another campaign may have its request id.
        values = {"deleted": True, "request_id": f"deleted:{campaign_id}"}
        async with self._engine.begin() as connection:
            return bool((await connection.execute(sa.update(tables.campaigns).where(*which).values(**values))).rowcount)

    @repeated
    async def delete(self, campaign_id: str) -> None:
        """Delete a hidden campaign whose audits are gone, with all that belongs to it."""
        columns = tables.campaigns.c
        which = columns.id == campaign_id, columns.deleted
        async with self._engine.begin() as connection:
            row = (await connection.execute(sa.select(columns.content_digest).where(*which))).first()
            if row is not None:
                await self._drop_reports(connection, campaign_id, row.content_digest)
                await connection.execute(sa.delete(tables.campaigns).where(*which))

    async def _stop(self, campaign_id: str, state: CampaignState.ValueType, **values: Any) -> list[str] | None:
        columns = tables.cells.c
        async with self._engine.begin() as connection:
            if await self._lock(connection, campaign_id) is None:
                return None
            running = sa.select(columns.audit).where(
                columns.campaign == campaign_id, columns.state == CELL_STATE_RUNNING
            )
            audits = [row.audit for row in await connection.execute(running.order_by(columns.position))]
            stopped = [audit for audit in audits if await self._transitions.cancel_within(connection, audit)]
            # All of these audits have ended now, as this transaction sees them.
            await self._settle(connection, campaign_id, len(audits))
            pending = columns.campaign == campaign_id, columns.state == CELL_STATE_PENDING
            ended = {"state": CELL_STATE_CANCELLED, "end_time": time.time_ns()}
            await connection.execute(sa.update(tables.cells).where(*pending).values(**ended))
            await self._end(connection, campaign_id, state, **values)
        return stopped

    async def _settle(self, connection: AsyncConnection, campaign_id: str, limit: int) -> list[Cell]:
        settled = []
        for row in (await connection.execute(ended_audits(campaign_id).limit(limit))).all():
            found = outcome_of(row)
            cell = await self._change_cell(connection, campaign_id, row.position, CELL_STATE_RUNNING, **found)
            if cell is not None:
                settled.append(cell)
        await self._append(connection, campaign_id, [CampaignEvent(cell_changed=cell) for cell in settled])
        return settled

    async def _end(
        self, connection: AsyncConnection, campaign_id: str, state: CampaignState.ValueType, **values: Any
    ) -> bool:
        # From now on the seed base may be seen.
        return await self._change(
            connection, campaign_id, state=state, end_time=time.time_ns(), sealed=False, delayed=None, **values
        )

    async def _lock(
        self,
        connection: AsyncConnection,
        campaign_id: str,
        states: Sequence[CampaignState.ValueType] = ACTIVE_CAMPAIGN,
    ) -> Any:
        """Let no other transaction change the campaign, and return its row; None if it is not in one of `states`."""
        columns = tables.campaigns.c
        statement = (
            sa.update(tables.campaigns)
            .where(columns.id == campaign_id, columns.state.in_(states), ~columns.deleted)
            .values(last_sequence=columns.last_sequence)
        )
        returned = columns.state, columns.round, columns.delayed, columns.content_digest
        return (await connection.execute(statement.returning(*returned))).first()

    async def _change(self, connection: AsyncConnection, campaign_id: str, **values: Any) -> bool:
        """Change a campaign that is locked, and append an event with the changed campaign."""
        await self._set(connection, campaign_id, **values)
        await self._tell_state(connection, campaign_id)
        return True

    async def _set(self, connection: AsyncConnection, campaign_id: str, **values: Any) -> None:
        statement = sa.update(tables.campaigns).where(tables.campaigns.c.id == campaign_id)
        await connection.execute(statement.values(**values))

    async def _change_cell(
        self,
        connection: AsyncConnection,
        campaign_id: str,
        position: int,
        before: CellState.ValueType,
        **values: Any,
    ) -> Cell | None:
        """Change a cell of a locked campaign, and return it; None if it is not in the state `before`."""
        columns = tables.cells.c
        statement = (
            sa.update(tables.cells)
            .where(columns.campaign == campaign_id, columns.position == position, columns.state == before)
            .values(**values)
        )
        row = (await connection.execute(statement.returning(*columns))).first()
        return cell_of(row) if row else None

    async def _tell_state(self, connection: AsyncConnection, campaign_id: str) -> None:
        query = sa.select(tables.campaigns).where(tables.campaigns.c.id == campaign_id)
        row = (await connection.execute(query)).one()
        changed = brief(await read_campaign(connection, row))
        if changed.state in ENDED_CAMPAIGN:
            await webhooks.ended(connection, webhooks.CAMPAIGN, campaign_id, partial(webhooks.campaign_body, changed))
        await self._append(connection, campaign_id, [CampaignEvent(state_changed=changed)])

    async def _append(self, connection: AsyncConnection, campaign_id: str, events: Sequence[CampaignEvent]) -> None:
        if not events:
            return
        columns = tables.campaigns.c
        take = sa.update(tables.campaigns).where(columns.id == campaign_id)
        take = take.values(last_sequence=columns.last_sequence + len(events)).returning(columns.last_sequence)
        first = (await connection.execute(take)).scalar_one() - len(events) + 1
        rows = []
        for sequence, event in enumerate(events, first):
            event.sequence = sequence
            event.time.FromNanoseconds(time.time_ns())
            rows.append({"campaign": campaign_id, "sequence": sequence, "message": deterministic(event)})
        await insert_all(connection, tables.campaign_events, rows)

    async def _drop_reports(self, connection: AsyncConnection, campaign_id: str, content_digest: str) -> None:
        table = tables.campaign_reports
        gone = sa.delete(table).where(table.c.campaign == campaign_id).returning(table.c.digest)
        digests = {row.digest for row in await connection.execute(gone)} | {content_digest}
        await discard(connection, digests - {""})
