"""The quotas of tenants: audits in flight, pictures a day, bytes of stored pictures."""

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase_backend.coordinator.states import ACTIVE
from unerase_backend.coordinator.storage import tables
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import ExhaustedError

RETRY_SECONDS = 30.0
"""An audit or a campaign may end or be deleted at any moment, but there is no use in trying more often than this."""

_DAY_SECONDS = 86400.0
SPENT = (tables.audits.c.id, tables.audits.c.tenant, tables.audits.c.create_time, tables.audits.c.pictures)
"""The columns of an audit that `keep_spent` needs."""


@dataclass(frozen=True)
class Usage:
    """What a tenant uses of its quota."""

    audits: int
    """Audits that have not ended."""
    pictures: int
    """Pictures of audits created within the last day, deleted or not, and all that audits in flight may make."""
    pictures_free_in_seconds: float
    """When some of these pictures stop counting; 0 if audits in flight may still end with fewer than they may make."""
    bytes: int
    """The size of the pictures of all the tenant's audits, and of those that audits in flight have yet to make."""


@dataclass(frozen=True)
class Demand:
    """What an audit takes of a quota."""

    pictures: int = 0
    bytes: int = 0


async def usage_of(connection: AsyncConnection, tenant: str) -> Usage:
    """Return what a tenant uses, as seen by the transaction that will add to it."""
    day_ago = time.time_ns() - int(_DAY_SECONDS * 1e9)
    table = tables.audits.c
    mine, recent, active = table.tenant == tenant, table.create_time > day_ago, table.state.in_(ACTIVE)
    in_flight = sa.select(table.pictures, table.counted_pictures, table.counted_bytes).where(mine, active)
    pictures = sa.select(sa.func.coalesce(sa.func.sum(table.pictures), 0), sa.func.min(table.create_time)).where(
        mine, recent, ~active, table.pictures > 0
    )
    stored = sa.select(sa.func.coalesce(sa.func.sum(tables.artifacts.c.size_bytes), 0)).where(
        tables.artifacts.c.audit.in_(sa.select(tables.audits.c.id).where(mine))
    )
    gone = tables.spent.c
    deleted = sa.select(sa.func.coalesce(sa.func.sum(gone.pictures), 0), sa.func.min(gone.create_time)).where(
        gone.tenant == tenant, gone.create_time > day_ago
    )
    sums = [(await connection.execute(query)).one() for query in (pictures, deleted)]
    made = sum(int(row[0]) for row in sums)
    oldest = min((row[1] for row in sums if row[1]), default=None)
    flying = (await connection.execute(in_flight)).all()
    held = sum(max(row.counted_pictures, row.pictures) for row in flying)
    to_make = sum(
        row.counted_bytes * (1 - min(row.pictures / row.counted_pictures, 1.0))
        for row in flying
        if row.counted_pictures
    )
    soon = any(row.counted_pictures > row.pictures for row in flying)
    return Usage(
        audits=len(flying),
        pictures=made + held,
        pictures_free_in_seconds=(oldest - day_ago) / 1e9 if oldest and not soon else 0.0,
        bytes=int((await connection.execute(stored)).scalar_one()) + round(to_make),
    )


async def keep_spent(connection: AsyncConnection, gone: Any) -> None:
    """Keep counting a deleted audit's pictures for its day; drop records that are older than a day.

    `gone` is a row of `SPENT`.
    """
    day_ago, spent = time.time_ns() - int(_DAY_SECONDS * 1e9), tables.spent
    await connection.execute(sa.delete(spent).where(spent.c.create_time <= day_ago))
    if gone.pictures and gone.create_time > day_ago:
        values = {"audit": gone.id, "tenant": gone.tenant, "create_time": gone.create_time, "pictures": gone.pictures}
        await connection.execute(sa.insert(spent).values(**values))


def check_quota(quota: Quota, usage: Usage, demand: Demand) -> None:
    """Check that a tenant's quota allows an audit with this demand.

    Raises:
        ExhaustedError: a quota is used up, or the audit would exceed it.
    """
    if quota.audits and usage.audits >= quota.audits:
        raise _exhausted(
            "QUOTA_AUDITS", ("audit", "in flight"), quota.audits, usage.audits, "wait for one to end, or cancel one"
        )
    if _beyond(quota.pictures_per_day, usage.pictures, demand.pictures):
        raise _exhausted(
            "QUOTA_PICTURES",
            ("picture", "a day"),
            quota.pictures_per_day,
            usage.pictures,
            "wait for audits in flight to end or for the day to pass",
            max(usage.pictures_free_in_seconds, RETRY_SECONDS),
            demand.pictures,
        )
    if _beyond(quota.bytes, usage.bytes, demand.bytes):
        raise _exhausted(
            "QUOTA_BYTES",
            ("byte", "of pictures"),
            quota.bytes,
            usage.bytes,
            "delete audits that have ended",
            asked=demand.bytes,
        )


def _beyond(limit: int, used: int, asked: int) -> bool:
    return bool(limit) and (used >= limit or used + asked > limit)


def _exhausted(
    reason: str,
    what: tuple[str, str],
    limit: int,
    used: int,
    remedy: str,
    retry_after_seconds: float | None = RETRY_SECONDS,
    asked: int = 0,
) -> ExhaustedError:
    noun, of = what
    whole, left = f"{counted(limit, noun)} {of}", limit - used
    problem = f"the quota of {whole} is used up"
    if asked > limit:
        # Waiting would not help.
        problem, remedy, retry_after_seconds = f"the quota is {whole}", "take fewer cases or evaluations", None
    elif used < limit:
        problem = f"{left:,} of the quota of {whole} {'is' if left == 1 else 'are'} left"
    metadata = {"limit": str(limit), "used": str(used)}
    if asked:
        problem += f", and this audit may take up to {asked:,}"
        metadata["asked"] = str(asked)
    return ExhaustedError(
        f"{problem}; {remedy}",
        reason=reason,
        metadata=metadata,
        retry_after_seconds=retry_after_seconds,
    )
