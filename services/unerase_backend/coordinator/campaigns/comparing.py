"""Compares two campaigns cell by cell, in threads.

Holm's correction needs every p before the first one is corrected. So the comparisons of the cells are first written to
a file, and corrected as they are read back.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol

from unerase.v1.campaigns_pb2 import CampaignSpec, Cell, CellState
from unerase.v1.comparisons_pb2 import CampaignComparison, CellComparison, CompareResponse
from unerase_backend.comparison import CellSide, Family, Recorded, Totals, compare_cells
from unerase_backend.coordinator.campaigns.wire import parts

_CELL, _WHOLE = (CompareResponse.DESCRIPTOR.fields_by_name[name].number for name in ("cell", "campaigns"))
_STATES = {
    CellState.CELL_STATE_FAILED: "failed",
    CellState.CELL_STATE_CANCELLED: "was cancelled",
}


class Source(Protocol):
    """What is read of campaigns (`reader.py`)."""

    def spec(self, campaign_id: str) -> CampaignSpec | None:
        """Return a campaign's specification with its names; None once it is deleted."""

    def cells(self, campaign_id: str) -> Iterator[Cell]:
        """Yield the cells of a campaign in their order."""

    def cell(self, campaign_id: str, position: int) -> Cell | None:
        """Return one cell of a campaign; None if there is none."""

    def recorded(self, audit_id: str, content_digest: str) -> Recorded | None:
        """Return an audit as it was recorded; None if it was deleted, or its report is lost."""


@dataclass(frozen=True)
class _Names:
    """The subjects and concepts of a campaign, each with its place."""

    subjects: dict[str, int]
    concepts: dict[str, int]

    @classmethod
    def of(cls, spec: CampaignSpec) -> "_Names":
        return cls(
            {name: place for place, name in enumerate(spec.subjects)},
            {name: place for place, name in enumerate(spec.concepts)},
        )

    def position(self, subject: str, concept: str) -> int | None:
        if subject not in self.subjects or concept not in self.concepts:
            return None
        return self.subjects[subject] * len(self.concepts) + self.concepts[concept]

    def cells(self) -> Iterator[tuple[str, str]]:
        return ((subject, concept) for subject in self.subjects for concept in self.concepts)


def compare(source: Source, first: str, second: str) -> Iterator[CellComparison | CampaignComparison]:
    """Yield the comparison of each cell of the second campaign, in order, and at last the whole.

    Raises:
        LookupError: one of the campaigns was deleted.
    """
    specs = [source.spec(campaign_id) for campaign_id in (first, second)]
    if specs[0] is None or specs[1] is None:
        raise LookupError("the campaign was deleted")
    before, after = _Names.of(specs[0]), _Names.of(specs[1])
    with tempfile.TemporaryFile() as file:
        family = Family()
        for cell in source.cells(second):
            place = before.position(cell.subject, cell.concept)
            earlier = None if place is None else source.cell(first, place)
            compared = compare_cells(*_sides(source, earlier, cell))
            family.add(compared)
            write(file, compared)
        totals = Totals(first, second, family)
        for subject, concept in before.cells():
            if after.position(subject, concept) is None:
                totals.add_only_in_first(subject, concept)
        for compared in read_compared(file):
            if before.position(compared.subject, compared.concept) is None:
                totals.add_only_in_second(compared.subject, compared.concept)
            adjusted = family.adjusted(compared)
            totals.add(adjusted)
            yield adjusted
        yield totals.message()


def write(file: IO[bytes], part: CellComparison | CampaignComparison) -> None:
    """Write one part of a comparison behind those before."""
    response = CompareResponse(cell=part) if isinstance(part, CellComparison) else CompareResponse(campaigns=part)
    file.write(response.SerializeToString(deterministic=True))


def read_compared(file: IO[bytes]) -> Iterator[CellComparison]:
    """Yield the cells of a comparison that was written to a file."""
    return (CellComparison.FromString(part) for number, part in parts(file) if number == _CELL)


def read_whole(file: IO[bytes]) -> CampaignComparison:
    """Return the whole of a comparison that was written to a file."""
    return next(CampaignComparison.FromString(part) for number, part in parts(file) if number == _WHOLE)


def _sides(source: Source, earlier: Cell | None, cell: Cell) -> tuple[CellSide | None, CellSide]:
    """Return the two sides of a cell; what would not be compared is not read."""
    if earlier is None:
        return None, _side(cell, None)
    one = source.recorded(earlier.audit, earlier.content_digest) if earlier.content_digest else None
    other = source.recorded(cell.audit, cell.content_digest) if one is not None and cell.content_digest else None
    return _side(earlier, one), _side(cell, other)


def _side(cell: Cell, audit: Recorded | None) -> CellSide:
    problem = ""
    if audit is None:
        told = f": {cell.error_message}" if cell.error_message else ""
        problem = f"{_STATES[cell.state]}{told}" if cell.state in _STATES else "its audit was deleted, or is lost"
    return CellSide(cell.index, cell.subject, cell.concept, audit, problem)
