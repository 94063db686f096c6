"""All observations of a campaign as one Parquet file.

Each observation is a row with the columns of an audit's file and three before them: `cell`, the cell's position,
`cell_subject` and `cell_concept`, since `concept` is what was looked for, which in a control's rows is another. Rows
are in order of the cells, and in a cell in the order of the audit's digest. The file's key-value metadata:

    unerase.campaign_schema_version  version of this layout, as in "1.0"
    unerase.campaign                 the campaign's id
    unerase.campaign_spec            canonical JSON of the CampaignSpec

Only one row group and one cell's observations are in memory at a time. Equal observations give equal bytes within one
version of pyarrow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase.v1.types_pb2 import Observation
from unerase_backend.report import parquet
from unerase_backend.report.campaign.streamed_json import in_order
from unerase_backend.report.content import place
from unerase_backend.report.schema import canonical_json

LAYOUT_VERSION = "1.0"
"""The version of both Parquet layouts of a campaign: the first number changes if older readers fail."""

ROWS = 65_536
"""Rows of a row group; the last has fewer."""

CONVERTED = 4_096
"""Rows that are Python objects at a time."""

SCHEMA = pa.schema(
    [
        pa.field("cell", pa.uint32(), nullable=False),
        pa.field("cell_subject", pa.string(), nullable=False),
        pa.field("cell_concept", pa.string(), nullable=False),
        *parquet.SCHEMA,
    ]
)


def write_observations(
    file: BinaryIO,
    head: CampaignReport,
    cells: Iterable[CampaignReportCell],
    observations_of: Callable[[CampaignReportCell], Iterable[Observation]],
) -> int:
    """Write the file and return its number of rows; `observations_of` is asked once for each cell, in order.

    Raises:
        ValueError: a cell is out of order, or an observation has more judgements than there are judges.
    """
    tables = (table for cell in in_order(cells) for table in _tables(cell, observations_of(cell)))
    return write_grouped(file, SCHEMA, head, tables)


def write_grouped(file: BinaryIO, schema: pa.Schema, head: CampaignReport, tables: Iterable[pa.Table]) -> int:
    """Write tables as row groups of ROWS rows, with the campaign's metadata; return the number of rows."""
    metadata = {
        "unerase.campaign_schema_version": LAYOUT_VERSION,
        "unerase.campaign": head.campaign_id,
        "unerase.campaign_spec": canonical_json(head.content.spec),
    }
    written, waiting, held = 0, list[pa.Table](), 0
    with pq.ParquetWriter(file, schema.with_metadata(metadata), compression="zstd") as writer:
        for table in tables:
            waiting.append(table)
            held += len(table)
            while held >= ROWS:
                group = pa.concat_tables(waiting)
                writer.write_table(group.slice(0, ROWS), row_group_size=ROWS)
                written, held = written + ROWS, held - ROWS
                waiting = [group.slice(ROWS)]
        if held:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROWS)
    return written + held


def _tables(cell: CampaignReportCell, observations: Iterable[Observation]) -> Iterator[pa.Table]:
    of_cell = {"cell": cell.index, "cell_subject": cell.subject, "cell_concept": cell.concept}
    ordered = sorted(observations, key=place)
    for start in range(0, len(ordered), CONVERTED):
        rows = [of_cell | parquet.row(observation) for observation in ordered[start : start + CONVERTED]]
        yield table_of(rows, SCHEMA)


def table_of(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table."""
    return pa.table({field.name: [row[field.name] for row in rows] for field in schema}, schema=schema)
