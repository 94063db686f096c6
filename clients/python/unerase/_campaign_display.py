"""How the command shows campaigns on a terminal."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unerase._display import CONCLUSION_COLOURS, enum_name, span
from unerase._visible import isolated, visible
from unerase.v1.campaigns_pb2 import Campaign, CampaignEvent, CampaignState, Cell, CellState
from unerase.v1.verdicts_pb2 import Conclusion, Verdict

MOST_SHOWN = 2000
"""Cells of a matrix; more are summed up."""
_COLUMNS = 8
_DAMAGED = ", damaged"
_ENDED = (CellState.CELL_STATE_SUCCEEDED, CellState.CELL_STATE_FAILED, CellState.CELL_STATE_CANCELLED)


class CampaignProgress:
    """Where a campaign is, from its events: cells by state and conclusion, and the time that is left."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.state = "requesting"
        self.waits = ""
        self._cells: dict[int, str] = {}
        self._ended: set[int] = set()
        self._began: float | None = None
        self._now = 0.0

    def take(self, event: CampaignEvent) -> Cell | None:
        """Note an event; return the cell that ended with it, if one did."""
        self._now = _seconds(event.time)
        match event.WhichOneof("event"):
            case "state_changed":
                changed = event.state_changed
                self.total, self.state, self.waits = changed.cells_total, campaign_state(changed), ""
                if changed.state == CampaignState.CAMPAIGN_STATE_RUNNING:
                    # A campaign that is retried has ended before: only what runs from here on says how long it takes.
                    self._began = self._now
                return None
            case "delayed":
                self.waits = event.delayed.message
                return None
            case "cell_changed":
                return self._changed(event.cell_changed)
        return None

    def _changed(self, cell: Cell) -> Cell | None:
        self.waits = ""
        if cell.state == CellState.CELL_STATE_PENDING:
            self._cells.pop(cell.index, None)
        else:
            # Without damage, which would be a comma in a list.
            self._cells[cell.index] = _word(cell).removesuffix(_DAMAGED)
        if cell.state in _ENDED:
            self._ended.add(cell.index)
            return cell
        self._ended.discard(cell.index)
        return None

    @property
    def done(self) -> int:
        """The number of cells that have ended."""
        return len(self._ended)

    def seconds_left(self) -> float | None:
        """Return the seconds until the end at the pace so far; None as long as nothing is known."""
        if self._began is None or not self.done or self._now <= self._began:
            return None
        return (self._now - self._began) / self.done * max(0, self.total - self.done)

    def counts(self) -> str:
        """Return the cells by state and conclusion, as in "3 running, 5 removed, 1 failed"."""
        found = Counter(self._cells.values())
        return ", ".join(f"{found[word]} {word}" for word in sorted(found))

    def line(self) -> str:
        """Return the progress in one line, as in "12/40 cells: 3 running, 9 removed; about 4 min left"."""
        left = self.seconds_left()
        expected = f"; about {span(round(left))} left" if left else ""
        counts = self.counts() or self.state
        waits = f"; waits: {self.waits}" if self.waits else ""
        return f"{self.done}/{self.total} cells: {counts}{expected}{waits}"


class LiveCampaign:
    """Shows a campaign's progress: one line that changes on a terminal, a line for each per cent elsewhere."""

    def __init__(self, console: Console, *, hidden: bool = False) -> None:
        self._console = console
        self._hidden = hidden
        self._plain = not console.is_terminal
        self._at = CampaignProgress()
        self._shown = -1
        self._progress = Progress(
            TextColumn("{task.fields[line]}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=console,
            disable=hidden or self._plain,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("campaign", total=1, line="requesting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: CampaignEvent) -> None:
        """Show one event, and the reason of each cell that failed."""
        ended = self._at.take(event)
        if self._hidden:
            return
        if ended is not None and ended.state == CellState.CELL_STATE_FAILED:
            self._console.print(cell_line(ended), soft_wrap=True)
        if self._plain:
            per_cent = 100 * self._at.done // max(1, self._at.total)
            if per_cent != self._shown or event.HasField("delayed"):
                self._shown = per_cent
                self._console.print(self._at.line(), soft_wrap=True)
        elif self._task is not None:
            done, total = self._at.done, max(1, self._at.total)
            self._progress.update(self._task, line=visible(self._at.line()), completed=done, total=total)


def event_line(event: CampaignEvent) -> str:
    """Return one event as one line."""
    match event.WhichOneof("event"):
        case "state_changed":
            said = campaign_state(event.state_changed)
        case "cell_changed":
            said = cell_line(event.cell_changed)
        case _:
            said = f"the campaign waits: {event.delayed.message}"
    return f"{event.sequence:>5}  {said}"


def cell_line(cell: Cell) -> str:
    """Return a cell as one line, with why it failed."""
    why = f" {cell.error_reason} {cell.error_message}".rstrip() if cell.error_reason else ""
    return f"{cell.subject} x {cell.concept}: {_word(cell)}{why}"


def campaign_state(campaign: Campaign) -> str:
    """Return the campaign's state as a word."""
    return enum_name(CampaignState, campaign.state, "CAMPAIGN_STATE_")


def conclusion_word(verdict: Verdict) -> str:
    """Return a conclusion as words, with whether the model is damaged."""
    return enum_name(Conclusion, verdict.conclusion, "CONCLUSION_") + (_DAMAGED if verdict.damaged else "")


def counted(campaign: Campaign) -> str:
    """Return a campaign's cells by state and conclusion."""
    cells = campaign.cells
    by_state = {"pending": cells.pending, "running": cells.running}
    by_state |= {enum_name(Conclusion, each.conclusion, "CONCLUSION_"): each.cells for each in campaign.conclusions}
    by_state |= {"failed": cells.failed, "cancelled": cells.cancelled}
    return ", ".join(f"{number} {word}" for word, number in by_state.items() if number)


def show_matrix(console: Console, total: int, cells: Callable[[], Iterable[Cell]]) -> None:
    """Print subjects by concepts with each cell's conclusion, unless there are too many; of many concepts, in parts."""
    if total > MOST_SHOWN:
        return
    found = list(cells())
    subjects = list(dict.fromkeys(cell.subject for cell in found))
    concepts = list(dict.fromkeys(cell.concept for cell in found))
    at = {(cell.subject, cell.concept): cell for cell in found}
    for first in range(0, len(concepts), _COLUMNS):
        part = concepts[first : first + _COLUMNS]
        console.print()
        console.print(_matrix(subjects, part, at))


def _matrix(subjects: Sequence[str], concepts: Sequence[str], at: dict[tuple[str, str], Cell]) -> Table:
    table = Table("model", *(isolated(concept) for concept in concepts), box=None, pad_edge=False)
    for subject in subjects:
        row = [at.get((subject, concept)) for concept in concepts]
        table.add_row(isolated(subject), *(_text_of(cell) if cell is not None else Text("-") for cell in row))
    return table


def _text_of(cell: Cell) -> Text:
    colour = CONCLUSION_COLOURS.get(cell.verdict.conclusion, "yellow")
    if cell.state != CellState.CELL_STATE_SUCCEEDED:
        colour = "red" if cell.state == CellState.CELL_STATE_FAILED else "dim"
    reason = f" {cell.error_reason}" if cell.error_reason else ""
    return Text(isolated(f"{_word(cell)}{reason}"), style=colour)


def _word(cell: Cell) -> str:
    if cell.state == CellState.CELL_STATE_SUCCEEDED:
        return conclusion_word(cell.verdict)
    return enum_name(CellState, cell.state, "CELL_STATE_")


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9
