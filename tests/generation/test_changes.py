"""Models that changes make of the catalogue's: their keys, their pictures, and their places in memory."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from unerase.internal.v1alpha1.generation_pb2 import (
    GenerateRequest,
    Interpolation,
    MeasureDenoisingRequest,
    ModelChange,
)
from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.diffusion.sampler import Sampler
from unerase_backend.diffusion.tensors import from_message
from unerase_backend.generation import engine as engine_module
from unerase_backend.generation.canonical import changed_model_digest
from unerase_backend.runtime.errors import InvalidRequestError, NotFoundError, UnsafeModelError

TrajectoryOf = Callable[..., Trajectory]
REFERENCE, NEVER, UCE = "testbed/reference", "testbed/never", "testbed/uce"
SHAPE = (4, 8, 8)


def towards(name: str, share: float) -> ModelChange:
    return ModelChange(interpolation=Interpolation(model=name, share=share))


changes_of_a_model = st.lists(st.tuples(st.text("0123456789abcdef", max_size=3), st.floats(0, 1)), max_size=4)


@given(st.text("0123456789abcdef", max_size=3), changes_of_a_model, changes_of_a_model)
def test_models_have_one_key_if_they_are_made_alike(
    base: str, one: Sequence[tuple[str, float]], other: Sequence[tuple[str, float]]
) -> None:
    # -0.0 equals 0.0 and is the same share.
    assert (changed_model_digest(base, one) == changed_model_digest(base, other)) == (list(one) == list(other))
    assert not one or changed_model_digest(base, one) != changed_model_digest(base, [])


async def test_samples_are_those_of_the_changed_model(bench: Any, catalogue: Any, trajectory_of: TrajectoryOf) -> None:
    trajectories = [trajectory_of(latent_seed=seed) for seed in range(3)]
    edit = ModelChange(unet_digest=bench.store.put(save({"conv_out.bias": torch.full((4,), 0.1)})))
    for changes in ([towards(NEVER, 0.4)], [edit], [edit, towards(NEVER, 0.4)]):
        samples = await bench.generate(trajectories, changes=changes)
        model = load_model(catalogue, REFERENCE, torch.device("cpu"), torch.float32, changes=changes, store=bench.store)
        model = with_graphs(model, threads=1)
        direct = Sampler(model, batch_rows=6, decode_batch=2).run(trajectories)
        for sample, finished in zip(samples, direct, strict=True):
            assert torch.equal(from_message(sample.latents, "", SHAPE), finished.latents)
    made = bench.metrics.made
    assert made == 9
    assert await bench.generate(trajectories, changes=changes) == samples
    assert bench.metrics.made == made


async def test_a_change_without_effect_is_the_model_itself(bench: Any, trajectory_of: TrajectoryOf) -> None:
    samples = await bench.generate([trajectory_of()])
    for change in (towards(NEVER, 0.0), towards(REFERENCE, 0.7)):
        assert await bench.generate([trajectory_of()], changes=[change]) == samples
    assert (bench.metrics.made, bench.metrics.cached) == (1, 2)


async def test_errors_are_measured_on_the_changed_model(bench: Any, catalogue: Any) -> None:
    digests = catalogue.concept_message("hourglass", bench.store).picture_digests[:2]

    async def measure(model: str, *changes: ModelChange) -> list[list[float]]:
        request = MeasureDenoisingRequest(
            model=model, picture_digests=digests, prompts=[""], timesteps=[700], changes=changes
        )
        return [list(item.errors) for item in (await bench.engine.MeasureDenoising(request)).errors]

    reference, never = await measure(REFERENCE), await measure(NEVER)
    assert await measure(REFERENCE, towards(NEVER, 1.0)) == never
    between = await measure(REFERENCE, towards(NEVER, 0.5))
    assert reference != between != never


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ([ModelChange()], "changes[0]"),
        ([towards(NEVER, 0.5), towards(NEVER, 1.01)], "changes[1].interpolation.share"),
        ([towards(NEVER, -0.1)], "changes[0].interpolation.share"),
        ([towards(NEVER, float("nan"))], "changes[0].interpolation.share"),
        ([towards("", 0.5)], "changes[0].interpolation.model"),
        ([towards(NEVER, 0.5)] * 17, "changes"),
    ],
)
async def test_a_bad_change_is_named(
    bench: Any, trajectory_of: TrajectoryOf, changes: list[ModelChange], field: str
) -> None:
    measurement = MeasureDenoisingRequest(
        model=REFERENCE, picture_digests=["0" * 64], prompts=[""], timesteps=[1], changes=changes
    )
    for call in (bench.generate([trajectory_of()], changes=changes), bench.engine.MeasureDenoising(measurement)):
        with pytest.raises(InvalidRequestError) as caught:
            await call
        assert [violation.field for violation in caught.value.violations] == [field]


async def test_what_is_not_there_or_does_not_fit_is_refused(bench: Any, trajectory_of: TrajectoryOf) -> None:
    wrong = bench.store.put(save({"conv_out.bias": torch.zeros(5)}))
    for change, error, reason in (
        (towards("testbed/nothing", 0.5), NotFoundError, "MODEL_NOT_FOUND"),
        (ModelChange(unet_digest="0" * 64), NotFoundError, "ARTIFACT_NOT_FOUND"),
        (ModelChange(unet_digest="../../etc/passwd"), NotFoundError, "ARTIFACT_NOT_FOUND"),
        (ModelChange(unet_digest=wrong), UnsafeModelError, "WEIGHTS_WRONG_SHAPE"),
    ):
        with pytest.raises(error) as caught:
            await bench.generate([trajectory_of()], changes=[change])
        assert caught.value.reason == reason


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What was loaded, in order, with the share of its change."""
    names: list[tuple[str, float]] = []

    def load(*arguments: Any, **named: Any) -> Any:
        names.append((arguments[1], sum(change.interpolation.share for change in named["changes"])))
        model = load_model(*arguments, **named)
        alive.append(weakref.ref(model.denoiser))
        return model

    monkeypatch.setattr(engine_module, "load_model", load)
    alive.clear()
    return names


