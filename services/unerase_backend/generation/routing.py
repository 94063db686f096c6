"""Which replica gets a request: one that has the model in memory, unless it is much busier than the others.

The choice affects only the time, since a replica must load a model that it does not have; results are the same bit for
bit. About once a second replicas report to Serve's controller which models they hold and how many trajectories they
have; each caller adds its own requests that are not answered yet. A model that no replica holds goes to the least
loaded, so that subject, reference and control of an audit do not meet on one replica while another is idle. Among those
that are equal all callers make the same choice without communicating: a hash gives each replica a weight for each model
(rendezvous hashing), so a replica that comes or goes moves only its own share of the models.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, ReplicaResult, RequestRouter, RunningReplica

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase_backend.generation.load import work_of

# With guidance they are 64 rows, two thirds of a full batch of small models: the next unit finds an idle replica.
BUSY = 32


@dataclass(frozen=True)
class ReplicaStatus:
    """What is known of a replica when a request is routed."""

    replica: str
    models: Collection[str]
    """Keys of the models it holds, as `routing_key` makes them."""
    trajectories: int


def routing_key(name: str, changes: Sequence[ModelChange] = ()) -> str:
    """Return the key that identifies a model when requests are routed."""
    if not changes:
        return name
    changed = hashlib.sha256()
    for change in changes:
        changed.update(hashlib.sha256(change.SerializeToString(deterministic=True)).digest())
    return f"{name}+{changed.hexdigest()[:16]}"


def ranked(statuses: Sequence[ReplicaStatus], model: str, busy: int = BUSY) -> list[str]:
    """Return the replicas, the first choice first.

    A replica with up to `busy` trajectories is free, and ranks before one with up to twice as many, and so on. Among
    equals those that hold the model come first, and of the others those with the fewest trajectories; then the model's
    own order of replicas decides.
    """

    def rank(status: ReplicaStatus) -> tuple[int, bool, int, bytes]:
        drawn = hashlib.sha256(f"{model}\0{status.replica}".encode()).digest()
        lacks = model not in status.models
        return status.trajectories // busy, lacks, status.trajectories if lacks else 0, drawn

    return [status.replica for status in sorted(statuses, key=rank)]


# First in, first out: Serve's default matches by a request id that all calls made for one request share, and would lose
# all of them but the last.
class ModelRouter(FIFOMixin, RequestRouter):  # type: ignore[misc]
    """Serve's router for generation; `busy` comes from `request_router_kwargs`."""

    def initialize_state(self, busy: int = BUSY) -> None:
        """Take the settings."""
        self._busy = busy
        # By replica and request id: the model and the trajectories that this caller sent and that have not ended.
        self._sent: dict[ReplicaID, dict[str, list[tuple[str, int]]]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas, one in each rank; if one does not accept the request, the next is asked."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        request = pending_request.args[0] if pending_request is not None and pending_request.args else None
        model = _model_of(request)
        if pending_request is not None:
            # If no replica accepts the request, wait a little before the next round.
            pending_request.routing_context.should_backoff = True
        statuses = [self._status(replica) for replica in candidate_replicas]
        return [[by_name[name]] for name in ranked(statuses, model, self._busy)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        """Count what was sent."""
        request = pending_request.args[0] if pending_request.args else None
        sent = self._sent.setdefault(replica_id, {})
        works = sent.setdefault(pending_request.metadata.internal_request_id, [])
        works.append((_model_of(request), work_of(request)))

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Remove one ended request; if several have the same id, Serve does not say which of them ended."""
        sent = self._sent.get(replica_id, {})
        if works := sent.get(internal_request_id):
            works.pop()
            if not works:
                del sent[internal_request_id]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget the replicas that are gone."""
        super().update_replicas(replicas)
        there = {replica.replica_id for replica in replicas}
        self._sent = {replica: sent for replica, sent in self._sent.items() if replica in there}

    def _status(self, replica: RunningReplica) -> ReplicaStatus:
        told: Mapping[str, Any] = replica.routing_stats or {}
        own = [each for works in list(self._sent.get(replica.replica_id, {}).values()) for each in works]
        # What was sent there a moment ago is not reported yet.
        models = frozenset(told.get("models", ())) | {model for model, _ in own}
        trajectories = max(sum(work for _, work in own), told.get("trajectories", 0))
        return ReplicaStatus(replica.replica_id.unique_id, models, trajectories)


def _model_of(request: object) -> str:
    return routing_key(getattr(request, "model", ""), getattr(request, "changes", ()))
