"""Which webhooks a request for an audit may ask for."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from unerase.v1.audits_pb2 import AuditSpec, CancelAuditRequest, CreateAuditRequest
from unerase.v1.types_pb2 import EvaluationDescription
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.audit_service import AuditServicer
from unerase_backend.coordinator.storage import webhooks
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.coordinator.storage.webhooks import WebhookState
from unerase_backend.coordinator.webhooks.admission import WebhookAdmission
from unerase_backend.coordinator.webhooks.hosts import Hosts
from unerase_backend.coordinator.webhooks.signing import Secrets
from unerase_backend.runtime.access import CALLER, Caller
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import AlreadyExistsError, InvalidRequestError, PreconditionError

from .auditing import auditing

NO_CONTEXT: Any = None
HOOK = "https://hooks.example.com/a"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLjSw"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path / 'audits.sqlite'}"))
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
def admission(tmp_path: Path) -> WebhookAdmission:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"secrets": {"acme": [SECRET]}}))
    return WebhookAdmission(Hosts(["hooks.example.com"]), Secrets(file))


@pytest.fixture
def audits(
    database: Database,
    catalogue: Catalogue,
    store: ArtifactStore,
    descriptions: dict[str, EvaluationDescription],
    admission: WebhookAdmission,
) -> AuditServicer:
    CALLER.set(Caller("acme", frozenset(["audit:write"])))
    return auditing(database, catalogue, store, descriptions, webhooks=admission)


def asked(webhook: str, **more: Any) -> CreateAuditRequest:
    spec = AuditSpec(subject="small/edited", concept="hourglass", seed_base=1)
    return CreateAuditRequest(request_id="r", spec=spec, webhook=webhook, **more)


async def test_a_webhook_waits_for_the_end_of_its_audit(database: Database, audits: AuditServicer) -> None:
    audit = await audits.CreateAudit(asked(HOOK), NO_CONTEXT)
    assert await database.webhooks.states(webhooks.AUDIT, [audit.id]) == {audit.id: WebhookState.WAITING}
    await audits.CancelAudit(CancelAuditRequest(id=audit.id), NO_CONTEXT)
    assert await database.webhooks.states(webhooks.AUDIT, [audit.id]) == {audit.id: WebhookState.DUE}


async def test_the_same_request_has_one_webhook_and_another_webhook_is_another_request(
    database: Database, audits: AuditServicer
) -> None:
    audit = await audits.CreateAudit(asked(HOOK), NO_CONTEXT)
    assert (await audits.CreateAudit(asked(HOOK), NO_CONTEXT)).id == audit.id
    for other in (asked(""), asked(f"{HOOK}/b")):
        with pytest.raises(AlreadyExistsError):
            await audits.CreateAudit(other, NO_CONTEXT)
    assert len(await database.webhooks.states(webhooks.AUDIT, [audit.id])) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://evil.example/", "does not allow the host evil.example"),
        ("http://hooks.example.com/", "must begin with https://"),
        ("hooks.example.com", "must be a URL"),
    ],
)
async def test_a_url_that_is_not_allowed_is_refused_before_anything_is_done(
    audits: AuditServicer, url: str, says: str
) -> None:
    for request in (asked(url), asked(url, validate_only=True)):
        with pytest.raises(InvalidRequestError) as refused:
            await audits.CreateAudit(request, NO_CONTEXT)
        (violation,) = refused.value.violations
        assert (refused.value.reason, violation.field) == ("WEBHOOK_REFUSED", "webhook")
        assert says in violation.description


def test_a_backend_without_hosts_or_without_a_secret_sends_none(tmp_path: Path, admission: WebhookAdmission) -> None:
    admission.check(HOOK, "acme")
    admission.check("", "rival")
    gone = tmp_path / "gone.json"
    gone.write_text(json.dumps({"secrets": {"acme": [SECRET]}}))
    secrets = Secrets(gone)
    gone.unlink()
    for other, tenant in (
        (admission, "rival"),
        (WebhookAdmission(), "acme"),
        (WebhookAdmission(Hosts(["hooks.example.com"]), secrets), "acme"),
    ):
        with pytest.raises(PreconditionError) as refused:
            other.check(HOOK, tenant)
        assert refused.value.reason == "WEBHOOKS_OFF"
