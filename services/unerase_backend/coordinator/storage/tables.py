"""The tables of the coordinator's database."""

import hashlib

import sqlalchemy as sa
from google.protobuf.message import Message

METADATA = sa.MetaData()

audits = sa.Table(
    "unerase_audits",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # With tokens a hash of tenant and id, so that two tenants may choose the same id; `asked_as` is the id itself.
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    # SHA-256 of the request as it was sent, to tell a repeated request from another one.
    sa.Column("request_digest", sa.String(64), nullable=False),
    # Empty without tokens.
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
    # Empty for an audit that ended before this export existed.
    sa.Column("parquet_digest", sa.String(64), nullable=False, server_default=""),
    sa.Column("pictures", sa.BigInteger, nullable=False, server_default="0"),
    # The W3C traceparent of the call that created the audit; empty if the call was not traced.
    sa.Column("traceparent", sa.String(64), nullable=False, server_default=""),
    # The cost as a message, and the parts of it that count towards quotas while the audit is in flight.
    sa.Column("cost", sa.LargeBinary, nullable=True),
    # An Audit with nothing but its notes and labels; NULL if there are none.
    sa.Column("notes", sa.LargeBinary, nullable=True),
    sa.Column("counted_pictures", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("counted_bytes", sa.BigInteger, nullable=False, server_default="0"),
    # Expected work of all units and of those that are done, in seconds, or in rows if no times are known.
    sa.Column("work", sa.Double, nullable=False, server_default="0"),
    sa.Column("work_done", sa.Double, nullable=False, server_default="0"),
    # What lists are filtered by: of the specification and of the verdict, whose messages say the same. `fill.py` fills
    # them for the audits of earlier versions, where the subject is empty.
    sa.Column("subject", sa.String(200), nullable=False, server_default=""),
    sa.Column("concept_name", sa.String(200), nullable=False, server_default=""),
    # 0 until the audit has succeeded.
    sa.Column("conclusion", sa.Integer, nullable=False, server_default="0"),
    # Empty for an audit of no campaign.
    sa.Column("campaign", sa.String(64), nullable=False, server_default=""),
    # The backend drew the campaign's seed base, so that the audit must not show it before the campaign does.
    sa.Column("sealed", sa.Boolean, nullable=False, server_default=sa.false()),
    # As in the report: what two reports must share to be compared, and the digest of the subject.
    sa.Column("comparability_digest", sa.String(64), nullable=False, server_default=""),
    sa.Column("subject_digest", sa.String(64), nullable=False, server_default=""),
    sa.Index("unerase_audits_by_time", "create_time", "id"),
    sa.Index("unerase_audits_by_end", "end_time", "id"),
    sa.Index("unerase_audits_by_subject", "subject", "tenant", "create_time", "id"),
    sa.Index("unerase_audits_by_concept", "concept_name", "tenant", "create_time", "id"),
    sa.Index("unerase_audits_by_conclusion", "state", "conclusion", "tenant", "create_time", "id"),
    sa.Index("unerase_audits_by_campaign", "campaign", "create_time", "id"),
)


def _audit_key() -> sa.Column[str]:
    return sa.Column("audit", sa.ForeignKey(audits.c.id, ondelete="CASCADE"), primary_key=True)


# The labels of audits, for filters.
audit_labels = sa.Table(
    "unerase_audit_labels",
    METADATA,
    _audit_key(),
    sa.Column("key", sa.String(63), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Index("unerase_audit_labels_by_value", "key", "value", "audit"),
)

units = sa.Table(
    "unerase_units",
    METADATA,
    _audit_key(),
    sa.Column("unit", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
    # The pictures and the work counted for the unit; NULL if an earlier version planned it.
    sa.Column("pictures", sa.BigInteger, nullable=True),
    sa.Column("work", sa.Double, nullable=True),
)
# What units of one audit share (`planning/parts.py`).
parts = sa.Table(
    "unerase_parts",
    METADATA,
    _audit_key(),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# The time that recent units took: sums by evaluation and reference.
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
    # 0 if it was not measured, as for a concept's own pictures.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index("unerase_artifacts_by_digest", "digest"),
)
# Pictures of deleted audits. They still count for their day; otherwise a tenant could renew its quota by deleting.
spent = sa.Table(
    "unerase_spent",
    METADATA,
    sa.Column("audit", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(32), nullable=False),
    # The create time of the audit, in nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("pictures", sa.BigInteger, nullable=False),
)
# Artefacts that a deleted audit or concept named; they are removed unless something else names them.
discarded = sa.Table("unerase_discarded", METADATA, sa.Column("digest", sa.String(64), primary_key=True))

concepts = sa.Table(
    "unerase_concepts",
    METADATA,
    # With tokens, name and request_id are hashes of tenant and value, so that tenants do not collide.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    # SHA-256 of the description and the pictures, to tell a repeated request from another one.
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("side", sa.Integer, nullable=False),
    # The name itself, so that a list of names need not read the large messages. NULL from an earlier version.
    sa.Column("called", sa.String(100), nullable=True),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
)

campaigns = sa.Table(
    "unerase_campaigns",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # As in `audits`.
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    sa.Column("asked_as", sa.String(64), nullable=False, server_default=""),
    # A CampaignSpec without subjects and concepts, and one with nothing else.
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("names", sa.LargeBinary, nullable=False),
    # A Campaign with nothing but its labels; NULL if there are none.
    sa.Column("labels", sa.LargeBinary, nullable=True),
    # The backend drew the seed base, and has not shown it yet.
    sa.Column("sealed", sa.Boolean, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("cells_total", sa.Integer, nullable=False),
    # How often the campaign was begun: once, and once more for each retry.
    sa.Column("round", sa.Integer, nullable=False),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("end_time", sa.BigInteger, nullable=False, server_default="0"),
    # A GateResult; NULL before the end, and without a gate.
    sa.Column("gate_result", sa.LargeBinary, nullable=True),
    sa.Column("error_reason", sa.String(64), nullable=False, server_default=""),
    sa.Column("error_message", sa.Text, nullable=False, server_default=""),
    # A CampaignDelayed; NULL while the campaign waits for nothing.
    sa.Column("delayed", sa.LargeBinary, nullable=True),
    sa.Column("last_sequence", sa.BigInteger, nullable=False, server_default="0"),
    # The artefact of the deterministic bytes of the CampaignReportContent; empty before the end.
    sa.Column("content_digest", sa.String(64), nullable=False, server_default=""),
    sa.Column("traceparent", sa.String(64), nullable=False, server_default=""),
    # Its owner has deleted it; nobody sees it any more, and its audits are being removed.
    sa.Column("deleted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("unerase_campaigns_by_time", "create_time", "id"),
)


def _campaign_key() -> sa.Column[str]:
    return sa.Column("campaign", sa.ForeignKey(campaigns.c.id, ondelete="CASCADE"), primary_key=True)


# The labels of campaigns, for filters.
campaign_labels = sa.Table(
    "unerase_campaign_labels",
    METADATA,
    _campaign_key(),
    sa.Column("key", sa.String(63), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Index("unerase_campaign_labels_by_value", "key", "value", "campaign"),
)
cells = sa.Table(
    "unerase_cells",
    METADATA,
    _campaign_key(),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("concept", sa.String(200), nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    # The last audit of the cell; empty before the first.
    sa.Column("audit", sa.String(64), nullable=False, server_default=""),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error_reason", sa.String(64), nullable=False, server_default=""),
    sa.Column("error_message", sa.Text, nullable=False, server_default=""),
    sa.Column("end_time", sa.BigInteger, nullable=False, server_default="0"),
    # Of a cell that has succeeded, without the verdict's figures.
    sa.Column("verdict", sa.LargeBinary, nullable=True),
    sa.Column("conclusion", sa.Integer, nullable=False, server_default="0"),
    sa.Column("content_digest", sa.String(64), nullable=False, server_default=""),
    sa.Index("unerase_cells_in_order", "campaign", "state", "position", "conclusion"),
)
campaign_events = sa.Table(
    "unerase_campaign_events",
    METADATA,
    _campaign_key(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
# The forms of a campaign's report that were rendered, and its comparisons with earlier campaigns, by name.
campaign_reports = sa.Table(
    "unerase_campaign_reports",
    METADATA,
    _campaign_key(),
    sa.Column("form", sa.String(64), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
)
models = sa.Table(
    "unerase_models",
    METADATA,
    # With tokens, name and request_id are hashes of tenant and value, so that tenants do not collide.
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(32), nullable=False, server_default=""),
    # The name and the request id themselves.
    sa.Column("called", sa.String(100), nullable=False),
    sa.Column("asked_as", sa.String(64), nullable=False),
    # SHA-256 of the model as it was sent, to tell a repeated request from another one.
    sa.Column("request_digest", sa.String(64), nullable=False),
    # The key of its base; empty if that is a model of the operator's catalogue, or if it has none.
    sa.Column("base", sa.String(100), nullable=False, server_default=""),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    # Nanoseconds since 1970.
    sa.Column("create_time", sa.BigInteger, nullable=False),
    sa.Column("end_time", sa.BigInteger, nullable=False),
    # The coordinator that checks it, and the time, in nanoseconds since 1970, before which it is not tried again.
    sa.Column("checker", sa.String(64), nullable=False, server_default=""),
    sa.Column("try_after", sa.BigInteger, nullable=False, server_default="0"),
    # The digest of its definition, once it is registered, and the definition itself.
    sa.Column("definition", sa.String(64), nullable=False, server_default=""),
    sa.Column("content", sa.LargeBinary, nullable=True),
    # Messages: the model's description, with its entry's labels alone, and what the check found.
    sa.Column("described", sa.LargeBinary, nullable=True),
    sa.Column("checked", sa.LargeBinary, nullable=True),
    sa.Column("error_reason", sa.String(64), nullable=False, server_default=""),
    sa.Column("error_message", sa.Text, nullable=False, server_default=""),
    sa.Index("unerase_models_by_tenant", "tenant", "state"),
    sa.Index("unerase_models_by_base", "base"),
)
# The registered models of an audit, bases included, as they were when it was accepted.
audit_models = sa.Table(
    "unerase_audit_models",
    METADATA,
    _audit_key(),
    sa.Column("definition", sa.String(64), primary_key=True),
    # What the audit's tenant calls it.
    sa.Column("called", sa.String(100), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Index("unerase_audit_models_by_definition", "definition"),
)
# What is sent when an audit or a campaign has ended (`storage/webhooks.py`).
webhooks = sa.Table(
    "unerase_webhooks",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # What it is about: "audit" or "campaign", and its id. No foreign key: it is sent also if that is deleted at once.
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("about", sa.String(64), nullable=False),
    sa.Column("tenant", sa.String(32), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    # NULL until the end.
    sa.Column("body", sa.LargeBinary, nullable=True),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    # When it may be tried again, and when it was noted, became due or was settled; in nanoseconds since 1970.
    sa.Column("due", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("changed", sa.BigInteger, nullable=False),
    sa.Index("unerase_webhooks_by_end", "about", "kind"),
    sa.Index("unerase_webhooks_by_due", "state", "due"),
)

coordinators = sa.Table(
    "unerase_coordinators",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    # The identity of the state folder. One coordinator at a time has its lock, so an earlier one must be dead.
    sa.Column("home", sa.String(64), nullable=False),
    # When its lease runs out, in seconds since 1970.
    sa.Column("expires", sa.Double, nullable=False),
)

REPORTS = (audits.c.content_digest, audits.c.json_digest, audits.c.html_digest, audits.c.parquet_digest)
"""The columns that name an audit's reports in the artefact store."""
CAMPAIGN_REPORTS = (campaigns.c.content_digest, campaign_reports.c.digest)
"""The columns that name a campaign's reports in the artefact store."""
DEFINITIONS = (models.c.definition, audit_models.c.definition)
"""The columns that name definitions of registered models in the artefact store."""


def deterministic(message: Message) -> bytes:
    """Return a message's bytes, the same for the same message."""
    return message.SerializeToString(deterministic=True)


def own(tenant: str, chosen: str) -> str:
    """Return the key for a name or id that a tenant chose: a hash, so that no tenant can produce another's key."""
    return hashlib.sha256(f"{tenant}\0{chosen}".encode()).hexdigest() if tenant else chosen


MAX_REASON = 64
"""The length of the columns of reasons."""


def storable(text: str) -> str:
    """Return text that a column can hold: without NUL, which PostgreSQL refuses, and without lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
