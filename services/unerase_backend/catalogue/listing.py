"""Models as lists show them: one that cannot be described is marked with the reason, and the others are listed."""

from unerase.v1.models_pb2 import Model
from unerase_backend.catalogue.catalogue import Catalogue
from unerase_backend.catalogue.definitions import is_registered
from unerase_backend.catalogue.describing import described_by_entry
from unerase_backend.catalogue.model_check import check_model
from unerase_backend.runtime.errors import PreconditionError, UnavailableError, UnsafeModelError


def loadable_model(catalogue: Catalogue, name: str) -> Model:
    """Return a model as `Catalogue.describe_model` does, if the headers of its files say that it can be loaded.

    A model that can be is looked at once; the files of a registered one are compared with its definition each time.

    Raises:
        NotFoundError: there is no such model.
        PreconditionError: this kind of model cannot be sampled here.
        UnsafeModelError: something is wrong with its files.
        UnavailableError: it cannot be fetched from the hub.
    """
    chain = catalogue.chain(name)
    for each in chain:
        catalogue.verify(each)
    # Registered models were checked before they existed.
    if (own := next((each for each in chain if not is_registered(each)), None)) is not None:
        catalogue.remembered("loadable", own, lambda: check_model(catalogue, own, fetch=True).raise_any())
    return catalogue.describe_model(name)


def listed_model(catalogue: Catalogue, name: str) -> Model:
    """Return a model as `loadable_model` does, or without digests and with why it cannot be loaded.

    Raises:
        NotFoundError: there is no such model.
    """
    try:
        return loadable_model(catalogue, name)
    except (PreconditionError, UnavailableError, UnsafeModelError) as error:
        described = described_by_entry(name, catalogue.model(name))
        described.problem = error.message
        return described
