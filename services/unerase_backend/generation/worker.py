"""The one thread that computes: it steps every model that has work, in turn, one UNet call each.

Each model has a lane. A lane has a queue for each caller, served in rotation, so that a large request does not delay a
small one; its trajectories share the sampler's batch. Models are loaded in a second thread, and only so many are in
memory at once. If all places are taken, a lane that has run for a while stops admitting trajectories and makes room.
Derived models are many, and each is needed for a short time, so they use one place one after another. The first of them
takes the place of a model of the catalogue only if no place is free.
"""

import itertools
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sampler import Finished, Sampler
from unerase_backend.diffusion.sharing import share_weights
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.model_request import RequestedModel
from unerase_backend.generation.unet_clock import UNetClock
from unerase_backend.runtime.errors import UneraseError
from unerase_backend.runtime.exhaustion import is_out_of_memory, release_memory

_LOG = logging.getLogger(__name__)

# The ticks after which a model gives its place to one that waits; loading a model takes about as long.
TURN_TICKS = 500

Done = Callable[[Finished | UneraseError], None]
Job = Callable[[DiffusionModel], Generator[tuple[int, int], None, Any]]
"""Makes the steps of a job on a model; each yields how many rows of a call of the UNet it used and how many it had;
(0, 0) without one."""


@dataclass(eq=False)
class Work:
    """A trajectory handed to the worker.

    `done` is called once, from the worker's thread, unless it was cancelled; `ending` before it, for all that end in
    one step before the first of them is done.
    """

    key: str
    lane: str
    trajectory: Trajectory
    picture: bool
    given: Given
    ending: Callable[[], None]
    done: Done
    # Seconds since 1970.
    submitted: float = field(default_factory=time.time)
    admitted: float = 0.0


@dataclass(eq=False)
class _Lane:
    model: RequestedModel
    sampler: Sampler | None = None
    loading: bool = False
    draining: bool = False
    ticks: int = 0
    queues: OrderedDict[Hashable, deque[Work]] = field(default_factory=OrderedDict)
    running: dict[str, Work] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    jobs: deque[tuple[Job, Future[Any]]] = field(default_factory=deque)
    started: Generator[tuple[int, int], None, Any] | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.queues or self.running or self.jobs)

    @property
    def evictable(self) -> bool:
        return not (self.running or self.started) and (self.draining or not (self.queues or self.jobs))


