"""A short storm over the shared backend, of a seed that stays the same; `make chaos` is the long one."""

from pathlib import Path

import pytest

from chaos.campaign import calm_campaign
from chaos.fleet import Shared
from chaos.storm import Undisturbed, calm, specs, storm
from support.postgres import Postgres
from support.serving import Running

WANTED = specs()[:2]


@pytest.fixture(scope="module")
def undisturbed(backend: Running, tmp_path_factory: pytest.TempPathFactory) -> list[Undisturbed]:
    """How the audits come out in calm weather; whatever the database, it is the same."""
    return calm(Shared(backend, tmp_path_factory.mktemp("calm")), WANTED)


@pytest.fixture(scope="module")
def campaign(backend: Running) -> bytes:
    """The content of the campaign's report in calm weather."""
    return calm_campaign(backend.address)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.backends)])
def test_nothing_is_lost_and_no_report_differs(
    backend: Running,
    undisturbed: list[Undisturbed],
    campaign: bytes,
    tmp_path: Path,
    postgres: Postgres,
    database: str,
) -> None:
    fleet = Shared(backend, tmp_path, postgres.new_database() if database == "postgresql" else "")
    try:
        fleet.start()
        toll = storm(fleet, WANTED, undisturbed, campaign, seed=4, seconds=0, mean_wait_seconds=2, kills_in_a_round=3)
    finally:
        fleet.stop()
    assert toll.kills
    assert (toll.audits, toll.campaigns, toll.lost, toll.differing, toll.reasons) == (len(WANTED), 1, 0, 0, [])
