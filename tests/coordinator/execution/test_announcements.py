"""How often committed changes are counted for the metrics, and that no count outlives the coordinator."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from unerase_backend.coordinator.execution import announcements as of_announcements
from unerase_backend.coordinator.execution.announcements import Announcements
from unerase_backend.coordinator.execution.notifications import Notifications
from unerase_backend.coordinator.metrics import Metrics


class Audits:
    """A database whose counts end when the test says so."""

    def __init__(self) -> None:
        self.committed = 0
        self.under_way = self.most_under_way = 0
        self.began: asyncio.Queue[int] = asyncio.Queue()
        self.answer = asyncio.Semaphore(0)

    async def count(self) -> dict[str, int]:
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        counted = self.committed
        self.began.put_nowait(counted)
        try:
            await self.answer.acquire()
        finally:
            self.under_way -= 1
        return {"RUNNING": counted}

    async def oldest_active(self) -> None:
        return None

    async def sequences(self, ids: Any) -> dict[str, int]:
        return {}


class Shown(Metrics):
    """Metrics that keep the last count."""

    shown: int | None = None

    def set_audits(self, counts: Any) -> None:
        self.shown = counts["RUNNING"]


@pytest.fixture
def audits() -> Audits:
    return Audits()


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def announcements(audits: Audits, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> Announcements:
    monkeypatch.setattr(of_announcements, "_COUNT_SECONDS", 0.0)
    database: Any = SimpleNamespace(audits=audits)
    return Announcements(database, shown, Notifications(audits.sequences, 60))


async def test_what_is_committed_during_a_count_is_counted_after_it(
    announcements: Announcements, audits: Audits, shown: Shown
) -> None:
    for audits.committed in (1, 2, 3):
        await announcements.announce()
        if audits.committed == 1:
            assert await asyncio.wait_for(audits.began.get(), 5) == 1
    for _ in range(10):
        # A second count would begin now.
        await asyncio.sleep(0)
    assert audits.most_under_way == 1
    audits.answer.release()
    assert await asyncio.wait_for(audits.began.get(), 5) == 3
    assert shown.shown == 1
    audits.answer.release()
    assert announcements._counting is not None
    await asyncio.wait_for(announcements._counting, 5)
    assert (shown.shown, audits.most_under_way) == (3, 1)
    await announcements.close()


async def test_no_count_is_under_way_after_the_end(announcements: Announcements, audits: Audits) -> None:
    await announcements.announce()
    await asyncio.wait_for(audits.began.get(), 5)
    await announcements.close()
    assert audits.under_way == 0
    # A workflow that is being interrupted may still commit.
    await announcements.announce()
    for _ in range(10):
        await asyncio.sleep(0)
    assert audits.began.empty()
