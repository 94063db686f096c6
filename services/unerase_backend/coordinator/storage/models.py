"""The registered models of all tenants, and the state of each registration.

A registration is `checking` from its first row on. One coordinator at a time checks it: the one whose id its row holds,
as long as that coordinator's lease runs. What the check ends with is written only while that is so, and only once.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.models_pb2 import (
    REGISTRATION_STATE_CHECKING,
    REGISTRATION_STATE_REFUSED,
    REGISTRATION_STATE_REGISTERED,
    Model,
    ModelCheck,
    ModelRegistration,
    NewModel,
)
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.artifact_collection import discard
from unerase_backend.coordinator.storage.audits import timestamp
from unerase_backend.coordinator.storage.engine import Engine, alone, insert_all
from unerase_backend.coordinator.storage.leases import now_of
from unerase_backend.coordinator.storage.tables import MAX_REASON, deterministic, own, storable
from unerase_backend.coordinator.storage.write_retry import repeated
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError

_TABLE = tables.models.c
_REGISTRATIONS = "registrations"
# Names are bounded, so that a page of them is.
_NAMED_AT_ONCE = 500


@dataclass(frozen=True)
class Registration:
    """A registration, whatever its state."""

    key: str
    """The name's key in the database."""
    tenant: str
    request_digest: str
    new: NewModel
    message: ModelRegistration
    """What callers see of it."""
    definition: str
    """The digest of the definition; empty unless it is registered."""
    content: bytes
    """The definition; empty unless it is registered."""

    @property
    def request_key(self) -> str:
        """The key of the request that began it in the database."""
        return own(self.tenant, self.message.request_id)


@dataclass(frozen=True)
class NamedDefinition:
    """The definition of a registered model, and what its tenant calls it."""

    called: str
    definition: str
    content: bytes


