"""Which model a request wants: one of the catalogue, or what changes make of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from unerase.internal.v1alpha1.generation_pb2 import ModelChange
from unerase_backend.catalogue import Catalogue
from unerase_backend.generation.canonical import changed_model_digest
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import NotFoundError


@dataclass(frozen=True)
class RequestedModel:
    """A model by what it is made of, and by the one digest that tells models apart."""

    name: str
    """Catalogue name of the model that is changed."""
    digest: str
    changes: tuple[ModelChange, ...] = ()

    @property
    def derived(self) -> bool:
        """Whether it is none of the catalogue."""
        return bool(self.changes)


def requested_model(
    catalogue: Catalogue, store: ArtifactStore, name: str, changes: Sequence[ModelChange] = ()
) -> RequestedModel:
    """Return the model `name` with the changes that make a difference.

    Going no way towards another model, or towards the very same one, is none: what follows from it is shared.

    Raises:
        NotFoundError: there is no such model or artefact.
        UnsafeModelError: a model's folder lacks a part or leads out of itself.
        UnavailableError: the hub does not give a model.
    """
    digest = catalogue.describe_model(name).digest
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
        towards = catalogue.describe_model(change.interpolation.model).digest
        if change.interpolation.share > 0 and (kept or towards != digest):
            kept.append(change)
            keyed.append((towards, change.interpolation.share))
    return RequestedModel(name, changed_model_digest(digest, keyed), tuple(kept))
