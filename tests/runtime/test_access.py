"""Tokens: who is let in, with what, until when; and the operator's file of them."""

import json
import math
import stat
from pathlib import Path

import pytest

from unerase_backend.runtime import access, tokens
from unerase_backend.runtime.access import ADMIN, EVERYBODY, SCOPES, Caller, Gate, hash_of, read_tokens
from unerase_backend.runtime.errors import ForbiddenError, UnauthenticatedError

DAY = 86400.0


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file at every call."""
    monkeypatch.setattr(access, "_LOOK_SECONDS", 0.0)


def test_without_a_file_everybody_may_do_everything() -> None:
    caller = Gate(None).admit(None)
    assert caller == EVERYBODY
    for scope in SCOPES:
        caller.require(scope)


def test_a_token_lets_its_bearer_in_for_its_scopes(file: Path) -> None:
    token = tokens.create(file, "ci", "acme", ["audit:read"], 1)
    caller = Gate(file).admit(f"Bearer {token}")
    assert caller == Caller("acme", frozenset({"audit:read"}))
    caller.require("audit:read")
    with pytest.raises(ForbiddenError) as refused:
        caller.require("audit:write")
    assert (refused.value.reason, refused.value.metadata) == ("SCOPE_MISSING", {"scope": "audit:write"})
    assert Gate(file).admit(f"bearer {token}") == caller


def test_an_admin_holds_every_scope() -> None:
    for scope in SCOPES:
        Caller("a", frozenset({ADMIN})).require(scope)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic x", "Bearer wrong", "Bearer a b", "Bearer \xe9", "Bearer " + "x" * 600]
)
def test_what_is_no_token_of_ours_is_turned_away(file: Path, header: str) -> None:
    tokens.create(file, "ci", "acme", ["audit:read"], 1)
    with pytest.raises(UnauthenticatedError) as refused:
        Gate(file).admit(header)
    assert refused.value.reason == "TOKEN_UNKNOWN"


def test_no_token_is_told_from_a_wrong_one(file: Path) -> None:
    tokens.create(file, "ci", "acme", ["audit:read"], 1)
    with pytest.raises(UnauthenticatedError) as refused:
        Gate(file).admit(None)
    assert refused.value.reason == "TOKEN_MISSING"


def test_a_token_expires(file: Path) -> None:
    token = tokens.create(file, "ci", "acme", ["audit:read"], 1)
    clock = Clock()
    gate = Gate(file, clock)
    expiry = read_tokens(file).tokens[0].expires.timestamp()
    clock.now = expiry - 0.001
    gate.admit(f"Bearer {token}")
    clock.now = expiry
    with pytest.raises(UnauthenticatedError) as refused:
        gate.admit(f"Bearer {token}")
    assert refused.value.reason == "TOKEN_EXPIRED"


@pytest.mark.usefixtures("eager")
def test_tokens_are_rotated_without_a_restart(file: Path) -> None:
    old = tokens.create(file, "old", "acme", ["audit:read"], 1)
    gate = Gate(file)
    new = tokens.create(file, "new", "acme", ["audit:read"], 1)
    assert gate.admit(f"Bearer {old}") == gate.admit(f"Bearer {new}")
    tokens.revoke(file, "old")
    gate.admit(f"Bearer {new}")
    with pytest.raises(UnauthenticatedError):
        gate.admit(f"Bearer {old}")


@pytest.mark.usefixtures("eager")
def test_a_broken_file_leaves_the_tokens_as_they_were(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tokens.create(file, "ci", "acme", ["audit:read"], 1)
    gate = Gate(file)
    file.write_text("{")
    gate.admit(f"Bearer {token}")
    assert "the tokens read last stay in use" in caplog.text
    file.unlink()
    gate.admit(f"Bearer {token}")


def test_the_file_holds_hashes_and_is_its_owners(file: Path) -> None:
    token = tokens.create(file, "ci", "acme", ["audit:read", "metrics"], 30)
    content = file.read_text()
    assert token not in content
    assert token.removeprefix(access.PREFIX) not in content
    assert json.loads(content)["tokens"][0]["sha256"] == hash_of(token)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lock = file.parent / ".tokens.json.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert lock.read_bytes() == b""
    assert set(file.parent.iterdir()) == {file, lock}


@pytest.mark.parametrize(
    ("name", "tenant", "scopes", "says"),
    [
        ("", "acme", ["audit:read"], "id"),
        ("a b", "acme", ["audit:read"], "id"),
        ("ci", "", ["audit:read"], "tenant"),
        ("ci", "Acme", ["audit:read"], "tenant"),
        ("ci", "acme", [], "scopes"),
        ("ci", "acme", ["audit"], "there is no audit"),
        ("there", "acme", ["audit:read"], "already"),
    ],
)
def test_a_bad_token_is_not_made(file: Path, name: str, tenant: str, scopes: list[str], says: str) -> None:
    tokens.create(file, "there", "acme", ["audit:read"], 1)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=says) as refused:
        tokens.create(file, name, tenant, scopes, 1)
    assert "Value error" not in str(refused.value)
    assert file.read_bytes() == before


@pytest.mark.parametrize("days", [math.inf, -math.inf, math.nan, 0, -1, 1e9, 3651])
def test_a_token_has_an_end_that_is_a_date(file: Path, days: float) -> None:
    with pytest.raises(ValueError, match="days: must be above 0 and at most 3650"):
        tokens.create(file, "ci", "acme", ["audit:read"], days)
    assert not file.exists()


def test_what_is_not_there_is_not_revoked(file: Path) -> None:
    assert tokens.listed(file) == ()
    with pytest.raises(ValueError, match="no token 'ci'"):
        tokens.revoke(file, "ci")


def one(sha256: str, expires: str) -> str:
    entry = {"id": "a", "sha256": sha256, "tenant": "t", "scopes": ["admin"], "expires": expires}
    return json.dumps({"tokens": [entry]})


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"tokens": [{"id": "a"}]}',
        '{"tokens": [], "more": 1}',
        one("SECRET", "2027-01-31T00:00:00Z"),
        one("0" * 64, "2027-01-31T00:00:00"),
    ],
)
def test_a_file_that_is_none_says_why_and_shows_nothing(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(ValueError, match=r"tokens\.json: ") as refused:
        Gate(file)
    assert "SECRET" not in str(refused.value)
    assert "0" * 64 not in str(refused.value)


def test_two_tokens_of_one_name_are_no_file(file: Path) -> None:
    tokens.create(file, "ci", "acme", ["audit:read"], 1)
    entries = json.loads(file.read_text())["tokens"]
    file.write_text(json.dumps({"tokens": [entries[0], {**entries[0], "sha256": "1" * 64}]}))
    with pytest.raises(ValueError, match=r"^tokens\.json: the file: tokens: the id ci occurs twice$"):
        read_tokens(file)
