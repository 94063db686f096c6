"""One interceptor for every RPC: it identifies callers, turns errors into rich statuses, counts and times calls, and
limits their time.

A domain error keeps its code and carries google.rpc details: ErrorInfo (its reason), BadRequest (its violations),
RetryInfo (when to try again). Any other error is logged with an incident number; the caller is told only that number.

Every answer ends with the call's `x-request-id`: the caller's own, or a new one. It is in the trailers, because a
client may repeat a call only while no headers have arrived.
"""

# grpc's classes are generic for type checkers only.
from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from opentelemetry.trace import SpanKind

from unerase_backend.coordinator.api.call_limits import AnonymousCalls, CallLimits
from unerase_backend.coordinator.api.scopes import ANY, scope_of
from unerase_backend.coordinator.fair_queue import FairQueue
from unerase_backend.coordinator.metrics import Metrics
from unerase_backend.runtime import tracing
from unerase_backend.runtime.access import CALLER, Gate
from unerase_backend.runtime.bounds import check_bounds
from unerase_backend.runtime.call_context import AUDIT, REQUEST
from unerase_backend.runtime.counting import counted
from unerase_backend.runtime.errors import (
    DeadlineError,
    InvalidRequestError,
    UneraseError,
    UnknownMethodError,
)

_logger = logging.getLogger(__name__)

DOMAIN = "unerase"
REQUEST_ID = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
UNKNOWN = "unknown"
"""The name of every unknown method in metrics."""
UNARY_SECONDS = 300.0
"""The time that a unary call may take if its caller set no deadline."""
REQUEST_SECONDS = 30.0
"""The time in which the request of a call with a token must have arrived."""
MAX_RECEIVE_BYTES = 4 * 1024 * 1024
"""The largest request."""
MAX_SEND_BYTES = 64 * 1024 * 1024
"""The largest answer; clients accept 4 MiB by default, and must allow more to get latents or embeddings."""

# Parsing 4 MiB of small messages takes some 0.1 s. Large requests wait for each other; small ones do not wait for them.
_LARGE_BYTES = 64 * 1024
_PARSING = (2, 1)

# Clients may refuse trailing metadata of more than 8 KiB, and always refuse more than 16 KiB. The message and the
# details are part of it, and the details grow by a third when they are encoded.
_MAX_DETAIL_BYTES = 5000
_MAX_MESSAGE_BYTES = 1000

Context = grpc.aio.ServicerContext[Any, Any]
Translate = Callable[[Exception], UneraseError | None]
"""Turns another error into a domain error; returns None if it cannot."""
Deserialise = Callable[[bytes], Any]
Read = Callable[[AsyncIterator[bytes], Deserialise], Awaitable[Any]]
"""Reads a method's request, or returns an iterator over its requests."""


