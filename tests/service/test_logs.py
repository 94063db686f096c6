"""Logs as JSON: what they hold."""

import json

from support.serving import Running

from .conftest import Traced


def _lines(backend: Running, room: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (backend.data / "logs" / f"{room}.log").read_text().splitlines()]


def test_an_event_names_its_audit_its_request_and_its_trace(backend: Running, traced: Traced) -> None:
    lines = _lines(backend, "coordinator")
    assert all({"time", "level", "room", "logger", "message", "process"} <= line.keys() for line in lines)
    (ended,) = (line for line in lines if line.get("audit") == traced.audit and "ended" in str(line["message"]))
    assert ended["message"] == "the audit has ended: succeeded"
    assert (ended["level"], ended["room"], ended["trace"]) == ("INFO", "coordinator", traced.trace)
    asked = [line for line in lines if "CreateAudit" in str(line["message"]) and line.get("trace") == traced.trace]
    assert asked
    assert all(line["request"] and "OK" in str(line["message"]) for line in asked)
    assert not any("an hourglass" in json.dumps(line) for line in lines)


def test_a_room_names_whose_call_it_answers(backend: Running, traced: Traced) -> None:
    lines = [line for line in _lines(backend, "generation") if line.get("audit") == traced.audit]
    assert lines
    assert {line["trace"] for line in lines} == {traced.trace}
