"""The backend on this machine: Ray in-process on loopback, and the five applications on it.

`main` is what `unerase serve` calls; `start` gives the same to whoever wants to stop it again. Every setting can come
from the environment, as in UNERASE_SERVE_PORT=50052.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

# Ray reads these when it is imported. What is set already stays.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
# Threads that wait spin for some microseconds, not for ever: the cores are shared.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from fsspec import get_filesystem_class
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from unerase_backend.coordinator.limits import AdmissionSettings

_PREFIX = "UNERASE_SERVE_"


class ServeSettings(AdmissionSettings, BaseSettings):
    """Everything about a local backend."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="address the gRPC server and /metrics bind")
    port: int = Field(default=50051, ge=0, le=65535, description="port of the gRPC server; 0 takes a free one")
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="port of /metrics; 0 takes a free one; none means no /metrics"
    )
    rooms_metrics_port: int = Field(
        default=0, ge=0, le=65535, description="port where Ray serves the rooms' metrics; 0 takes a free one"
    )
    allow_insecure_bind: bool = Field(
        default=False, description="bind an address that others reach without TLS and tokens"
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file of the certificate chain; none: no TLS")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(default=None, description="PEM file of the authorities of clients' certificates")
    tokens: Path | None = Field(default=None, description="file of tokens, as `unerase tokens` writes it")
    data_dir: Path = Field(
        default=Path("~/.local/share/unerase"), description="folder of the databases and of the artefacts"
    )
    artifacts: str = Field(
        default="", description="folder or fsspec URL of the artefacts, which coordinators share; empty: in data_dir"
    )
    database_url: str = Field(
        default="", repr=False, description="postgresql://... , which coordinators share; empty: SQLite in data_dir"
    )
    lease_seconds: float = Field(
        default=15.0, ge=1, description="how long after its last sign of life another takes a coordinator's audits over"
    )
    catalogues: tuple[Path, ...] = Field(default=(), description="catalogue files beside the embedded testbed's")
    device: str = Field(default="cpu", description="torch device of the weights")
    dtype: str = Field(default="float32", description="torch dtype of the computation")
    torch_threads: int = Field(default=1, ge=1, description="torch threads of one replica, generation's excepted")
    # Attacks, probes and judges want a core as well (docs/performance.md).
    generation_threads: int = Field(default=1, ge=1, description="torch threads of one of generation's replicas")
    generation_replicas: int = Field(default=1, ge=1, description="processes that run the sampler")
    concurrent_units: int = Field(default=6, ge=1, le=256, description="units in flight, over all audits")
    unit_retry_seconds: float = Field(
        default=600.0, ge=0, description="how long a unit is tried again while a room is unavailable"
    )
    retention_days: float = Field(
        default=0.0, ge=0, description="days after its end that an audit is kept; 0 keeps it for ever"
    )
    object_store_mb: int = Field(default=256, ge=80, description="shared memory for pictures between the rooms")
    log_format: Literal["text", "json"] = Field(default="text", description="form of a line of the logs")
    trace_endpoint: str = Field(
        default="", description="OTLP receiver (gRPC) of traces, as http://127.0.0.1:4317; empty means none"
    )
    # Ray's own ports are on every interface whatever is asked for: a token keeps others from giving it work.
    ray_auth: Literal["token", "disabled"] = Field(default="token", description="authentication of Ray's own ports")

    @field_validator("trace_endpoint")
    @classmethod
    def _name_a_receiver(cls, value: str) -> str:
        # What reads the port refuses one that is none.
        place = urlsplit(value)
        if value and (place.scheme not in ("http", "https") or not place.hostname or place.port == 0):
            raise ValueError(f"must be as http://127.0.0.1:4317, not {value!r}")
        return value

    @field_validator("artifacts")
    @classmethod
    def _know_the_store(cls, value: str) -> str:
        scheme, separator, _ = value.partition("://")
        if separator:
            if not scheme:
                raise ValueError(f"{value!r} has no scheme, as s3:// is one")
            try:
                get_filesystem_class(scheme)
            except ImportError as error:
                raise ValueError(f"{scheme}:// needs a package that is not installed: {error}") from None
        return value

    @model_validator(mode="after")
    def _refuse_unknown_environment(self) -> "ServeSettings":
        known = {_PREFIX + name.upper() for name in type(self).model_fields}
        unknown = sorted(name for name in os.environ if name.upper().startswith(_PREFIX) and name.upper() not in known)
        if unknown:
            raise ValueError(f"the environment sets {', '.join(unknown)}, which is no setting")
        return self


@dataclass(frozen=True)
class Backend:
    """A backend that is up."""

    address: str
    metrics_url: str
    """Empty where /metrics is not served."""
    rooms_metrics_url: str
    stop: Callable[[], None]
    """Drains and ends everything; Ray included."""


def start(settings: ServeSettings) -> Backend:
    """Start Ray and the five applications, and return once they answer.

    Raises:
        RuntimeError: an application could not be deployed, as where the port is taken.
    """
    os.environ["RAY_AUTH_MODE"] = settings.ray_auth
    if settings.ray_auth == "token":
        # Without one Ray writes a token into the home folder, for every user of the machine to read.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray import serve

    host = settings.host
    port = settings.port or _free_port(host)
    metrics_port = _free_port(host) if settings.metrics_port == 0 else settings.metrics_port or 0
    rooms_metrics_port = settings.rooms_metrics_port or _free_port(host)
    targets = _targets(settings, port, metrics_port, serve.RunTarget)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        object_store_memory=settings.object_store_mb * 1024 * 1024,
        _metrics_export_port=rooms_metrics_port,
    )

    def stop() -> None:
        serve.shutdown()
        ray.shutdown()

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        # No proxy of Serve's: clients come through the coordinator's own server.
        serve.start(proxy_location="Disabled", logging_config=_serves_own_logs(settings))
        serve.run_many(targets)
    except BaseException:
        stop()
        raise
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_certificate else "http"
    metrics_url = f"{scheme}://{shown}:{metrics_port}/metrics" if metrics_port else ""
    return Backend(f"{shown}:{port}", metrics_url, f"http://127.0.0.1:{rooms_metrics_port}/metrics", stop)


