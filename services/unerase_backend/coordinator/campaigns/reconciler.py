"""Brings one campaign to its end: ends the cells whose audits have ended, begins the next ones, and waits.

The database alone says how far the campaign is, so that it can be continued at any time and by any coordinator, and so
that two of them do no harm. At most `window` of its audits exist unfinished.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.audits_pb2 import Audit
from unerase.v1.campaigns_pb2 import CampaignDelayed
from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion
from unerase_backend.coordinator.campaigns.request import cell_spec
from unerase_backend.coordinator.campaigns.watches import AuditWatches
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import POLL_SECONDS
from unerase_backend.coordinator.execution.workflow import Auditor
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.states import ACTIVE_CAMPAIGN
from unerase_backend.coordinator.storage.audits import Origin
from unerase_backend.coordinator.storage.campaign_transitions import CampaignEndedError
from unerase_backend.coordinator.storage.campaigns import NextCell, Run
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import Within
from unerase_backend.coordinator.storage.errors import domain_error
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime.errors import ExhaustedError, UnavailableError, UneraseError

_logger = logging.getLogger(__name__)

_SETTLED_AT_ONCE = 64
_BEGUN_AT_ONCE = 16
# What a campaign waits for may be there earlier than an error says.
_LONGEST_WAIT_SECONDS = 30.0
_SHORTEST_WAIT_SECONDS = 1.0


class Reconciler:
    """Works on one campaign until it has ended; `changed` is told of each commit."""

    def __init__(
        self,
        run: Run,
        database: Database,
        auditor: Auditor,
        admission: Admission,
        conclusion: CampaignConclusion,
        watches: AuditWatches,
        metrics: Metrics,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._run = run
        self._database = database
        self._auditor = auditor
        self._admission = admission
        self._conclusion = conclusion
        self._watches = watches
        self._metrics = metrics
        self._changed = changed
        self._wake = asyncio.Event()
        self._blocked_until = 0.0

    async def reconcile(self) -> None:
        """Return once the campaign has ended, in whatever state."""
        campaigns, transitions = self._database.campaigns, self._database.campaign_transitions
        if await until_answered(lambda: transitions.start(self._run.id)):
            await self._changed()
        running = await until_answered(lambda: campaigns.running(self._run.id))
        for audit_id in running:
            # The process that accepted it may have ended before it could begin it.
            self._auditor.begin(audit_id)
        try:
            while await self._step():
                pass
        finally:
            self._watches.forget(self._wake)

    async def _step(self) -> bool:
        """End and begin cells once, and wait if there is nothing to do; False once the campaign has ended."""
        campaigns = self._database.campaigns
        self._wake.clear()
        if await self._settle() == _SETTLED_AT_ONCE:
            return True
        running = await until_answered(lambda: campaigns.running(self._run.id))
        self._watches.watch(running, self._wake)
        room = self._run.spec.window - len(running)
        waiting = await until_answered(lambda: campaigns.next_cells(self._run.id, max(min(room, _BEGUN_AT_ONCE), 1)))
        if await until_answered(lambda: campaigns.state(self._run.id)) not in ACTIVE_CAMPAIGN:
            return False
        if not running and not waiting:
            return not await self._conclude()
        if room > 0 and waiting and await self._begin(waiting[:room]):
            return True
        with suppress(TimeoutError):
            # Another coordinator may have ended an audit.
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        if self._wake.is_set():
            # An audit that has ended may have given back what another one waits for.
            self._blocked_until = 0.0
        return True

    async def _settle(self) -> int:
        """End cells whose audits have ended, and return how many."""
        campaigns, transitions = self._database.campaigns, self._database.campaign_transitions
        if not await until_answered(lambda: campaigns.any_ended(self._run.id)):
            return 0
        settled = await until_answered(lambda: transitions.settle(self._run.id, _SETTLED_AT_ONCE))
        for cell in settled:
            self._metrics.cell_ended(cell.state)
        if settled:
            await self._changed()
        return len(settled)

    async def _begin(self, waiting: Sequence[NextCell]) -> bool:
        """Begin cells in order; False if the campaign has to wait before it can begin more."""
        for cell in waiting:
            if time.monotonic() < self._blocked_until or not await self._begin_cell(cell):
                return False
            await self._changed()
            if self._wake.is_set():
                break
        return True

    async def _begin_cell(self, cell: NextCell) -> bool:
        run = self._run
        request_id = f"campaign:{run.id}:{cell.position}:{cell.attempts}"
        origin = Origin(run.tenant, run.traceparent, campaign=run.id, sealed=run.sealed)
        try:
            planned = await self._admission.plan(cell_spec(run.spec, cell.subject, cell.concept), run.tenant)
            await self._admission.accept(planned, request_id, "", origin, lambda audit: self._within(cell, audit))
        except CampaignEndedError:
            return True
        except Exception as raised:
            return await self._refused(cell, raised)
        return True

    def _within(self, cell: NextCell, audit: Audit) -> Within:
        """Return what is written together with a cell's audit."""
        # Before the audit begins, which may end at once.
        self._watches.watch([audit.id], self._wake)

        async def within(connection: AsyncConnection) -> None:
            transitions = self._database.campaign_transitions
            await transitions.begin_cell(connection, self._run.id, cell.position, audit.id)

        return within

    async def _refused(self, cell: NextCell, raised: Exception) -> bool:
        """Wait because of an error that passes, and return False; let the cell fail with any other."""
        error = raised if isinstance(raised, UneraseError) else domain_error(raised)
        if error is None:
            error = incident("a cell could not begin", raised)
        elif passes(error):
            await self.delay(error)
            return False
        transitions, told = self._database.campaign_transitions, (error.reason, error.message)
        if await until_answered(lambda: transitions.fail_cell(self._run.id, cell.position, *told)):
            cells = await until_answered(lambda: self._database.campaigns.cells(self._run.id, cell.position - 1, 1))
            self._metrics.cell_ended(cells[0].state)
        return True

    async def delay(self, error: UneraseError) -> None:
        """Tell watchers what the campaign waits for, and begin no cell for a while."""
        seconds = min(max(error.retry_after_seconds or 0.0, _SHORTEST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
        self._blocked_until = time.monotonic() + seconds
        delayed = CampaignDelayed(reason=error.reason, message=error.message)
        try:
            if await self._database.campaign_transitions.delay(self._run.id, delayed):
                await self._changed()
        except Exception as failed:
            # Watchers are told through the database, which may be what has failed.
            if domain_error(failed) is None:
                raise
            _logger.warning("the delay of a campaign could not be reported to watchers", exc_info=True)

    async def _conclude(self) -> bool:
        """Write the report's content, evaluate the gate, and end the campaign; False if that has to wait."""
        try:
            concluded = await self._conclusion.conclude(self._run.id)
        except Exception as raised:
            error = raised if isinstance(raised, UneraseError) else domain_error(raised)
            if error is None or not passes(error):
                raise
            await self.delay(error)
            await asyncio.sleep(self._blocked_until - time.monotonic())
            return False
        finish = self._database.campaign_transitions.finish
        told = (concluded.gate, concluded.content_digest, concluded.reports)
        ended = await until_answered(lambda: finish(self._run.id, *told))
        await self._changed()
        return ended


def passes(error: UneraseError) -> bool:
    """Return whether waiting may help against an error."""
    return isinstance(error, UnavailableError) or (
        isinstance(error, ExhaustedError) and error.retry_after_seconds is not None
    )


def incident(what: str, error: Exception) -> UneraseError:
    """Return what is told of an unexpected error, which is logged."""
    number = uuid.uuid4().hex[:12]
    _logger.error("incident %s: %s", number, what, exc_info=error)
    return UneraseError(f"an unexpected error occurred; the coordinator's log has it as incident {number}")
