"""Ends registrations of models: has each checked in a process of its own, some at once, and records what comes of it.

The database holds the state (`storage/models.py`). A registration that a coordinator leaves behind is checked again by
another one, as soon as the lease of the first has run out.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from unerase.v1.models_pb2 import Model
from unerase_backend.catalogue.definitions import Definition, name_of
from unerase_backend.checking.process import Registrable
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.models import Registration
from unerase_backend.machine import cores
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UnavailableError

_logger = logging.getLogger(__name__)

Examine = Callable[[str, Mapping[str, Any]], Awaitable[Registrable]]
"""Checks a model by its name and entry, as `checking.process.register_in_process`."""

# How often the check of a registration that was deleted, or taken over, is noticed.
_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 20.0
# A process of a check takes half a gigabyte, and reads as fast as a disk gives.
_MOST_BY_DEFAULT = 4


def default_at_once() -> int:
    """Return how many checks run at once unless a setting says so: one for each core of this process, at most 4."""
    return min(cores().usable, _MOST_BY_DEFAULT)


class Registrations:
    """The registrations that this coordinator checks, `at_once` at a time; tenants take turns."""

    def __init__(
        self,
        database: Database,
        store: ArtifactStore,
        metrics: Metrics,
        examine: Examine,
        *,
        checker: str,
        retry_seconds: float,
        at_once: int,
        again_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._registry = database.models
        self._store = store
        self._metrics = metrics
        self._examine = examine
        self._checker = checker
        self._retry_seconds = retry_seconds
        self._at_once = at_once
        self._again_seconds = again_seconds
        self._served: dict[str, int] = {}
        self._turn = 0
        self._work: asyncio.Task[None] | None = None
        self._running: dict[str, str] = {}  # the tenant of each check that runs, by the key of its request
        self._changed = asyncio.Event()  # something may wait, or a check has ended

    def begin(self) -> None:
        """Check what waits in the background; what is added meanwhile is checked as well."""
        self._changed.set()
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._all(), context=Context())

    async def begin_left(self) -> None:
        """Check what other coordinators have left behind, and what is to be tried again."""
        self._metrics.set_registrations(await self._registry.counts())
        if await self._registry.waiting(self._checker, self._running):
            self.begin()

    async def idle(self) -> None:
        """Return once nothing that may be tried now is left."""
        while self._work is not None and not self._work.done():
            await asyncio.wait([self._work])

    async def close(self) -> None:
        """Stop; another coordinator, or the next one here, checks what is left."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _all(self) -> None:
        self._running.clear()
        try:
            async with asyncio.TaskGroup() as checks:
                while self._changed.is_set() or self._running:
                    await self._changed.wait()
                    self._changed.clear()
                    while len(self._running) < self._at_once and (registration := await self._next()) is not None:
                        self._running[registration.request_key] = registration.tenant
                        checks.create_task(self._run(registration))
        except Exception:
            _logger.warning("registrations could not be read; trying again later", exc_info=True)

    async def _run(self, registration: Registration) -> None:
        try:
            await self._end(registration)
        finally:
            del self._running[registration.request_key]
            self._changed.set()

    async def _next(self) -> Registration | None:
        """Take a registration of the tenant that has waited longest for one."""
        waiting = await self._registry.waiting(self._checker, self._running)
        for tenant in sorted(waiting, key=lambda each: (self._served.get(each, 0), each)):
            if (found := await self._registry.claim(tenant, self._checker, self._running)) is not None:
                self._turn += 1
                known = {*waiting, *self._running.values()}
                self._served = {each: turn for each, turn in self._served.items() if each in known}
                self._served[tenant] = self._turn
                return found
        return None

    async def _end(self, registration: Registration) -> None:
        begin = time.monotonic()
        try:
            outcome = await self._outcome(registration)
        except asyncio.CancelledError:
            await asyncio.shield(self._registry.release(registration, self._checker))
            raise
        except UnavailableError as error:
            outcome = await self._again(registration, error)
        except Exception:
            incident = uuid.uuid4().hex[:12]
            _logger.error("incident %s in the registration of a model", incident, exc_info=True)
            message = f"an unexpected error occurred; the coordinator's log has it as incident {incident}"
            await self._registry.refuse(registration, self._checker, reason="INTERNAL", message=message)
            outcome = "failed"
        self._metrics.registered(outcome, time.monotonic() - begin)

    async def _outcome(self, registration: Registration) -> str:
        """Check a registration and record its end; return the outcome for the metrics."""
        new = registration.new
        found = await self._found(registration)
        if found is None:
            return "stopped"
        if not found.content:
            await self._registry.refuse(
                registration, self._checker, reason=found.reason, message=found.message, check=found.check
            )
            return "refused"
        assert found.check is not None  # noqa: S101 - a model with a definition was checked
        definition = Definition.from_bytes(found.content)
        described = Model()
        described.CopyFrom(definition.described)
        entry = entry_of(registration)
        described.name, described.base, described.registered = new.name, entry.get("base", ""), True
        described.labels.update(entry.get("labels", {}))

        async def keep(content: bytes) -> str:
            return await asyncio.to_thread(self._store.put, content)

        done = await self._registry.register(
            registration, self._checker, content=found.content, described=described, check=found.check, keep=keep
        )
        return "registered" if done else "stopped"

    async def _found(self, registration: Registration) -> Registrable | None:
        """Return what the check finds; None if the registration was deleted or taken over meanwhile."""
        entry = await self._inward(registration)
        check = asyncio.ensure_future(self._examine(registration.new.name, entry))
        try:
            while not (await asyncio.wait([check], timeout=_LOOK_SECONDS))[0]:
                if not await self._registry.holds(registration, self._checker):
                    return None
            return check.result()
        finally:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)

    async def _inward(self, registration: Registration) -> dict[str, Any]:
        """Return the entry of a registration with a registered base by the name that rooms know."""
        entry = entry_of(registration)
        for base in await self._registry.named([str(entry.get("base", ""))], registration.tenant):
            # The store may have lost it.
            await asyncio.to_thread(self._store.put, base.content)
            entry["base"] = name_of(base.content)
        return entry

    async def _again(self, registration: Registration, error: UnavailableError) -> str:
        """Try a registration again later, or refuse it if that has been tried for long."""
        age = time.time() - registration.message.create_time.ToNanoseconds() / 1e9
        if age > self._retry_seconds:
            await self._registry.refuse(registration, self._checker, reason=error.reason, message=error.message)
            return "failed"
        _logger.warning("a model cannot be registered yet, trying again: %s", error.message)
        await self._registry.release(registration, self._checker, self._again_seconds)
        return "postponed"


def entry_of(registration: Registration) -> dict[str, Any]:
    """Return the entry of a registration as it was sent."""
    return read_struct(registration.new.entry)


def read_struct(struct: Struct) -> dict[str, Any]:
    """Return the content of a Struct.

    Raises:
        ValueError: it holds a number that does not exist, as NaN.
    """
    try:
        content: dict[str, Any] = _plain(json_format.MessageToDict(struct))
    except (json_format.Error, ValueError):
        raise ValueError("must not hold NaN or infinity") from None
    return content


def _plain(value: Any) -> Any:
    """Return a value of a Struct, whose numbers are all floating, with whole ones as integers."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
