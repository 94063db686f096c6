"""From an accepted audit to its end at the command: its id at once, and how to go on with it."""

import io
import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from support.scripted_server import AUDIT_ID, Script, failing
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase._display import LiveProgress
from unerase.v1.audits_pb2 import (
    Audit,
    AuditCost,
    AuditEvent,
    AuditState,
    CreateAuditRequest,
    DeleteAuditRequest,
    EvaluationCost,
    GetAuditRequest,
    GetReportRequest,
    WatchAuditRequest,
)

AUDIT = ("audit", "testbed/uce", "--concept", "hourglass")
GOES_ON = f"The audit goes on. `unerase watch {AUDIT_ID}` follows it, `unerase cancel {AUDIT_ID}` ends it."


def run(address: str, *arguments: str) -> Result:
    ended = CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "60"})
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    return ended


def silent(context: grpc.ServicerContext) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(60)


def test_the_id_is_said_before_anything_else(address: str, script: Script) -> None:
    ended = run(address, *AUDIT)
    assert ended.stderr.startswith(f"audit {AUDIT_ID} is accepted. `unerase watch {AUDIT_ID}` follows it")
    assert AUDIT_ID in run(address, *AUDIT, "--json").stderr


def test_machines_get_the_id_as_json(address: str) -> None:
    ended = run(address, *AUDIT, "--json", "--request-id", "mine")
    (line,) = ended.stderr.splitlines()
    assert json.loads(line) == {"id": AUDIT_ID, "request_id": "mine"}
    assert json.loads(ended.stdout)["id"] == AUDIT_ID


@pytest.mark.parametrize("arguments", [AUDIT, ("watch", AUDIT_ID)])
def test_a_timeout_ends_the_waiting_and_says_so(address: str, script: Script, arguments: tuple[str, ...]) -> None:
    script.breaks, script.after_break = [2], silent
    ended = run(address, *arguments, "--timeout", "0.5")
    assert ended.exit_code == ExitCode.TIMED_OUT
    *_, problem, how = ended.stderr.splitlines()
    assert problem == f"audit {AUDIT_ID} did not end in time"
    assert how.startswith("The audit goes on. ")
    assert f"`unerase cancel {AUDIT_ID}` ends it." in how


def test_a_connection_that_is_lost_says_how_to_go_on(address: str, script: Script) -> None:
    script.failures["WatchAudit"] = [failing(grpc.StatusCode.INTERNAL, "broken", reason="INTERNAL")]
    ended = run(address, *AUDIT)
    assert ended.exit_code == ExitCode.UNEXPECTED
    assert GOES_ON in ended.stderr
    script.failures["WatchAudit"] = [failing(grpc.StatusCode.NOT_FOUND, "gone", reason="AUDIT_NOT_FOUND")]
    assert "The audit goes on" not in run(address, *AUDIT).stderr


