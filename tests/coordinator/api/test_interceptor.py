"""The interceptor behind a real socket, with handlers that fail in every way."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from unerase.v1.types_pb2 import Concept
from unerase_backend.coordinator.api import interceptor
from unerase_backend.coordinator.api.call_limits import CallLimits
from unerase_backend.coordinator.api.interceptor import Interceptor, status_of
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.runtime.access import Gate
from unerase_backend.runtime.errors import (
    ExhaustedError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)

Answer = Any
CALLS, WATCHES = 3, 2


def _identity(value: bytes) -> bytes:
    return value


class _Service:
    """Methods that fail as their request says."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.waiting = 0
        self.all_ended = asyncio.Event()

    async def unary(self, request: bytes, context: Answer) -> bytes:
        self.begun.set()
        if request == b"wait":
            self.waiting += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
                self.waiting -= 1
                if not self.waiting:
                    self.all_ended.set()
        self._raise(request)
        return request

    async def stream(self, request: bytes, context: Answer) -> AsyncIterator[bytes]:
        yield b"first"
        await self.unary(request, context)

    async def upload(self, requests: AsyncIterator[bytes], context: Answer) -> bytes:
        return b"".join([await self.unary(request, context) async for request in requests])

    def _raise(self, request: bytes) -> None:
        match request:
            case b"invalid":
                raise InvalidRequestError.of(*(FieldViolation(f"field[{i}]", "x" * 1000) for i in range(500)))
            case b"missing":
                raise NotFoundError("not there", reason="MODEL_NOT_FOUND", metadata={"model": "m"})
            case b"full":
                raise ExhaustedError("full", retry_after_seconds=1.5)
            case b"bug":
                raise ValueError("/secret/path")


@pytest.fixture
async def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def service() -> _Service:
    return _Service()


@pytest.fixture
async def channel(metrics: Metrics, service: _Service) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(interceptors=[Interceptor(metrics, Gate(None), CallLimits(CALLS, WATCHES))])
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(service.unary, _identity, _identity),
        "Stream": grpc.unary_stream_rpc_method_handler(service.stream, _identity, _identity),
        "Watch": grpc.unary_stream_rpc_method_handler(service.stream, _identity, _identity),
        "Upload": grpc.stream_unary_rpc_method_handler(service.upload, _identity, _identity),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel
    await server.stop(None)


async def _fail(
    channel: grpc.aio.Channel, method: str, request: bytes, name: str = ""
) -> tuple[grpc.aio.AioRpcError, list[Any]]:
    path = f"/test.Service/{name or method}"

    async def call() -> None:
        if method == "Unary":
            await channel.unary_unary(path)(request, timeout=10)
        elif method == "Upload":
            await channel.stream_unary(path)(iter([b"fine", request]), timeout=10)
        else:
            async for _ in channel.unary_stream(path)(request, timeout=10):
                pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    details = [kind.FromString(item.value) for item in status.details for kind in kinds if item.Is(kind.DESCRIPTOR)]
    return caught.value, details


def _count(metrics: Metrics, method: str, code: str) -> float | None:
    return metrics.registry.get_sample_value("unerase_rpcs_total", {"method": method, "code": code})


async def _counted(metrics: Metrics, method: str, code: str) -> float | None:
    """How many calls of a method ended with a code: waits for the first, since its answer may be there before."""
    async with asyncio.timeout(30):
        while not _count(metrics, method, code):  # noqa: ASYNC110 - a counter tells nobody of its change
            await asyncio.sleep(0)
    return _count(metrics, method, code)


@pytest.mark.parametrize("method", ["Unary", "Stream", "Upload"])
async def test_a_domain_error_arrives_with_its_details(channel: grpc.aio.Channel, method: str) -> None:
    error, details = await _fail(channel, method, b"missing")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "not there")
    assert (details[0].reason, details[0].domain, dict(details[0].metadata)) == (
        "MODEL_NOT_FOUND",
        "unerase",
        {"model": "m"},
    )


@pytest.mark.parametrize("method", ["Unary", "Stream", "Upload"])
async def test_more_violations_than_fit_are_counted(channel: grpc.aio.Channel, method: str) -> None:
    error, details = await _fail(channel, method, b"invalid")
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = details[1].field_violations
    assert violations[0].field == "field[0]"
    assert violations[-1].description == f"{500 - len(violations) + 1} more bad fields"


@pytest.mark.parametrize("request_bytes", [b"fine", b"missing"])
@pytest.mark.parametrize(
    ("sent", "kept"), [((("x-request-id", "mine-1.2_3"),), True), ((("x-request-id", "not fit"),), False), ((), False)]
)
async def test_every_answer_has_its_request_id(
    channel: grpc.aio.Channel, request_bytes: bytes, sent: tuple[tuple[str, str], ...], kept: bool
) -> None:
    call = channel.unary_unary("/test.Service/Unary")(request_bytes, timeout=10, metadata=sent)
    assert await call.code() == (grpc.StatusCode.OK if request_bytes == b"fine" else grpc.StatusCode.NOT_FOUND)
    answered = [value for key, value in await call.trailing_metadata() if key == "x-request-id"]
    assert len(answered) == 1
    assert (answered[0] == "mine-1.2_3") == kept
    assert kept or len(answered[0]) == 32


