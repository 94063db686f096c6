"""The coordinator's metrics, for Prometheus."""

import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from unerase.v1.audits_pb2 import AuditState
from unerase.v1.campaigns_pb2 import (
    CELL_STATE_CANCELLED,
    CELL_STATE_FAILED,
    CELL_STATE_SUCCEEDED,
    CampaignState,
    CellState,
)
from unerase.v1.models_pb2 import RegistrationState
from unerase_backend.coordinator.states import ENDED

COORDINATOR = "coordinator"
"""The room to name in `Metrics.survived` for audits that a new coordinator takes over."""

_AUDIT_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
_UNIT_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
_RPC_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


_REGISTRATIONS = {
    state: RegistrationState.Name(state).removeprefix("REGISTRATION_STATE_").lower()
    for state in RegistrationState.values()
    if state
}

# A `_created` series for each counter and histogram would only add to the output.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The coordinator's metrics, in a registry apart from Ray's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Gauge("unerase_info", "The backend's version; always 1.", ["version"], registry=self.registry).labels(
            version("unerase")
        ).set(1)
        self._count_audits()
        self._count_campaigns()
        self._count_units()
        self._count_models()
        self._count_rooms_and_rpcs()

    def _count_audits(self) -> None:
        self._audits = Gauge("unerase_audits", "Audits by state.", ["state"], registry=self.registry)
        self._audit_seconds = Histogram(
            "unerase_audit_seconds",
            "Time from an audit's creation to its end, by the state in which it ended.",
            ["state"],
            buckets=_AUDIT_SECONDS,
            registry=self.registry,
        )
        # Alerts watch for an increase, so the series must exist before the first audit ends.
        for state in ENDED:
            self._audit_seconds.labels(_label(state))
        self._oldest = Gauge(
            "unerase_oldest_audit_seconds", "Age of the oldest audit that has not ended.", registry=self.registry
        )
        self._oldest.set_function(self._age_of_oldest)
        self._oldest_created: float | None = None

    def _count_campaigns(self) -> None:
        self._campaigns = Gauge("unerase_campaigns", "Campaigns by state.", ["state"], registry=self.registry)
        self._cells = Counter(
            "unerase_cells_total",
            "Cells of campaigns that ended, by state; a cell that is tried again ends again.",
            ["state"],
            registry=self.registry,
        )
        for state in (CELL_STATE_SUCCEEDED, CELL_STATE_FAILED, CELL_STATE_CANCELLED):
            self._cells.labels(_cell_label(state))

    def _count_models(self) -> None:
        self._models = Gauge("unerase_models", "Registered models by state.", ["state"], registry=self.registry)
        self._registration_seconds = Histogram(
            "unerase_registration_seconds",
            "Time of the check of a model that is to be registered, by outcome.",
            ["outcome"],
            buckets=_UNIT_SECONDS,
            registry=self.registry,
        )
        for outcome in ("registered", "refused", "failed", "postponed", "stopped"):
            self._registration_seconds.labels(outcome)

    def set_registrations(self, counts: Mapping[int, int]) -> None:
        """Set the number of registrations by state."""
        for state, label in _REGISTRATIONS.items():
            self._models.labels(label).set(counts.get(state, 0))

    def registered(self, outcome: str, seconds: float) -> None:
        """Count the check of a model to be registered, and its time."""
        self._registration_seconds.labels(outcome).observe(seconds)

    def _count_units(self) -> None:
        self.units = Counter(
            "unerase_units_total",
            "Units that ended, by evaluation and outcome (recorded, skipped, stopped, failed), and repeated attempts.",
            ["evaluation", "outcome"],
            registry=self.registry,
        )
        self.unit_seconds = Histogram(
            "unerase_unit_seconds",
            "Time that a unit ran, possibly beside others; a unit from the cache does not run.",
            ["evaluation"],
            buckets=_UNIT_SECONDS,
            registry=self.registry,
        )
        self.units_running = Gauge("unerase_units_running", "Units that are running.", registry=self.registry)
        self.units_waiting = Gauge(
            "unerase_units_waiting", "Units that wait for their turn to run.", registry=self.registry
        )
        self.unit_wait_seconds = Histogram(
            "unerase_unit_wait_seconds",
            "Time that a unit waited for its turn.",
            buckets=_UNIT_SECONDS,
            registry=self.registry,
        )
        self.units_kept = Counter(
            "unerase_units_kept_total",
            "Units whose result came from the unit cache, so that they did not run.",
            ["evaluation"],
            registry=self.registry,
        )
        self.full_disk_waits = Counter(
            "unerase_full_disk_waits_total",
            "Attempts that were put off because the disk of the database or of the artefacts is full.",
            registry=self.registry,
        )

    def _count_rooms_and_rpcs(self) -> None:
        self._room_up = Gauge(
            "unerase_room_up", "1 if a room has a running replica, otherwise 0.", ["room"], registry=self.registry
        )
        self._survived = Counter(
            "unerase_kills_survived_total",
            "Calls that were repeated because their replica died, by its room; audits that were "
            "taken over from a dead coordinator, by `coordinator`.",
            ["room"],
            registry=self.registry,
        )
        self._survived.labels(COORDINATOR)
        self.webhooks = Counter(
            "unerase_webhooks_total",
            "Attempts to deliver a webhook, by what came of them (delivered, repeated later, given_up).",
            ["outcome"],
            registry=self.registry,
        )
        # Alerts watch for an increase.
        for outcome in ("delivered", "repeated", "given_up"):
            self.webhooks.labels(outcome)
        self.rpcs = Counter(
            "unerase_rpcs_total", "RPCs that ended, by method and code.", ["method", "code"], registry=self.registry
        )
        self.rpc_seconds = Histogram(
            "unerase_rpc_seconds", "Time of an RPC.", ["method"], buckets=_RPC_SECONDS, registry=self.registry
        )

    def set_rooms(self, serving: Mapping[str, bool]) -> None:
        """Set which rooms have a running replica."""
        for room, serves in serving.items():
            self._room_up.labels(room).set(serves)
            self._survived.labels(room)

    def ended(self, state: AuditState.ValueType, seconds: float) -> None:
        """Note the end of an audit, `seconds` after it was created."""
        self._audit_seconds.labels(_label(state)).observe(seconds)

    def survived(self, room: str, times: int = 1) -> None:
        """Count calls that are repeated because a room's replica died, or audits that a new coordinator takes over."""
        self._survived.labels(room).inc(times)

    def measure_disk(self, folder: str) -> None:
        """Measure the disk that holds a local folder; only a local artefact store has these figures."""
        for name, text, figure in (
            ("unerase_artifacts_disk_free_bytes", "Free bytes of the disk of the artefacts.", "free"),
            ("unerase_artifacts_disk_size_bytes", "Size of the disk of the artefacts.", "total"),
        ):
            Gauge(name, text, registry=self.registry).set_function(_disk(folder, figure))

    def set_oldest(self, created: float | None) -> None:
        """Set when the oldest audit that has not ended was created, in seconds since 1970; None if all have ended."""
        self._oldest_created = created

    def _age_of_oldest(self) -> float:
        return time.time() - self._oldest_created if self._oldest_created is not None else 0.0

    def set_audits(self, counts: Mapping[AuditState.ValueType, int]) -> None:
        """Set the number of audits in each state."""
        for state in AuditState.values():
            if state:
                self._audits.labels(_label(state)).set(counts.get(state, 0))

    def set_campaigns(self, counts: Mapping[CampaignState.ValueType, int]) -> None:
        """Set the number of campaigns in each state."""
        for state in CampaignState.values():
            if state:
                name = CampaignState.Name(state).removeprefix("CAMPAIGN_STATE_").lower()
                self._campaigns.labels(name).set(counts.get(state, 0))

    def cell_ended(self, state: CellState.ValueType) -> None:
        """Count a cell that has ended."""
        self._cells.labels(_cell_label(state)).inc()


def _cell_label(state: CellState.ValueType) -> str:
    return CellState.Name(state).removeprefix("CELL_STATE_").lower()


def _label(state: AuditState.ValueType) -> str:
    return AuditState.Name(state).removeprefix("AUDIT_STATE_").lower()


def _disk(folder: str, figure: str) -> Callable[[], float]:
    return lambda: float(getattr(shutil.disk_usage(folder), figure))