@pytest.mark.parametrize("arguments", [AUDIT, ("watch", AUDIT_ID)])
def test_ctrl_c_says_how_to_go_on(address: str, script: Script, arguments: tuple[str, ...]) -> None:
    """In a process of its own, in the middle of a watch."""
    watched = threading.Event()

    def hang(context: grpc.ServicerContext) -> None:
        watched.set()
        silent(context)

    script.breaks, script.after_break = [2], hang
    process = subprocess.Popen(
        [sys.executable, "-m", "unerase", *arguments, "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watched.wait(60)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in stderr
    *_, problem, how = stderr.splitlines()
    assert problem == "interrupted"
    assert how.startswith("The audit goes on. ")


def test_an_answer_that_is_lost_names_the_request(address: str, script: Script) -> None:
    script.failures["CreateAudit"] = [failing(grpc.StatusCode.UNAVAILABLE, "gone")] * 9
    ended = run(address, *AUDIT, "--request-id", "mine")
    assert ended.exit_code == ExitCode.UNREACHABLE
    assert "It is not known whether the audit was accepted" in ended.stderr
    assert "--request-id mine" in ended.stderr


def test_detached_it_prints_the_id_and_ends(address: str, script: Script) -> None:
    ended = run(address, *AUDIT, "--detach")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, f"{AUDIT_ID}\n", "")
    assert json.loads(run(address, *AUDIT, "--detach", "--json").stdout)["id"] == AUDIT_ID
    assert not script.seen(WatchAuditRequest)


def test_a_dry_run_says_what_it_would_take(address: str, script: Script) -> None:
    script.cost = AuditCost(units=1234, pictures=5678, rows=91011, stored_bytes=2048)
    script.cost.estimated_duration.seconds = 5400
    script.cost.evaluations.append(EvaluationCost(evaluation="noise-based", units=9, pictures=216, rows=10800))
    ended = run(address, *AUDIT, "--dry-run", "--assume-control", "--assume-reference", "--own-schedules")
    assert ended.exit_code == 0, ended.output
    for figure in ("noise-based", "216", "10,800", "1,234", "5,678", "91,011", "2,048 bytes", "about 1 h 30 min"):
        assert figure in ended.stdout
    (request,) = script.seen(CreateAuditRequest)
    assert (request.validate_only, request.spec.assume_control, request.spec.assume_reference) == (True, True, True)
    assert request.spec.own_schedules
    assert json.loads(run(address, *AUDIT, "--dry-run", "--json").stdout)["cost"]["units"] == 1234
    script.cost.ClearField("estimated_duration")
    assert "is not known" in run(address, *AUDIT, "--dry-run").stdout
    assert not script.seen(WatchAuditRequest)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--detach", "--local"), "--detach"),
        (("--detach", "--dry-run"), "--detach"),
        (("--detach", "--html", "{folder}/a.html"), "there is no report"),
        (("--dry-run", "--parquet", "{folder}/a.parquet"), "there is no report"),
        (("--data-dir", "{folder}"), "--data-dir"),
        (("--html", "{folder}/a", "--json-file", "{folder}/../{name}/a"), "the same file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    address: str, script: Script, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [argument.format(folder=tmp_path, name=tmp_path.name) for argument in arguments]
    ended = run(address, *AUDIT, *given)
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert said in ended.stderr
    assert not script.requests


def test_a_report_that_cannot_be_had_is_not_the_end(address: str, script: Script, tmp_path: Path) -> None:
    script.failures["GetReport"] = [failing(grpc.StatusCode.DATA_LOSS, "damaged", reason="DATA_LOSS")]
    ended = run(address, *AUDIT, "--html", str(tmp_path / "a.html"))
    assert ended.exit_code == ExitCode.UNEXPECTED
    assert f"`unerase report {AUDIT_ID}` writes its report again" in ended.stderr
    assert len(script.seen(GetReportRequest)) == 1
    assert list(tmp_path.iterdir()) == []


def test_when_an_audit_is_expected_to_end(address: str, script: Script) -> None:
    audit = Audit(id="flying", state=AuditState.AUDIT_STATE_RUNNING)
    audit.estimated_end_time.FromJsonString("2027-03-04T05:06:07Z")
    script.audits = [audit]
    listed = CliRunner().invoke(app, ["audits", "--address", address], env={"COLUMNS": "120"})
    here = datetime(2027, 3, 4, 5, 6, tzinfo=UTC).astimezone()
    assert f"{here:%Y-%m-%d %H:%M}" in listed.stdout


def test_progress_says_when_it_ends() -> None:
    written = io.StringIO()
    audit = Audit(id="flying", state=AuditState.AUDIT_STATE_RUNNING, units_total=4)
    audit.estimated_end_time.FromJsonString("2027-03-04T05:06:07Z")
    here = datetime(2027, 3, 4, 5, 6, tzinfo=UTC).astimezone()
    with LiveProgress(Console(file=written, width=120)) as progress:
        progress.show(AuditEvent(sequence=1, state_changed=audit))
    assert f"until {here:%Y-%m-%d %H:%M}" in written.getvalue()


def test_the_end_is_asked_for_while_it_runs(address: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unerase._commands.following._ASK_SECONDS", -1.0)
    script.failures["GetAudit"] = [failing(grpc.StatusCode.INTERNAL)] * 2
    assert run(address, *AUDIT).exit_code == 0
    assert len(script.seen(GetAuditRequest)) > 3


def test_the_plain_words_come_first(address: str, script: Script) -> None:
    verdict = script.ended.verdict
    verdict.summary = "The model was told to look away. It still knows it."
    verdict.assumptions.append("The control was taken for one that never learned it.")
    shown = CliRunner().invoke(app, ["report", AUDIT_ID, "--address", address], env={"COLUMNS": "200"}).stdout
    assert shown.index(verdict.summary) < shown.index(verdict.assumptions[0]) < shown.index(verdict.statement)


def test_an_audit_is_deleted(address: str, script: Script) -> None:
    ended = run(address, "delete", AUDIT_ID)
    assert (ended.exit_code, ended.stdout) == (0, "deleted\n")
    assert script.seen(DeleteAuditRequest)[0].id == AUDIT_ID
    script.failures["DeleteAudit"] = [
        failing(grpc.StatusCode.FAILED_PRECONDITION, "the audit has not ended", reason="AUDIT_NOT_ENDED")
    ]
    ended = run(address, "delete", AUDIT_ID)
    assert ended.exit_code == ExitCode.BAD_INPUT
    assert "`unerase cancel ID` ends it." in ended.stderr


def test_the_version_is_said() -> None:
    ended = CliRunner().invoke(app, ["--version"])
    assert ended.exit_code == 0
    name, version = ended.stdout.split()
    assert name == "unerase"
    assert version[0].isdigit()
