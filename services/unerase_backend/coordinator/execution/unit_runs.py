"""The units under way in this process: each waits for its tenant's turn, and is stopped when its audit ends."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase_backend.coordinator.execution.retry import Retry
from unerase_backend.coordinator.execution.units import Units
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.states import ACTIVE
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime import tracing


class UnitRuns:
    """Runs units, at most `concurrent_units` at once."""

    def __init__(self, database: Database, units: Units, retry: Retry, metrics: Metrics, concurrent_units: int) -> None:
        self._database = database
        self._units = units
        self._retry = retry
        self._metrics = metrics
        self._places = FairQueue(concurrent_units)
        self._running: defaultdict[str, set[asyncio.Task[UnitResult]]] = defaultdict(set)
        self._closing = False

    def audits(self) -> Sequence[str]:
        """Return the audits that have units under way."""
        return list(self._running)

    def stop(self, audit_id: str) -> None:
        """Stop the audit's units that are under way."""
        for task in self._running.get(audit_id, ()):
            task.cancel()

    async def close(self) -> None:
        """Interrupt every unit; their workflows stay as they are and are recovered by the next process."""
        self._closing = True
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def compute(self, audit_id: str, unit: Unit) -> UnitResult | None:
        """Return what the unit finds; None if the audit has ended meanwhile."""
        task = asyncio.create_task(self._in_turn(audit_id, unit))
        self._running[audit_id].add(task)
        try:
            audit = await until_answered(lambda: self._database.audits.get(audit_id))
            if audit is None or audit.state not in ACTIVE:
                return None
            return await task
        except AuditEndedError:
            return None
        except asyncio.CancelledError:
            # An end of this process is not an end of the audit.
            if self._closing or _this_task().cancelling():
                raise
            return None
        finally:
            task.cancel()
            self._running[audit_id].discard(task)
            if not self._running[audit_id]:
                del self._running[audit_id]

    async def _in_turn(self, audit_id: str, unit: Unit) -> UnitResult:
        # Only units take turns: what starts or ends an audit would else wait behind all units of all audits.
        origin = await until_answered(lambda: self._database.audits.origin(audit_id))
        async with AsyncExitStack() as held:
            begin = time.monotonic()
            with self._metrics.units_waiting.track_inprogress(), tracing.span("unit.wait"):
                await held.enter_async_context(self._places.turn(origin.tenant, (origin.create_time, audit_id)))
            self._metrics.unit_wait_seconds.observe(time.monotonic() - begin)
            with self._metrics.units_running.track_inprogress():
                return await self._retry.persist(lambda: self._units.compute(audit_id, unit), audit_id, unit)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a workflow must run as an asyncio task")
    return task
