"""What a campaign's first page says of all its cells, gathered while they go by: counts, the gate, what changed.

Its size is bounded by the number of subjects and concepts, not by that of the cells.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from unerase.v1.campaigns_pb2 import CampaignReport
from unerase.v1.gates_pb2 import GateFinding
from unerase_backend.report.campaign.rows import Row
from unerase_backend.report.campaign.words import LEGEND, Said, of_gate
from unerase_backend.runtime.counting import counted

CHANGES_SHOWN, FINDINGS_SHOWN = 500, 1_000
"""Changed cells and findings of the gate that are listed."""


@dataclass(frozen=True)
class Changed:
    """A cell that has changed since the compared campaign, or could not be compared."""

    index: int
    subject: str
    concept: str
    said: Said
    statement: str
    replaced: bool


@dataclass
class Counted:
    """The cells of one subject or one concept."""

    counts: Counter[Said] = field(default_factory=Counter)
    worst: int = 0
    """The cell with the worst conclusion, the first of several."""
    severity: int = 99


@dataclass
class Overview:
    """The counts of all cells, and the places of those that are listed."""

    href: Callable[[int], str]
    """Where a cell's evidence is."""
    counts: Counter[Said] = field(default_factory=Counter)
    subjects: dict[str, Counted] = field(default_factory=dict)
    concepts: dict[str, Counted] = field(default_factory=dict)
    changed: list[Changed] = field(default_factory=list)
    damaged: int = 0

    def add(self, row: Row) -> None:
        """Count a cell."""
        self.counts[row.said] += 1
        self.damaged += row.damaged
        for each in (
            self.subjects.setdefault(row.subject, Counted()),
            self.concepts.setdefault(row.concept, Counted()),
        ):
            each.counts[row.said] += 1
            if row.said.severity < each.severity:
                each.severity, each.worst = row.said.severity, row.index
        if row.changed:
            self.changed.append(
                Changed(row.index, row.subject, row.concept, row.change, row.evidence["x"][1], row.replaced)
            )
            if len(self.changed) > 2 * CHANGES_SHOWN:
                self._keep_the_worst()

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.counts.total()

    def listed_changes(self) -> list[Changed]:
        """Return the changed cells that are listed: the worse ones first."""
        self._keep_the_worst()
        return self.changed

    def conclusions(self) -> list[tuple[Said, int]]:
        """Return the conclusions that occur, with their counts, the worst first."""
        return sorted(((said, count) for said, count in self.counts.items()), key=lambda each: each[0].severity)

    def kinds(self) -> list[Said]:
        """Return what occurs at all among the cells, the worst first."""
        return [said for said in sorted(LEGEND, key=lambda said: said.severity) if self.counts[said]]

    def _keep_the_worst(self) -> None:
        self.changed.sort(key=lambda one: (one.said.severity, one.index))
        del self.changed[CHANGES_SHOWN:]


def verdict_of(head: CampaignReport, overview: Overview) -> tuple[str, str, str]:
    """Return the heading of the page, its tone, and its statement: the gate's, or else the counts."""
    if head.content.HasField("gate_result"):
        result = head.content.gate_result
        said = of_gate(result.outcome)
        heading = {"fails": "The gate fails", "passes": "The gate passes"}.get(said.word, "The gate is undecided")
        return heading, said.kind, result.statement
    found = ", ".join(f"{count} {said.word}" for said, count in overview.conclusions())
    cells = counted(overview.cells, "cell")
    return "No gate was set", "none", f"Of {cells}: {found}." if found else "There are no cells."


def findings_of(head: CampaignReport) -> list[GateFinding]:
    """Return the gate's findings that are listed: those that fail first."""
    return list(head.content.gate_result.findings[:FINDINGS_SHOWN])
