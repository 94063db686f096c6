"""ModelService: reads the catalogue, and creates and deletes custom concepts."""

# ruff: noqa: N802 - methods have the names of the RPCs

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from google.protobuf.empty_pb2 import Empty

from unerase.v1.models_pb2 import (
    CheckModelRequest,
    CreateConceptRequest,
    DeleteConceptRequest,
    DeleteModelRequest,
    GetConceptRequest,
    GetModelRequest,
    ImportStatusRequest,
    ListBackbonesRequest,
    ListBackbonesResponse,
    ListConceptsRequest,
    ListConceptsResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    ModelCheck,
    ModelRegistration,
    RegisterModelRequest,
)
from unerase.v1.models_pb2_grpc import ModelServiceServicer
from unerase.v1.types_pb2 import Concept, EvaluationDescription
from unerase_backend.catalogue import Catalogue, CustomConcept, check_concept
from unerase_backend.catalogue.custom import entry_of
from unerase_backend.catalogue.definitions import is_registered
from unerase_backend.catalogue.describing import described_by_entry
from unerase_backend.catalogue.listing import listed_model
from unerase_backend.catalogue.prompt_checks import text_reaches, unread_everywhere
from unerase_backend.catalogue.registered_names import ModelNames
from unerase_backend.coordinator.api.concept_upload import Pictures, Upload, decode_pictures, read_upload
from unerase_backend.coordinator.api.model_registration import ModelRegistrations
from unerase_backend.coordinator.api.paging import Page, cursor_of, kind_of, page_size
from unerase_backend.coordinator.api.upload_limits import Uploads
from unerase_backend.coordinator.fair_queue import THREADS, FairQueue
from unerase_backend.coordinator.filtering import MODEL_FIELDS, Order, holds, model_values, read_filter, read_order
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.evaluation.families import described_families
from unerase_backend.runtime.access import CALLER
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnsafeModelError,
)
from unerase_backend.runtime.handles import Classify

Context = grpc.aio.ServicerContext[Any, Any]

MAX_CONCEPTS = 1000
# At once in all, and for one tenant. A decoded picture takes up to 50 MB, and judges handle one request at a time.
_DECODING = (4, 1)
_JUDGING = (4, 1)
# Each is a process that takes half a gigabyte and some seconds.
_CHECKING = (1, 1)
# A page of a list ends after this long, well before a client's default deadline.
_PAGE_SECONDS = 10.0
_BATCH = 16


