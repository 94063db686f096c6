"""A campaign as a durable workflow: DBOS begins it, and begins it again after a crash or in another coordinator.

The workflow records no steps of its own, because the database says how far the campaign is (`reconciler.py`). Each
retry of a campaign is a workflow of its own. DBOS finds the function of a recovered workflow by name; it reaches the
campaigns through `CURRENT_CAMPAIGNS`, which the coordinator sets before DBOS starts.
"""

import asyncio
import logging
from contextvars import Context

from dbos import DBOS, SetWorkflowID

from unerase_backend.coordinator.campaigns.conclusion import CampaignConclusion
from unerase_backend.coordinator.campaigns.reconciler import Reconciler, incident
from unerase_backend.coordinator.campaigns.watches import AuditWatches
from unerase_backend.coordinator.execution.admission import Admission
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.workflow import RECOVERIES, UNDER_WAY, Auditor
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.states import ACTIVE_CAMPAIGN
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime.access import CALLER, Caller
from unerase_backend.runtime.errors import UneraseError

_logger = logging.getLogger(__name__)


class CampaignRunner:
    """Runs the campaigns of this process."""

    def __init__(
        self,
        database: Database,
        auditor: Auditor,
        admission: Admission,
        conclusion: CampaignConclusion,
        notifications: Notifications,
        metrics: Metrics,
    ) -> None:
        """Take the parts that a campaign needs; `notifications` are those of campaigns."""
        self._database = database
        self._auditor = auditor
        self._admission = admission
        self._conclusion = conclusion
        self._notifications = notifications
        self._metrics = metrics
        self._watches = AuditWatches()
        self._beginning: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        auditor.when_ended(self._watches.ended)

    def begin(self, campaign_id: str, round_: int) -> None:
        """Start a campaign's workflow in the background; if this process ends before that, the next one starts it."""
        key = workflow_id(campaign_id, round_)
        if key not in self._beginning:
            self._beginning[key] = asyncio.create_task(self._begin(campaign_id, round_, key), context=Context())

    async def _begin(self, campaign_id: str, round_: int, key: str) -> None:
        try:
            await until_answered(lambda: self._start(campaign_id, round_, key))
        except Exception:
            _logger.error("a campaign could not be started; trying again later", exc_info=True)
        finally:
            del self._beginning[key]

    async def _start(self, campaign_id: str, round_: int, key: str) -> None:
        with SetWorkflowID(key):
            await DBOS.start_workflow_async(_campaign, campaign_id, round_)

    async def begin_forgotten(self) -> None:
        """Begin the campaigns in flight that no workflow will end, as `Auditor.begin_forgotten` does for audits."""
        active = await self._database.campaigns.active()
        if not active:
            return
        keys = {workflow_id(*each): each for each in active.items()}
        known = await DBOS.list_workflows_async(workflow_ids=list(keys), load_input=False, load_output=False)
        over = [workflow.workflow_id for workflow in known if workflow.status not in UNDER_WAY]
        # Read after the workflows, because a campaign ends before its workflow does.
        still = await self._database.campaigns.active([keys[key][0] for key in over]) if over else {}
        left = [key for key in over if still.get(keys[key][0]) == keys[key][1]]
        for key in left:
            _logger.error("the workflow of campaign %s ended without ending it; it begins again", keys[key][0])
            await DBOS.delete_workflow_async(key)
        for key in (set(keys) - {workflow.workflow_id for workflow in known}) | set(left):
            self.begin(*keys[key])

    async def announce(self) -> None:
        """Update the metrics and wake watchers, because something was committed."""
        await self._notifications.announce()

    async def cancelled(self, audit_ids: list[str]) -> None:
        """Stop the audits that were cancelled with their campaign, and announce its end."""
        await self.announce()
        for audit_id in audit_ids:
            await self._auditor.cancelled(audit_id)

    async def count(self) -> None:
        """Set the metrics of campaigns by state."""
        self._metrics.set_campaigns(await self._database.campaigns.count())

    async def close(self) -> None:
        """Interrupt every campaign; the next process recovers the workflows."""
        tasks = [*self._beginning.values(), *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, campaign_id: str, round_: int) -> None:
        """Run the workflow of a campaign."""
        # In a context of its own: the workflows of the audits that begin here are none of this workflow's steps.
        task = asyncio.create_task(self._run(campaign_id, round_), context=Context())
        self._running.add(task)
        try:
            await task
        finally:
            task.cancel()
            self._running.discard(task)

    async def _run(self, campaign_id: str, round_: int) -> None:
        run = await until_answered(lambda: self._database.campaigns.run(campaign_id))
        if run is None or run.state not in ACTIVE_CAMPAIGN or run.round != round_:
            return
        # What the campaign waits for, it waits for in its tenant's turn.
        CALLER.set(Caller(run.tenant, frozenset()))
        reconciler = Reconciler(
            run,
            self._database,
            self._auditor,
            self._admission,
            self._conclusion,
            self._watches,
            self._metrics,
            self._notifications.announce,
        )
        try:
            await reconciler.reconcile()
        except Exception as raised:
            error = raised if isinstance(raised, UneraseError) else incident("a campaign could not go on", raised)
            fail = self._database.campaign_transitions.fail
            stopped = await until_answered(lambda: fail(campaign_id, error.reason, error.message))
            await self.cancelled(stopped or [])
        await self.announce()


class _Current:
    runner: CampaignRunner


CURRENT_CAMPAIGNS = _Current()


@DBOS.workflow(name="unerase.campaign", max_recovery_attempts=RECOVERIES)  # type: ignore[untyped-decorator]
async def _campaign(campaign_id: str, round_: int) -> None:
    await CURRENT_CAMPAIGNS.runner.run(campaign_id, round_)


def workflow_id(campaign_id: str, round_: int) -> str:
    """Return the id of the workflow of a campaign's round; with a "/", as all but an audit's own."""
    return f"campaign/{campaign_id}/{round_}"
