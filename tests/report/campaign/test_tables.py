"""A campaign's cells and observations as tables that others can read."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.campaign_by_hand import CONCLUSIONS, NAMES, Made, campaign, verdict
from support.report_by_hand import observed
from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell
from unerase.v1.types_pb2 import ModelAccess, Observation
from unerase.v1.verdicts_pb2 import Conclusion
from unerase_backend.report.campaign import (
    cells,
    observations,
    write_cells_csv,
    write_cells_parquet,
    write_observations,
)
from unerase_backend.report.parquet import SCHEMA as OF_AN_AUDIT
from unerase_backend.report.parquet import read_parquet, render_parquet


def _parquet(made: Made) -> tuple[bytes, pa.Table]:
    file = io.BytesIO()
    rows = write_cells_parquet(file, made.head, iter(made.cells), iter(made.comparisons))
    table = pq.read_table(pa.BufferReader(file.getvalue()))
    assert len(table) == rows
    return file.getvalue(), table


def _csv(made: Made) -> tuple[str, list[dict[str, str]]]:
    file = io.BytesIO()
    rows = write_cells_csv(file, made.head, iter(made.cells), iter(made.comparisons))
    text = file.getvalue().decode()
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(read) == rows
    return text, read


def test_there_is_a_row_for_each_cell_and_evaluation_and_one_for_a_cell_without() -> None:
    made = campaign()
    _, table = _parquet(made)
    assert len(table) == 4 * (len(made.cells) - 1) + 1
    first = table.slice(0, 4).to_pylist()
    assert [row["evaluation"] for row in first] == list(NAMES[:4])
    shown = made.cells[0].verdict.evaluations[1]
    assert (
        first[1]
        | {
            "cell": 0,
            "subject": "models/esd",
            "concept": "hourglass",
            "state": "succeeded",
            "audit": "audit0",
            "conclusion": "not_erased",
            "gate": "fail",
            "change": "worse",
            "outcome": "recovers",
            "subject_hits": shown.subject.hits,
            "subject_rate": shown.subject.hits / 24,
            "subject_upper": shown.subject.wilson.upper,
            "control_cases": 24,
            "excess": shown.excess.value,
            "p_holm": shown.excess.p_holm,
            "destruction": made.cells[0].verdict.likelihood.destruction.value,
            "knowledge": None,
            "error_reason": None,
        }
        == first[1]
    )
    last = table.slice(len(table) - 1).to_pylist()[0]
    assert (last["state"], last["error_reason"], last["gate"]) == ("failed", "MODEL_UNREADABLE", "undecided")
    absent = set(cells.SCHEMA.names[12:]) | {"audit", "content_digest", "change"}
    assert all(last[name] is None for name in absent)


def test_every_column_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "campaign-report.md").read_text()
    section = text[text.index("## The cells as a table") : text.index("## The observations")]
    named = set(re.findall(r"`(\w+)`", section))
    for name in cells.SCHEMA.names:
        # Several columns are named by their beginnings and their ends.
        ends = {name, name.removesuffix("_lower"), name.removesuffix("_upper")}
        ends.add(re.sub("^(subject|reference|control)_", "_", name))
        ends.add(re.sub("^(subject|reference|control)_hits$", "subject_hits", name))
        assert ends & named, name


def test_conclusions_can_be_counted_by_others() -> None:
    made = campaign([f"m{at}" for at in range(10)], ["hourglass", "heart", "arrow"])
    _, table = _parquet(made)
    by_cell = table.group_by("cell").aggregate([("conclusion", "min")])["conclusion_min"].to_pylist()
    for conclusion in CONCLUSIONS:
        said = Conclusion.Name(conclusion).removeprefix("CONCLUSION_").lower()
        expected = sum(cell.HasField("verdict") and cell.verdict.conclusion == conclusion for cell in made.cells)
        assert by_cell.count(said) == expected > 0


def test_csv_and_parquet_hold_the_same() -> None:
    made = campaign()
    _, table = _parquet(made)
    _, read = _csv(made)
    for row, line in zip(table.to_pylist(), read, strict=True):
        for name, value in row.items():
            text = line[name]
            if value is None:
                assert text == ""
            elif isinstance(value, bool):
                assert text == str(value).lower()
            else:
                assert type(value)(text) == value


def test_csv_is_that_of_the_standard() -> None:
    """RFC 4180: lines end in CR LF, also the last; what holds a comma, a quote or a line break is quoted."""
    made = campaign(concepts=['a "b", c', "d\r\ne"])
    text, read = _csv(made)
    assert text.endswith("\r\n")
    assert '"a ""b"", c"' in text
    assert {row["concept"] for row in read} == {'a "b", c', "d\r\ne"}


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "  =", "\uff1d"])
def test_no_text_is_taken_for_a_formula(begin: str) -> None:
    hostile = f'{begin}HYPERLINK("http://x","y")'
    made = campaign(subjects=["plain", hostile], concepts=[hostile])
    made.cells[-1].error_message = hostile
    _, read = _csv(made)
    assert read[-1]["subject"] == read[-1]["concept"] == read[-1]["error_message"] == f"'{hostile}"
    assert read[0]["subject"] == "plain"


def test_a_figure_below_zero_stays_a_number() -> None:
    made = campaign()
    made.cells[0].verdict.likelihood.destruction.value = -0.25
    _, read = _csv(made)
    assert read[0]["destruction"] == "-0.25"


def test_what_is_not_finite_is_absent() -> None:
    made = campaign()
    made.cells[0].verdict.likelihood.destruction.value = float("nan")
    made.cells[0].verdict.evaluations[0].excess.bounds.upper = float("inf")
    _, table = _parquet(made)
    _, read = _csv(made)
    assert table["destruction"][0].as_py() is table["excess_upper"][0].as_py() is None
    assert read[0]["destruction"] == read[0]["excess_upper"] == ""


def test_an_audit_of_both_accesses_has_the_rows_of_both() -> None:
    made = campaign()
    weights = made.cells[0].verdict
    weights.deployed.CopyFrom(verdict(Conclusion.CONCLUSION_REMOVED))
    weights.access = ModelAccess.MODEL_ACCESS_OPEN_WEIGHTS
    weights.deployed.access = ModelAccess.MODEL_ACCESS_DEPLOYED
    _, table = _parquet(made)
    assert table["access"].to_pylist()[:9] == ["open_weights"] * 4 + ["deployed"] * 4 + ["unspecified"]


def test_the_gate_is_silent_about_concepts_that_it_does_not_ask_about() -> None:
    made = campaign()
    made.head.content.gate_result.gate.concepts.append("hourglass")
    _, table = _parquet(made)
    asked = set(table.filter(pc.equal(table["concept"], "hourglass"))["gate"].to_pylist())
    assert asked <= {"pass", "fail", "undecided"}
    assert set(table.filter(pc.equal(table["concept"], "heart"))["gate"].to_pylist()) == {None}
    made.head.content.ClearField("gate_result")
    assert set(_parquet(made)[1]["gate"].to_pylist()) == {None}


def test_equal_cells_give_equal_bytes() -> None:
    assert _parquet(campaign())[0] == _parquet(campaign())[0]
    assert _csv(campaign())[0] == _csv(campaign())[0]


def test_a_comparison_of_no_cell_is_refused() -> None:
    made = campaign()
    made.comparisons.reverse()
    with pytest.raises(ValueError, match=r"^the comparison of cell \d is about no cell"):
        _parquet(made)


def _observations(made: Made, of: Iterable[Observation]) -> tuple[bytes, pq.ParquetFile]:
    each = list(of)
    file = io.BytesIO()
    rows = write_observations(file, made.head, iter(made.cells), lambda cell: each if cell.HasField("verdict") else [])
    read = pq.ParquetFile(pa.BufferReader(file.getvalue()))
    assert read.metadata.num_rows == rows
    return file.getvalue(), read


def test_each_cell_has_the_rows_of_its_audit() -> None:
    made, each = campaign(), observed()
    _, read = _observations(made, reversed(each))
    table = read.read()
    assert table.schema.names == ["cell", "cell_subject", "cell_concept", *OF_AN_AUDIT.names]
    of_audit = pq.read_table(pa.BufferReader(render_parquet("a", made.contents[0], [], each)))
    for cell in made.cells[:-1]:
        rows = table.filter(pc.equal(table["cell"], cell.index))
        assert set(rows["cell_subject"].to_pylist()) == {cell.subject}
        assert rows.select(OF_AN_AUDIT.names).equals(of_audit.replace_schema_metadata(rows.schema.metadata))
    assert len(table) == len(each) * (len(made.cells) - 1)
    assert table.schema.metadata[b"unerase.campaign"] == b"c1"


def test_an_audit_of_one_is_not_taken_for_the_campaigns_file() -> None:
    with pytest.raises(ValueError, match="it holds no observations of an audit"):
        read_parquet(_observations(campaign(), observed())[0])


@given(st.lists(st.integers(0, 90), max_size=9), st.integers(1, 70))
@settings(deadline=None, max_examples=30)
def test_row_groups_are_full_but_the_last(counts: list[int], size: int) -> None:
    """However many observations each cell has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observations, "ROWS", size)
        patch.setattr(observations, "CONVERTED", 7)
        each = [CampaignReportCell(index=at) for at in range(len(counts))]
        file = io.BytesIO()
        written = write_observations(
            file,
            CampaignReport(),
            each,
            lambda cell: (Observation(case_index=at) for at in reversed(range(counts[cell.index]))),
        )
    read = pq.ParquetFile(pa.BufferReader(file.getvalue()))
    groups = [read.metadata.row_group(at).num_rows for at in range(read.metadata.num_row_groups)]
    assert sum(groups) == written == sum(counts)
    assert all(rows == size for rows in groups[:-1])
    expected = [(cell, case) for cell, count in enumerate(counts) for case in range(count)]
    table = read.read()
    assert list(zip(table["cell"].to_pylist(), table["case_index"].to_pylist(), strict=True)) == expected
