"""An audit that an earlier version began is finished by this one, whose database migrates forward by itself."""

import sqlite3
import tarfile
from pathlib import Path

import pytest

from support.serving import serving
from unerase import Client, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditEvent
from unerase.v1.types_pb2 import MODEL_ACCESS_BOTH, Observation

pytestmark = [pytest.mark.backends, pytest.mark.timeout(600)]
BEGUN = sorted((Path(__file__).parents[1] / "upgrade").glob("begun-by-*.tar.xz"))


def _rows(data: Path, query: str) -> list[tuple[bytes, ...]]:
    with sqlite3.connect(data / "coordinator" / "audits.sqlite") as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("begun", BEGUN, ids=[path.name.removesuffix(".tar.xz") for path in BEGUN])
def test_audits_that_an_earlier_version_began_are_finished(begun: Path, tmp_path: Path) -> None:
    with tarfile.open(begun) as archive:
        archive.extractall(tmp_path, filter="data")
    observed = "select message from unerase_observations order by audit, unit, ordinal"
    before = _rows(tmp_path, observed)
    events = [row[0] for row in _rows(tmp_path, "select message from unerase_events order by sequence")]
    assert before
    # The first archive is older than guards.
    catalogues = sorted(tmp_path.glob("catalogue.yaml"))
    pictures = {Observation.FromString(row[0]).picture_digest for row in before} - {""}
    with serving(tmp_path, catalogues=catalogues) as running, Client(running.address) as client:
        audits = list(client.audits())
        assert len(audits) == 1 + len(catalogues)
        watched = [event for audit in audits for event in _finished(client, audit.id)]
        assert all(any(_has(client, audit.id, digest) for audit in audits) for digest in pictures)
    # What was there stays as it was.
    assert set(events) <= {event.SerializeToString(deterministic=True) for event in watched}
    assert set(before) < set(_rows(tmp_path, observed))


def _finished(client: Client, audit_id: str) -> list[AuditEvent]:
    """Watch an audit to its end, check it, and return all its events."""
    watched = list(client.watch(audit_id, timeout=240))
    ended = client.get_audit(audit_id)
    assert (ended.state, ended.error_message) == (AUDIT_STATE_SUCCEEDED, "")
    done = [event.unit_done.unit for event in watched if event.WhichOneof("event") == "unit_done"]
    assert len(done) == len(set(done)) == ended.units_done == ended.units_total
    assert client.report_message(audit_id).content.spec == ended.spec
    assert ended.verdict.HasField("deployed") == (ended.spec.access == MODEL_ACCESS_BOTH)
    return watched


def _has(client: Client, audit_id: str, digest: str) -> bool:
    try:
        return bool(client.artifact(audit_id, digest))
    except UneraseError:
        return False
