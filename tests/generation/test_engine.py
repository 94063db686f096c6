"""The engine: sharing, caching, cancelling, and what fails with its neighbours left alone."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch

from unerase.internal.v1alpha1.generation_pb2 import (
    DescribeGenerationRequest,
    GenerateRequest,
    MeasureDenoisingRequest,
)
from unerase.internal.v1alpha1.trajectories_pb2 import (
    Question,
    Trajectory,
)
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_UNSCORED
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import from_message
from unerase_backend.generation import engine as engine_module
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.runtime.errors import UneraseError
from unerase_backend.runtime.pictures import decode_picture, encode_picture

TrajectoryOf = Callable[..., Trajectory]
REFERENCE = "testbed/reference"
QUESTION = Question(judge="testbed/judge", labels=["hourglass"])
SHAPE = (4, 8, 8)


async def test_samples_are_the_samplers(bench: Any, catalogue: Any, trajectory_of: TrajectoryOf) -> None:
    trajectories = [trajectory_of(latent_seed=seed, eta=seed % 2) for seed in range(5)]
    samples = await bench.generate(trajectories, questions=[QUESTION])
    model = with_graphs(load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32), threads=1)
    direct = Sampler(model, batch_rows=6, decode_batch=2).run(trajectories)
    for sample, finished in zip(samples, direct, strict=True):
        assert sample.status == SAMPLE_STATUS_SCORED
        assert torch.equal(from_message(sample.latents, "", SHAPE), finished.latents)
        assert finished.picture is not None
        stored = bench.store.get(sample.picture_digest)
        assert hashlib.sha256(stored).hexdigest() == sample.picture_digest
        assert np.array_equal(decode_picture(stored), finished.picture)
        assert [answer.score for answer in sample.judgements] == [float(finished.picture.mean()) / 255]
    assert bench.metrics.unet_seconds > 0
    assert bench.metrics.most_rows == 6


async def test_what_is_not_asked_for_is_not_returned(bench: Any, trajectory_of: TrajectoryOf) -> None:
    (bare,) = await bench.generate([trajectory_of()], latents=False)
    assert (bare.picture_digest, list(bare.judgements), bare.HasField("latents")) == ("", [], False)
    (pictured,) = await bench.generate([trajectory_of()], pictures=True)
    assert pictured.picture_digest
    (bare_again,) = await bench.generate([trajectory_of()], latents=False)
    assert bare_again == bare
    assert not bench.judge.batches


async def test_a_repeat_costs_nothing_even_after_a_restart(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf
) -> None:
    first, trajectories = bench_of(), [trajectory_of(latent_seed=seed) for seed in range(4)]
    samples = await first.generate(trajectories, questions=[QUESTION])
    assert (first.metrics.made, first.metrics.cached) == (4, 0)
    second = bench_of()
    assert await second.generate(trajectories, questions=[QUESTION]) == samples
    assert (second.metrics.ticks, second.metrics.cached) == (0, 4)
    # Another numerics profile, other bits.
    other = bench_of(batch_rows=8)
    await other.generate(trajectories[:1])
    assert other.metrics.made == 1


async def test_a_lost_or_damaged_picture_is_made_again(bench: Any, trajectory_of: TrajectoryOf, tmp_path: Any) -> None:
    (sample,) = await bench.generate([trajectory_of()], pictures=True)
    (file,) = tmp_path.rglob(sample.picture_digest)
    for spoil in (file.unlink, lambda: file.write_bytes(b"damaged")):
        spoil()
        assert await bench.generate([trajectory_of()], pictures=True) == [sample]
        assert decode_picture(bench.store.get(sample.picture_digest)).shape == (32, 32, 3)


async def test_the_same_trajectory_is_made_once(bench: Any, trajectory_of: TrajectoryOf) -> None:
    one, same = trajectory_of(steps=20), trajectory_of(steps=20, noise_seed=99)
    together = await asyncio.gather(
        bench.generate([one, same, one]), bench.generate([one], pictures=True), bench.generate([same])
    )
    latents = {sample.latents.values for samples in together for sample in samples}
    assert len(latents) == 1
    # The request that came first asked for no picture.
    assert bench.metrics.made <= 2


async def test_what_ends_or_is_found_together_is_judged_together(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf
) -> None:
    trajectories = [trajectory_of(latent_seed=seed) for seed in range(3)]
    first = bench_of(decode_batch=3)
    samples = await first.generate(trajectories, questions=[QUESTION])
    assert first.judge.batches == [3]
    second = bench_of(decode_batch=3)
    assert await second.generate(trajectories, questions=[QUESTION]) == samples
    assert second.judge.batches == [3]


async def test_every_row_of_a_call_is_counted(bench: Any, trajectory_of: TrajectoryOf) -> None:
    """A guided trajectory of 3 steps takes 6 rows, also in its last; 4 errors take 4 in one call."""
    await bench.generate([trajectory_of()])
    # In calls of six, or of two if their bits are the same.
    assert bench.metrics.rows == 3 * 2
    before = bench.metrics.places
    assert before in (3 * 2, 3 * 6)
    picture = bench.store.put(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    await bench.engine.MeasureDenoising(
        MeasureDenoisingRequest(model=REFERENCE, picture_digests=[picture], prompts=["", "a"], timesteps=[100, 500])
    )
    assert bench.metrics.rows == 3 * 2 + 4
    # Four rows in a call of six, or in one of four if their bits are the same.
    assert bench.metrics.places - before in (4, 6)


async def test_callers_share_a_batch(bench: Any, trajectory_of: TrajectoryOf) -> None:
    await bench.generate([trajectory_of(latent_seed=99)])
    before = bench.metrics.ticks
    await asyncio.gather(*(bench.generate([trajectory_of(latent_seed=seed, steps=20)]) for seed in range(3)))
    assert bench.metrics.most_rows == 6
    assert bench.metrics.ticks - before < 2 * 20


async def test_a_small_request_overtakes_a_large_one(bench: Any, trajectory_of: TrajectoryOf) -> None:
    large = asyncio.ensure_future(bench.generate([trajectory_of(latent_seed=seed, steps=20) for seed in range(30)]))
    await bench.ticked()
    await bench.generate([trajectory_of(latent_seed=100, steps=20)])
    assert not large.done()
    assert bench.metrics.made < 15
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)


async def test_closing_takes_effect_within_two_steps(bench: Any, trajectory_of: TrajectoryOf) -> None:
    request = GenerateRequest(
        model=REFERENCE, trajectories=[trajectory_of(latent_seed=seed, steps=900) for seed in range(40)]
    )
    waiting = asyncio.ensure_future(anext(bench.engine.Generate(request)))
    await bench.ticked(3)
    before = bench.metrics.ticks
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    # The rows are free again: this would otherwise wait for 900 steps.
    await bench.generate([trajectory_of(steps=5)])
    assert bench.metrics.ticks - before <= 2 + 5
    assert bench.metrics.made == 1


async def test_leaving_a_stream_early_gives_up_the_rest(bench: Any, trajectory_of: TrajectoryOf) -> None:
    request = GenerateRequest(
        model=REFERENCE, trajectories=[trajectory_of(), *(trajectory_of(latent_seed=s, steps=900) for s in range(9))]
    )
    async with aclosing(bench.engine.Generate(request)) as responses:
        # The short one, unless three others were found to be new before it was.
        await anext(responses)
    before = bench.metrics.ticks
    await bench.generate([trajectory_of(latent_seed=50)])
    assert bench.metrics.ticks - before < 20


async def test_giving_up_does_not_take_work_from_another(bench: Any, trajectory_of: TrajectoryOf) -> None:
    shared = [trajectory_of(latent_seed=seed, steps=40) for seed in range(3)]
    quitter = asyncio.ensure_future(bench.generate(shared))
    await bench.ticked(3)
    stayer = asyncio.ensure_future(bench.generate(shared))
    await bench.ticked(3)
    quitter.cancel()
    assert len(await stayer) == 3
    # Taken over, not started anew.
    assert bench.metrics.ticks < 60


async def test_models_take_turns_in_the_places_there_are(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf
) -> None:
    names = [REFERENCE, "testbed/never", "testbed/uce"]
    crowded, roomy = bench_of(models_in_memory=1), bench_of(models_in_memory=3, decode_batch=3)
    one, other = [
        await asyncio.gather(*(bench.generate([trajectory_of()], name) for name in names)) for bench in (crowded, roomy)
    ]
    assert one == other
    assert len({samples[0].latents.values for samples in one}) == 3


async def test_a_model_that_waits_long_gets_its_turn(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unerase_backend.generation.worker.TURN_TICKS", 10)
    bench = bench_of(models_in_memory=1)
    endless = asyncio.ensure_future(bench.generate([trajectory_of(latent_seed=s, steps=8) for s in range(30)]))
    await bench.ticked(2)
    await bench.generate([trajectory_of()], "testbed/never")
    assert not endless.done()
    assert len(await endless) == 30


async def test_a_model_of_nan_makes_unscored_samples(
    bench: Any, trajectory_of: TrajectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_broken(*arguments: Any, **named: Any) -> Any:
        model = load_model(*arguments, **named)
        with torch.no_grad():
            model.denoiser.conv_out.bias.fill_(float("nan"))
        return model

    monkeypatch.setattr(engine_module, "load_model", load_broken)
    samples = await bench.generate([trajectory_of(latent_seed=seed) for seed in range(4)], questions=[QUESTION])
    assert all(sample.status == SAMPLE_STATUS_UNSCORED for sample in samples)
    assert {sample.reason for sample in samples} == {"the latents are not finite"}
    assert not any(sample.picture_digest or sample.judgements for sample in samples)
    assert not bench.judge.batches
    errors = await bench.engine.MeasureDenoising(
        MeasureDenoisingRequest(
            model=REFERENCE,
            picture_digests=[bench.store.put(encode_picture(np.zeros((32, 32, 3), np.uint8)))],
            prompts=[""],
            timesteps=[500],
        )
    )
    assert np.isnan(errors.errors[0].errors[0])


async def test_a_failing_model_fails_its_requests_and_is_loaded_anew(
    bench: Any, trajectory_of: TrajectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Sampler) -> None:
        raise RuntimeError("shapes do not match")

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "tick", fail)
        with pytest.raises(UneraseError) as caught:
            await bench.generate([trajectory_of()])
    assert caught.value.reason == "MODEL_FAILED"
    assert "shapes" not in caught.value.message
    assert len(await bench.generate([trajectory_of()])) == 1


async def test_a_failing_judge_fails_the_request_and_the_pictures_stay(
    bench: Any, trajectory_of: TrajectoryOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise UneraseError("the judges are gone", reason="JUDGES_GONE")

    with monkeypatch.context() as patch:
        patch.setattr(bench.engine, "_classify", fail)
        with pytest.raises(UneraseError, match="gone"):
            await bench.generate([trajectory_of()], questions=[QUESTION])
    (sample,) = await bench.generate([trajectory_of()], questions=[QUESTION])
    assert len(sample.judgements) == 1
    assert bench.metrics.made == 1


async def test_what_fixes_the_bits_is_described(bench: Any) -> None:
    description = await bench.engine.DescribeGeneration(DescribeGenerationRequest())
    assert "unet=6" in description.numerics_profile
    assert {"torch", "diffusers", "transformers"} <= set(description.versions)
    assert description.hardware["torch_threads"] == "1"


def test_settings_know_their_keys(tmp_path: Any) -> None:
    for bad in ({"batch_rows": 1}, {"models_in_memory": 0}, {"batch_size": 8}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            GenerationSettings(artifacts=str(tmp_path), **bad)


async def test_only_the_threads_that_make_pictures_give_way(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf
) -> None:
    before = {thread.native_id for thread in threading.enumerate()}
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    bench = bench_of(niceness=2)
    await bench.generate([trajectory_of()])
    (sampler,) = (each for each in threading.enumerate() if each.name == "sampler" and each.native_id not in before)
    assert os.getpriority(os.PRIO_PROCESS, sampler.native_id or 0) == min(niceness + 2, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == niceness
