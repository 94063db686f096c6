"""Traces (OpenTelemetry): one for each audit, from its caller through every room to the sampler and the judges.

Tracing is off until `configure` is given an endpoint; a span then costs one check of a variable. The trace of a caller
who sent a `traceparent` (W3C Trace Context) is known even so, and logs name it.

A span has names, counts and ids of units, but no prompts, seeds, pictures or tokens.

The current span is kept in a variable of this module, not in OpenTelemetry's own, so that libraries with tracing of
their own, such as Ray, do not add to these traces. Each call and each workflow is a task, which has its own value.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode

Value = str | int | float | bool

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
# A process that is killed loses the spans that it has not sent.
_SEND_MILLISECONDS = 1000

_SILENT = nullcontext(INVALID_SPAN)

_provider: TracerProvider | None = None
_CURRENT: ContextVar[SpanContext | None] = ContextVar("unerase_span", default=None)
_CHOSEN_ID: ContextVar[int] = ContextVar("unerase_span_id", default=0)


def configure(room: str, endpoint: str) -> None:
    """Send the spans of this process to an OTLP receiver (gRPC), as in http://127.0.0.1:4317; empty means none.

    OpenTelemetry's environment variables configure the rest: OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_TRACES_SAMPLER.
    """
    global _provider  # noqa: PLW0603 - one process, one destination
    flush()
    _provider = None
    if not endpoint:
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    resource = Resource.create({"service.name": f"unerase-{room}", "service.namespace": "unerase"})
    _provider = TracerProvider(resource=resource, id_generator=_Ids())
    _provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint), schedule_delay_millis=_SEND_MILLISECONDS)
    )


def flush() -> None:
    """Send the remaining spans; this blocks for some seconds if the receiver does not answer."""
    if _provider is not None:
        _provider.force_flush(5000)


def adopt(traceparent: str) -> None:
    """Make the span that a `traceparent` names the current one for the rest of this task; none if it is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    _CURRENT.set(
        SpanContext(
            int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(match[3], 16))
        )
        if match
        else None
    )


def traceparent() -> str:
    """Return the current span's `traceparent`; empty if there is none."""
    return _written(_CURRENT.get())


def trace_id() -> str:
    """Return the current trace's id, 32 hexadecimal digits; empty if there is none."""
    current = _CURRENT.get()
    return f"{current.trace_id:032x}" if current is not None else ""


def begin(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: Value) -> Span:
    """Begin a span that is current for the rest of this task; the caller must end it."""
    if _provider is None:
        return INVALID_SPAN
    span = _start(name, _CURRENT.get(), kind=kind, attributes=attributes)
    _CURRENT.set(span.get_span_context())
    return span


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Run a block in a span; of an error only the class is recorded."""
    return _SILENT if _provider is None else _recorded(name, attributes)


@contextmanager
def _recorded(name: str, attributes: dict[str, Value]) -> Iterator[Span]:
    before = _CURRENT.get()
    current = begin(name, SpanKind.INTERNAL, **attributes)
    try:
        yield current
    except BaseException as error:
        failed(current, error)
        raise
    finally:
        current.end()
        _CURRENT.set(before)


def failed(span: Span, error: BaseException) -> None:
    """Record that a span ended with an error, without the message, which may quote the request."""
    span.set_status(Status(StatusCode.ERROR, type(error).__name__))


def record(name: str, begin_ns: int, end_ns: int, **attributes: Value) -> None:
    """Record a span under the current one, from `begin_ns` to `end_ns` (nanoseconds since 1970)."""
    if _provider is not None:
        _start(name, _CURRENT.get(), attributes=attributes, start_time=begin_ns).end(end_ns)


def durable(parent: str, key: str) -> str:
    """Return the `traceparent` of the span `key` under `parent`, the same in every process; empty without a parent.

    Such a span may begin in one process and end in another, which calls `end_durable`.
    """
    match = _TRACEPARENT.fullmatch(parent)
    return f"00-{match[1]}-{_id_of(key):016x}-{match[3]}" if match else ""


def end_durable(parent: str, key: str, name: str, begin_ns: int, **attributes: Value) -> None:
    """Record the span `key`, which began at `begin_ns` and ends now."""
    before = _CURRENT.get()
    adopt(parent)
    if _provider is not None and _CURRENT.get() is not None:
        token = _CHOSEN_ID.set(_id_of(key))
        try:
            ended = _start(name, _CURRENT.get(), attributes=attributes, start_time=begin_ns)
        finally:
            _CHOSEN_ID.reset(token)
        ended.end(time.time_ns())
    _CURRENT.set(before)


class _Ids(RandomIdGenerator):
    """Random ids, except for a span whose id has been chosen."""

    def generate_span_id(self) -> int:
        return _CHOSEN_ID.get() or super().generate_span_id()


def _start(name: str, parent: SpanContext | None, **details: Any) -> Span:
    assert _provider is not None  # noqa: S101 - every caller has checked
    context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
    return _provider.get_tracer("unerase").start_span(name, context, **details)


def _written(context: SpanContext | None) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context else ""


def _id_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") or 1
