"""The cells of a campaign as a table, in Parquet and CSV: one row for each cell, access and evaluation.

A cell without a verdict has one row without an evaluation. The cell's own columns are repeated in each of its rows. An
audit of both accesses has the rows of the weights, and then those of the deployed model. Only one row group is in
memory at a time.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from unerase.v1.campaigns_pb2 import CampaignReport, CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import CellComparison, Change
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.types_pb2 import ControlKind, EvaluationClass, ModelAccess
from unerase.v1.verdicts_pb2 import Conclusion, Estimate, EvaluationResult, Knowledge, Outcome, Rate, Verdict
from unerase_backend.report.campaign.joined import outcomes_of, with_comparisons
from unerase_backend.report.campaign.observations import CONVERTED, table_of, write_grouped
from unerase_backend.report.campaign.words import word

_OF_CELL: dict[str, pa.DataType] = {
    "cell": pa.uint32(),
    "subject": pa.string(),
    "concept": pa.string(),
    # "succeeded", "failed", "cancelled", ...
    "state": pa.string(),
    "error_reason": pa.string(),
    "error_message": pa.string(),
    "audit": pa.string(),
    "subject_digest": pa.string(),
    "content_digest": pa.string(),
    "comparability_digest": pa.string(),
    # "pass", "fail" or "undecided"; null without a gate, or if the gate does not ask about the concept.
    "gate": pa.string(),
    # "better", "worse", "same" or "unsettled"; null if the cell was not compared.
    "change": pa.string(),
}
_OF_VERDICT: dict[str, pa.DataType] = {
    # "deployed" or "open_weights"; "unspecified" for a subject without guards.
    "access": pa.string(),
    "conclusion": pa.string(),
    "damaged": pa.bool_(),
    "knowledge": pa.string(),
    **{
        f"{figure}{part}": pa.float64()
        for figure in ("destruction", "lost_pull", "general_damage", "concept_loss", "interference_loss")
        for part in ("", "_lower", "_upper")
    },
}
_OF_EVALUATION: dict[str, pa.DataType] = {
    "evaluation": pa.string(),
    "title": pa.string(),
    "evaluation_class": pa.string(),
    "outcome": pa.string(),
    "budget": pa.uint32(),
    # 0 if it was not stopped early.
    "stopped_after": pa.uint32(),
    "control_kind": pa.string(),
    **{
        f"{role}_{part}": kind
        for role in ("subject", "reference", "control")
        for part, kind in {
            "hits": pa.uint32(),
            "cases": pa.uint32(),
            "unscored": pa.uint32(),
            "excluded": pa.uint32(),
            "withheld": pa.uint32(),
            "rate": pa.float64(),
            # Wilson's two-sided 95 % interval.
            "lower": pa.float64(),
            "upper": pa.float64(),
        }.items()
    },
    # With one-sided 95 % bounds.
    "excess": pa.float64(),
    "excess_lower": pa.float64(),
    "excess_upper": pa.float64(),
    "p": pa.float64(),
    "p_holm": pa.float64(),
    # Null where the evaluation applies to every case.
    "not_applicable_because": pa.string(),
}
_TEXTS = ("error_reason", "error_message", "subject_digest", "content_digest", "comparability_digest")
_ALWAYS = ("cell", "subject", "concept", "state")
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name not in _ALWAYS)
        for name, kind in {**_OF_CELL, **_OF_VERDICT, **_OF_EVALUATION}.items()
    ]
)

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}")
"""Beginnings of a text that a spreadsheet may take for a formula."""


def write_cells_parquet(
    file: BinaryIO,
    head: CampaignReport,
    cells: Iterable[CampaignReportCell],
    comparisons: Iterable[CellComparison] = (),
) -> int:
    """Write the table as Parquet and return its number of rows.

    `head` is the report without its cells; `comparisons` are in order of the cells, and may lack some.

    Raises:
        ValueError: a cell or a comparison is out of order.
    """
    return write_grouped(file, SCHEMA, head, _tables(rows(head, cells, comparisons)))


def write_cells_csv(
    file: BinaryIO,
    head: CampaignReport,
    cells: Iterable[CampaignReportCell],
    comparisons: Iterable[CellComparison] = (),
) -> int:
    """Write the table as CSV and return its number of rows; errors as in `write_cells_parquet`.

    The form is RFC 4180's, in UTF-8 with a header. What is absent, or not finite, is empty. A text that a spreadsheet
    might run as a formula begins with an apostrophe.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(SCHEMA.names)
    written = 0
    for row in rows(head, cells, comparisons):
        writer.writerow([_field(row[name]) for name in SCHEMA.names])
        written += 1
    # The file belongs to the caller.
    text.detach()
    return written


