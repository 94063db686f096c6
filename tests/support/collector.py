"""A receiver of traces (OTLP over gRPC) that stores the spans that it gets."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)


@dataclass(frozen=True)
class Seen:
    """A span that has ended."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str]
    begin: int
    end: int
    error: str
    events: int


class Collector(TraceServiceServicer):
    """Stores every span that was sent."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: list[Seen] = []
        self._changed = threading.Condition()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:  # noqa: N802
        with self._changed:
            for resource in request.resource_spans:
                (service,) = (a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                self._spans += [_seen(service, span) for scope in resource.scope_spans for span in scope.spans]
            self._changed.notify_all()
        return ExportTraceServiceResponse()

    def spans(self, trace: str, enough: Callable[[list[Seen]], bool]) -> list[Seen]:
        """Wait, for a minute at most, until `enough` accepts the spans of a trace, and return them."""
        with self._changed:
            if not self._changed.wait_for(lambda: enough(self._of(trace)), 60):
                pytest.fail(f"these spans are not enough: {sorted({span.name for span in self._of(trace)})}")
            return self._of(trace)

    def _of(self, trace: str) -> list[Seen]:
        return [span for span in self._spans if span.trace == trace]


def _seen(service: str, span: Any) -> Seen:
    attributes = {a.key: str(getattr(a.value, a.value.WhichOneof("value"))) for a in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    times = (span.start_time_unix_nano, span.end_time_unix_nano)
    return Seen(service, span.name, *ids, attributes, *times, span.status.message, len(span.events))


@contextmanager
def collecting() -> Iterator[Collector]:
    """Receive traces on a free loopback port."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(1).wait()
