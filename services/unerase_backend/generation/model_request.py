"""The model that a request asks for: one of the catalogue, possibly with changes."""

from collections.abc import Sequence
from dataclasses import dataclass

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.guard_kinds import guarded_digest
from unerase_backend.catalogue.stepping import schedule_of, takes_other
from unerase_backend.generation.canonical import changed_model_digest
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError
from unerase_backend.runtime.source import registered_digest


@dataclass(frozen=True)
class RequestedModel:
    """A model of the catalogue with its changes, and the digest that identifies it."""

    name: str
    """Catalogue name of the model that is changed."""
    digest: str
    changes: tuple[ModelChange, ...] = ()
    guarded_digest: str = ""
    """The digest with its guards, under which its results are stored; empty without guards."""

    @property
    def derived(self) -> bool:
        """Whether its weights are changed, and so are not in the catalogue."""
        return any(change.WhichOneof("kind") != "schedule_of" for change in self.changes)

    @property
    def results_digest(self) -> str:
        """What its results are stored under: the weights with the guards that act."""
        return self.guarded_digest or self.digest


def requested_model(
    catalogue: Catalogue,
    store: ArtifactStore,
    name: str,
    changes: Sequence[ModelChange] = (),
    *,
    guarded: bool = False,
) -> RequestedModel:
    """Return the model `name` with the changes that have an effect.

    An interpolation by a share of 0, or towards the same model, has no effect, nor has a schedule that the model has
    already. Without them, requests share results.
    `guarded` says whether the model's guards act; weights are the same, and in memory once, either way.

    Raises:
        NotFoundError: there is no such model or artefact.
        PreconditionError: the schedule of a model that a change names cannot be followed.
        UnsafeModelError: a model's folder lacks a part or has a link that leads out of it.
        UnavailableError: a model cannot be fetched from the hub.
    """
    described = catalogue.describe_model(name)
    digest = described.weights_digest or described.digest
    kept: list[ModelChange] = []
    keyed: list[tuple[str, float]] = []
    for change in changes:
        if change.WhichOneof("kind") == "unet_digest":
            if not store.contains(change.unet_digest):
                message = f"no artefact has the digest {change.unet_digest}"
                raise NotFoundError(message, reason="ARTIFACT_NOT_FOUND")
            kept.append(change)
            keyed.append((change.unet_digest, 0.0))
            continue
        if change.WhichOneof("kind") == "schedule_of":
            other = schedule_of(catalogue, change.schedule_of)
            if takes_other(schedule_of(catalogue, name), other):
                kept.append(change)
                keyed.append((f"schedule: {other.stepping}; {other.prediction}", 0.0))
            continue
        towards = catalogue.weights_digest(change.interpolation.model)
        if change.interpolation.share > 0 and (kept or towards != digest):
            kept.append(change)
            keyed.append((towards, change.interpolation.share))
    weights = changed_model_digest(digest, keyed)
    if not guarded or not described.guards:
        return RequestedModel(name, weights, tuple(kept))
    # Third parties' guards are code of their own.
    acting = guarded_digest(f"{weights} {registered_digest('unerase.guards')}", described.guards)
    return RequestedModel(name, weights, tuple(kept), acting)