alive: list[weakref.ref[Any]] = []


async def test_derived_models_follow_one_another_and_leave_the_catalogues_alone(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf, loaded: list[tuple[str, float]]
) -> None:
    bench = bench_of(models_in_memory=3)
    own = [REFERENCE, UCE]
    for name in own:
        await bench.generate([trajectory_of()], name)
    shares = [0.1, 0.3, 0.5, 0.7, 0.9]
    both = [
        bench.generate([trajectory_of(latent_seed=seed)], changes=[towards(UCE, s)]) for s in shares for seed in (1, 2)
    ]
    await asyncio.gather(*both)
    for name in own:
        await bench.generate([trajectory_of(latent_seed=5)], name)
    assert sorted(loaded) == sorted([(name, 0.0) for name in own] + [(REFERENCE, share) for share in shares])
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 3
    # A model of the catalogue takes the place of what is derived.
    await bench.generate([trajectory_of()], NEVER)
    await bench.generate([trajectory_of(latent_seed=6)], REFERENCE)
    await bench.generate([trajectory_of(latent_seed=6)], UCE)
    assert loaded[-1] == (NEVER, 0.0)


async def test_one_place_serves_both_kinds(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf, loaded: list[tuple[str, float]]
) -> None:
    bench = bench_of(models_in_memory=1)
    await asyncio.gather(
        *(bench.generate([trajectory_of()], name) for name in (REFERENCE, UCE)),
        *(bench.generate([trajectory_of()], changes=[towards(UCE, share)]) for share in (0.2, 0.8)),
    )
    assert len(loaded) == 4
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 1


async def test_giving_up_a_derived_model_frees_its_place(
    bench_of: Callable[..., Any], trajectory_of: TrajectoryOf
) -> None:
    bench = bench_of(models_in_memory=1)
    request = GenerateRequest(model=REFERENCE, trajectories=[trajectory_of(steps=900)], changes=[towards(UCE, 0.5)])
    waiting = asyncio.ensure_future(anext(bench.engine.Generate(request)))
    await bench.ticked(3)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    before = bench.metrics.ticks
    await bench.generate([trajectory_of()], changes=[towards(UCE, 0.6)])
    assert bench.metrics.ticks - before < 20
