"""Traces, with a receiver that really receives."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest
from opentelemetry.trace import SpanKind

from support.collector import Collector, Seen, collecting
from unerase_backend.runtime import tracing
from unerase_backend.runtime.carried import AUDIT, REQUEST, carried, receives
from unerase_backend.runtime.errors import NotFoundError

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, PARENT = CALLER.split("-")[1:3]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        tracing.configure("room", collector.endpoint)
        yield collector
        tracing.configure("room", "")


def _spans(collector: Collector, count: int) -> list[Seen]:
    tracing.flush()
    return collector.spans(TRACE, lambda spans: len(spans) >= count)


async def test_spans_follow_one_another_and_an_error_is_named_by_its_class_alone(collector: Collector) -> None:
    tracing.adopt(CALLER)
    with tracing.span("outer", count=3), pytest.raises(ValueError, match="secret"), tracing.span("inner"):
        raise ValueError("secret")
    assert tracing.traceparent() == CALLER
    inner, outer = sorted(_spans(collector, 2), key=lambda span: span.name)
    assert (outer.parent, inner.parent) == (PARENT, outer.id)
    assert (outer.service, outer.attributes, inner.attributes) == ("unerase-room", {"count": "3"}, {})
    assert (outer.error, inner.error) == ("", "ValueError")
    assert inner.events == 0


async def test_a_caller_who_does_not_sample_is_not_traced(collector: Collector) -> None:
    tracing.adopt(CALLER.removesuffix("01") + "00")
    with tracing.span("unsampled"):
        assert tracing.trace_id() == TRACE
    tracing.adopt(CALLER)
    with tracing.span("sampled"):
        pass
    assert [span.name for span in _spans(collector, 1)] == ["sampled"]


async def test_a_durable_span_is_the_same_in_every_process_and_left_by_who_ends_it(collector: Collector) -> None:
    here = tracing.durable(CALLER, "audit")
    tracing.adopt(here)
    with tracing.span("unit"):
        pass
    begin = time.time_ns() - 10**9
    tracing.end_durable(CALLER, "audit", "audit", begin, state="succeeded")
    assert tracing.traceparent() == here
    audit, unit = sorted(_spans(collector, 2), key=lambda span: span.name)
    assert (audit.parent, unit.parent) == (PARENT, audit.id)
    assert audit.id == here.split("-")[2]
    assert audit.begin == begin
    assert tracing.durable(CALLER, "audit") == here != tracing.durable(CALLER, "another")


@pytest.mark.parametrize(
    "sent",
    ["", "nonsense", CALLER[:-1], CALLER.upper(), f"ff{CALLER[2:]}", f"00-{'0' * 32}-{PARENT}-01", f"{CALLER}-more"],
)
async def test_what_names_no_span_is_ignored(sent: str) -> None:
    tracing.adopt(CALLER)
    tracing.adopt(sent)
    assert (tracing.traceparent(), tracing.trace_id(), tracing.durable(sent, "audit")) == ("", "", "")


async def test_without_a_receiver_the_callers_trace_is_known_and_nothing_is_left() -> None:
    tracing.adopt(CALLER)
    with tracing.span("nothing") as span:
        assert not span.is_recording()
        assert tracing.traceparent() == CALLER
    assert not tracing.begin("nothing", SpanKind.SERVER).is_recording()
    tracing.record("nothing", 1, 2)
    tracing.end_durable(CALLER, "audit", "audit", 1)
    assert tracing.trace_id() == TRACE


class Room:
    """Answers with what it was told beside its message."""

    @receives
    async def Ask(self, request: str) -> dict[str, str]:  # noqa: N802 - as an RPC is called
        if request == "fail":
            raise NotFoundError("no")
        return carried()

    @receives
    async def Stream(self, request: str) -> AsyncGenerator[dict[str, str]]:  # noqa: N802 - as an RPC is called
        yield carried()
        yield carried()


async def _streamed(room: Room, told: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    async for item in room.Stream("x", carried=told):  # type: ignore[call-arg]
        yield item


async def test_a_room_belongs_to_its_callers_audit_request_and_trace(collector: Collector) -> None:
    told = {"audit": "a1", "request": "r1", "traceparent": CALLER}
    answers = [await Room().Ask("x", carried=told), *[item async for item in _streamed(Room(), told)]]  # type: ignore[call-arg]
    for answer in answers:
        assert (answer["audit"], answer["request"]) == ("a1", "r1")
    first, second = sorted(_spans(collector, 2), key=lambda span: span.name)
    assert (first.name, second.name) == ("room.Ask", "room.Stream")
    assert {first.parent, second.parent} == {PARENT}
    assert {answer["traceparent"].split("-")[2] for answer in answers} == {first.id, second.id}
    # And the next call to none of them.
    (alone,) = (await Room().Ask("x")).values()
    assert TRACE not in alone
    assert (AUDIT.get(), REQUEST.get()) == ("", "")
