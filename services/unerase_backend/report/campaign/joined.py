"""A campaign's cells joined with what a gate and a comparison with an earlier campaign say of each."""

from collections.abc import Callable, Iterable, Iterator

from unerase.v1.campaigns_pb2 import CampaignReportCell, CampaignReportContent
from unerase.v1.comparisons_pb2 import CellComparison
from unerase.v1.gates_pb2 import GateOutcome
from unerase_backend.report.campaign.streamed_json import in_order

MAX_FINDINGS = 10_000
"""The most findings that a gate's result holds."""


def with_comparisons(
    cells: Iterable[CampaignReportCell], comparisons: Iterable[CellComparison]
) -> Iterator[tuple[CampaignReportCell, CellComparison | None]]:
    """Yield each cell with its comparison, if there is one; both are in order of the cells.

    Raises:
        ValueError: a cell or a comparison is out of order, or a comparison is about no cell.
    """
    others = iter(comparisons)
    waiting = next(others, None)
    for cell in in_order(cells):
        if waiting is None or waiting.cell != cell.index:
            yield cell, None
            continue
        yield cell, waiting
        waiting = next(others, None)
    if waiting is not None:
        raise ValueError(
            f"the comparison of cell {waiting.cell} is about no cell, or comes before that of an earlier cell"
        )


def outcomes_of(content: CampaignReportContent) -> Callable[[CampaignReportCell], GateOutcome.ValueType | None]:
    """Return a function from a cell to what the gate says of it: the most serious outcome of its clauses.

    That is None without a gate, for a cell that the gate does not ask about, and for one whose findings may be among
    those that the result left out.
    """
    result = content.gate_result
    if not content.HasField("gate_result"):
        return lambda cell: None
    found: dict[int, GateOutcome.ValueType] = {}
    for finding in result.findings:
        # The failed ones come first.
        found.setdefault(finding.cell, finding.outcome)
    asked, passes = set(result.gate.concepts), GateOutcome.GATE_OUTCOME_PASS
    rest = passes if len(result.findings) < MAX_FINDINGS else None

    def outcome(cell: CampaignReportCell) -> GateOutcome.ValueType | None:
        return None if asked and cell.concept not in asked else found.get(cell.index, rest)

    return outcome
