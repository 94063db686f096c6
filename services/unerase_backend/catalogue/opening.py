"""Opens the catalogue of a process: its files, and the models that are registered from the places that are allowed."""

from unerase_backend.catalogue.allowed_places import AllowedPlaces
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.registered import RegisteredModels
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.settings import RoomSettings


def allowed_places(settings: RoomSettings) -> AllowedPlaces:
    """Return the places that the settings of a process allow."""
    return AllowedPlaces(settings.model_roots, settings.model_organisations)


def open_catalogue(settings: RoomSettings, store: ArtifactStore) -> Catalogue:
    """Return the catalogue of a process, which reads definitions of registered models from `store`.

    Raises:
        InvalidRequestError: a catalogue file holds a bad field.
    """
    registered = RegisteredModels(store, allowed_places(settings))
    return Catalogue.load(settings.catalogues, digest_folder=settings.digests, registered=registered)
