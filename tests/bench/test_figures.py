"""bench.json: figures are compared with their targets, and docs/performance.md states the same ones."""

import re

import pytest

from bench.figures import figure, held, table, targets
from docs.pages import text_of

SIGNS = {"higher": ">=", "lower": "<="}


def stated() -> dict[str, str]:
    """Return the target of each figure in the tables of docs/performance.md, by name."""
    lines = [line for line in text_of("docs/performance.md").splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    groups = "|".join({name.partition(".")[0] for name in targets()})
    return {match[1]: row[-1] for row in rows if (match := re.match(rf"`((?:{groups})\.\w+)`", row[0]))}


def test_the_page_states_the_targets_of_the_file() -> None:
    wanted = {
        name: "" if each["target"] is None else f"{SIGNS[each['better']]} {each['target']:,}"
        for name, each in targets().items()
        if not name.startswith("hostile.")
    }
    assert stated() == wanted


def test_a_figure_that_the_file_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match="no-such"):
        figure("no-such", 1)


def test_targets_are_bounds_in_the_direction_that_is_better() -> None:
    higher, lower, without = (
        figure(name, 0) for name in ("audit.batch_fill", "memory.peak_mb", "hostile.rss_after_mb")
    )
    assert [held(each | {"value": value}) for each, value in ((higher, 0.9), (higher, 0.89))] == [True, False]
    assert [held(each | {"value": value}) for each, value in ((lower, 2600), (lower, 2601))] == [True, False]
    assert held(without) is None


def test_the_table_says_what_is_not_held() -> None:
    shown = table([figure("audit.batch_fill", 0.5), figure("memory.peak_mb", 2000), figure("hostile.rss_after_mb", 1)])
    _, fill, memory, without = (line.split() for line in shown.splitlines())
    assert fill == ["audit.batch_fill", "0.5", "share", ">=", "0.9", "NO"]
    assert memory == ["memory.peak_mb", "2,000", "MB", "<=", "2,600", "yes"]
    assert without == ["hostile.rss_after_mb", "1", "MB"]