def main(**options: Any) -> None:
    """Run a backend until SIGTERM or SIGINT; `options` are fields of `ServeSettings`, None stands for the default."""
    try:
        settings = ServeSettings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors()]
        raise ValueError("\n".join(problems)) from None
    ended = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    backend = start(settings)
    # After Ray, which installs handlers of its own.
    for number in before:
        signal.signal(number, lambda *_: ended.set())
    try:
        print(f"unerase listens on {backend.address}", flush=True)
        if backend.metrics_url:
            print(f"metrics at {backend.metrics_url}", flush=True)
        print(f"the rooms' metrics at {backend.rooms_metrics_url}", flush=True)
        ended.wait()
    finally:
        backend.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _targets(settings: ServeSettings, port: int, metrics_port: int, target: Callable[..., Any]) -> list[Any]:
    from unerase_backend.attack import deployment as attack
    from unerase_backend.attack.settings import AttackSettings
    from unerase_backend.classification import deployment as classification
    from unerase_backend.classification.settings import ClassificationSettings
    from unerase_backend.coordinator import deployment as coordinator
    from unerase_backend.coordinator.settings import CoordinatorSettings
    from unerase_backend.generation import deployment as generation
    from unerase_backend.generation.settings import GenerationSettings
    from unerase_backend.probing import deployment as probing
    from unerase_backend.probing.settings import ProbingSettings

    data = settings.data_dir.expanduser().resolve()
    common: dict[str, Any] = {
        "artifacts": _url(settings.artifacts) if settings.artifacts else str(data / "artifacts"),
        "catalogues": [str(path.expanduser().resolve()) for path in settings.catalogues],
        "device": settings.device,
        "dtype": settings.dtype,
        "torch_threads": settings.torch_threads,
        "log_format": settings.log_format,
        "logs": str(data / "logs"),
        "trace_endpoint": settings.trace_endpoint,
    }
    coordination = CoordinatorSettings(
        **common,
        state=str(data / "coordinator"),
        database_url=settings.database_url,
        host=settings.host,
        port=port,
        metrics_port=metrics_port,
        allow_insecure_bind=settings.allow_insecure_bind,
        tls_certificate=_file(settings.tls_certificate),
        tls_key=_file(settings.tls_key),
        tls_client_ca=_file(settings.tls_client_ca),
        tokens=_file(settings.tokens),
        concurrent_units=settings.concurrent_units,
        unit_retry_seconds=settings.unit_retry_seconds,
        lease_seconds=settings.lease_seconds,
        retention_days=settings.retention_days,
        **{name: getattr(settings, name) for name in AdmissionSettings.model_fields},
    )
    applications = {
        "classification": classification.build(ClassificationSettings(**common)),
        "generation": generation.build(
            GenerationSettings(
                **common | {"torch_threads": settings.generation_threads}, replicas=settings.generation_replicas
            )
        ),
        "attack": attack.build(AttackSettings(**common)),
        "probing": probing.build(ProbingSettings(**common)),
        "coordinator": coordinator.build(coordination),
    }
    # Without a route no proxy, should there be one, would know them.
    return [
        target(application, name=name, route_prefix=None, logging_config=_serves_own_logs(settings))
        for name, application in applications.items()
    ]


def _serves_own_logs(settings: ServeSettings) -> dict[str, str]:
    """Return how Serve itself logs, into the logs of Ray's session."""
    return {"encoding": settings.log_format.upper()}


def _url(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().resolve())


def _file(path: Path | None) -> str:
    return str(path.expanduser().resolve()) if path is not None else ""


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError, TypeError) as error:
            why = getattr(error, "strerror", None) or "it cannot be the name of a host"
            raise ValueError(f"host: {host[:64]!r} is no address of this machine: {why}") from None
        port: int = probe.getsockname()[1]
        return port
