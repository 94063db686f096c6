"""Who may call: bearer tokens with scopes and a tenant, read from a file and known by their hashes alone.

The file is JSON, a list under "tokens"; `unerase tokens` writes it. A token is "unerase_" and 43 characters of 256
random bits, so that a plain SHA-256 is hash enough: there is nothing to guess, and nothing to slow a guesser down for.

    {"tokens": [{"id": "ci", "sha256": "...", "tenant": "acme", "scopes": ["audit:read"],
                 "expires": "2027-01-31T00:00:00Z"}],
     "quotas": {"acme": {"audits": 20, "pictures_per_day": 100000, "bytes": 50000000000}}}

The file is read again when it has changed, at most once a second, so that tokens are added, rotated and taken away
without a restart. A file that has become unreadable leaves the tokens as they were, expiry included.
"""

import hashlib
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from unerase_backend.runtime.errors import ForbiddenError, UnauthenticatedError

_logger = logging.getLogger(__name__)

ADMIN = "admin"
"""The scope that holds every other one."""
SCOPES = (
    "audit:read",
    "audit:write",
    "model:read",
    "model:write",
    "generation",
    "classification",
    "probing",
    "attack",
    "reflection",
    "metrics",
    ADMIN,
)
PREFIX = "unerase_"
_BEARER = re.compile(r"[Bb]earer ([!-~]{1,512})")
_LOOK_SECONDS = 1.0


class TokenEntry(BaseModel):
    """One token as the file holds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")]
    scopes: tuple[str, ...] = Field(min_length=1)
    expires: AwareDatetime

    @model_validator(mode="after")
    def _know_scopes(self) -> "TokenEntry":
        if unknown := sorted(set(self.scopes) - set(SCOPES)):
            raise ValueError(f"scopes: there is no {', '.join(unknown)}; there are {', '.join(SCOPES)}")
        return self


class Quota(BaseModel):
    """How much a tenant may have; 0 means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audits: int = Field(default=0, ge=0, description="audits in flight")
    pictures_per_day: int = Field(default=0, ge=0, description="pictures of audits created within a day")
    bytes: int = Field(default=0, ge=0, description="bytes of the pictures kept")


class TokenList(BaseModel):
    """What a file of tokens holds: the tokens, and the quotas of tenants that have others than the backend's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[TokenEntry, ...] = ()
    quotas: dict[str, Quota] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tell_apart(self) -> "TokenList":
        for field in ("id", "sha256"):
            values = [getattr(token, field) for token in self.tokens]
            if twice := sorted(value for value, count in Counter(values).items() if count > 1):
                raise ValueError(f"tokens: the {field} {twice[0]} is there twice")
        return self


@dataclass(frozen=True)
class Caller:
    """Who calls, and what for."""

    tenant: str
    """Empty where there are no tokens: everybody is the same."""
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Let a caller with the scope pass.

        Raises:
            ForbiddenError: the caller has it not.
        """
        if scope not in self.scopes and ADMIN not in self.scopes:
            raise ForbiddenError(
                f"this needs a token with the scope {scope!r}", reason="SCOPE_MISSING", metadata={"scope": scope}
            )


EVERYBODY = Caller("", frozenset({ADMIN}))
"""The caller where no file of tokens is given."""

CALLER: ContextVar[Caller] = ContextVar("caller", default=EVERYBODY)
"""The caller of the RPC under way."""


class Gate:
    """Knows the tokens; without a file it lets everybody pass."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._tokens: dict[str, TokenEntry] = {}
        self._quotas: dict[str, Quota] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._looked = 0.0
        if path is not None:
            self._stamp = _stamp(path)
            self._read(path)

    def admit(self, authorization: str | None) -> Caller:
        """Return the caller of a call with this `authorization` header.

        Raises:
            UnauthenticatedError: no token, no token of ours, or one that has expired.
        """
        if self._path is None:
            return EVERYBODY
        self._reload(self._path)
        if authorization is None:
            raise UnauthenticatedError("a token is needed: authorization: Bearer TOKEN", reason="TOKEN_MISSING")
        matched = _BEARER.fullmatch(authorization)
        # A dictionary's look-up of a hash tells by its time nothing of the token.
        entry = self._tokens.get(hash_of(matched[1])) if matched else None
        if entry is None:
            raise UnauthenticatedError("the token is not one of this backend's", reason="TOKEN_UNKNOWN")
        if self._clock() >= entry.expires.timestamp():
            raise UnauthenticatedError("the token has expired; ask for a new one", reason="TOKEN_EXPIRED")
        return Caller(entry.tenant, frozenset(entry.scopes))

    def quota(self, tenant: str) -> Quota | None:
        """Return the tenant's own quota; None where the backend's holds."""
        if self._path is not None:
            self._reload(self._path)
        return self._quotas.get(tenant)

    def _read(self, path: Path) -> None:
        known = read_tokens(path)
        self._tokens, self._quotas = {token.sha256: token for token in known.tokens}, known.quotas

    def _reload(self, path: Path) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            stamp = _stamp(path)
            if stamp != self._stamp:
                self._read(path)
                self._stamp = stamp
                _logger.info("%d tokens are known now", len(self._tokens))
        except (OSError, ValueError):
            _logger.exception("the file of tokens cannot be read; the tokens stay as they were")


def read_tokens(path: Path) -> TokenList:
    """Read a file of tokens.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no list of tokens; the message says what is wrong, and holds no hash.
    """
    try:
        return TokenList.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)]
        raise ValueError(f"{path.name}: {'; '.join(problems)}") from None


def new_token() -> str:
    """Return a new token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return what a file of tokens holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def entry_of(name: str, token: str, tenant: str, scopes: tuple[str, ...], expires: float) -> TokenEntry:
    """Return the entry of a token that expires at a time in seconds since 1970.

    Raises:
        ValidationError: a field is not what the file may hold.
    """
    return TokenEntry(
        id=name, sha256=hash_of(token), tenant=tenant, scopes=scopes, expires=datetime.fromtimestamp(expires, UTC)
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
