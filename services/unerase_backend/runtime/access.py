"""Who may call: bearer tokens with scopes and a tenant. A file holds their hashes, never the tokens.

The file is JSON, a list under "tokens"; `unerase tokens` writes it. A token is "unerase_" and 43 characters of 256
random bits, so a plain SHA-256 is enough: nobody can guess a token, and a slow hash would add nothing.

    {"tokens": [{"id": "ci", "sha256": "...", "tenant": "acme", "scopes": ["audit:read"],
                 "expires": "2027-01-31T00:00:00Z"}],
     "quotas": {"acme": {"audits": 20, "pictures_per_day": 100000, "bytes": 50000000000}}}

The file is read again when it has changed, at most once a second, so that tokens can be added, rotated and revoked
without a restart. While the file cannot be read, the tokens read last stay valid until they expire.
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

from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import ForbiddenError, UnauthenticatedError
from unerase_backend.runtime.validation import problems_of

_logger = logging.getLogger(__name__)

ADMIN = "admin"
"""The scope that includes every other scope."""
SCOPES = (
    "audit:read",
    "audit:write",
    "model:read",
    "model:write",
    "campaign:read",
    "campaign:write",
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
    """One token as it is written in the file."""

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
    """The limits of a tenant; 0 means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audits: int = Field(default=0, ge=0, description="audits in flight")
    pictures_per_day: int = Field(default=0, ge=0, description="pictures of audits created within a day")
    bytes: int = Field(default=0, ge=0, description="bytes of the pictures kept")
    models: int = Field(default=0, ge=0, description="registered models")


class TokenList(BaseModel):
    """The content of a token file: the tokens, and the quotas of tenants that differ from the backend's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[TokenEntry, ...] = ()
    quotas: dict[str, Quota] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tell_apart(self) -> "TokenList":
        for field in ("id", "sha256"):
            values = [getattr(token, field) for token in self.tokens]
            if twice := sorted(value for value, count in Counter(values).items() if count > 1):
                raise ValueError(f"tokens: the {field} {twice[0]} occurs twice")
        return self


@dataclass(frozen=True)
class Caller:
    """The caller of an RPC: its tenant and its scopes."""

    tenant: str
    """Empty if the backend has no tokens: all callers are the same tenant."""
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Return whether the caller has a scope."""
        return scope in self.scopes or ADMIN in self.scopes

    def require(self, scope: str) -> None:
        """Check that the caller has a scope.

        Raises:
            ForbiddenError: the caller does not have it.
        """
        if not self.may(scope):
            raise ForbiddenError(
                f"this needs a token with the scope {scope!r}", reason="SCOPE_MISSING", metadata={"scope": scope}
            )


EVERYBODY = Caller("", frozenset({ADMIN}))
"""The caller if the backend has no token file."""

CALLER: ContextVar[Caller] = ContextVar("caller", default=EVERYBODY)
"""The caller of the current RPC."""


class Gate:
    """Identifies callers by the tokens of a file; without a file it accepts everybody."""

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
        # Looking a hash up in a dictionary leaks nothing about the token by the time it takes.
        entry = self._tokens.get(hash_of(matched[1])) if matched else None
        if entry is None:
            raise UnauthenticatedError("the token is not one of this backend's", reason="TOKEN_UNKNOWN")
        if self._clock() >= entry.expires.timestamp():
            raise UnauthenticatedError("the token has expired; ask for a new one", reason="TOKEN_EXPIRED")
        return Caller(entry.tenant, frozenset(entry.scopes))

    def quota(self, tenant: str) -> Quota | None:
        """Return the tenant's own quota; None if the backend's applies."""
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
                _logger.info("read the token file, which holds %s", counted(len(self._tokens), "token"))
        except (OSError, ValueError):
            _logger.exception("the token file cannot be read; the tokens read last stay in use")


def read_tokens(path: Path) -> TokenList:
    """Read a token file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a list of tokens; the message says what is wrong, without any hash.
    """
    try:
        return TokenList.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path.name}: {'; '.join(problems_of(error, 'the file'))}") from None


def new_token() -> str:
    """Return a new token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return the hash that a token file holds of a token."""
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
