import asyncio
from collections.abc import Sequence

import pytest

from unerase_backend.coordinator.execution.notifications import Notifications


class Sequences:
    """The last sequence numbers of some audits, and how often they were asked for."""

    def __init__(self, **last: int) -> None:
        self.last = last
        self.asked: list[list[str]] = []
        self.failing = False
        self.asked_again = asyncio.Event()

    async def __call__(self, ids: Sequence[str]) -> dict[str, int]:
        self.asked.append(list(ids))
        self.asked_again.set()
        if self.failing:
            raise OSError("the database is gone")
        return {name: self.last[name] for name in ids if name in self.last}


async def test_what_was_committed_before_waiting_is_not_missed() -> None:
    sequences = Sequences(a=1)
    with Notifications(sequences, 60).watching("a") as watched:
        await asyncio.wait_for(watched.wait(watched.version), 1)


async def test_a_commit_wakes_its_audits_watchers_and_no_others() -> None:
    sequences = Sequences(a=1, b=1)
    notifications = Notifications(sequences, 60)
    with notifications.watching("a") as a, notifications.watching("a") as again, notifications.watching("b") as b:
        for watched in (a, b):
            await asyncio.wait_for(watched.wait(0), 1)
        waiting = [asyncio.create_task(watched.wait(watched.version)) for watched in (a, again)]
        other = asyncio.create_task(b.wait(b.version))
        sequences.last["a"] = 2
        await notifications.announce()
        await asyncio.wait_for(asyncio.gather(*waiting), 1)
        assert not other.done()
        other.cancel()


@pytest.mark.parametrize("deleted", [False, True])
async def test_what_another_process_commits_is_seen_by_the_next_look(deleted: bool) -> None:
    sequences = Sequences(a=1)
    with Notifications(sequences, 0.01).watching("a") as watched:
        await asyncio.wait_for(watched.wait(0), 1)
        version = watched.version
        if deleted:
            del sequences.last["a"]
        else:
            sequences.last["a"] = 2
        await asyncio.wait_for(watched.wait(version), 1)


async def test_a_look_that_fails_is_not_the_last() -> None:
    sequences = Sequences(a=1)
    sequences.failing = True
    with Notifications(sequences, 0.01).watching("a") as watched:
        waiting = asyncio.create_task(watched.wait(0))
        await sequences.asked_again.wait()
        sequences.failing = False
        await asyncio.wait_for(waiting, 1)


async def test_any_number_of_watchers_costs_one_look_and_none_costs_nothing() -> None:
    sequences = Sequences(**{f"a{number}": 1 for number in range(100)})
    notifications = Notifications(sequences, 0.01)

    async def watch(number: int) -> None:
        with notifications.watching(f"a{number % 100}") as watched:
            await watched.wait(0)
            await watched.wait(watched.version)

    watchers = [asyncio.create_task(watch(number)) for number in range(1000)]
    for _ in range(10):
        sequences.asked_again.clear()
        await asyncio.wait_for(sequences.asked_again.wait(), 1)
    assert all(len(ids) <= 100 for ids in sequences.asked)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    # The look that is under way is the last one.
    assert notifications._looking is not None
    await asyncio.wait_for(notifications._looking, 1)
