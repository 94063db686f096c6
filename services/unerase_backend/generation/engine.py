"""Generation: takes trajectories, and yields their samples as they end.

Callers that ask for the same trajectory share the work (`shared_trajectories`); the models step in one thread
(`worker`). The caller passes in a function that judges the pictures, several at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

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
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Sample
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_WITHHELD, SampleStatus
from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion import conditioning, profile
from unerase_backend.diffusion.denoising import measure_denoising
from unerase_backend.diffusion.fields import within
from unerase_backend.diffusion.guarding import Guards
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.pictures import Picture
from unerase_backend.diffusion.shapes import TEXT_ROWS
from unerase_backend.diffusion.tensors import to_message
from unerase_backend.generation import validation
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.model_request import RequestedModel, requested_model
from unerase_backend.generation.results import status_of, withheld_by_judge
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.generation.shaped_work import ShapedWork, Shapes, exhausted_error
from unerase_backend.generation.shared_trajectories import Arrival, Caller
from unerase_backend.runtime import tracing
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, UneraseError
from unerase_backend.runtime.pictures import crop_square, decode_picture

Classify = Callable[[NDArray[np.uint8], Sequence[Question]], Awaitable[list[PictureJudgements]]]

# The most trajectories of one request that are in progress, or finished and not yet taken; this bounds its memory.
WINDOW = 256
JUDGED_AT_ONCE = 32


class GenerationEngine:
    """The models of a catalogue behind one queue; its methods are the RPCs of GenerationService."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        settings: GenerationSettings,
        classify: Classify,
        metrics: GenerationMetrics | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._settings = settings
        self._classify = classify
        self._metrics = metrics or GenerationMetrics()
        self._device = torch.device(settings.device)
        self._work = self._shaped(Shapes(settings.batch_rows, settings.decode_batch, settings.models_in_memory))
        self._outgrown: ShapedWork | None = None

    async def Generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateResponse]:  # noqa: N802 - the RPC's name
        """Run trajectories of one model and yield each one's sample as it ends, in no particular order.

        Closing the generator cancels the trajectories that no other caller waits for.

        Raises:
            InvalidRequestError: every bad field that can be found without the model; or the first field that the model
                rejects or that names a missing artefact.
            NotFoundError: an unknown model, artefact or judge.
            UnsafeModelError, PreconditionError: the model cannot be loaded, or cannot be changed in this way.
            ExhaustedError: the device has too little memory.
            UneraseError: an error of the judges.
        """
        validation.check_generate(request)
        # The definition of a registered model is read from the store.
        await asyncio.to_thread(self._catalogue.model, request.model)
        for question in request.questions:
            self._catalogue.judge(question.judge)
        model = await self._requested(request.model, request.changes, guarded=request.guarded)
        guards = await asyncio.to_thread(self._work.shared.guards, model)
        picture = request.pictures or request.picture_bytes or bool(request.questions)
        shared = self._work.shared
        caller = Caller(asyncio.get_running_loop())
        remaining = iter(enumerate(request.trajectories))
        outstanding = 0
        try:
            while True:
                while outstanding < WINDOW and (following := next(remaining, None)) is not None:
                    shared.join(caller, following[0], model, following[1], picture)
                    outstanding += 1
                if not outstanding:
                    return
                arrived = await caller.take(JUDGED_AT_ONCE)
                for response in await self._responses(request, guards, arrived):
                    outstanding -= 1
                    if request.picture_bytes and response.sample.picture_digest:
                        response.picture = await asyncio.to_thread(self._store.get, response.sample.picture_digest)
                    yield response
        finally:
            shared.leave(caller)
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
        requested = await self._requested(request.model)

        def job(model: DiffusionModel) -> Generator[tuple[int, int], None, EncodeResponse]:
            prompts = []
            for start in range(0, len(request.prompts), TEXT_ROWS):
                texts = request.prompts[start : start + TEXT_ROWS]
                encoded = conditioning.encode(model, [Conditioning(text=text) for text in texts])
                for text, encoding in zip(texts, encoded, strict=True):
                    prompt = conditioning.tokenise(model, text)
                    states = to_message(encoding.states)
                    prompts.append(EncodedPrompt(token_ids=prompt.ids, embedding=states, truncated=prompt.truncated))
                yield 0, 0
            return EncodeResponse(prompts=prompts)

        response: EncodeResponse = await asyncio.wrap_future(self._work.worker.compute(requested, job))
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
            UnsafeModelError, PreconditionError: the model cannot be loaded, or cannot be changed in this way.
        """
        validation.check_measure(request)
        requested = await self._requested(request.model, request.changes)
        pictures = await asyncio.to_thread(self._read, request)
        work = self._work

        def job(model: DiffusionModel) -> Generator[tuple[int, int], None, NDArray[np.float64]]:
            training = model.schedule.training_timesteps
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
                    batch_rows=work.shapes.batch_rows,
                    decode_batch=work.shapes.decode_batch,
                )
            )

        errors = await asyncio.wrap_future(work.worker.compute(requested, job))
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
        """Return what determines every bit of a result here."""
        return DescribeGenerationResponse(
            numerics_profile=self._work.profile,
            versions=profile.library_versions(),
            hardware=profile.hardware(self._device, self._settings.torch_threads),
        )

    def models(self) -> list[RequestedModel]:
        """Return the models that are in memory or being loaded."""
        return self._work.worker.held()

    def close(self) -> None:
        """Stop after the current step."""
        if self._outgrown is not None:
            self._outgrown.close()
        self._work.close()

    def _shaped(self, shapes: Shapes) -> ShapedWork:
        loads = (self._load, self._load_guards)
        return ShapedWork(shapes, self._settings, *loads, self._store, self._metrics, self._shrink)

    def _shrink(self, work: ShapedWork, loading: bool) -> UneraseError:
        """Go on in smaller shapes, and return the error of the work that did not fit; called by its worker."""
        smaller = work.shapes.smaller(loading=loading)
        if self._outgrown is not None:
            self._outgrown.close()
        self._outgrown = work
        # Without smaller shapes the next request may still fit, for example a model that has no guidance.
        self._work = self._shaped(smaller or work.shapes)
        return exhausted_error(smaller, work.shapes)

    async def _requested(
        self, name: str, changes: Sequence[ModelChange] = (), *, guarded: bool = False
    ) -> RequestedModel:
        # Files are hashed when their model is first asked for.
        return await asyncio.to_thread(requested_model, self._catalogue, self._store, name, changes, guarded=guarded)

    def _load_guards(self, name: str) -> Guards:
        for entry in self._catalogue.guards(name):
            if judge := getattr(entry.parameters, "judge", ""):
                self._catalogue.judge(judge)
        with self._work.worker.loading:
            return Guards.load(self._catalogue.guards(name), self._catalogue.guard_folder(name), self._device)

    def _load(self, model: RequestedModel) -> DiffusionModel:
        loaded = load_model(
            self._catalogue,
            model.name,
            self._device,
            getattr(torch, self._settings.precision),
            changes=model.changes,
            store=self._store,
            digest=model.digest,
        )
        return with_graphs(loaded, self._settings.torch_threads)

    async def _responses(
        self, request: GenerateRequest, guards: Guards, arrived: Sequence[Arrival]
    ) -> list[GenerateResponse]:
        samples: list[tuple[list[int], Sample]] = []
        # Each sample with its picture, whole and as the judges see it.
        shown: list[tuple[Sample, Picture, Picture]] = []
        for indices, result in arrived:
            if isinstance(result, InvalidRequestError):
                raise within(f"trajectories[{indices[0]}]", result)
            if isinstance(result, UneraseError):
                raise result
            sample = Sample(
                status=status_of(result),
                reason=result.failure,
                picture_digest=result.picture_digest
                if request.pictures or request.picture_bytes or request.questions
                else "",
                latents=result.latents if request.latents else None,
            )
            samples.append((indices, sample))
            if result.picture is not None and (request.questions or guards.questions):
                trajectory = request.trajectories[indices[0]]
                inpaints = trajectory.HasField("inpainting")
                view = crop_square(result.picture, trajectory.inpainting.mask_share) if inpaints else result.picture
                shown.append((sample, result.picture, view))
        if shown:
            views = np.stack([view for _, _, view in shown])
            judged = await self._classify(views, request.questions) if request.questions else None
            checked = await self._checked(guards, np.stack([picture for _, picture, _ in shown]))
            for number, (sample, _, _) in enumerate(shown):
                if checked[number][1]:
                    sample.status, sample.reason = checked[number]
                    sample.picture_digest = ""
                elif judged is not None:
                    sample.status, sample.reason = judged[number].status, judged[number].reason
                    sample.judgements.extend(judged[number].judgements)
        return [GenerateResponse(index=index, sample=sample) for indices, sample in samples for index in indices]

    async def _checked(self, guards: Guards, pictures: NDArray[np.uint8]) -> list[tuple[SampleStatus.ValueType, str]]:
        """Return each picture's status by what the guards' judges say, and why it is not shown; empty if it is."""
        if not guards.questions:
            return [(SAMPLE_STATUS_SCORED, "")] * len(pictures)
        judged = await self._classify(pictures, [question for _, question in guards.questions])
        # What cannot be checked is not withheld: what its user would get is not known.
        return [
            (SAMPLE_STATUS_WITHHELD, withheld_by_judge(guards, answers))
            if answers.status == SAMPLE_STATUS_SCORED
            else (answers.status, answers.reason)
            for answers in judged
        ]

    def _read(self, request: MeasureDenoisingRequest) -> list[Picture]:
        side = self._catalogue.model(request.model).resolution
        pictures = [decode_picture(self._store.get(digest)) for digest in request.picture_digests]
        for index, picture in enumerate(pictures):
            if picture.shape != (side, side, 3):
                problem = f"the model's pictures are {side} x {side} pixels"
                raise InvalidRequestError.of(FieldViolation(f"picture_digests[{index}]", problem))
        return pictures
