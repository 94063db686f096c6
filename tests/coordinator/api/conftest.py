"""ModelService on the coordinator's own server and a real socket, and what is uploaded to it."""

import io
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from PIL import Image

from support.backend import own_evaluations
from support.registering import nothing_registered
from unerase import AsyncClient, ClientSettings, RetryConfig, UneraseError
from unerase._errors import error_of
from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase.v1.models_pb2 import CreateConceptRequest, ModelCheck, ModelProblem, NewConcept, PictureChunk
from unerase.v1.models_pb2_grpc import add_ModelServiceServicer_to_server
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, Concept, EvaluationDescription, JudgeLabels
from unerase_backend.catalogue import Catalogue
from unerase_backend.coordinator.api.interceptor import Interceptor
from unerase_backend.coordinator.api.model_service import ModelServicer
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.coordinator.storage.database import Database
from unerase_backend.coordinator.storage.engine import create_engine
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError

from .guarded import authority, guarded, strangers  # noqa: F401 - fixtures

SIDE = 32


INVALID = grpc.StatusCode.INVALID_ARGUMENT


def picture(seed: int, side: int = SIDE, mode: str = "RGB", **options: object) -> bytes:
    """PNG of noise: no two seeds give the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(png, format="PNG", **options)
    return png.getvalue()


def described(name: str = "", **fields: object) -> Concept:
    labels = [JudgeLabels(judge=judge, labels=["hourglass"]) for judge in ("clip", "first", "second")]
    return Concept(
        **{
            "name": name or f"mine/{uuid.uuid4().hex[:8]}",
            "kind": CONCEPT_KIND_OBJECT,
            "names": ["hourglass", "egg timer"],
            "prompts": ["a {concept}"],
            "labels": labels,
            **fields,
        }
    )


@dataclass
class Judges:
    """Judges that know one label each, and count how often they are asked."""

    asked: int = 0

    async def classify(self, pictures: np.ndarray, questions: Sequence[Question]) -> list[PictureJudgements]:
        self.asked += 1
        unknown = [
            FieldViolation(f"questions[{index}].labels[{place}]", f"the judge has no label {label!r}")
            for index, question in enumerate(questions)
            for place, label in enumerate(question.labels)
            if label == "no such"
        ]
        # As real ones do: a CLIP judge weighs its labels against others, a classifier has its own.
        unknown += [
            FieldViolation(f"questions[{index}].alternatives", "are a CLIP judge's, and needed there")
            for index, question in enumerate(questions)
            if (question.judge == "clip") != bool(question.alternatives)
        ]
        if unknown:
            raise InvalidRequestError.of(*unknown)
        return [PictureJudgements()] * len(pictures)


@dataclass
class Models:
    """Checks that find a problem with the models named in `broken`, and count how often they are made."""

    broken: set[str] = field(default_factory=set)
    made: int = 0

    def check(self, name: str) -> ModelCheck:
        self.made += 1
        problems = [ModelProblem(part="unet", reason="WEIGHTS_MISSING", description="unet is missing")]
        return ModelCheck(name=name, problems=problems if name in self.broken else [])


async def descriptions() -> Mapping[str, EvaluationDescription]:
    return {name: evaluation.description for name, evaluation in own_evaluations().items()}


@dataclass
class Service:
    """The server with what is behind it."""

    address: str
    database: Database
    judges: Judges
    models: Models


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue, store: ArtifactStore
) -> AsyncIterator[Service]:
    database = Database(create_engine(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('concepts') / 'audits.sqlite'}"))
    await database.migrate()
    judges, models = Judges(), Models()
    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(None))])
    registered = nothing_registered(catalogue, store, database)
    servicer = ModelServicer(catalogue, store, database, judges.classify, models.check, registered, descriptions)
    add_ModelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Service(f"127.0.0.1:{port}", database, judges, models)
    await server.stop(None)
    await database.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    # Refusals are looked at, and not waited out.
    async with AsyncClient(service.address, settings=ClientSettings(retry=RetryConfig(max_attempts=1))) as client:
        yield client


async def refused(call: object) -> UneraseError:
    with pytest.raises(UneraseError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def fields(error: UneraseError) -> dict[str, str]:
    return {violation.field: violation.description for violation in error.violations}


@pytest.fixture
def send(service: Service) -> Callable[..., object]:
    """Sends messages as they are, and returns the error."""

    async def raw(*messages: CreateConceptRequest | bytes) -> UneraseError:
        async with grpc.aio.insecure_channel(service.address) as channel:
            method = channel.stream_unary("/unerase.v1.ModelService/CreateConcept")
            content = [each if isinstance(each, bytes) else each.SerializeToString() for each in messages]
            with pytest.raises(grpc.RpcError) as caught:
                await method(iter(content), timeout=30)
            return error_of(caught.value)

    return raw


def begin(concept: Concept | None = None) -> CreateConceptRequest:
    return CreateConceptRequest(concept=NewConcept(request_id=uuid.uuid4().hex, concept=concept or described()))


def piece(content: bytes, **fields: object) -> CreateConceptRequest:
    return CreateConceptRequest(picture=PictureChunk(chunk=content, **fields))
