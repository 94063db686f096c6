"""The settings of the coordinator's deployment."""

import os

from pydantic import Field, ValidationInfo, field_validator, model_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from unerase._settings import DEFAULT_HOST, DEFAULT_PORT
from unerase_backend.coordinator.limits import AdmissionSettings
from unerase_backend.coordinator.webhooks.hosts import Hosts, entry_of
from unerase_backend.runtime.settings import File, RoomSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServiceSettings(AdmissionSettings):
    """How the service behaves towards its clients; `unerase serve` passes these settings on to its coordinator."""

    host: str = Field(
        default=DEFAULT_HOST, min_length=1, description="address that the gRPC server and /metrics listen on"
    )
    allow_insecure_bind: bool = Field(
        default=False, description="listen on an address that others reach without TLS and tokens"
    )
    tls_certificate: File = Field(default="", description="PEM file of the server's certificate chain; empty: no TLS")
    tls_key: File = Field(default="", description="PEM file of the certificate's key")
    tls_client_ca: File = Field(
        default="", description="PEM file of authorities: clients need a certificate of theirs (mTLS)"
    )
    tokens: File = Field(
        default="", description="file of tokens, as `unerase tokens` writes it; empty lets everybody in"
    )
    database_url: str = Field(
        default="", repr=False, description="postgresql://... , which coordinators may share; empty means SQLite"
    )
    # Enough to keep generation's batches full while units wait for their judges; more only costs memory.
    concurrent_units: int = Field(
        default=6, ge=1, le=256, description="units in flight, over all audits, and beside them half as many attacks"
    )
    unit_retry_seconds: float = Field(
        default=600.0, ge=0, description="how long a unit is tried again while a room is unavailable"
    )
    registrations_at_once: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="models that one coordinator checks at once while they are registered, each in a process of its "
        "own; by default one for each core, at most 4",
    )
    lease_seconds: float = Field(
        default=15.0,
        ge=1,
        description="how long after its last sign of life a coordinator's audits are taken over by another",
    )
    retention_days: float = Field(
        default=0.0, ge=0, description="days after its end that an audit is kept; 0 keeps it for ever"
    )

    webhook_hosts: tuple[str, ...] = Field(
        default=(),
        description="hosts that webhooks may go to, as hooks.example.com, *.example.com or hooks.example.com:8443",
    )
    webhook_internal_hosts: tuple[str, ...] = Field(
        default=(), description="such hosts whose addresses may be private, and which may be reached without TLS"
    )
    webhook_secrets: File = Field(default="", description="JSON file of the secrets that sign webhooks, by tenant")
    webhook_ca: File = Field(
        default="", description="PEM file of authorities that webhooks trust beside the system's own"
    )

    @field_validator("webhook_hosts", "webhook_internal_hosts")
    @classmethod
    def _name_hosts(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for entry in value:
            entry_of(entry, internal=info.field_name == "webhook_internal_hosts")
        return value

    @model_validator(mode="after")
    def _sign_webhooks(self) -> "ServiceSettings":
        if (self.webhook_hosts or self.webhook_internal_hosts) and not self.webhook_secrets:
            raise ValueError("webhook_hosts: needs webhook_secrets too, since every webhook is signed")
        return self

    def webhook_targets(self) -> Hosts:
        """Return the hosts that webhooks may go to."""
        return Hosts(self.webhook_hosts, self.webhook_internal_hosts)

    @model_validator(mode="after")
    def _refuse_insecure_bind(self) -> "ServiceSettings":
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key: set both, or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca: needs tls_certificate and tls_key too")
        if self.host not in LOOPBACK and not self.allow_insecure_bind and not (self.tls_certificate and self.tokens):
            missing = " and ".join(
                name for name, given in (("TLS", self.tls_certificate), ("tokens", self.tokens)) if not given
            )
            raise ValueError(
                f"host {self.host!r} is reachable from other machines and the server has no {missing}; "
                "bind 127.0.0.1, give tls_certificate, tls_key and tokens, "
                "or set allow_insecure_bind where the network itself keeps others out"
            )
        return self


class CoordinatorSettings(ServiceSettings, RoomSettings):
    """Where the coordinator listens, where it keeps its data, and how it ends."""

    state: str = Field(
        description="folder of what belongs to this coordinator alone: its lock and, by default, its databases"
    )
    database_url_variable: str = Field(
        default="", description="environment variable of the coordinator's process that holds database_url"
    )
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535, description="port of the gRPC server")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="port of /metrics; 0 means none")
    shutdown_grace_seconds: float = Field(default=5.0, ge=0, description="time that calls in flight have to end")

    def database(self) -> str:
        """Return the URL of the database, read from the environment if the settings say so; empty means SQLite.

        Raises:
            ValueError: the environment variable is not set, or the value is not a URL.
        """
        if not self.database_url_variable:
            return _checked(self.database_url, "database_url")
        url = os.environ.get(self.database_url_variable, "")
        if not url:
            raise ValueError(
                f"{self.database_url_variable}, which database_url_variable names, is not set in the environment"
            )
        return _checked(url, self.database_url_variable)

    @model_validator(mode="after")
    def _take_one_database(self) -> "CoordinatorSettings":
        if self.database_url and self.database_url_variable:
            raise ValueError("database_url and database_url_variable: set only one of them")
        return self


def _checked(url: str, name: str) -> str:
    try:
        if url:
            make_url(url)
    except (ArgumentError, ValueError):
        # SQLAlchemy's own message may contain part of the URL, such as the password.
        raise ValueError(f"{name}: is not a URL such as postgresql://USER:PASSWORD@HOST:PORT/NAME") from None
    return url
