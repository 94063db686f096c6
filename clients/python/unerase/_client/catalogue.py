"""What the client does with models and concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unerase._client.connection import Connection
from unerase._registering import Registering, entry_of
from unerase._repeating import Attempts, new_id
from unerase._transfers import upload_of
from unerase.v1.models_pb2 import (
    CheckModelRequest,
    DeleteConceptRequest,
    DeleteModelRequest,
    GetConceptRequest,
    GetModelRequest,
    ImportStatusRequest,
    ListBackbonesRequest,
    ListConceptsRequest,
    ListModelsRequest,
    Model,
    ModelCheck,
    ModelFamily,
    ModelRegistration,
    NewModel,
    RegisterModelRequest,
)
from unerase.v1.models_pb2_grpc import ModelServiceStub
from unerase.v1.types_pb2 import Concept


class CatalogueCalls(Connection):
    """The calls of ModelService."""

    def models(self, *, filter: str = "", order_by: str = "", timeout: float | None = None) -> list[Model]:
        """Return the models, those registered by the caller's tenant included, in order of name.

        `filter` and `order_by` are those of ListModelsRequest, as in `labels.release = "2026-12"` and `name desc`.
        """
        request = ListModelsRequest(filter=filter, order_by=order_by)
        pages = self._pages(lambda: self._catalogue().ListModels, request, timeout)
        return [model for page in pages for model in page.models]

    def model(self, name: str, *, timeout: float | None = None) -> Model:
        """Return one model of the catalogue."""
        return self._ask(self._catalogue().GetModel, GetModelRequest(name=name), timeout)

    def check_model(self, name: str, *, timeout: float | None = None) -> ModelCheck:
        """Return what is wrong with a model, and what memory it needs, as far as that is known without computing."""
        return self._ask(self._catalogue().CheckModel, CheckModelRequest(name=name), timeout)

    def backbones(self, *, timeout: float | None = None) -> list[ModelFamily]:
        """Return the families of models, with what each evaluation does on them."""
        return list(self._ask(self._catalogue().ListBackbones, ListBackbonesRequest(), timeout).families)

    def concepts(self, *, timeout: float | None = None) -> list[Concept]:
        """Return the concepts of the catalogue, the custom ones included, in order of name."""
        pages = self._pages(lambda: self._catalogue().ListConcepts, ListConceptsRequest(), timeout)
        return [concept for page in pages for concept in page.concepts]

    def concept(self, name: str, *, timeout: float | None = None) -> Concept:
        """Return one concept, of the catalogue or custom."""
        return self._ask(self._catalogue().GetConcept, GetConceptRequest(name=name), timeout)

    def create_concept(
        self,
        concept: Concept,
        pictures: Sequence[bytes] = (),
        near_misses: Sequence[bytes] = (),
        *,
        tile: int = 0,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Concept:
        """Create a custom concept and return it with the digests of its pictures.

        Pictures are square files of PNG, JPEG or WebP, all of one size; with a `tile`, each is a sheet of square tiles
        with that side.
        The `request_id`, generated unless given, makes the call safe to repeat: the same id and content give the same
        concept.
        """
        request_id = new_id(request_id)
        create = self._catalogue().CreateConcept
        attempts = Attempts(self._settings, timeout, seconds=self._settings.transfer_timeout_seconds, creates=True)
        created = self._repeated(
            attempts,
            lambda limit: create(
                upload_of(concept, pictures, near_misses, tile, request_id), timeout=limit, metadata=self._metadata()
            ),
        )
        self._check_contract()
        return created

    def delete_concept(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a custom concept; audits of it keep what they hold."""
        self._ask(self._catalogue().DeleteConcept, DeleteConceptRequest(name=name), timeout, safe=False)

    def register_model(
        self,
        name: str,
        entry: Mapping[str, Any],
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        wait: bool = True,
        timeout: float | None = None,
    ) -> ModelRegistration:
        """Register a model and return its registration once it was checked: registered, or refused with the reason.

        `entry` has the keys of a catalogue's model (docs/operations.md). The `request_id`, generated unless given,
        makes the call safe to repeat: the same id and content give the same registration. Without `wait` it returns as
        soon as the request is accepted. A `timeout` ends the waiting, not the check.
        """
        model = NewModel(name=name, entry=entry_of(entry), labels=labels)
        waiting = Registering(name, self._settings, timeout)
        request = RegisterModelRequest(request_id=new_id(request_id), model=model)
        registration = self._ask(self._catalogue().RegisterModel, request, timeout, creates=True)
        self._check_contract()
        channel = self._open()
        while wait and not waiting.ended(registration):
            self._wait(waiting.delay(), channel)
            registration = self.import_status(name, timeout=waiting.asking())
        return registration

    def import_status(self, name: str, *, timeout: float | None = None) -> ModelRegistration:
        """Return how far a registration is."""
        return self._ask(self._catalogue().ImportStatus, ImportStatusRequest(name=name), timeout)

    def delete_model(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a registered model, or the record of a refused one; its files stay, and audits keep what they need."""
        self._ask(self._catalogue().DeleteModel, DeleteModelRequest(name=name), timeout, safe=False)

    def _catalogue(self) -> ModelServiceStub:
        return ModelServiceStub(self._open())
