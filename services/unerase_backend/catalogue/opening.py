"""Opens the catalogue of a process: its files, and the models that are registered from the places that are allowed."""

from pathlib import Path

from unerase_backend.catalogue.allowed_places import AllowedPlaces, Remote
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.registered import RegisteredModels
from unerase_backend.catalogue.remote_files import RemoteFiles
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.settings import RoomSettings


def allowed_places(settings: RoomSettings, remote: Remote | None = None) -> AllowedPlaces:
    """Return the places that the settings of a process allow; `remote` fetches, or only looks."""
    return AllowedPlaces(settings.model_roots, settings.model_organisations, remote)


def copies(settings: RoomSettings, *, weights: bool = True) -> RemoteFiles | None:
    """Return what fetches from URLs of the allowed places; None if the settings name no folder for copies."""
    return RemoteFiles(Path(settings.model_copies), weights=weights) if settings.model_copies else None


def open_catalogue(settings: RoomSettings, store: ArtifactStore, *, weights: bool = True) -> Catalogue:
    """Return the catalogue of a process, which reads definitions of registered models from `store`.

    A process that loads no weights fetches none (`weights`).

    Raises:
        InvalidRequestError: a catalogue file holds a bad field.
    """
    registered = RegisteredModels(store, allowed_places(settings, copies(settings, weights=weights)))
    return Catalogue.load(settings.catalogues, digest_folder=settings.digests, registered=registered)
