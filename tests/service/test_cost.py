"""An audit's cost over the wire: told before, kept with it, and its time estimated from what ran here."""

import grpc
import pytest

from service.conftest import small_spec
from unerase import Client
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, CreateAuditRequest
from unerase.v1.audits_pb2_grpc import AuditServiceStub


def test_what_was_told_is_what_comes(client: Client, channel: grpc.Channel) -> None:
    create = AuditServiceStub(channel).CreateAudit
    told = create(CreateAuditRequest(spec=small_spec(seed_base=20251), validate_only=True), timeout=60)
    assert (told.id, told.units_total) == ("", told.cost.units)
    # 8 cases of three models: one plain picture, and two draws each with noise and with plain seeds.
    assert told.cost.pictures == 8 * 3 * (1 + 4)
    assert told.cost.rows == told.cost.pictures * 6 * 2
    assert not any(each.assumed for each in told.cost.evaluations)
    ended = client.audit(small_spec(seed_base=20251), timeout=240)
    assert ended.state == AUDIT_STATE_SUCCEEDED, ended
    assert (ended.cost.pictures, ended.cost.rows, ended.cost.units) == (
        told.cost.pictures,
        told.cost.rows,
        told.units_total,
    )
    assert not ended.HasField("estimated_end_time")
    # What ran is known from now on.
    again = create(CreateAuditRequest(spec=small_spec(seed_base=20252), validate_only=True), timeout=60)
    assert again.cost.estimated_duration.ToNanoseconds() > 0
    events = list(client.watch(ended.id, timeout=60))
    running = [event.state_changed for event in events if event.WhichOneof("event") == "state_changed"]
    assert all(audit.cost.pictures == told.cost.pictures for audit in running)


def test_what_a_machine_cannot_bear_is_refused(channel: grpc.Channel) -> None:
    spec = small_spec()
    del spec.battery.evaluations[:]
    spec.battery.preset, spec.cases, spec.steps = "full", 512, 50
    for validate_only in (True, False):
        request = CreateAuditRequest(request_id="too-large", spec=spec, validate_only=validate_only)
        with pytest.raises(grpc.RpcError) as caught:
            AuditServiceStub(channel).CreateAudit(request, timeout=60)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "fewer cases" in caught.value.details()
