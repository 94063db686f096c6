"""Estimates how long an audit will take, from the time of earlier units and from the pace of the audit itself.

Every unit that a room ran adds its seconds and its rows to sums by evaluation and reference, which the database keeps
through restarts; older units count less and less. Before an audit runs it is expected to take

    the sum of its units' seconds / units in flight at once, or the longest unit's seconds if that is more.

Once some of its units are done, the rest is expected to continue at the audit's own pace so far, including delays and
units from the unit cache. Both are only estimates: no result depends on them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from sqlalchemy.dialects import postgresql, sqlite

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase_backend.coordinator.storage.engine import Engine
from unerase_backend.coordinator.storage.tables import durations
from unerase_backend.evaluation.cost import Work

# Sums over more than twice this number of units are halved, so that the estimate follows a faster machine.
_UNITS_REMEMBERED = 100.0
# Ten years; an estimate beyond that says nothing.
_FAR_NANOSECONDS = 3e17


@dataclass
class _Taken:
    """Sums over the units of one evaluation."""

    units: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0

    def add(self, other: "_Taken") -> None:
        self.units += other.units
        self.rows += other.rows
        self.seconds += other.seconds

    def expected(self, work: Work) -> float:
        """Return the expected seconds of a unit with this work."""
        if self.rows and work.rows:
            return self.seconds / self.rows * work.rows
        return self.seconds / self.units


class Estimates:
    """The time that units took so far, by evaluation and reference, and the estimates from it."""

    def __init__(self, engine: Engine, concurrent_units: int) -> None:
        self._engine = engine
        self._concurrent = concurrent_units
        self._known: dict[tuple[str, str], _Taken] = {}
        self._new: defaultdict[tuple[str, str], _Taken] = defaultdict(_Taken)

    def note(self, unit: Unit, work: Work, seconds: float) -> None:
        """Remember how long a room took for a unit."""
        taken = _Taken(1.0, float(work.rows), seconds)
        self._known.setdefault((unit.evaluation, unit.reference), _Taken()).add(taken)
        self._new[unit.evaluation, unit.reference].add(taken)

    async def synchronise(self) -> None:
        """Add the new units to the database, and read the sums over the units of all coordinators."""
        new, self._new = self._new, defaultdict(_Taken)
        try:
            if new:
                await self._add(new)
        except BaseException:
            for key, taken in new.items():
                self._new[key].add(taken)
            raise
        async with self._engine.connect() as connection:
            rows = (await connection.execute(sa.select(durations))).all()
        self._known = {(row.evaluation, row.reference): _Taken(row.units, row.rows, row.seconds) for row in rows}
        for key, taken in self._new.items():
            self._known.setdefault(key, _Taken()).add(taken)

    def expected(self, units: Sequence[Unit], works: Sequence[Work]) -> list[float] | None:
        """Return the expected seconds of each unit; None if no unit with the same reference was run before.

        An evaluation that was never run with the reference is estimated from the others' pace.
        """
        pooled: defaultdict[str, _Taken] = defaultdict(_Taken)
        for (_, reference), taken in self._known.items():
            pooled[reference].add(taken)
        if not units or units[0].reference not in pooled:
            return None
        return [
            self._known.get((unit.evaluation, unit.reference), pooled[unit.reference]).expected(work)
            for unit, work in zip(units, works, strict=True)
        ]

    def duration(self, expected: Sequence[float]) -> Duration:
        """Return the expected duration of an audit from the expected seconds of each of its units."""
        seconds = max(sum(expected) / self._concurrent, *expected)
        duration = Duration()
        duration.FromNanoseconds(round(seconds * 1e9))
        return duration

    async def _add(self, new: Mapping[tuple[str, str], _Taken]) -> None:
        halved = {name: durations.c[name] / 2 for name in ("units", "rows", "seconds")}
        async with self._engine.begin() as connection:
            for (evaluation, reference), taken in sorted(new.items(), key=lambda item: item[0]):
                await connection.execute(self._addition(evaluation, reference, taken))
            await connection.execute(
                sa.update(durations).where(durations.c.units > 2 * _UNITS_REMEMBERED).values(**halved)
            )

    def _addition(self, evaluation: str, reference: str, taken: _Taken) -> sa.sql.Executable:
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(durations).values(
            evaluation=evaluation, reference=reference, units=taken.units, rows=taken.rows, seconds=taken.seconds
        )
        return statement.on_conflict_do_update(
            index_elements=["evaluation", "reference"],
            set_={name: durations.c[name] + getattr(statement.excluded, name) for name in ("units", "rows", "seconds")},
        )


def work_to_do(works: Sequence[Work], expected: Sequence[float] | None) -> list[float]:
    """Return the weight of each unit in the audit's progress: its expected seconds, or its rows if none are known."""
    return [max(seconds, 1e-3) for seconds in expected] if expected else [float(max(work.rows, 1)) for work in works]


def expected_end(now: int, created: int, duration: int | None, work: float, done: float) -> int | None:
    """Return when an audit in flight is expected to end, never before `now`; None if that cannot be estimated.

    Times are in nanoseconds. `duration` is the duration expected at first, `done` the part of `work` that is done.
    """
    if work > 0 and done > 0:
        left = max(now - created, 0) * max(work - done, 0) / done
        return now + round(left) if left < _FAR_NANOSECONDS else None
    if duration is not None and created + duration > now:
        return created + duration
    return None
