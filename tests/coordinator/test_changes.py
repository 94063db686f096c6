import asyncio

from unerase_backend.coordinator.changes import Changes


async def test_what_was_announced_before_waiting_is_not_missed() -> None:
    changes = Changes()
    version = changes.version
    await changes.announce()
    await asyncio.wait_for(changes.wait(version, 60), 1)


async def test_every_watcher_is_woken() -> None:
    changes = Changes()
    watchers = [asyncio.create_task(changes.wait(changes.version, 60)) for _ in range(5)]
    await asyncio.sleep(0)
    await changes.announce()
    await asyncio.wait_for(asyncio.gather(*watchers), 1)


async def test_a_wait_ends_with_its_timeout() -> None:
    await asyncio.wait_for(Changes().wait(0, 0.01), 1)
