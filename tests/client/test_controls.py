"""The kind of control, whose detection decides, and the presets, as the command asks for them and shows them."""

import json

import pytest
from typer.testing import CliRunner, Result

from support.scripted_server import Script
from unerase._cli import app
from unerase._commands.failing import ExitCode
from unerase.v1.audits_pb2 import CreateAuditRequest

AUDIT = ("audit", "testbed/uce", "--concept", "hourglass")


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--address", address], env={"COLUMNS": "200"})


@pytest.mark.parametrize(("kind", "asked"), [("model", 1), ("placebo", 2), ("concept-free", 3), ("none", 4), (None, 0)])
def test_an_audit_asks_for_a_kind_of_control(address: str, script: Script, kind: str | None, asked: int) -> None:
    assert run(address, *AUDIT, *(("--control-kind", kind) if kind else ())).exit_code == 0
    (request,) = script.seen(CreateAuditRequest)
    # What is not said is left to the backend.
    assert (request.spec.control_kind, request.spec.decided_by, request.spec.placebos) == (asked, 0, [])


@pytest.mark.parametrize("option", ["--control-kind", "--decided-by"])
def test_another_kind_or_decision_is_refused_here(address: str, script: Script, option: str) -> None:
    assert run(address, *AUDIT, option, "nobody").exit_code == ExitCode.BAD_INPUT
    assert not script.seen(CreateAuditRequest)


def test_a_preset_tells_its_cases(address: str, script: Script) -> None:
    ended = run(address, "presets", "--json")
    assert [(each["name"], each["cases"]) for each in json.loads(ended.stdout)] == [("quick", 24), ("standard", 48)]
    plain = run(address, "presets").stdout
    assert "48" in plain
    assert "the reference's" in plain