def status_of(error: UneraseError) -> status_pb2.Status:
    """Return the google.rpc.Status of a domain error; violations that do not fit into the trailers are only counted."""
    code = error.code.value[0]
    status = status_pb2.Status(code=code, message=_sendable(error.message))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[_cut(key, 64)] = _cut(value, 200)
    status.details.add().Pack(info)
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for position, violation in enumerate(error.violations):
            bad.field_violations.add(field=_cut(violation.field, 200), description=_cut(violation.description, 400))
            if status.ByteSize() + bad.ByteSize() > _MAX_DETAIL_BYTES:
                left = len(error.violations) - position
                bad.field_violations[-1].field = ""
                bad.field_violations[-1].description = counted(left, "more bad field")
                break
        status.details.add().Pack(bad)
    return status


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handler of every RPC."""

    def __init__(
        self, metrics: Metrics, gate: Gate, limits: CallLimits | None = None, translate: Translate = lambda error: None
    ) -> None:
        """Admit callers by `gate`; `translate` turns errors of lower layers, such as storage, into domain errors."""
        self._metrics = metrics
        self._translate = translate
        self._gate = gate
        self._limits = limits or CallLimits()
        self._anonymous = AnonymousCalls()
        self._parsing = FairQueue(*_PARSING)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler with errors translated and the call measured."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return grpc.stream_stream_rpc_method_handler(self._streaming(UNKNOWN, _unknown, bytes, self._messages))
        method = handler_call_details.method.lstrip("/")
        # Every handler takes a stream of requests, because gRPC reads a stream only on demand. So the caller is
        # identified before any of its requests is read.
        read = self._messages if handler.request_streaming else self._message
        if scope_of(method) is None:
            read = self._message_without_token
        if handler.response_streaming:
            behaviour: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
            # Health's own Watch is a coroutine that writes its responses; other methods yield theirs.
            awaited = inspect.iscoroutinefunction(behaviour)
            wrap = partial(self._awaited, seconds=None) if awaited else self._streaming
            return grpc.stream_stream_rpc_method_handler(
                wrap(method, behaviour, handler.request_deserializer, read),
                response_serializer=handler.response_serializer,
            )
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        return grpc.stream_unary_rpc_method_handler(
            self._awaited(method, behaviour, handler.request_deserializer, read, seconds=UNARY_SECONDS),
            response_serializer=handler.response_serializer,
        )

    def _awaited(
        self,
        method: str,
        behaviour: Callable[[Any, Context], Awaitable[Any]],
        deserialise: Callable[[bytes], Any],
        read: Read,
        *,
        seconds: float | None,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(requests: Any, context: Context) -> Any:
            with _Measured(self._metrics, self._translate, method, context) as measured:
                try:
                    with self._admitted(method, context):
                        # If the caller set a deadline, gRPC enforces it.
                        async with asyncio.timeout(seconds if context.time_remaining() is None else None):
                            response = await behaviour(await read(requests, deserialise), context)
                            _check_size(response)
                except Exception as error:
                    await measured.fail(error, context)
                measured.code = grpc.StatusCode.OK
                return response

        return call

    def _streaming(
        self,
        method: str,
        behaviour: Callable[[Any, Context], AsyncGenerator[Any]],
        deserialise: Callable[[bytes], Any],
        read: Read,
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(requests: Any, context: Context) -> AsyncIterator[Any]:
            with _Measured(self._metrics, self._translate, method, context) as measured:
                try:
                    with self._admitted(method, context):
                        request = await read(requests, deserialise)
                        async with aclosing(behaviour(request, context)) as responses:
                            async for response in responses:
                                yield response
                except Exception as error:
                    await measured.fail(error, context)
                measured.code = grpc.StatusCode.OK

        return call

    def _admitted(self, method: str, context: Context) -> AbstractContextManager[None]:
        """Admit the call, set its caller, and count it while it is in flight."""
        scope = scope_of(method)
        watch = method.rpartition("/")[2].startswith("Watch")
        if method == UNKNOWN:
            # It is answered at once, so it is not counted.
            return nullcontext()
        if scope is None:
            return self._limits.anonymous_watch(context.peer()) if watch else nullcontext()
        caller = self._gate.admit(_sent(context, "authorization") or None)
        if scope != ANY:
            caller.require(scope)
        CALLER.set(caller)
        return self._limits.take(caller.tenant, watch=watch)

    async def _message(self, requests: AsyncIterator[bytes], deserialise: Deserialise) -> Any:
        """Return the one request of a call."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                request = await anext(requests, None)
        except TimeoutError:
            late = f"the request did not arrive within {REQUEST_SECONDS:g} s"
            raise DeadlineError(late, reason="REQUEST_LATE") from None
        return await self._parsed(request, deserialise)

    async def _message_without_token(self, requests: AsyncIterator[bytes], deserialise: Deserialise) -> Any:
        """Return the one request of a call without a token."""
        async with self._anonymous.waits():
            request = await anext(requests, None)
        return await self._parsed(request, deserialise)

    async def _messages(self, requests: AsyncIterator[bytes], deserialise: Deserialise) -> AsyncIterator[Any]:
        return _Stream(requests, partial(self._parsed, deserialise=deserialise))

    async def _parsed(self, request: bytes | None, deserialise: Deserialise) -> Any:
        """Return the parsed request after checking its bounds; a large one is parsed in a thread, in its turn."""
        if request is None:
            raise InvalidRequestError("the call sent no request")
        if len(request) <= _LARGE_BYTES:
            return _parse(request, deserialise)
        return await self._parsing.run(_parse, request, deserialise)


