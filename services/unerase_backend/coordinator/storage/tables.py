"""The tables of the coordinator's database."""

import hashlib

import sqlalchemy as sa
from google.protobuf.message import Message

METADATA = sa.MetaData()

audits = sa.Table(
    "unerase_audits",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # Of a tenant's audit a hash of tenant and id, so that tenants may choose the same; the id itself is `asked_as`.
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    # SHA-256 of the request as it came, to tell a repetition from another request.
    sa.Column("request_digest", sa.String(64), nullable=False),
    # Empty where there are no tokens.
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    sa.Column("asked_as", sa.String(64), nullable=False, server_default=""),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("concept", sa.LargeBinary, nullable=False),
    sa.Column("cases", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("units_done", sa.Integer, nullable=False),
    sa.Column("units_total", sa.Integer, nullable=False),
    # Nanoseconds since 1970: the newest audits are listed first.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("end_time", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.LargeBinary, nullable=True),
    sa.Column("error_reason", sa.String(64), nullable=False),
    sa.Column("error_message", sa.Text, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    # Artefacts: the deterministic bytes of the ReportContent, the two forms of the report, and the observations.
    sa.Column("content_digest", sa.String(64), nullable=False),
    sa.Column("json_digest", sa.String(64), nullable=False),
    sa.Column("html_digest", sa.String(64), nullable=False),
    # Empty for an audit that ended before there was such an export.
    sa.Column("parquet_digest", sa.String(64), nullable=False, server_default=""),
    sa.Column("pictures", sa.BigInteger, nullable=False, server_default="0"),
    # The W3C traceparent of the call that asked for it; empty where nobody traces.
    sa.Column("traceparent", sa.String(64), nullable=False, server_default=""),
    # What it was counted to take: a message, and of it what the quotas add up while it is in flight.
    sa.Column("cost", sa.LargeBinary, nullable=True),
    sa.Column("counted_pictures", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("counted_bytes", sa.BigInteger, nullable=False, server_default="0"),
    # Expected work of all its units and of those that are done, in seconds, or in rows where nothing is known of time.
    sa.Column("work", sa.Double, nullable=False, server_default="0"),
    sa.Column("work_done", sa.Double, nullable=False, server_default="0"),
    sa.Index("unerase_audits_by_time", "create_time", "id"),
)


def _audit_key() -> sa.Column[str]:
    return sa.Column("audit", sa.ForeignKey(audits.c.id, ondelete="CASCADE"), primary_key=True)


units = sa.Table(
    "unerase_units",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
    # What it was counted to take; NULL where an earlier version planned it.
    sa.Column("pictures", sa.BigInteger, nullable=True),
    sa.Column("work", sa.Double, nullable=True),
)
# What units of one audit share (`parts.py`).
parts = sa.Table(
    "unerase_parts",
    METADATA,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# How long units took: sums over the recent ones, by evaluation and reference.
durations = sa.Table(
    "unerase_durations",
    METADATA,
    sa.Column("evaluation", sa.String(200), primary_key=True),
    sa.Column("reference", sa.String(200), primary_key=True),
    sa.Column("units", sa.Double, nullable=False),
    sa.Column("rows", sa.Double, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
)
events = sa.Table(
    "unerase_events",
    METADATA,
    _audit_key(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
observations = sa.Table(
    "unerase_observations",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
findings = sa.Table(
    "unerase_findings",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("ordinal", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# The artefacts that a reader of the audit may read.
artifacts = sa.Table(
    "unerase_artifacts",
    METADATA,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    # 0 where it was not looked at, as with a concept's own pictures.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("unerase_artifacts_by_digest", "digest"),
)
# Pictures of audits that are deleted: they count for their day, or deleting would give a tenant a new day's quota.
spent = sa.Table(
    "unerase_spent",
    METADATA,
    sa.Column("audit", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(32), nullable=False),
    # That of the audit, in nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("pictures", sa.BigInteger, nullable=False),
)
# Artefacts that something has named that is deleted; they are removed unless something else names them.
discarded = sa.Table("unerase_discarded", METADATA, sa.Column("digest", sa.String(64), primary_key=True))

concepts = sa.Table(
    "unerase_concepts",
    METADATA,
    # Of a tenant's concept hashes of tenant and name, or request id: tenants do not meet.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    # SHA-256 of the description and the pictures, to tell a repetition from another request.
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("side", sa.Integer, nullable=False),
    # The name as it was chosen: a list of names reads no messages, which are large. NULL of an earlier version.
    sa.Column("called", sa.String(100), nullable=True),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

coordinators = sa.Table(
    "unerase_coordinators",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # The folder that one coordinator at a time has locked: whoever has the lock knows that its predecessor is dead.
    sa.Column("home", sa.String(64), nullable=False),
    # When its lease runs out, in seconds since 1970.
    sa.Column("expires", sa.Double, nullable=False),
)

REPORTS = (audits.c.content_digest, audits.c.json_digest, audits.c.html_digest, audits.c.parquet_digest)
"""What names an audit's reports in the artefact store."""


def deterministic(message: Message) -> bytes:
    """Return a message's bytes, the same for the same message."""
    return message.SerializeToString(deterministic=True)


def own(tenant: str, chosen: str) -> str:
    """Return what stands for a name or id that a tenant chose; a hash, so that no tenant can make another's."""
    return hashlib.sha256(f"{tenant}\0{chosen}".encode()).hexdigest() if tenant else chosen
