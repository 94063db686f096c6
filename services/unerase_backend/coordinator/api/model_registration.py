"""What callers do with registered models: register, follow, delete, and find them beside the operator's."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unerase.v1.models_pb2 import Model, ModelRegistration, NewModel, RegisterModelRequest
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.definitions import is_registered, name_of
from unerase_backend.catalogue.opening import allowed_places
from unerase_backend.catalogue.registering import FIELD, MAX_BYTES, read_candidate
from unerase_backend.catalogue.remote_files import RemoteNames
from unerase_backend.coordinator.api.request_ids import check_request_id
from unerase_backend.coordinator.execution.registrations import Registrations, read_struct
from unerase_backend.coordinator.fair_queue import THREADS, FairQueue
from unerase_backend.coordinator.filtering import EVERYTHING, Condition, holds, model_values
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.models import Registration
from unerase_backend.runtime.access import CALLER, Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import (
    AlreadyExistsError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from unerase_backend.runtime.labels import check_labels
from unerase_backend.runtime.settings import RoomSettings


class ModelRegistrations:
    """The registered models of all tenants; each caller sees those of its tenant."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        database: Database,
        registrations: Registrations,
        settings: RoomSettings,
        quota: Callable[[str], Quota],
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._registry = database.models
        self._registrations = registrations
        self._settings = settings
        self._quota = quota
        self._threads = FairQueue(*THREADS)

    async def register(self, request: RegisterModelRequest) -> ModelRegistration:
        """Begin a registration, or return the one that the same request began before."""
        check_request_id(request.request_id)
        new, tenant = request.model, CALLER.get().tenant
        digest = hashlib.sha256(new.SerializeToString(deterministic=True)).hexdigest()
        existing = await self._repeated(request.request_id, digest)
        if existing is not None:
            return existing
        check_labels(new.labels, "model.labels")
        if (size := new.entry.ByteSize()) > MAX_BYTES:
            raise InvalidRequestError.of(FieldViolation(FIELD, f"must be at most {MAX_BYTES} bytes, not {size}"))
        base = await self._check_entry(new, tenant)
        most = self._quota(tenant).models
        if not await self._registry.insert(new, request.request_id, digest, tenant=tenant, base=base, most=most):
            # A concurrent call with the same request id was first, or the name is taken.
            existing = await self._repeated(request.request_id, digest)
            if existing is None:
                raise AlreadyExistsError(
                    f"there is a registered model {new.name!r} already; delete it, or choose another name",
                    reason="MODEL_EXISTS",
                    metadata={"model": new.name},
                )
            return existing
        self._registrations.begin()
        return (await self._find(new.name)).message

    async def status(self, name: str) -> ModelRegistration:
        """Return how far a registration is."""
        return (await self._find(name)).message

    async def delete(self, name: str) -> None:
        """Delete a model, or the record of its registration; audits that name it keep its definition."""
        _check_named(name)
        if not await self._registry.delete(name, CALLER.get().tenant):
            raise self._not_found(name)

    async def names(self, condition: Condition) -> set[str]:
        """Return the names of the caller's models for which a condition holds and which the operator's do not have."""
        tenant, taken = CALLER.get().tenant, {*self._catalogue.models}
        if condition == EVERYTHING:
            return {*await self._registry.names(tenant)} - taken
        models = await self._registry.models(tenant)
        return {each.name for each in models if holds(condition, model_values(each))} - taken

    async def described(self, names: Iterable[str]) -> dict[str, Model]:
        """Return those of the named models that are registered, as they were when they were registered."""
        asked = [name for name in names if name not in self._catalogue.models]
        found = await self._registry.named(asked, CALLER.get().tenant) if asked else []
        return {each.message.name: each.message.model for each in found}

    async def internal_name(self, name: str) -> str:
        """Return the name by which the backend knows a model of the caller; a model of the catalogue keeps its own.

        Raises:
            NotFoundError: there is no such model.
        """
        if name in self._catalogue.models:
            return name
        found = await self._registry.definitions([name], CALLER.get().tenant)
        for each in found:
            # The store may have lost it.
            await self._threads.run(self._store.put, each.content)
        internal = [name_of(each.content) for each in found if each.called == name]
        if not internal:
            raise self._not_found(name)
        return internal[0]

    async def _check_entry(self, new: NewModel, tenant: str) -> str:
        """Check what an entry says; return its base if that is a registered model, else an empty text."""
        try:
            entry = read_struct(new.entry)
        except ValueError as error:
            raise InvalidRequestError.of(FieldViolation(FIELD, str(error))) from None
        base = entry.get("base")
        registered = ""
        if isinstance(base, str) and base not in self._catalogue.models and await self._registry.named([base], tenant):
            registered, entry["base"] = base, await self.internal_name(base)
        elif isinstance(base, str) and is_registered(base):
            # What rooms call a model is no name of a tenant's.
            raise InvalidRequestError.of(FieldViolation(f"{FIELD}.base", f"there is no model {base!r}"))
        await self._threads.run(self._read, new.name, entry)
        return registered

    def _read(self, name: str, entry: Mapping[str, Any]) -> None:
        """Check an entry without fetching anything."""
        with TemporaryDirectory() as stubs:
            remote = RemoteNames(Path(stubs)) if self._settings.model_copies else None
            read_candidate(name, entry, self._catalogue, allowed_places(self._settings, remote))

    async def _repeated(self, request_id: str, digest: str) -> ModelRegistration | None:
        found = await self._registry.by_request(request_id, CALLER.get().tenant)
        if found is None:
            return None
        if found.request_digest != digest:
            raise AlreadyExistsError(
                "another model used this request_id; choose a new one for a new model",
                reason="REQUEST_ID_REUSED",
                metadata={"model": found.message.name},
            )
        return found.message

    async def _find(self, name: str) -> Registration:
        _check_named(name)
        found = await self._registry.get(name, CALLER.get().tenant)
        if found is None:
            raise self._not_found(name)
        return found

    def _not_found(self, name: str) -> NotFoundError | PreconditionError:
        if name in self._catalogue.models:
            message = "the model is in the operator's catalogue, and is neither registered nor deleted here"
            return PreconditionError(message, reason="MODEL_NOT_REGISTERED", metadata={"model": name})
        message = f"there is no registered model {name[:100]!r}"
        return NotFoundError(message, reason="MODEL_NOT_FOUND", metadata={"model": name[:100]})


def _check_named(name: str) -> None:
    if not name:
        raise InvalidRequestError.of(FieldViolation("name", "must name a model"))
