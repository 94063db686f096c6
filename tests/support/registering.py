"""A coordinator's ModelService with everything that registers models, and no rooms behind it."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from unerase._errors import UneraseError, error_of
from unerase.v1.models_pb2 import (
    REGISTRATION_STATE_CHECKING,
    REGISTRATION_STATE_REFUSED,
    REGISTRATION_STATE_REGISTERED,
    DeleteModelRequest,
    ImportStatusRequest,
    ModelRegistration,
    NewModel,
    RegisterModelRequest,
)
from unerase.v1.models_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from unerase_backend.catalogue import Catalogue
from unerase_backend.catalogue.opening import open_catalogue
from unerase_backend.checking import registration
from unerase_backend.checking.models import check_model
from unerase_backend.checking.process import Registrable
from unerase_backend.coordinator.api.interceptor import Interceptor
from unerase_backend.coordinator.api.model_registration import ModelRegistrations
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.execution.registrations import Examine, Registrations
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.leases import Leases
from unerase_backend.runtime.access import Gate, Quota
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UnavailableError
from unerase_backend.runtime.errors import UneraseError as DomainError
from unerase_backend.runtime.settings import RoomSettings

CHECKING, REGISTERED, REFUSED = (
    REGISTRATION_STATE_CHECKING,
    REGISTRATION_STATE_REGISTERED,
    REGISTRATION_STATE_REFUSED,
)


async def examine_here(settings: RoomSettings, name: str, entry: Mapping[str, Any]) -> Registrable:
    """What `register_in_process` returns, by the same code without a process: it need not import torch anew."""
    try:
        check, definition = await asyncio.to_thread(registration.examine, settings, name, entry)
    except UnavailableError:
        raise
    except DomainError as error:
        return Registrable(reason=error.reason, message=error.message)
    if definition is not None:
        return Registrable(check=check, content=definition.to_bytes())
    return Registrable(check=check, reason=check.problems[0].reason, message=check.problems[0].description)


def whole(folder: Path, **more: Any) -> dict[str, Any]:
    """The entry of the pipeline in `plain`."""
    return {"pipeline": str(folder / "plain"), "resolution": 32, "steps": 12, **more}


def struct(entry: Mapping[str, Any]) -> Struct:
    """An entry as a message holds it."""
    return json_format.ParseDict(dict(entry), Struct())


@dataclass
class Registrar:
    """A client of one coordinator, by its stub alone."""

    stub: ModelServiceStub
    database: Database
    store: ArtifactStore
    registrations: Registrations
    settings: RoomSettings
    token: str = ""

    async def call(self, method: str, request: Any) -> Any:
        """Call a method; an error is raised as the client's."""
        metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        try:
            return await getattr(self.stub, method)(request, timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            raise error_of(error) from None

    async def begin(
        self, name: str, entry: Mapping[str, Any], *, request_id: str = "", labels: Mapping[str, str] | None = None
    ) -> ModelRegistration:
        """Begin a registration."""
        new = NewModel(name=name, entry=struct(entry), labels=labels or {})
        request = RegisterModelRequest(request_id=request_id or uuid.uuid4().hex, model=new)
        return await self.call("RegisterModel", request)

    async def ended(self, name: str) -> ModelRegistration:
        """Wait for a registration to end."""
        await self.registrations.idle()
        found: ModelRegistration = await self.call("ImportStatus", ImportStatusRequest(name=name))
        return found

    async def register(self, name: str, entry: Mapping[str, Any], **options: Any) -> ModelRegistration:
        """Register a model, and wait for the end."""
        await self.begin(name, entry, **options)
        return await self.ended(name)

    async def delete(self, name: str) -> None:
        """Delete a model."""
        await self.call("DeleteModel", DeleteModelRequest(name=name))


@asynccontextmanager
async def registrar(
    settings: RoomSettings,
    database: Database,
    *,
    examine: Examine | None = None,
    gate: Gate | None = None,
    quota: Quota = Quota(),  # noqa: B008 - frozen
    home: str = "home",
    lease_seconds: float = 15.0,
    retry_seconds: float = 600.0,
    at_once: int = 1,
) -> AsyncIterator[Registrar]:
    """A coordinator's ModelService on a socket; it registers and checks models, and serves nothing else."""
    store = ArtifactStore(settings.artifacts)
    catalogue, metrics = open_catalogue(settings, store, weights=False), Metrics()
    leases = Leases(database.engine, home, lease_seconds)
    await leases.begin()
    registrations = Registrations(
        database,
        store,
        metrics,
        examine or partial(examine_here, settings),
        checker=leases.id,
        retry_seconds=retry_seconds,
        at_once=at_once,
        again_seconds=0.0,
    )
    registered = ModelRegistrations(catalogue, store, database, registrations, settings, lambda _: quota)
    none: Any = None
    servicer = ModelServicer(
        catalogue, store, database, none, partial(check_model, open_catalogue(settings, store)), registered, none
    )
    server = grpc.aio.server(interceptors=[Interceptor(metrics, gate or Gate(None))])
    add_ModelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Registrar(ModelServiceStub(channel), database, store, registrations, settings)
    finally:
        await registrations.close()
        await server.stop(None)
        await leases.end()


def nothing_registered(catalogue: Catalogue, store: ArtifactStore, database: Database) -> ModelRegistrations:
    """What a ModelService needs where no place is allowed."""
    none: Any = None
    return ModelRegistrations(catalogue, store, database, none, RoomSettings(artifacts="none"), lambda _: Quota())


async def refused(call: Awaitable[object]) -> UneraseError:
    """The error of a call."""
    with pytest.raises(UneraseError) as caught:
        await call
    return caught.value


def settings_of(folder: Path, **given: Any) -> RoomSettings:
    """Settings with a store of their own, that allow the folder `models` in `folder`."""
    (folder / "models").mkdir(exist_ok=True)
    given.setdefault("model_roots", (str(folder / "models"),))
    return RoomSettings(artifacts=str(folder / "artifacts"), digests=str(folder / "digests"), **given)
