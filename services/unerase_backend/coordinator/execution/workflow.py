"""An audit as a durable workflow: one child workflow for each unit, then the verdict and the report.

A unit is computed by plain awaits, outside any transaction. Its result, its event and its checkpoint then commit in one
transaction, so that each observation is stored exactly once, whenever a crash comes. A unit that a crash interrupts is
computed again, with the same seeds and therefore the same result. The audit's row decides what may still be written: to
cancel an audit is one update of its row, after which its units are stopped.

DBOS finds the functions of recovered workflows by name. They reach the auditor through `CURRENT`, which the coordinator
sets before DBOS starts.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dbos import DBOS, AsyncSQLAlchemyDatasource, SetWorkflowID

from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase.v1.audits_pb2 import (
    AUDIT_STATE_CANCELLED,
    AUDIT_STATE_FAILED,
    AUDIT_STATE_SUCCEEDED,
    UnitDone,
)
from unerase.v1.types_pb2 import SAMPLE_STATUS_UNSCORED, SAMPLE_STATUS_WITHHELD
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.execution.announcements import Announcements
from unerase_backend.coordinator.execution.conclusion import Conclusion
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.execution.retry import Retry
from unerase_backend.coordinator.execution.unit_runs import UnitRuns
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.metrics import COORDINATOR, Metrics
from unerase_backend.coordinator.planning.units import cases_up_to, evaluation_of, in_sequence
from unerase_backend.coordinator.states import ACTIVE
from unerase_backend.coordinator.storage.connections import Connections
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.estimates import Estimates
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.runtime import tracing
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.call_context import AUDIT, REQUEST
from unerase_backend.runtime.errors import UneraseError
from unerase_backend.verdict import has_answer

_logger = logging.getLogger(__name__)

UNDER_WAY = ("PENDING", "ENQUEUED", "DELAYED")
"""DBOS's statuses of a workflow that it will continue."""
RECOVERIES = 1_000_000
"""In effect no limit: a workflow is recovered however often crashes interrupt it."""

# Each start takes connections and threads of DBOS, which running workflows need as well.
_STARTS_AT_ONCE = 8