class ModelRegistry:
    """The registered models, each of which belongs to a tenant."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @repeated
    async def insert(
        self, new: NewModel, request_id: str, request_digest: str, *, tenant: str = "", base: str = "", most: int = 0
    ) -> bool:
        """Begin a registration; False if its name or the request id is taken. A refused model gives its name up.

        `base` is the name of its base if that is a registered model, and `most` the most models of a tenant, 0 for any.

        Raises:
            ExhaustedError: the tenant has as many models as it may.
            PreconditionError: the base was deleted meanwhile.
        """
        key, base_key = own(tenant, new.name), own(tenant, base) if base else ""
        row = {
            "name": key,
            "request_id": own(tenant, request_id),
            "tenant": tenant,
            "called": new.name,
            "asked_as": request_id,
            "request_digest": request_digest,
            "base": base_key,
            "message": deterministic(new),
            "state": REGISTRATION_STATE_CHECKING,
            "create_time": time.time_ns(),
            "end_time": 0,
        }
        refused = sa.and_(_TABLE.name == key, _TABLE.state == REGISTRATION_STATE_REFUSED)
        try:
            async with self._engine.begin() as connection:
                await alone(connection, f"models {tenant}")
                # After a commit whose answer was lost, the registration is there already.
                same = sa.select(_TABLE.name).where(_TABLE.request_id == row["request_id"])
                if (await connection.execute(same)).first() is not None:
                    return False
                await connection.execute(sa.delete(tables.models).where(refused))
                if most and await _count(connection, tenant) >= most:
                    raise _full(most)
                if base and not await _there(connection, base_key):
                    raise _base_gone(base)
                await connection.execute(sa.insert(tables.models).values(row))
        except sa.exc.IntegrityError:
            return False
        return True

    async def by_request(self, request_id: str, tenant: str = "") -> Registration | None:
        """Return the registration that a tenant began with a request id."""
        return await self._one(_TABLE.request_id == own(tenant, request_id), _TABLE.tenant == tenant)

    async def get(self, name: str, tenant: str = "") -> Registration | None:
        """Return a tenant's registration by the model's name."""
        return None if "\0" in name else await self._one(_TABLE.name == own(tenant, name), _TABLE.tenant == tenant)

    async def names(self, tenant: str = "") -> list[str]:
        """Return the names of a tenant's registered models."""
        query = sa.select(_TABLE.called).where(_TABLE.tenant == tenant, _TABLE.state == REGISTRATION_STATE_REGISTERED)
        async with self._engine.connect() as connection:
            return [row.called for row in await connection.execute(query)]

    async def models(self, tenant: str = "") -> list[Model]:
        """Return a tenant's registered models, as they were when they were registered."""
        columns = (_TABLE.described, _TABLE.message)
        query = sa.select(*columns).where(_TABLE.tenant == tenant, _TABLE.state == REGISTRATION_STATE_REGISTERED)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [_labelled(row.described, NewModel.FromString(row.message)) for row in rows]

    async def named(self, names: Sequence[str], tenant: str = "") -> list[Registration]:
        """Return those of the named models that are registered for the tenant."""
        # PostgreSQL refuses text that contains a NUL; no model has such a name.
        keys = [own(tenant, name) for name in names if name and "\0" not in name]
        found = []
        async with self._engine.connect() as connection:
            for begin in range(0, len(keys), _NAMED_AT_ONCE):
                some = _TABLE.name.in_(keys[begin : begin + _NAMED_AT_ONCE])
                registered = _TABLE.state == REGISTRATION_STATE_REGISTERED
                query = sa.select(tables.models).where(some, _TABLE.tenant == tenant, registered)
                found += [_registration(row) for row in await connection.execute(query)]
        return found

    async def definitions(self, names: Sequence[str], tenant: str = "") -> list[NamedDefinition]:
        """Return the definitions of those of the named models that the tenant has registered, and of their bases."""
        keys = {own(tenant, name) for name in names if name and "\0" not in name}
        found: dict[str, NamedDefinition] = {}
        registered = _TABLE.state == REGISTRATION_STATE_REGISTERED
        async with self._engine.connect() as connection:
            while missing := sorted(keys - {*found}):
                some = sa.and_(_TABLE.name.in_(missing), _TABLE.tenant == tenant, registered)
                query = sa.select(_TABLE.name, _TABLE.called, _TABLE.base, _TABLE.definition, _TABLE.content)
                rows = (await connection.execute(query.where(some))).all()
                found |= {row.name: NamedDefinition(row.called, row.definition, row.content) for row in rows}
                keys = {*found} | {row.base for row in rows if row.base}
        return list(found.values())

    @repeated
    async def delete(self, name: str, tenant: str = "") -> bool:
        """Delete a tenant's model, or the record of its registration; False if there is none of this name.

        Raises:
            PreconditionError: another model of the tenant is a change of it.
        """
        if "\0" in name:
            return False
        key = own(tenant, name)
        which = sa.and_(_TABLE.name == key, _TABLE.tenant == tenant)
        made_of_it = sa.select(_TABLE.called).where(_TABLE.base == key, _TABLE.state != REGISTRATION_STATE_REFUSED)
        async with self._engine.begin() as connection:
            await alone(connection, f"models {tenant}")
            row = (await connection.execute(sa.select(_TABLE.definition).where(which))).first()
            if row is None:
                return False
            made = (await connection.execute(made_of_it.order_by(_TABLE.called).limit(1))).first()
            if made is not None:
                raise PreconditionError(
                    f"the model {name!r} is the base of {made.called!r}; delete that one first",
                    reason="MODEL_IN_USE",
                    metadata={"model": name, "used_by": made.called},
                )
            await connection.execute(sa.delete(tables.models).where(which))
            if row.definition:
                await discard(connection, {row.definition})
        return True

    async def waiting(self, checker: str, running: Collection[str] = ()) -> list[str]:
        """Return the tenants that have registrations which nobody else checks and which may be tried now.

        `running` are the keys of the requests whose registrations the coordinator `checker` checks already.
        """
        async with self._engine.connect() as connection:
            query = sa.select(_TABLE.tenant).where(_waiting(connection, checker, running)).distinct()
            return [row.tenant for row in await connection.execute(query)]

    @repeated
    async def claim(self, tenant: str, checker: str, running: Collection[str] = ()) -> Registration | None:
        """Take the oldest registration of a tenant that nobody checks, for the coordinator `checker`; as `waiting`."""
        async with self._engine.begin() as connection:
            await alone(connection, _REGISTRATIONS)
            query = sa.select(tables.models).where(_waiting(connection, checker, running), _TABLE.tenant == tenant)
            row = (await connection.execute(query.order_by(_TABLE.create_time, _TABLE.name).limit(1))).first()
            if row is None:
                return None
            await connection.execute(_checked_by(row.request_id).values(checker=checker))
            return _registration(row)

    async def holds(self, registration: Registration, checker: str) -> bool:
        """Return whether a coordinator still checks a registration."""
        query = sa.select(_TABLE.name).where(_held(registration, checker))
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).first() is not None

    @repeated
    async def release(self, registration: Registration, checker: str, after_seconds: float = 0.0) -> None:
        """Give a registration up, so that some coordinator checks it after some seconds."""
        later = time.time_ns() + int(after_seconds * 1e9)
        async with self._engine.begin() as connection:
            held = sa.update(tables.models).where(_held(registration, checker))
            await connection.execute(held.values(checker="", try_after=later))

    @repeated
    async def register(
        self,
        registration: Registration,
        checker: str,
        *,
        content: bytes,
        described: Model,
        check: ModelCheck,
        keep: Callable[[bytes], Awaitable[str]],
    ) -> bool:
        """End a registration with its model; False if the registration is gone, or another coordinator checks it.

        `keep` puts the definition into the artefact store and returns its digest. No collection runs meanwhile.
        """
        async with self._engine.begin() as connection:
            await alone(connection, "collect")
            definition = await keep(content)
            ended = await connection.execute(
                sa.update(tables.models)
                .where(_held(registration, checker))
                .values(
                    state=REGISTRATION_STATE_REGISTERED,
                    end_time=time.time_ns(),
                    definition=definition,
                    content=content,
                    described=deterministic(described),
                    checked=deterministic(check),
                )
            )
            if not ended.rowcount:
                await discard(connection, {definition})
            return bool(ended.rowcount)

    @repeated
    async def refuse(
        self, registration: Registration, checker: str, *, reason: str, message: str, check: ModelCheck | None = None
    ) -> bool:
        """End a registration without a model; as `register`."""
        values = {
            "state": REGISTRATION_STATE_REFUSED,
            "end_time": time.time_ns(),
            "error_reason": reason[:MAX_REASON],
            "error_message": storable(message),
            "checked": deterministic(check) if check is not None else None,
        }
        async with self._engine.begin() as connection:
            held = sa.update(tables.models).where(_held(registration, checker))
            return bool((await connection.execute(held.values(**values))).rowcount)

    async def counts(self) -> dict[int, int]:
        """Return the number of registrations by state."""
        query = sa.select(_TABLE.state, sa.func.count().label("number")).group_by(_TABLE.state)
        async with self._engine.connect() as connection:
            return {row.state: row.number for row in await connection.execute(query)}

    async def of_audit(self, audit_id: str) -> list[NamedDefinition]:
        """Return the registered models of an audit, bases included, as they were when it was accepted."""
        table = tables.audit_models.c
        query = sa.select(table.called, table.definition, table.content).where(table.audit == audit_id)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [NamedDefinition(row.called, row.definition, row.content) for row in rows]

    async def _one(self, *conditions: sa.ColumnElement[bool]) -> Registration | None:
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(tables.models).where(*conditions))).first()
        return _registration(row) if row else None


