"""Two tenants of one coordinator: a campaign of one holds up neither the other's single audit, nor itself for ever."""

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grpc
import psutil
import pytest

from support.coordinators import Coordinator, coordinator, ray_address
from support.serving import Running
from unerase import Client, ClientSettings, UneraseError
from unerase.v1.audits_pb2 import AUDIT_STATE_SUCCEEDED, Audit
from unerase_backend.runtime import tokens

from .conftest import small_spec

CAMPAIGN = 6


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """A token of each tenant."""
    file = tmp_path / "tokens.json"
    made = {tenant: tokens.create(file, tenant, tenant, ["admin"], 1) for tenant in ("campaigner", "single")}
    known = json.loads(file.read_text())
    known["quotas"] = {"campaigner": {"audits": CAMPAIGN}}
    file.write_text(json.dumps(known))
    return made


@pytest.fixture
def shared(backend: Running, tmp_path: Path, keys: dict[str, str]) -> Iterator[Coordinator]:
    """A coordinator that runs two units at once, so that there is something to wait for."""
    with coordinator(
        ray_address(psutil.Process(backend.process.pid)),
        tmp_path / "state",
        artifacts=str(backend.data / "artifacts"),
        tokens=str(tmp_path / "tokens.json"),
        concurrent_units=2,
    ) as running:
        yield running


def _client(shared: Coordinator, token: str) -> Client:
    return Client(shared.address, settings=ClientSettings(token=token))


def test_a_campaign_holds_up_nobody_elses_audit(backend: Running, shared: Coordinator, keys: dict[str, str]) -> None:
    backend.forget()
    with _client(shared, keys["campaigner"]) as many, _client(shared, keys["single"]) as one:
        campaign = [many.create_audit(small_spec(seed_base=600 + number, cases=6)) for number in range(CAMPAIGN)]
        with pytest.raises(UneraseError) as refused:
            many.create_audit(small_spec(seed_base=700))
        assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_AUDITS")
        assert refused.value.retry_after
        assert refused.value.metadata == {"limit": str(CAMPAIGN), "used": str(CAMPAIGN)}
        single = one.audit(small_spec(seed_base=800, cases=6), timeout=120)
        assert single.state == AUDIT_STATE_SUCCEEDED
        report = one.report_message(single.id)
        assert report.tenant == "single"
        assert report.content.manifest.versions["unerase"] == metadata.version("unerase")
        ended = [many.get_audit(audit.id) for audit in campaign]
        before = [audit for audit in ended if _before(audit, single)]
        # Served in turns, the last to come is at most as far behind as its turn.
        assert len(before) <= CAMPAIGN // 2
        for audit in campaign:
            assert list(many.watch(audit.id, timeout=240))[-1].state_changed.state == AUDIT_STATE_SUCCEEDED
        # The oldest audit of a tenant goes first: they do not all end at the last.
        ends = [many.get_audit(audit.id).end_time.ToNanoseconds() for audit in campaign]
        assert ends[0] == min(ends)
        many.create_audit(small_spec(seed_base=700))


def _before(audit: Audit, other: Audit) -> bool:
    return audit.HasField("end_time") and audit.end_time.ToNanoseconds() < other.end_time.ToNanoseconds()
