"""Removes campaigns with their audits: when their owner deletes them, and after the retention period."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from dbos import DBOS

from unerase_backend.coordinator.campaigns.workflow import workflow_id
from unerase_backend.coordinator.execution.retention import Retention
from unerase_backend.coordinator.storage.database import Database

_logger = logging.getLogger(__name__)

_AUDITS_AT_ONCE = 32
# How long a caller waits for the audits of a campaign to be removed; it goes on without the caller.
_CALLER_SECONDS = 60.0


class CampaignRemoval:
    """Removes campaigns: hides them at once, and then removes their audits one by one."""

    def __init__(self, database: Database, retention: Retention, days: float) -> None:
        self._database = database
        self._retention = retention
        self._period = timedelta(days=days) if days else None
        self._removing: dict[str, asyncio.Task[None]] = {}

    async def delete(self, campaign_id: str) -> bool:
        """Delete a campaign that has ended; False if there is no such campaign.

        From now on nobody sees it. Its audits are gone when this returns, or some time later if there are many.
        """
        if not await self._database.campaign_transitions.hide(campaign_id):
            return False
        try:
            async with asyncio.timeout(_CALLER_SECONDS):
                await asyncio.shield(self._begin(campaign_id))
        except TimeoutError:
            _logger.info("the audits of a deleted campaign are still being removed")
        return True

    async def expire(self) -> None:
        """Delete the campaigns that ended before the retention period, and go on with those that are being deleted."""
        if self._period is not None:
            before = int((datetime.now(UTC) - self._period).timestamp() * 1e9)
            for campaign_id in await self._database.campaigns.ended_before(before):
                await self._database.campaign_transitions.hide(campaign_id)
        for campaign_id in await self._database.campaigns.deleted():
            await self._begin(campaign_id)

    async def close(self) -> None:
        """Interrupt the removals; the next process goes on with them."""
        tasks = list(self._removing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, campaign_id: str) -> asyncio.Task[None]:
        if (task := self._removing.get(campaign_id)) is None:
            task = self._removing[campaign_id] = asyncio.create_task(self._remove(campaign_id))
            task.add_done_callback(lambda _: self._removing.pop(campaign_id, None))
        return task

    async def _remove(self, campaign_id: str) -> None:
        while audits := await self._database.campaigns.audits(campaign_id, _AUDITS_AT_ONCE):
            for audit_id in audits:
                # A campaign that has ended has ended audits alone; one that is left would be in the way for ever.
                await self._database.transitions.cancel(audit_id)
                await self._retention.delete(audit_id)
        rounds = await self._database.campaigns.rounds(campaign_id)
        for round_ in range(rounds):
            await DBOS.delete_workflow_async(workflow_id(campaign_id, round_))
        await self._database.campaign_transitions.delete(campaign_id)
        await self._retention.collect()
