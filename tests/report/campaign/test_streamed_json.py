"""A campaign's report as JSON is put together piece by piece, and is what it would be in one piece."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.campaign_by_hand import campaign
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase_backend.report.campaign import render_json
from unerase_backend.report.schema import campaign_report_schema, canonical_json

ROOT = Path(__file__).parents[3]


@given(st.integers(0, 5), st.booleans(), st.booleans())
def test_the_json_is_the_canonical_json_of_the_whole(cells: int, gate: bool, compared: bool) -> None:
    made = campaign(gate=gate, compared=compared)
    del made.cells[cells:]
    assert "".join(render_json(made.head, made.cells)) == canonical_json(made.whole, indent=1) + "\n"


def test_the_json_of_nothing_can_be_read() -> None:
    text = "".join(render_json(CampaignReport(), []))
    assert json.loads(text)["content"]["cells"] == []


def test_the_json_follows_the_committed_schema() -> None:
    schema = json.loads((ROOT / "docs/campaign-report.schema.json").read_text())
    assert schema == campaign_report_schema(), (
        "run `python -m unerase_backend.report.schema campaign > docs/campaign-report.schema.json`"
    )
    made = campaign()
    report = json.loads("".join(render_json(made.head, made.cells)))
    jsonschema.Draft202012Validator(schema).validate(report)
    report["content"]["cells"][0]["conclusion"] = "REMOVED"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(report)


def test_cells_out_of_order_are_refused() -> None:
    made = campaign()
    random.Random(1).shuffle(made.cells)
    with pytest.raises(ValueError, match=r"^cell \d+ comes after cell \d+: the cells must be in order"):
        "".join(render_json(made.head, made.cells))
    with pytest.raises(ValueError, match="cell 0 comes after cell 0"):
        "".join(render_json(made.head, [CampaignReportCell()] * 2))


def test_a_cell_is_asked_for_only_when_the_one_before_it_is_written() -> None:
    """So that a campaign of any size needs the memory of one cell."""
    made = campaign()
    taken: list[int] = []

    def cells() -> Iterator[CampaignReportCell]:
        for cell in made.cells:
            taken.append(cell.index)
            yield cell

    pieces = render_json(made.head, cells())
    text = ""
    while f'"index": {made.cells[2].index},' not in text:
        text += next(pieces)
    assert taken == [0, 1, 2]
