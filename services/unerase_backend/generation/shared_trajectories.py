"""Trajectories in progress: each is made once, for every caller that waits for it.

A trajectory whose result is in the artefact store is read from there. Any other is queued at the worker, unless it is
in progress already, and is cancelled when its last caller leaves.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from unerase.internal.v1alpha1.trajectories_pb2 import Trajectory
from unerase_backend.diffusion.classifier import LatentClassifier, load_classifier
from unerase_backend.diffusion.given import Given
from unerase_backend.diffusion.guarding import UNGUARDED, Guards
from unerase_backend.diffusion.sampler import Finished
from unerase_backend.generation import results
from unerase_backend.generation.canonical import trajectory_key
from unerase_backend.generation.metrics import GenerationMetrics
from unerase_backend.generation.model_request import RequestedModel
from unerase_backend.generation.results import Result
from unerase_backend.generation.worker import Work, Worker
from unerase_backend.runtime.artifacts import ArtifactStore
from unerase_backend.runtime.errors import FieldViolation, InvalidRequestError, NotFoundError, UneraseError
from unerase_backend.runtime.pictures import decode_picture

CLASSIFIERS_KEPT = 8

Arrival = tuple[list[int], Result | UneraseError]
"""Positions in a caller's request, and the result of the trajectory at all of them."""


@dataclass(eq=False)
class Caller:
    """A request, with the results that have arrived for it and are not yet taken."""

    loop: asyncio.AbstractEventLoop
    # What has arrived, or None where a result that was announced must be made first; and whether it was announced.
    arrived: asyncio.Queue[tuple[Arrival | None, bool]] = field(default_factory=asyncio.Queue)
    # How many of its results have begun to be looked up or stored, and of how many of them the end is known.
    announced: int = 0
    settled: int = 0
    # For the trajectories that the sampler ran for this request: their number, when the first was admitted to a batch,
    # and when the last ended, in seconds since 1970.
    made: int = 0
    admitted: float = 0.0
    ended: float = 0.0

    async def take(self, most: int) -> list[Arrival]:
        """Wait for a result, and return it with others that are there or in the storage, at most `most` in all.

        A call of the judges for one picture takes nearly as long as one for many.
        """
        taken: list[Arrival] = []
        while not taken or (len(taken) < most and (self.announced > self.settled or not self.arrived.empty())):
            arrival, announced = await self.arrived.get()
            self.settled += announced
            if arrival is not None:
                taken.append(arrival)
        return taken


@dataclass(eq=False)
class _Shared:
    """A trajectory in progress, with the callers that wait for it."""

    key: str
    model: RequestedModel
    trajectory: Trajectory
    picture: bool
    waiting: dict[Caller, list[int]] = field(default_factory=dict)
    # While it is being looked up or stored: the callers to whom this was announced.
    announced_to: list[Caller] = field(default_factory=list)
    work: Work | None = None