def rows(
    head: CampaignReport, cells: Iterable[CampaignReportCell], comparisons: Iterable[CellComparison] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the rows, with every column of SCHEMA; errors as in `write_cells_parquet`."""
    gate_of = outcomes_of(head.content)
    for cell, comparison in with_comparisons(cells, comparisons):
        empty: dict[str, Any] = dict.fromkeys(SCHEMA.names)
        of_cell = empty | _of_cell(cell, head.audits)
        if (outcome := gate_of(cell)) is not None:
            of_cell["gate"] = word(GateOutcome.Name, outcome, "GATE_OUTCOME_")
        if comparison is not None and comparison.HasField("audits") and comparison.audits.change:
            of_cell["change"] = word(Change.Name, comparison.audits.change, "CHANGE_")
        if not cell.HasField("verdict"):
            yield of_cell
            continue
        verdicts = [cell.verdict, cell.verdict.deployed] if cell.verdict.HasField("deployed") else [cell.verdict]
        for verdict in verdicts:
            of_verdict = of_cell | _of_verdict(verdict)
            if not verdict.evaluations:
                yield of_verdict
            for result in verdict.evaluations:
                yield of_verdict | _of_evaluation(result)


def _of_cell(cell: CampaignReportCell, audits: Sequence[str]) -> dict[str, Any]:
    return {
        "cell": cell.index,
        "subject": cell.subject,
        "concept": cell.concept,
        "state": word(CellState.Name, cell.state, "CELL_STATE_"),
        "audit": (audits[cell.index] or None) if cell.index < len(audits) else None,
        **{name: getattr(cell, name) or None for name in _TEXTS},
    }


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    measured = verdict.likelihood
    row: dict[str, Any] = {
        "access": word(ModelAccess.Name, verdict.access, "MODEL_ACCESS_"),
        "conclusion": word(Conclusion.Name, verdict.conclusion, "CONCLUSION_"),
        "damaged": verdict.damaged,
    }
    if verdict.HasField("likelihood"):
        row["knowledge"] = word(Knowledge.Name, measured.knowledge, "KNOWLEDGE_") if measured.knowledge else None
        for figure in ("destruction", "lost_pull", "general_damage", "concept_loss"):
            if measured.HasField(figure):
                row |= _estimate(figure, getattr(measured, figure))
    if verdict.HasField("interference"):
        row |= _estimate("interference_loss", verdict.interference.loss)
    return row


def _estimate(name: str, figure: Estimate) -> dict[str, float | None]:
    """Return the columns of a figure; null where it is not finite, as every column of figures in this table."""
    ends = figure.interval
    return {
        name: _finite(figure.value),
        f"{name}_lower": _finite(ends.lower),
        f"{name}_upper": _finite(ends.upper),
    }


def _of_evaluation(result: EvaluationResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "evaluation": result.name,
        "title": result.title or result.name,
        "evaluation_class": word(EvaluationClass.Name, result.evaluation_class, "EVALUATION_CLASS_"),
        "outcome": word(Outcome.Name, result.outcome, "OUTCOME_"),
        "budget": result.budget,
        "stopped_after": result.stopped_after,
        "control_kind": word(ControlKind.Name, result.control_kind, "CONTROL_KIND_"),
        "not_applicable_because": result.not_applicable_because or None,
    }
    for role in ("subject", "reference", "control"):
        if result.HasField(role):
            row |= _rate(role, getattr(result, role))
    if result.HasField("excess"):
        excess = result.excess
        row |= {
            "excess": _finite(excess.value),
            "excess_lower": _finite(excess.bounds.lower),
            "excess_upper": _finite(excess.bounds.upper),
        }
        # Without a control nothing is tested.
        if result.HasField("control"):
            row |= {"p": _finite(excess.p), "p_holm": _finite(excess.p_holm)}
    return row


def _rate(role: str, rate: Rate) -> dict[str, Any]:
    counted = ("hits", "cases", "unscored", "excluded", "withheld")
    row: dict[str, Any] = {f"{role}_{name}": getattr(rate, name) for name in counted}
    if rate.cases:
        row[f"{role}_rate"] = rate.hits / rate.cases
        row[f"{role}_lower"], row[f"{role}_upper"] = _finite(rate.wilson.lower), _finite(rate.wilson.upper)
    return row


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tables(each: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    waiting: list[dict[str, Any]] = []
    for row in each:
        waiting.append(row)
        if len(waiting) == CONVERTED:
            yield table_of(waiting, SCHEMA)
            waiting = []
    if waiting:
        yield table_of(waiting, SCHEMA)


def _field(value: object) -> object:
    """Return a value as a field of CSV."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
