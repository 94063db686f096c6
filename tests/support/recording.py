"""Rooms that only record the requests of a probe."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import (
    DenoisingError,
    EncodeRequest,
    EncodeResponse,
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, Judgement, Observation, Tensor
from unerase_backend.evaluation.models import Models
from unerase_backend.evaluation.parameters import resolve_parameters
from unerase_backend.probing.registry import PROBES


@dataclass
class Recording:
    """Records requests; the answers come in reverse order and name the request and the position that they answer."""

    generated: list[GenerateRequest] = field(default_factory=list)
    measured: list[MeasureDenoisingRequest] = field(default_factory=list)
    classified: list[ClassifyRequest] = field(default_factory=list)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        number = len(self.generated)
        self.generated.append(request)
        for index in reversed(range(len(request.trajectories))):
            yield GenerateResponse(
                index=index,
                sample=Sample(
                    status=SAMPLE_STATUS_SCORED,
                    picture_digest=f"{number}/{index}" if request.questions else "",
                    latents=Tensor(shape=[1], values=f"{number}/{index}".encode()) if request.latents else None,
                    judgements=[Judgement(judge=question.judge) for question in request.questions],
                ),
            )

    async def measure(self, request: MeasureDenoisingRequest) -> MeasureDenoisingResponse:
        self.measured.append(request)
        return MeasureDenoisingResponse(
            errors=[
                DenoisingError(
                    picture=picture, prompt=prompt, errors=[picture + prompt / 2 + step for step in request.timesteps]
                )
                for picture in range(len(request.picture_digests))
                for prompt in range(len(request.prompts))
            ]
        )

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        self.classified.append(request)
        judgements = [Judgement(judge=question.judge) for question in request.questions]
        return ClassifyResponse(
            pictures=[PictureJudgements(status=SAMPLE_STATUS_SCORED, judgements=judgements)]
            * len(request.picture_digests)
        )

    async def encode(self, request: EncodeRequest) -> EncodeResponse:
        raise AssertionError("no probe encodes prompts")

    async def observe(self, unit: Unit) -> list[Observation]:
        evaluation = PROBES.all()[unit.evaluation]
        models = Models(self.generate, self.encode, self.measure, self.classify)
        return await evaluation.run(unit, models, resolve_parameters(evaluation.description, unit.parameters))
