"""How much one tenant may have: audits in flight, pictures a day, bytes of pictures kept."""

import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase_backend.coordinator import tables
from unerase_backend.runtime.access import Quota
from unerase_backend.runtime.errors import ExhaustedError

_DAY_SECONDS = 86400.0
# Somebody may cancel, end or delete an audit at any moment; asking more often than this is of no use.
_RETRY_SECONDS = 30.0


@dataclass(frozen=True)
class Usage:
    """What a tenant has."""

    audits: int
    """Those that have not ended."""
    pictures: int
    """Those of audits that were created within the last day."""
    pictures_free_in_seconds: float
    """When the first of these audits will be a day old; 0 where there is none."""
    bytes: int
    """The size of the pictures of all its audits."""


async def usage_of(connection: AsyncConnection, tenant: str) -> Usage:
    """Return what a tenant has, within the transaction that is to add to it."""
    day_ago = time.time_ns() - int(_DAY_SECONDS * 1e9)
    mine, recent = tables.audits.c.tenant == tenant, tables.audits.c.create_time > day_ago
    active = sa.select(sa.func.count()).where(mine, tables.audits.c.state.in_(tables.ACTIVE))
    pictures = sa.select(
        sa.func.coalesce(sa.func.sum(tables.audits.c.pictures), 0), sa.func.min(tables.audits.c.create_time)
    ).where(mine, recent, tables.audits.c.pictures > 0)
    stored = sa.select(sa.func.coalesce(sa.func.sum(tables.artifacts.c.size_bytes), 0)).where(
        tables.artifacts.c.audit.in_(sa.select(tables.audits.c.id).where(mine))
    )
    made, oldest = (await connection.execute(pictures)).one()
    return Usage(
        audits=int((await connection.execute(active)).scalar_one()),
        pictures=int(made),
        pictures_free_in_seconds=(oldest - day_ago) / 1e9 if oldest else 0.0,
        bytes=int((await connection.execute(stored)).scalar_one()),
    )


def check_quota(quota: Quota, usage: Usage) -> None:
    """Let a tenant create an audit.

    Raises:
        ExhaustedError: it has as much as it may have of something already.
    """
    if quota.audits and usage.audits >= quota.audits:
        raise _exhausted(
            "QUOTA_AUDITS", "audits in flight", quota.audits, usage.audits, "wait for one to end, or cancel one"
        )
    if quota.pictures_per_day and usage.pictures >= quota.pictures_per_day:
        wait = max(usage.pictures_free_in_seconds, _RETRY_SECONDS)
        raise _exhausted(
            "QUOTA_PICTURES", "pictures a day", quota.pictures_per_day, usage.pictures, "wait for the day to pass", wait
        )
    if quota.bytes and usage.bytes >= quota.bytes:
        raise _exhausted("QUOTA_BYTES", "bytes of pictures", quota.bytes, usage.bytes, "delete audits that have ended")


def _exhausted(
    reason: str, what: str, limit: int, used: int, remedy: str, retry_after_seconds: float = _RETRY_SECONDS
) -> ExhaustedError:
    return ExhaustedError(
        f"the quota of {limit} {what} is used up; {remedy}",
        reason=reason,
        metadata={"limit": str(limit), "used": str(used)},
        retry_after_seconds=retry_after_seconds,
    )
