"""What an evaluation is handed, and how a sample becomes an observation."""

import asyncio
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import (
    DenoisingError,
    EncodedPrompt,
    EncodeRequest,
    EncodeResponse,
    GenerateRequest,
    GenerateResponse,
    MeasureDenoisingRequest,
    MeasureDenoisingResponse,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Question, Sample, Target, Trajectory
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1.types_pb2 import (
    MODEL_ROLE_CONTROL,
    SAMPLE_STATUS_SCORED,
    SAMPLE_STATUS_UNSCORED,
    Concept,
    Judgement,
    Observation,
)
from unerase_backend.evaluation.models import Models, panel
from unerase_backend.evaluation.observing import observe


class Backends:
    """Answers in whatever order, and sees when a stream is left."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.asked = asyncio.Event()
        self.left = False

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateResponse]:
        self.requests.append(request)
        self.asked.set()
        try:
            for index in (2, 0, 1)[: len(request.trajectories)]:
                yield GenerateResponse(index=index, sample=Sample(reason=str(index)))
            if request.model == "endless":
                await asyncio.Event().wait()
        finally:
            self.left = True

    async def encode(self, request: EncodeRequest) -> EncodeResponse:
        return EncodeResponse(prompts=[EncodedPrompt(token_ids=[len(prompt)]) for prompt in request.prompts])

    async def measure(self, request: MeasureDenoisingRequest) -> MeasureDenoisingResponse:
        self.requests.append(request)
        return MeasureDenoisingResponse(
            errors=[
                DenoisingError(picture=1, prompt=0, errors=[3, 4]),
                DenoisingError(picture=0, prompt=0, errors=[1, 2]),
            ]
        )

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        return ClassifyResponse(pictures=[PictureJudgements(reason=digest) for digest in request.picture_digests])

    def models(self) -> Models:
        return Models(self.generate, self.encode, self.measure, self.classify)


@pytest.fixture
def backends() -> Backends:
    return Backends()


async def test_samples_come_in_order_of_the_trajectories(backends: Backends) -> None:
    questions = [Question(judge="j", labels=["x"])]
    changes = [ModelChange(unet_digest="d")]
    samples = await backends.models().generate("m", [Trajectory()] * 3, questions, latents=True, changes=changes)
    assert [sample.reason for sample in samples] == ["0", "1", "2"]
    assert backends.requests == [
        GenerateRequest(model="m", trajectories=[Trajectory()] * 3, questions=questions, latents=True, changes=changes)
    ]


async def test_every_other_model_is_stepped_by_the_schedule_of_one(backends: Backends) -> None:
    change, other = ModelChange(unet_digest="d"), ModelChange(schedule_of="r")
    stepped = backends.models().stepped_by("r")
    assert backends.models().stepped_by("") == backends.models()
    await stepped.generate("m", [Trajectory()] * 3, changes=[change])
    await stepped.generate("r", [Trajectory()] * 3, changes=[change])
    await stepped.measure_denoising("m", ["a", "b"], ["", "p"], [1, 2], 7)
    asked = [list(request.changes) for request in backends.requests]  # type: ignore[attr-defined]
    assert asked == [[change, other], [change], [other]]


async def test_giving_up_leaves_the_stream(backends: Backends) -> None:
    run = asyncio.ensure_future(backends.models().generate("endless", [Trajectory()] * 3))
    await backends.asked.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert backends.left


async def test_errors_are_a_table_and_what_is_missing_is_nan(backends: Backends) -> None:
    changes = [ModelChange(unet_digest="d")]
    errors = await backends.models().measure_denoising("m", ["a", "b"], ["", "p"], [1, 2], 7, changes=changes)
    assert errors.shape == (2, 2, 2)
    np.testing.assert_array_equal(errors[:, 0], [[1, 2], [3, 4]])
    assert np.isnan(errors[:, 1]).all()
    (request,) = backends.requests
    assert request == MeasureDenoisingRequest(
        model="m", picture_digests=["a", "b"], prompts=["", "p"], timesteps=[1, 2], noise_seed=7, changes=changes
    )


async def test_encodings_and_judgements_keep_their_order(backends: Backends) -> None:
    models = backends.models()
    assert [list(prompt.token_ids) for prompt in await models.encode("m", ["a", "bbb"])] == [[1], [3]]
    assert [picture.reason for picture in await models.classify(["x", "y"], [])] == ["x", "y"]


def test_the_panel_is_selector_judge_and_second_judge() -> None:
    target = Target(
        selector=Question(judge="s"), judge=Question(judge="j"), second_judge=Question(judge="k"), concept=Concept()
    )
    assert [question.judge for question in panel(target)] == ["s", "j", "k"]


def test_an_observation_keeps_all_of_a_sample() -> None:
    unit = Unit(evaluation="e", role=MODEL_ROLE_CONTROL, model="m", target=Target(concept=Concept(name="c")))
    trajectory = Trajectory(latent_seed=3, noise_seed=4)
    scored = Sample(status=SAMPLE_STATUS_SCORED, judgements=[Judgement(judge="j", score=0.5)], picture_digest="d")
    seen = observe(unit, scored, trajectory, case_index=7, prompt="p", arm="a", variant=2)
    assert seen == Observation(
        evaluation="e",
        role=MODEL_ROLE_CONTROL,
        model="m",
        concept="c",
        case_index=7,
        arm="a",
        variant=2,
        status=SAMPLE_STATUS_SCORED,
        judgements=[Judgement(judge="j", score=0.5)],
        picture_digest="d",
        prompt="p",
        latent_seed=3,
        noise_seed=4,
    )
    failed = Sample(status=SAMPLE_STATUS_UNSCORED, reason="why")
    other = observe(unit, failed, trajectory, case_index=0, prompt="", concept="o")
    assert (other.concept, other.status, other.reason, other.arm) == ("o", SAMPLE_STATUS_UNSCORED, "why", "")
    assert math.isclose(seen.judgements[0].score, 0.5)
