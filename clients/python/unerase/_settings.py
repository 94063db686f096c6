"""How a client connects, waits and tries again."""

import json
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where `unerase serve` listens unless told otherwise."""


@dataclass(frozen=True)
class RetryConfig:
    """How calls that are safe to repeat are repeated when the backend is UNAVAILABLE.

    Waits grow by `multiplier` from `initial_backoff_seconds` to `max_backoff_seconds`, each varied at random by a
    fifth, so that many clients do not come back in step. All attempts share the deadline of the call.
    """

    # gRPC makes at most five attempts whatever is asked for; 1 means no second one.
    max_attempts: int = 4
    initial_backoff_seconds: float = 0.2
    max_backoff_seconds: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 5:
            raise ValueError(f"max_attempts must be 1 to 5, not {self.max_attempts}")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds:
            raise ValueError("initial_backoff_seconds must be positive and at most max_backoff_seconds")
        if self.multiplier < 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")


@dataclass(frozen=True)
class KeepAliveConfig:
    """How a silent connection is found out: by a ping that is not answered in time."""

    interval_seconds: float = 30.0
    timeout_seconds: float = 10.0


@dataclass(frozen=True)
class TLSConfig:
    """An encrypted connection; certificates and key are PEM.

    Without `root_certificates` the system's are trusted. `server_name` is the name that the server's certificate must
    hold where it differs from the address.
    """

    root_certificates: bytes | None = None
    client_certificate: bytes | None = None
    client_key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None


@dataclass(frozen=True)
class ClientSettings:
    """Everything about a client but its address."""

    # Of a call with one answer, attempts included.
    timeout_seconds: float = 30.0
    # Of a report or an artefact as a whole.
    transfer_timeout_seconds: float = 300.0
    # How long watch() keeps trying to resume without hearing anything: a restarted backend needs up to half a minute.
    watch_patience_seconds: float = 120.0
    # gRPC's own limit of 4 MiB is too small for a page of audits with their verdicts.
    max_receive_bytes: int = 64 * 1024 * 1024
    retry: RetryConfig = RetryConfig()
    keep_alive: KeepAliveConfig = KeepAliveConfig()
    # None: the connection is not encrypted.
    tls: TLSConfig | None = None
    # A bearer token of the backend's; sent over an encrypted connection, or on this machine alone.
    token: str | None = field(default=None, repr=False)
    # W3C Trace Context of the span that calls belong to. None: OpenTelemetry's current one, where the program has that.
    traceparent: str | None = None


def on_this_machine(address: str) -> bool:
    """Say whether an address is the loopback's or a socket file's; a name is taken for `localhost` alone."""
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
        ValueError: the token would travel to another machine in the clear.
    """
    if settings.token is None:
        return ()
    if settings.tls is None and not on_this_machine(address):
        raise ValueError(f"a token for {address} needs an encrypted connection: give tls as well")
    return (("authorization", f"Bearer {settings.token}"),)


def trace_metadata(settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """Return what tells the backend which span a call belongs to, if any."""
    traceparent = settings.traceparent or _current_traceparent()
    return (("traceparent", traceparent),) if traceparent else ()


def _current_traceparent() -> str:
    # Who has not imported OpenTelemetry has no span; importing it here would cost everybody.
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return ""
    return f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"


# The most that the backend takes of a concept's pictures, and what frames them.
_UPLOAD_BYTES = 80 * 1024 * 1024

# What deletes is not here: repeated after an answer that got lost it would fail with NOT_FOUND. WatchAudit is not
# either: it resumes from the last event instead.
_REPEATABLE = {
    "unerase.v1.AuditService": (
        "CreateAudit",
        "GetAudit",
        "ListAudits",
        "CancelAudit",
        "GetReport",
        "ReadArtifact",
        "ListEvaluations",
    ),
    "unerase.v1.ModelService": ("ListModels", "GetModel", "ListConcepts", "CreateConcept", "GetConcept"),
}


def channel_options(address: str, settings: ClientSettings) -> list[tuple[str, Any]]:
    """Return gRPC's channel options for the settings."""
    keep_alive, tls = settings.keep_alive, settings.tls
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_receive_bytes),
        ("grpc.keepalive_time_ms", round(keep_alive.interval_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(keep_alive.timeout_seconds * 1000)),
        # gRPC would wait up to two minutes before it connects again.
        ("grpc.initial_reconnect_backoff_ms", round(settings.retry.initial_backoff_seconds * 1000)),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", round(settings.retry.max_backoff_seconds * 1000)),
        ("grpc.service_config", _service_config(settings.retry)),
        # An upload is repeated from here; gRPC would keep 256 KiB of it, and give up beyond.
        ("grpc.per_rpc_retry_buffer_size", _UPLOAD_BYTES),
    ]
    if on_this_machine(address):
        # A proxy named in the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _service_config(retry: RetryConfig) -> str:
    if retry.max_attempts == 1:
        return "{}"
    policy = {
        "maxAttempts": retry.max_attempts,
        "initialBackoff": f"{retry.initial_backoff_seconds:.3f}s",
        "maxBackoff": f"{retry.max_backoff_seconds:.3f}s",
        "backoffMultiplier": retry.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": service, "method": method} for service, methods in _REPEATABLE.items() for method in methods]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})
