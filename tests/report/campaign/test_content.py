"""The content of a campaign's report is put together piece by piece, and is what it would be in one piece."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.campaign_by_hand import campaign
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell, CampaignReportContent
from unerase_backend.report.campaign import content_bytes, content_digest, render_json
from unerase_backend.report.schema import campaign_report_schema, canonical_json

ROOT = Path(__file__).parents[3]


def test_the_pieces_are_the_deterministic_bytes_of_the_whole() -> None:
    made = campaign()
    whole = made.whole.content
    joined = b"".join(content_bytes(whole.spec, made.cells, whole.gate_result))
    assert joined == whole.SerializeToString(deterministic=True)
    assert CampaignReportContent.FromString(joined) == whole


def test_without_a_gate_there_is_no_result_of_one() -> None:
    made = campaign(gate=False)
    joined = b"".join(content_bytes(made.head.content.spec, made.cells, None))
    assert not CampaignReportContent.FromString(joined).HasField("gate_result")
    assert joined == made.whole.content.SerializeToString(deterministic=True)


def test_equal_content_has_an_equal_digest_and_other_content_another() -> None:
    made, again = campaign(), campaign()
    spec, gate = made.head.content.spec, made.head.content.gate_result
    digest = content_digest(spec, made.cells, gate)
    assert digest == content_digest(again.head.content.spec, iter(again.cells), again.head.content.gate_result)
    again.cells[1].verdict.evaluations[0].subject.hits += 1
    assert digest != content_digest(spec, again.cells, gate)


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
        list(content_bytes(made.head.content.spec, made.cells, None))
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

    pieces = content_bytes(made.head.content.spec, cells(), made.head.content.gate_result)
    next(pieces)
    assert not taken
    for at in range(len(made.cells)):
        next(pieces)
        assert taken == list(range(at + 1))
