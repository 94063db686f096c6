"""Judges pictures: every question of every picture, a batch at a time (`gathering`), in a thread of its own.

A picture that cannot be judged (a damaged PNG, far too many pixels, scores that are not finite) is unscored, with the
reason. A bad question or an unknown digest is an error of the request.
"""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from unerase.internal.v1alpha1.classification_pb2 import (
    ClassifyRequest,
    ClassifyResponse,
    DescribeClassificationRequest,
    DescribeClassificationResponse,
    PictureJudgements,
)
from unerase.internal.v1alpha1.trajectories_pb2 import View
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED, Tensor
from unerase_backend.catalogue import Catalogue
from unerase_backend.classification.gathering import Asked, Gathering, Seen, Shown
from unerase_backend.classification.metrics import ClassificationMetrics
from unerase_backend.classification.registry import Embeds, Judge, kinds, load_judge
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.diffusion.profile import computing_profile
from unerase_backend.evaluation.questions import question_violations
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import (
    DataLossError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
)
from unerase_backend.runtime.onnx_runtime import runtime_version
from unerase_backend.runtime.pictures import UnreadablePictureError, crop_square, decode_picture, grey_square

MAX_PICTURES = most_items(ClassifyRequest, "picture_digests")
MAX_SENT = most_items(ClassifyRequest, "pictures")