class Worker:
    """Steps trajectories and jobs of any number of models."""

    def __init__(
        self,
        load: Callable[[RequestedModel], DiffusionModel],
        *,
        batch_rows: int,
        decode_batch: int,
        models_in_memory: int,
        torch_threads: int,
        niceness: int = 0,
        metrics: GenerationMetrics,
        exhausted: Callable[[bool], UneraseError],
    ) -> None:
        """Start the thread.

        `exhausted` is called once, in a thread of the worker, if the device has too little memory; it is told whether
        a model was being loaded, and returns the error of all work. The worker does nothing more after that.
        """
        self._load = load
        self._exhausted = exhausted
        self._ended_by: UneraseError | None = None
        self._batch_rows = batch_rows
        self._decode_batch = decode_batch
        self._models_in_memory = models_in_memory
        self._torch_threads = torch_threads
        self._niceness = niceness
        self._metrics = metrics
        self._serial = itertools.count()
        # By digest, the least recently used first.
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._changed = threading.Condition()
        self.loading = threading.Lock()
        """Held while weights are loaded: the libraries patch themselves meanwhile, which is not thread-safe."""
        self._closed = False
        self._clock = UNetClock()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def submit(
        self,
        model: RequestedModel,
        caller: Hashable,
        trajectory: Trajectory,
        *,
        picture: bool,
        given: Given,
        ending: Callable[[], None],
        done: Done,
    ) -> Work:
        """Queue a trajectory of a model, with the artefacts that it names by digest.

        Raises:
            UneraseError: the device has run out of memory.
        """
        work = Work(str(next(self._serial)), model.digest, trajectory, picture, given, ending, done)
        with self._changed:
            if self._ended_by is not None:
                raise self._ended_by
            self._lane(model).queues.setdefault(caller, deque()).append(work)
            self._changed.notify()
        return work

    def cancel(self, work: Work) -> None:
        """Cancel a trajectory; it leaves its batch before the next step."""
        with self._changed:
            lane = self._lanes.get(work.lane)
            if lane is None:
                return
            if lane.running.pop(work.key, None) is not None:
                lane.cancelled.append(work.key)
            for caller, queue in list(lane.queues.items()):
                if work in queue:
                    queue.remove(work)
                    if not queue:
                        del lane.queues[caller]
            self._changed.notify()

    def compute(self, model: RequestedModel, job: Job) -> Future[Any]:
        """Run a job of a model between ticks, one step of its generator at a time.

        Cancelling the future ends the job at its next step.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._ended_by is not None:
                future.set_exception(self._ended_by)
                return future
            self._lane(model).jobs.append((job, future))
            self._changed.notify()
        return future

    def held(self) -> list[RequestedModel]:
        """Return the models that are in memory or being loaded."""
        with self._changed:
            return [lane.model for lane in self._lanes.values() if lane.sampler is not None or lane.loading]

    def close(self) -> None:
        """Stop after the current step; queued work is never done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _lane(self, model: RequestedModel) -> _Lane:
        lane = self._lanes.setdefault(model.digest, _Lane(model))
        self._lanes.move_to_end(model.digest)
        return lane

    def _run(self) -> None:
        # Linux counts niceness by thread, and the threads that this one starts have its own: among them the next
        # worker's, when memory has run out.
        wanted = os.getpriority(os.PRIO_PROCESS, os.getpid()) + self._niceness
        os.nice(max(wanted - os.getpriority(os.PRIO_PROCESS, 0), 0))
        torch.set_num_threads(self._torch_threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._make_room() or self._runnable())
                if self._closed:
                    return
                lanes = self._runnable()
            for lane in lanes:
                try:
                    self._turn(lane)
                except Exception as error:
                    if is_out_of_memory(error):
                        self._end(loading=False)
                        break
                    _LOG.exception("a step of the model %s failed", lane.model.name)
                    self._fail(lane, _as_domain(error))

    def _runnable(self) -> list[_Lane]:
        return [lane for lane in self._lanes.values() if lane.sampler is not None and (lane.has_work or lane.cancelled)]

    def _make_room(self) -> bool:
        """Start loading a model that waits, if there is a place for it; called under the lock."""
        waiting = [lane for lane in self._lanes.values() if lane.has_work and lane.sampler is None and not lane.loading]
        if not waiting:
            for lane in self._lanes.values():
                lane.draining = False
            return False
        for lane in waiting:
            if self._take_place(lane):
                lane.loading = True
                # A thread that stays alive keeps an OpenMP pool of its own. With more pools than cores, OpenMP puts the
                # sampler's threads to sleep between operations.
                threading.Thread(target=self._fill, args=(lane,), name="loader", daemon=True).start()
                break
        return False

    def _take_place(self, lane: _Lane) -> bool:
        """Return whether there is a place for the lane; if need be, evict an idle lane or ask one to drain."""
        held = [other for other in self._lanes.values() if other.sampler is not None or other.loading]
        derived = [other for other in held if other.model.derived]
        if len(held) < self._models_in_memory and not (lane.model.derived and derived):
            return True
        # Derived models are evicted first, and a derived model only replaces another one.
        loaded = [other for other in (derived if lane.model.derived and derived else held) if not other.loading]
        idle = min((other for other in loaded if other.evictable), key=lambda one: not one.model.derived, default=None)
        if idle is None:
            tired = max(loaded, key=lambda other: other.ticks, default=None)
            if tired is not None and tired.ticks >= TURN_TICKS:
                tired.draining = True
            return False
        idle.sampler, idle.draining, idle.ticks = None, False, 0
        if not idle.has_work:
            del self._lanes[idle.model.digest]
        return True

    def _fill(self, lane: _Lane) -> None:
        begin = time.perf_counter()
        try:
            with self.loading:
                model = self._load(lane.model)
            with self._changed:
                held = [other.sampler.model for other in self._lanes.values() if other.sampler is not None]
            share_weights(model, held)
            sampler = Sampler(model, batch_rows=self._batch_rows, decode_batch=self._decode_batch)
            self._clock.attach(model)
        except Exception as error:
            self._metrics.loaded(time.perf_counter() - begin, failed=True)
            if is_out_of_memory(error):
                self._end(loading=True)
                return
            if not isinstance(error, UneraseError):
                _LOG.exception("the model %s cannot be loaded", lane.model.name)
            with self._changed:
                lane.loading = False
            self._fail(lane, _as_domain(error))
            return
        self._metrics.loaded(time.perf_counter() - begin, failed=False)
        with self._changed:
            lane.sampler, lane.loading = sampler, False
            self._changed.notify()

    def _turn(self, lane: _Lane) -> None:
        sampler = lane.sampler
        assert sampler is not None  # noqa: S101 - only loaded lanes run
        with self._changed:
            cancelled, lane.cancelled = lane.cancelled, []
        for key in cancelled:
            sampler.cancel(key)
        self._admit(lane, sampler)
        if sampler.busy:
            finished = sampler.tick()
            lane.ticks += 1
            self._metrics.ticked(self._clock.take(), sampler.rows_computed, sampler.rows_called)
            with self._changed:
                ended = [(lane.running.pop(result.key, None), result) for result in finished]
            there = [(work, result) for work, result in ended if work is not None]
            for work, _ in there:
                work.ending()
            for work, result in there:
                work.done(result)
        if lane.started is not None or (lane.jobs and not lane.draining):
            self._step_job(lane, sampler.model)

    def _admit(self, lane: _Lane, sampler: Sampler) -> None:
        while sampler.room > 0 and not lane.draining:
            with self._changed:
                if not lane.queues:
                    break
                caller, queue = next(iter(lane.queues.items()))
                work = queue.popleft()
                lane.queues.move_to_end(caller)
                if not queue:
                    del lane.queues[caller]
                lane.running[work.key] = work
            work.admitted = time.time()
            self._metrics.admitted(max(work.admitted - work.submitted, 0.0))
            try:
                sampler.admit(work.key, work.trajectory, picture=work.picture, given=work.given)
            except UneraseError as error:
                with self._changed:
                    lane.running.pop(work.key, None)
                work.done(error)
        with self._changed:
            queued = sum(len(queue) for other in self._lanes.values() for queue in other.queues.values())
        self._metrics.queued(queued)

    def _step_job(self, lane: _Lane, model: DiffusionModel) -> None:
        job, future = lane.jobs[0]
        ended = False
        lane.ticks += 1
        try:
            if lane.started is None:
                lane.started = job(model)
            if future.cancelled():
                lane.started.close()
                ended = True
            elif (rows := next(lane.started))[1]:
                self._metrics.ticked(self._clock.take(), *rows)
        except StopIteration as stop:
            ended = True
            if future.set_running_or_notify_cancel():
                future.set_result(stop.value)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            ended = True
            if not isinstance(error, UneraseError):
                _LOG.exception("a job of the model %s failed", lane.model.name)
            if future.set_running_or_notify_cancel():
                future.set_exception(_as_domain(error))
        if ended:
            with self._changed:
                lane.started = None
                lane.jobs.popleft()

    def _end(self, *, loading: bool) -> None:
        """Fail everything, now and later, because the device has too little memory."""
        with self._changed:
            if self._closed:
                return
            self._ended_by = error = self._exhausted(loading)
            self._closed = True
            lanes = list(self._lanes.values())
        _LOG.warning("%s", error.message)
        for lane in lanes:
            self._fail(lane, error)
        release_memory()

    def _fail(self, lane: _Lane, error: UneraseError) -> None:
        """Fail everything in a lane, and load the model again when it is next requested."""
        with self._changed:
            works = [*lane.running.values(), *(work for queue in lane.queues.values() for work in queue)]
            jobs = list(lane.jobs)
            self._lanes.pop(lane.model.digest, None)
            lane.sampler = None
            self._changed.notify()
        for work in works:
            work.done(error)
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _as_domain(error: Exception) -> UneraseError:
    if isinstance(error, UneraseError):
        return error
    return UneraseError("the model failed on this request", reason="MODEL_FAILED")
