"""Pictures of several calls in one call of each judge.

Every call of a judge has one fixed shape, so that a call for one picture takes nearly as long as one for a full batch.
What waits while the judges look at a batch is looked at together, the calls in order of arrival. A row of what a judge
sees depends only on its picture, so that no answer depends on who else asked.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase_backend.classification.registry import Features, Judge, Picture
from unerase_backend.runtime import tracing
from unerase_backend.runtime.errors import CancelledError
from unerase_backend.runtime.pictures import UnreadablePictureError

Shown = Picture | UnreadablePictureError
Seen = dict[str, Features]
Answer = Callable[["Asked", Sequence[Shown], Seen], list[PictureJudgements]]
Judged = Callable[[str, int, float], None]


@dataclass(eq=False)
class Asked:
    """One call of the judges."""

    request: ClassifyRequest
    pictures: NDArray[np.uint8] | None = None
    """What is judged in place of the request's own pictures."""
    judges: dict[str, Judge] = field(default_factory=dict)
    shown: Iterator[Shown] = field(default_factory=lambda: iter(()))
    """Its pictures, each read when its turn has come."""
    count: int = 0
    answers: list[PictureJudgements] = field(default_factory=list)
    future: "Future[ClassifyResponse]" = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)
    context: Context = field(default_factory=copy_context)


class Gathering:
    """The calls that wait for the judges; only `ask` may be called from another thread than the judges'."""

    def __init__(self, batch_size: int, prepare: Callable[[Asked], None], answer: Answer, judged: Judged) -> None:
        """Take the functions of the engine.

        `prepare` sets a call's judges, pictures and count, or raises; `answer` makes the answers of some of its
        pictures from what the judges saw of those that are readable; `judged` is told of each call of a judge.
        """
        self._batch_size = batch_size
        self._prepare = prepare
        self._answer = answer
        self._judged = judged
        self._new: deque[Asked] = deque()
        self._open: list[Asked] = []

    def ask(self, asked: Asked) -> None:
        """Let a call wait for its turn."""
        self._new.append(asked)

    def run(self) -> None:
        """Answer everything that waits, and what comes meanwhile."""
        while self._new or self._open:
            while self._new:
                self._begin(self._new.popleft())
            self._look_once()

    def _begin(self, asked: Asked) -> None:
        if not asked.future.set_running_or_notify_cancel():
            return
        try:
            asked.context.run(self._prepare, asked)
        except Exception as error:
            asked.future.set_exception(error)
        else:
            self._open.append(asked)

    def _look_once(self) -> None:
        """Look at one batch of pictures, and answer the calls that are then complete."""
        batch: list[tuple[Asked, list[Shown]]] = []
        room = self._batch_size
        for asked in list(self._open):
            if asked.given_up.is_set():
                self._fail(asked, CancelledError("the caller gave up"))
            elif room:
                try:
                    shown = list(islice(asked.shown, room))
                except Exception as error:
                    self._fail(asked, error)
                    continue
                room -= len(shown)
                batch.append((asked, shown))
        if batch and not self._judge(batch):
            # One of them has a judge or a picture that fails; the others do not fail with it.
            for part in batch:
                self._judge([part])

    def _judge(self, batch: Sequence[tuple[Asked, list[Shown]]]) -> bool:
        """Answer the pictures of a batch; return whether it must be tried again, a call at a time."""
        try:
            seen = self._see(batch)
            answers = [self._answer(asked, shown, of_call) for (asked, shown), of_call in zip(batch, seen, strict=True)]
        except Exception as error:
            if len(batch) > 1:
                return False
            self._fail(batch[0][0], error)
            return True
        for (asked, _), made in zip(batch, answers, strict=True):
            asked.answers += made
            if len(asked.answers) == asked.count:
                self._open.remove(asked)
                asked.future.set_result(ClassifyResponse(pictures=asked.answers))
        return True

    def _see(self, batch: Sequence[tuple[Asked, list[Shown]]]) -> list[Seen]:
        """Return what the judges of each call see of its readable pictures."""
        readable = [[each for each in shown if not isinstance(each, UnreadablePictureError)] for _, shown in batch]
        seen: list[Seen] = [{} for _ in batch]
        named = {name: judge for asked, _ in batch for name, judge in asked.judges.items()}
        for name, judge in named.items():
            asking = [place for place, (asked, _) in enumerate(batch) if name in asked.judges and readable[place]]
            pictures = [picture for place in asking for picture in readable[place]]
            if not pictures:
                continue
            begun, begun_at = time.perf_counter(), time.time_ns()
            features = judge.look(pictures)
            self._judged(name, len(pictures), time.perf_counter() - begun)
            ends = np.cumsum([len(readable[place]) for place in asking])
            for place, rows in zip(asking, np.split(features, ends[:-1]), strict=True):
                seen[place][name] = rows
                batch[place][0].context.run(
                    tracing.record, "classification.judge", begun_at, time.time_ns(), judge=name, pictures=len(rows)
                )
        return seen

    def _fail(self, asked: Asked, error: Exception) -> None:
        self._open.remove(asked)
        asked.future.set_exception(error)
