"""Calls that wait together share the judges' batches, and nothing else."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.classification.engine import ClassificationEngine
from unerase_backend.classification.metrics import ClassificationMetrics
from unerase_backend.classification.settings import ClassificationSettings
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import UneraseError

RESNET = Question(judge="resnet", labels=["chainsaw"])
CONVNEXT = Question(judge="convnext", labels=["heart"])


class Calls(ClassificationMetrics):
    """Notes each call of a judge."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    def judged(self, judge: str, pictures: int, seconds: float) -> None:
        self.made.append((judge, pictures))


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def engine(
    judges: object, store: ArtifactStore, settings: ClassificationSettings, calls: Calls
) -> Iterator[ClassificationEngine]:
    """Calls of a judge have 8 rows."""
    engine = ClassificationEngine(judges, store, settings, calls)
    yield engine
    engine.close()


async def waiting_together(
    engine: ClassificationEngine, asked: Sequence[tuple[ClassifyRequest, np.ndarray]]
) -> list[ClassifyResponse | BaseException]:
    """Make calls that all wait before the first of them is answered."""
    gate = threading.Event()
    engine._thread.submit(gate.wait)
    made = [asyncio.ensure_future(engine.Classify(*each)) for each in asked]
    await asyncio.sleep(0)
    gate.set()
    return await asyncio.gather(*made, return_exceptions=True)


async def test_waiting_calls_share_batches_and_are_answered_as_alone(
    engine: ClassificationEngine, calls: Calls, pictures: np.ndarray
) -> None:
    asked = [
        (ClassifyRequest(questions=[RESNET]), pictures[:3]),
        (ClassifyRequest(questions=[RESNET, CONVNEXT]), pictures[3:5]),
        (ClassifyRequest(questions=[CONVNEXT]), pictures[5:15]),
        (ClassifyRequest(questions=[RESNET]), pictures[15:16]),
    ]
    together = await waiting_together(engine, asked)
    # Batches of 3 + 2 + 3, then 7 + 1 pictures, each judge's by those that ask it.
    assert sorted(calls.made) == [("convnext", 5), ("convnext", 7), ("resnet", 1), ("resnet", 5)]
    assert together == [await engine.Classify(*each) for each in asked]


async def test_a_call_that_fails_fails_alone(
    engine: ClassificationEngine, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ClassifyRequest(questions=[RESNET])
    before = await engine.Classify(request, pictures[:2])
    judge = engine._judges["resnet"]
    look = judge.look

    def fail_on_black(shown: Sequence[np.ndarray]) -> np.ndarray:
        if any(not picture.any() for picture in shown):
            raise UneraseError("black", reason="BLACK")
        return look(shown)

    monkeypatch.setattr(judge, "look", fail_on_black)
    failed, answered, unknown = await waiting_together(
        engine,
        [
            (request, np.zeros_like(pictures[:1])),
            (request, pictures[:2]),
            (ClassifyRequest(questions=[Question(judge="no", labels=["x"])]), pictures[:1]),
        ],
    )
    assert isinstance(failed, UneraseError)
    assert isinstance(unknown, UneraseError)
    assert (failed.reason, unknown.reason) == ("BLACK", "JUDGE_NOT_FOUND")
    assert answered == before


async def test_who_gives_up_takes_no_place(engine: ClassificationEngine, calls: Calls, pictures: np.ndarray) -> None:
    request = ClassifyRequest(questions=[RESNET])
    gate = threading.Event()
    engine._thread.submit(gate.wait)
    leaving, staying = (asyncio.ensure_future(engine.Classify(request, pictures[:8])) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    gate.set()
    assert len((await staying).pictures) == 8
    assert calls.made == [("resnet", 8)]
