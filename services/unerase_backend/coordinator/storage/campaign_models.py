"""The registered models of campaigns, as they were when the campaigns were created.

A cell that begins later is an audit of the same models, whatever was deleted or registered anew meanwhile.
"""

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from unerase.v1.campaigns_pb2 import CampaignSpec
from unerase.v1.models_pb2 import REGISTRATION_STATE_REGISTERED
from unerase_backend.coordinator.storage import tables
from unerase_backend.coordinator.storage.engine import Engine, insert_all
from unerase_backend.coordinator.storage.models import NamedDefinition
from unerase_backend.coordinator.storage.tables import own

_NAMED_AT_ONCE = 500


class CampaignModels:
    """What campaigns keep of registered models."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def definitions(self, campaign_id: str, names: Sequence[str]) -> list[NamedDefinition]:
        """Return the definitions of those of the named models that a campaign keeps, and of their bases.

        The content is empty where no registered model has the definition any more; the artefact store has it then.
        """
        table, found = tables.campaign_models.c, dict[str, NamedDefinition]()
        wanted = set(names)
        async with self._engine.connect() as connection:
            while missing := sorted(wanted - {*found}):
                content = (
                    sa.select(tables.models.c.content)
                    .where(tables.models.c.definition == table.definition)
                    .limit(1)
                    .scalar_subquery()
                )
                query = sa.select(table.called, table.base, table.definition, content.label("content"))
                which = table.campaign == campaign_id, table.called.in_(missing)
                rows = (await connection.execute(query.where(*which))).all()
                for row in rows:
                    found[row.called] = NamedDefinition(row.called, row.definition, row.content or b"")
                wanted = {*found} | {row.base for row in rows if row.base}
        return list(found.values())


async def keep_campaign_models(connection: AsyncConnection, campaign_id: str, spec: CampaignSpec, tenant: str) -> None:
    """Keep the registered models that a campaign names, and their bases, within the transaction that inserts it."""
    table, known = tables.models.c, dict[str, sa.Row[tuple[str, str, str, str]]]()
    names = {*spec.subjects, spec.template.reference, spec.template.control} - {""}
    wanted = {own(tenant, name) for name in names}
    asked: set[str] = set()
    while missing := sorted(wanted - asked):
        asked |= wanted
        for some in _pieces(missing):
            query = sa.select(table.name, table.called, table.base, table.definition)
            which = table.name.in_(some), table.tenant == tenant, table.state == REGISTRATION_STATE_REGISTERED
            known |= {row.name: row for row in await connection.execute(query.where(*which))}
        wanted = {row.base for row in known.values() if row.base}
    rows = [
        {
            "campaign": campaign_id,
            "called": row.called,
            "base": known[row.base].called if row.base in known else "",
            "definition": row.definition,
        }
        for row in known.values()
    ]
    await insert_all(connection, tables.campaign_models, rows)


def campaign_definitions(campaign_id: str) -> sa.Select[tuple[str]]:
    """Return the query of the digests of a campaign's definitions."""
    table = tables.campaign_models.c
    return sa.select(table.definition.label("digest")).where(table.campaign == campaign_id)


def _pieces(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[begin : begin + _NAMED_AT_ONCE] for begin in range(0, len(names), _NAMED_AT_ONCE))
