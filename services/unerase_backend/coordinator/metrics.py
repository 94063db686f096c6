"""What the coordinator counts, for Prometheus."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from unerase.v1.audits_pb2 import AuditState

_UNIT_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
_RPC_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)


class Metrics:
    """The coordinator's own registry, apart from Ray's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._audits = Gauge("unerase_audits", "Audits by state.", ["state"], registry=self.registry)
        self.units = Counter(
            "unerase_units_total",
            "Units that ended, by evaluation and outcome (recorded, stopped, failed), and attempts that were repeated.",
            ["evaluation", "outcome"],
            registry=self.registry,
        )
        self.unit_seconds = Histogram(
            "unerase_unit_seconds",
            "Time that a unit ran, beside others; one that was kept from before does not run.",
            ["evaluation"],
            buckets=_UNIT_SECONDS,
            registry=self.registry,
        )
        self.rpcs = Counter(
            "unerase_rpcs_total", "RPCs that ended, by method and code.", ["method", "code"], registry=self.registry
        )
        self.rpc_seconds = Histogram(
            "unerase_rpc_seconds", "Time of an RPC.", ["method"], buckets=_RPC_SECONDS, registry=self.registry
        )

    def set_audits(self, counts: Mapping[AuditState.ValueType, int]) -> None:
        """Set the number of audits of each state."""
        for name, state in AuditState.items():
            if state:
                label = name.removeprefix("AUDIT_STATE_").lower()
                self._audits.labels(label).set(counts.get(state, 0))
