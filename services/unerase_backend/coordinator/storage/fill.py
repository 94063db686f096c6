"""Fills columns that an earlier version did not have from the messages beside them."""

import sqlalchemy as sa

from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec
from unerase.v1.verdicts_pb2 import Verdict
from unerase_backend.coordinator.storage.tables import audits

# A verdict can be hundreds of kilobytes.
_ROWS_AT_ONCE = 50
# Of the columns.
_LENGTH = 200


def fill(connection: sa.Connection) -> None:
    """Fill what lists of audits are filtered by, also for audits that an earlier version ended after the migration."""
    succeeded = sa.and_(audits.c.state == AUDIT_STATE_SUCCEEDED, audits.c.conclusion == 0)
    # One after the other, because each has an index, and a row of an audit can be megabytes.
    for lacking in (audits.c.subject == "", succeeded):
        last = ""
        while last := _fill(connection, sa.and_(lacking, audits.c.id > last)):
            pass


def _fill(connection: sa.Connection, lacking: sa.ColumnElement[bool]) -> str:
    """Fill some of the rows that lack something; return the last one's id, or an empty string if there are no more."""
    query = sa.select(audits.c.id, audits.c.spec, audits.c.verdict).where(lacking)
    rows = connection.execute(query.order_by(audits.c.id).limit(_ROWS_AT_ONCE)).all()
    for row in rows:
        spec = AuditSpec.FromString(row.spec)
        verdict = Verdict.FromString(row.verdict) if row.verdict is not None else Verdict()
        names = {"subject": spec.subject[:_LENGTH], "concept_name": spec.concept[:_LENGTH]}
        connection.execute(
            sa.update(audits).where(audits.c.id == row.id).values(**names, conclusion=verdict.conclusion)
        )
    return rows[-1].id if rows else ""
