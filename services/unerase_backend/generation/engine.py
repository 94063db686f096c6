"""Generation: trajectories in, samples out as they end.

A trajectory that somebody is making already is not made twice: whoever asks for it waits for the same work, and it is
given up only when nobody waits any more. A trajectory that was made before comes from the store. Pictures are judged by
a callable that is handed in, several at a time.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import (
    DenoisingError,
    DescribeGenerationRequest,
    DescribeGenerationResponse,
    EncodedPrompt,
    EncodeRequest,
    EncodeResponse,
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Sample, Trajectory
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion import conditioning, profile
from unerase_backend.diffusion.classifier import LatentClassifier, load_classifier
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.fields import within
from unerase_backend.diffusion.loading import DiffusionModel, load_model
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.sampler import Finished, Given
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.generation import results, validation
from unerase_backend.generation.canonical import trajectory_key
from unerase_backend.generation.observer import Observer
from unerase_backend.generation.results import Result
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.generation.wanted import WantedModel, wanted_model
from unerase_backend.generation.worker import Work, Worker
from unerase_backend.runtime import tracing
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError, UneraseError
from unerase_backend.runtime.pictures import crop_square, decode_picture

Classify = Callable[[NDArray[np.uint8], Sequence[Question]], Awaitable[list[PictureJudgements]]]

# Trajectories of one request that may be under way or finished and not yet taken: what bounds the memory it uses.
WINDOW = 256
JUDGED_AT_ONCE = 32
CLASSIFIERS_KEPT = 8


@dataclass(eq=False)
class _Caller:
    """A request, with the results that wait for it: positions in the request, and what came of them."""

    loop: asyncio.AbstractEventLoop
    arrived: asyncio.Queue[tuple[list[int], Result | UneraseError]] = field(default_factory=asyncio.Queue)
    # Of what the sampler made for it: how many, when the first got its place, and when the last ended.
    made: int = 0
    admitted: float = 0.0
    ended: float = 0.0


@dataclass(eq=False)
class _Shared:
    """A trajectory that is being made, for everyone who waits for it."""

    key: str
    model: WantedModel
    trajectory: Trajectory
    picture: bool
    waiting: dict[_Caller, list[int]] = field(default_factory=dict)
    work: Work | None = None


class GenerationEngine:
    """The models of a catalogue behind one queue; its methods are the RPCs of GenerationService."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        settings: GenerationSettings,
        classify: Classify,
        observer: Observer | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._classify = classify
        self._observer = observer or Observer()
        self._device = torch.device(settings.device)
        self._profile = profile.numerics_profile(
            self._device,
            getattr(torch, settings.dtype),
            settings.torch_threads,
            settings.batch_rows,
            settings.decode_batch,
        )
        self._worker = Worker(
            self._load,
            batch_rows=settings.batch_rows,
            decode_batch=settings.decode_batch,
            models_in_memory=settings.models_in_memory,
            torch_threads=settings.torch_threads,
            observer=self._observer,
        )
        # By key, and whether there will be a picture.
        self._shared: dict[tuple[str, bool], _Shared] = {}
        self._lock = threading.Lock()
        # By digest, the least recently used first.
        self._classifiers: OrderedDict[str, LatentClassifier] = OrderedDict()
        self._classifiers_lock = threading.Lock()
        self._storage = ThreadPoolExecutor(max_workers=4, thread_name_prefix="storage")

    async def Generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResponse]:  # noqa: N802 - the RPC's name
        """Run trajectories of one model and yield each one's sample as it ends, in no particular order.

        Closing the generator gives up what nobody else waits for.

        Raises:
            InvalidRequestError: with every bad field that can be told beforehand, or the first that its model refuses
                or that names what the artefact store has not.
            NotFoundError: an unknown model, artefact or judge.
            UnsafeModelError, PreconditionError: the model cannot be loaded, or not be changed in this way.
            ExhaustedError: the device's memory does not suffice.
            UneraseError: what the judges raise.
        """
        validation.check_generate(request)
        self._catalogue.model(request.model)
        for question in request.questions:
            self._catalogue.judge(question.judge)
        model = await self._wanted(request.model, request.changes)
        picture = request.pictures or bool(request.questions)
        caller = _Caller(asyncio.get_running_loop())
        remaining = iter(enumerate(request.trajectories))
        outstanding = 0
        try:
            while True:
                while outstanding < WINDOW and (following := next(remaining, None)) is not None:
                    self._join(caller, following[0], model, following[1], picture)
                    outstanding += 1
                if not outstanding:
                    return
                arrived = await _take(caller)
                for response in await self._responses(request, arrived):
                    outstanding -= 1
                    yield response
        finally:
            self._leave(caller)
            if caller.made:
                begin, end = (round(seconds * 1e9) for seconds in (caller.admitted, caller.ended))
                tracing.record("generation.sample", begin, end, model=request.model, trajectories=caller.made)

    async def Encode(self, request: EncodeRequest) -> EncodeResponse:  # noqa: N802 - the RPC's name
        """Encode prompts.

        Raises:
            InvalidRequestError: no prompts, too many, or one that is too long.
            NotFoundError: an unknown model.
            UnsafeModelError, PreconditionError: the model cannot be loaded.
        """
        validation.check_encode(request)
        wanted = await self._wanted(request.model)

        def job(model: DiffusionModel) -> Generator[None, None, EncodeResponse]:
            prompts = []
            for start in range(0, len(request.prompts), conditioning.TEXT_ROWS):
                texts = request.prompts[start : start + conditioning.TEXT_ROWS]
                encoded = conditioning.encode(model, [Conditioning(text=text) for text in texts])
                for text, states in zip(texts, encoded, strict=True):
                    prompt = conditioning.tokenise(model, text)
                    prompts.append(
                        EncodedPrompt(token_ids=prompt.ids, embedding=to_message(states), truncated=prompt.truncated)
                    )
                yield
            return EncodeResponse(prompts=prompts)

        response: EncodeResponse = await asyncio.wrap_future(self._worker.compute(wanted, job))
        return response

    async def MeasureDenoising(  # noqa: N802 - the RPC's name
        self, request: MeasureDenoisingRequest
    ) -> MeasureDenoisingResponse:
        """Measure the noise-prediction error on given pictures, by picture and then by prompt.

        An error that is not finite is returned as it is.

        Raises:
            InvalidRequestError: nothing to measure, too much, a timestep outside the schedule, or a picture of another
                size than the model's.
            NotFoundError: an unknown model, artefact or picture.
            DataLossError, UnreadablePictureError: a damaged picture.
            UnsafeModelError, PreconditionError: the model cannot be loaded, or not be changed in this way.
        """
        validation.check_measure(request)
        wanted = await self._wanted(request.model, request.changes)
        pictures = await asyncio.to_thread(self._read, request)
        settings = self._settings

        def job(model: DiffusionModel) -> Generator[None, None, NDArray[np.float64]]:
            training = len(model.alphas_cumprod)
            for index, timestep in enumerate(request.timesteps):
                if timestep >= training:
                    raise InvalidRequestError.of(FieldViolation(f"timesteps[{index}]", f"must be under {training}"))
            return (
                yield from measure_denoising(
                    model,
                    pictures,
                    request.picture_digests,
                    conditioning.encode(model, [Conditioning(text=prompt) for prompt in request.prompts]),
                    request.timesteps,
                    request.noise_seed,
                    batch_rows=settings.batch_rows,
                    decode_batch=settings.decode_batch,
                )
            )

        errors = await asyncio.wrap_future(self._worker.compute(wanted, job))
        return MeasureDenoisingResponse(
            errors=[
                DenoisingError(picture=picture, prompt=prompt, errors=errors[picture, prompt].tolist())
                for picture in range(len(pictures))
                for prompt in range(len(request.prompts))
            ]
        )

    async def DescribeGeneration(  # noqa: N802 - the RPC's name
        self, request: DescribeGenerationRequest
    ) -> DescribeGenerationResponse:
        """Say what fixes every bit of a result here."""
        return DescribeGenerationResponse(
            numerics_profile=self._profile,
            versions=profile.library_versions(),
            hardware=profile.hardware(self._device, self._settings.torch_threads),
        )

    def models(self) -> list[WantedModel]:
        """Return the models that are in memory, or on their way there."""
        return self._worker.held()

    def close(self) -> None:
        """Stop after the step that is being taken."""
        self._worker.close()
        self._storage.shutdown(wait=True, cancel_futures=True)

    async def _wanted(self, name: str, changes: Sequence[ModelChange] = ()) -> WantedModel:
        # Files are hashed when their model is first asked for.
        return await asyncio.to_thread(wanted_model, self._catalogue, self._store, name, changes)

    def _load(self, model: WantedModel) -> DiffusionModel:
        return load_model(
            self._catalogue,
            model.name,
            self._device,
            getattr(torch, self._settings.dtype),
            changes=model.changes,
            store=self._store,
            digest=model.digest,
        )

    def _join(self, caller: _Caller, index: int, model: WantedModel, trajectory: Trajectory, picture: bool) -> None:
        key = trajectory_key(model.digest, trajectory, self._profile)
        with self._lock:
            shared = self._shared.get((key, True)) or self._shared.get((key, picture))
            found = shared is not None
            if shared is None:
                shared = self._shared[key, picture] = _Shared(key, model, trajectory, picture)
            shared.waiting.setdefault(caller, []).append(index)
        if not found:
            self._storage.submit(self._find_or_make, shared, caller)

    def _leave(self, caller: _Caller) -> None:
        with self._lock:
            left = [shared for shared in self._shared.values() if shared.waiting.pop(caller, None) is not None]
            given_up = [shared for shared in left if not shared.waiting]
            for shared in given_up:
                del self._shared[shared.key, shared.picture]
            works = [shared.work for shared in given_up if shared.work is not None]
        for work in works:
            self._worker.cancel(work)

    def _find_or_make(self, shared: _Shared, caller: _Caller) -> None:
        try:
            result = results.find(self._store, shared.key, picture=shared.picture)
            given = self._given(shared.trajectory) if result is None else Given()
        except Exception as error:
            self._tell(shared, _storage_error(error))
            return
        if result is not None:
            self._observer.finished(1, cached=True)
            self._tell(shared, result)
            return
        with self._lock:
            if shared.waiting:
                shared.work = self._worker.submit(
                    shared.model,
                    caller,
                    shared.trajectory,
                    picture=shared.picture,
                    given=given,
                    done=lambda outcome: self._done(shared, outcome),
                )

    def _given(self, trajectory: Trajectory) -> Given:
        field = ""
        try:
            picture = classifier = None
            if trajectory.HasField("inpainting"):
                field = "inpainting.picture_digest"
                picture = decode_picture(self._store.get(trajectory.inpainting.picture_digest))
            if trajectory.HasField("classifier_guidance"):
                field = "classifier_guidance.classifier_digest"
                classifier = self._classifier(trajectory.classifier_guidance.classifier_digest)
        except NotFoundError as error:
            refused = InvalidRequestError.of(FieldViolation(field, error.message))
            refused.reason = error.reason
            raise refused from None
        return Given(picture, classifier)

    def _classifier(self, digest: str) -> LatentClassifier:
        with self._classifiers_lock:
            if digest not in self._classifiers:
                self._classifiers[digest] = load_classifier(self._store.get(digest), self._device)
                if len(self._classifiers) > CLASSIFIERS_KEPT:
                    self._classifiers.popitem(last=False)
            self._classifiers.move_to_end(digest)
            return self._classifiers[digest]

    def _done(self, shared: _Shared, outcome: Finished | UneraseError) -> None:
        if isinstance(outcome, UneraseError):
            self._tell(shared, outcome)
        else:
            self._storage.submit(self._keep, shared, outcome)

    def _keep(self, shared: _Shared, finished: Finished) -> None:
        try:
            result = results.keep(self._store, shared.key, finished)
        except Exception as error:
            self._tell(shared, _storage_error(error))
            return
        self._observer.finished(1, cached=False)
        self._tell(shared, result)

    def _tell(self, shared: _Shared, result: Result | UneraseError) -> None:
        with self._lock:
            if self._shared.get((shared.key, shared.picture)) is shared:
                del self._shared[shared.key, shared.picture]
            waiting = dict(shared.waiting)
            if shared.work is not None and shared.work.admitted:
                for caller, indices in waiting.items():
                    caller.admitted = min(caller.admitted or shared.work.admitted, shared.work.admitted)
                    caller.ended, caller.made = time.time(), caller.made + len(indices)
        for caller, indices in waiting.items():
            if not caller.loop.is_closed():
                caller.loop.call_soon_threadsafe(caller.arrived.put_nowait, (indices, result))

    async def _responses(
        self, request: GenerateRequest, arrived: Sequence[tuple[list[int], Result | UneraseError]]
    ) -> list[GenerateResponse]:
        samples: list[tuple[list[int], Sample]] = []
        shown: list[tuple[Sample, Picture]] = []
        for indices, result in arrived:
            if isinstance(result, InvalidRequestError):
                raise within(f"trajectories[{indices[0]}]", result)
            if isinstance(result, UneraseError):
                raise result
            sample = Sample(
                status=SAMPLE_STATUS_UNSCORED if result.failure else SAMPLE_STATUS_SCORED,
                reason=result.failure,
                picture_digest=result.picture_digest if request.pictures or request.questions else "",
                latents=result.latents if request.latents else None,
            )
            samples.append((indices, sample))
            if result.picture is not None and request.questions:
                trajectory = request.trajectories[indices[0]]
                inpaints = trajectory.HasField("inpainting")
                view = crop_square(result.picture, trajectory.inpainting.mask_share) if inpaints else result.picture
                shown.append((sample, view))
        if shown:
            judged = await self._classify(np.stack([picture for _, picture in shown]), list(request.questions))
            for (sample, _), answers in zip(shown, judged, strict=True):
                sample.status, sample.reason = answers.status, answers.reason
                sample.judgements.extend(answers.judgements)
        return [GenerateResponse(index=index, sample=sample) for indices, sample in samples for index in indices]

    def _read(self, request: MeasureDenoisingRequest) -> list[Picture]:
        side = self._catalogue.model(request.model).resolution
        pictures = [decode_picture(self._store.get(digest)) for digest in request.picture_digests]
        for index, picture in enumerate(pictures):
            if picture.shape != (side, side, 3):
                problem = f"the model's pictures are {side} x {side} pixels"
                raise InvalidRequestError.of(FieldViolation(f"picture_digests[{index}]", problem))
        return pictures


async def _take(caller: _Caller) -> list[tuple[list[int], Result | UneraseError]]:
    arrived = [await caller.arrived.get()]
    while len(arrived) < JUDGED_AT_ONCE and not caller.arrived.empty():
        arrived.append(caller.arrived.get_nowait())
    return arrived


def _storage_error(error: Exception) -> UneraseError:
    if isinstance(error, UneraseError):
        return error
    return UneraseError("the artefact store failed", reason="STORE_FAILED")