async def test_a_tenant_has_so_many_calls_and_gets_them_back(
    channel: grpc.aio.Channel, service: _Service, metrics: Metrics
) -> None:
    calls = [channel.unary_unary("/test.Service/Unary")(b"wait") for _ in range(CALLS)]
    watches = [channel.unary_stream("/test.Service/Watch")(b"wait") for _ in range(WATCHES)]
    for watch in watches:
        assert await watch.read() == b"first"
    error, details = await _fail(channel, "Watch", b"wait")
    assert (error.code(), details[0].reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHES_FULL")
    assert details[1].retry_delay.ToSeconds() == 1
    error, details = await _fail(channel, "Unary", b"fine")
    assert (error.code(), details[0].reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLS_FULL")
    for call in (*calls, *watches):
        call.cancel()
    await asyncio.wait_for(service.all_ended.wait(), 5)
    assert await channel.unary_unary("/test.Service/Unary")(b"fine") == b"fine"
    assert await channel.unary_stream("/test.Service/Watch")(b"wait").read() == b"first"


async def test_nothing_is_read_of_who_is_not_let_in(tmp_path: Path) -> None:
    """The request of a stranger stays with the stranger: the server gives up the call, and asks for no byte of it."""
    service, read = _Service(), []
    (tmp_path / "tokens.json").write_text('{"tokens": []}')

    def parse(request: bytes) -> bytes:
        read.append(len(request))
        return request

    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(tmp_path / "tokens.json"))])
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(service.unary, parse, _identity)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        error, _ = await _fail(channel, "Unary", bytes(4_000_000))
    await server.stop(None)
    assert (error.code(), read) == (grpc.StatusCode.UNAUTHENTICATED, [])


async def test_a_call_without_a_request(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.stream_unary("/test.Service/Unary")(iter([]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_that_does_not_come_is_not_waited_for(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "REQUEST_SECONDS", 0.1)
    call = channel.stream_unary("/test.Service/Unary")(timeout=10)
    assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "did not arrive" in await call.details()


@pytest.mark.parametrize("method", ["Unary", "Stream", "Upload"])
async def test_a_method_that_there_is_not_is_an_error_like_any_other(
    channel: grpc.aio.Channel, metrics: Metrics, method: str
) -> None:
    error, details = await _fail(channel, method, b"whatever", name="Nothing")
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert (details[0].reason, details[0].domain) == ("METHOD_UNKNOWN", "unerase")
    assert dict(error.trailing_metadata())["x-request-id"]
    # Names that callers make up would be as many metrics.
    assert await _counted(metrics, "unknown", "UNIMPLEMENTED") == 1


async def test_a_full_room_says_when_to_come_back(channel: grpc.aio.Channel) -> None:
    error, details = await _fail(channel, "Unary", b"full")
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details[1].retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("method", ["Unary", "Stream", "Upload"])
async def test_a_bug_tells_nothing_but_its_number(
    channel: grpc.aio.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    error, details = await _fail(channel, method, b"bug")
    assert error.code() == grpc.StatusCode.INTERNAL
    incident = details[0].metadata["incident"]
    assert incident in (error.details() or "")
    assert "secret" not in (error.details() or "")
    assert incident in caplog.text
    assert "/secret/path" in caplog.text


async def test_calls_are_counted_by_method_and_code(channel: grpc.aio.Channel, metrics: Metrics) -> None:
    assert await channel.unary_unary("/test.Service/Unary")(b"fine") == b"fine"
    await _fail(channel, "Unary", b"missing")

    method = "test.Service/Unary"
    assert (await _counted(metrics, method, "OK"), await _counted(metrics, method, "NOT_FOUND")) == (1, 1)
    assert _count(metrics, method, "INTERNAL") is None
    seconds = metrics.registry.get_sample_value("unerase_rpc_seconds_count", {"method": method})
    assert seconds == 2


async def test_an_answer_that_could_not_be_sent_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "MAX_SEND_BYTES", 1000)

    async def large(request: bytes, context: Answer) -> Concept:
        return Concept(name="x" * len(request))

    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(None))])
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(large, _identity, Concept.SerializeToString)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        assert await channel.unary_unary("/test.Service/Unary")(bytes(900))
        error, details = await _fail(channel, "Unary", bytes(1001))
    await server.stop(None)
    assert (error.code(), details[0].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ANSWER_TOO_LARGE")


async def test_a_callers_cancel_and_deadline_reach_the_handler(channel: grpc.aio.Channel, service: _Service) -> None:
    call = channel.unary_unary("/test.Service/Unary")(b"wait")
    await service.begun.wait()
    call.cancel()
    await asyncio.wait_for(service.cancelled.wait(), 5)
    service.cancelled.clear()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/test.Service/Unary")(b"wait", timeout=0.1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(service.cancelled.wait(), 5)


@pytest.mark.parametrize("sign", ["é", "\n", "%", "\U0001f9ea"])
async def test_a_status_of_any_signs_arrives(sign: str) -> None:
    async def fail(request: bytes, context: Answer) -> bytes:
        raise InvalidRequestError.of(*[FieldViolation(sign * 300, sign * 500)] * 50)

    server = grpc.aio.server(interceptors=[Interceptor(Metrics(), Gate(None))])
    handlers = {"Unary": grpc.unary_unary_rpc_method_handler(fail, _identity, _identity)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        error, details = await _fail(channel, "Unary", b"")
    await server.stop(None)
    assert (error.code(), details[0].reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


@pytest.mark.parametrize("sign", ["é", "\n", "%", "\U0001f9ea"])
def test_a_status_fits_into_the_trailers(sign: str) -> None:
    violations = [FieldViolation("f" * 10_000, sign * 10_000)] * 50
    error = PreconditionError("m" * 100_000, metadata={"k" * 1000: "v" * 10_000}, violations=violations)
    assert status_of(error).ByteSize() < 8000
