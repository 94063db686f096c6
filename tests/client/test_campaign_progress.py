"""A campaign's progress, from its events alone: counts that add up, the time that is left, what a terminal shows."""

import io

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from support.scripted_campaigns import CAMPAIGN_EVENTS, campaign_event
from unerase import Campaign, CampaignEvent, CampaignState, Cell, CellState
from unerase._campaign_display import CampaignProgress, LiveCampaign, show_matrix
from unerase._commands.output import PlainConsole
from unerase.v1.verdicts_pb2 import Conclusion, Verdict

STATES = [state for name, state in CellState.items() if state != CellState.CELL_STATE_UNSPECIFIED]
ENDED = {CellState.CELL_STATE_SUCCEEDED, CellState.CELL_STATE_FAILED, CellState.CELL_STATE_CANCELLED}


def at(seconds: int, **event: object) -> CampaignEvent:
    return CampaignEvent(time=Timestamp(seconds=seconds), **event)


def running(cells: int) -> Campaign:
    return Campaign(state=CampaignState.CAMPAIGN_STATE_RUNNING, cells_total=cells)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(STATES)), max_size=40))
def test_the_counts_are_those_of_the_last_state_of_each_cell(changes: list[tuple[int, CellState.ValueType]]) -> None:
    """Also where a cell that has ended is run again."""
    progress = CampaignProgress()
    progress.take(at(0, state_changed=running(5)))
    last: dict[int, CellState.ValueType] = {}
    for index, state in changes:
        cell = Cell(index=index, state=state)
        assert (progress.take(at(1, cell_changed=cell)) is not None) == (state in ENDED)
        last[index] = state
    assert progress.done == sum(state in ENDED for state in last.values())
    shown = [int(part.split()[0]) for part in progress.counts().split(", ") if part]
    assert sum(shown) == sum(state != CellState.CELL_STATE_PENDING for state in last.values())


def test_the_time_left_follows_the_pace_so_far() -> None:
    progress = CampaignProgress()
    progress.take(at(100, state_changed=running(10)))
    assert progress.seconds_left() is None
    for index in range(4):
        cell = Cell(index=index, state=CellState.CELL_STATE_SUCCEEDED, verdict=Verdict(conclusion=5, damaged=index > 1))
        progress.take(at(100 + 60 * (index + 1), cell_changed=cell))
    # Four cells in four minutes, six are left.
    assert progress.seconds_left() == 360
    assert progress.line() == "4/10 cells: 4 removed; about 6 min left"
    progress.take(at(400, delayed={"reason": "QUOTA_AUDITS", "message": "the quota is used up"}))
    assert progress.line().endswith("; waits: the quota is used up")


def test_a_terminal_has_one_line_that_changes() -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    console._force_terminal = True
    console.width = 100
    with LiveCampaign(console) as live:
        for sequence in range(1, CAMPAIGN_EVENTS + 1):
            live.show(campaign_event(sequence))
    shown = console.file.getvalue()
    assert "4/4 cells: 1 avoided, 1 failed, 1 not erased, 1 removed" in shown
    assert "testbed/reference x heart: failed DATA_LOSS an artefact is damaged" in shown


def test_many_concepts_are_shown_in_parts_and_many_cells_are_not() -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    console.width = 200
    cells = [
        Cell(
            subject="m",
            concept=f"concept-{index:02}",
            state=CellState.CELL_STATE_SUCCEEDED,
            verdict=Verdict(conclusion=Conclusion.CONCLUSION_AVOIDED, damaged=True),
        )
        for index in range(20)
    ]
    show_matrix(console, 20, lambda: cells)
    shown = console.file.getvalue()
    assert shown.count("model ") == 3
    assert all(cell.concept in shown for cell in cells)
    assert shown.count("avoided, damaged") == 20

    def never() -> list[Cell]:
        raise AssertionError("cells are fetched that are not shown")

    show_matrix(console, 2001, never)
