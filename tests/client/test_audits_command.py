"""`unerase audits` and `unerase cancel`, against the scripted server."""

import json
import re

import grpc
import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import AUDIT_ID, Script, ended_audit, failing
from unerase._cli import app
from unerase._display import local_time
from unerase.v1.audits_pb2 import Audit, AuditState


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("RUNNING", "CANCELLED", "cancelled"),
        ("SUCCEEDED", "SUCCEEDED", f"nothing was done: audit {AUDIT_ID} has already ended (succeeded)"),
        ("CANCELLED", "CANCELLED", f"nothing was done: audit {AUDIT_ID} has already ended (cancelled)"),
        # It ended between the two calls.
        ("RUNNING", "FAILED", f"nothing was done: audit {AUDIT_ID} has already ended (failed)"),
    ],
)
def test_a_cancellation_says_what_it_did(address: str, script: Script, before: str, after: str, says: str) -> None:
    script.state, script.after_cancel = (AuditState.Value(f"AUDIT_STATE_{each}") for each in (before, after))
    ended = run(address, "cancel", AUDIT_ID)
    assert (ended.exit_code, ended.stdout) == (0, f"{says}\n")
    assert json.loads(run(address, "cancel", AUDIT_ID, "--json").stdout)["state"] == f"AUDIT_STATE_{after}"


def test_a_token_that_may_only_write_cancels(address: str, script: Script) -> None:
    script.failures["GetAudit"] = [failing(grpc.StatusCode.PERMISSION_DENIED, "audit:read is missing")]
    assert run(address, "cancel", AUDIT_ID).stdout == "cancelled\n"


def test_audits_are_listed_with_their_time_and_their_conclusion(address: str, script: Script) -> None:
    ended, running = ended_audit(), Audit(id="a2", state=AuditState.AUDIT_STATE_RUNNING)
    ended.verdict.damaged = True
    for audit in (ended, running):
        audit.create_time.FromJsonString("2026-05-01T12:00:00Z")
    script.audits = [ended, running]
    header, first, second = (re.split(r" {2,}", line.strip()) for line in run(address, "audits").stdout.splitlines())
    assert header == ["id", "created", "subject", "concept", "state", "conclusion", "expected end"]
    created = local_time(ended.create_time)
    assert first == [AUDIT_ID, created, "testbed/uce", "hourglass", "succeeded", "avoided, damaged"]
    assert second == ["a2", created, "running"]
