"""How a client connects, waits and tries again."""

import re
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 50051
DEFAULT_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_PORT}"
"""Where `unerase serve` listens unless told otherwise."""

MOST_SECONDS = 1e8
"""The longest time to wait for anything: three years."""

# A token that gRPC's metadata can carry, and a traceparent of any version of W3C Trace Context.
_TOKEN = re.compile(r"[!-~]+")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")


@dataclass(frozen=True)
class RetryConfig:
    """How calls are repeated where that is safe (`_repeating.py` says which, and after which answers).

    Waits grow by `multiplier` from `initial_backoff_seconds` to `max_backoff_seconds`. Each varies at random by a
    fifth, so that many clients do not return in step. If the backend asks for a longer wait, the client keeps to it.
    All attempts share the time of the call.
    """

    # 1 means that nothing is repeated. Calls that a limit refuses (RESOURCE_EXHAUSTED) are repeated as long as their
    # time lasts.
    max_attempts: int = 4
    initial_backoff_seconds: float = 0.2
    max_backoff_seconds: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds:
            raise ValueError("initial_backoff_seconds must be positive and at most max_backoff_seconds")
        if not self.multiplier >= 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")


@dataclass(frozen=True)
class KeepAliveConfig:
    """How a dead connection is detected: by a ping that is not answered in time."""

    interval_seconds: float = 30.0
    timeout_seconds: float = 10.0


@dataclass(frozen=True)
class TLSConfig:
    """An encrypted connection; certificates and key are PEM.

    Without `root_certificates`, the system's are trusted. `server_name` is the name that the server's certificate must
    hold, if that differs from the address.
    """

    root_certificates: bytes | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None


@dataclass(frozen=True)
class ClientSettings:
    """All settings of a client except its address."""

    # For a call with one answer, all attempts together; for a call that creates something, for each of two attempts.
    timeout_seconds: float = 30.0
    # For a report or an artefact as a whole.
    transfer_timeout_seconds: float = 300.0
    # How long watch() tries to resume without an answer: a restart of the backend takes up to half a minute.
    watch_patience_seconds: float = 120.0
    # gRPC's own limit of 4 MiB is too small for a page of audits with their verdicts.
    max_receive_bytes: int = 64 * 1024 * 1024
    retry: RetryConfig = RetryConfig()
    keep_alive: KeepAliveConfig = KeepAliveConfig()
    # None: the connection is not encrypted.
    tls: TLSConfig | None = None
    # A bearer token; sent only over an encrypted connection or on this machine.
    token: str | None = field(default=None, repr=False)
    # W3C Trace Context of the span that calls belong to. None: the program's current OpenTelemetry span, if any.
    traceparent: str | None = None

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "transfer_timeout_seconds", "watch_patience_seconds"):
            # Refuses NaN as well, which is neither above nor below, and more than gRPC can count.
            if not 0 < getattr(self, name) <= MOST_SECONDS:
                raise ValueError(f"{name} must be above 0 and at most {MOST_SECONDS:g}, not {getattr(self, name)}")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("the token must be printable ASCII without spaces")
        if self.traceparent is not None and not _TRACEPARENT.fullmatch(self.traceparent):
            raise ValueError(f"the traceparent must follow W3C Trace Context, not {self.traceparent!r}")


def on_this_machine(address: str) -> bool:
    """Return whether an address is on loopback or a socket file; the only name that counts is `localhost`."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]") or address
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def call_metadata(address: str, settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call: the token, if there is one.

    Raises:
        ValueError: the token would be sent unencrypted to another machine.
    """
    if settings.token is None:
        return ()
    if settings.tls is None and not on_this_machine(address):
        raise ValueError(f"a token for {address} needs an encrypted connection: set tls as well")
    return (("authorization", f"Bearer {settings.token}"),)


def trace_metadata(settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """Return the metadata that tells the backend which span a call belongs to, if any."""
    traceparent = settings.traceparent or _current_traceparent()
    return (("traceparent", traceparent),) if traceparent else ()


def _current_traceparent() -> str:
    # A program that has not imported OpenTelemetry has no span; importing it here would slow every program.
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return ""
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


def channel_options(address: str, settings: ClientSettings) -> list[tuple[str, Any]]:
    """Return gRPC's channel options for the settings."""
    keep_alive, tls = settings.keep_alive, settings.tls
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.keepalive_time_ms", round(keep_alive.interval_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(keep_alive.timeout_seconds * 1000)),
        # By default gRPC waits up to two minutes before it reconnects.
        ("grpc.initial_reconnect_backoff_ms", round(settings.retry.initial_backoff_seconds * 1000)),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", round(settings.retry.max_backoff_seconds * 1000)),
    ]
    if on_this_machine(address):
        # A proxy named in the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options
