"""A gate held against the cells of a campaign: pass, fail or undecided.

A cell fails if one of its clauses fails, is undecided if none fails and one is undecided, and passes otherwise. The
gate fails if a cell fails. Otherwise it passes if a cell passes, no more cells are undecided than it allows, and every
concept that it names has a cell; else it is undecided. Neither the order of the cells nor that of their evaluations
matters.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from unerase.v1.campaigns_pb2 import CampaignReportCell, CellState
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import Gate, GateFinding, GateOutcome, GateResult
from unerase_backend.comparison.clauses import FAIL, PASS, UNDECIDED, Said, of_comparison, of_verdict
from unerase_backend.comparison.gate_checks import check_gate
from unerase_backend.runtime.counting import counted
from unerase_backend.verdict.inapplicable import NOT_APPLICABLE

MOST_FINDINGS = 10_000
"""The most findings that a result holds."""

_STATES = {
    CellState.CELL_STATE_PENDING: "has not begun",
    CellState.CELL_STATE_RUNNING: "has not ended",
    CellState.CELL_STATE_FAILED: "failed",
    CellState.CELL_STATE_CANCELLED: "was cancelled",
}


class GateEvaluation:
    """A gate that takes the cells of a campaign one by one, in any order.

    Raises:
        InvalidRequestError: the gate asks nothing, or one of its limits is out of its bounds.
    """

    def __init__(self, gate: Gate) -> None:
        check_gate(gate)
        self._gate = Gate()
        self._gate.CopyFrom(gate)
        self._cells: Counter[GateOutcome.ValueType] = Counter()
        self._clauses: Counter[tuple[GateOutcome.ValueType, str]] = Counter()
        self._findings: dict[GateOutcome.ValueType, list[GateFinding]] = {FAIL: [], UNDECIDED: []}
        self._concepts: set[str] = set()

    def takes(self, concept: str) -> bool:
        """Whether the gate asks something of the cells of a concept."""
        return not self._gate.concepts or concept in self._gate.concepts

    def add(self, cell: CampaignReportCell, comparison: CellComparison | None = None) -> GateOutcome.ValueType:
        """Take one cell, and say what the gate says of it; PASS for a cell that it does not ask about.

        `comparison` is that with the campaign that `no_worse_than` names, with its p corrected over all cells.
        """
        if not self.takes(cell.concept):
            return PASS
        self._concepts.add(cell.concept)
        said = list(_of_cell(self._gate, cell, comparison))
        outcomes = {each.outcome for each in said}
        outcome = FAIL if FAIL in outcomes else UNDECIDED if UNDECIDED in outcomes else PASS
        self._cells[outcome] += 1
        for kind, clause in {(each.outcome, each.clause) for each in said}:
            self._clauses[kind, clause] += 1
        for each in said:
            if each.outcome != PASS:
                self._keep(_finding(cell, each))
        return outcome

    def _keep(self, finding: GateFinding) -> None:
        kept = self._findings[finding.outcome]
        kept.append(finding)
        # Twice as many as are needed, so that sorting is rare.
        if len(kept) >= 2 * MOST_FINDINGS:
            kept.sort(key=_place)
            del kept[MOST_FINDINGS:]

    def result(self) -> GateResult:
        """Return what the gate says of the cells so far."""
        failed, undecided, passed = self._cells[FAIL], self._cells[UNDECIDED], self._cells[PASS]
        lacking = sorted(set(self._gate.concepts) - self._concepts)
        outcome = FAIL if failed else PASS
        if not failed and (undecided > self._gate.undecided or not passed or lacking):
            outcome = UNDECIDED
        findings = [finding for kind in (FAIL, UNDECIDED) for finding in sorted(self._findings[kind], key=_place)]
        return GateResult(
            outcome=outcome,
            passed=passed,
            failed=failed,
            undecided=undecided,
            findings=findings[:MOST_FINDINGS],
            statement=self._statement(outcome, lacking),
            gate=self._gate,
        )

    def _statement(self, outcome: GateOutcome.ValueType, lacking: list[str]) -> str:
        failed, undecided, passed = self._cells[FAIL], self._cells[UNDECIDED], self._cells[PASS]
        word = {PASS: "Passes", FAIL: "Fails", UNDECIDED: "Undecided"}[outcome]
        total = failed + undecided + passed
        if not total:
            return f"{word}: the gate has no cell to ask about."
        said = f"{word}: of {counted(total, 'cell')} {passed:,} pass"
        said += f", {failed:,} fail{self._by_clause(FAIL)}" if failed else ", none fails"
        allowed = f" of {self._gate.undecided:,} that may be" if undecided and self._gate.undecided else ""
        said += f", {undecided:,} {'is' if undecided == 1 else 'are'} undecided{allowed}" if undecided else ""
        if undecided and not failed:
            said += self._by_clause(UNDECIDED)
        without = f"; no cell of {', '.join(lacking[:10])}" if lacking else ""
        return f"{said}{without}."

    def _by_clause(self, kind: GateOutcome.ValueType) -> str:
        """Return in how many cells each clause decided, as in " (excess 2, interference 1)"."""
        found = sorted((clause, count) for (of, clause), count in self._clauses.items() if of == kind)
        return f" ({', '.join(f'{clause} {count:,}' for clause, count in found)})"


def evaluate(gate: Gate, cells: Iterable[CampaignReportCell], comparisons: Iterable[CellComparison] = ()) -> GateResult:
    """Return what a gate says of a campaign; `comparisons` are matched with the cells by their index.

    Raises:
        InvalidRequestError: the gate asks nothing, or one of its limits is out of its bounds.
    """
    compared = {comparison.cell: comparison for comparison in comparisons}
    evaluation = GateEvaluation(gate)
    for cell in cells:
        evaluation.add(cell, compared.get(cell.index))
    return evaluation.result()


def _of_cell(gate: Gate, cell: CampaignReportCell, comparison: CellComparison | None) -> Iterator[Said]:
    if cell.state != CellState.CELL_STATE_SUCCEEDED or not cell.HasField("verdict"):
        reason = f": {cell.error_message or cell.error_reason}" if cell.error_message or cell.error_reason else ""
        state = _STATES.get(cell.state, "has no verdict")
        if cell.error_reason == NOT_APPLICABLE:
            state = "has no evaluation that applies"
        yield Said("cell", UNDECIDED, f"the cell {state}{reason}")
        return
    yield from of_verdict(gate, cell.verdict)
    if gate.no_worse_than:
        yield from of_comparison(gate, comparison)


def _finding(cell: CampaignReportCell, said: Said) -> GateFinding:
    return GateFinding(
        cell=cell.index,
        subject=cell.subject,
        concept=cell.concept,
        clause=said.clause,
        outcome=said.outcome,
        evaluation=said.evaluation,
        description=said.description,
    )


def _place(finding: GateFinding) -> tuple[int, str, str, str]:
    return finding.cell, finding.clause, finding.evaluation, finding.description
