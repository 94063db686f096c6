"""The signature of a webhook, as Standard Webhooks defines it (https://www.standardwebhooks.com, version 1.0.0).

It is HMAC-SHA256 over `ID.TIMESTAMP.BODY`. The keys are in a JSON file, by tenant; `*` is for those without their own:

    {"secrets": {"acme": ["whsec_..."], "*": ["whsec_..."]}}

A tenant may have two keys while one replaces the other: the signature is then made with both. The file is read each
time that a key is needed, so that keys are replaced without a restart.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from unerase_backend.runtime.validation import problems_of

PREFIX = "whsec_"
EVERYBODY = "*"
"""The tenant of the keys of all tenants that have none of their own."""
_LENGTHS = (24, 64)


class SecretList(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    secrets: dict[
        Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]{0,32}|\*)$")],
        Annotated[tuple[str, ...], Field(min_length=1, max_length=8)],
    ]

    @field_validator("secrets")
    @classmethod
    def _hold_keys(cls, value: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
        for tenant, secrets in value.items():
            for secret in secrets:
                try:
                    key_of(secret)
                except ValueError as error:
                    raise ValueError(f"{tenant}: {error}") from None
        return value


class Secrets:
    """The keys of a file; without a file there are none."""

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file.
        """
        self._path = path
        self.of("")

    def of(self, tenant: str) -> tuple[str, ...]:
        """Return a tenant's keys; empty if there are none for it.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not such a file; says what is wrong, without any key.
        """
        if self._path is None:
            return ()
        try:
            known = SecretList.model_validate_json(self._path.read_bytes()).secrets
        except ValidationError as error:
            raise ValueError(f"{self._path.name}: {'; '.join(problems_of(error, 'the file'))}") from None
        return known.get(tenant) or known.get(EVERYBODY, ())


def key_of(secret: str) -> bytes:
    """Return the key that a secret stands for.

    Raises:
        ValueError: it is not `whsec_` and base64 of 24 to 64 bytes.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    least, most = _LENGTHS
    if not secret.startswith(PREFIX) or not least <= len(key) <= most:
        raise ValueError(f"a secret must be {PREFIX} and base64 of {least} to {most} bytes")
    return key


def signed_headers(message_id: str, seconds: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """Return the headers of a webhook that is sent at a time, in seconds since 1970."""
    content = f"{message_id}.{seconds}.".encode() + body
    signatures = [hmac.new(key_of(secret), content, hashlib.sha256).digest() for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures),
    }
