"""Traces (OpenTelemetry): one of each audit, from its caller through every room to the sampler and the judges.

Off until `configure` is told where spans go; a span then costs a look at a variable. The trace of a caller who sent a
`traceparent` (W3C Trace Context) is known all the same, so that logs can name it.

A span holds names, counts and ids of units, never a prompt, a seed, a picture or a token.

What current spans follow one another in is a variable of this module, not OpenTelemetry's own: libraries that trace
themselves, as Ray does, stay out of it. Every call and every workflow is a task, with a variable of its own.
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
# A process that is killed takes with it what it has not sent.
_SEND_MILLISECONDS = 1000

_SILENT = nullcontext(INVALID_SPAN)

_provider: TracerProvider | None = None
_CURRENT: ContextVar[SpanContext | None] = ContextVar("unerase_span", default=None)
_CHOSEN_ID: ContextVar[int] = ContextVar("unerase_span_id", default=0)


def configure(room: str, endpoint: str) -> None:
    """Send the spans of this process to an OTLP receiver (gRPC), as in http://127.0.0.1:4317; nowhere if it is empty.

    OpenTelemetry's environment variables say the rest: OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE,
    OTEL_TRACES_SAMPLER.
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
    """Send what has not been sent; blocks for some seconds where nobody receives."""
    if _provider is not None:
        _provider.force_flush(5000)


def adopt(traceparent: str) -> None:
    """Let the rest of this task belong to the span that a `traceparent` names; anything else names none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    _CURRENT.set(
        SpanContext(
            int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=trace.TraceFlags(int(match[3], 16))
        )
        if match
        else None
    )


def traceparent() -> str:
    """Return the current span's `traceparent`; empty where there is none."""
    return _written(_CURRENT.get())


def trace_id() -> str:
    """Return the current trace's id, 32 hexadecimal digits; empty where there is none."""
    current = _CURRENT.get()
    return f"{current.trace_id:032x}" if current is not None else ""


def begin(name: str, kind: SpanKind = SpanKind.INTERNAL, **attributes: Value) -> Span:
    """Begin a span that is current for the rest of this task; whoever began it ends it."""
    if _provider is None:
        return INVALID_SPAN
    span = _start(name, _CURRENT.get(), kind=kind, attributes=attributes)
    _CURRENT.set(span.get_span_context())
    return span


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """Be in a span; an error that passes is noted by its class alone."""
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
    """Note that a span ended with an error; what the error says may hold what was asked, and stays away."""
    span.set_status(Status(StatusCode.ERROR, type(error).__name__))


def record(name: str, begin_ns: int, end_ns: int, **attributes: Value) -> None:
    """Leave a span, under the current one, of what went on from `begin_ns` to `end_ns` (nanoseconds since 1970)."""
    if _provider is not None:
        _start(name, _CURRENT.get(), attributes=attributes, start_time=begin_ns).end(end_ns)


def durable(parent: str, key: str) -> str:
    """Return the `traceparent` of the span `key` under `parent`, the same in every process; empty without a parent.

    Such a span may begin in one process and end in another: whoever ends it calls `end_durable`.
    """
    match = _TRACEPARENT.fullmatch(parent)
    return f"00-{match[1]}-{_id_of(key):016x}-{match[3]}" if match else ""


def end_durable(parent: str, key: str, name: str, begin_ns: int, **attributes: Value) -> None:
    """Leave the span `key`, which began at `begin_ns` and ends now."""
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
    assert _provider is not None  # noqa: S101 - every caller has looked
    context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
    return _provider.get_tracer("unerase").start_span(name, context, **details)


def _written(context: SpanContext | None) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context else ""


def _id_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") or 1
