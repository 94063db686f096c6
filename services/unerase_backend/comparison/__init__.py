"""Two audits or two campaigns, compared, and gates: pure functions of reports, observations and verdicts."""

from unerase_backend.comparison.audits import Recorded, compare_audits
from unerase_backend.comparison.basis import comparability_digest
from unerase_backend.comparison.campaigns import CellSide, Family, Totals, compare_cells, is_changed
from unerase_backend.comparison.gate import GateEvaluation, evaluate
from unerase_backend.comparison.gate_checks import check_gate

__all__ = [
    "CellSide",
    "Family",
    "GateEvaluation",
    "Recorded",
    "Totals",
    "check_gate",
    "comparability_digest",
    "compare_audits",
    "compare_cells",
    "evaluate",
    "is_changed",
]
