"""Calls to the other rooms from a Serve replica: Ray's errors become the domain's, and cancelling the caller cancels
the call.

A handle is looked up when it is first used, so that the rooms may start in any order. Serve repeats a call only until a
replica has accepted it. If a replica dies during a call, the caller gets `UnavailableError`, and repeats the call if it
knows that this is safe. With no replica alive Serve's router would wait for ever, so every wait has a limit.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import (
    BackPressureError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.schema import ReplicaState

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest, ClassifyResponse, PictureJudgements
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.runtime.call_context import call_context
from unerase_backend.runtime.errors import ExhaustedError, UnavailableError

Backends = TypeVar("Backends")

# As long as a unit of an attack may take: where pictures are slow to make, a call may have to wait that long.
STALL_SECONDS = 6 * 3600.0
"""The most seconds to wait for an answer, or for the next item of a stream."""


class ReplicaDiedError(UnavailableError):
    """The replica that was answering the call died."""


class Room:
    """A Serve application whose methods are called by the names of its RPCs."""

    def __init__(self, application: str) -> None:
        self.application = application
        self._handle: Any = None

    async def call(self, method: str, *arguments: Any, timeout_seconds: float = STALL_SECONDS) -> Any:
        """Call a unary RPC and return its response.

        Raises:
            UnavailableError: the replica died, or nothing answered within `timeout_seconds`.
            UneraseError: what the room itself raised.
        """
        response = getattr(await self._resolve(), method).remote(*arguments, context=call_context())
        try:
            async with asyncio.timeout(timeout_seconds):
                return await response
        except BaseException as error:
            await _cancel(response)
            self._reraise(error)

    async def stream(self, method: str, *arguments: Any, timeout_seconds: float = STALL_SECONDS) -> AsyncGenerator[Any]:
        """Call a streaming RPC and yield its responses; leaving the iteration cancels the call.

        A list is a portion of responses (`portions.py`).

        Raises:
            UnavailableError: the replica died, or no item came within `timeout_seconds`.
            UneraseError: what the room itself raised.
        """
        response = getattr((await self._resolve()).options(stream=True), method).remote(
            *arguments, context=call_context()
        )
        ended = False
        try:
            while True:
                async with asyncio.timeout(timeout_seconds):
                    try:
                        item = await anext(response)
                    except StopAsyncIteration:
                        ended = True
                        return
                for each in item if isinstance(item, list) else (item,):
                    yield each
        except BaseException as error:
            self._reraise(error)
        finally:
            if not ended:
                await _cancel(response)

    async def _resolve(self) -> Any:
        if self._handle is None:
            try:
                # The lookup asks Serve's controller and blocks, which must not stop the event loop.
                self._handle = await asyncio.to_thread(serve.get_app_handle, self.application)
            except (RayServeException, RayError) as error:
                self._reraise(error)
        return self._handle

    def _reraise(self, error: BaseException) -> NoReturn:
        raise _translate(self.application, error) from None


async def _cancel(response: Any) -> None:
    # `cancel` may wait for the router, which runs on another event loop.
    await asyncio.shield(asyncio.to_thread(response.cancel))


def _translate(application: str, error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, BackPressureError):
        return ExhaustedError(
            f"the room {application!r} has too many calls; try again later",
            reason="ROOM_BUSY",
            metadata={"room": application},
            retry_after_seconds=error.retry_after_s or 1.0,
        )
    problem = _problem(error)
    if not problem:
        return error
    kind = ReplicaDiedError if isinstance(error, RayActorError) else UnavailableError
    return kind(
        f"the room {application!r} {problem}",
        reason="ROOM_UNAVAILABLE",
        metadata={"room": application},
        retry_after_seconds=1.0,
    )


def _problem(error: BaseException) -> str:
    match error:
        case TimeoutError():
            return "did not answer in time"
        case RayActorError() | ReplicaUnavailableError():
            return "is temporarily unavailable"
        case RequestCancelledError():
            return "cancelled the call"
        case asyncio.CancelledError() if not _cancelled_by_caller():
            # If a replica shuts down during a call, Serve raises CancelledError as if the caller had been cancelled.
            return "cancelled the call"
        case RayServeException():
            return "is not deployed"
    return ""


def _cancelled_by_caller() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


GENERATION = Room("generation")
CLASSIFICATION = Room("classification")
PROBING = Room("probing")
ATTACK = Room("attack")


def rooms_serving(rooms: Iterable[Room]) -> dict[Room, bool]:
    """Ask Serve's controller which of the rooms have a running replica; this blocks.

    Raises:
        RayServeException, RayError: the controller does not answer.
    """
    # `serve.status()` asks the same, and checks and pickles every deployment's configuration each time.
    client = _get_global_client(raise_if_no_controller_running=False)
    applications = client.get_serve_details()["applications"] if client else {}
    return {room: _is_running(applications.get(room.application, {})) for room in rooms}


def _is_running(application: Mapping[str, Any]) -> bool:
    """Return whether an application, as `ServeInstanceDetails` describes it, has a running replica."""
    deployments = application.get("deployments", {}).values()
    return any(
        replica["state"] == ReplicaState.RUNNING for deployment in deployments for replica in deployment["replicas"]
    )


def remote_models(models: Callable[..., Backends]) -> Backends:
    """Return an instance of `models`, the class of an evaluation's backends, that calls the other rooms."""
    return models(
        generate_stream=lambda request: GENERATION.stream("Generate", request),
        encode_prompts=lambda request: GENERATION.call("Encode", request),
        measure_pictures=lambda request: GENERATION.call("MeasureDenoising", request),
        classify_pictures=lambda request: CLASSIFICATION.call("Classify", request),
    )


Classify = Callable[[NDArray[np.uint8], Sequence[Question]], Awaitable[list[PictureJudgements]]]


def remote_classify() -> Classify:
    """Return a function that has pictures, (n, height, width, 3), judged; sent through Ray's object store."""

    async def classify(pictures: NDArray[np.uint8], questions: Sequence[Question]) -> list[PictureJudgements]:
        reference = ray.put(pictures)
        response: ClassifyResponse = await CLASSIFICATION.call(
            "Classify", ClassifyRequest(questions=questions), reference
        )
        return list(response.pictures)

    return classify
