"""A target and a scorer, used by PyRIT itself on a small server of the internal contracts: `make integrations`.

`test_real_backend.py` uses both on a backend.
"""

# Methods have the names of the RPCs.
# ruff: noqa: N802

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from support.report_by_hand import png
from unerase import UneraseError
from unerase.internal.v1alpha1 import classification_pb2_grpc, generation_pb2_grpc
from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest, GenerateResponse
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.v1 import models_pb2_grpc
from unerase.v1.models_pb2 import Model
from unerase.v1.types_pb2 import Concept, JudgeLabels, Judgement, SampleStatus

pytestmark = pytest.mark.integrations
pytest.importorskip("pyrit")

from pyrit.memory import CentralMemory  # noqa: E402
from pyrit.models import Message, MessagePiece  # noqa: E402
from pyrit.setup import IN_MEMORY, initialize_pyrit_async  # noqa: E402

from unerase.integrations.pyrit import GenerationTarget, JudgeScorer, UnscoredError  # noqa: E402

PICTURE = png(32, 200)


class Rooms(
    generation_pb2_grpc.GenerationServiceServicer,
    classification_pb2_grpc.ClassificationServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
):
    """A backend's answers, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []
        self.classified: list[ClassifyRequest] = []
        self.sample = Sample(status=SampleStatus.SAMPLE_STATUS_SCORED, picture_digest="ab" * 32)
        self.picture = PICTURE
        self.judged = PictureJudgements(
            status=SampleStatus.SAMPLE_STATUS_SCORED,
            judgements=[Judgement(judge="testbed/judge", score=0.75, detected=True, label="hourglass")],
        )
        self.refused = False

    def Generate(self, request, context):
        self.asked.append(request)
        if self.refused:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token has no scope generation")
        yield GenerateResponse(sample=self.sample, picture=self.picture)

    def Classify(self, request, context):
        self.classified.append(request)
        return ClassifyResponse(pictures=[self.judged])

    def GetModel(self, request, context):
        return Model(name=request.name, steps=50, guidance_scale=3.0)

    def GetConcept(self, request, context):
        return Concept(name=request.name, labels=[JudgeLabels(judge="testbed/judge", labels=["hourglass"])])


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
def address(rooms: Rooms) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(rooms, server)
    classification_pb2_grpc.add_ClassificationServiceServicer_to_server(rooms, server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(rooms, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module", autouse=True)
async def memory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """PyRIT's memory, whose files are these tests' own; there is one in a process."""
    await initialize_pyrit_async(memory_db_type=IN_MEMORY)
    CentralMemory.get_memory_instance().results_path = str(tmp_path_factory.mktemp("pyrit"))


def asks(prompt: str) -> Message:
    return Message(message_pieces=[MessagePiece(role="user", original_value=prompt)])


def content(piece: MessagePiece) -> bytes:
    return Path(piece.converted_value).read_bytes()


async def test_a_prompt_becomes_a_picture(rooms: Rooms, address: str) -> None:
    target = GenerationTarget(model="testbed/uce", address=address, seed=7)
    for seed in (7, 8):
        (response,) = await target.send_prompt_async(message=asks("a picture of a hourglass"))
        (piece,) = response.message_pieces
        assert piece.converted_value_data_type == "image_path"
        assert content(piece) == PICTURE
        assert piece.prompt_metadata["latent_seed"] == str(seed)
        request = rooms.asked[-1]
        (trajectory,) = request.trajectories
        assert (trajectory.conditioning.text, trajectory.latent_seed) == ("a picture of a hourglass", seed)
        # The model's own.
        assert (trajectory.steps, trajectory.guidance_scale) == (50, 3.0)
        assert request.picture_bytes
        assert request.guarded


async def test_what_a_guard_keeps_back_is_blocked(rooms: Rooms, address: str) -> None:
    rooms.sample = Sample(status=SampleStatus.SAMPLE_STATUS_WITHHELD, reason="the prompt filter refused it")
    rooms.picture = b""
    target = GenerationTarget(model="testbed/uce", address=address)
    (response,) = await target.send_prompt_async(message=asks("a picture"))
    assert response.message_pieces[0].is_blocked()
    assert response.message_pieces[0].converted_value == "the prompt filter refused it"


async def test_no_picture_raises(rooms: Rooms, address: str) -> None:
    target = GenerationTarget(model="testbed/uce", address=address)
    rooms.sample = Sample(status=SampleStatus.SAMPLE_STATUS_UNSCORED, reason="latents are not finite")
    with pytest.raises(UnscoredError, match="latents are not finite"):
        await target.send_prompt_async(message=asks("a picture"))
    rooms.refused = True
    with pytest.raises(UneraseError, match="no scope generation"):
        await target.send_prompt_async(message=asks("a picture"))


async def answered(address: str) -> Message:
    target = GenerationTarget(model="testbed/uce", address=address)
    (response,) = await target.send_prompt_async(message=asks("a picture"))
    return response


@pytest.mark.parametrize("detected", [True, False])
async def test_a_judges_answer_is_a_score(rooms: Rooms, address: str, detected: bool) -> None:
    rooms.judged.judgements[0].detected = detected
    scorer = JudgeScorer(concept="hourglass", judge="testbed/judge", address=address)
    (score,) = await scorer.score_async(await answered(address))
    assert score.get_value() is detected
    request = rooms.classified[-1]
    assert list(request.pictures) == [PICTURE]
    assert list(request.questions[0].labels) == ["hourglass"]


async def test_an_unscored_picture_raises(rooms: Rooms, address: str) -> None:
    rooms.judged = PictureJudgements(status=SampleStatus.SAMPLE_STATUS_UNSCORED, reason="it is no PNG")
    scorer = JudgeScorer(concept="hourglass", judge="testbed/judge", address=address)
    response = await answered(address)
    # PyRIT wraps what a scorer raises.
    with pytest.raises(RuntimeError, match="could not score the picture: it is no PNG") as caught:
        await scorer.score_async(response)
    causes = [caught.value, caught.value.__cause__]
    assert any(isinstance(each, UnscoredError) for each in causes)


async def test_a_judge_without_labels_is_named(rooms: Rooms, address: str) -> None:
    scorer = JudgeScorer(concept="hourglass", judge="other/judge", address=address)
    with pytest.raises(RuntimeError, match="hourglass has no labels for other/judge"):
        await scorer.score_async(await answered(address))
