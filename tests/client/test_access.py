"""What the command and the clients take from the environment, and what `unerase tokens` does with its file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.scripted_server import AUDIT_ID, Script
from unerase import DEFAULT_ADDRESS, AsyncClient, Client, ClientSettings
from unerase._cli import app
from unerase._environment import settings_from_environment
from unerase_backend.runtime.access import Gate


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UNERASE_")]:
        monkeypatch.delenv(name)


def test_nothing_is_no_tls_and_no_token() -> None:
    settings = settings_from_environment()
    assert (settings.tls, settings.token) == (None, None)


def test_a_client_takes_from_the_environment_what_it_is_not_given(
    connect: Callable[..., Client], address: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[dict[str, Any]] = []
    script.failures["GetAudit"] = [lambda context: carried.append(dict(context.invocation_metadata()))] * 2
    monkeypatch.setenv("UNERASE_ADDRESS", address)
    monkeypatch.setenv("UNERASE_TOKEN", "of-the-environment")
    # Spans are a program's own: what the command takes is not read, and so cannot be wrong.
    monkeypatch.setenv("TRACEPARENT", "none")
    with connect(None, None) as client:
        assert client.get_audit(AUDIT_ID).id == AUDIT_ID
    assert carried[0]["authorization"] == "Bearer of-the-environment"
    assert "traceparent" not in carried[0]
    # What is given counts alone.
    monkeypatch.setenv("UNERASE_ADDRESS", "127.0.0.1:1")
    with connect(address, ClientSettings(token="given")) as client:
        assert client.get_audit(AUDIT_ID).id == AUDIT_ID
    assert carried[1]["authorization"] == "Bearer given"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_says_what_is_wrong_with_the_environment(
    kind: type[Client | AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind()._address == DEFAULT_ADDRESS
    monkeypatch.setenv("UNERASE_TOKEN", "secret")
    with pytest.raises(ValueError, match="needs an encrypted connection"):
        kind("unerase.example:443")
    monkeypatch.setenv("UNERASE_TLS_CA", "/no/such/file")
    with pytest.raises(FileNotFoundError, match="/no/such/file"):
        kind()


def test_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN_FILE", "TLS_CA", "TLS_CERTIFICATE", "TLS_KEY"):
        (tmp_path / name).write_text(f"{name}\n")
        monkeypatch.setenv(f"UNERASE_{name}", str(tmp_path / name))
    monkeypatch.setenv("UNERASE_TLS_SERVER_NAME", "unerase")
    settings = settings_from_environment()
    assert settings.token == "TOKEN_FILE"
    assert settings.tls is not None
    assert (settings.tls.root_certificates, settings.tls.server_name) == (b"TLS_CA\n", "unerase")
    assert (settings.tls.client_certificate, settings.tls.client_key) == (b"TLS_CERTIFICATE\n", b"TLS_KEY\n")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"TOKEN": "a", "TOKEN_FILE": "b"}, "one of them"),
        ({"TLS_CERTIFICATE": "a"}, "both"),
        ({"TLS_KEY": "a"}, "both"),
        ({"TLS": "yes"}, "0 or 1"),
        ({"TOKEN": "a\nb"}, "printable ASCII"),
        ({"TOKEN": "\xfc"}, "printable ASCII"),
        ({"TOKEN_FILE": "/dev/null", "TLS_CERTIFICATE": "a"}, "both"),
    ],
)
def test_what_does_not_go_together_is_said(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"UNERASE_{name}", value)
    with pytest.raises(ValueError, match=says):
        settings_from_environment()
    ended = CliRunner().invoke(app, ["models"])
    assert ended.exit_code == 2
    assert says in ended.stderr


def test_a_file_that_holds_no_token_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_bytes(bytes(range(256)))
    monkeypatch.setenv("UNERASE_TOKEN_FILE", str(tmp_path / "token"))
    ended = CliRunner().invoke(app, ["models"], env={"COLUMNS": "400"})
    assert ended.exit_code == 2
    assert "token holds no token" in ended.stderr


@pytest.mark.parametrize("traceparent", ["x", "00-abc", "a\nb", "00-" + "g" * 32 + "-" + "0" * 16 + "-00"])
def test_a_trace_that_is_none_is_said(traceparent: str) -> None:
    ended = CliRunner().invoke(app, ["models"], env={"TRACEPARENT": traceparent})
    assert ended.exit_code == 2
    assert "W3C Trace Context" in ended.stderr


def test_a_token_in_the_clear_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNERASE_TOKEN", "secret")
    ended = CliRunner().invoke(app, ["models", "--address", "unerase.example:443"])
    assert ended.exit_code == 2
    assert "encrypted" in ended.stderr
    assert "secret" not in ended.output


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "tokens.json")]
    made = CliRunner().invoke(app, ["tokens", "create", "ci", *file, "--tenant", "acme", "--scope", "audit:read"])
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert Gate(tmp_path / "tokens.json").admit(f"Bearer {token}").tenant == "acme"
    shown = CliRunner().invoke(app, ["tokens", "list", *file])
    assert "acme" in shown.stdout
    assert token not in shown.stdout
    assert CliRunner().invoke(app, ["tokens", "revoke", "ci", *file]).exit_code == 0
    again = CliRunner().invoke(app, ["tokens", "revoke", "ci", *file])
    assert again.exit_code == 2
    assert "no token 'ci'" in again.stderr


def test_a_scope_that_is_none_is_refused(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "tokens.json")]
    made = CliRunner().invoke(app, ["tokens", "create", "ci", *file, "--tenant", "acme", "--scope", "everything"])
    assert made.exit_code == 2
    assert "there is no everything" in made.stderr
    assert not (tmp_path / "tokens.json").exists()
