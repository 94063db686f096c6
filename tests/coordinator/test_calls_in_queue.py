"""Shares of what is scarce: however much one tenant asks for, another one's turn comes."""

import asyncio
import threading

import pytest

from unerase.internal.v1alpha1.generation_pb2 import EncodeRequest, EncodeResponse
from unerase_backend.coordinator.api.rooms_proxy import ROOMS, _handler
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.runtime.access import CALLER, Caller
from unerase_backend.runtime.handles import GENERATION


async def of(tenant: str, call: object) -> object:
    CALLER.set(Caller(tenant, frozenset()))
    return await call  # type: ignore[misc]


@pytest.fixture
def queue() -> FairQueue:
    return FairQueue(3, per_tenant=2)


async def test_a_tenant_has_its_share_and_another_one_the_rest(queue: FairQueue) -> None:
    release = threading.Event()
    begun = [threading.Event() for _ in range(10)]

    def work(index: int) -> int:
        begun[index].set()
        release.wait(30)
        return index

    greedy = [asyncio.create_task(of("greedy", queue.run(work, index))) for index in range(9)]
    for first in begun[:2]:
        assert await asyncio.to_thread(first.wait, 30)
    other = asyncio.create_task(of("other", queue.run(work, 9)))
    assert await asyncio.to_thread(begun[9].wait, 30)
    assert [each.is_set() for each in begun] == [True] * 2 + [False] * 7 + [True]
    release.set()
    assert await asyncio.gather(*greedy, other) == list(range(10))


async def test_who_gives_up_keeps_its_share_until_the_thread_is_done(queue: FairQueue) -> None:
    release, begun, after = threading.Event(), threading.Semaphore(0), threading.Event()

    def work() -> None:
        begun.release()
        release.wait(30)

    tasks = [asyncio.create_task(of("greedy", queue.run(work))) for _ in range(2)]
    for _ in tasks:
        assert await asyncio.to_thread(begun.acquire, True, 30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    waiting = asyncio.create_task(of("greedy", queue.run(after.set)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not after.is_set()
    release.set()
    await asyncio.wait_for(waiting, 30)
    assert after.is_set()


async def test_who_waits_and_goes_takes_nothing_along(queue: FairQueue) -> None:
    async def held(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with queue.turn():
            entered.set()
            await leave.wait()

    leave = asyncio.Event()
    entered = [asyncio.Event() for _ in range(2)]
    tasks = [asyncio.create_task(of("a", held(each, leave))) for each in entered]
    for each in entered:
        await each.wait()
    gone = asyncio.create_task(of("a", held(asyncio.Event(), leave)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    leave.set()
    await asyncio.gather(*tasks)
    # Every place is free again, and nothing is kept of a tenant that has none.
    assert (queue._waiting, queue._held, queue._free) == ({}, {}, 3)


class BusyRoom:
    """A room behind, each of whose requests takes until it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.came = asyncio.Event()
        self.leave = asyncio.Event()

    async def call(self, name: str, message: EncodeRequest) -> EncodeResponse:
        self.begun.append(message.model)
        self.came.set()
        await self.leave.wait()
        return EncodeResponse()


async def test_a_room_behind_has_places_for_each_tenant(queue: FairQueue) -> None:
    room = BusyRoom()
    method = ROOMS[GENERATION].methods_by_name["Encode"]
    call = _handler(room, method, queue).unary_unary  # type: ignore[arg-type]
    greedy = [asyncio.create_task(of("greedy", call(EncodeRequest(model="greedy"), None))) for _ in range(9)]
    while len(room.begun) < 2:
        await room.came.wait()
        room.came.clear()
    other = asyncio.create_task(of("other", call(EncodeRequest(model="other"), None)))
    await asyncio.wait_for(room.came.wait(), 30)
    assert room.begun == ["greedy", "greedy", "other"]
    room.leave.set()
    assert await asyncio.gather(*greedy, other) == [EncodeResponse()] * 10
