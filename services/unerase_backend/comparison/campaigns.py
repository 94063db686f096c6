"""Two campaigns, compared cell by cell: a cell is a subject and a concept, by their names.

Holm's correction over all cells needs every p before the first one is corrected, so the cells are read twice. Between
the passes only the p are kept, 8 bytes each:

    family = Family()
    for cell in cells():            # first pass
        family.add(cell)
    totals = Totals(first, second, family)
    for cell in cells():            # second pass
        totals.add(family.adjusted(cell))

The family is every compared evaluation of every cell but those in which neither the subject's digest nor the basis of
the audit changed: their two audits are one computation, so that there is nothing to test. Which cells these are does
not depend on what was observed. Their changes go by Holm's correction over their own battery.

Source: Holm 1979, Scandinavian Journal of Statistics 6:65.
"""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unerase.v1.comparisons_pb2 import AuditComparison, CampaignComparison, CellComparison, Change
from unerase_backend.comparison.audits import Recorded, compare_audits, settle
from unerase_backend.comparison.evaluations import discordant_needed
from unerase_backend.comparison.statements import state_campaigns

MOST_NAMED = 1000
"""The most cells that a comparison names among those that only one campaign has."""

_COUNTED = {
    Change.CHANGE_BETTER: "better",
    Change.CHANGE_WORSE: "worse",
    Change.CHANGE_SAME: "same",
    Change.CHANGE_UNSETTLED: "unsettled",
}


@dataclass(frozen=True)
class CellSide:
    """One cell of one campaign."""

    index: int
    subject: str
    concept: str
    audit: Recorded | None
    problem: str = ""
    """Why the cell has no report, as in "failed: the model could not be loaded"; empty if it has one."""


def compare_cells(first: CellSide | None, second: CellSide) -> CellComparison:
    """Return the comparison of two cells of the same names, without the correction over the cells.

    Raises as `compare_audits`.
    """
    cell = CellComparison(cell=second.index, subject=second.subject, concept=second.concept)
    if first is None:
        cell.problem = "the first campaign has no such cell"
        return cell
    for campaign, side in (("first", first), ("second", second)):
        if side.audit is None:
            cell.problem = f"the cell of the {campaign} campaign has no report: {side.problem or 'it has not ended'}"
            return cell
    if first.audit is not None and second.audit is not None:
        cell.audits.CopyFrom(compare_audits(first.audit, second.audit))
        cell.replaced = cell.audits.first_subject_digest != cell.audits.second_subject_digest
    return cell


class Family:
    """Every p of two campaigns, for Holm's correction."""

    def __init__(self) -> None:
        self._p = array("d")
        self._corrected: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def __len__(self) -> int:
        return len(self._p)

    def add(self, cell: CellComparison) -> None:
        """Take a cell's p, in the first pass."""
        if is_tested(cell):
            self._p.extend(compared.p for compared in cell.audits.evaluations if compared.cases)
            self._corrected = None

    def corrected(self, p: float) -> float:
        """Return the corrected value of one of the family's p.

        Raises:
            ValueError: the family has no such p, so the second pass is over other cells than the first.
        """
        if self._corrected is None:
            ascending = np.sort(np.frombuffer(self._p, np.float64)) if self._p else np.empty(0)
            factors = np.arange(len(ascending), 0, -1)
            self._corrected = ascending, np.minimum(np.maximum.accumulate(ascending * factors), 1.0)
        ascending, corrected = self._corrected
        # Equal p have equal corrected values: the first one's, since the factors fall.
        place = int(np.searchsorted(ascending, p))
        if place == len(ascending) or ascending[place] != p:
            raise ValueError(f"the first pass over the cells had no p of {p!r}")
        return float(corrected[place])

    def adjusted(self, cell: CellComparison) -> CellComparison:
        """Return a cell, in the second pass, with its corrected p and the changes and statement that follow."""
        found = CellComparison()
        found.CopyFrom(cell)
        if is_tested(cell):
            for compared in found.audits.evaluations:
                if compared.cases:
                    compared.p_campaign = self.corrected(compared.p)
            settle(found.audits)
        return found


def is_tested(cell: CellComparison) -> bool:
    """Whether a cell's evaluations are tests: its subject or the basis of its audit changed, or nobody can say."""
    return cell.HasField("audits") and (cell.replaced or not cell.audits.alike or not cell.audits.second_subject_digest)


class Totals:
    """The comparison as a whole, counted in the second pass."""

    def __init__(self, first: str, second: str, family: Family) -> None:
        self._message = CampaignComparison(
            first_campaign=first,
            second_campaign=second,
            tests=len(family),
            discordant_needed=discordant_needed(len(family)) if len(family) else 0,
        )

    def add(self, cell: CellComparison) -> None:
        """Count one cell of the second campaign, with its corrected p."""
        if not cell.HasField("audits") or cell.audits.incomparable:
            self._message.without_comparison += 1
            return
        self._message.compared += 1
        self._message.replaced += cell.replaced
        self._message.conclusions_changed += _came_to_another_conclusion(cell.audits)
        counted = _COUNTED.get(cell.audits.change)
        if counted is not None:
            setattr(self._message, counted, getattr(self._message, counted) + 1)

    def add_only_in_first(self, subject: str, concept: str) -> None:
        """Count a cell that the second campaign lacks."""
        self._message.only_in_first_cells += 1
        if len(self._message.only_in_first) < MOST_NAMED:
            self._message.only_in_first.append(f"{subject} x {concept}")

    def add_only_in_second(self, subject: str, concept: str) -> None:
        """Count a cell that the first campaign lacks; it is also given to `add`, among those without comparison."""
        self._message.only_in_second_cells += 1
        if len(self._message.only_in_second) < MOST_NAMED:
            self._message.only_in_second.append(f"{subject} x {concept}")

    def message(self) -> CampaignComparison:
        """Return the comparison of what was counted."""
        found = CampaignComparison()
        found.CopyFrom(self._message)
        found.statement = state_campaigns(found)
        return found


def _came_to_another_conclusion(audits: AuditComparison) -> bool:
    return audits.first_conclusion != audits.second_conclusion


def is_changed(cell: CellComparison) -> bool:
    """Whether anything of a cell changed, or could not be compared."""
    moved = (Change.CHANGE_WORSE, Change.CHANGE_BETTER)
    return (
        not cell.HasField("audits")
        or bool(cell.audits.incomparable)
        or cell.replaced
        or cell.audits.change in moved
        or _came_to_another_conclusion(cell.audits)
    )