def _request_id(context: Context) -> str:
    """Return the call's id: the caller's own if it sent a valid one, otherwise a new one."""
    sent = _sent(context, REQUEST_ID)
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _sent(context: Context, key: str) -> str:
    """Return the value of a key in a call's metadata; empty unless the key occurs exactly once."""
    sent = [str(value) for sent_key, value in context.invocation_metadata() or () if sent_key == key]
    return sent[0] if len(sent) == 1 else ""


async def _unknown(requests: Any, context: Context) -> AsyncGenerator[Any]:
    """Answer a call of an unknown method."""
    raise UnknownMethodError("the backend has no such method; reflection lists its methods")
    yield


class _Measured:
    """Measures one call: its metrics, its span and its line in the log.

    A call that ends without setting `code` was cancelled, by its caller or its deadline.
    """

    def __init__(self, metrics: Metrics, translate: Translate, method: str, context: Context) -> None:
        self._metrics = metrics
        self._translate = translate
        self._method = method
        self._request_id = _request_id(context)
        self._traceparent = _sent(context, "traceparent")
        context.set_trailing_metadata(((REQUEST_ID, self._request_id),))
        self.code = grpc.StatusCode.CANCELLED

    def __enter__(self) -> _Measured:
        # Every call is a task of its own, so nothing has to be reset.
        REQUEST.set(self._request_id)
        AUDIT.set("")
        tracing.adopt(self._traceparent)
        self._span = tracing.begin(self._method, SpanKind.SERVER, **{"rpc.system": "grpc"})
        self._begin = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.monotonic() - self._begin
        self._metrics.rpcs.labels(self._method, self.code.name).inc()
        self._metrics.rpc_seconds.labels(self._method).observe(seconds)
        self._span.set_attribute("rpc.grpc.status_code", self.code.value[0])
        self._span.end()
        _logger.info("%s ended with %s after %.3f s", self._method, self.code.name, seconds)

    async def fail(self, error: Exception, context: Context) -> NoReturn:
        """End the call with the error's status."""
        if isinstance(error, TimeoutError):
            error = DeadlineError(f"the call took longer than the {UNARY_SECONDS:g} s that the backend allows")
        elif (told := self._translate(error)) is not None:
            _logger.error("%s failed, request %s: %s", self._method, self._request_id, told.message, exc_info=error)
            error = told
        if not isinstance(error, UneraseError):
            incident = uuid.uuid4().hex[:12]
            _logger.error("incident %s in %s", incident, self._method, exc_info=error)
            message = f"an unexpected error occurred; the coordinator's log has it as incident {incident}"
            error = UneraseError(message, metadata={"incident": incident})
        self.code = error.code
        tracing.failed(self._span, error)
        status = status_of(error)
        details = ((REQUEST_ID, self._request_id), ("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(error.code, status.message, trailing_metadata=details)


def _parse(request: bytes, deserialise: Deserialise) -> Any:
    """Return the parsed request. gRPC's own parsing would tell the caller the name of a Python class on an error."""
    try:
        message = deserialise(request)
    except DecodeError:
        raise InvalidRequestError("the request is not a message of this method") from None
    if isinstance(message, Message):
        check_bounds(message)
        # A call may hold its request for long, and nothing reads its unknown fields.
        message.DiscardUnknownFields()
    return message


def _check_size(response: Any) -> None:
    """Refuse an answer that is too large for gRPC, which would end the call without a reason."""
    size = response.ByteSize() if isinstance(response, Message) else 0
    if size > MAX_SEND_BYTES:
        raise InvalidRequestError(
            f"the answer would be {size} bytes, and at most {MAX_SEND_BYTES} are allowed; request less at once",
            reason="ANSWER_TOO_LARGE",
        )


class _Stream:
    """The requests of a call, each read on demand. Not a generator, which would have to be closed."""

    def __init__(self, requests: AsyncIterator[bytes], parse: Callable[[bytes], Awaitable[Any]]) -> None:
        self._requests = requests
        self._parse = parse

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        return await self._parse(await anext(self._requests))


def _sendable(message: str) -> str:
    """Return a message, cut to its share of the trailers, where a byte outside printable ASCII takes three bytes."""
    room = _MAX_MESSAGE_BYTES
    for position, character in enumerate(message):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if room < 0:
            return _cut(message, position)
    return message


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