async def keep_models(connection: AsyncConnection, audit_id: str, models: Sequence[NamedDefinition]) -> None:
    """Keep the registered models of an audit, within the transaction that inserts it."""
    rows = [
        {"audit": audit_id, "definition": each.definition, "called": each.called, "content": each.content}
        for each in models
    ]
    await insert_all(connection, tables.audit_models, rows)


def definitions_of(audit_id: str) -> sa.Select[tuple[str]]:
    """Return the query of the digests of an audit's definitions."""
    return sa.select(tables.audit_models.c.definition.label("digest")).where(tables.audit_models.c.audit == audit_id)


def _waiting(connection: AsyncConnection, checker: str, running: Collection[str]) -> sa.ColumnElement[bool]:
    """Hold for registrations that may be tried now, and that nobody checks; `checker` checks those that are running."""
    table = tables.coordinators.c
    living = sa.select(table.id).where(table.expires > now_of(connection.dialect), table.id != checker)
    return sa.and_(
        _TABLE.state == REGISTRATION_STATE_CHECKING,
        _TABLE.try_after <= time.time_ns(),
        _TABLE.checker.not_in(living),
        _TABLE.request_id.not_in(list(running)),
    )


def _held(registration: Registration, checker: str) -> sa.ColumnElement[bool]:
    """Hold for a registration that is being checked by a coordinator, and was not begun anew under the same name."""
    return sa.and_(
        _TABLE.name == registration.key,
        _TABLE.request_id == registration.request_key,
        _TABLE.state == REGISTRATION_STATE_CHECKING,
        _TABLE.checker == checker,
    )


def _checked_by(request_id: str) -> sa.Update:
    return sa.update(tables.models).where(_TABLE.request_id == request_id, _TABLE.state == REGISTRATION_STATE_CHECKING)


async def _count(connection: AsyncConnection, tenant: str) -> int:
    number: int = (await connection.execute(sa.select(sa.func.count()).where(_TABLE.tenant == tenant))).scalar_one()
    return number


async def _there(connection: AsyncConnection, key: str) -> bool:
    which = sa.and_(_TABLE.name == key, _TABLE.state == REGISTRATION_STATE_REGISTERED)
    return (await connection.execute(sa.select(_TABLE.name).where(which))).first() is not None


def _full(most: int) -> ExhaustedError:
    return ExhaustedError(
        f"the quota of {counted(most, 'registered model')} is used up; delete one",
        reason="QUOTA_MODELS",
        metadata={"limit": str(most), "used": str(most)},
    )


def _base_gone(base: str) -> PreconditionError:
    message = f"the base {base!r} was deleted meanwhile; register it again"
    return PreconditionError(message, reason="MODEL_DELETED", metadata={"model": base})


def _labelled(described: bytes, new: NewModel) -> Model:
    model = Model.FromString(described)
    model.labels.update(new.labels)
    return model


def _registration(row: Any) -> Registration:
    new = NewModel.FromString(row.message)
    message = ModelRegistration(
        name=row.called,
        request_id=row.asked_as,
        state=row.state,
        create_time=timestamp(row.create_time),
        error_reason=row.error_reason,
        error_message=row.error_message,
    )
    if row.end_time:
        message.end_time.CopyFrom(timestamp(row.end_time))
    if row.described is not None:
        message.model.CopyFrom(_labelled(row.described, new))
    if row.checked is not None:
        message.check.MergeFromString(row.checked)
    return Registration(row.name, row.tenant, row.request_digest, new, message, row.definition, row.content or b"")
