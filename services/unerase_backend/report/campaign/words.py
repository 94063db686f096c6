"""The words, signs and kinds of colour of a campaign's page and tables for what the contract enumerates.

A kind of colour is a class of the style sheet. No colour stands alone: each has its sign and its word, and no two kinds
have the same sign.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unerase.v1.campaigns_pb2 import CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import CellComparison, Change
from unerase.v1.gates_pb2 import GateOutcome
from unerase.v1.verdicts_pb2 import Conclusion, Outcome
from unerase_backend.verdict.inapplicable import NOT_APPLICABLE


@dataclass(frozen=True)
class Said:
    """How the page says something: a kind of colour, a sign, and a word."""

    kind: str
    sign: str
    word: str
    severity: int
    """0 is the worst; tables are sorted by it."""


_CONCLUSIONS = {
    Conclusion.CONCLUSION_NOT_ERASED: Said("not-erased", "\N{MULTIPLICATION X}", "not erased", 0),
    Conclusion.CONCLUSION_AVOIDED: Said("avoided", "\N{CIRCLE WITH LEFT HALF BLACK}", "avoided", 1),
    Conclusion.CONCLUSION_INCOMPLETE: Said("silent", "\N{HORIZONTAL ELLIPSIS}", "incomplete", 3),
    Conclusion.CONCLUSION_UNINFORMATIVE: Said("silent", "\N{EN DASH}", "uninformative", 4),
    Conclusion.CONCLUSION_INCONCLUSIVE: Said("open", "?", "inconclusive", 5),
    Conclusion.CONCLUSION_REMOVED: Said("removed", "\N{CHECK MARK}", "removed", 8),
}
_STATES = {
    CellState.CELL_STATE_FAILED: Said("failed", "!", "failed", 2),
    CellState.CELL_STATE_CANCELLED: Said("silent", "\N{EMPTY SET}", "cancelled", 6),
}
_NOT_RUN = Said("silent", "\N{MIDDLE DOT}", "not run", 7)
_NOT_APPLICABLE = Said("silent", "\N{WHITE CIRCLE}", "not applicable", 7)
"""A cell of which no evaluation applies to the subject's family."""
_OUTCOMES = {
    Outcome.OUTCOME_RECOVERS: Said("recovers", "\N{MULTIPLICATION X}", "recovers", 0),
    Outcome.OUTCOME_UNINFORMATIVE: Said("silent", "\N{EN DASH}", "uninformative", 1),
    Outcome.OUTCOME_INCONCLUSIVE: Said("open", "?", "inconclusive", 2),
    Outcome.OUTCOME_NOT_APPLICABLE: Said("silent", "\N{MIDDLE DOT}", "not applicable", 3),
    Outcome.OUTCOME_DOES_NOT_RECOVER: Said("removed", "\N{CHECK MARK}", "does not recover", 4),
}
_CHANGES = {
    Change.CHANGE_WORSE: Said("bad", "\N{BLACK DOWN-POINTING TRIANGLE}", "worse", 0),
    Change.CHANGE_BETTER: Said("good", "\N{BLACK UP-POINTING TRIANGLE}", "better", 1),
    Change.CHANGE_UNSETTLED: Said("open", "?", "unsettled", 2),
    Change.CHANGE_SAME: Said("none", "=", "same", 3),
}
_GATES = {
    GateOutcome.GATE_OUTCOME_FAIL: Said("bad", "\N{MULTIPLICATION X}", "fails", 0),
    GateOutcome.GATE_OUTCOME_UNDECIDED: Said("open", "?", "undecided", 1),
    GateOutcome.GATE_OUTCOME_PASS: Said("good", "\N{CHECK MARK}", "passes", 2),
}
_NOT_COMPARED = Said("none", "\N{EN DASH}", "not compared", 4)
_ABSENT = Said("none", "", "", 9)

LEGEND = [*_CONCLUSIONS.values(), *_STATES.values(), _NOT_RUN, _NOT_APPLICABLE]
"""What a cell may be."""

OUTCOMES = list(_OUTCOMES.values())
"""What an evaluation may come out as, the worst first."""


def of_cell(cell: CampaignReportCell) -> Said:
    """Return how a cell is shown: its conclusion, or why it has none."""
    if cell.HasField("verdict"):
        return _CONCLUSIONS.get(cell.verdict.conclusion, _NOT_RUN)
    if cell.error_reason == NOT_APPLICABLE:
        return _NOT_APPLICABLE
    return _STATES.get(cell.state, _NOT_RUN)


def of_outcome(outcome: Outcome.ValueType) -> Said:
    """Return how the outcome of an evaluation is shown."""
    return _OUTCOMES.get(outcome, Said("silent", "\N{MIDDLE DOT}", "no outcome", 3))


def of_change(change: Change.ValueType) -> Said:
    """Return how a change is shown."""
    return _CHANGES.get(change, _NOT_COMPARED)


def of_comparison(comparison: CellComparison | None) -> Said:
    """Return how the change of a cell is shown; nothing if there is no compared campaign."""
    return _ABSENT if comparison is None else of_change(comparison.audits.change)


def of_gate(outcome: GateOutcome.ValueType | None) -> Said:
    """Return how what the gate says of a cell is shown."""
    return _ABSENT if outcome is None else _GATES.get(outcome, _ABSENT)


def word(name: Callable[[Any], str], value: int, prefix: str) -> str:
    """Return a value's name without the prefix, as in "not_erased", or a number that the contract lacks as it is."""
    try:
        return name(value).removeprefix(prefix).lower()
    except ValueError:
        return str(value)