class ClassificationEngine:
    """The judges of a catalogue, each loaded when first needed and then kept."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        settings: ClassificationSettings,
        metrics: ClassificationMetrics | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._metrics = metrics or ClassificationMetrics()
        self._judges: dict[str, Judge] = {}
        self._gathering = Gathering(settings.batch_size, self._prepare, _answers, self._metrics.judged)
        # One thread, so that judges do not run in parallel and each is loaded once.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judges")

    async def Classify(  # noqa: N802 - the RPC's name
        self, request: ClassifyRequest, pictures: NDArray[np.uint8] | None = None
    ) -> ClassifyResponse:
        """Answer every question of every picture, and embed it if that is asked for.

        `pictures`, (n, height, width, 3), are judged in place of the request's own.

        Raises:
            InvalidRequestError: too many pictures or questions, a question without labels, a label that its judge does
                not know, an embedding by a judge that has none, or a view that shows nothing.
            NotFoundError: an unknown judge or digest.
        """
        _check(request, pictures)
        asked = Asked(request, pictures)
        self._gathering.ask(asked)
        self._thread.submit(self._gathering.run)
        try:
            return await asyncio.wrap_future(asked.future)
        finally:
            asked.given_up.set()

    async def DescribeClassification(  # noqa: N802 - the RPC's name
        self, request: DescribeClassificationRequest
    ) -> DescribeClassificationResponse:
        """Return what fixes every bit of an answer here."""
        device, dtype = torch.device(self._settings.device), getattr(torch, self._settings.precision)
        threads, batch = self._settings.torch_threads, self._settings.batch_size
        profile = computing_profile(device, dtype, threads, judge=batch)
        if runtime := runtime_version():
            profile += f" onnxruntime={runtime}"
        # The first call imports every kind, or waits for the thread that does.
        known = await asyncio.to_thread(kinds)
        return DescribeClassificationResponse(
            numerics_profile=profile, kinds={name: kind.provider for name, kind in known.items()}
        )

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, asked: Asked) -> None:
        torch.set_num_threads(self._settings.torch_threads)
        request = asked.request
        names = [question.judge for question in request.questions]
        embedding = request.embedding_judge
        asked.judges = {name: self._judge(name) for name in (*names, *([embedding] if embedding else []))}
        _check_questions(asked.judges, request)
        if asked.pictures is None:
            missing = [digest for digest in request.picture_digests if not self._store.contains(digest)]
            if missing:
                raise NotFoundError(f"no artefact has the digest {missing[0]}", reason="ARTIFACT_NOT_FOUND")
        asked.shown = (_shown(picture, request.view) for picture in self._read_all(asked))
        given = asked.pictures if asked.pictures is not None else request.pictures or request.picture_digests
        asked.count = len(given)

    def _judge(self, name: str) -> Judge:
        if name not in self._judges:
            begin = time.perf_counter()
            self._judges[name] = load_judge(
                name,
                self._catalogue.judge(name),
                torch.device(self._settings.device),
                getattr(torch, self._settings.precision),
                self._settings.batch_size,
            )
            self._metrics.loaded(time.perf_counter() - begin)
        return self._judges[name]

    def _read_all(self, asked: Asked) -> Iterator[Shown]:
        if asked.pictures is not None:
            yield from asked.pictures
        elif asked.request.pictures:
            yield from map(_decoded, asked.request.pictures)
        else:
            yield from map(self._read, asked.request.picture_digests)

    def _read(self, digest: str) -> Shown:
        try:
            return _decoded(self._store.get(digest))
        except DataLossError as error:
            return UnreadablePictureError(error.message)


def _decoded(content: bytes) -> Shown:
    try:
        return decode_picture(content)
    except UnreadablePictureError as error:
        return error


def _shown(picture: Shown, view: View) -> Shown:
    kind = view.WhichOneof("kind")
    if kind is None or isinstance(picture, UnreadablePictureError):
        return picture
    return crop_square(picture, view.crop_share) if kind == "crop_share" else grey_square(picture, view.grey_share)


def _answers(asked: Asked, chunk: Sequence[Shown], seen: Seen) -> list[PictureJudgements]:
    """Return what the judges say; `seen` has a row for each readable picture of the chunk, by judge."""
    judges, request = asked.judges, asked.request
    answers: list[PictureJudgements] = []
    row = 0
    for picture in chunk:
        if isinstance(picture, UnreadablePictureError):
            answers.append(PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason=picture.message))
            continue
        blind = [name for name in judges if not np.isfinite(seen[name][row]).all()]
        judged = [
            judges[question.judge].answer(seen[question.judge][row], question)
            for question in ([] if blind else request.questions)
        ]
        # A third party's judge may make one of finite features. A guard would let its picture pass.
        blind += dict.fromkeys(each.judge for each in judged if not math.isfinite(each.score))
        if blind:
            reason = f"the scores of {', '.join(blind)} are not finite"
            answers.append(PictureJudgements(status=SAMPLE_STATUS_UNSCORED, reason=reason))
        else:
            answer = PictureJudgements(status=SAMPLE_STATUS_SCORED, judgements=judged)
            embeds = judges.get(request.embedding_judge)
            if isinstance(embeds, Embeds):
                values = embeds.embedding(seen[request.embedding_judge][row])
                answer.embedding.CopyFrom(Tensor(shape=values.shape, values=values.astype("<f4").tobytes()))
            answers.append(answer)
        row += 1
    return answers


def _check(request: ClassifyRequest, pictures: NDArray[np.uint8] | None) -> None:
    violations = []
    if pictures is None:
        count = len(request.picture_digests) + len(request.pictures)
        if request.picture_digests and request.pictures:
            violations.append(FieldViolation("pictures", "must be empty if there are digests"))
        if len(request.pictures) > MAX_SENT:
            violations.append(FieldViolation("pictures", f"must be at most {MAX_SENT}, not {len(request.pictures)}"))
    else:
        count = len(pictures)
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            violations.append(FieldViolation("pictures", "must be uint8 of shape (n, height, width, 3)"))
        if request.picture_digests or request.pictures:
            violations.append(FieldViolation("picture_digests", "must be empty if pictures are passed"))
    if not 1 <= count <= MAX_PICTURES:
        violations.append(FieldViolation("picture_digests", f"must be 1 to {MAX_PICTURES} pictures, not {count}"))
    violations += question_violations(request.questions, fewest=0 if request.embedding_judge else 1)
    violations += _view_violations(request)
    if violations:
        raise InvalidRequestError.of(*violations)


def _view_violations(request: ClassifyRequest) -> Iterator[FieldViolation]:
    kind = request.view.WhichOneof("kind")
    if request.HasField("view") and kind is None:
        yield FieldViolation("view", "must say what is shown; leave it out for the whole picture")
    if kind is not None and not 0 < getattr(request.view, kind) < 1:
        yield FieldViolation(f"view.{kind}", "must be above 0 and under 1")


def _check_questions(judges: dict[str, Judge], request: ClassifyRequest) -> None:
    violations = [
        FieldViolation(f"questions[{index}].{field}", description)
        for index, question in enumerate(request.questions)
        for field, description in judges[question.judge].problems(question)
    ]
    if request.embedding_judge and not isinstance(judges[request.embedding_judge], Embeds):
        violations.append(FieldViolation("embedding_judge", "must be a CLIP judge: others have no embedding"))
    if violations:
        raise InvalidRequestError.of(*violations)
