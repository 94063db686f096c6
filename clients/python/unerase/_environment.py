"""The environment variables by which the command and the clients find a backend, with TLS and tokens.

| variable | |
| --- | --- |
| UNERASE_ADDRESS | HOST:PORT of the backend |
| UNERASE_TOKEN, or UNERASE_TOKEN_FILE | the bearer token, or a file that holds it |
| UNERASE_TLS | 1: encrypt, and trust the system's authorities |
| UNERASE_TLS_CA | PEM file of the authorities to trust instead; encrypts |
| UNERASE_TLS_CERTIFICATE, UNERASE_TLS_KEY | PEM files of the client's own certificate, if the backend asks for one |
| UNERASE_TLS_SERVER_NAME | the name in the backend's certificate, if it differs from the address |
| TRACEPARENT | the span that the command's calls belong to (W3C Trace Context); a program has spans of its own |
"""

import os
from pathlib import Path

from unerase._settings import DEFAULT_ADDRESS, ClientSettings, TLSConfig


def address_of(address: str | None) -> str:
    """Return the address of the backend: as given, or UNERASE_ADDRESS, or this machine's."""
    return address or os.environ.get("UNERASE_ADDRESS") or DEFAULT_ADDRESS


def settings_from_environment(*, traced: bool = True) -> ClientSettings:
    """Return a client's settings; TRACEPARENT counts if the calls are `traced` by it.

    Raises:
        ValueError: variables contradict each other, or a value is not allowed.
        OSError: a file cannot be read.
    """
    told = {name: os.environ.get(f"UNERASE_{name}", "") for name in _NAMES}
    if told["TOKEN"] and told["TOKEN_FILE"]:
        raise ValueError("UNERASE_TOKEN and UNERASE_TOKEN_FILE: set only one of them")
    if bool(told["TLS_CERTIFICATE"]) != bool(told["TLS_KEY"]):
        raise ValueError("UNERASE_TLS_CERTIFICATE and UNERASE_TLS_KEY: set both, or neither")
    if told["TLS"] not in ("", "0", "1"):
        raise ValueError(f"UNERASE_TLS must be 0 or 1, not {told['TLS']!r}")
    token = _token(told["TOKEN_FILE"]) if told["TOKEN_FILE"] else told["TOKEN"]
    encrypted = told["TLS"] == "1" or told["TLS_CA"] or told["TLS_CERTIFICATE"]
    tls = TLSConfig(
        root_certificates=_content(told["TLS_CA"]),
        client_certificate=_content(told["TLS_CERTIFICATE"]),
        client_key=_content(told["TLS_KEY"]),
        server_name=told["TLS_SERVER_NAME"] or None,
    )
    traceparent = os.environ.get("TRACEPARENT") if traced else None
    return ClientSettings(tls=tls if encrypted else None, token=token or None, traceparent=traceparent or None)


_NAMES = ("TOKEN", "TOKEN_FILE", "TLS", "TLS_CA", "TLS_CERTIFICATE", "TLS_KEY", "TLS_SERVER_NAME")


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        raise ValueError(f"UNERASE_TOKEN_FILE: {path} holds no token") from None


def _content(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None