class ModelServicer(ModelServiceServicer):
    """Serves the catalogue and the custom concepts; files are hashed and cut in threads, once."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        database: Database,
        classify: Classify,
        check_model: Callable[[str], ModelCheck],
        registered: ModelRegistrations,
        descriptions: Callable[[], Awaitable[Mapping[str, EvaluationDescription]]],
        *,
        page_seconds: float = _PAGE_SECONDS,
    ) -> None:
        self._catalogue = catalogue
        self._check_model = check_model
        self._registered = registered
        self._descriptions = descriptions
        self._checked: dict[str, ModelCheck] = {}
        self._page_seconds = page_seconds
        self._store = store
        self._database = database
        self._classify = classify
        self._uploads = Uploads()
        self._decoding = FairQueue(*_DECODING)
        self._judging = FairQueue(*_JUDGING)
        self._checking = FairQueue(*_CHECKING)
        self._threads = FairQueue(*THREADS)

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """Return a page of models, the operator's and the caller's, in order of name: where the filter holds."""
        condition = read_filter(request.filter, MODEL_FIELDS)
        order = read_order(request.order_by, ("name",), Order("name"))
        entries = self._catalogue.models
        # By its entry, because describing a model hashes its files.
        known = [name for name in entries if holds(condition, model_values(described_by_entry(name, entries[name])))]
        known += await self._registered.names(condition)
        kind = kind_of("models", request.filter.strip(), request.order_by.strip())
        names, page = _page(known, request.page_size, request.page_token, kind, descending=order.descending)
        own = await self._registered.described(names)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._page_seconds
        for name in names:
            # Describing a model hashes its files, so a model that is not on this page is not described. A page of
            # models that nobody has hashed before ends early, so that its caller gets an answer in time.
            if not page.has_room() or (page.items and loop.time() > end and page.end()):
                break
            if name not in own and name not in self._catalogue.models:
                # It was deleted since its name was read.
                continue
            model = own[name] if name in own else await self._threads.run(listed_model, self._catalogue, name)
            if not page.add(model, name):
                break
        return ListModelsResponse(models=page.items, next_page_token=page.token)

    async def GetModel(self, request: GetModelRequest, context: Context) -> Model:
        """Return one model."""
        if not request.name:
            raise InvalidRequestError.of(FieldViolation("name", "must name a model"))
        own = await self._registered.described([request.name])
        if request.name in own:
            return own[request.name]
        if request.name not in self._catalogue.models:
            raise NotFoundError(
                f"there is no model {request.name[:100]!r}",
                reason="MODEL_NOT_FOUND",
                metadata={"model": request.name[:100]},
            )
        return await self._threads.run(listed_model, self._catalogue, request.name)

    async def CheckModel(self, request: CheckModelRequest, context: Context) -> ModelCheck:
        """Check one model, in a process of its own; what is right is remembered."""
        if not request.name:
            raise InvalidRequestError.of(FieldViolation("name", "must name a model"))
        name = await self._registered.internal_name(request.name)
        if name not in self._checked:
            found = await self._checking.run(self._check_model, name)
            if found.problems or is_registered(name):
                return ModelNames({name: request.name}).message(found)
            self._checked[name] = found
        return self._checked[name]

    async def RegisterModel(self, request: RegisterModelRequest, context: Context) -> ModelRegistration:
        """Begin to register a model, or return the registration that the same request began before."""
        return await self._registered.register(request)

    async def ImportStatus(self, request: ImportStatusRequest, context: Context) -> ModelRegistration:
        """Return how far a registration is."""
        return await self._registered.status(request.name)

    async def DeleteModel(self, request: DeleteModelRequest, context: Context) -> Empty:
        """Delete a registered model; audits keep what they need of it."""
        await self._registered.delete(request.name)
        return Empty()

    async def ListBackbones(self, request: ListBackbonesRequest, context: Context) -> ListBackbonesResponse:
        """List the families of models, with what each evaluation does on them."""
        descriptions = await self._descriptions()
        # The first call imports the backbones of third parties.
        families = await self._threads.run(described_families, descriptions.values())
        return ListBackbonesResponse(families=families)

    async def ListConcepts(self, request: ListConceptsRequest, context: Context) -> ListConceptsResponse:
        """Return a page of concepts, in order of name."""
        tenant = CALLER.get().tenant
        known = {*self._catalogue.concepts, *await self._database.concepts.names(tenant)}
        names, page = _page(known, request.page_size, request.page_token, "concepts")
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            catalogue = self._catalogue.extended(await self._database.concepts.named(batch, tenant))
            # A custom concept may have been deleted since its name was read.
            there = [name for name in batch if name in catalogue.concepts]
            for name in there:
                if not page.add(await self._threads.run(catalogue.concept_message, name, self._store), name):
                    break
            if page.full:
                break
        return ListConceptsResponse(concepts=page.items, next_page_token=page.token)

    async def GetConcept(self, request: GetConceptRequest, context: Context) -> Concept:
        """Return one concept."""
        if not request.name:
            raise InvalidRequestError.of(FieldViolation("name", "must name a concept"))
        catalogue = self._catalogue.extended(await self._database.concepts.named([request.name], CALLER.get().tenant))
        return await self._threads.run(catalogue.concept_message, request.name, self._store)

    async def CreateConcept(self, requests: AsyncIterator[CreateConceptRequest], context: Context) -> Concept:
        """Create a custom concept, or return the concept that the same request created before."""
        upload, pictures = await self._uploaded(requests)
        description = upload.concept.SerializeToString(deterministic=True)
        digest = hashlib.sha256(hashlib.sha256(description).digest() + pictures.digest().encode()).hexdigest()
        existing = await self._repeated(upload.request_id, digest)
        if existing is not None:
            return existing
        await self._check_labels(upload.concept, pictures.side)
        tenant = CALLER.get().tenant
        if await self._database.concepts.count(tenant) >= MAX_CONCEPTS:
            raise ExhaustedError(
                f"there are {MAX_CONCEPTS} custom concepts already, the most that are allowed; delete some",
                reason="CONCEPTS_FULL",
            )
        custom = await self._threads.run(self._stored, upload.concept, pictures)
        if not await self._database.concepts.insert(custom, upload.request_id, digest, tenant):
            # A concurrent call with the same request id was first, or the name is taken.
            existing = await self._repeated(upload.request_id, digest)
            if existing is None:
                raise AlreadyExistsError(
                    f"there is a custom concept {custom.concept.name!r} already; delete it, or choose another name",
                    reason="CONCEPT_EXISTS",
                    metadata={"concept": custom.concept.name},
                )
            return existing
        return self._message(custom)

    async def DeleteConcept(self, request: DeleteConceptRequest, context: Context) -> Empty:
        """Delete a custom concept; audits of it keep their own copy of it and its pictures."""
        if not request.name:
            raise InvalidRequestError.of(FieldViolation("name", "must name a concept"))
        if not await self._database.concepts.delete(request.name, CALLER.get().tenant):
            if request.name in self._catalogue.concepts:
                raise PreconditionError(
                    "the concept is in the operator's catalogue and cannot be deleted here",
                    reason="CONCEPT_NOT_CUSTOM",
                    metadata={"concept": request.name},
                )
            raise NotFoundError(
                "there is no custom concept with this name",
                reason="CONCEPT_NOT_FOUND",
                metadata={"concept": request.name},
            )
        return Empty()

    async def _uploaded(self, requests: AsyncIterator[CreateConceptRequest]) -> tuple[Upload, Pictures]:
        """Read and decode an upload."""
        async with self._uploads.arriving() as arriving:
            upload = await read_upload(requests, self._check, arriving.came)
            arriving.read()
            return upload, await self._decoding.run(decode_pictures, upload.pictures)

    async def _check(self, concept: Concept) -> None:
        catalogue = self._catalogue
        await self._threads.run(check_concept, concept, catalogue.models, catalogue.judges, catalogue.concepts)
        await self._threads.run(self._check_prompts, concept)

    def _check_prompts(self, concept: Concept) -> None:
        """Refuse prompts whose name no model here would read; what only some models read is the audits' to refuse."""
        catalogue = self._catalogue
        # A model of the hub may not be here yet, and a broken one is no reason against a concept.
        whole = [name for name, model in catalogue.models.items() if model.pipeline is not None]
        reaches = {}
        for name in whole:
            with suppress(UnsafeModelError):
                reaches[name] = text_reaches(catalogue, name)
        unread = unread_everywhere(entry_of(concept), reaches)
        if unread:
            raise InvalidRequestError.of(
                *(FieldViolation(f"concept.{key}[{index}]", each) for (key, index), each in unread.items()),
            )

    async def _check_labels(self, concept: Concept, side: int) -> None:
        """Ask each judge about the concept once, because a label that a judge does not know would fail every audit."""
        catalogue = self._catalogue.extended([CustomConcept(concept, side)])
        questions = [catalogue.question(concept.name, labels.judge) for labels in concept.labels]
        if not questions:
            return
        side = side or next(model.resolution for model in self._catalogue.models.values())
        try:
            async with self._judging.turn():
                await self._classify(np.zeros((1, side, side, 3), np.uint8), questions)
        except InvalidRequestError as error:
            raise InvalidRequestError.of(
                *(
                    FieldViolation(each.field.replace("questions", "concept.labels", 1), each.description)
                    for each in error.violations
                )
            ) from None

    def _stored(self, concept: Concept, pictures: Pictures) -> CustomConcept:
        """Put the pictures into the store, and return the concept with their digests."""
        whole = Concept()
        whole.CopyFrom(concept)
        whole.custom = True
        whole.picture_digests.extend(map(self._store.put, pictures.concept))
        whole.near_miss_digests.extend(map(self._store.put, pictures.near_misses))
        return CustomConcept(whole, pictures.side)

    def _message(self, custom: CustomConcept) -> Concept:
        return self._catalogue.extended([custom]).concept_message(custom.concept.name, self._store)

    async def _repeated(self, request_id: str, digest: str) -> Concept | None:
        found = await self._database.concepts.by_request(request_id, CALLER.get().tenant)
        if found is None:
            return None
        custom, known = found
        if known != digest:
            raise AlreadyExistsError(
                "another concept used this request_id; choose a new one for a new concept",
                reason="REQUEST_ID_REUSED",
                metadata={"concept": custom.concept.name},
            )
        return self._message(custom)


def _page(
    known: Iterable[str], asked: int, token: str, kind: str, *, descending: bool = False
) -> tuple[list[str], Page]:
    """Return the names for the page, one more than it may hold, and the empty page."""
    size = page_size(asked)
    names = sorted(known, reverse=descending)
    if token:
        (last,) = cursor_of(token, kind, 1)
        names = [name for name in names if (name < last if descending else name > last)]
    return names[: size + 1], Page(kind, size)
