"""Webhooks from an audit's end to a real server: at least once, signed, again after failures and restarts."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from support.postgres import Postgres
from support.receiver import Receiver, receiving
from unerase.v1.audits_pb2 import AUDIT_STATE_FAILED, AUDIT_STATE_PENDING, AUDIT_STATE_SUCCEEDED, Audit, AuditSpec
from unerase.v1.campaigns_pb2 import (
    CAMPAIGN_STATE_PENDING,
    CAMPAIGN_STATE_SUCCEEDED,
    Campaign,
    CampaignSpec,
    CellCounts,
    ConclusionCount,
)
from unerase.v1.gates_pb2 import GATE_OUTCOME_FAIL, GateResult
from unerase.v1.types_pb2 import EvaluationDescription
from unerase.v1.verdicts_pb2 import CONCLUSION_REMOVED, Verdict
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.planning.plan import Plan, make_plan
from unerase_backend.coordinator.storage import tables, webhooks
from unerase_backend.coordinator.storage.audits import Origin, timestamp
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.evidence import Reports
from unerase_backend.coordinator.storage.webhooks import WebhookState, campaign_body
from unerase_backend.coordinator.webhooks.delivery import ATTEMPTS, Deliveries, sending, wait_seconds
from unerase_backend.coordinator.webhooks.hosts import Hosts
from unerase_backend.coordinator.webhooks.signing import Secrets, signed_headers
from unerase_backend.runtime.artifacts import ArtifactStore

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw"
ANYWHERE = ["hooks.example.com"]


# Where the database decides; what a delivery makes of an answer is the same on both.
ON_BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def database(tmp_path: Path, postgres: Postgres, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"
    if getattr(request, "param", "sqlite") == "postgresql":
        url = postgres.new_database().replace("postgresql:", "postgresql+psycopg:")
    database = Database(create_engine(url))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture(scope="module")
def plan(catalogue: Catalogue, store: ArtifactStore, descriptions: dict[str, EvaluationDescription]) -> Plan:
    spec = AuditSpec(subject="small/edited", concept="hourglass")
    return replace(make_plan(spec, catalogue, store, descriptions, lambda: 1), units=[], works=[], parts={})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as listening:
        yield listening


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"secrets": {"*": [SECRET]}}))
    return Secrets(file)


def deliveries(database: Database, receiver: Receiver, secrets: Secrets, **more: Any) -> Deliveries:
    """Those of one coordinator, which tries again at once."""
    hosts = more.pop("hosts", Hosts(ANYWHERE, [f"localhost:{receiver.port}"]))
    metrics = more.pop("metrics", Metrics())
    return Deliveries(
        database.webhooks, hosts, secrets, metrics, sending(resolver=loopback), wait=lambda attempt: 0.0, **more
    )


async def loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


async def audited(
    database: Database, plan: Plan, receiver: Receiver, name: str = "a", tenant: str = "", path: str = "/hook"
) -> Audit:
    """Create an audit with a webhook."""
    audit = Audit(
        id=name, request_id=name, spec=plan.spec, state=AUDIT_STATE_PENDING, create_time=timestamp(1), labels={"a": "b"}
    )
    url = f"http://localhost:{receiver.port}{path}"
    telling = database.webhooks.telling(webhooks.AUDIT, tenant, url)(name)
    assert await database.transitions.insert(audit, "digest", plan, Origin(tenant), within=telling)
    return audit


async def succeed(database: Database, audit: Audit) -> None:
    async with AsyncSession(database.engine) as session, session.begin():
        await database.transitions.start(session, audit.id)
        verdict, reports = Verdict(conclusion=CONCLUSION_REMOVED), Reports("a", "b", "c", "d")
        assert await database.transitions.succeed(session, audit.id, 7 * 10**9, verdict, reports)


async def deliver(delivering: Deliveries, times: int = 1) -> None:
    for _ in range(times):
        await delivering.deliver()
        await delivering.settled()


async def state(database: Database, audit: Audit) -> WebhookState:
    return (await database.webhooks.states(webhooks.AUDIT, [audit.id]))[audit.id]


def counted(metrics: Metrics, outcome: str) -> float:
    return metrics.registry.get_sample_value("unerase_webhooks_total", {"outcome": outcome}) or 0.0


@ON_BOTH
async def test_the_end_of_an_audit_is_told_once_and_signed(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets
) -> None:
    metrics = Metrics()
    delivering = deliveries(database, receiver, secrets, metrics=metrics)
    audit = await audited(database, plan, receiver, path="/hook?key=1")
    await deliver(delivering)
    assert receiver.bodies == []
    await succeed(database, audit)
    await deliver(delivering, 3)
    assert receiver.paths == ["/hook?key=1"]
    told = json.loads(receiver.bodies[0])
    assert (told["type"], told["timestamp"]) == ("audit.ended", "1970-01-01T00:00:07Z")
    assert told["data"] == {
        "id": audit.id,
        "request_id": audit.request_id,
        "state": "SUCCEEDED",
        "subject": "small/edited",
        "concept": "hourglass",
        "conclusion": "REMOVED",
        "error_reason": "",
        "create_time": "1970-01-01T00:00:00.000000001Z",
        "end_time": "1970-01-01T00:00:07Z",
        "labels": {"a": "b"},
    }
    headers = receiver.headers[0]
    sent_at = int(headers["webhook-timestamp"])
    assert abs(sent_at - time.time()) < 60
    wanted = signed_headers(headers["webhook-id"], sent_at, receiver.bodies[0], [SECRET])
    assert headers["webhook-signature"] == wanted["webhook-signature"]
    assert await state(database, audit) == WebhookState.DELIVERED
    assert (counted(metrics, "delivered"), counted(metrics, "repeated")) == (1, 0)
    # Neither where it went nor what it said is kept, and the record of it goes after a week.
    async with database.engine.connect() as connection:
        (row,) = (await connection.execute(sa.select(tables.webhooks))).all()
    assert (row.url, row.body) == ("", None)
    await delivering.forget()
    assert await state(database, audit) == WebhookState.DELIVERED
    await database.webhooks.forget(time.time_ns())
    assert await database.webhooks.states(webhooks.AUDIT, [audit.id]) == {}


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_every_kind_of_end_is_told(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets, end: str
) -> None:
    audit = await audited(database, plan, receiver)
    if end == "fails":
        async with AsyncSession(database.engine) as session, session.begin():
            assert await database.transitions.fail(session, audit.id, "REASON", "a message")
    else:
        assert await database.transitions.cancel(audit.id)
    # What was deleted before it could be told is told all the same.
    assert await database.transitions.delete(audit.id)
    await deliver(deliveries(database, receiver, secrets))
    (told,) = map(json.loads, receiver.bodies)
    state, reason = ("FAILED", "REASON") if end == "fails" else ("CANCELLED", "")
    assert (told["data"]["state"], told["data"]["error_reason"], told["data"]["conclusion"]) == (state, reason, "")


async def test_a_failure_is_repeated_with_the_same_id_and_body(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets
) -> None:
    metrics = Metrics()
    receiver.answers = [500, 302, 404, 429, 204]
    audit = await audited(database, plan, receiver)
    await succeed(database, audit)
    await deliver(deliveries(database, receiver, secrets, metrics=metrics), 7)
    assert len(receiver.bodies) == 5
    assert len(set(receiver.bodies)) == len({headers["webhook-id"] for headers in receiver.headers}) == 1
    assert (counted(metrics, "delivered"), counted(metrics, "repeated"), counted(metrics, "given_up")) == (1, 4, 0)
    assert await state(database, audit) == WebhookState.DELIVERED


@pytest.mark.parametrize(("answer", "attempts"), [(500, ATTEMPTS), (410, 1)])
async def test_a_webhook_is_given_up_in_the_end_and_the_audit_stays_what_it_is(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets, answer: int, attempts: int
) -> None:
    metrics = Metrics()
    receiver.answers = [answer]
    audit = await audited(database, plan, receiver)
    await succeed(database, audit)
    before = await database.audits.get(audit.id)
    await deliver(deliveries(database, receiver, secrets, metrics=metrics), ATTEMPTS + 3)
    assert len(receiver.bodies) == attempts
    assert await state(database, audit) == WebhookState.GIVEN_UP
    assert counted(metrics, "given_up") == 1
    assert await database.audits.get(audit.id) == before
    assert before is not None
    assert before.state == AUDIT_STATE_SUCCEEDED


@ON_BOTH
async def test_a_restart_in_the_middle_of_an_attempt_sends_it_again(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets
) -> None:
    audit = await audited(database, plan, receiver)
    await succeed(database, audit)
    receiver.hangs = True
    first = deliveries(database, receiver, secrets, claim_seconds=0.0)
    await first.deliver()
    await receiver.came.wait()
    await first.close()
    receiver.hangs = False
    # Another process, on the same database.
    again = Database(database.engine)
    await deliver(deliveries(again, receiver, secrets))
    assert len(receiver.bodies) == 2
    assert receiver.headers[0]["webhook-id"] == receiver.headers[1]["webhook-id"]
    assert receiver.bodies[0] == receiver.bodies[1]
    assert await state(database, audit) == WebhookState.DELIVERED


@ON_BOTH
async def test_coordinators_do_not_send_the_same_at_once(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets
) -> None:
    audits = [await audited(database, plan, receiver, f"a{number}") for number in range(3)]
    for audit in audits:
        await succeed(database, audit)
    several = [deliveries(database, receiver, secrets) for _ in range(4)]
    await asyncio.gather(*(each.deliver() for each in several))
    await asyncio.gather(*(each.settled() for each in several))
    await asyncio.gather(*(each.deliver() for each in several))
    assert sorted(json.loads(body)["data"]["id"] for body in receiver.bodies) == ["a0", "a1", "a2"]


@ON_BOTH
async def test_a_tenant_whose_host_hangs_keeps_no_other_back(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets
) -> None:
    async with receiving() as hanging:
        hanging.hangs = True
        hosts = Hosts([], [f"localhost:{hanging.port}", f"localhost:{receiver.port}"])
        for number in range(40):
            audit = await audited(database, plan, hanging, f"greedy{number}", "greedy")
            await succeed(database, audit)
        other = await audited(database, plan, receiver, "other", "other")
        await succeed(database, other)
        delivering = deliveries(database, receiver, secrets, hosts=hosts)
        await delivering.deliver()
        await receiver.came.wait()
        await delivering.deliver()
        await hanging.came.wait()
        assert [json.loads(body)["data"]["id"] for body in receiver.bodies] == ["other"]
        # And only so many calls of one tenant are open.
        assert len(delivering._running) <= 5
        await delivering.close()


async def test_what_the_operator_no_longer_allows_is_not_sent(
    database: Database, plan: Plan, receiver: Receiver, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (hosts, keys) in enumerate(
        (
            (Hosts(ANYWHERE), secrets),
            (Hosts([f"localhost:{receiver.port}"]), secrets),
            (Hosts([], [f"localhost:{receiver.port}"]), Secrets(None)),
        )
    ):
        audit = await audited(database, plan, receiver, f"a{number}", path="/s3cret")
        await succeed(database, audit)
        await deliver(deliveries(database, receiver, keys, hosts=hosts), ATTEMPTS)
        assert await state(database, audit) == WebhookState.GIVEN_UP
    assert receiver.bodies == []
    assert "must begin with https" in caplog.text
    assert "there is no secret to sign it with" in caplog.text
    assert "s3cret" not in caplog.text


async def test_a_host_that_is_gone_is_tried_again(
    database: Database, plan: Plan, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving() as gone:
        audit = await audited(database, plan, gone)
    await succeed(database, audit)
    await deliver(deliveries(database, gone, secrets), 2)
    assert await state(database, audit) == WebhookState.DUE
    assert "ClientConnectorError" in caplog.text


async def test_an_audit_without_a_webhook_tells_nobody(database: Database, plan: Plan) -> None:
    audit = Audit(id="a", request_id="a", spec=plan.spec, create_time=timestamp(1))
    assert await database.transitions.insert(audit, "digest", plan)
    assert await database.transitions.cancel("a")
    async with database.engine.connect() as connection:
        assert (await connection.execute(sa.select(tables.webhooks))).all() == []


def test_attempts_come_ever_later_for_more_than_a_day() -> None:
    waits = [wait_seconds(attempt) for attempt in range(1, ATTEMPTS)]
    assert waits[:3] == [5, 20, 80]
    assert waits == sorted(waits)
    assert max(waits) == 6 * 3600
    assert 24 * 3600 < sum(waits) < 48 * 3600


@ON_BOTH
async def test_a_campaign_tells_each_time_it_ends(database: Database, receiver: Receiver, secrets: Secrets) -> None:
    transitions = database.campaign_transitions
    campaign = Campaign(
        id="c", request_id="r", spec=CampaignSpec(subjects=["s"], concepts=["o"]), state=CAMPAIGN_STATE_PENDING,
        cells_total=1, create_time=timestamp(1),
    )  # fmt: skip
    telling = database.webhooks.telling(webhooks.CAMPAIGN, "acme", f"http://localhost:{receiver.port}/")("c")
    assert await transitions.insert(campaign, "digest", Origin("acme"), telling)
    await transitions.cancel("c")
    await deliver(deliveries(database, receiver, secrets))
    # It is tried again, ends again, and tells again, under another id.
    assert await transitions.retry("c") is not None
    await transitions.fail("c", "REASON", "message")
    await deliver(deliveries(database, receiver, secrets), 2)
    first, second = (json.loads(body) for body in receiver.bodies)
    assert (first["type"], first["data"]["state"], second["data"]["state"]) == ("campaign.ended", "CANCELLED", "FAILED")
    assert (first["data"]["cells"]["cancelled"], second["data"]["error_reason"]) == (1, "REASON")
    assert receiver.headers[0]["webhook-id"] != receiver.headers[1]["webhook-id"]
    # The record stays as long as the campaign.
    await database.webhooks.forget(time.time_ns())
    assert await database.webhooks.states(webhooks.CAMPAIGN, ["c"]) == {"c": WebhookState.DELIVERED}
    assert await transitions.hide("c")
    await transitions.delete("c")
    await database.webhooks.forget(time.time_ns())
    assert await database.webhooks.states(webhooks.CAMPAIGN, ["c"]) == {}


def test_the_end_of_a_campaign_in_words() -> None:
    campaign = Campaign(
        id="c",
        request_id="r",
        state=CAMPAIGN_STATE_SUCCEEDED,
        cells_total=3,
        cells=CellCounts(succeeded=2, failed=1),
        conclusions=[ConclusionCount(conclusion=CONCLUSION_REMOVED, cells=2)],
        gate_result=GateResult(outcome=GATE_OUTCOME_FAIL),
        labels={"release": "2026-12"},
        end_time=timestamp(10**9),
    )
    told = json.loads(campaign_body(campaign))
    assert (told["type"], told["timestamp"]) == ("campaign.ended", "1970-01-01T00:00:01Z")
    assert told["data"]["gate"] == "FAIL"
    assert told["data"]["cells"] == {"succeeded": 2, "failed": 1, "cancelled": 0}
    assert told["data"]["conclusions"] == {"REMOVED": 2}
    assert (told["data"]["state"], told["data"]["labels"]) == ("SUCCEEDED", {"release": "2026-12"})
    assert json.loads(campaign_body(Campaign(state=CAMPAIGN_STATE_SUCCEEDED)))["data"]["gate"] == ""


def test_states_are_named_without_their_prefix() -> None:
    audit = Audit(state=AUDIT_STATE_FAILED, error_reason="X")
    told = json.loads(webhooks.audit_body(audit))["data"]
    assert (told["state"], told["error_reason"]) == ("FAILED", "X")