class Auditor:
    """Runs the audits of this process: starts their workflows, and holds what the workflows use."""

    def __init__(
        self,
        database: Database,
        connections: Connections,
        datasource: AsyncSQLAlchemyDatasource,
        catalogue: Catalogue,
        store: ArtifactStore,
        metrics: Metrics,
        notifications: Notifications,
        *,
        concurrent_units: int,
        retry_seconds: float,
    ) -> None:
        self.estimates = Estimates(database.engine, concurrent_units)
        self.units = Units(database, catalogue, store, metrics, notifications, self.estimates)
        self.conclusion = Conclusion(database, catalogue, store, self.units)
        self._database = database
        self._connections = connections
        self._datasource = datasource
        self._store = store
        self._metrics = metrics
        self._announcements = Announcements(database, metrics, notifications)
        self._retry = Retry(database, metrics, notifications, retry_seconds)
        self._ask = self._retry.ask
        self._runs = UnitRuns(database, self.units, self._retry, metrics, concurrent_units)
        self._starting = FairQueue(_STARTS_AT_ONCE)
        self._beginning: dict[str, asyncio.Task[None]] = {}

    def when_ended(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with the id of each audit that this process ends."""
        self._announcements.listeners.append(tell)

    def begin(self, audit_id: str) -> None:
        """Start the audit's workflow in the background; if this process ends before that, the next one starts it."""
        if audit_id not in self._beginning:
            self._beginning[audit_id] = asyncio.create_task(self._begin(audit_id))

    async def _begin(self, audit_id: str) -> None:
        try:
            async with self._starting.turn():
                await self._ask(self.start, audit_id)
        except Exception:
            _logger.error("an audit could not be started; trying again later", exc_info=True)
        finally:
            del self._beginning[audit_id]

    async def start(self, audit_id: str) -> None:
        """Start the audit's workflow, unless it was started before."""
        with SetWorkflowID(audit_id):
            await DBOS.start_workflow_async(_audit, audit_id)

    async def take_over(self, dead: Sequence[str]) -> None:
        """Continue the workflows of coordinators that are gone.

        The coordinator that dequeues a workflow first owns it. So several may take over from the same coordinator, and
        a coordinator that was wrongly declared dead may continue.
        """
        for recovered in await asyncio.to_thread(DBOS._recover_pending_workflows, list(dead)):
            if "/" not in recovered.workflow_id:
                self._metrics.survived(COORDINATOR)
        await self.begin_forgotten()

    async def begin_forgotten(self) -> None:
        """Begin the audits in flight that no workflow will end.

        An audit that was accepted just before a crash may have no workflow. A workflow that ended with an unexpected
        error has left its audit in flight. What the units of such an audit have recorded stays.
        """
        active = await self._database.audits.active()
        if not active:
            return
        known = await DBOS.list_workflows_async(workflow_ids=active, load_input=False, load_output=False)
        over = [workflow.workflow_id for workflow in known if workflow.status not in UNDER_WAY]
        # Read after the workflows, because an audit ends before its workflow does.
        left = await self._database.audits.active(over) if over else []
        for audit_id in left:
            _logger.error("the workflow of audit %s ended without ending the audit; the audit begins again", audit_id)
            await DBOS.delete_workflow_async(audit_id, delete_children=True)
        for audit_id in (set(active) - {workflow.workflow_id for workflow in known}) | set(left):
            self.begin(audit_id)

    async def stop_ended(self) -> None:
        """Stop the units of audits that another coordinator has ended."""
        running = self._runs.audits()
        for audit_id in set(running) - set(await self._database.audits.active(running) if running else ()):
            self._runs.stop(audit_id)

    async def announce(self) -> None:
        """Update the metrics and wake watchers, because something was committed."""
        await self._announcements.announce()

    async def cancelled(self, audit_id: str) -> None:
        """Stop the units of an audit that was cancelled, and announce its end."""
        self._runs.stop(audit_id)
        await self._announcements.ended(audit_id, AUDIT_STATE_CANCELLED)
        await self.announce()

    async def close(self) -> None:
        """Interrupt every unit; the next process recovers the workflows."""
        beginning = list(self._beginning.values())
        for task in beginning:
            task.cancel()
        await self._runs.close()
        await self._announcements.close()
        await asyncio.gather(*beginning, return_exceptions=True)

    async def _belong(self, audit_id: str) -> str:
        """Make this task part of the audit and of its trace; return the audit's span as a traceparent."""
        AUDIT.set(audit_id)
        REQUEST.set("")
        origin = await self._ask(self._database.audits.origin, audit_id)
        tracing.adopt(tracing.durable(origin.traceparent, audit_id))
        return tracing.traceparent()

    async def run_audit(self, audit_id: str) -> None:
        """Run the workflow of an audit: start its units in plan order, wait for them, and conclude.

        In a sequential audit, each evaluation that may stop early runs its units in a workflow of its own.
        """
        try:
            await self._belong(audit_id)
            await self._transact("start", self._database.transitions.start, audit_id)
            sequences = await self._sequences(audit_id)
            handles = []
            for unit_id in await self._ask(self._database.evidence.unit_ids, audit_id):
                evaluation = evaluation_of(unit_id)
                if evaluation not in sequences:
                    with SetWorkflowID(f"{audit_id}/{unit_id}"):
                        handles.append(await DBOS.start_workflow_async(_unit, audit_id, unit_id))
                elif unit_id == sequences[evaluation][0][0]:
                    with SetWorkflowID(f"{audit_id}/{evaluation}"):
                        handles.append(await DBOS.start_workflow_async(_sequence, audit_id, evaluation))
            for handle in handles:
                await handle.get_result()
            await self._conclude(audit_id)
        except AuditEndedError:
            return
        except Exception as error:
            await self._fail(audit_id, error)

    async def run_sequence(self, audit_id: str, evaluation: str) -> None:
        """Run the workflow of an evaluation that may stop early: its units in the order of their cases.

        A look decides from the observations up to it and nothing else, so that after a crash it decides the same.
        """
        try:
            await self._belong(audit_id)
            shards = (await self._sequences(audit_id)).get(evaluation, [])
            for position, shard in enumerate(shards):
                handles = []
                for unit_id in shard:
                    with SetWorkflowID(f"{audit_id}/{unit_id}"):
                        handles.append(await DBOS.start_workflow_async(_unit, audit_id, unit_id))
                for handle in handles:
                    await handle.get_result()
                done, rest = shards[: position + 1], shards[position + 1 :]
                if rest and await self._has_answer(audit_id, evaluation, [unit for units in done for unit in units]):
                    await self._skip(audit_id, [unit for units in rest for unit in units])
                    return
        except AuditEndedError:
            return
        except Exception as error:
            await self._fail(audit_id, error)

    async def _sequences(self, audit_id: str) -> dict[str, list[list[str]]]:
        """Return the units of the evaluations that may stop early: for each evaluation, a list of units per shard.

        A shard holds the units of all models for the same cases. The result is empty unless the audit is sequential.
        """
        audit = await self._ask(self._database.audits.get, audit_id)
        if audit is None or not audit.spec.sequential:
            return {}
        descriptions = await self._retry.persist(self.units.descriptions, audit_id)
        return in_sequence(await self._ask(self._database.evidence.unit_ids, audit_id), descriptions)

    async def _has_answer(self, audit_id: str, evaluation: str, units: Sequence[str]) -> bool:
        audit = await self._ask(self._database.audits.get, audit_id)
        planned = [await self._ask(self._database.evidence.unit, audit_id, unit_id) for unit_id in units]
        if audit is None or audit.state not in ACTIVE or None in planned:
            return False
        observations = await self._ask(self._database.evidence.observations, audit_id, units)
        cases = cases_up_to(one[0] for one in planned if one is not None)
        descriptions = await self.units.descriptions()
        return await asyncio.to_thread(
            has_answer, descriptions[evaluation], observations, cases, descriptions, audit.spec
        )

    async def _skip(self, audit_id: str, units: Sequence[str]) -> None:
        for unit_id in units:
            planned = await self._ask(self._database.evidence.unit, audit_id, unit_id)
            if planned is not None:
                unit, _ = planned
                skipped = UnitDone(unit=unit.id, evaluation=unit.evaluation, role=unit.role, skipped=True)
                if await self._transact("skip", self._database.transitions.record, audit_id, skipped, [], []):
                    self._metrics.units.labels(unit.evaluation, "skipped").inc()

    async def run_unit(self, audit_id: str, unit_id: str) -> None:
        """Run the workflow of a unit."""
        place, key, begin = await self._belong(audit_id), f"{audit_id}/{unit_id}", time.time_ns()
        planned = await self._ask(self._database.evidence.unit, audit_id, unit_id)
        if planned is None:
            return
        unit, done = planned
        tracing.adopt(tracing.durable(place, key))
        outcome = await self._outcome(audit_id, unit, done)
        self._metrics.units.labels(unit.evaluation, outcome).inc()
        tracing.end_durable(
            place, key, "unit", begin, audit=audit_id, unit=unit_id, evaluation=unit.evaluation, outcome=outcome
        )

    async def _outcome(self, audit_id: str, unit: Unit, done: bool) -> str:
        """Run the unit, record its result, and return the outcome for the metrics."""
        result = UnitResult()
        if not done:
            try:
                maybe = await self._runs.compute(audit_id, unit)
            except Exception as error:
                await self._fail(audit_id, error)
                return "failed"
            if maybe is None:
                return "stopped"
            result = maybe
        sizes = await asyncio.to_thread(self._sizes, result)
        found = (_done(unit, result), result.observations, result.findings, sizes)
        # If this was recorded before, DBOS returns the step's checkpoint and nothing is written again.
        recorded = await self._transact("record", self._database.transitions.record, audit_id, *found)
        return "recorded" if recorded else "stopped"

    def _sizes(self, result: UnitResult) -> dict[str, int]:
        digests = {observation.picture_digest for observation in result.observations if observation.picture_digest}
        return {digest: self._store.size(digest) or 0 for digest in digests}

    async def _conclude(self, audit_id: str) -> None:
        evidence = await self._ask(self._database.evidence.everything, audit_id)
        if evidence is None or evidence.audit.state not in ACTIVE:
            return
        if evidence.audit.units_done != evidence.audit.units_total:
            raise RuntimeError("an audit cannot be concluded before all its units are done")
        end = time.time_ns()
        verdict, reports = await self._retry.persist(lambda: self.conclusion.conclude(evidence, end), audit_id)
        if await self._transact("succeed", self._database.transitions.succeed, audit_id, end, verdict, reports):
            await self._announcements.ended(audit_id, AUDIT_STATE_SUCCEEDED)

    async def _fail(self, audit_id: str, error: Exception) -> None:
        if isinstance(error, UneraseError):
            reason, message = error.reason, error.message
        else:
            incident = uuid.uuid4().hex[:12]
            _logger.error("incident %s in an audit", incident, exc_info=error)
            reason, message = (
                "INTERNAL",
                f"an unexpected error occurred; the coordinator's log has it as incident {incident}",
            )
        if await self._transact("fail", self._database.transitions.fail, audit_id, reason, message):
            await self._announcements.ended(audit_id, AUDIT_STATE_FAILED)
        self._runs.stop(audit_id)

    async def _transact(self, name: str, write: Callable[..., Awaitable[bool]], *arguments: Any) -> bool:
        """Run one transaction of the database as a step of the current workflow.

        DBOS repeats it while transient errors occur.
        """

        async def body() -> bool:
            return await write(self._datasource.sql_session(), *arguments)

        async with self._connections.step():
            written: bool = await self._datasource.run_tx_step_async({"name": name}, body)
        await self._announcements.announce()
        return written


class _Current:
    auditor: Auditor


CURRENT = _Current()


@DBOS.workflow(name="unerase.audit", max_recovery_attempts=RECOVERIES)  # type: ignore[untyped-decorator]
async def _audit(audit_id: str) -> None:
    await CURRENT.auditor.run_audit(audit_id)


@DBOS.workflow(name="unerase.unit", max_recovery_attempts=RECOVERIES)  # type: ignore[untyped-decorator]
async def _unit(audit_id: str, unit_id: str) -> None:
    await CURRENT.auditor.run_unit(audit_id, unit_id)


def _done(unit: Unit, result: UnitResult) -> UnitDone:
    return UnitDone(
        unit=unit.id,
        evaluation=unit.evaluation,
        role=unit.role,
        observations=len(result.observations),
        detected=sum(
            len(observation.judgements) > 1 and observation.judgements[1].detected
            for observation in result.observations
        ),
        unscored=sum(observation.status == SAMPLE_STATUS_UNSCORED for observation in result.observations),
        withheld=sum(observation.status == SAMPLE_STATUS_WITHHELD for observation in result.observations),
    )


@DBOS.workflow(name="unerase.sequence", max_recovery_attempts=RECOVERIES)  # type: ignore[untyped-decorator]
async def _sequence(audit_id: str, evaluation: str) -> None:
    await CURRENT.auditor.run_sequence(audit_id, evaluation)
