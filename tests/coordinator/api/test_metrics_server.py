"""/metrics: who may read it, and that nobody keeps it from others."""

import asyncio
import contextlib
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

from unerase_backend.coordinator.api import metrics_server

from .guarded import Guarded, fetched


async def test_metrics_ask_for_their_token(guarded: Guarded) -> None:
    assert fetched(guarded.metrics, guarded.root, guarded.token["metrics"])[1].count("unerase_rpcs_total")
    assert fetched(guarded.metrics, guarded.root, guarded.token["admin"])[0] == 200
    assert fetched(guarded.metrics, guarded.root, None)[0] == 401
    assert fetched(guarded.metrics, guarded.root, "wrong")[0] == 401
    assert fetched(guarded.metrics, guarded.root, guarded.token["expired"])[0] == 401
    assert fetched(guarded.metrics, guarded.root, guarded.token["audit:read"])[0] == 403
    assert fetched(guarded.metrics.replace("/metrics", "/"), guarded.root, guarded.token["metrics"])[0] == 404


async def test_metrics_answer_however_many_say_nothing(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    # Who says a little now and then has as long as it likes.
    monkeypatch.setattr(metrics_server._Handler, "timeout", 300)
    port = urllib.parse.urlsplit(guarded.metrics).port
    before = threading.active_count()
    with contextlib.ExitStack() as silent:
        for _ in range(3 * metrics_server.MAX_CONNECTIONS):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        for _ in range(5):
            assert (await asyncio.to_thread(fetched, guarded.metrics, guarded.root, guarded.token["metrics"]))[0] == 200
        # Some that were ended may not have met their end yet, and those of to_thread count as well.
        assert threading.active_count() - before <= 2 * metrics_server.MAX_CONNECTIONS
