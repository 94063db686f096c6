"""The engine's requests: encoding, measuring, inpainting and guiding, and errors that name the field."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unerase.internal.v1alpha1.generation_pb2 import (
    EncodeRequest,
    GenerateRequest,
    MeasureDenoisingRequest,
)
from unerase.internal.v1alpha1.trajectories_pb2 import (
    ClassifierGuidance,
    Conditioning,
    Inpainting,
    Question,
    Resumption,
    TokenIds,
    Trajectory,
)
from unerase_backend.diffusion.classifier import ConvolutionalClassifier, save_classifier
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import from_message, to_message
from unerase_backend.runtime.errors import InvalidRequestError, NotFoundError, UneraseError, UnsafeModelError
from unerase_backend.runtime.pictures import decode_picture, encode_picture

TrajectoryOf = Callable[..., Trajectory]
REFERENCE = "testbed/reference"
QUESTION = Question(judge="testbed/judge", labels=["hourglass"])
SHAPE = (4, 8, 8)
DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"steps": 1000}, "steps"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"guidance_scale": 51.0}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"eta": -0.1}, "eta"),
        ({"eta": float("inf")}, "eta"),
        ({"variance_scale": float("nan")}, "variance_scale"),
        ({"stop_step": 4}, "stop_step"),
        ({"resumption": Resumption(latents=to_message(torch.zeros(SHAPE)), step=3)}, "resumption.step"),
        ({"resumption": Resumption(latents=to_message(torch.zeros(SHAPE)))}, "resumption.step"),
        ({"resumption": Resumption(latents=to_message(torch.zeros(4, 8, 9)), step=1)}, "resumption.latents"),
        ({"resumption": Resumption(step=1)}, "resumption"),
        (
            {"resumption": Resumption(latents=to_message(torch.zeros(SHAPE)), picture_digest=DIGEST, step=1)},
            "resumption",
        ),
        ({"resumption": Resumption(picture_digest=DIGEST)}, "resumption.step"),
        ({"resumption": Resumption(picture_digest=DIGEST, step=3)}, "resumption.step"),
        ({"resumption": Resumption(picture_digest="0" * 63, step=1)}, "resumption.picture_digest"),
        ({"resumption": Resumption(picture_digest=DIGEST, step=1)}, "resumption.picture_digest"),
        (
            {"resumption": Resumption(latents=to_message(torch.zeros(SHAPE)), step=2), "stop_step": 2},
            "stop_step",
        ),
        ({"conditioning": Conditioning()}, "conditioning"),
        ({"conditioning": Conditioning(text="a" * 4097)}, "conditioning.text"),
        ({"conditioning": Conditioning(token_ids=TokenIds(ids=[99_999]))}, "conditioning.token_ids.ids[0]"),
        ({"inpainting": Inpainting(picture_digest="0" * 63, mask_share=0.5)}, "inpainting.picture_digest"),
        ({"inpainting": Inpainting(picture_digest=DIGEST, mask_share=0.5)}, "inpainting.picture_digest"),
        ({"inpainting": Inpainting(picture_digest=DIGEST)}, "inpainting.mask_share"),
        ({"inpainting": Inpainting(picture_digest=DIGEST, mask_share=1.0)}, "inpainting.mask_share"),
        ({"inpainting": Inpainting(picture_digest=DIGEST, mask_share=float("nan"))}, "inpainting.mask_share"),
        (
            {"classifier_guidance": ClassifierGuidance(classifier_digest="g" * 64, scale=1)},
            "classifier_guidance.classifier_digest",
        ),
        (
            {"classifier_guidance": ClassifierGuidance(classifier_digest=DIGEST, scale=1)},
            "classifier_guidance.classifier_digest",
        ),
        (
            {"classifier_guidance": ClassifierGuidance(classifier_digest=DIGEST, scale=-1)},
            "classifier_guidance.scale",
        ),
        (
            {"classifier_guidance": ClassifierGuidance(classifier_digest=DIGEST, scale=float("inf"))},
            "classifier_guidance.scale",
        ),
    ],
)
async def test_a_bad_trajectory_is_named(
    bench: Any, trajectory_of: TrajectoryOf, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await bench.generate([trajectory_of(), trajectory_of(**fields)])
    assert [violation.field for violation in caught.value.violations] == [f"trajectories[1].{field}"]


@pytest.mark.parametrize("count", [0, 4097])
async def test_too_few_or_too_many_trajectories(bench: Any, trajectory_of: TrajectoryOf, count: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await bench.generate([trajectory_of()] * count)
    assert [violation.field for violation in caught.value.violations] == ["trajectories"]


async def test_unknown_names(bench: Any, trajectory_of: TrajectoryOf) -> None:
    for fields, reason in (
        ({"model": "testbed/nothing"}, "MODEL_NOT_FOUND"),
        ({"questions": [Question(judge="nothing", labels=["x"])]}, "JUDGE_NOT_FOUND"),
    ):
        with pytest.raises(NotFoundError) as caught:
            await bench.generate([trajectory_of()], **fields)
        assert caught.value.reason == reason
    for call in (
        bench.engine.Encode(EncodeRequest(model="nothing", prompts=[""])),
        bench.engine.MeasureDenoising(
            MeasureDenoisingRequest(model="nothing", picture_digests=["0" * 64], prompts=[""], timesteps=[1])
        ),
    ):
        with pytest.raises(NotFoundError):
            await call


async def test_prompts_are_encoded(bench: Any, catalogue: Any) -> None:
    prompts = ["a picture of a hourglass", "", "a red heart " * 20]
    response = await bench.engine.Encode(EncodeRequest(model=REFERENCE, prompts=prompts))
    assert [prompt.truncated for prompt in response.prompts] == [False, False, True]
    assert all(len(prompt.token_ids) == 24 for prompt in response.prompts)
    # What was encoded leads a trajectory as its text does.
    by_text = Trajectory(conditioning=Conditioning(text=prompts[0]), guidance_scale=3, steps=3)
    by_embedding = Trajectory(
        conditioning=Conditioning(embedding=response.prompts[0].embedding), guidance_scale=3, steps=3
    )
    one, other = await bench.generate([by_text, by_embedding])
    assert one.latents == other.latents


async def test_denoising_errors_are_small_where_the_prompt_is_true(bench: Any, catalogue: Any) -> None:
    concept = catalogue.concept_message("hourglass", bench.store)
    request = MeasureDenoisingRequest(
        model=REFERENCE,
        picture_digests=concept.picture_digests[:4],
        prompts=["", "a picture of a hourglass"],
        timesteps=[600, 800],
        noise_seed=3,
    )
    response = await bench.engine.MeasureDenoising(request)
    assert [(item.picture, item.prompt) for item in response.errors] == [(i, j) for i in range(4) for j in range(2)]
    assert await bench.engine.MeasureDenoising(request) == response
    empty, prompted = (
        np.mean([item.errors for item in response.errors if item.prompt == prompt]) for prompt in range(2)
    )
    assert 0 < prompted < empty < 0.5


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"timesteps": [1000]}, "timesteps[0]"),
        ({"timesteps": []}, "timesteps"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["a" * 4097]}, "prompts[0]"),
        ({"picture_digests": []}, "picture_digests"),
    ],
)
async def test_a_bad_measurement_is_named(bench: Any, change: dict[str, Any], field: str) -> None:
    picture = bench.store.put(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    fields = {"picture_digests": [picture], "prompts": [""], "timesteps": [1]} | change
    with pytest.raises(InvalidRequestError) as caught:
        await bench.engine.MeasureDenoising(MeasureDenoisingRequest(model=REFERENCE, **fields))
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_picture_of_another_size_is_named(bench: Any) -> None:
    digests = [bench.store.put(encode_picture(np.zeros((side, side, 3), np.uint8))) for side in (32, 64)]
    with pytest.raises(InvalidRequestError) as caught:
        await bench.engine.MeasureDenoising(
            MeasureDenoisingRequest(model=REFERENCE, picture_digests=digests, prompts=[""], timesteps=[1])
        )
    assert [violation.field for violation in caught.value.violations] == ["picture_digests[1]"]


def chequered(side: int) -> np.ndarray:
    tiles = np.add.outer(np.arange(side) // 4, np.arange(side) // 4) % 2
    return np.repeat((tiles * 200 + 20).astype(np.uint8)[..., None], 3, axis=2)


async def test_an_inpainted_picture_is_kept_whole_and_its_square_judged(
    bench_of: Callable[..., Any], catalogue: Any, trajectory_of: TrajectoryOf
) -> None:
    bench = bench_of()
    around = Inpainting(picture_digest=bench.store.put(encode_picture(chequered(32))), mask_share=0.5)
    trajectories = [trajectory_of(inpainting=around), trajectory_of(), trajectory_of("a heart", inpainting=around)]
    samples = await bench.generate(trajectories, questions=[QUESTION])
    model = with_graphs(load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32), threads=1)
    given = [Given(picture=chequered(32)), Given(), Given(picture=chequered(32))]
    direct = Sampler(model, batch_rows=6, decode_batch=2).run(trajectories, given=given)
    for sample, finished, square in zip(samples, direct, (True, False, True), strict=True):
        assert np.array_equal(decode_picture(bench.store.get(sample.picture_digest)), finished.picture)
        seen = finished.picture
        if square:
            seen = np.asarray(Image.fromarray(seen[8:24, 8:24]).resize((32, 32), Image.Resampling.BICUBIC))
        assert [answer.score for answer in sample.judgements] == [float(seen.mean()) / 255]
    # What was made before is judged in the same way.
    again = bench_of()
    assert await again.generate(trajectories, questions=[QUESTION]) == samples
    assert again.metrics.ticks == 0


async def test_a_picture_comes_with_its_sample_if_asked_for(bench: Any, trajectory_of: TrajectoryOf) -> None:
    request = GenerateRequest(model=REFERENCE, trajectories=[trajectory_of()], picture_bytes=True)
    (answer,) = [response async for response in bench.engine.Generate(request)]
    assert answer.picture == bench.store.get(answer.sample.picture_digest)
    request.picture_bytes, request.pictures = False, True
    (answer,) = [response async for response in bench.engine.Generate(request)]
    assert answer.sample.picture_digest
    assert not answer.picture


async def test_a_picture_of_the_store_begins_a_trajectory(
    bench_of: Callable[..., Any], catalogue: Any, trajectory_of: TrajectoryOf
) -> None:
    bench = bench_of()
    digest = bench.store.put(encode_picture(chequered(32)))
    resumed = [
        trajectory_of(resumption=Resumption(picture_digest=digest, step=1), estimate=estimate)
        for estimate in (False, True)
    ]
    samples = await bench.generate(resumed, questions=[QUESTION])
    model = with_graphs(load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32), threads=1)
    given = [Given(beginning=chequered(32))] * 2
    direct = Sampler(model, batch_rows=6, decode_batch=2).run(resumed, given=given)
    for sample, finished in zip(samples, direct, strict=True):
        assert torch.equal(from_message(sample.latents, "", SHAPE), finished.latents)
        assert np.array_equal(decode_picture(bench.store.get(sample.picture_digest)), finished.picture)
        assert [answer.score for answer in sample.judgements] == [float(finished.picture.mean()) / 255]
    again = bench_of()
    assert await again.generate(resumed, questions=[QUESTION]) == samples
    assert again.metrics.ticks == 0


async def test_a_picture_of_another_size_begins_nothing(bench: Any, trajectory_of: TrajectoryOf) -> None:
    digest = bench.store.put(encode_picture(chequered(64)))
    with pytest.raises(InvalidRequestError) as caught:
        await bench.generate([trajectory_of(resumption=Resumption(picture_digest=digest, step=1))])
    assert [violation.field for violation in caught.value.violations] == ["trajectories[0].resumption.picture_digest"]


async def test_a_picture_of_another_size_cannot_be_inpainted(bench: Any, trajectory_of: TrajectoryOf) -> None:
    for side, share, field in ((64, 0.5, "picture_digest"), (32, 0.9, "mask_share")):
        around = Inpainting(picture_digest=bench.store.put(encode_picture(chequered(side))), mask_share=share)
        with pytest.raises(InvalidRequestError) as caught:
            await bench.generate([trajectory_of(), trajectory_of(inpainting=around)])
        assert [violation.field for violation in caught.value.violations] == [f"trajectories[1].inpainting.{field}"]


async def test_a_classifier_comes_from_the_store(bench: Any, catalogue: Any, trajectory_of: TrajectoryOf) -> None:
    torch.manual_seed(0)
    classifier = ConvolutionalClassifier(SHAPE).eval().requires_grad_(False)
    digest = bench.store.put(save_classifier(classifier))
    guided = trajectory_of(classifier_guidance=ClassifierGuidance(classifier_digest=digest, scale=50))
    plain, sample = await bench.generate([trajectory_of(), guided])
    model = with_graphs(load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32), threads=1)
    (direct,) = Sampler(model, batch_rows=6, decode_batch=2).run([guided], given=[Given(classifier=classifier)])
    assert torch.equal(from_message(sample.latents, "", SHAPE), direct.latents)
    assert sample.latents != plain.latents


async def test_what_is_not_in_the_store_or_no_classifier_is_refused(bench: Any, trajectory_of: TrajectoryOf) -> None:
    for fields in (
        {"inpainting": Inpainting(picture_digest=DIGEST, mask_share=0.5)},
        {"resumption": Resumption(picture_digest=DIGEST, step=1)},
        {"classifier_guidance": ClassifierGuidance(classifier_digest=DIGEST, scale=1)},
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await bench.generate([trajectory_of(**fields)])
        assert caught.value.reason == "ARTIFACT_NOT_FOUND"
    pickled = bench.store.put(b"\x80\x04K\x01.")
    guidance = ClassifierGuidance(classifier_digest=pickled, scale=1)
    with pytest.raises(UnsafeModelError):
        await bench.generate([trajectory_of(classifier_guidance=guidance)])
    with pytest.raises(UneraseError, match="picture"):
        await bench.generate([trajectory_of(inpainting=Inpainting(picture_digest=pickled, mask_share=0.5))])