class SharedTrajectories:
    """The trajectories of one engine that are being made or looked up."""

    def __init__(
        self,
        worker: Worker,
        store: ArtifactStore,
        device: torch.device,
        profile: str,
        metrics: GenerationMetrics,
        load_guards: Callable[[str], Guards],
    ) -> None:
        self._worker = worker
        self._store = store
        self._device = device
        self._profile = profile
        self._metrics = metrics
        self._load_guards = load_guards
        # By the model's name.
        self._guards: dict[str, Guards] = {}
        self._guards_lock = threading.Lock()
        # By key, and by whether there will be a picture.
        self._shared: dict[tuple[str, bool], _Shared] = {}
        self._lock = threading.Lock()
        # By digest, the least recently used first.
        self._classifiers: OrderedDict[str, LatentClassifier] = OrderedDict()
        self._classifiers_lock = threading.Lock()
        self._storage = ThreadPoolExecutor(max_workers=4, thread_name_prefix="storage")

    def join(self, caller: Caller, index: int, model: RequestedModel, trajectory: Trajectory, picture: bool) -> None:
        """Add a caller that waits for a trajectory of a model, at position `index` of its request."""
        key = trajectory_key(model.results_digest, trajectory, self._profile)
        with self._lock:
            shared = self._shared.get((key, True)) or self._shared.get((key, picture))
            found = shared is not None
            if shared is None:
                shared = self._shared[key, picture] = _Shared(key, model, trajectory, picture)
            shared.waiting.setdefault(caller, []).append(index)
            if (not found or shared.announced_to) and caller not in shared.announced_to:
                shared.announced_to.append(caller)
                caller.announced += 1
        if not found:
            self._storage.submit(self._find_or_make, shared, caller)

    def leave(self, caller: Caller) -> None:
        """Remove a caller, and cancel the trajectories that no other caller waits for."""
        with self._lock:
            left = [shared for shared in self._shared.values() if shared.waiting.pop(caller, None) is not None]
            given_up = [shared for shared in left if not shared.waiting]
            for shared in given_up:
                del self._shared[shared.key, shared.picture]
            works = [shared.work for shared in given_up if shared.work is not None]
        for work in works:
            self._worker.cancel(work)

    def close(self) -> None:
        """Wait for the reads and writes in progress, and start no more."""
        self._storage.shutdown(wait=True, cancel_futures=True)

    def _find_or_make(self, shared: _Shared, caller: Caller) -> None:
        try:
            result = results.find(self._store, shared.key, picture=shared.picture)
            given = self._given(shared) if result is None else Given()
        except Exception as error:
            self._deliver(shared, _storage_error(error))
            return
        if result is not None:
            self._metrics.finished(1, cached=True)
            self._deliver(shared, result)
            return
        try:
            with self._lock:
                announced_to, shared.announced_to = shared.announced_to, []
                if shared.waiting:
                    shared.work = self._worker.submit(
                        shared.model,
                        caller,
                        shared.trajectory,
                        picture=shared.picture,
                        given=given,
                        ending=lambda: self._announce(shared),
                        done=lambda outcome: self._done(shared, outcome),
                    )
        except UneraseError as error:
            self._deliver(shared, error)
        for each in announced_to:
            _put(each, None, announced=True)

    def guards(self, model: RequestedModel) -> Guards:
        """Return the guards that act on a model, loaded once; errors as in `Guards.load`."""
        if not model.guarded_digest:
            return UNGUARDED
        with self._guards_lock:
            if model.name not in self._guards:
                self._guards[model.name] = self._load_guards(model.name)
            return self._guards[model.name]

    def _given(self, shared: _Shared) -> Given:
        field, trajectory = "", shared.trajectory
        try:
            picture = beginning = classifier = None
            if trajectory.resumption.picture_digest:
                field = "resumption.picture_digest"
                beginning = decode_picture(self._store.get(trajectory.resumption.picture_digest))
            if trajectory.HasField("inpainting"):
                field = "inpainting.picture_digest"
                picture = decode_picture(self._store.get(trajectory.inpainting.picture_digest))
            if trajectory.HasField("classifier_guidance"):
                field = "classifier_guidance.classifier_digest"
                classifier = self._classifier(trajectory.classifier_guidance.classifier_digest)
        except NotFoundError as error:
            refused = InvalidRequestError.of(FieldViolation(field, error.message))
            refused.reason = error.reason
            raise refused from None
        return Given(picture, beginning, classifier, self.guards(shared.model))

    def _classifier(self, digest: str) -> LatentClassifier:
        with self._classifiers_lock:
            if digest not in self._classifiers:
                self._classifiers[digest] = load_classifier(self._store.get(digest), self._device)
                if len(self._classifiers) > CLASSIFIERS_KEPT:
                    self._classifiers.popitem(last=False)
            self._classifiers.move_to_end(digest)
            return self._classifiers[digest]

    def _announce(self, shared: _Shared) -> None:
        with self._lock:
            shared.announced_to = list(shared.waiting)
            for caller in shared.waiting:
                caller.announced += 1

    def _done(self, shared: _Shared, outcome: Finished | UneraseError) -> None:
        if isinstance(outcome, UneraseError):
            self._deliver(shared, outcome)
        else:
            self._storage.submit(self._keep, shared, outcome)

    def _keep(self, shared: _Shared, finished: Finished) -> None:
        try:
            result = results.keep(self._store, shared.key, finished)
        except Exception as error:
            self._deliver(shared, _storage_error(error))
            return
        self._metrics.finished(1, cached=False)
        self._deliver(shared, result)

    def _deliver(self, shared: _Shared, result: Result | UneraseError) -> None:
        with self._lock:
            if self._shared.get((shared.key, shared.picture)) is shared:
                del self._shared[shared.key, shared.picture]
            waiting = dict(shared.waiting)
            announced_to, shared.announced_to = shared.announced_to, []
            if shared.work is not None and shared.work.admitted:
                for caller, indices in waiting.items():
                    caller.admitted = min(caller.admitted or shared.work.admitted, shared.work.admitted)
                    caller.ended, caller.made = time.time(), caller.made + len(indices)
        for caller, indices in waiting.items():
            _put(caller, (indices, result), announced=caller in announced_to)


def _put(caller: Caller, arrival: Arrival | None, *, announced: bool) -> None:
    if not caller.loop.is_closed():
        caller.loop.call_soon_threadsafe(caller.arrived.put_nowait, (arrival, announced))


def _storage_error(error: Exception) -> UneraseError:
    if isinstance(error, UneraseError):
        return error
    return UneraseError("the artefact store failed", reason="STORE_FAILED")
