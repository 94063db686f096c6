"""An engine over the testbed's models with small batches, and a judge that counts what it is asked."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unerase.internal.v1alpha1.classification_pb2 import PictureJudgements
from unerase.internal.v1alpha1.generation_pb2 import GenerateRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Conditioning, Question, Sample, Trajectory
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, Judgement
from unerase_backend.catalogue import Catalogue
from unerase_backend.generation.engine import GenerationEngine
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.settings import GenerationSettings
from unerase_backend.runtime.artifacts import ArtifactStore

REFERENCE = "testbed/reference"


@dataclass
class Counting(GenerationMetrics):
    """Counts ticks and ended trajectories, and tells at each tick."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    ticks: int = 0
    made: int = 0
    cached: int = 0
    unet_seconds: float = 0.0
    most_rows: int = 0
    rows: int = 0
    places: int = 0

    def ticked(self, unet_seconds: float, rows: int, called: int) -> None:
        with self.changed:
            self.ticks += 1
            self.unet_seconds += unet_seconds
            self.most_rows = max(self.most_rows, rows)
            self.rows += rows
            self.places += called if unet_seconds > 0 else 0
            self.changed.notify_all()

    def finished(self, pictures: int, *, cached: bool) -> None:
        if cached:
            self.cached += pictures
        else:
            self.made += pictures


@dataclass
class Brightness:
    """A judge: the score is the picture's mean brightness."""

    batches: list[int] = field(default_factory=list)

    async def __call__(self, pictures: np.ndarray, questions: Sequence[Question]) -> list[PictureJudgements]:
        assert pictures.dtype == np.uint8
        self.batches.append(len(pictures))
        return [
            PictureJudgements(
                status=SAMPLE_STATUS_SCORED,
                judgements=[
                    Judgement(judge=question.judge, score=float(picture.mean()) / 255) for question in questions
                ],
            )
            for picture in pictures
        ]


@dataclass
class Bench:
    """An engine with what surrounds it."""

    engine: GenerationEngine
    store: ArtifactStore
    metrics: Counting
    judge: Brightness

    async def generate(self, trajectories: Sequence[Trajectory], model: str = REFERENCE, **fields: Any) -> list[Sample]:
        request = GenerateRequest(model=model, trajectories=trajectories, **{"latents": True} | fields)
        samples: dict[int, Sample] = {}
        async for response in self.engine.Generate(request):
            assert response.index not in samples
            samples[response.index] = response.sample
        return [samples[index] for index in range(len(trajectories))]

    async def ticked(self, more: int = 1) -> None:
        """Wait until the sampler has taken `more` steps."""
        metrics = self.metrics

        def wait() -> bool:
            with metrics.changed:
                wanted = metrics.ticks + more
                return metrics.changed.wait_for(lambda: metrics.ticks >= wanted, timeout=60)

        assert await asyncio.to_thread(wait)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # The number of threads is part of the numerics profile: a comparison needs the engine's.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture
def bench_of(catalogue: Catalogue, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Makes engines over one store; keyword arguments are settings."""
    made: list[Bench] = []

    def make(**fields: Any) -> Bench:
        settings = GenerationSettings(**{"artifacts": str(tmp_path), "batch_rows": 6, "decode_batch": 2} | fields)
        store, metrics, judge = ArtifactStore(settings.artifacts), Counting(), Brightness()
        engine = GenerationEngine(catalogue, store, settings, judge, metrics)
        made.append(Bench(engine, store, metrics, judge))
        return made[-1]

    yield make
    for bench in made:
        bench.engine.close()


@pytest.fixture
def bench(bench_of: Callable[..., Bench]) -> Bench:
    return bench_of()


@pytest.fixture(scope="session")
def trajectory_of() -> Callable[..., Trajectory]:
    """Makes a short guided trajectory; keyword arguments replace its fields."""

    def make(text: str = "a picture of a hourglass", **fields: Any) -> Trajectory:
        defaults: dict[str, Any] = {
            "conditioning": Conditioning(text=text),
            "guidance_scale": 3.0,
            "latent_seed": 1,
            "noise_seed": 2,
            "steps": 3,
            "variance_scale": 1.0,
        }
        return Trajectory(**defaults | fields)

    return make
