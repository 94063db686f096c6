"""Which span a client's calls say they belong to."""

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider

from unerase import ClientSettings
from unerase._environment import settings_from_environment
from unerase._settings import trace_metadata

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_programs_current_span_is_named_unless_another_is_given() -> None:
    assert trace_metadata(ClientSettings()) == ()
    with TracerProvider().get_tracer("program").start_as_current_span("work") as span:
        ((key, traceparent),) = trace_metadata(ClientSettings())
        assert trace_metadata(ClientSettings(traceparent=GIVEN)) == (("traceparent", GIVEN),)
    context = span.get_span_context()
    assert key == "traceparent"
    assert traceparent.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


def test_the_command_takes_it_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", GIVEN)
    assert settings_from_environment().traceparent == GIVEN


def test_the_client_imports_no_opentelemetry() -> None:
    program = (
        "import sys; from unerase import ClientSettings; from unerase._settings import trace_metadata; "
        "assert trace_metadata(ClientSettings()) == (); assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
