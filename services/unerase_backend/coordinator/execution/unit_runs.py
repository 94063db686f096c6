"""Schedules the units of this process: decides when a unit runs, repeats it, and stops it when its audit ends.

`units.py` computes one unit; this module says when, and at most how many at once.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from unerase.internal.v1alpha1.units_pb2 import Unit, UnitResult
from unerase_backend.coordinator.execution.retry import Retry
from unerase_backend.coordinator.execution.units import Units, UnitUnderWayError
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.states import ACTIVE
from unerase_backend.coordinator.storage.audits import Origin
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.transitions import AuditEndedError
from unerase_backend.coordinator.storage.write_retry import until_answered
from unerase_backend.runtime import tracing


class UnitRuns:
    """The units that wait or run in this process.

    At most `concurrent_units` run at once, and beside them half as many attacks. A plan's probes come first, and with
    places of its own the attack room, which takes one search after another, is busy from the beginning.
    """

    def __init__(self, database: Database, units: Units, retry: Retry, metrics: Metrics, concurrent_units: int) -> None:
        self._database = database
        self._units = units
        self._retry = retry
        self._metrics = metrics
        self._places = FairQueue(concurrent_units)
        self._attack_places = FairQueue(max(1, concurrent_units // 2))
        self._running: defaultdict[str, set[asyncio.Task[UnitResult]]] = defaultdict(set)
        self._closing = False

    def audits(self) -> Sequence[str]:
        """Return the audits that have units here, waiting or running."""
        return list(self._running)

    def stop(self, audit_id: str) -> None:
        """Stop the audit's units, waiting or running."""
        for task in self._running.get(audit_id, ()):
            task.cancel()

    async def close(self) -> None:
        """Interrupt every unit; the next process recovers their workflows."""
        self._closing = True
        tasks = [task for running in self._running.values() for task in running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def compute(self, audit_id: str, unit: Unit) -> UnitResult | None:
        """Return the unit's result once it has had its turn; None if the audit has ended meanwhile."""
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
            # If this process ends, the audit has not ended.
            if self._closing or _this_task().cancelling():
                raise
            return None
        finally:
            task.cancel()
            self._running[audit_id].discard(task)
            if not self._running[audit_id]:
                del self._running[audit_id]

    async def _in_turn(self, audit_id: str, unit: Unit) -> UnitResult:
        # Only units wait for a place here. Otherwise the start or end of an audit would wait behind all audits' units.
        origin = await until_answered(lambda: self._database.audits.origin(audit_id))
        while True:
            try:
                return await self._once(audit_id, unit, origin)
            except UnitUnderWayError as error:
                # Without a place: the units that are under way need theirs, and others have work for this one.
                with self._metrics.units_waiting.track_inprogress():
                    await error.ended.wait()

    async def _once(self, audit_id: str, unit: Unit, origin: Origin) -> UnitResult:
        places = self._attack_places if self._units.is_attack(unit.evaluation) else self._places
        async with AsyncExitStack() as held:
            begin = time.monotonic()
            with self._metrics.units_waiting.track_inprogress(), tracing.span("unit.wait"):
                await held.enter_async_context(
                    places.turn(origin.tenant, (origin.create_time, audit_id), origin.campaign)
                )
            self._metrics.unit_wait_seconds.observe(time.monotonic() - begin)
            with self._metrics.units_running.track_inprogress():
                return await self._retry.persist(lambda: self._units.attempt(audit_id, unit), audit_id, unit)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a workflow must run as an asyncio task")
    return task
