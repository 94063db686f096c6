import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from unerase_backend.runtime import handles
from unerase_backend.runtime.errors import ExhaustedError, NotFoundError, UnavailableError, UneraseError
from unerase_backend.runtime.handles import ReplicaDiedError, Room
from unerase_backend.runtime.portions import MOST, PAUSE_SECONDS, in_portions


class _Response:
    """What a Serve handle gives, failing, silent or answering as it is told."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    async def _give(self) -> object:
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is None:
            await asyncio.Event().wait()
        return self._outcome

    def __await__(self) -> Any:
        return self._give().__await__()

    async def __anext__(self) -> object:
        return await self._give()


class _Handle:
    def __init__(self, response: _Response) -> None:
        self._response = response

    def options(self, *, stream: bool) -> "_Handle":
        assert stream
        return self

    def __getattr__(self, name: str) -> Any:
        assert name == "Method"
        return type("Method", (), {"remote": lambda _, *arguments, context: self._response})()


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], tuple[Room, _Response]]:
    def make(outcome: object) -> tuple[Room, _Response]:
        response = _Response(outcome)
        monkeypatch.setattr(handles.serve, "get_app_handle", lambda name: _Handle(response))
        return Room("generation"), response

    return make


async def _stream(room: Room, **options: float) -> list[object]:
    return [item async for item in room.stream("Method", "request", **options)]


async def _call(room: Room, **options: float) -> object:
    return await room.call("Method", "request", **options)


WAYS = pytest.mark.parametrize("way", [_call, _stream])
Way = Callable[..., Awaitable[object]]


@WAYS
@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [
        (RayTaskError("Method", "traceback", NotFoundError("no", reason="MODEL_NOT_FOUND")), NotFoundError,
         "MODEL_NOT_FOUND"),
        (NotFoundError("no", reason="MODEL_NOT_FOUND"), NotFoundError, "MODEL_NOT_FOUND"),
        (ActorDiedError(), ReplicaDiedError, "ROOM_UNAVAILABLE"),
        (ActorUnavailableError("gone", b"0" * 16), ReplicaDiedError, "ROOM_UNAVAILABLE"),
        (RequestCancelledError("id"), UnavailableError, "ROOM_UNAVAILABLE"),
        (asyncio.CancelledError(), UnavailableError, "ROOM_UNAVAILABLE"),
        (RayServeException("no such application"), UnavailableError, "ROOM_UNAVAILABLE"),
        (BackPressureError(5, 4, retry_after_s=3.0), ExhaustedError, "ROOM_BUSY"),
    ],
)  # fmt: skip
async def test_what_ray_raises_becomes_a_domain_error(
    room: Callable[[object], tuple[Room, _Response]],
    way: Way,
    raised: BaseException,
    kind: type[UneraseError],
    reason: str,
) -> None:
    made, response = room(raised)
    with pytest.raises(kind) as caught:
        await way(made)
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert response.cancelled


async def test_a_full_room_says_when_to_come_back(room: Callable[[object], tuple[Room, _Response]]) -> None:
    made, _ = room(BackPressureError(5, 4, retry_after_s=3.0))
    with pytest.raises(ExhaustedError) as caught:
        await _call(made)
    assert (caught.value.code, caught.value.retry_after_seconds) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 3.0)


@WAYS
async def test_a_bug_stays_what_it_is(room: Callable[[object], tuple[Room, _Response]], way: Way) -> None:
    made, _ = room(RayTaskError("Method", "traceback", KeyError("x")))
    with pytest.raises(KeyError):
        await way(made)


@WAYS
async def test_silence_has_a_limit(room: Callable[[object], tuple[Room, _Response]], way: Way) -> None:
    made, response = room(None)
    with pytest.raises(UnavailableError, match="did not answer in time"):
        await way(made, timeout_seconds=0.01)
    assert response.cancelled


@WAYS
async def test_a_cancelled_caller_cancels_the_call(room: Callable[[object], tuple[Room, _Response]], way: Way) -> None:
    made, response = room(None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(way(made), 0.05)
    assert response.cancelled


async def test_leaving_a_stream_cancels_it(room: Callable[[object], tuple[Room, _Response]]) -> None:
    made, response = room("item")
    stream = made.stream("Method", "request")
    assert await anext(stream) == "item"
    await stream.aclose()
    assert response.cancelled


async def test_a_portion_of_a_stream_arrives_item_by_item(room: Callable[[object], tuple[Room, _Response]]) -> None:
    made, _ = room([1, 2])
    stream = made.stream("Method", "request")
    assert [await anext(stream) for _ in range(3)] == [1, 2, 1]
    await stream.aclose()


async def test_portions_hold_every_item_in_order_and_end_with_what_is_waited_for() -> None:
    async def items() -> AsyncGenerator[int]:
        for item in range(2 * MOST):
            yield item

    clock = iter(range(100))
    portions = [portion async for portion in in_portions(items(), lambda item: item in (0, 3), lambda: next(clock))]
    assert [item for portion in portions for item in portion] == list(range(2 * MOST))
    assert [len(portion) for portion in portions] == [1, 3, MOST, MOST - 4]


async def test_what_follows_soon_comes_with_the_next_portion() -> None:
    times = {0: 0.0, 1: PAUSE_SECONDS / 2, 2: PAUSE_SECONDS, 3: PAUSE_SECONDS * 1.5}
    clock = [0.0]

    async def items() -> AsyncGenerator[int]:
        for item, at in times.items():
            clock[0] = at
            yield item

    portions = [portion async for portion in in_portions(items(), lambda _: True, lambda: clock[0])]
    assert portions == [[0], [1, 2], [3]]
