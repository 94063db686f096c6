"""A sequential audit stops what is settled, and a crash on the way changes nothing."""

import pytest

from support.serving import Running
from unerase import Client
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, AuditSpec, Tolerances, UnitDone
from unerase.v1.verdicts_pb2 import OUTCOME_RECOVERS
from unerase_backend.report.offline import conclude_file

from .conftest import small_spec


def _spec() -> AuditSpec:
    """The reference against itself: everything comes back."""
    spec = small_spec(seed_base=41, cases=24, subject="testbed/reference")
    spec.reference, spec.assume_reference, spec.sequential = spec.subject, True, True
    return spec


def _followed(backend: Running, client: Client, killed: str = "") -> tuple[str, list[UnitDone]]:
    backend.forget()
    audit = client.create_audit(_spec())
    done = []
    for event in client.watch(audit.id, timeout=240):
        if event.WhichOneof("event") == "unit_done":
            done.append(event.unit_done)
            if killed and len(done) == 4:
                backend.kill(killed)
    ended = client.get_audit(audit.id)
    assert (ended.state, ended.units_done) == (AUDIT_STATE_SUCCEEDED, ended.units_total)
    return audit.id, done


@pytest.fixture(scope="module")
def undisturbed(backend: Running, client: Client) -> tuple[str, list[UnitDone]]:
    return _followed(backend, client)


def test_what_is_settled_is_not_run(client: Client, undisturbed: tuple[str, list[UnitDone]], tmp_path) -> None:
    audit_id, done = undisturbed
    results = client.get_audit(audit_id).verdict.evaluations
    assert {result.outcome for result in results} == {OUTCOME_RECOVERS}
    for result in results:
        assert result.stopped_after in range(6, 24, 3)
        assert result.subject.cases == result.reference.cases == result.control.cases == result.stopped_after
        of_evaluation = [unit for unit in done if unit.evaluation == result.name]
        skipped = [unit for unit in of_evaluation if unit.skipped]
        assert len(of_evaluation) == 3 * 24 / 3
        assert len(skipped) == 24 - result.stopped_after
        assert not any(unit.observations for unit in skipped)
    file = tmp_path / "observations.parquet"
    file.write_bytes(client.report_parquet(audit_id))
    assert conclude_file(file, Tolerances()).verdict == client.get_audit(audit_id).verdict


def test_a_killed_coordinator_decides_the_same_again(
    backend: Running, client: Client, undisturbed: tuple[str, list[UnitDone]]
) -> None:
    audit_id, done = _followed(backend, client, "coordinator")
    assert len({unit.unit for unit in done}) == len(done)
    contents = [client.report_message(each).content for each in (undisturbed[0], audit_id)]
    assert contents[0].SerializeToString(deterministic=True) == contents[1].SerializeToString(deterministic=True)
