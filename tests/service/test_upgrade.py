"""An audit that an earlier version began is finished by this one, whose database migrates forward by itself."""

import sqlite3
import tarfile
from pathlib import Path

import pytest

from support.serving import serving
from unerase import Client
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED
from unerase.v1.types_pb2 import Observation

pytestmark = [pytest.mark.backends, pytest.mark.timeout(600)]
BEGUN = sorted((Path(__file__).parents[1] / "upgrade").glob("begun-by-*.tar.xz"))


def _rows(data: Path, query: str) -> list[tuple[bytes, ...]]:
    with sqlite3.connect(data / "coordinator" / "audits.sqlite") as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("begun", BEGUN, ids=[path.name.removesuffix(".tar.xz") for path in BEGUN])
def test_an_audit_that_an_earlier_version_began_is_finished(begun: Path, tmp_path: Path) -> None:
    with tarfile.open(begun) as archive:
        archive.extractall(tmp_path, filter="data")
    observed = "select message from unerase_observations order by unit, ordinal"
    before = _rows(tmp_path, observed)
    events = _rows(tmp_path, "select message from unerase_events order by sequence")
    assert before
    with serving(tmp_path) as running, Client(running.address) as client:
        (audit,) = client.audits()
        watched = list(client.watch(audit.id, timeout=240))
        ended = client.get_audit(audit.id)
        assert (ended.state, ended.error_message) == (AUDIT_STATE_SUCCEEDED, "")
        done = [event.unit_done.unit for event in watched if event.WhichOneof("event") == "unit_done"]
        assert len(done) == len(set(done)) == ended.units_done == ended.units_total
        assert client.report_message(audit.id).content.spec == ended.spec
        pictures = {Observation.FromString(row[0]).picture_digest for row in before}
        assert all(client.artifact(audit.id, digest) for digest in pictures)
    # What was there stays as it was.
    assert [event.SerializeToString(deterministic=True) for event in watched[: len(events)]] == [e[0] for e in events]
    assert set(before) < set(_rows(tmp_path, observed))
