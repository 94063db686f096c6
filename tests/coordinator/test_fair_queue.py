"""Turns: places are held and given back, whatever happens; tenants are served in rotation, audits in order."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unerase_backend.coordinator.fair_queue import FairQueue

AGES = [*"abcxyz", "mine", "first", "second", "third", *(f"audit-{number}" for number in range(50))]


class Work:
    """Units that wait until they are let go, and the order in which they began."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.begun: list[tuple[str, str]] = []
        self.at_once = self.most = 0
        self.gates: list[asyncio.Event] = []

    def ask(self, tenant: str, audit: str, group: str = "") -> asyncio.Task[None]:
        return asyncio.create_task(self._run(tenant, audit, group))

    async def _run(self, tenant: str, audit: str, group: str) -> None:
        async with self.queue.turn(tenant, (AGES.index(audit), audit), group):
            self.begun.append((tenant, audit))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            gate = asyncio.Event()
            self.gates.append(gate)
            try:
                await gate.wait()
            finally:
                self.at_once -= 1

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self, tasks: list[asyncio.Task[None]]) -> None:
        while not all(task.done() for task in tasks):
            await self.settle()
            for gate in self.gates:
                gate.set()
            await self.settle()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_single_audit_does_not_wait_for_another_tenants_campaign() -> None:
    work = Work(FairQueue(2))
    tasks = [work.ask("campaign", f"audit-{number}") for number in range(50)]
    await work.settle()
    tasks += [work.ask("single", "mine") for _ in range(3)]
    await work.settle()
    assert work.begun == [("campaign", "audit-0"), ("campaign", "audit-1")]
    work.gates[0].set()
    await work.settle()
    # From here on each has one place: no more than three of the campaign's units begin before the last of the single's.
    await work.finish(tasks)
    last = max(position for position, (tenant, _) in enumerate(work.begun) if tenant == "single")
    assert work.begun[2] == ("single", "mine")
    assert sum(tenant == "campaign" for tenant, _ in work.begun[2:last]) <= 3


async def test_a_tenants_single_audit_takes_turns_with_its_campaigns() -> None:
    work = Work(FairQueue(1))
    tasks = [work.ask("a", f"audit-{number}", group) for number in range(10) for group in ("one", "two")]
    await work.settle()
    tasks += [work.ask("a", "mine") for _ in range(3)] + [work.ask("b", "b") for _ in range(3)]
    await work.finish(tasks)
    order = [audit for _, audit in work.begun]
    # Another tenant has every second place, and of the rest the single audit has every third.
    assert [position for position, audit in enumerate(order) if audit == "b"] == [1, 3, 5]
    rest = [audit for audit in order if audit != "b"]
    assert [position for position, audit in enumerate(rest) if audit == "mine"] == [2, 5, 8]
    assert [audit for audit in rest if audit != "mine"] == [f"audit-{number}" for number in range(10) for _ in "ab"]


async def test_a_tenants_audits_come_in_order() -> None:
    work = Work(FairQueue(1))
    tasks = [work.ask("a", audit) for audit in ("third", "second", "first", "third", "second", "first")]
    await work.finish(tasks)
    assert [audit for _, audit in work.begun] == ["third"] + ["first"] * 2 + ["second"] * 2 + ["third"]


async def test_tenants_rotate() -> None:
    work = Work(FairQueue(1))
    tasks = [work.ask(tenant, tenant) for tenant in ("a", "a", "a", "b", "b", "c")]
    await work.finish(tasks)
    assert [tenant for tenant, _ in work.begun] == ["a", "b", "c", "a", "b", "a"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), min_size=1, max_size=25),
)
def test_no_place_is_lost_and_none_given_twice(places: int, asked: list[tuple[str, str, bool]]) -> None:
    async def run() -> None:
        work = Work(FairQueue(places))
        tasks = [work.ask(tenant, audit) for tenant, audit, _ in asked]
        await work.settle()
        for task, (_, _, cancelled) in zip(tasks, asked, strict=True):
            if cancelled:
                task.cancel()
        await work.finish(tasks)
        assert work.most <= places
        kept = [task for task, (_, _, cancelled) in zip(tasks, asked, strict=True) if not cancelled]
        assert all(task.exception() is None for task in kept)
        # Every place is there again.
        more = [work.ask("d", "z") for _ in range(places)]
        await work.settle()
        assert work.at_once == places
        await work.finish(more)

    asyncio.run(run())


async def test_one_that_is_cancelled_just_as_it_is_given_a_place_gives_it_back() -> None:
    queue = FairQueue(1)
    async with queue.turn("a", (1, "x")):
        waiting = asyncio.create_task(_hold(queue))
        await asyncio.sleep(0)
    # The place is the waiting one's now, which has not run since.
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5), queue.turn("b", (2, "y")):
        pass


async def _hold(queue: FairQueue) -> None:
    async with queue.turn("a", (1, "x")):
        pytest.fail("it was cancelled before")
