"""A short storm, of a seed that stays the same; `make chaos` is the long one."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from chaos.fleet import Fleet
from chaos.storm import Undisturbed, calm, specs, storm
from postgres import Postgres

_CALM: list[Undisturbed] = []


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_lost_and_no_report_differs(tmp_path: Path, postgres: Postgres, database: str) -> None:
    fleet = Fleet(tmp_path, postgres.new_database() if database == "postgresql" else "")
    with ExitStack() as held:
        held.callback(fleet.stop)
        fleet.start()
        wanted = specs()[:2]
        # Whatever the database, the reports are the same.
        _CALM.extend(calm(fleet, wanted) if not _CALM else [])
        toll = storm(fleet, wanted, _CALM, seed=4, seconds=0, mean_wait_seconds=2, kills_in_a_round=4)
    assert toll.kills
    assert (toll.audits, toll.lost, toll.differing, toll.reasons) == (len(wanted), 0, 0, [])
