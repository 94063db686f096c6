"""A device with too little memory: smaller shapes, or a refusal; never the same failure again and again.

The shortage is planted in the calls of models' graphs: one that cannot take more than so many rows.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from unerase.internal.v1alpha1.generation_pb2 import DescribeGenerationRequest, EncodeRequest
from unerase_backend.diffusion import fewer_rows
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model_graphs import with_graphs
from unerase_backend.generation import engine as engine_module
from unerase_backend.generation.shaped_work import Shapes
from unerase_backend.runtime.errors import ExhaustedError, PreconditionError

REFERENCE = "testbed/reference"


@pytest.fixture
def most_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the device memory for so many rows of a UNet's call."""

    def limit(rows: int) -> None:
        class Small:
            def __init__(self, graph: Any) -> None:
                self.timed, self.takes, self.prepared, self._graph = graph.timed, graph.takes, graph.prepared, graph

            def __call__(self, latents: torch.Tensor, *rest: Any) -> torch.Tensor:
                if len(latents) > rows:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                output: torch.Tensor = self._graph(latents, *rest)
                return output

        def graph_of(*arguments: Any) -> Any:
            model = with_graphs(*arguments)
            return replace(model, graph=Small(model.graph))

        monkeypatch.setattr(engine_module, "with_graphs", graph_of)
        # Whether calls may have fewer rows is found out by full ones.
        monkeypatch.setattr(fewer_rows, "_ALIKE", {})

    return limit


async def profile_of(bench: Any) -> str:
    described = await bench.engine.DescribeGeneration(DescribeGenerationRequest())
    return described.numerics_profile


async def test_smaller_shapes_follow_and_their_results_are_those_of_a_fresh_start(
    bench_of: Any, trajectory_of: Any, most_rows: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [trajectory_of(latent_seed=seed) for seed in range(5)]
    most_rows(3)
    bench = bench_of(batch_rows=8, decode_batch=2)
    for _ in range(2):
        with pytest.raises(ExhaustedError, match="from now on") as caught:
            await bench.generate(wanted)
        assert caught.value.reason == "OUT_OF_MEMORY"
        assert caught.value.retry_after_seconds
    samples = await bench.generate(wanted)
    monkeypatch.undo()
    fresh = bench_of(batch_rows=2, decode_batch=1)
    assert await profile_of(bench) == await profile_of(fresh)
    made = bench.metrics.made
    assert [sample.picture_digest for sample in samples] == [
        sample.picture_digest for sample in await fresh.generate(wanted)
    ]
    assert (made, fresh.metrics.made) == (5, 0), "the fresh engine found the results under the same keys"


async def test_the_next_threads_give_way_as_much_as_the_first(
    bench_of: Any, trajectory_of: Any, most_rows: Callable[[int], None]
) -> None:
    """A thread begins with the niceness of the one that starts it."""
    before = set(threading.enumerate())
    most_rows(3)
    bench = bench_of(batch_rows=8, decode_batch=1, niceness=2)
    for _ in range(2):
        with pytest.raises(ExhaustedError):
            await bench.generate([trajectory_of()])
    await bench.generate([trajectory_of()])
    samplers = [each for each in threading.enumerate() if each.name == "sampler" and each not in before]
    niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert {os.getpriority(os.PRIO_PROCESS, each.native_id or 0) for each in samplers} == {min(niceness + 2, 19)}


async def test_all_that_waits_is_told_and_nothing_hangs(
    bench_of: Any, trajectory_of: Any, most_rows: Callable[[int], None]
) -> None:
    most_rows(3)
    bench = bench_of(batch_rows=8, decode_batch=1)
    requests = [
        bench.generate([trajectory_of(latent_seed=seed)], name)
        for seed in range(6)
        for name in (REFERENCE, "testbed/never")
    ]
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 120)
    assert any(isinstance(outcome, ExhaustedError) for outcome in outcomes)
    assert all(isinstance(outcome, ExhaustedError | list) for outcome in outcomes)


async def test_the_least_shapes_are_refused_with_what_to_do(
    bench_of: Any, trajectory_of: Any, most_rows: Callable[[int], None]
) -> None:
    most_rows(1)
    bench = bench_of(batch_rows=2, decode_batch=1, models_in_memory=1)
    for _ in range(2):
        with pytest.raises(PreconditionError, match="which is the least; free memory") as caught:
            await bench.generate([trajectory_of()])
        assert caught.value.reason == "OUT_OF_MEMORY"
    assert (await bench.engine.Encode(EncodeRequest(model=REFERENCE, prompts=["a"]))).prompts


async def test_a_model_that_does_not_fit_takes_another_ones_place(
    bench_of: Any, trajectory_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def load(*arguments: Any, **named: Any) -> Any:
        if len(bench.engine.models()) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        held.append(1)
        return load_model(*arguments, **named)

    monkeypatch.setattr(engine_module, "load_model", load)
    bench = bench_of(models_in_memory=2)
    await bench.generate([trajectory_of()])
    with pytest.raises(ExhaustedError, match=r"6 rows, 2 decoded pictures and 1 model\b"):
        await bench.generate([trajectory_of()], "testbed/never")
    assert await bench.generate([trajectory_of(latent_seed=9)], "testbed/never")
    assert await bench.generate([trajectory_of(latent_seed=9)])
    assert len(held) == 3


def test_shapes_shrink_to_the_least_in_few_steps() -> None:
    shapes, steps = Shapes(96, 8, 4), 0
    while (following := shapes.smaller(loading=False)) is not None:
        assert following.batch_rows <= shapes.batch_rows
        shapes, steps = following, steps + 1
    assert shapes == Shapes(2, 1, 1)
    assert steps < 12
