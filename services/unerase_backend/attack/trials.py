"""The pictures of an attack's draws, made while the search goes on.

A search that does not read its pictures need not wait for them. Draws are handed over in portions that fill the
sampler's batch, and the rest at the end. Bits do not depend on it: a picture follows from its trajectory alone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import SAMPLE_STATUS_UNSCORED
from unerase_backend.attack.beside import beside
from unerase_backend.attack.prompts import CaseRecord, Draw
from unerase_backend.diffusion.shapes import BATCH_ROWS
from unerase_backend.evaluation.cost import rows_of_step
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.prompts import guidance_of

PORTION_ROWS = BATCH_ROWS
"""Rows of the sampler's batch that a portion fills."""
IN_FLIGHT = 4
"""The most portions of a unit in flight; the draws of the others wait here."""


@dataclass(frozen=True)
class _Trial:
    record: CaseRecord
    draw: Draw
    failure: str
    """Why there is no picture of the draw: its search had failed before; empty otherwise."""


class Trials:
    """The draws of a unit whose pictures are made in tasks."""

    def __init__(self, unit: Unit, models: Models, tasks: asyncio.TaskGroup) -> None:
        self._unit = unit
        self._models = models
        self._tasks = tasks
        self._waiting: list[_Trial] = []
        self._places = asyncio.Semaphore(IN_FLIGHT)
        self._last: asyncio.Task[None] | None = None

    def add(self, draws: Sequence[tuple[CaseRecord, Draw]]) -> None:
        """Have a picture of each draw made, judged and recorded; the draw of a failed search is unscored."""
        self._waiting += [_Trial(record, draw, record.failure) for record, draw in draws]
        while count := self._filling():
            self._hand_over(count)

    def hand_over(self) -> None:
        """Hand over the draws that wait for others to fill their portion."""
        self._hand_over(len(self._waiting))

    async def recorded(self) -> None:
        """Hand over all draws, and wait until they are recorded."""
        self.hand_over()
        if self._last is not None:
            # The error of a task comes from the group.
            await asyncio.wait([self._last])

    def _filling(self) -> int:
        """Return how many of the waiting draws fill a portion; 0 if they do not."""
        rows = 0
        for number, trial in enumerate(self._waiting, 1):
            rows += self._rows(trial)
            if rows >= PORTION_ROWS:
                return number
        return 0

    def _rows(self, trial: _Trial) -> int:
        if trial.failure:
            return 0
        return rows_of_step(self._unit, guidance_of(self._unit, trial.draw.case))

    def _hand_over(self, count: int) -> None:
        portion, self._waiting = self._waiting[:count], self._waiting[count:]
        if portion:
            self._last = self._tasks.create_task(self._try(portion, self._last))

    async def _try(self, portion: Sequence[_Trial], before: asyncio.Task[None] | None) -> None:
        trajectories = [trial.draw.trajectory(self._unit) for trial in portion if not trial.failure]
        made: list[Sample] = []
        if trajectories:
            async with self._places:
                made = await self._models.generate(self._unit.model, trajectories, panel(self._unit.target))
        if before is not None:
            # A case's draws are recorded in order.
            await asyncio.wait([before])
        samples = iter(made)
        for trial in portion:
            failed = Sample(status=SAMPLE_STATUS_UNSCORED, reason=trial.failure)
            trial.record.add(self._unit, trial.draw, failed if trial.failure else next(samples))


@asynccontextmanager
async def trials_of(unit: Unit, models: Models) -> AsyncIterator[Trials]:
    """Give the trials of a unit; all of them are recorded when the context ends.

    The first error of a picture cancels the rest, and what is awaited in the context.
    """
    async with beside() as tasks:
        trials = Trials(unit, models, tasks)
        yield trials
        trials.hand_over()


async def try_out(unit: Unit, models: Models, draws: Sequence[tuple[CaseRecord, Draw]]) -> None:
    """Have a picture of each draw made, judged and recorded, and wait for it."""
    async with trials_of(unit, models) as trials:
        trials.add(draws)
