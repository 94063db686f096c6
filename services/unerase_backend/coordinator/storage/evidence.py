"""Reads the units of an audit, their observations and findings, and the digests of its reports."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.audits_pb2 import Audit
from unerase.v1.types_pb2 import Case, Concept, Finding, Observation
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.audits import audit_of
from unerase_backend.coordinator.storage.engine import Engine
from unerase_backend.coordinator.storage.write_retry import repeated


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict and a report are computed from, in the plan order of the units."""

    audit: Audit
    concept: Concept
    cases: list[Case]
    observations: list[Observation]
    findings: list[Finding]


@dataclass(frozen=True)
class Reports:
    """The digests of an audit's reports in the artefact store: their content and its forms."""

    content: str
    json: str
    html: str
    parquet: str
    comparability: str = ""
    """As in the content: what two reports must share to be compared at a glance."""
    subject: str = ""
    """Digest of the subject, as in the content's manifest."""


class EvidenceStore:
    """The units, observations, findings and reports of all audits."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def unit_ids(self, audit_id: str) -> list[str]:
        """Return the ids of an audit's units, in plan order."""
        query = sa.select(tables.units.c.unit).where(tables.units.c.audit == audit_id).order_by(tables.units.c.position)
        async with self._engine.connect() as connection:
            return [row.unit for row in await connection.execute(query)]

    async def unit(self, audit_id: str, unit_id: str) -> tuple[Unit, bool] | None:
        """Return a unit, and whether it is done; None once its audit is deleted."""
        query = sa.select(tables.units.c.message, tables.units.c.done).where(
            tables.units.c.audit == audit_id, tables.units.c.unit == unit_id
        )
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return (Unit.FromString(row.message), row.done) if row else None

    async def observations(self, audit_id: str, units: Sequence[str]) -> list[Observation]:
        """Return the observations of some of an audit's units, in plan order."""
        async with self._engine.connect() as connection:
            found = await _messages(connection, audit_id, tables.observations, tables.observations.c.unit.in_(units))
        return [Observation.FromString(message) for message in found]

    async def all_observations(self, audit_id: str) -> list[Observation]:
        """Return all observations of an audit, in plan order; none once it is deleted."""
        async with self._engine.connect() as connection:
            found = await _messages(connection, audit_id, tables.observations)
        return await asyncio.to_thread(lambda: [Observation.FromString(message) for message in found])

    async def everything(self, audit_id: str) -> Evidence | None:
        """Return all evidence of an audit; None once it is deleted."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(sa.select(tables.audits).where(tables.audits.c.id == audit_id))).first()
            if row is None:
                return None
            observations = await _messages(connection, audit_id, tables.observations)
            findings = await _messages(connection, audit_id, tables.findings)
        # In a thread, because a large audit has tens of thousands of messages and calls must be answered meanwhile.
        return await asyncio.to_thread(_evidence, row, observations, findings)

    async def may_read(self, audit_id: str, digest: str) -> bool:
        """Return whether an artefact belongs to an audit."""
        query = sa.select(tables.artifacts.c.digest).where(
            tables.artifacts.c.audit == audit_id, tables.artifacts.c.digest == digest
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(query)).first() is not None

    async def reports(self, audit_id: str) -> Reports | None:
        """Return the digests of an audit's reports; None if it has none."""
        query = sa.select(*tables.REPORTS).where(tables.audits.c.id == audit_id, tables.audits.c.json_digest != "")
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return Reports(*row) if row else None

    @repeated
    async def replace_reports(self, audit_id: str, reports: Reports) -> None:
        """Replace the digests of an audit's reports, which may differ if a later version has rendered them again."""
        statement = sa.update(tables.audits).where(tables.audits.c.id == audit_id, tables.audits.c.json_digest != "")
        digests = {"json": reports.json, "html": reports.html, "parquet": reports.parquet}
        values = {f"{form}_digest": digest for form, digest in digests.items()}
        async with self._engine.begin() as connection:
            await connection.execute(statement.values(**values))


async def _messages(
    connection: AsyncConnection, audit_id: str, table: sa.Table, *which: sa.ColumnElement[bool]
) -> list[bytes]:
    query = (
        sa.select(table.c.message)
        .join(tables.units, sa.and_(tables.units.c.audit == table.c.audit, tables.units.c.unit == table.c.unit))
        .where(table.c.audit == audit_id, *which)
        .order_by(tables.units.c.position, table.c.ordinal)
    )
    return [row.message for row in await connection.execute(query)]


def _evidence(row: Any, observations: Sequence[bytes], findings: Sequence[bytes]) -> Evidence:
    return Evidence(
        audit_of(row),
        Concept.FromString(row.concept),
        list(Unit.FromString(row.cases).cases),
        [Observation.FromString(message) for message in observations],
        [Finding.FromString(message) for message in findings],
    )
