"""A campaign's report as JSON, put together cell by cell.

The text is the canonical JSON of the whole `CampaignReport`, which is never in memory, because a campaign may have
100,000 cells.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator

from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase_backend.report.schema import canonical_json


def render_json(head: CampaignReport, cells: Iterable[CampaignReportCell]) -> Iterator[str]:
    """Yield the report as JSON that follows docs/campaign-report.schema.json, with a line feed at the end.

    `head` is the report without its cells.

    Raises:
        ValueError: a cell is out of order.
    """
    whole, content = json.loads(canonical_json(head)), json.loads(canonical_json(head.content))
    if not head.HasField("content"):
        whole["content"] = content
    before = "{"
    for key in sorted(whole):
        yield f"{before}\n {json.dumps(key)}: "
        before = ","
        if key == "content":
            yield from _content_json(content, cells)
        else:
            yield _nested(whole[key], 1)
    yield "\n}\n"


def in_order(cells: Iterable[CampaignReportCell]) -> Iterator[CampaignReportCell]:
    """Yield the cells.

    Raises:
        ValueError: a cell is out of order.
    """
    last = -1
    for cell in cells:
        if cell.index <= last:
            raise ValueError(f"cell {cell.index} comes after cell {last}: the cells must be in order of their index")
        last = cell.index
        yield cell


def _content_json(content: dict[str, object], cells: Iterable[CampaignReportCell]) -> Iterator[str]:
    before = "{"
    for key in sorted(content):
        yield f"{before}\n  {json.dumps(key)}: "
        before = ","
        if key == "cells":
            yield from _cells_json(cells)
        else:
            yield _nested(content[key], 2)
    yield "\n }"


def _cells_json(cells: Iterable[CampaignReportCell]) -> Iterator[str]:
    before = "["
    for cell in in_order(cells):
        # The first line follows a key or a comma; no string of JSON holds a line feed.
        yield f"{before}\n{textwrap.indent(canonical_json(cell, indent=1), '   ')}"
        before = ","
    yield "[]" if before == "[" else "\n  ]"


def _nested(value: object, depth: int) -> str:
    text = json.dumps(value, sort_keys=True, indent=1, separators=(",", ": "), ensure_ascii=False, allow_nan=False)
    return textwrap.indent(text, " " * depth).lstrip(" ")
