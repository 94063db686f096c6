"""The engine: digests and arrays, what is unscored, what is refused."""

import asyncio
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray import serve
from safetensors.torch import load_file, save_file

from support.backend import LocalBackend
from unerase.internal.v1alpha1 import classification_pb2
from unerase.internal.v1alpha1.classification_pb2 import (
    ClassifyRequest,
    DescribeClassificationRequest,
    PictureJudgements,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Question, View
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Judgement
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.deployment import Classification, build
from unerase_backend.classification.engine import MAX_PICTURES, MAX_SENT, ClassificationEngine
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.evaluation.questions import MAX_QUESTIONS
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import InvalidRequestError, NotFoundError
from unerase_backend.runtime.pictures import encode_picture
from unerase_backend.testbed import world

NOWHERE = "0" * 64
QUESTIONS = [
    Question(judge="clip", labels=["a picture of a hourglass"], alternatives=["a picture of a heart"]),
    Question(judge="resnet", labels=["chainsaw"]),
    Question(judge="convnext", labels=["hourglass"]),
    Question(judge="convnext", labels=["heart"]),
]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


async def judged(engine: ClassificationEngine, digests: list[str]) -> list[PictureJudgements]:
    return list((await engine.Classify(ClassifyRequest(picture_digests=digests, questions=QUESTIONS))).pictures)


async def test_digests_and_arrays_are_judged_alike(
    engine: ClassificationEngine, store: ArtifactStore, pictures: np.ndarray
) -> None:
    by_digest = await judged(engine, [store.put(encode_picture(picture)) for picture in pictures])
    handed_over = await engine.Classify(ClassifyRequest(questions=QUESTIONS), pictures)
    assert by_digest == list(handed_over.pictures)
    assert all(answer.status == SAMPLE_STATUS_SCORED for answer in by_digest)
    assert [j.judge for j in by_digest[0].judgements] == ["clip", "resnet", "convnext", "convnext"]


async def test_pictures_that_are_sent_are_judged_like_stored_ones(
    engine: ClassificationEngine, store: ArtifactStore, pictures: np.ndarray
) -> None:
    files = [encode_picture(picture) for picture in pictures]
    sent = await engine.Classify(ClassifyRequest(pictures=[files[0], b"GIF89a", *files[1:]], questions=QUESTIONS))
    unreadable = sent.pictures.pop(1)
    assert (unreadable.status, len(unreadable.judgements)) == (SAMPLE_STATUS_UNSCORED, 0)
    assert list(sent.pictures) == await judged(engine, [store.put(file) for file in files])


async def test_sent_pictures_are_bounded_and_stand_alone(engine: ClassificationEngine, pictures: np.ndarray) -> None:
    file = encode_picture(pictures[0])
    for request in (
        ClassifyRequest(pictures=[file] * (MAX_SENT + 1), questions=QUESTIONS),
        ClassifyRequest(pictures=[file], picture_digests=[NOWHERE], questions=QUESTIONS),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await engine.Classify(request)
        assert [violation.field for violation in caught.value.violations] == ["pictures"]


async def test_what_cannot_be_read_is_unscored_and_disturbs_nothing(
    engine: ClassificationEngine, store: ArtifactStore, pictures: np.ndarray
) -> None:
    whole = encode_picture(pictures[0])
    broken = [whole[: len(whole) // 2], b"GIF89a", b"", png_of_size(50_000, 50_000), png_of_size(5_000, 5_000)]
    digests = [store.put(whole), *(store.put(content) for content in broken), store.put(encode_picture(pictures[1]))]
    answers = await judged(engine, digests)
    for answer in answers[1:-1]:
        assert answer.status == SAMPLE_STATUS_UNSCORED
        assert answer.reason
        assert not answer.judgements
    assert "pixels" in answers[4].reason
    assert "pixels" in answers[5].reason
    assert [answers[0], answers[-1]] == await judged(engine, [digests[0], digests[-1]])


async def test_an_artefact_damaged_in_the_store_is_unscored(
    engine: ClassificationEngine, store: ArtifactStore, tmp_path: Path, judges: object, settings: ClassificationSettings
) -> None:
    own = ArtifactStore(str(tmp_path))
    digest = own.put(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    (tmp_path / "artifacts" / digest[:2] / digest).write_bytes(b"other bytes")
    answers = await judged(ClassificationEngine(judges, own, settings), [digest])
    assert answers[0].status == SAMPLE_STATUS_UNSCORED
    assert "damaged" in answers[0].reason


async def test_scores_that_are_not_finite_are_unscored(
    folders: dict[str, Path],
    tmp_path: Path,
    store: ArtifactStore,
    settings: ClassificationSettings,
    pictures: np.ndarray,
    judges_of: Callable[..., object],
) -> None:
    folder = tmp_path / "nan"
    folder.mkdir()
    for file in folders["resnet"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.1.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    engine = ClassificationEngine(judges_of(nan=("classifier", folder)), store, settings)
    request = ClassifyRequest(questions=[Question(judge="nan", labels=["chainsaw"])])
    answer = (await engine.Classify(request, pictures[:2])).pictures[1]
    assert answer.status == SAMPLE_STATUS_UNSCORED
    assert answer.reason == "the scores of nan are not finite"


async def test_unknown_names_are_not_found(engine: ClassificationEngine, pictures: np.ndarray) -> None:
    with pytest.raises(NotFoundError) as error:
        await judged(engine, [NOWHERE])
    assert error.value.reason == "ARTIFACT_NOT_FOUND"
    with pytest.raises(NotFoundError) as error:
        await engine.Classify(ClassifyRequest(questions=[Question(judge="no", labels=["x"])]), pictures)
    assert error.value.reason == "JUDGE_NOT_FOUND"


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (ClassifyRequest(picture_digests=[NOWHERE]), ["questions"]),
        (ClassifyRequest(questions=QUESTIONS), ["picture_digests"]),
        (
            ClassifyRequest(
                picture_digests=[NOWHERE] * (MAX_PICTURES + 1), questions=QUESTIONS[:1] * (MAX_QUESTIONS + 1)
            ),
            ["picture_digests", "questions"],
        ),
        (
            ClassifyRequest(
                picture_digests=[NOWHERE], questions=[Question(judge="resnet"), Question(labels=["x" * 5000])]
            ),
            ["questions[0].labels", "questions[1].judge", "questions[1].labels[0]"],
        ),
        (
            ClassifyRequest(
                picture_digests=[NOWHERE], questions=[QUESTIONS[0], Question(judge="resnet", labels=["ball", "saw"])]
            ),
            ["questions[1].labels[0]", "questions[1].labels[1]"],
        ),
    ],
)
async def test_bad_requests_name_their_fields(
    engine: ClassificationEngine, request_: ClassifyRequest, fields: list[str]
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        await engine.Classify(request_)
    assert [violation.field for violation in error.value.violations] == fields


async def test_a_view_shows_the_square_alone_or_the_rest(
    engine: ClassificationEngine, store: ArtifactStore, pictures: np.ndarray
) -> None:
    for share, margin in ((0.5, 8), (0.6, 6), (0.75, 4)):
        inner = slice(margin, 32 - margin)
        cropped = [np.asarray(Image.fromarray(each[inner, inner]).resize((32, 32), 3)) for each in pictures]
        greyed = pictures.copy()
        greyed[:, inner, inner] = 128
        for view, expected in ((View(crop_share=share), np.stack(cropped)), (View(grey_share=share), greyed)):
            whole = (await engine.Classify(ClassifyRequest(questions=QUESTIONS), expected)).pictures
            digests = [store.put(encode_picture(picture)) for picture in pictures]
            by_digest = ClassifyRequest(picture_digests=digests, questions=QUESTIONS, view=view)
            assert (await engine.Classify(by_digest)).pictures == whole
            handed_over = ClassifyRequest(questions=QUESTIONS, view=view)
            assert (await engine.Classify(handed_over, pictures)).pictures == whole


async def test_what_cannot_be_read_is_unscored_in_every_view(
    engine: ClassificationEngine, store: ArtifactStore, pictures: np.ndarray
) -> None:
    digests = [store.put(b"GIF89a"), store.put(encode_picture(pictures[0]))]
    request = ClassifyRequest(picture_digests=digests, questions=QUESTIONS, view=View(grey_share=0.5))
    broken, whole = (await engine.Classify(request)).pictures
    assert (broken.status, whole.status) == (SAMPLE_STATUS_UNSCORED, SAMPLE_STATUS_SCORED)


@pytest.mark.parametrize(
    ("view", "field"),
    [
        (View(), "view"),
        (View(crop_share=0), "view.crop_share"),
        (View(crop_share=1), "view.crop_share"),
        (View(grey_share=-0.5), "view.grey_share"),
        (View(grey_share=float("nan")), "view.grey_share"),
    ],
)
async def test_a_view_of_nothing_is_refused(
    engine: ClassificationEngine, pictures: np.ndarray, view: View, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as error:
        await engine.Classify(ClassifyRequest(questions=QUESTIONS, view=view), pictures)
    assert [violation.field for violation in error.value.violations] == [field]


async def test_arrays_of_another_form_are_refused(engine: ClassificationEngine, pictures: np.ndarray) -> None:
    for wrong in (pictures.astype(np.float32), pictures[0], pictures[..., :1]):
        with pytest.raises(InvalidRequestError):
            await engine.Classify(ClassifyRequest(questions=QUESTIONS), wrong)


async def test_the_loop_stays_free_and_concurrent_calls_agree(
    engine: ClassificationEngine, pictures: np.ndarray
) -> None:
    request = ClassifyRequest(questions=QUESTIONS)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    answers = await asyncio.gather(*(engine.Classify(request, pictures) for _ in range(4)))
    ticking.cancel()
    assert ticks > 20
    assert all(answer == answers[0] for answer in answers)


async def test_a_cancelled_call_ends_between_batches(engine: ClassificationEngine, pictures: np.ndarray) -> None:
    many = np.concatenate([pictures] * 50)
    call = asyncio.create_task(engine.Classify(ClassifyRequest(questions=QUESTIONS), many))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    # The thread is free again for the next call, long before 1,000 pictures are judged.
    await asyncio.wait_for(engine.Classify(ClassifyRequest(questions=QUESTIONS), pictures[:1]), timeout=5)


def test_the_deployment_judges_pictures_that_are_handed_over(tmp_path: Path, pictures: np.ndarray) -> None:
    """Over the shipped judges: a picture of the testbed is what it is."""
    settings = ClassificationSettings(artifacts=str(tmp_path))
    handle = serve.run(build(settings), name="classification", route_prefix=None, _local_testing_mode=True)
    catalogue = Catalogue.load()
    judges = catalogue.default_judges()
    album = world.album_of(("hourglass",), 4, 5).pictures
    request = ClassifyRequest(questions=[catalogue.question("hourglass", judge) for judge in judges])
    shown = handle.Classify.remote(request, album).result().pictures
    assert all(judgement.detected for picture in shown for judgement in picture.judgements)
    noise = handle.Classify.remote(request, pictures).result().pictures
    assert not any(judgement.detected for picture in noise for judgement in picture.judgements[1:])


def test_the_deployment_has_the_services_methods() -> None:
    methods = {
        method.name for method in classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"].methods
    }
    assert methods == {name for name in vars(Classification) if name[0].isupper()}


async def test_an_embedding_comes_with_the_answers_or_alone(local: LocalBackend) -> None:
    digests = local.target().concept.picture_digests[:3]
    target = local.target()
    request = ClassifyRequest(picture_digests=digests, questions=[target.judge], embedding_judge="testbed/clip")
    both = (await local.classification.Classify(request)).pictures
    plain = await local.classification.Classify(ClassifyRequest(picture_digests=digests, questions=[target.judge]))
    alone = await local.classification.Classify(
        ClassifyRequest(picture_digests=digests, embedding_judge="testbed/clip")
    )
    assert [list(each.judgements) for each in both] == [list(each.judgements) for each in plain.pictures]
    assert not any(each.HasField("embedding") for each in plain.pictures)
    assert [each.embedding for each in both] == [each.embedding for each in alone.pictures]
    # The answer's cosine is that of this embedding with the text's.
    question = target.selector
    asked = await local.classification.Classify(
        ClassifyRequest(picture_digests=digests, questions=[question], embedding_judge="testbed/clip")
    )
    clip = local.classification._judges["testbed/clip"]
    for each in asked.pictures:
        vector = np.frombuffer(each.embedding.values, "<f4").astype(float)
        assert list(each.embedding.shape) == [len(vector)]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        cosines = [float(clip._embed(text) @ vector) for text in question.labels]
        assert each.judgements[0].similarity == pytest.approx(max(cosines), abs=1e-6)


async def test_a_judge_without_embeddings_is_refused(local: LocalBackend) -> None:
    digests = local.target().concept.picture_digests[:1]
    for request, field in (
        (ClassifyRequest(picture_digests=digests, embedding_judge="testbed/judge"), "embedding_judge"),
        (ClassifyRequest(picture_digests=digests), "questions"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await local.classification.Classify(request)
        assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(NotFoundError):
        await local.classification.Classify(ClassifyRequest(picture_digests=digests, embedding_judge="nothing"))


async def test_what_fixes_the_bits_of_a_score_is_described(tmp_path: Path) -> None:
    profiles = set()
    for changed in ({}, {"batch_size": 8}, {"torch_threads": 2}, {"dtype": "bfloat16"}):
        engine = ClassificationEngine(
            Catalogue.load(), ArtifactStore(str(tmp_path)), ClassificationSettings(artifacts=str(tmp_path), **changed)
        )
        profiles.add((await engine.DescribeClassification(DescribeClassificationRequest())).numerics_profile)
        engine.close()
    assert len(profiles) == 4


async def test_an_answer_that_is_not_finite_is_unscored(
    store: ArtifactStore, settings: ClassificationSettings, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge of another package that divides by what it saw: nothing, of a black picture."""

    class Ratio:
        def problems(self, question: Question) -> list[tuple[str, str]]:
            return []

        def look(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
            return np.array([[picture.mean()] for picture in pictures], np.float32)

        def answer(self, seen: np.ndarray, question: Question) -> Judgement:
            score = float(seen[0] / seen[0]) if seen[0] else float("nan")
            return Judgement(judge=question.judge, score=score, detected=score >= 0.5)

    engine = ClassificationEngine(Catalogue.load(), store, settings)
    monkeypatch.setitem(engine._judges, "ratio", Ratio())
    request = ClassifyRequest(questions=[Question(judge="ratio", labels=["light"])])
    shown, black = (await engine.Classify(request, np.stack([pictures[0], np.zeros_like(pictures[0])]))).pictures
    assert (shown.status, shown.judgements[0].score) == (SAMPLE_STATUS_SCORED, 1.0)
    assert (black.status, black.reason) == (SAMPLE_STATUS_UNSCORED, "the scores of ratio are not finite")
