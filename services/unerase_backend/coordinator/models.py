"""ModelService: the catalogue, read."""

# ruff: noqa: N802 - methods are named as the RPCs are

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc

from unerase.v1.models_pb2 import (
    GetModelRequest,
    ListConceptsRequest,
    ListConceptsResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
)
from unerase.v1.models_pb2_grpc import ModelServiceServicer
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.paging import cursor_of, page_size, token_of
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(ModelServiceServicer):
    """The catalogue of this backend; files are hashed and cut in threads, once."""

    def __init__(self, catalogue: Catalogue, store: ArtifactStore) -> None:
        self._catalogue = catalogue
        self._store = store

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """Return a page of models, in order of name."""
        names, token = _page(self._catalogue.models, request.page_size, request.page_token, "models")
        models = [await asyncio.to_thread(self._catalogue.describe_model, name) for name in names]
        return ListModelsResponse(models=models, next_page_token=token)

    async def GetModel(self, request: GetModelRequest, context: Context) -> Model:
        """Return one model."""
        if not request.name:
            raise InvalidRequestError.of(FieldViolation("name", "must name a model"))
        return await asyncio.to_thread(self._catalogue.describe_model, request.name)

    async def ListConcepts(self, request: ListConceptsRequest, context: Context) -> ListConceptsResponse:
        """Return a page of concepts, in order of name."""
        names, token = _page(self._catalogue.concepts, request.page_size, request.page_token, "concepts")
        concepts = [await asyncio.to_thread(self._catalogue.concept_message, name, self._store) for name in names]
        return ListConceptsResponse(concepts=concepts, next_page_token=token)


def _page(known: Iterable[str], asked: int, token: str, kind: str) -> tuple[list[str], str]:
    size = page_size(asked)
    after = cursor_of(token, kind, 1)[0] if token else ""
    names = sorted(name for name in known if name > after)
    return names[:size], token_of(kind, names[size - 1]) if len(names) > size else ""
